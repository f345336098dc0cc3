"""The energy of each stage by two witnesses, how sure it is, and what of it is above idle. Pure.

The witnesses are the GPU's own counter (``energy_j``) and the integral of its instantaneous power
(``power_instant_w``); both have rows of their own in a profile. The rows made here say how far they
are apart, between which bounds the energy must lie, and what remains when idle power is taken off.

The bounds take nothing for granted but that the counter never falls and is right when it moves. A
sample is stamped when its call has returned, and was read at any time after the sample before it:
a call may be slow. So what was read until a moment is no more than the energy at that moment, and a
value that the counter took after a reading that was begun at that moment or later is no less. For a
counter that moves every 100 ms they are, at 10 Hz, 0.4 to 0.6 s of power apart: up to 60 % of a
stage of 1 s, 6 % of one of 10 s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from telemetry.attribution import Share, Stretches, quantiles, share, stretches_of
from telemetry.profile import Row
from telemetry.runfolder import Span
from telemetry.samples import Kind, Metric
from telemetry.segments import SampleSet
from telemetry.series import Points, SeriesIndex

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

COUNTER, POWER = "energy_j", "power_instant_w"
WHOLE = 0.99
"""Below this coverage a witness is short of the stage, and a difference says only that."""
IDLE_S = 1.0
"""Idle power is made of means over so long."""
NEVER_IDLE = (
    f"the GPU was at work in every {IDLE_S:g} s of the run, so that its idle power is not known: "
    "let it rest for two seconds between the recorder's start and the first stage"
)
STILL_IDLE = 1.1
"""If the median of seconds took more than this many times the run's least one, the GPU was not at
rest in them: somebody worked on it, or held it ready."""
_NS = 1_000_000_000
_AT_WORK: Mapping[str, Callable[[Floats], npt.NDArray[np.bool_]]] = {
    "gpu_util_percent": lambda percent: percent > 0,
    "gpu_throttle_idle": lambda idle: idle < 1,
}
"""What says that a GPU was at work, the first that was sampled: a kernel was resident, or its
clocks were not low for want of work."""


def _metric(name: str, unit: str, meaning: str, kind: Kind = "gauge") -> Metric:
    source = f"{COUNTER} and {POWER}, at the end of the run"
    return Metric(name=name, unit=unit, kind=kind, meaning=meaning, source=source)


DIFFERENCE = _metric(
    "energy_difference_j", "J", "the energy counter less the integral of instantaneous power"
)
DIFFERENCE_PERCENT = _metric(
    "energy_difference_percent", "%", "the same, of the integral of instantaneous power"
)
LOW = _metric(
    "energy_low_j", "J", "the least energy that the counter's readings allow for this stage"
)
HIGH = _metric(
    "energy_high_j", "J", "the most energy that the counter's readings allow for this stage"
)
ABOVE_IDLE = _metric(
    "energy_above_idle_j",
    "J",
    "energy of the stage less idle power times its length; idle power is in the row power_idle_*",
    "counter",
)
IDLE_BEFORE = _metric(
    "power_idle_before_w",
    "W",
    "idle power: the median of the idle seconds before the run's first stage",
)
IDLE_RUN = _metric(
    "power_idle_run_w",
    "W",
    "idle power: the median of the seconds of the run in which the GPU was seen idle, for want of "
    "those before its first stage",
)
IDLE_LEAST = _metric(
    "power_idle_least_w",
    "W",
    "idle power: the least second of the run, for want of either; the least of many is too low, so "
    "that energy above it is too much",
)
METRICS = (DIFFERENCE, DIFFERENCE_PERCENT, LOW, HIGH, ABOVE_IDLE, IDLE_BEFORE, IDLE_RUN, IDLE_LEAST)


@dataclass(frozen=True, kw_only=True)
class Idle:
    """Idle power (W) of a GPU in this run, and the row that says where it is from."""

    power_w: float
    metric: Metric


@dataclass(frozen=True, kw_only=True)
class Witnesses:
    """The two series of one GPU as stretches; None for the one that it has not."""

    entity: str
    counter: Stretches | None
    power: Stretches | None
    readings: Points | None
    reasons: dict[str, str]
    """Why there is no such series."""
    ended: dict[str, str]
    """What its collector says of one that had samples, and was lost."""
    work: tuple[Ints, npt.NDArray[np.bool_]] | None = None
    """When the GPU was seen, and whether at work then; None where nothing says so."""


def energy_rows(samples: SampleSet, spans: Sequence[Span]) -> Iterator[Row]:
    """For each span and each GPU that has either witness, or a reason for having none: its rows.

    Figures that stand for a stage as a whole are constant in it: mean, p50, p95 and max are the
    same. ``energy_above_idle_j`` has rates and a total like any counter.
    """
    for one in witnesses(samples):
        idle = idle_power(one, spans)
        for span in spans:
            yield from _difference(one, span)
            yield from _bounds(one, span)
            yield from _above_idle(one, span, idle)


def witnesses(samples: SampleSet) -> list[Witnesses]:
    """The GPUs of a run, whole cards alone: energy exists for no part of one."""
    index = SeriesIndex(samples)
    absent = {(one.entity, one.metric.name): one.reason or "" for one in samples.absent}
    known = {*index.names(), *absent}
    entities = {e for e, metric in known if metric in {COUNTER, POWER} and _is_gpu(e)}
    return [_witnesses(samples, index, entity, absent) for entity in sorted(entities)]


def _is_gpu(entity: str) -> bool:
    return entity == "gpu" or (entity.startswith("gpu:") and "/" not in entity)


def _witnesses(
    samples: SampleSet, index: SeriesIndex, entity: str, absent: dict[tuple[str, str], str]
) -> Witnesses:
    found: dict[str, Points] = {
        name: index.points(entity, name) for name in (COUNTER, POWER) if (entity, name) in index
    }
    made = {
        name: stretches_of(points, samples.metrics[name], samples.period_s(entity, name))
        for name, points in found.items()
    }
    return Witnesses(
        entity=entity,
        counter=made.get(COUNTER),
        power=made.get(POWER),
        readings=found.get(COUNTER),
        work=_work(index, entity),
        reasons={
            name: absent.get((entity, name)) or f"{name} was not sampled"
            for name in (COUNTER, POWER)
            if name not in found
        },
        ended={name: why for name in found if (why := absent.get((entity, name)))},
    )


def _work(index: SeriesIndex, entity: str) -> tuple[Ints, npt.NDArray[np.bool_]] | None:
    for metric, at_work in _AT_WORK.items():
        if (entity, metric) in index:
            points = index.points(entity, metric)
            return points.ts_ns, at_work(points.values)
    return None


def _difference(one: Witnesses, span: Span) -> Iterator[Row]:
    counter, power = _part(one.counter, span), _part(one.power, span)
    why = _why_not(one, span, {COUNTER: counter, POWER: power})
    if why or counter is None or power is None:
        yield from (_absent(one, span, metric, why) for metric in (DIFFERENCE, DIFFERENCE_PERCENT))
        return
    coverage = min(_coverage(counter, span), _coverage(power, span))
    apart = counter.total - power.total
    yield _single(one, span, DIFFERENCE, apart, coverage)
    if power.total > 0:
        yield _single(one, span, DIFFERENCE_PERCENT, 100 * apart / power.total, coverage)
    else:
        yield _absent(one, span, DIFFERENCE_PERCENT, "the integral of power is 0")


def _why_not(one: Witnesses, span: Span, parts: dict[str, Share | None]) -> str:
    """Why these witnesses cannot be compared in a span; empty where they can."""
    for name, part in parts.items():
        if name in one.reasons:
            return one.reasons[name]
        if part is None:
            return _nothing(one, span, name)
        if _coverage(part, span) < WHOLE:
            covered = f"{100 * _coverage(part, span):.3g} %"
            return f"samples of {name} cover only {covered} of the stage{_end(one, span, name)}"
    return ""


def _nothing(one: Witnesses, span: Span, name: str) -> str:
    return f"{name} has no sample that says anything of the stage{_end(one, span, name)}"


def _end(one: Witnesses, span: Span, name: str) -> str:
    """What to add to a reason where a series ended, and no sample is from after the span."""
    stretches = one.counter if name == COUNTER else one.power
    later = stretches is not None and bool((stretches.end_ns > span.end_ns).any())
    return "" if later or name not in one.ended else f": {one.ended[name]}"


def bounds(readings: Points, start_ns: int, end_ns: int) -> tuple[float, float]:
    """The least and the most that a counter can have grown in (start_ns, end_ns].

    Raises ValueError where its readings do not reach over both ends, or fall in between.
    """
    kept = np.isfinite(readings.values)
    ts, values = readings.ts_ns[kept], readings.values[kept]
    before, ends = (int(np.searchsorted(ts, at, side="right")) - 1 for at in (start_ns, end_ns))
    if before < 0:
        raise ValueError("no reading of the counter before the stage began")
    # A value is at most as old as the reading before it, on which the counter had another one, and
    # that one was begun after the stamp of the sample before it.
    moved = np.flatnonzero(np.diff(values[1:]) != 0) + 2
    young = np.searchsorted(ts[moved - 2], (start_ns, end_ns))
    if int(young[1]) >= len(moved):
        raise ValueError("the counter was not seen to move after the stage had ended")
    starts, after = (int(at) for at in moved[young])
    if (np.diff(values[before : after + 1]) < 0).any():
        raise ValueError("the counter went backwards")
    # At the start: values[before] <= true <= values[starts]; at the end the same of ends and after.
    return max(0.0, float(values[ends] - values[starts])), float(values[after] - values[before])


def _bounds(one: Witnesses, span: Span) -> Iterator[Row]:
    why = one.reasons.get(COUNTER, "")
    if one.readings is not None:
        try:
            low, high = bounds(one.readings, span.start_ns, span.end_ns)
        except ValueError as error:
            why = f"{error}{_end(one, span, COUNTER)}"
        else:
            part = _part(one.counter, span)
            coverage = _coverage(part, span) if part else 0.0
            if coverage:
                yield _single(one, span, LOW, low, coverage)
                yield _single(one, span, HIGH, high, coverage)
                return
            why = _nothing(one, span, COUNTER)
    yield from (_absent(one, span, metric, why) for metric in (LOW, HIGH))


def idle_power(one: Witnesses, spans: Sequence[Span]) -> Idle | str:
    """Idle power of a GPU: the median of the idle seconds before the first stage, else of those in
    the run; the least second of the run where neither says it; or why there is none.

    The least is below the usual by noise alone: a stage that did nothing would be above it. From
    power where it was sampled. The counter moves in steps: of the many seconds of a run the
    least would be one with a step too few, a tenth of the power. A second that samples do not
    cover is no second, nor is one in which the GPU was seen at work.
    """
    stretches = one.power if one.power is not None else one.counter
    if stretches is None or not len(stretches.level):
        return next(iter(one.reasons.values()), "too few samples of the energy")
    first_ns, last_ns = int(stretches.start_ns[0]), int(stretches.end_ns[-1])
    in_run = _seconds(stretches, first_ns, last_ns, one.work)
    if not len(in_run) and len(_seconds(stretches, first_ns, last_ns, None)):
        return NEVER_IDLE
    if not len(in_run):
        return f"no whole {IDLE_S:g} s of the run was sampled without a gap"
    least_w = float(in_run.min())
    begin_ns = min((span.start_ns for span in spans), default=last_ns)
    before = _seconds(stretches, first_ns, min(begin_ns, last_ns), one.work)
    seen_idle = in_run if one.work is not None else in_run[:0]
    for metric, seconds in ((IDLE_BEFORE, before), (IDLE_RUN, seen_idle)):
        if len(seconds) and (median_w := float(np.median(seconds))) <= STILL_IDLE * least_w:
            return Idle(power_w=median_w, metric=metric)
    return Idle(power_w=least_w, metric=IDLE_LEAST)


def _seconds(
    stretches: Stretches,
    low_ns: int,
    high_ns: int,
    work: tuple[Ints, npt.NDArray[np.bool_]] | None,
) -> Floats:
    """The mean levels of all the seconds that end with a stretch of (low_ns, high_ns].

    With ``work``: of those seconds in which the GPU was looked at, and never at work.
    """
    length_ns = int(IDLE_S * _NS)
    inside = (stretches.end_ns <= high_ns) & (stretches.start_ns >= low_ns)
    if not inside.any():
        return np.empty(0)
    ends = stretches.end_ns[inside]
    ends = ends[ends - length_ns >= stretches.start_ns[inside][0]]
    if work is not None:
        ts_ns, at_work = work
        looks, busy = np.arange(len(ts_ns) + 1), np.append(0, np.cumsum(at_work))
        low, high = (np.searchsorted(ts_ns, at, side="right") for at in (ends - length_ns, ends))
        ends = ends[(looks[high] > looks[low]) & (busy[high] == busy[low])]
    held = np.where(stretches.gap, np.nan, stretches.level)
    total, time_ns = _cumulative(stretches, held, ends)
    total_before, time_before = _cumulative(stretches, held, ends - length_ns)
    known = time_ns - time_before
    means = np.divide(
        total - total_before, known, out=np.full(len(ends), np.nan), where=known >= WHOLE * IDLE_S
    )
    known_means: Floats = means[np.isfinite(means)]
    return known_means


def _cumulative(stretches: Stretches, levels: Floats, at_ns: Ints) -> tuple[Floats, Floats]:
    """Level × s and s of all stretches until each moment; what has no level adds to neither."""
    seconds = (stretches.end_ns - stretches.start_ns) / _NS
    seconds = np.where(np.isfinite(levels), seconds, 0.0)
    levels = np.nan_to_num(levels)
    index = np.searchsorted(stretches.end_ns, at_ns, side="left")
    summed = np.append(0.0, np.cumsum(levels * seconds))
    timed = np.append(0.0, np.cumsum(seconds))
    at = np.minimum(index, len(levels) - 1)
    into = np.clip((at_ns - stretches.start_ns[at]) / _NS, 0.0, seconds[at])
    into = np.where(index < len(levels), into, 0.0)
    return summed[index] + levels[at] * into, timed[index] + into


def _above_idle(one: Witnesses, span: Span, idle: Idle | str) -> Iterator[Row]:
    if isinstance(idle, str):
        yield from (_absent(one, span, metric, idle) for metric in (ABOVE_IDLE, IDLE_LEAST))
        return
    part = _better(one, span)
    if part is None:
        why = _nothing(one, span, COUNTER if one.counter is not None else POWER)
        yield _absent(one, span, ABOVE_IDLE, why)
        return
    coverage = _coverage(part, span)
    p50, p95 = quantiles(part.levels, part.weights, ((1, 2), (19, 20)))
    yield replace(
        _single(one, span, ABOVE_IDLE, part.mean - idle.power_w, coverage),
        p50=p50 - idle.power_w,
        p95=p95 - idle.power_w,
        max=float(part.levels.max()) - idle.power_w,
        total=part.total - idle.power_w * part.known_ns / _NS,
        total_share=coverage,
    )
    yield _single(one, span, idle.metric, idle.power_w, 1.0)


def _better(one: Witnesses, span: Span) -> Share | None:
    """The counter's part in a span that it covers, else power's, or what covers more of it."""
    found = (_part(stretches, span) for stretches in (one.counter, one.power))
    parts = [part for part in found if part is not None and part.covered_ns > 0]
    whole = (part for part in parts if _coverage(part, span) >= WHOLE)
    return next(whole, max(parts, key=lambda part: part.covered_ns, default=None))


def _part(stretches: Stretches | None, span: Span) -> Share | None:
    return None if stretches is None else share(stretches, span.start_ns, span.end_ns)


def _coverage(part: Share, span: Span) -> float:
    return part.covered_ns / (span.end_ns - span.start_ns)


def _single(one: Witnesses, span: Span, metric: Metric, value: float, coverage: float) -> Row:
    return Row(
        stage=span.stage,
        entity=one.entity,
        metric=metric.name,
        unit=metric.unit,
        kind=metric.kind,
        mean=value,
        p50=value,
        p95=value,
        max=value,
        coverage=coverage,
    )


def _absent(one: Witnesses, span: Span, metric: Metric, why: str) -> Row:
    return Row(
        stage=span.stage,
        entity=one.entity,
        metric=metric.name,
        unit=metric.unit,
        kind=metric.kind,
        reason=why,
    )
