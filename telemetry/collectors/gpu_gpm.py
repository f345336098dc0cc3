"""GPM as a source of samples: windows that touch one another, each between two samples taken."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from infra import nvml
from infra.nvml_gpm import SHORTEST_NS, Counter, Gpm
from telemetry.clock import Clock
from telemetry.collectors.gpu_losses import Losses
from telemetry.collectors.gpu_metrics import COVERED_BY_GPM, GPM_METRICS
from telemetry.samples import Metric, Sample, Series

PERIOD_S = 0.2
"""Twice the shortest distance: a tick that comes early costs no window, at half the calls."""
PAIR_NS = SHORTEST_NS + 5_000_000
"""The shortest pair that is asked for; our clock and the driver's need not agree to the ms."""
LONGEST_S = 5.0
"""A pair that is longer (the GPU was away, or the recorder) begins anew: counters may have too."""

COVERED = "GPM tells it without gaps, as {}"


def covered(sources: Iterable[GpmSource], tick_s: float) -> dict[tuple[str, Metric], str]:
    """What GPM tells better than a question: entity and metric, and the reason."""
    if tick_s > LONGEST_S:
        return {}  # then no pair of ticks has a value
    return {
        (source.gpu.entity, metric): COVERED.format(better.name)
        for source in sources
        for metric, better in COVERED_BY_GPM.items()
        if better in source.answered
    }


def may_pass(values: nvml.Values | nvml.Absent) -> bool:
    """Whether a value is absent for a reason that may be over when it is asked again."""
    each = (values,) if isinstance(values, nvml.Absent) else values
    return any(isinstance(one, nvml.Absent) and one.passing for one in each)


def _for_good(value: float | nvml.Absent) -> str | None:
    """Why there is no value and will be none; None where there is one, or may be."""
    return value.reason if isinstance(value, nvml.Absent) and not value.passing else None


@dataclass(kw_only=True)
class GpmSource:
    """The GPM counters of one GPU or MIG instance: ``begin``, after ``PERIOD_S`` ``decide``, then
    ``sample`` at every tick, which waits for a pair that is long enough."""

    gpu: nvml.Gpu
    clock: Clock
    tick_s: float
    lost: Losses
    _counters: Gpm = field(init=False, repr=False)
    _why: nvml.Absent | None = field(default=None, repr=False)
    """Why the first sample failed."""
    _series: list[Series] = field(default_factory=list, repr=False)
    _asked: list[Counter] = field(default_factory=list, repr=False)
    answered: set[Metric] = field(default_factory=set, init=False)
    """What had a value on opening."""
    _asked_ns: int = field(default=0, repr=False)
    """When one was asked for last, whatever came of it."""
    _taken_ns: int | None = field(default=None, repr=False)
    """When the last sample was taken; None if that failed: there is none to compare with."""

    def __post_init__(self) -> None:
        self._counters = Gpm(gpu=self.gpu)

    def begin(self) -> nvml.Absent | None:
        """Take the first sample; the reason where that fails."""
        self._why = self._counters.open()
        self._asked_ns = self.clock.now_ns()
        self._taken_ns = None if self._why else self._asked_ns
        return self._why

    def decide(self) -> list[Series]:
        """Say of every metric whether it can be had here, from one pair; waits for that pair.

        What may pass (another program holds the counters, a value is not valid on a GPU at rest)
        makes no metric absent: it is asked for all the same, at every pair.
        """
        values = self._why or self._first()
        if isinstance(values, nvml.Absent):
            values = (values,) * len(GPM_METRICS)
        told = dict(zip(GPM_METRICS, values, strict=True))
        self.answered = {one for one, value in told.items() if not isinstance(value, nvml.Absent)}
        found = [
            Series(entity=self.gpu.entity, metric=metric, reason=_for_good(value))
            for metric, value in told.items()
        ]
        self._series = [one for one in found if one.reason is None]
        self._asked = [GPM_METRICS[one.metric] for one in self._series]
        if not self._series:
            self.close()
        return found

    def _first(self) -> nvml.Values | nvml.Absent:
        """Values of the first pair; waits until it is ``PERIOD_S`` long."""
        assert self._taken_ns is not None, "begin() comes first"
        wait_ns = self._taken_ns + int(PERIOD_S * 1e9) - self.clock.now_ns()
        time.sleep(max(0, wait_ns) / 1e9)
        why = self._counters.take()
        self._asked_ns = self.clock.now_ns()
        self._taken_ns = None if why else self._asked_ns
        return why or self._counters.values(list(GPM_METRICS.values()))

    def sample(self, last: bool = False) -> Sequence[Sample]:
        """The windows that end now; nothing until the pair is ``PERIOD_S`` long, give or take.

        ``last``: nothing comes after this, so the shortest valid pair is long enough.
        """
        if not self._series:
            return ()
        now_ns, start_ns = self.clock.now_ns(), self._taken_ns
        wanted_ns = PAIR_NS if last else max(PAIR_NS, int((PERIOD_S - self.tick_s / 2) * 1e9))
        if now_ns - self._asked_ns < wanted_ns:
            return ()
        why = self._counters.take()
        end_ns = self._asked_ns = self.clock.now_ns()
        self._taken_ns = None if why else end_ns
        if why is None and (start_ns is None or end_ns - start_ns > LONGEST_S * 1e9):
            return ()  # The first sample after a failure: there is nothing to compare it with.
        values = why or self._counters.values(self._asked)
        if isinstance(values, nvml.Absent):
            first, *more = self._series
            self.lost.lose(self.gpu, first, values, end_ns, more)
            return ()
        return self._told(values, start_ns, end_ns)

    def _told(self, values: nvml.Values, start_ns: int | None, end_ns: int) -> list[Sample]:
        samples = []
        for series, value in zip(self._series, values, strict=True):
            if isinstance(value, nvml.Absent):
                self.lost.lose(self.gpu, series, value, end_ns)
            else:
                samples.append(Sample(end_ns, series, value, start_ns))
        return samples

    def close(self) -> None:
        """Give the driver's buffers back."""
        self._counters.close()
        self._series = []
