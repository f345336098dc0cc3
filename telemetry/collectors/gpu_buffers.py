"""The driver's own buffer of power as a source of samples.

Its newest stamp shows which clock the stamps are of; ``placed`` brings them onto the run's clock.
No sample is told twice: what comes again, in whichever way, is older than the last one told.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from infra import nvml
from infra.nvml_buffers import Buffer, Kept, kept, step_us
from telemetry.clock import Clock
from telemetry.collectors.gpu_losses import Losses
from telemetry.samples import Metric, Sample, Series

DRAIN_S = 1.0
"""How often a buffer is read, unless half of it is filled earlier (120 samples of power: 2.4 s)."""
AS_FINE = 1.05
"""A buffer is read if its samples are at most this many periods apart: it has to tell more."""
CLOCKS = (time.CLOCK_REALTIME, time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC)
"""Of which the stamps may be."""
OLD_NS, AHEAD_NS = 1_000_000_000, 100_000_000
"""The newest sample is at most so old, or so far ahead, by the clock that it is stamped by."""
_NS = 1e9


@dataclass(kw_only=True)
class LevelSource:
    """A level of one GPU, from the driver's buffer."""

    gpu: nvml.Gpu
    metric: Metric
    buffer: Buffer
    clock: Clock
    lost: Losses
    series: Series = field(init=False, repr=False)
    period_s: float = field(default=0.0, init=False)
    """Between two samples of the driver's, as the buffer showed on opening."""
    drain_s: float = field(default=DRAIN_S, init=False)
    _clock_id: int = field(default=time.CLOCK_REALTIME, repr=False)
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
        newest_ns = samples[-1].stamp_us * 1000
        old_ns = {one: time.clock_gettime_ns(one) - newest_ns for one in CLOCKS}
        of = next((one for one, ns in old_ns.items() if -AHEAD_NS <= ns <= OLD_NS), None)
        if of is None:
            return (
                "the stamps of the driver's own buffer are of no clock of this machine: the newest "
                f"is {old_ns[time.CLOCK_REALTIME] / _NS:.3g} s old by the wall clock"
            )
        self._clock_id = of
        self.period_s = step / 1e6
        if self.period_s > AS_FINE * tick_s:
            return (
                f"the driver's own buffer has a sample every {self.period_s:.3g} s, "
                f"which is no finer than asking every {tick_s:g} s"
            )
        self.drain_s = min(DRAIN_S, len(samples) * self.period_s / 2)
        self._seen_us = samples[-2].stamp_us  # The newest one is the first to be told.
        return None

    def sample(self, last: bool = False) -> Sequence[Sample]:
        """All that is new in the buffer, when it is due to be read, or as the last there is."""
        now_ns = self.clock.now_ns()
        if now_ns < self._due_ns and not last:
            return ()
        self._due_ns = now_ns + int(self.drain_s * _NS)
        read_ns = time.clock_gettime_ns(self._clock_id)
        self._seen_us = newest_us(self._seen_us, (), read_ns)
        samples = kept(self.gpu, self.buffer, self._seen_us)
        if isinstance(samples, nvml.Absent):
            self.lost.lose(self.gpu, self.series, samples, now_ns)
            return ()
        self._seen_us = newest_us(self._seen_us, (one.stamp_us for one in samples), read_ns)
        times = placed(samples, read_ns, self.clock.now_ns(), self._told_ns)
        self._told_ns = times[-1][0] if times else self._told_ns
        return [Sample(ts_ns, self.series, value) for ts_ns, value in times]


def newest_us(seen_us: int, stamps_us: Iterable[int], now_ns: int) -> int:
    """The newest stamp to go on from. One that is ahead of now is from before the clock was set
    back: what comes after it would not come until the clock is there again."""
    return max((one for one in (seen_us, *stamps_us) if _is_past(one, now_ns)), default=0)


def _is_past(stamp_us: int, now_ns: int) -> bool:
    return stamp_us * 1000 <= now_ns + AHEAD_NS


def placed(
    samples: Sequence[Kept], read_ns: int, now_ns: int, told_ns: int
) -> list[tuple[int, float]]:
    """Samples on the run's clock, which was ``now_ns`` when that of the stamps was ``read_ns``.

    What falls at or before ``told_ns`` was told already, or cannot be placed because the stamps'
    clock was set in between; what falls after ``now_ns`` has not happened yet.
    """
    moved = ((now_ns - read_ns + one.stamp_us * 1000, one.value) for one in samples)
    return [(ts_ns, value) for ts_ns, value in moved if told_ns < ts_ns <= now_ns]
