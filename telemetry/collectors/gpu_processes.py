"""The processes on a GPU as sources of samples: what each used of it, and what it holds.

``Kin`` knows which are this run's, where the driver's numbers of them are those of this namespace.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from infra import nvml
from infra.nvml import UNTOLD_MEMORY
from infra.nvml_buffers import MOST_PERCENT, Used, used
from telemetry.clock import Clock
from telemetry.collectors.gpu_buffers import newest_us
from telemetry.collectors.gpu_losses import Losses
from telemetry.collectors.gpu_metrics import (
    ALL_MEM,
    ALL_SM,
    PROCESS_COUNT,
    PROCESS_MEM,
    PROCESS_MEMORY,
    RUN_HELD,
    RUN_MEM,
    RUN_SM,
)
from telemetry.samples import Metric, Sample, Series

PROCESS_S = 1.0
"""How often processes are asked for; the driver looks at them up to six times a second."""
EARLY = 0.95
"""A tick that comes this early closes the window all the same: the next is a whole tick away."""
LISTS_ITS_OWN = 570
"""From this release on the driver lists, in a PID namespace, the processes of that namespace alone
and by its numbers (545 to 565 as well, without their memory; before, all by the machine's)."""
INITIAL_PID_NAMESPACE = "pid:[4026531836]"
"""The kernel's fixed name for the PID namespace of the machine itself (PROC_PID_INIT_INO)."""
WHOLE = float(MOST_PERCENT)
_NS = 1e9


@dataclass(kw_only=True)
class Kin:
    """Which processes are this run's: ``root`` and its descendants."""

    root: int
    proc: Path = Path("/proc")
    _known: dict[int, bool | None] = field(default_factory=dict, repr=False)

    def has(self, pid: int) -> bool | None:
        """Whether a process is the run's or descends from it; None where it cannot be seen.

        Told once for each: a process that ends, or whose parent does, stays what it was.
        """
        if self._known.get(pid) is None:
            self._known[pid] = descends(pid, self.root, self.proc)
        return self._known[pid]

    def why_not(self, *, lists: bool = False) -> str | None:
        """Why the driver's process numbers cannot be matched here; None where they can.

        ``lists``: those of its list of processes, which newer drivers make for each namespace.
        """
        if lists and _release() >= LISTS_ITS_OWN:
            return None
        return namespace_why(self.proc)


def _release() -> int:
    """The driver's release as 570 for 570.86.15; 0 where it is not told."""
    version = nvml.driver_version()
    number = "" if isinstance(version, nvml.Absent) else version.partition(".")[0]
    return int(number) if number.isdecimal() else 0


@dataclass(kw_only=True)
class ProcessMemorySource:
    """How many processes compute on one GPU or MIG instance, and what they hold of its memory:
    all together, and those of this run."""

    gpu: nvml.Gpu
    clock: Clock
    lost: Losses
    kin: Kin
    _series: dict[Metric, Series] = field(default_factory=dict, repr=False)
    _strangers: set[int] = field(default_factory=set, repr=False)
    """Which could not be seen: one that is not there the next time had just ended."""
    _due_ns: int = field(default=0, repr=False)

    def open(self) -> list[Series]:
        """Ask once, to know whether the driver tells."""
        found = nvml.process_memory_bytes(self.gpu)
        why = found.reason if isinstance(found, nvml.Absent) else None
        untold = not isinstance(found, nvml.Absent) and None in found.values()
        size = why or (UNTOLD_MEMORY if untold else None)
        reasons = {
            PROCESS_COUNT: why,
            PROCESS_MEM: size,
            RUN_HELD: size or self.kin.why_not(lists=True),
        }
        self._series = {
            metric: Series(entity=self.gpu.entity, metric=metric, reason=reason)
            for metric, reason in reasons.items()
        }
        return list(self._series.values())

    def sample(self, last: bool = False) -> Sequence[Sample]:
        """All three, once a second; without what a process that cannot be seen leaves unknown."""
        ts_ns = self.clock.now_ns()
        if ts_ns < self._due_ns and not last:
            return ()
        self._due_ns = ts_ns + int(EARLY * PROCESS_S * _NS)
        held = nvml.process_memory_bytes(self.gpu)
        if isinstance(held, nvml.Absent):
            self._lose(PROCESS_MEMORY, held, ts_ns)
            return ()
        if None in held.values():
            self._lose((PROCESS_MEM, RUN_HELD), nvml.Absent(reason=UNTOLD_MEMORY), ts_ns)
        return [
            Sample(ts_ns, self._series[metric], value)
            for metric, value in self._sums(held, ts_ns).items()
            if self._series[metric].reason is None
        ]

    def _lose(self, metrics: Iterable[Metric], why: nvml.Absent, ts_ns: int) -> None:
        for metric in metrics:
            if self._series[metric].reason is None:
                self.lost.lose(self.gpu, self._series[metric], why, ts_ns)

    def _sums(self, held: Mapping[int, float | None], ts_ns: int) -> dict[Metric, float]:
        sums = {PROCESS_COUNT: float(len(held))}
        told = {pid: size for pid, size in held.items() if size is not None}
        if len(told) < len(held):
            return sums
        sums[PROCESS_MEM] = sum(told.values())
        ours = {pid: self.kin.has(pid) for pid in held}
        strangers = [pid for pid, own in ours.items() if own is None]
        if strangers:
            if self._strangers.intersection(strangers):
                self._lose((RUN_HELD,), _unseen(strangers[0]), ts_ns)
            self._strangers = set(strangers)
            return sums
        sums[RUN_HELD] = sum(told[pid] for pid, own in ours.items() if own)
        return sums


@dataclass(kw_only=True)
class ProcessSource:
    """What the processes on one GPU used of it: all together, and those of this run.

    A window is from question to question; a process without a sample in it did nothing on the GPU,
    unless the window is the last one and so short that the driver may not have looked meanwhile.
    """

    gpu: nvml.Gpu
    clock: Clock
    lost: Losses
    kin: Kin
    _series: dict[Metric, Series] = field(default_factory=dict, repr=False)
    _strangers: set[int] = field(default_factory=set, repr=False)
    """As above."""
    _seen_us: int = field(default=0, repr=False)
    _apart_us: int = field(default=0, repr=False)
    """The longest distance of two stamps that came one after another; 0 until there were two."""
    _since_ns: int = field(default=0, repr=False)

    def open(self) -> list[Series]:
        """Ask once, to know whether the driver tells; what it kept until now is not told."""
        found = used(self.gpu, 0)
        why = found.reason if isinstance(found, nvml.Absent) else None
        self._see(found)
        self._since_ns = self.clock.now_ns()
        whose = why or self.kin.why_not()
        self._series = {
            metric: Series(entity=self.gpu.entity, metric=metric, reason=reason)
            for metric, reason in ((ALL_SM, why), (ALL_MEM, why), (RUN_SM, whose), (RUN_MEM, whose))
        }
        return list(self._series.values())

    def _see(self, found: Sequence[Used] | nvml.Absent) -> None:
        if isinstance(found, nvml.Absent):
            return
        stamps = sorted({one.stamp_us for one in found})
        known = [self._seen_us, *stamps] if self._seen_us else stamps
        self._apart_us = max([self._apart_us, *(after - one for one, after in pairwise(known))])
        self._seen_us = newest_us(self._seen_us, stamps, time.time_ns())

    def _looked_ns(self) -> int:
        """So long a window without a sample has to be for the driver to have looked in it."""
        second_ns = int(PROCESS_S * _NS)
        return min(self._apart_us * 1000, second_ns) if self._apart_us else second_ns

    def sample(self, last: bool = False) -> Sequence[Sample]:
        """The window since the last question, when it is long enough, or as the last there is."""
        start_ns, end_ns = self._since_ns, self.clock.now_ns()
        if end_ns - start_ns < EARLY * PROCESS_S * _NS and not last:
            return ()
        self._seen_us = newest_us(self._seen_us, (), time.time_ns())
        found = used(self.gpu, self._seen_us)
        self._since_ns = end_ns
        if isinstance(found, nvml.Absent):
            first, *more = (one for one in self._series.values() if one.reason is None)
            self.lost.lose(self.gpu, first, found, end_ns, more)
            return ()
        self._see(found)
        if last and not found and end_ns - start_ns < self._looked_ns():
            return ()
        return [
            Sample(end_ns, self._series[metric], float(value), start_ns)
            for metric, value in self._sums(means(found), end_ns).items()
        ]

    def _sums(self, use: dict[int, tuple[float, float]], ts_ns: int) -> dict[Metric, float]:
        all_sm, all_mem = _together(use.values())
        sums = {ALL_SM: min(all_sm, WHOLE), ALL_MEM: min(all_mem, WHOLE)}
        if self._series[RUN_SM].reason is not None:
            return sums
        ours = {pid: self.kin.has(pid) for pid in use}
        strangers = [pid for pid, known in ours.items() if known is None]
        if strangers:
            if self._strangers.intersection(strangers):
                whose = self._series[RUN_SM], self._series[RUN_MEM]
                self.lost.lose(self.gpu, whose[0], _unseen(strangers[0]), ts_ns, whose[1:])
            self._strangers = set(strangers)
            return sums
        run_sm, run_mem = _together(use[pid] for pid, known in ours.items() if known)
        return sums | {RUN_SM: _share(run_sm, all_sm), RUN_MEM: _share(run_mem, all_mem)}


def _together(uses: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """SM and memory percent of several processes, which may be more than the whole GPU."""
    sm, mem = map(sum, zip((0.0, 0.0), *uses, strict=True))
    return sm, mem


def _share(part: float, of: float) -> float:
    """What of the whole GPU a part of the processes used, when all of them used ``of`` percent.

    Each has the mean of the samples that name it, so two that take turns are told as if both had
    worked all the time: together they had the whole, and each as much of it as of the sum.
    """
    return part if of <= WHOLE else WHOLE * part / of


def _unseen(pid: int) -> nvml.Absent:
    return nvml.Absent(reason=f"process {pid} is on the GPU and not to be seen here")


def means(samples: Sequence[Used]) -> dict[int, tuple[float, float]]:
    """SM and memory percent of each process, each the mean of its samples."""
    by_pid: dict[int, list[Used]] = {}
    for one in samples:
        by_pid.setdefault(one.pid, []).append(one)
    return {
        pid: (
            sum(one.sm_percent for one in own) / len(own),
            sum(one.mem_percent for one in own) / len(own),
        )
        for pid, own in by_pid.items()
    }


def descends(pid: int, root: int, proc: Path) -> bool | None:
    """Whether ``pid`` is ``root`` or a descendant of it, by /proc; None for a process not there.

    The driver may name a process by one of its threads.
    """
    at = pid
    while at != root:
        try:
            status = (proc / str(at) / "status").read_text(errors="replace")
        except OSError:
            return None if at == pid else False
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        if int(fields["Tgid"]) == root:
            return True
        at = int(fields["PPid"])
        if at == 0:
            return False
    return True


def namespace_why(proc: Path) -> str | None:
    """Why the driver's process numbers cannot be matched here; None where they can."""
    try:
        if str((proc / "self/ns/pid").readlink()) == INITIAL_PID_NAMESPACE:
            return None
    except OSError as error:
        return f"the PID namespace cannot be read: {error.strerror}"
    return (
        "in a PID namespace of its own (a container) the driver's process numbers are others: "
        "start it with the machine's (--pid=host)"
    )
