"""The driver's own buffers of levels as sources of samples.

Their stamps are on the wall clock; ``placed`` brings them onto the run's clock. No sample is told
twice: what comes again, in whichever way, is older than the last one told.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from infra import nvml
from infra.nvml_buffers import Buffer, Kept, kept, step_us
from telemetry.clock import Clock
from telemetry.collectors.gpu_losses import Losses
from telemetry.samples import Metric, Sample, Series

DRAIN_S = 1.0
"""How often a buffer is read, unless half of it is filled earlier (120 samples of power: 2.4 s)."""
AS_FINE = 1.05
"""A buffer takes a question's place if its samples are at most this many periods apart."""
STAMPS_NS = 60_000_000_000
"""A newest sample that is further than this from now is not stamped by the wall clock."""
_NS = 1e9


@dataclass(kw_only=True)
class LevelSource:
    """One level of one GPU, from the driver's buffer."""

    gpu: nvml.Gpu
    metric: Metric
    buffer: Buffer
    clock: Clock
    lost: Losses
    series: Series = field(init=False, repr=False)
    period_s: float = field(default=0.0, init=False)
    """Between two samples of the driver's, as the buffer showed on opening."""
    drain_s: float = field(default=DRAIN_S, init=False)
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
        self.drain_s = min(DRAIN_S, len(samples) * self.period_s / 2)
        self._seen_us = samples[-2].stamp_us  # The newest one is the first to be told.
        return None

    def sample(self, last: bool = False) -> Sequence[Sample]:
        """All that is new in the buffer, when it is due to be read, or as the last there is."""
        now_ns = self.clock.now_ns()
        if now_ns < self._due_ns and not last:
            return ()
        self._due_ns = now_ns + int(self.drain_s * _NS)
        wall_ns = time.time_ns()
        if wall_ns < self._seen_us * 1000:
            self._seen_us = 0  # The wall clock was set back: new samples have stamps seen before.
        samples = kept(self.gpu, self.buffer, self._seen_us)
        if isinstance(samples, nvml.Absent):
            self.lost.lose(self.gpu, self.series, samples, now_ns)
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
