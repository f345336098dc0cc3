"""The books that the ledger is made of: every series cut into stretches, and what it held when."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from telemetry.attribution import Stretches, share, stretches_of
from telemetry.derived import Derived, absent_series, derivable, made
from telemetry.estimates import SUFFIX
from telemetry.runfolder import Span
from telemetry.samples import Metric
from telemetry.segments import SampleSet
from telemetry.series import Points, SeriesIndex

_NS = 1e9
_MOST_KEPT = 4
"""User and system, of a tree and of all processes, are asked for together."""


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where a series comes from: the samples, or others of its entity."""

    metric: Metric
    period_s: float
    derived: Derived | None = None


class Books:
    """Series by name, cut into stretches when asked for, and what they held in a span of time.

    The last few are kept: those of a day at 10 Hz, all at once, would be gigabytes.
    """

    def __init__(self, samples: SampleSet, spans: Sequence[Span]) -> None:
        self.spans = sorted(spans, key=lambda span: span.start_ns)
        self._index = SeriesIndex(samples)
        self._absent = absent_series(self._index, samples)
        self._sources = {
            (entity, name): _Source(
                metric=samples.metrics[name], period_s=samples.period_s(entity, name)
            )
            for entity, name in self._index.names()
        }
        self._sources |= {
            (entity, one.metric.name): _Source(metric=one.metric, period_s=period_s, derived=one)
            for entity, one, period_s in derivable(self._index, samples)
        }
        self._kept: dict[tuple[str, str], tuple[Points, Stretches]] = {}

    def _series(self, entity: str, metric: str) -> tuple[Points, Stretches] | None:
        name = entity, metric
        source = self._sources.get(name)
        if source is None:
            return None
        found = self._kept.pop(name, None)
        if found is None:
            if source.derived is None:
                points = self._index.points(entity, metric)
            else:
                points = made(self._index, entity, source.derived)
            found = points, stretches_of(points, source.metric, source.period_s)
        self._kept[name] = found  # the one asked for last is the last to go
        if len(self._kept) > _MOST_KEPT:
            del self._kept[next(iter(self._kept))]
        return found

    def _known(self, entity: str, metric: str) -> tuple[Points, Stretches]:
        found = self._series(entity, metric)
        if found is None:
            raise KeyError(f"there is no {metric} of {entity}")
        return found

    def entities(self, metric: str, prefix: str = "") -> list[str]:
        return sorted(
            entity for entity, name in self._sources if name == metric and entity.startswith(prefix)
        )

    def is_absent(self, entity: str, metric: str) -> bool:
        """Whether its collector said that it is not measured, and it was not."""
        return (entity, metric) in self._absent

    def grew(self, entity: str, metrics: Iterable[str], start_ns: int, end_ns: int) -> float | None:
        """What the counters held together in (start_ns, end_ns]; None if one has nothing there."""
        total = 0.0
        for metric in metrics:
            known = self._series(entity, metric)
            part = share(known[1], start_ns, end_ns) if known else None
            if part is None:
                return None
            total += part.total
        return total

    def bounds(self, entity: str, metric: str) -> tuple[int, int] | None:
        """The times of the first and the last sample; None with fewer than two."""
        known = self._series(entity, metric)
        ts = known[0].ts_ns if known else np.empty(0, np.int64)
        return (int(ts[0]), int(ts[-1])) if len(ts) > 1 and ts[-1] > ts[0] else None

    def raw_growth(self, entity: str, metric: str) -> float:
        """The last value less the first, straight from the samples."""
        values = self._known(entity, metric)[0].values
        finite = values[np.isfinite(values)]
        return float(finite[-1] - finite[0]) if len(finite) else 0.0

    def integrated(self) -> list[tuple[str, str]]:
        """Series of windows whose integral has a meaning; what was made of them is no witness."""
        return sorted(
            (entity, name)
            for (entity, name), source in self._sources.items()
            if source.metric.kind == "window" and source.metric.integral_unit
            if not name.endswith(SUFFIX) and len(self._known(entity, name)[1].level)
        )

    def windows(self, entity: str, metric: str) -> tuple[tuple[int, int], float]:
        """Where the windows begin and end, and their levels times their lengths in s, summed up."""
        points, stretches = self._known(entity, metric)
        start, end = int(stretches.start_ns[0]), int(stretches.end_ns[-1])
        kept = np.isfinite(points.values) & (points.start_ns > 0)
        lengths = (points.ts_ns[kept] - points.start_ns[kept]) / _NS
        return (start, end), float(np.sum(points.values[kept] * lengths))

    def integral_unit(self, metric: str) -> str:
        units = (
            one.metric.integral_unit for (_, name), one in self._sources.items() if name == metric
        )
        return next(unit for unit in units if unit)

    def mean(self, entity: str, metric: str, start_ns: int, end_ns: int) -> float | None:
        """The mean level in the time that is known of it; None where nothing is."""
        known = self._series(entity, metric)
        part = share(known[1], start_ns, end_ns) if known else None
        return part.mean if part else None

    def covered(self, entity: str, metric: str, start_ns: int, end_ns: int) -> float:
        part = share(self._known(entity, metric)[1], start_ns, end_ns)
        return part.covered_ns / (end_ns - start_ns) if part else 0.0

    def between(self, low_ns: int, high_ns: int) -> Iterator[tuple[int, int]]:
        """The stretches of (low_ns, high_ns] that no stage covers."""
        at = low_ns
        for span in self.spans:
            if at < min(span.start_ns, high_ns):
                yield at, min(span.start_ns, high_ns)
            at = max(at, span.end_ns)
        if at < high_ns:
            yield at, high_ns
