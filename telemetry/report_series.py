"""The samples of a run as the report draws them: found by pattern, thinned, as JSON for the page.

Counters become rates and gaps in sampling become breaks, never zeros. A series of more samples
than ``MAX_POINTS`` is held to that number of buckets, however long the run was: each keeps its
smallest value, its median and its largest.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from telemetry.samples import Metric
from telemetry.segments import SampleSet
from telemetry.series import Points, SeriesIndex

MAX_POINTS = 2000
"""Points or buckets of one series in the page: a few for each pixel of a wide screen."""
GAP_PERIODS = 2.5
"""A distance of more periods than this between two samples is a gap, as in the profile."""
MAX_GAPS = 400
"""Gaps of one series that stay open; each costs two points."""
_BARELY = 0.01
"""By so little of a period longer, a stretch does not hold a sample more."""
_NS = 1e9

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """A series as drawn: times (ns) and values, NaN between pieces; all [n].

    ``low`` and ``high`` are None where each value is a sample; else each value is the median of a
    bucket, and they are its smallest and its largest. ``holds``: samples in a point, at most, and
    ``holds_s``: the time that so many take.
    """

    times: Floats
    values: Floats
    low: Floats | None = None
    high: Floats | None = None
    holds: int = 1
    holds_s: float = 0.0

    @classmethod
    def between(cls, edges: Floats, values: Floats, period_ns: float) -> Trace:
        """Values [n] of stretches of one length between ``edges`` (ns) [n + 1]."""
        length_ns = float(edges[1] - edges[0])
        holds = max(1, math.ceil(length_ns / period_ns - _BARELY))
        times = (edges[:-1] + edges[1:]) / 2
        return cls(times=times, values=values, holds=holds, holds_s=length_ns / _NS)

    def scaled(self, factor: float) -> Trace:
        low, high = (None if one is None else one * factor for one in (self.low, self.high))
        return replace(self, values=self.values * factor, low=low, high=high)

    @property
    def top(self) -> float:
        """The largest distance from 0; 0 where there is no value."""
        drawn = self.values if self.low is None or self.high is None else (self.low, self.high)
        return float(np.nanmax(np.abs(drawn), initial=0.0))

    @property
    def is_empty(self) -> bool:
        return not np.isfinite(self.values).any()


class RunSeries(SeriesIndex):
    """The samples of a run by (entity, metric), found by pattern, with what is known of them."""

    def __init__(self, samples: SampleSet) -> None:
        super().__init__(samples)
        self.samples = samples
        self.metrics: Mapping[str, Metric] = samples.metrics
        self.absent = samples.absent
        self._periods = samples.periods

    def matching(self, entity: str, metric: str) -> list[tuple[str, str]]:
        found = [
            n for n in self.names() if re.fullmatch(entity, n[0]) and re.fullmatch(metric, n[1])
        ]
        return sorted(found, key=lambda name: natural(name[0]))

    def period_ns(self, entity: str, metric: str, points: Points) -> float:
        """The period that the collector promised, else the middle distance of the samples."""
        period_s = self._periods.get(f"{entity} {metric}") or self._periods.get(metric)
        if period_s:
            return period_s * _NS
        return float(np.median(np.diff(points.ts_ns))) if len(points.ts_ns) > 1 else _NS

    def reasons(self, entity: str, metric: str = ".*") -> list[str]:
        """Why series that match are absent, each reason once."""
        found = (
            series.reason
            for series in self.absent
            if series.reason
            and re.fullmatch(entity, series.entity)
            and re.fullmatch(metric, series.metric.name)
        )
        return list(dict.fromkeys(found))


def drawn(index: RunSeries, entity: str, metric: str) -> Trace:
    """A series as drawn: rates of counters, levels of the others."""
    points = index.points(entity, metric)
    known = index.metrics.get(metric)
    gap_ns = GAP_PERIODS * index.period_ns(entity, metric, points)
    if known is None or known.kind != "counter":
        return levels(points, gap_ns)
    times, values = points.ts_ns.astype(np.float64), points.values
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = np.diff(values) / (np.diff(times) / _NS)
    rates[np.diff(times) > gap_ns] = np.nan
    rates[rates < 0] = np.nan
    return pieces(times[1:], rates)


def levels(points: Points, gap_ns: float) -> Trace:
    """Levels as they were, open where two samples are further apart than ``gap_ns``."""
    times, values = points.ts_ns.astype(np.float64), points.values
    broken = np.flatnonzero(np.diff(times) > gap_ns)
    times = np.insert(times, broken + 1, times[broken] + 1.0)
    return pieces(times, np.insert(values, broken + 1, np.nan))


def pieces(times: Floats, values: Floats) -> Trace:
    """Each unbroken piece, held to its share of MAX_POINTS, with one NaN between two of them.

    Of more gaps than ``MAX_GAPS`` the longest stay open.
    """
    sound = np.isfinite(values)
    if not sound.any():
        return Trace(times=np.empty(0), values=np.empty(0))
    gaps = np.flatnonzero(np.diff(np.flatnonzero(sound)) > 1) + 1
    times, values = times[sound], values[sound]
    if len(gaps) > MAX_GAPS:
        longest = np.argsort(times[gaps] - times[gaps - 1])[-MAX_GAPS:]
        gaps = np.sort(gaps[longest])
    ranges = list(itertools.pairwise([0, *gaps.tolist(), len(times)]))
    budget = MAX_POINTS - 2 * len(ranges)
    whole = len(times) + len(ranges) <= MAX_POINTS
    sizes = [
        1 if whole else -(-(high - low) // max(1, budget * (high - low) // len(times)))
        for low, high in ranges
    ]
    parts = [
        _buckets(times[low:high], values[low:high], size)
        for (low, high), size in zip(ranges, sizes, strict=True)
    ]
    at, low, middle, high = (np.concatenate(part)[:-1] for part in zip(*parts, strict=True))
    if whole:
        return Trace(times=at, values=middle)
    holds = max(sizes)
    holds_s = holds * float(np.median(np.diff(times))) / _NS
    return Trace(times=at, values=middle, low=low, high=high, holds=holds, holds_s=holds_s)


def _buckets(times: Floats, values: Floats, size: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Middle time, smallest, median and largest of buckets of ``size`` samples each, and a NaN."""
    rows = -(-len(values) // size)
    full = np.full(rows * size, np.nan)
    full[: len(values)] = values
    buckets = full.reshape(rows, size)
    firsts = np.arange(rows) * size
    lasts = np.minimum(firsts + size, len(values)) - 1
    at = (times[firsts] + times[lasts]) / 2
    low, middle, high = (
        np.append(of(buckets, axis=1), np.nan) for of in (np.nanmin, np.nanmedian, np.nanmax)
    )
    return np.append(at, times[-1] + 1.0), low, middle, high


def bucket_growth(points: Points, edges: Floats, period_ns: float) -> Floats:
    """What a counter grew in each bucket; NaN where more than half of it was not seen.

    Over a gap that a bucket outlasts, the counter went on, so its growth is known. Where it stepped
    back (a reset, or I/O wait, which the kernel may correct) the rest of the bucket stands for it.
    """
    at = points.ts_ns.astype(np.float64)
    steps, lengths = np.diff(points.values), np.diff(at)
    back, gap = steps < 0, lengths > GAP_PERIODS * period_ns

    def within(lasts: Floats) -> Floats:
        """By bucket, of what lies between two samples each: a stretch counts by its share."""
        return np.diff(np.interp(edges, at, np.append(0.0, np.cumsum(lasts))))

    bucket_ns = np.diff(edges)
    outside_ns = np.clip(at[0] - edges[:-1], 0.0, bucket_ns)
    outside_ns += np.clip(edges[1:] - at[-1], 0.0, bucket_ns)
    lost_ns = outside_ns + within(np.where(back, lengths, 0.0))
    unseen_ns = lost_ns + within(np.where(gap & ~back, lengths, 0.0))
    growth = within(np.where(back, 0.0, steps))
    with np.errstate(divide="ignore", invalid="ignore"):
        growth *= bucket_ns / (bucket_ns - lost_ns)
    growth[unseen_ns > bucket_ns / 2] = np.nan
    return np.asarray(growth, dtype=np.float64)


def series_json(label: str, trace: Trace, start_ns: int) -> dict[str, Any]:
    """``{label, t, v}`` and, of buckets, ``lo`` and ``hi``.

    ``t``: ms since ``start_ns``, as differences; ``v``: values in the unit, null where a gap is.
    Where a point holds more than one sample, ``holds`` says how many at most and ``holdsS`` of how
    many seconds they are.
    """
    at = np.rint((trace.times - start_ns) / 1e6).astype(np.int64)
    made = {"label": label, "t": np.diff(at, prepend=0).tolist(), "v": _listed(trace.values)}
    if trace.low is not None and trace.high is not None:
        made |= {"lo": _listed(trace.low), "hi": _listed(trace.high)}
    if trace.holds > 1:
        made |= {"holds": trace.holds, "holdsS": _rounded(trace.holds_s)}
    return made


def _listed(values: Floats) -> list[float | None]:
    return [_rounded(value) for value in values.tolist()]


def _rounded(value: float) -> float | None:
    if not np.isfinite(value):
        return None
    short = float(f"{value:.4g}")
    return int(short) if short.is_integer() else short


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts gpu:10 after gpu:9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
