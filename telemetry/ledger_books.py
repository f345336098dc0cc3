"""The books that the ledger is made of: every series cut into stretches, and what it held when."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from telemetry.attribution import Stretches, every_series, share, stretches_of
from telemetry.estimates import SUFFIX
from telemetry.runfolder import Span
from telemetry.samples import Metric
from telemetry.segments import SampleSet
from telemetry.series import Points

_NS = 1e9


class Books:
    """Series by name, cut into stretches once, and what they held in a span of time."""

    def __init__(self, samples: SampleSet, spans: Sequence[Span]) -> None:
        self.spans = sorted(spans, key=lambda span: span.start_ns)
        self._series: dict[tuple[str, str], tuple[Points, Stretches, Metric]] = {
            (entity, metric.name): (points, stretches_of(points, metric, period_s), metric)
            for entity, metric, points, period_s in every_series(samples)
        }

    def entities(self, metric: str, prefix: str = "") -> list[str]:
        return sorted(
            entity for entity, name in self._series if name == metric and entity.startswith(prefix)
        )

    def grew(self, entity: str, metrics: Iterable[str], start_ns: int, end_ns: int) -> float | None:
        """What the counters held together in (start_ns, end_ns]; None if one has nothing there."""
        total = 0.0
        for metric in metrics:
            known = self._series.get((entity, metric))
            part = share(known[1], start_ns, end_ns) if known else None
            if part is None:
                return None
            total += part.total
        return total

    def bounds(self, entity: str, metric: str) -> tuple[int, int] | None:
        """The times of the first and the last sample; None with fewer than two."""
        known = self._series.get((entity, metric))
        ts = known[0].ts_ns if known else np.empty(0, np.int64)
        return (int(ts[0]), int(ts[-1])) if len(ts) > 1 and ts[-1] > ts[0] else None

    def raw_growth(self, entity: str, metric: str) -> float:
        """The last value less the first, straight from the samples."""
        values = self._series[entity, metric][0].values
        finite = values[np.isfinite(values)]
        return float(finite[-1] - finite[0]) if len(finite) else 0.0

    def integrated(self) -> list[tuple[str, str]]:
        """Series of windows whose integral has a meaning; what was made of them is no witness."""
        return sorted(
            (entity, name)
            for (entity, name), (_, stretches, metric) in self._series.items()
            if metric.kind == "window" and metric.integral_unit and len(stretches.level)
            if not name.endswith(SUFFIX)
        )

    def windows(self, entity: str, metric: str) -> tuple[tuple[int, int], float]:
        """Where the windows begin and end, and their levels times their lengths in s, summed up."""
        points, stretches, _ = self._series[entity, metric]
        start, end = int(stretches.start_ns[0]), int(stretches.end_ns[-1])
        kept = np.isfinite(points.values) & (points.start_ns > 0)
        lengths = (points.ts_ns[kept] - points.start_ns[kept]) / _NS
        return (start, end), float(np.sum(points.values[kept] * lengths))

    def integral_unit(self, metric: str) -> str:
        units = (one.integral_unit for _, _, one in self._series.values() if one.name == metric)
        return next(unit for unit in units if unit)

    def last(self, entity: str, metric: str) -> float | None:
        known = self._series.get((entity, metric))
        return float(known[0].values[-1]) if known else None

    def covered(self, entity: str, metric: str, start_ns: int, end_ns: int) -> float:
        part = share(self._series[entity, metric][1], start_ns, end_ns)
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
