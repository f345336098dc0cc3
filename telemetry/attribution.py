"""What each stage took: samples joined with spans. Pure, and exact about time.

All times are int64 ns. A span is (start, end]; a series becomes stretches of time that do not
overlap, and a stretch belongs to a span by the share of it that lies in there:

- counter: the stretch between two samples holds their difference; a negative one is dropped;
- gauge: the stretch from the sample before to this one has this one's value; after a gap, only the
  last period of it has;
- window: the stretch that the source chose has its mean; what an earlier one covers is its own.
  Where in a window something happened is not known: one that crosses the span's edge covers for
  the share of it that lies inside, and a span shorter than a window has no figures. A mean over
  requests counts by the requests in there, not by the time.

``docs/profile.md`` says the same to readers of a profile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from telemetry.derived import derived_series, sound
from telemetry.latency import with_requests
from telemetry.profile import Profile, Row
from telemetry.runfolder import Span
from telemetry.samples import Metric
from telemetry.segments import SampleSet
from telemetry.series import SHORT_PERIODS, Points, SeriesIndex

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

GAP_PERIODS = 2.5
"""Two samples further apart than this many periods have a gap between them."""
_NS = 1_000_000_000
_OF_REQUEST = 1_000_000
"""Requests/s × ns are 10⁹ to a request: more than an integer holds of a busy day. A thousandth of
one is fine enough."""
MOMENT_NS = 500_000_000
"""Within it a stage's processes are found by the recorder, which begins to look at them at once."""
MANY_WINDOWS = 5
"""Of so many in a stage, what is shared out by guess at its two ends is no more than a tenth."""
_MOVES_S = {"energy_j": 1.0}
"""Ten of the steps of about 100 ms in which a GPU's energy counter moves."""
_OF_A_DRIVER = "net_"
"""Many drivers fetch a card's counters now and then, several times or once a second."""
_STEPS = 4
"""Over so many of them: what is one more or less by chance is a quarter of it."""
_FEW, _SPARSE, _LITTLE, _LONGEST_NS = 8, 1.5, 0.05, 2_500_000_000
_APP = "app"
_OWN = ("stage", _APP)
"""``stage:X`` and ``app:X`` belong to stage X alone and are called ``stage`` and ``app`` there;
``stage:*`` says something of every stage's processes."""


@dataclass(frozen=True)
class Stretches:
    """A series as stretches (start, end] of time, ascending and apart; arrays of length n.

    ``level`` is in the metric's unit, for a counter in unit/s; ``amount`` is what a counter grew
    by, sampled every ``period_ns``. In a ``gap`` the recorder was away. Stretches below
    ``short_ns`` have no rate of their own, and rates of what moves in steps are taken over
    ``moves_ns``. ``from_zero``: its first sample is 0, and the first stretch begins there.
    Of ``windows`` only the mean is known, and nothing of what happened within one. With
    ``requests_per_s`` a level is the mean over so many requests.
    """

    start_ns: Ints
    end_ns: Ints
    level: Floats
    amount: Floats | None
    gap: Bools
    period_ns: int = 0
    from_zero: bool = False
    short_ns: float = 0.0
    moves_ns: float = 0.0
    windows: bool = False
    requests_per_s: Floats | None = None


@dataclass(frozen=True, kw_only=True)
class Share:
    """The part of a series that lies in one span.

    ``total``: what a counter grew by, else level × s. ``known_ns``: the time that ``total`` and
    ``mean`` stand for. ``covered_ns``: the same without gaps that reach over the span's edge; of a
    window over the edge only the share that lies within. ``window_ns``: what half of the known
    time lies in windows of at most, 0 for other kinds. ``levels`` and ``weights``: the
    distribution, by ns or by thousandths of a request.
    """

    total: float
    mean: float
    known_ns: int
    covered_ns: float
    window_ns: int
    levels: Floats
    weights: Ints


def correlate(samples: SampleSet, spans: Sequence[Span]) -> Profile:
    """Attribute every series to every span, each span by itself: they may touch, nest or overlap.

    A series of ``stage:X`` or ``app:X`` has a row in stage X only; every other series has one in
    every stage. Where it was absent or does not cover the stage, the row says why. Raises
    ValueError for two spans of one name.
    """
    names = [span.stage for span in spans]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two spans are called {', '.join(twice)}: give each stage its own name")
    found: list[dict[tuple[str, str], Row]] = [
        {(row.entity, row.metric): row for row in _absent_rows(samples, span)} for span in spans
    ]
    of_trees: dict[str, Metric] = {}
    for entity, metric, points, period_s in every_series(samples):
        if entity.startswith("stage:"):
            of_trees[metric.name] = metric
        stretches = stretches_of(points, metric, period_s)
        for span, rows in zip(spans, found, strict=True):
            here = entity_in(entity, span.stage)
            if here is not None:
                row = _row(span, here, metric, points, stretches)
                why = rows.get((here, metric.name))
                over = why and row.reason and not (points.ts_ns > span.end_ns).any()
                rows[here, metric.name] = why if why and over else row
    for span, rows in zip(spans, found, strict=True):
        for name, metric in of_trees.items():
            unwatched = _empty(span, "stage", metric, "the stage's processes were not sampled")
            rows.setdefault(("stage", name), unwatched)
    return Profile(rows=tuple(rows[key] for rows in found for key in sorted(rows)))


def entity_in(entity: str, stage: str) -> str | None:
    """What an entity is called in a stage; None where it belongs to another stage."""
    kind, _, owner = entity.partition(":")
    if kind not in _OWN or not owner:
        return entity
    return kind if owner in {stage, "*"} else None


def every_series(samples: SampleSet) -> Iterator[tuple[str, Metric, Points, float]]:
    """Entity, metric, points and period (s) of all series, the derived ones last."""
    index = SeriesIndex(samples)
    for entity, name in index.names():
        yield (
            entity,
            samples.metrics[name],
            with_requests(index, entity, name),
            samples.period_s(entity, name),
        )
    yield from derived_series(index, samples)


def stretches_of(points: Points, metric: Metric, period_s: float) -> Stretches:
    """Cut a series into stretches. Values that are not finite are no samples; times may repeat."""
    period_ns = round(period_s * _NS)
    if metric.kind == "window":
        return _windows(points, period_ns)
    ts, values = sound(points)
    distances = np.diff(ts)
    away = distances > GAP_PERIODS * period_ns
    if metric.kind == "counter":
        cut = _differences(ts, values, away, SHORT_PERIODS * period_ns)
        moves_ns = _MOVES_S.get(metric.name, 0.0) * _NS
        if metric.name.startswith(_OF_A_DRIVER):
            moves_ns = _STEPS * _step_ns(ts, values, period_ns)
        from_zero = len(cut.start_ns) > 0 and values[0] == 0.0 and cut.start_ns[0] == ts[0]
        return replace(cut, period_ns=period_ns, moves_ns=moves_ns, from_zero=bool(from_zero))
    back = np.where(away, period_ns, distances)
    back = np.append(period_ns, back)[: len(ts)]
    return Stretches(ts - back, ts, values, None, np.zeros(len(ts), bool))


def _step_ns(ts: Ints, values: Floats, period_ns: int) -> float:
    """How far apart a counter's steps are, 0 where it grows by much in readings in a row.

    Of what comes when it comes, a burst among regular signs of life, say, most comes in a row.
    """
    grown = np.diff(values)
    apart, amounts = np.diff(ts[1:][grown > 0]), grown[grown > 0][1:]
    in_a_row = amounts[apart < _SPARSE * period_ns]
    if len(apart) < _FEW or in_a_row.sum() > _LITTLE * amounts.sum():
        return 0.0
    step_ns = float(np.median(apart))
    return step_ns if step_ns <= _LONGEST_NS else 0.0


def _differences(ts: Ints, values: Floats, away: Bools, short_ns: float) -> Stretches:
    grown = np.diff(values)
    kept = grown >= 0
    start, end, grown = ts[:-1][kept], ts[1:][kept], grown[kept]
    levels = grown / ((end - start) / _NS)
    return Stretches(start, end, levels, grown, away[kept], short_ns=short_ns)


def _windows(points: Points, period_ns: int) -> Stretches:
    order = np.flatnonzero(np.isfinite(points.values))
    start = np.where(points.start_ns > 0, points.start_ns, points.ts_ns - period_ns)
    order = order[np.lexsort((-points.values[order], start[order], points.ts_ns[order]))]
    end, start = points.ts_ns[order], start[order]
    start[1:] = np.maximum(start[1:], end[:-1])
    kept = start < end
    order, start, end = order[kept], start[kept], end[kept]
    none, requests = np.zeros(len(order), bool), points.requests_per_s
    cut = Stretches(start, end, points.values[order], None, none, windows=True)
    return cut if requests is None else replace(cut, requests_per_s=requests[order])


def share(stretches: Stretches, start_ns: int, end_ns: int) -> Share | None:
    """The part of a series that lies in (start_ns, end_ns]; None where nothing does, or where
    what it is the mean of was not there."""
    low = int(np.searchsorted(stretches.end_ns, start_ns, side="right"))
    high = int(np.searchsorted(stretches.start_ns, end_ns, side="left"))
    if high <= low or end_ns <= start_ns:
        return None
    begin, end = stretches.start_ns[low:high], stretches.end_ns[low:high]
    inside = np.minimum(end, end_ns) - np.maximum(begin, start_ns)
    length = end - begin
    across = stretches.gap[low:high] & (inside < length)
    known = int(inside.sum())
    covered: float = known - int(inside[across].sum())
    if stretches.windows:
        covered = float(np.sum(inside * (inside / length)))
    levels, weights = stretches.level[low:high], inside
    if stretches.requests_per_s is not None:
        requests = inside * stretches.requests_per_s[low:high] / _OF_REQUEST
        weights = np.rint(requests).astype(np.int64)
        if not weights.any():
            return None
    if stretches.amount is None:
        mean = float(np.sum(levels * (weights / weights.sum())))
        mean = min(max(mean, float(levels.min())), float(levels.max()))
        total = mean * (known / _NS)
    else:
        amounts = stretches.amount[low:high] * (inside / length)
        total = float(amounts.sum())
        mean = total / (known / _NS)
        levels, weights = _rates(levels, amounts, inside, length < stretches.short_ns)
        if stretches.moves_ns:
            levels, weights = _over_at_least(stretches.moves_ns, levels, weights)
    return Share(
        total=total,
        mean=mean,
        known_ns=known,
        covered_ns=covered,
        window_ns=int(quantiles(length, inside, ((1, 2),))[0]) if stretches.windows else 0,
        levels=levels,
        weights=weights,
    )


def _rates(levels: Floats, amounts: Floats, inside: Ints, short: Bools) -> tuple[Floats, Ints]:
    """Rates and the time they held; a short stretch joins the one before it (the first, the next).

    A sample taken out of turn, at the start or the end of a process, comes a few ms after another;
    one clock tick of 10 ms between the two would pass for ten busy cores.
    """
    if not short.any():
        return levels, inside
    firsts = np.flatnonzero(~short)
    firsts = np.append(0, firsts[1:]) if len(firsts) else np.zeros(1, np.intp)
    weights = np.add.reduceat(inside, firsts)
    return np.add.reduceat(amounts, firsts) / (weights / _NS), weights


def _over_at_least(least_ns: float, levels: Floats, weights_ns: Ints) -> tuple[Floats, Ints]:
    """Rates over so long at least, for a counter that moves in steps; the last one may be longer.

    Read as often as it moves, such a counter has made no step or two now and then, and its rates
    are nothing or twice what it grows by.
    """
    ends = np.cumsum(weights_ns)
    many = max(1, int(ends[-1] // least_ns))
    group = np.minimum(((ends - weights_ns) // least_ns).astype(np.int64), many - 1)
    firsts = np.append(0, np.flatnonzero(np.diff(group)) + 1)
    weights = np.add.reduceat(weights_ns, firsts)
    amounts = np.add.reduceat(levels * (weights_ns / _NS), firsts)
    return _rates(amounts / (weights / _NS), amounts, weights, weights < least_ns / 2)


def _row(span: Span, entity: str, metric: Metric, points: Points, stretches: Stretches) -> Row:
    part = share(stretches, span.start_ns, span.end_ns)
    if part is None or part.covered_ns == 0:
        return _empty(span, entity, metric, _why_none(span, metric, points, stretches))
    length_ns = span.end_ns - span.start_ns
    if length_ns < part.window_ns:
        why = f"shorter than one window of {part.window_ns / _NS:g} s: nothing says when in it"
        return _empty(span, entity, metric, why, part.covered_ns / length_ns)
    p50, p95 = quantiles(part.levels, part.weights, ((1, 2), (19, 20)))
    summed = metric.kind == "counter" or metric.integral_unit is not None
    return Row(
        stage=span.stage,
        entity=entity,
        metric=metric.name,
        unit=metric.unit,
        kind=metric.kind,
        mean=part.mean,
        p50=p50,
        p95=p95,
        max=float(part.levels.max()),
        total=part.total if summed else None,
        coverage=part.covered_ns / length_ns,
        total_share=_total_share(part, span, entity, stretches) if summed else None,
    )


def _total_share(part: Share, span: Span, entity: str, stretches: Stretches) -> float:
    """The share of the stage that ``total`` stands for: what was seen, and what is known unseen.

    A stage's own processes begin with it: until they are found they do little, and what they did
    is counted in the first sample; what is not seen at their end is not excused. What a stage
    counts itself begins at 0 when it can count, however long it takes to load; it is written every
    period, and at last when the stage has done: a period at the end of one that finished loses
    nothing.
    """
    length_ns, seen_ns = span.end_ns - span.start_ns, part.covered_ns
    if length_ns >= MANY_WINDOWS * part.window_ns > 0:
        seen_ns = float(part.known_ns)
    if entity in _OWN:
        first = int(np.searchsorted(stretches.end_ns, span.start_ns, side="right"))
        before_ns = max(0, int(stretches.start_ns[first]) - span.start_ns)
        known = entity == _APP and first == 0 and stretches.from_zero
        seen_ns += before_ns if known or before_ns <= MOMENT_NS else 0
    if entity == _APP and span.finished:
        last = int(np.searchsorted(stretches.start_ns, span.end_ns, side="left")) - 1
        after_ns = max(0, span.end_ns - int(stretches.end_ns[last]))
        seen_ns += after_ns if after_ns <= stretches.period_ns else 0
    return min(1.0, seen_ns / length_ns)


def quantiles(
    levels: Floats | Ints, weights_ns: Ints, shares: Sequence[tuple[int, int]]
) -> tuple[float, ...]:
    """For each share n/d the smallest level that was not exceeded for n/d of the time, exactly."""
    order = np.argsort(levels)
    passed = np.cumsum(weights_ns[order])
    whole = int(passed[-1])
    return tuple(
        float(levels[order[np.searchsorted(passed, -(-whole * n // d))]]) for n, d in shares
    )


def _empty(span: Span, entity: str, metric: Metric, reason: str, coverage: float = 0.0) -> Row:
    return Row(
        stage=span.stage,
        entity=entity,
        metric=metric.name,
        unit=metric.unit,
        kind=metric.kind,
        coverage=coverage,
        reason=reason,
    )


def _absent_rows(samples: SampleSet, span: Span) -> Iterator[Row]:
    for series in samples.absent:
        here = entity_in(series.entity, span.stage)
        if here is not None:
            why = series.reason or "its collector does not say why"
            yield _empty(span, here, series.metric, why)


def _why_none(span: Span, metric: Metric, points: Points, stretches: Stretches) -> str:
    """Why a series that has samples says nothing of this span."""
    if span.end_ns <= span.start_ns:
        return "the stage has no duration"
    inside = (stretches.end_ns > span.start_ns) & (stretches.start_ns < span.end_ns)
    if stretches.requests_per_s is not None and inside.any():
        return "there were no requests"
    ts = np.unique(points.ts_ns[np.isfinite(points.values)])
    if not len(ts):
        return "every reading of it failed"
    if metric.kind == "counter" and len(ts) == 1:
        return "one sample in all: a counter needs two to say what it grew by"
    if ((ts > span.start_ns) & (ts <= span.end_ns)).any():
        return "the samples within the stage do not say what happened between them"
    before, after = ts[ts <= span.start_ns], ts[ts > span.end_ns]
    sides = []
    if len(before):
        sides.append(
            f"the last one came {(span.start_ns - before.max()) / _NS:.3g} s before it began"
        )
    if len(after):
        sides.append(f"the next one {(after.min() - span.end_ns) / _NS:.3g} s after it ended")
    return f"no sample within the stage: {', '.join(sides)}"
