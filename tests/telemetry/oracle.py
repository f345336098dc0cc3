"""Attribution the slow and obvious way: one nanosecond after the other, in fractions.

Nothing here is shared with ``telemetry.attribution``: two ways to read ``docs/profile.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, isfinite

import pyarrow as pa

from telemetry.samples import Kind, Metric, Series
from telemetry.segments import SampleSet

Raw = tuple[int, int | None, float]
"""A sample: ts_ns, start_ns (windows only), value."""
_SECOND = Fraction(1_000_000_000)


@dataclass(frozen=True)
class Piece:
    """A stretch (start, end] with its value: what a counter grew by, else the level."""

    start: int
    end: int
    value: Fraction
    gap: bool = False


@dataclass(frozen=True)
class Answer:
    """What the oracle says of one series in one span; ``known`` and ``covered`` in ns.

    ``usual``: half of the known ns lie in windows of at most this many; 0 for other kinds.
    """

    known: int
    covered: Fraction
    usual: int = 0
    total: Fraction = Fraction(0)
    mean: Fraction = Fraction(0)
    p50: Fraction = Fraction(0)
    p95: Fraction = Fraction(0)
    max: Fraction = Fraction(0)


def pieces(raw: Sequence[Raw], kind: Kind, period_ns: int) -> list[Piece]:
    """The stretches of a series, in time order."""
    raw = [one for one in raw if isfinite(one[2])]
    if kind == "window":
        return list(_windows(raw, period_ns))
    largest: dict[int, float] = {}
    for ts, _, value in raw:
        largest[ts] = max(value, largest.get(ts, value))
    times = sorted(largest)
    found = []
    for place, ts in enumerate(times):
        before = times[place - 1] if place else None
        far = before is None or ts - before > Fraction(5, 2) * period_ns
        if kind == "gauge":
            start = ts - period_ns if far or before is None else before
            found.append(Piece(start, ts, Fraction(largest[ts])))
        elif before is not None:
            grown = Fraction(largest[ts]) - Fraction(largest[before])
            if grown >= 0:
                found.append(Piece(before, ts, grown, far))
    return found


def _windows(raw: Sequence[Raw], period_ns: int) -> Iterator[Piece]:
    reached = None
    stated = [(ts, ts - period_ns if start is None else start, value) for ts, start, value in raw]
    for end, start, value in sorted(stated, key=lambda one: (one[0], one[1], -one[2])):
        begin = start if reached is None else max(start, reached)
        reached = end
        if begin < end:
            yield Piece(begin, end, Fraction(value))


def attribute(
    raw: Sequence[Raw], kind: Kind, period_ns: int, start_ns: int, end_ns: int
) -> Answer | None:
    """What the series was in (start_ns, end_ns], by looking at each of its nanoseconds."""
    cut = pieces(raw, kind, period_ns)
    hits: dict[Piece, int] = {}
    for ns in range(start_ns + 1, end_ns + 1):
        for piece in cut:
            if piece.start < ns <= piece.end:
                hits[piece] = hits.get(piece, 0) + 1
    if not hits:
        return None
    known = sum(hits.values())
    shares = {piece: Fraction(count, piece.end - piece.start) for piece, count in hits.items()}
    usual = 0
    if kind == "window":
        # Each nanosecond is known as well as the share of its window that lies here.
        covered = sum((count * shares[piece] for piece, count in hits.items()), Fraction(0))
        lengths = [piece.end - piece.start for piece, count in hits.items() for _ in range(count)]
        usual = sorted(lengths)[ceil(Fraction(50, 100) * known) - 1]
    else:
        covered = Fraction(
            sum(count for piece, count in hits.items() if not piece.gap or shares[piece] == 1)
        )
    if kind == "counter":
        parts = [(piece, piece.value * count / (piece.end - piece.start), count)
                 for piece, count in hits.items()]  # fmt: skip
        total = sum((amount for _, amount, _ in parts), Fraction(0))
        levels = _rates(parts, period_ns)
        mean = total / (known / _SECOND)
    else:
        levels = [piece.value for piece, count in hits.items() for _ in range(count)]
        mean = sum(levels, Fraction(0)) / known
        total = mean * known / _SECOND
    levels.sort()
    return Answer(
        known=known,
        covered=covered,
        usual=usual,
        total=total,
        mean=mean,
        p50=levels[ceil(Fraction(50, 100) * known) - 1],
        p95=levels[ceil(Fraction(95, 100) * known) - 1],
        max=levels[-1],
    )


def _rates(parts: Sequence[tuple[Piece, Fraction, int]], period_ns: int) -> list[Fraction]:
    """A rate for each nanosecond; stretches below half a period share one with the one before."""
    groups: list[list[tuple[Fraction, int]]] = []
    waiting = True  # short ones at the beginning wait for the first that is long enough
    for piece, amount, count in parts:
        long = piece.end - piece.start >= Fraction(period_ns, 2)
        if groups and (waiting or not long):
            groups[-1].append((amount, count))
        else:
            groups.append([(amount, count)])
        waiting = waiting and not long
    levels = []
    for group in groups:
        count = sum(one for _, one in group)
        levels += [sum((one for one, _ in group), Fraction(0)) / (count / _SECOND)] * count
    return levels


def make_metric(name: str, kind: Kind, unit: str = "s", integral: str | None = None) -> Metric:
    return Metric(
        name=name, unit=unit, kind=kind, meaning=name, source="a test", integral_unit=integral
    )


def make_samples(
    series: Mapping[tuple[str, Metric], Sequence[Raw]],
    *,
    period_s: float = 0.1,
    absent: Sequence[Series] = (),
    order: Sequence[int] | None = None,
) -> SampleSet:
    """A SampleSet of these series; ``order``: the order of the table's rows."""
    rows = [
        {"entity": entity, "metric": metric.name, "ts_ns": ts, "start_ns": start, "value": value}
        for (entity, metric), raw in series.items()
        for ts, start, value in raw
    ]
    if order is not None:
        rows = [rows[place] for place in order]
    metrics = {metric.name: metric for _, metric in series}
    metrics |= {one.metric.name: one.metric for one in absent}
    return SampleSet(
        table=pa.Table.from_pylist(rows, schema=SampleSet.empty().table.schema),
        metrics=metrics,
        absent=list(absent),
        periods=dict.fromkeys(metrics, period_s),
    )
