"""The driver's own buffers as sources of samples: levels, and what each process used.

Their stamps are on the wall clock; ``placed`` brings them onto the run's clock. No sample is told
twice: what comes again, in whichever way, is older than the last one told.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infra import nvml
from infra.nvml_buffers import Buffer, Kept, Used, kept, step_us, used
from telemetry.clock import Clock
from telemetry.collectors.gpu_gpm import Lose
from telemetry.collectors.gpu_metrics import ALL_MEM, ALL_SM, RUN_HELD, RUN_MEM, RUN_SM
from telemetry.samples import Metric, Sample, Series

DRAIN_S = 0.5
"""How often a buffer is read; drivers keep some seconds (120 samples of power, 2.4 s)."""
PROCESS_S = 1.0
"""How often processes are asked for; the driver looks at them up to six times a second."""
EARLY = 0.95
"""A tick that comes this early closes the window all the same: the next is a whole tick away."""
AS_FINE = 1.05
"""A buffer takes a question's place if its samples are at most this many periods apart."""
STAMPS_NS = 60_000_000_000
"""A newest sample that is further than this from now is not stamped by the wall clock."""
INITIAL_PID_NAMESPACE = "pid:[4026531836]"
"""The kernel's fixed name for the PID namespace of the machine itself (PROC_PID_INIT_INO)."""
_NS = 1e9


@dataclass(kw_only=True)
class LevelSource:
    """One level of one GPU, from the driver's buffer."""

    gpu: nvml.Gpu
    metric: Metric
    buffer: Buffer
    clock: Clock
    lose: Lose
    series: Series = field(init=False, repr=False)
    period_s: float = field(default=0.0, init=False)
    """Between two samples of the driver's, as the buffer showed on opening."""
    _seen_us: int = field(default=0, repr=False)
    _told_ns: int = field(default=0, repr=False)
    _due_ns: int = field(default=0, repr=False)

    def open(self, tick_s: float) -> Series:
        """Decide whether the buffer is worth reading: it has to be as fine as asking at ticks."""
        samples = kept(self.gpu, self.buffer, 0)
        why = samples.reason if isinstance(samples, nvml.Absent) else self._unfit(samples, tick_s)
        self.series = Series(entity=self.gpu.entity, metric=self.metric, reason=why)
        return self.series

    def _unfit(self, samples: Sequence[Kept], tick_s: float) -> str | None:
        step = step_us(samples)
        if step is None:
            return "the driver's own buffer is empty"
        wall_ns, newest_ns = time.time_ns(), samples[-1].stamp_us * 1000
        if abs(wall_ns - newest_ns) > STAMPS_NS:
            return "the stamps of the driver's own buffer are not on this machine's wall clock"
        self.period_s = step / 1e6
        if self.period_s > AS_FINE * tick_s:
            return (
                f"the driver's own buffer has a sample every {self.period_s:.3g} s, "
                f"which is no finer than asking every {tick_s:g} s"
            )
        self._seen_us = samples[-2].stamp_us  # The newest one is the first to be told.
        return None

    def sample(self, last: bool = False) -> Sequence[Sample]:
        """All that is new in the buffer, when it is due to be read, or as the last there is."""
        now_ns = self.clock.now_ns()
        if now_ns < self._due_ns and not last:
            return ()
        self._due_ns = now_ns + int(DRAIN_S * _NS)
        wall_ns = time.time_ns()
        if wall_ns < self._seen_us * 1000:
            self._seen_us = 0  # The wall clock was set back: new samples have stamps seen before.
        samples = kept(self.gpu, self.buffer, self._seen_us)
        if isinstance(samples, nvml.Absent):
            self.lose(self.gpu, self.series, samples, now_ns)
            return ()
        if samples:
            self._seen_us = samples[-1].stamp_us
        times = placed(samples, wall_ns, self.clock.now_ns(), self._told_ns)
        self._told_ns = times[-1][0] if times else self._told_ns
        return [Sample(ts_ns, self.series, value) for ts_ns, value in times]


def placed(
    samples: Sequence[Kept], wall_ns: int, now_ns: int, told_ns: int
) -> list[tuple[int, float]]:
    """Samples on the run's clock, which was ``now_ns`` when the wall clock was ``wall_ns``.

    What falls at or before ``told_ns`` was told already, or cannot be placed because the wall
    clock was set in between; what falls after ``now_ns`` has not happened yet.
    """
    moved = ((now_ns - wall_ns + one.stamp_us * 1000, one.value) for one in samples)
    return [(ts_ns, value) for ts_ns, value in moved if told_ns < ts_ns <= now_ns]


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

    def why_not(self) -> str | None:
        """Why the driver's process numbers cannot be matched here; None where they can."""
        return namespace_why(self.proc)


@dataclass(kw_only=True)
class RunMemorySource:
    """What the processes of this run hold of the memory of one GPU or MIG instance."""

    gpu: nvml.Gpu
    clock: Clock
    lose: Lose
    kin: Kin
    _series: Series = field(init=False, repr=False)
    _due_ns: int = field(default=0, repr=False)

    def open(self) -> Series:
        """Ask once, to know whether the driver tells."""
        found = nvml.process_memory_bytes(self.gpu)
        why = found.reason if isinstance(found, nvml.Absent) else self.kin.why_not()
        self._series = Series(entity=self.gpu.entity, metric=RUN_HELD, reason=why)
        return self._series

    def sample(self, last: bool = False) -> Sequence[Sample]:
        """The sum, once a second; none where a process on the GPU has ended or cannot be seen."""
        ts_ns = self.clock.now_ns()
        if ts_ns < self._due_ns and not last:
            return ()
        self._due_ns = ts_ns + int(EARLY * PROCESS_S * _NS)
        held = nvml.process_memory_bytes(self.gpu)
        if isinstance(held, nvml.Absent):
            self.lose(self.gpu, self._series, held, ts_ns)
            return ()
        ours = {pid: self.kin.has(pid) for pid in held}
        if None in ours.values():
            return ()
        return [Sample(ts_ns, self._series, sum(held[pid] for pid, own in ours.items() if own))]


@dataclass(kw_only=True)
class ProcessSource:
    """What the processes on one GPU used of it: all together, and those of this run.

    A window is from question to question; a process without a sample in it did nothing on the GPU.
    """

    gpu: nvml.Gpu
    clock: Clock
    lose: Lose
    kin: Kin
    _series: dict[Metric, Series] = field(default_factory=dict, repr=False)
    _seen_us: int = field(default=0, repr=False)
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
        if not isinstance(found, nvml.Absent):
            self._seen_us = max([self._seen_us, *(one.stamp_us for one in found)])

    def sample(self, last: bool = False) -> Sequence[Sample]:
        """The window since the last question, when it is long enough, or as the last there is."""
        start_ns, end_ns = self._since_ns, self.clock.now_ns()
        if end_ns - start_ns < EARLY * PROCESS_S * _NS and not last:
            return ()
        if time.time_ns() < self._seen_us * 1000:
            self._seen_us = 0  # The wall clock was set back.
        found = used(self.gpu, self._seen_us)
        self._since_ns = end_ns
        if isinstance(found, nvml.Absent):
            self.lose(self.gpu, self._series[ALL_SM], found, end_ns)
            return ()
        self._see(found)
        return [
            Sample(end_ns, self._series[metric], float(value), start_ns)
            for metric, value in self._sums(means(found), end_ns).items()
        ]

    def _sums(self, use: dict[int, tuple[float, float]], ts_ns: int) -> dict[Metric, float]:
        sums = {ALL_SM: sum(sm for sm, _ in use.values()), ALL_MEM: sum(m for _, m in use.values())}
        if self._series[RUN_SM].reason is not None:
            return sums
        ours = {pid: self.kin.has(pid) for pid in use}
        strangers = [pid for pid, known in ours.items() if known is None]
        if strangers:
            why = f"process {strangers[0]} is on the GPU and not to be seen here"
            self.lose(self.gpu, self._series[RUN_SM], nvml.Absent(reason=why), ts_ns)
            return sums
        mine = [use[pid] for pid, known in ours.items() if known]
        return sums | {RUN_SM: sum(sm for sm, _ in mine), RUN_MEM: sum(m for _, m in mine)}


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
    """Whether ``pid`` is ``root`` or a descendant of it, by /proc; None for a process not there."""
    at = pid
    while at != root:
        try:
            fields = (proc / str(at) / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None if at == pid else False
        at = int(fields[1])
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
