"""Whether a stage was given the CPUs that it wanted: by its quota, the hypervisor, its neighbours.

Rules of ``verdict_rules``: each gets the figures of a stage, and gives a finding or None.
"""

from __future__ import annotations

from collections.abc import Iterator

from telemetry.contention import Flag
from telemetry.verdict_figures import CPU, Evidence, Figures, Finding, Lack, need, percent
from telemetry.verdict_thresholds import limit
from telemetry.verdict_vm import OverHosts, over_hosts, part_of, why_unseen


def quota(figures: Figures) -> Finding | None:
    held = figures.quota()
    if held is None:
        raise Lack(f"a CPU quota: {figures.why_not('stage', 'cgroup_cpu_periods', 'total')}")
    share, evidence = held
    own = _of_group(figures)
    wanted = figures.wanted >= limit("most_of_the_time")
    if share < limit("quota_periods") or not (wanted or own):
        return None
    how = f"it was ready to run with {figures.ready:.2f} processes and got {figures.cores:.2f} CPUs"
    if not wanted:
        how = f"the group got {own[0].value:.2f} CPUs, and it {figures.cores:.2f} of them"
    return Finding(
        f"the CPU quota of its control group held it back in {percent(share)} of the periods: "
        f"{how}",
        [*evidence, *own, *figures.base()],
    )


def _of_group(figures: Figures) -> list[Evidence]:
    """CPUs that the recorder's group used, if the stage is in it and used at least half of them.

    Threads that a quota holds back behind a sleeping first thread are seen in no state; so what the
    group was given counts, where it was the stage that used it.
    """
    group = figures.get("cgroup", "cgroup_cpu_seconds", "mean", "CPUs that its group used")
    if group is None or not 0.9 * figures.cores <= group.value <= 2 * figures.cores:
        return []
    return [group]


def _of_wanted(lost: float, busy: float, count: float) -> float:
    """Share of the CPUs that were wanted here which these lost ones (in CPUs) are.

    Wanted are those that worked and those that were lost, of the machine's. An idle CPU loses
    nothing, however many there are; below one CPU chance would pass for a share.
    """
    return lost / min(count, max(1.0, busy + lost))


def steal(figures: Figures) -> Finding | None:
    steal, busy, count = need(
        figures,
        ("machine", "cpu_steal_seconds", "mean"),
        ("machine", CPU, "mean"),
        ("machine", "cpu_count", "mean"),
        what="steal",
    )
    limits = [
        one for one in over_hosts(figures, _LIMITED).values() if one.is_enough and one.mean > 0
    ]
    own = max((one.mean * min(1.0, one.coverage) for one in limits), default=0.0)
    share = _of_wanted(max(0.0, steal.value - own), busy.value, count.value)
    if share < limit("steal") or figures.wanted < limit("most_of_the_time"):
        return None
    return Finding(
        f"the hypervisor gave {percent(share)} of the CPU time that was wanted here to others",
        [steal, *(e for one in limits for e in one.told(_OWN_LIMIT)), busy, count, *figures.base()],
    )


_LIMITED, _LIMITED_PERCENT = "vm_cpu_maxlimited_cores", "vm_cpu_maxlimited_percent"
_OWN_LIMIT = "virtual CPUs that a CPU limit of the VM or its resource pool held back"
_READY_PERCENT = "vm_cpu_ready_percent"
_FLAGS = (_READY_PERCENT, "vm_cpu_costop_percent", "vm_mem_swap_in_bytes_per_s",
          "vm_mem_latency_percent")  # fmt: skip
"""Not CPU latency: a VM's own threads on the two halves of a core, and power saving, make it."""


def vm_limit(figures: Figures) -> Finding | None:
    """A CPU limit in vSphere, of the VM or its pool: ready time, but of no neighbour's making."""
    busy, count = (figures.get("machine", name, "mean") for name in (CPU, "cpu_count"))
    if busy is None or count is None or figures.wanted < limit("most_of_the_time"):
        return None
    for one in over_hosts(figures, _LIMITED).values():
        share = _of_wanted(one.mean, busy.value, count.value) if one.is_enough else 0.0
        if share >= limit("steal"):
            return Finding(
                f"the CPU limit of its VM, or of a resource pool that it is in, held back "
                f"{percent(share)} of the CPUs that were wanted here",
                [*one.told(_OWN_LIMIT), busy, count, *figures.base()],
            )
    unseen = _limit_unseen(figures)
    if unseen is not None and hypervisor(figures) is not None:
        raise Lack(f"a CPU limit of the VM: {unseen}")
    return None


def _limit_unseen(figures: Figures) -> str | None:
    """Why nothing says, of a host on which it was seen to wait, what its own limit made it wait."""
    if why_unseen(figures, _READY_PERCENT) is not None:
        return None
    told = {row.entity for one in over_hosts(figures, _LIMITED).values() for row in one.known}
    waited = (row for one in over_hosts(figures, _READY_PERCENT).values() for row in one.known)
    hosts = [row.entity for row in waited if row.entity not in told]
    if not hosts:
        return None
    of_some = f"{_LIMITED} of {' and '.join(hosts)} was not recorded"
    return why_unseen(figures, _LIMITED) or of_some


def hypervisor(figures: Figures) -> Finding | None:
    found = [*_flagged(figures), *_waiting_cpus(figures)]
    if not found:
        why = why_unseen(figures, _READY_PERCENT)
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
        if flag["metric"] not in _FLAGS or part is None or one is None:
            continue
        others = one
        if flag["metric"] == _READY_PERCENT:  # what its own limit made wait: ``vm_limit``
            others = one.less(over_hosts(figures, _LIMITED_PERCENT).get(part))
        above = others.above(flag["threshold"])
        if above.is_enough:
            yield _of_flag(flag, one.on(above), above.mean)


def _of_flag(flag: Flag, above: OverHosts, others: float) -> Finding:
    """``others``: the mean, in the flag's unit, without what its own limit made wait."""
    unit, sentence = flag["unit"], str(flag["sentence"])
    if flag["figure"] != "mean" or len(above.rows) > 1:
        covered = percent(above.coverage)
        sentence += f"; over {covered} of the stage {above.mean:,.1f} {unit} on average"
    if others < above.mean:
        sentence += f"; {others:,.1f} {unit} without what a CPU limit of its own made wait"
    words = str(flag["metric"]).replace("_", " ")
    return Finding(sentence, [*above.told(f"{words}, flagged above {flag['threshold']:g} {unit}")])


def _waiting_cpus(figures: Figures) -> Iterator[Finding]:
    """What vCenter says of the time that the CPUs which were wanted here had to wait."""
    busy, count = (figures.get("machine", name, "mean") for name in (CPU, "cpu_count"))
    if busy is None or count is None:
        return
    limited = over_hosts(figures, _LIMITED)
    for part, one in over_hosts(figures, "vm_cpu_ready_cores").items():
        if not one.is_enough:
            continue
        waited = one.less(limited.get(part)).mean
        lost = max(0.0, waited - limit("ready_of_idle") / 100 * count.value)
        share = _of_wanted(lost, busy.value, count.value)
        if share >= limit("steal"):
            says = "virtual CPUs that were ready to run while no physical CPU was free"
            yield Finding(
                f"by vCenter {percent(share)} of the CPUs that were wanted here were ready to run "
                "while no physical CPU was free",
                [*one.told(says), busy, count],
            )


def neighbour(figures: Figures) -> Finding | None:
    busy, count, pressure = need(
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
