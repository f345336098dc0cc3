"""The rules of the verdicts and their thresholds, in order, and what each looks at.

A rule gets the figures of one stage and gives a finding or None; where a figure that it rests on is
missing it raises ``Lack`` with what is missing. Everything is of the stage's own process tree,
unless the sentence says "of the machine".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from telemetry.contention import Flag
from telemetry.verdict_figures import CPU, Evidence, Figures, Lack
from telemetry.verdict_gpu import busiest, fullest_with_others
from telemetry.verdict_thresholds import limit
from telemetry.verdict_vm import OverHosts, over_hosts, part_of, why_unseen


@dataclass
class Finding:
    """What a rule found: the sentence with its numbers, and the evidence."""

    sentence: str
    evidence: list[Evidence | None] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One line of the table: ``holds`` gives a finding, None, or names what it lacks."""

    id: str
    verdict: str
    asks: str
    holds: Callable[[Figures], Finding | None]


def percent(share: float) -> str:
    """A share for people."""
    return f"{100 * share:.0f} %"


def _need(figures: Figures, *asked: tuple[str, str, str], what: str) -> list[Evidence]:
    found = [figures.get(*one) for one in asked]
    missing = [one for one, got in zip(asked, found, strict=True) if got is None]
    if missing:
        raise Lack(f"{what}: {figures.why_not(*missing[0])}")
    return [one for one in found if one is not None]


# --- waiting for data ---------------------------------------------------------------------------


def _wait(figures: Figures) -> tuple[float, list[Evidence]]:
    """Share of the stage in which it waited for its input, as it says itself."""
    found = [figures.get("app", name, "mean") for name in figures.WAITS]
    told = [one for one in found if one is not None]
    return min(1.0, sum(one.value for one in told)), told


def _data(figures: Figures, why: str) -> Finding | None:
    wait, told = _wait(figures)
    if not told or wait < limit("most_of_the_time") or figures.loader(wait) != why:
        return None
    read, busy = figures.storage()[0], figures.busiest_disk()
    if why == "storage":
        how = (
            "its loader was waiting for storage: "
            f"{figures.disk_waits:.2f} processes waited for a disk on average"
        )
    elif why == "decoding":
        how = (
            "its loader was working: "
            f"{figures.cores:.2f} CPUs in use, {figures.ready:.2f} processes running or ready to"
        )
    elif why == "machine" and read is not None and busy is not None:
        how = (
            f"nobody was working meanwhile: {figures.cores:.2f} CPUs in use; storage read "
            f"{read.value / 1e6:,.1f} MB/s for it, and on the machine {busy.says} for "
            f"{percent(busy.share)} of its time"
        )
    else:
        how = (
            "nobody was working meanwhile: "
            f"{figures.cores:.2f} CPUs in use, so the loader was waiting for something itself"
        )
    shown = busy.evidence if why == "machine" and busy is not None else []
    return Finding(
        f"it waited for its data for {percent(wait)} of its time, and {how}",
        [*told, *figures.base(), figures.get("stage", "io_read_bytes", "total"), *shown],
    )


def _input_share(figures: Figures) -> Finding | None:
    wait, told = _wait(figures)
    if not told or not limit("input_bound") <= wait < limit("most_of_the_time"):
        return None
    return Finding(f"it waited for its data for {percent(wait)} of its time", [*told])


# --- GPU, memory ----------------------------------------------------------------------------------


def _gpu(figures: Figures) -> Finding | None:
    told = busiest(figures)
    if not told:
        return None
    use, *shown = told
    sentence = f"{use.entity} worked for {use.value:.0f} % of its time"
    for one in shown:
        amount = f"{one.value / 1e6:,.1f} MB"
        sentence += f", for all who used it, this run among them ({one.says}: {amount})"
    return Finding(sentence, [*told])


def _gpu_neighbour(figures: Figures) -> Finding | None:
    told = fullest_with_others(figures)
    if not told:
        return None
    everybody, own = told
    return Finding(
        f"{everybody.entity} was full, and not of its work alone: all processes used "
        f"{everybody.value:.0f} % of its multiprocessor time, this run's {own.value:.0f} %",
        [*told],
    )


def _memory(figures: Figures) -> Finding | None:
    stall, faults = _need(
        figures,
        ("machine", "psi_memory_some_seconds", "mean"),
        ("stage", "page_faults_major", "mean"),
        what="memory",
    )
    if stall.value < limit("memory_stall") or faults.value < limit("major_faults_per_s"):
        return None
    return Finding(
        f"some task of the machine waited for memory for {percent(stall.value)} of its time, and "
        f"it had {faults.value:,.0f} page faults a second that waited for storage",
        [stall, faults, figures.get("stage", "mem_rss_bytes", "max"),
         figures.get("stage", "mem_swap_bytes", "max")],
    )  # fmt: skip


# --- CPU that it was not given --------------------------------------------------------------------


def _quota(figures: Figures) -> Finding | None:
    held = figures.quota()
    if held is None:
        raise Lack(f"a CPU quota: {figures.why_not('stage', 'cgroup_cpu_periods', 'total')}")
    share, evidence = held
    if share < limit("quota_periods") or figures.wanted < limit("most_of_the_time"):
        return None
    return Finding(
        f"the CPU quota of its control group held it back in {percent(share)} of the periods: it "
        f"was ready to run with {figures.ready:.2f} processes and got {figures.cores:.2f} CPUs",
        [*evidence, *figures.base()],
    )


def _of_wanted(lost: float, busy: float, count: float) -> float:
    """Share of the CPUs that were wanted here which these lost ones (in CPUs) are.

    Wanted are those that worked and those that were lost, of the machine's. An idle CPU loses
    nothing, however many there are; below one CPU chance would pass for a share.
    """
    return lost / min(count, max(1.0, busy + lost))


def _steal(figures: Figures) -> Finding | None:
    steal, busy, count = _need(
        figures,
        ("machine", "cpu_steal_seconds", "mean"),
        ("machine", CPU, "mean"),
        ("machine", "cpu_count", "mean"),
        what="steal",
    )
    share = _of_wanted(steal.value, busy.value, count.value)
    if share < limit("steal") or figures.wanted < limit("most_of_the_time"):
        return None
    return Finding(
        f"the hypervisor gave {percent(share)} of the CPU time that was wanted here to others",
        [steal, busy, count, *figures.base()],
    )


_FLAGS = ("vm_cpu_ready_percent", "vm_cpu_costop_percent", "vm_cpu_latency_percent",
          "vm_mem_swap_in_bytes_per_s", "vm_mem_latency_percent")  # fmt: skip


def _hypervisor(figures: Figures) -> Finding | None:
    found = [*_flagged(figures), *_waiting_cpus(figures)]
    if not found:
        why = why_unseen(figures, "vm_cpu_ready_percent")
        if why is not None:
            raise Lack(f"the hypervisor: {why}")
        return None
    if figures.wanted < limit("most_of_the_time"):
        return None
    evidence = [one for finding in found for one in finding.evidence]
    return Finding(found[0].sentence, [*evidence, *figures.base()])


def _flagged(figures: Figures) -> Iterator[Finding]:
    """The flags that last: the mean is above the threshold, too, on hosts that cover enough.

    A flag may be of a host that the VM was on for a moment, or of its largest window.
    """
    for flag in figures.flags:
        part = part_of(flag["entity"])
        one = over_hosts(figures, flag["metric"]).get(part) if part else None
        above = one.above(flag["threshold"]) if one else None
        if flag["metric"] in _FLAGS and above and above.is_enough:
            yield _of_flag(flag, above)


def _of_flag(flag: Flag, above: OverHosts) -> Finding:
    unit, sentence = flag["unit"], str(flag["sentence"])
    if flag["figure"] != "mean" or len(above.rows) > 1:
        covered = percent(above.coverage)
        sentence += f"; over {covered} of the stage {above.mean:,.1f} {unit} on average"
    words = str(flag["metric"]).replace("_", " ")
    return Finding(sentence, [*above.told(f"{words}, flagged above {flag['threshold']:g} {unit}")])


def _waiting_cpus(figures: Figures) -> Iterator[Finding]:
    """What vCenter says of the time that the CPUs which were wanted here had to wait."""
    busy, count = (figures.get("machine", name, "mean") for name in (CPU, "cpu_count"))
    if busy is None or count is None:
        return
    for one in over_hosts(figures, "vm_cpu_ready_cores").values():
        if not one.is_enough:
            continue
        share = _of_wanted(one.mean, busy.value, count.value)
        if share >= limit("steal"):
            says = "virtual CPUs that were ready to run while no physical CPU was free"
            yield Finding(
                f"by vCenter {percent(share)} of the CPUs that were wanted here were ready to run "
                "while no physical CPU was free",
                [*one.told(says), busy, count],
            )


def _neighbour(figures: Figures) -> Finding | None:
    busy, count, pressure = _need(
        figures,
        ("machine", "cpu_busy_seconds", "mean"),
        ("machine", "cpu_count", "mean"),
        ("machine", "psi_cpu_some_seconds", "mean"),
        what="neighbours",
    )
    others = max(0.0, busy.value - figures.cores) / count.value
    full = busy.value / count.value
    if not (
        full >= limit("cpus_full")
        and others >= limit("cpus_of_others")
        and pressure.value >= limit("cpu_pressure")
        and figures.wanted >= limit("most_of_the_time")
    ):
        return None
    if figures.cores <= limit("one_thread") and figures.cores >= limit("cpu_got") * figures.ready:
        return None  # one thread that had a CPU of its own
    return Finding(
        f"other programs used {percent(others)} of the machine's CPUs, which were all busy; it "
        f"was ready to run with {figures.ready:.2f} processes and got {figures.cores:.2f} CPUs",
        [busy, count, pressure, *figures.base()],
    )


# --- what it did with its time --------------------------------------------------------------------


def _disk(figures: Figures, way: str) -> Finding | None:
    if figures.disk_waits < max(limit("most_of_the_time"), figures.cores):
        return None
    read, write = figures.storage()
    if read is None or write is None:
        raise Lack(f"a disk: {figures.why_not('stage', 'io_read_bytes', 'mean')}")
    if read.value + write.value < limit("storage_bytes_per_s"):
        return None
    if (read.value >= write.value) != (way == "read"):
        return None
    rate = read if way == "read" else write
    moved = "read from" if way == "read" else "wrote to"
    return Finding(
        f"{figures.disk_waits:.2f} of its processes waited for a disk on average, with "
        f"{figures.cores:.2f} CPUs in use; it {moved} storage {rate.value / 1e6:,.1f} MB/s",
        [*figures.base(), read, write, *figures.of_machine_disks()],
    )


def _disk_of_machine(figures: Figures) -> Finding | None:
    """Threads that wait for a disk behind a first thread that sleeps are seen in no state."""
    read, write = figures.storage()
    busy = max(figures.of_machine_disks(), key=lambda one: one.value, default=None)
    if figures.asleep < limit("most_of_the_time") or None in (read, write, busy):
        return None
    assert read is not None
    assert write is not None
    assert busy is not None
    if read.value + write.value < limit("storage_bytes_per_s"):
        return None
    if busy.value < limit("most_of_the_time"):
        return None
    return Finding(
        f"its processes slept for {percent(figures.asleep)} of its time, storage moved "
        f"{(read.value + write.value) / 1e6:,.1f} MB/s for it, and on the machine "
        f"{busy.says} for {percent(busy.value)} of it",
        [*figures.base(), read, write, busy],
    )


def _cpu_all(figures: Figures) -> Finding | None:
    count = _need(figures, ("machine", "cpu_count", "mean"), what="all CPUs")[0]
    if count.value <= 1 or figures.cores < limit("all_cpus") * count.value:
        return None
    return Finding(
        f"it used {figures.cores:.2f} of the machine's {count.value:.0f} CPUs",
        [*figures.base(), count],
    )


def _cpu_one(figures: Figures) -> Finding | None:
    if not limit("most_of_the_time") <= figures.cores <= limit("one_thread"):
        return None
    if figures.ready > limit("one_thread"):
        return None
    return Finding(
        f"it used {figures.cores:.2f} CPUs: one thread at a time did the work",
        [*figures.base(), figures.get("machine", "cpu_count", "mean")],
    )


def _cpu_some(figures: Figures) -> Finding | None:
    if figures.cores < limit("most_of_the_time"):
        return None
    return Finding(f"it used {figures.cores:.2f} CPUs", [*figures.base()])


def _network(figures: Figures) -> Finding | None:
    busiest = figures.busiest_interface()
    if busiest is None or figures.asleep < limit("most_of_the_time"):
        return None
    if sum(one.value for one in busiest) < limit("network_bytes_per_s"):
        return None
    rate = sum(one.value for one in busiest) / 1e6
    return Finding(
        f"its processes slept for {percent(figures.asleep)} of its time while "
        f"{busiest[0].entity}, of the machine, carried {rate:,.1f} MB/s",
        [*busiest, *figures.base()],
    )


def _idle(figures: Figures) -> Finding | None:
    if figures.asleep < limit("most_of_the_time"):
        return None
    return Finding(
        f"for {percent(figures.asleep)} of its time none of its processes ran or waited for a "
        "disk: it waited for something else (a timer, a lock, another program's answer)",
        [*figures.base()],
    )


RULES = (
    Rule(id="data-storage", verdict="data-bound",
         asks="its own counters say that it waited for data most of the time, and the loader "
         "waited for a disk at least half of that", holds=lambda f: _data(f, "storage")),
    Rule(id="data-decoding", verdict="data-bound",
         asks="the same, and the loader used CPU at least half of that",
         holds=lambda f: _data(f, "decoding")),
    Rule(id="data-machine", verdict="data-bound",
         asks="the same, nobody worked, it read storage_bytes_per_s and little_bytes from storage, "
         "and a device of the machine was busy for at least half of that, or PSI io as if one "
         "task had waited for as long: a thread behind a sleeping first one waits for it",
         holds=lambda f: _data(f, "machine")),
    Rule(id="data-starved", verdict="data-bound",
         asks="the same, and nobody worked, nor did storage for it",
         holds=lambda f: _data(f, "starved")),
    Rule(id="gpu-busy", verdict="GPU-bound",
         asks="a GPU worked at least gpu_busy: for this run's processes where the driver tells, "
         "else for anybody, and they held memory of it or the stage copied to or from a GPU",
         holds=_gpu),
    Rule(id="gpu-neighbour", verdict="contention",
         asks="all processes on a GPU used gpu_busy of its multiprocessor time, and this run's and "
         "others' gpu_of_each, where the driver tells", holds=_gpu_neighbour),
    Rule(id="memory-stall", verdict="memory-bound",
         asks="memory_stall of the machine, and the stage's own major_faults_per_s", holds=_memory),
    Rule(id="cpu-quota", verdict="CPU-bound",
         asks="quota_periods of its own control groups, while it wanted a CPU most of the time",
         holds=_quota),
    Rule(id="steal", verdict="contention",
         asks="steal of the CPUs that were wanted on the machine, while it wanted a CPU most of "
         "the time", holds=_steal),
    Rule(id="hypervisor", verdict="contention",
         asks="vCenter's ready, co-stop, latency, swap-in or memory latency in the mean above "
         "their own thresholds (docs/profile.md), or its ready time steal of the CPUs that were "
         "wanted, while it wanted a CPU most of the time", holds=_hypervisor),
    Rule(id="neighbour", verdict="contention",
         asks="cpus_full, cpus_of_others and cpu_pressure of the machine, while it wanted a CPU "
         "most of the time and, being one thread, got less than cpu_got", holds=_neighbour),
    Rule(id="disk-read", verdict="disk-bound",
         asks="its processes waited for a disk most of the time and more than they used CPU, with "
         "storage_bytes_per_s, mostly reads", holds=lambda f: _disk(f, "read")),
    Rule(id="disk-write", verdict="disk-bound",
         asks="the same, mostly writes", holds=lambda f: _disk(f, "write")),
    Rule(id="cpu-all", verdict="CPU-bound", asks="it used all_cpus", holds=_cpu_all),
    Rule(id="cpu-one", verdict="CPU-bound",
         asks="it used a CPU most of the time, and no more than one_thread", holds=_cpu_one),
    Rule(id="cpu-some", verdict="CPU-bound",
         asks="it used CPUs most of the time, several but not all", holds=_cpu_some),
    Rule(id="disk-machine", verdict="disk-bound",
         asks="its processes slept most of the time, it had storage_bytes_per_s, and PSI io or a "
         "device of the machine was busy most of the time", holds=_disk_of_machine),
    Rule(id="network", verdict="network-bound",
         asks="its processes slept most of the time, and an interface other than lo had "
         "network_bytes_per_s", holds=_network),
    Rule(id="idle", verdict="idle", asks="its processes slept most of the time", holds=_idle),
)  # fmt: skip
"""In order: the first that holds decides."""
BESIDE = (Rule(id="data-share", verdict="data-bound", asks="from input_bound on, never the verdict",
               holds=_input_share),)  # fmt: skip
"""Told beside the verdict, and never one."""
