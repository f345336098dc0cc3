"""Metrics that are made of measured ones, sample by sample, before they are attributed: one table.

A derived series exists where all its parts were read in the same moment; no part is guessed. Steal
is no part where its collector says that it is not measured: other modes then hold that time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import numpy.typing as npt

from telemetry.samples import Metric
from telemetry.segments import SampleSet
from telemetry.series import Points, SeriesIndex

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

BUSY = (
    "cpu_user_seconds",
    "cpu_nice_seconds",
    "cpu_system_seconds",
    "cpu_irq_seconds",
    "cpu_softirq_seconds",
)
"""Modes of /proc/stat in which a CPU of this machine works; steal is another machine's time."""
STEAL = "cpu_steal_seconds"
NOT_BUSY = ("cpu_idle_seconds", "cpu_iowait_seconds", STEAL)
TREE = ("cpu_user_seconds", "cpu_system_seconds")


@dataclass(frozen=True, kw_only=True)
class Derived:
    """The sum of counters, or what it grew by in percent of what ``out_of`` grew by; with
    ``without`` 100 where the sum of the parts is above 0 and that of those is not, else 0."""

    metric: Metric
    entity: str
    parts: tuple[str, ...]
    out_of: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


DERIVED = (
    Derived(
        entity=r"stage:.+|processes|recorder|runner",
        parts=TREE,
        metric=Metric(
            name="cpu_busy_seconds",
            unit="s",
            kind="counter",
            meaning="CPU time of these processes; its mean is the number of cores in use",
            source="cpu_user_seconds + cpu_system_seconds",
        ),
    ),
    Derived(
        entity="machine",
        parts=BUSY,
        metric=Metric(
            name="cpu_busy_seconds",
            unit="s",
            kind="counter",
            meaning="CPU time of the machine in all busy modes; its mean is the cores in use",
            source="cpu user + nice + system + irq + softirq seconds",
        ),
    ),
    Derived(
        entity="machine",
        parts=BUSY,
        out_of=(*BUSY, *NOT_BUSY),
        metric=Metric(
            name="cpu_busy_percent",
            unit="%",
            kind="gauge",
            meaning="share of the CPUs' time since the sample before in which they worked",
            source="cpu_busy_seconds over all modes of /proc/stat, steal included where measured",
        ),
    ),
    Derived(
        entity=r"stage:.+",
        parts=("process_waiting_for_disk_count",),
        without=("process_ready_count",),
        metric=Metric(
            name="process_only_disk_wait_percent",
            unit="%",
            kind="gauge",
            meaning="share of the looks at which a process waited for a disk and none ran or was "
            "ready to run",
            source="process_waiting_for_disk_count > 0 and process_ready_count = 0",
        ),
    ),
)


def derivable(index: SeriesIndex, samples: SampleSet) -> Iterator[tuple[str, Derived, float]]:
    """Entity, what can be derived for it, as its parts are there, and its period (s)."""
    names = set(index.names())
    no_steal = ("machine", STEAL) in absent_series(index, samples)
    for each in DERIVED:
        one = _without_steal(each) if no_steal else each
        needed = {*one.parts, *one.out_of, *one.without}
        for entity in sorted({entity for entity, _ in names if re.fullmatch(one.entity, entity)}):
            if all((entity, part) in names for part in needed):
                yield entity, one, max(samples.period_s(entity, part) for part in needed)


def absent_series(index: SeriesIndex, samples: SampleSet) -> set[tuple[str, str]]:
    """Series that have no samples because their collector said that they are not measured."""
    return {(one.entity, one.metric.name) for one in samples.absent} - set(index.names())


def _without_steal(one: Derived) -> Derived:
    return replace(one, out_of=tuple(part for part in one.out_of if part != STEAL))


def derived_series(
    index: SeriesIndex, samples: SampleSet
) -> Iterator[tuple[str, Metric, Points, float]]:
    """Entity, metric, points and period (s) of every derived series that its parts allow."""
    for entity, one, period_s in derivable(index, samples):
        yield entity, one.metric, made(index, entity, one), period_s


def made(index: SeriesIndex, entity: str, one: Derived) -> Points:
    """The points of a derived series."""
    ts, values = _sum(index, entity, one.parts)
    if one.without:
        whole_ts, others = _sum(index, entity, one.without)
        ts, mine, theirs = np.intersect1d(ts, whole_ts, assume_unique=True, return_indices=True)
        values = 100.0 * ((values[mine] > 0) & (others[theirs] == 0))
    if one.out_of:
        whole_ts, whole = _sum(index, entity, one.out_of)
        ts, mine, theirs = np.intersect1d(ts, whole_ts, assume_unique=True, return_indices=True)
        grown, of = np.diff(values[mine]), np.diff(whole[theirs])
        kept = (of > 0) & (grown >= 0) & (grown <= of)
        ts, values = ts[1:][kept], 100.0 * grown[kept] / of[kept]
    return Points(ts, np.zeros_like(ts), values)


def _sum(index: SeriesIndex, entity: str, parts: tuple[str, ...]) -> tuple[Ints, Floats]:
    """Times at which all parts were read, and the sum of the parts there."""
    found = [sound(index.points(entity, part)) for part in parts]
    first = found[0][0]
    if all(np.array_equal(first, ts) for ts, _ in found):
        return first, reduce(np.add, (values for _, values in found))
    common: Ints = reduce(np.intersect1d, (ts for ts, _ in found))
    return common, reduce(np.add, (values[np.searchsorted(ts, common)] for ts, values in found))


def sound(points: Points) -> tuple[Ints, Floats]:
    """Times and finite values of a series, ascending; of several at one time the largest."""
    kept = np.isfinite(points.values)
    ts, values = points.ts_ns[kept], points.values[kept]
    if len(ts) and not (ts[1:] > ts[:-1]).all():
        order = np.lexsort((values, ts))
        ts, values = ts[order], values[order]
        last = np.append(ts[1:] != ts[:-1], True)
        ts, values = ts[last], values[last]
    return ts, values
