"""The rules of the verdicts, in order, and what each looks at.

A rule gets the figures of one stage and gives a finding or None; where a figure that it rests on is
missing it raises ``Lack`` with what is missing. Everything is of the stage's own process tree,
unless the sentence says "of the machine".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from telemetry import verdict_contention as contention
from telemetry.verdict_figures import (
    ONLY_DISK,
    Evidence,
    Figures,
    Finding,
    Lack,
    need,
    percent,
)
from telemetry.verdict_gpu import busiest, fullest_with_others, fullness, gpus
from telemetry.verdict_thresholds import limit


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One line of the table: ``holds`` gives a finding, None, or names what it lacks."""

    id: str
    verdict: str
    asks: str
    holds: Callable[[Figures], Finding | None]


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
            f"{figures.cores:.2f} CPUs in use, {figures.ready:.2f} processes running or ready to, "
            f"{figures.disk_waits:.2f} waiting for a disk"
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


def _gpu(figures: Figures) -> Finding | None:
    told = busiest(figures)
    if not told:
        return None
    use, *shown = told
    sentence = f"{use.entity} worked for {use.value:.0f} % of its time"
    for one in shown:
        amount = f"{one.value / 1e6:,.1f} MB"
        sentence += f", for all who used it, this run among them ({one.says}: {amount})"
    full, others = fullness(figures, use.entity), len(gpus(figures)) - 1
    if full is not None:
        sentence += f"; {full.value:.0f} % of its multiprocessors were busy on average"
    if others:
        sentence += f"; it is one of {others + 1} GPUs, and the one that worked the most"
    return Finding(sentence, [*told, full])


def _gpu_neighbour(figures: Figures) -> Finding | None:
    told = fullest_with_others(figures)
    if not told:
        return None
    everybody, own = told
    return Finding(
        f"{everybody.entity} was full, and not of its work alone: all processes had work on it for "
        f"{everybody.value:.0f} % of the time, this run's for {own.value:.0f} %",
        [*told],
    )


def _memory(figures: Figures) -> Finding | None:
    stall, faults = need(
        figures,
        ("machine", "psi_memory_some_seconds", "mean"),
        ("stage", "page_faults_major", "mean"),
        what="memory",
    )
    if faults.value < limit("major_faults_per_s"):
        return None
    how = f"some task of the machine waited for memory for {percent(stall.value)} of its time"
    shown = [stall]
    if stall.value < limit("memory_stall"):
        share, shown = figures.as_of_one(stall.metric) or (0.0, shown)
        if share < limit("most_of_the_time"):
            return None
        how = f"pressure on memory was as of a task that waited for {percent(share)} of its time"
    return Finding(
        f"{how}, and it had {faults.value:,.0f} page faults a second that waited for storage",
        [*shown, faults, figures.get("stage", "mem_rss_bytes", "max"),
         figures.get("stage", "mem_swap_bytes", "max")],
    )  # fmt: skip


def _disk(figures: Figures, way: str) -> Finding | None:
    only = figures.only_disk
    if figures.disk_waits < max(limit("most_of_the_time"), figures.cores) and not only:
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
    how = (
        f"for {only[0].value:.0f} % of its time it did nothing but wait for a disk"
        if only
        else (f"{figures.disk_waits:.2f} of its processes waited for a disk on average")
    )
    return Finding(
        f"{how}, with {figures.cores:.2f} CPUs in use on average; it {moved} storage "
        f"{rate.value / 1e6:,.1f} MB/s",
        [*figures.base(), *only, read, write,
         *(one for disk in figures.of_machine_disks() for one in disk.evidence)],
    )  # fmt: skip


def _disk_of_machine(figures: Figures) -> Finding | None:
    """Threads that wait for a disk behind a first thread that sleeps are seen in no state."""
    read, write = figures.storage()
    busy = max(figures.of_machine_disks(), key=lambda one: one.share, default=None)
    if figures.asleep < limit("most_of_the_time") or None in (read, write, busy):
        return None
    assert read is not None
    assert write is not None
    assert busy is not None
    if read.value + write.value < limit("storage_bytes_per_s"):
        return None
    if busy.share < limit("most_of_the_time"):
        return None
    return Finding(
        f"its processes slept for {percent(figures.asleep)} of its time, storage moved "
        f"{(read.value + write.value) / 1e6:,.1f} MB/s for it, and on the machine "
        f"{busy.says} for {percent(busy.share)} of it",
        [*figures.base(), read, write, *busy.evidence],
    )


def _disk_share(figures: Figures) -> Finding | None:
    only, (read, write) = figures.get("stage", ONLY_DISK, "mean"), figures.storage()
    if only is None or read is None or write is None:
        return None
    if only.value < 100 * limit("input_bound"):
        return None
    if read.value + write.value < limit("storage_bytes_per_s"):
        return None
    return Finding(
        f"for {only.value:.0f} % of its time a process waited for a disk and none ran",
        [only, read, write],
    )


def _cpu_all(figures: Figures) -> Finding | None:
    count = need(figures, ("machine", "cpu_count", "mean"), what="all CPUs")[0]
    usable = min(count.value, figures.cpus_usable or count.value)
    if usable <= 1 or figures.cores < limit("all_cpus") * usable:
        return None
    whose = f"the machine's {count.value:.0f} CPUs"
    if usable < count.value:
        whose = f"the {usable:.0f} CPUs that the run may use, of {whose}"
    return Finding(f"it used {figures.cores:.2f} of {whose}", [*figures.base(), count])


def _cpu_one(figures: Figures) -> Finding | None:
    if not limit("most_of_the_time") <= figures.cores <= limit("one_thread"):
        return None
    if figures.ready > limit("one_thread"):
        return None
    return Finding(
        f"it used {figures.cores:.2f} CPUs, as one thread does, or several that take turns",
        [*figures.base(), figures.get("machine", "cpu_count", "mean")],
    )


def _cpu_some(figures: Figures) -> Finding | None:
    if figures.cores < limit("most_of_the_time"):
        return None
    return Finding(f"it used {figures.cores:.2f} CPUs", [*figures.base()])


def _cluster(figures: Figures) -> Finding | None:
    if figures.unwatched is None or figures.asleep < limit("most_of_the_time"):
        return None
    return Finding(
        f"for {percent(figures.asleep)} of its time none of its own processes ran or waited for a "
        f"disk: its work went to {figures.unwatched}, which this run does not watch",
        [*figures.base()],
    )


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
    if figures.unwatched is not None or figures.asleep < limit("most_of_the_time"):
        return None
    return Finding(
        f"for {percent(figures.asleep)} of its time none of its processes ran or waited for a "
        "disk: it waited for something else (a timer, a lock, another program's answer)",
        [*figures.base()],
    )


RULES = (
    Rule(id="data-storage", verdict="data-bound",
         asks="its own counters say that it waited for data most of the time, and the loader "
         "waited for a disk at least half of that, and more than it used CPU",
         holds=lambda f: _data(f, "storage")),
    Rule(id="data-decoding", verdict="data-bound",
         asks="the same, and the loader used CPU at least half of that, and more than it waited "
         "for a disk",
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
         asks="all processes had work on a GPU for gpu_busy of the time, and this run's and "
         "others' for gpu_of_each, where the driver tells", holds=_gpu_neighbour),
    Rule(id="memory-stall", verdict="memory-bound",
         asks="memory_stall of the machine, or a pressure as if one task had waited for memory "
         "most of the time, and the stage's own major_faults_per_s", holds=_memory),
    Rule(id="cpu-quota", verdict="CPU-bound",
         asks="quota_periods of its own control groups, while it wanted a CPU most of the time or "
         "used at least half of what its group did",
         holds=contention.quota),
    Rule(id="vm-limit", verdict="CPU-bound",
         asks="vCenter's time at the CPU limit of the VM or its resource pool steal of the CPUs "
         "that were wanted, while it wanted a CPU most of the time", holds=contention.vm_limit),
    Rule(id="steal", verdict="contention",
         asks="steal of the CPUs that were wanted on the machine, less what a limit of the VM held "
         "back, while it wanted a CPU most of the time", holds=contention.steal),
    Rule(id="hypervisor", verdict="contention",
         asks="vCenter's ready, co-stop, swap-in or memory latency in the mean above their own "
         "thresholds (docs/profile.md), or its ready time less ready_of_idle and what a limit "
         "made it wait steal of the CPUs that were wanted, while it wanted a CPU most of the time",
         holds=contention.hypervisor),
    Rule(id="neighbour", verdict="contention",
         asks="cpus_full, cpus_of_others and cpu_pressure of the machine, while it wanted a CPU "
         "most of the time and, being one thread, got less than cpu_got",
         holds=contention.neighbour),
    Rule(id="disk-read", verdict="disk-bound",
         asks="its processes waited for a disk most of the time and more than they used CPU, or "
         "did nothing else most of the time, with storage_bytes_per_s, mostly reads",
         holds=lambda f: _disk(f, "read")),
    Rule(id="disk-write", verdict="disk-bound",
         asks="the same, mostly writes", holds=lambda f: _disk(f, "write")),
    Rule(id="cpu-all", verdict="CPU-bound",
         asks="it used all_cpus, of those that the run may use", holds=_cpu_all),
    Rule(id="cpu-one", verdict="CPU-bound",
         asks="it used a CPU most of the time, and no more than one_thread", holds=_cpu_one),
    Rule(id="cpu-some", verdict="CPU-bound",
         asks="it used CPUs most of the time, several but not all", holds=_cpu_some),
    Rule(id="cluster", verdict="unknown",
         asks="its processes slept most of the time, and its work went to the workers of a "
         "scheduler, which nobody watched", holds=_cluster),
    Rule(id="disk-machine", verdict="disk-bound",
         asks="its processes slept most of the time, it had storage_bytes_per_s, and PSI io or a "
         "device of the machine was busy most of the time", holds=_disk_of_machine),
    Rule(id="network", verdict="network-bound",
         asks="its processes slept most of the time, and an interface other than lo had "
         "network_bytes_per_s", holds=_network),
    Rule(id="idle", verdict="idle",
         asks="its processes slept most of the time, and no scheduler's workers did its work",
         holds=_idle),
)  # fmt: skip
"""In order: the first that holds decides."""
BESIDE = (
    Rule(id="data-share", verdict="data-bound",
         asks="it waited for data from input_bound of its time on, never the verdict",
         holds=_input_share),
    Rule(id="disk-share", verdict="disk-bound",
         asks="a process waited for a disk and none ran from input_bound of its time on, with "
         "storage_bytes_per_s, never the verdict", holds=_disk_share),
)  # fmt: skip
"""Told beside the verdict, and never one."""
