"""Which windows are sharpened by which signal of the guest: one table, and the series it makes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from telemetry.attribution import Stretches, stretches_of
from telemetry.derived import BUSY, sound
from telemetry.samples import Metric, Series
from telemetry.segments import SampleSet
from telemetry.series import SeriesIndex, select
from telemetry.sharpen import LEAST_CELL_S, Estimate, sharpen
from telemetry.skew import Grown
from telemetry.vm_entity import parsed

SUFFIX = "_estimate"
MACHINE = "machine"


@dataclass(frozen=True, kw_only=True)
class Sharpened:
    """Metrics of the hypervisor, and the guest's counters that they are sharpened by.

    ``parts`` are summed up; of the entities that match, each is tried and the sum of all.
    ``proportional``: where the guest does nothing, there is none of it.
    """

    metric: str
    entity: str
    parts: tuple[str, ...]
    what: str
    proportional: bool = True


SHARPENED = (
    Sharpened(
        metric="vm_cpu_(?:used_cores|usage_percent)",
        entity=MACHINE,
        parts=BUSY,
        what="the guest's busy CPU time",
    ),
    Sharpened(
        metric="vm_disk_read_bytes_per_s",
        entity="disk:.+",
        parts=("disk_read_bytes",),
        what="the bytes that the guest read from its disks",
    ),
    Sharpened(
        metric="vm_disk_write_bytes_per_s",
        entity="disk:.+",
        parts=("disk_write_bytes",),
        what="the bytes that the guest wrote to its disks",
    ),
    Sharpened(
        metric="vm_net_rx_bytes_per_s",
        entity=f"{MACHINE}|net:(?!lo$).+",
        parts=("net_rx_bytes",),
        what="the bytes that the guest received",
    ),
    Sharpened(
        metric="vm_net_tx_bytes_per_s",
        entity=f"{MACHINE}|net:(?!lo$).+",
        parts=("net_tx_bytes",),
        what="the bytes that the guest sent",
    ),
    Sharpened(
        metric="(?:vm|host)_power_w",
        entity=MACHINE,
        parts=BUSY,
        what="the guest's busy CPU time",
        proportional=False,
    ),
)


def sharpened(samples: SampleSet, vm: str | None) -> SampleSet:
    """The samples with an estimate beside each series of this VM and its hosts that allows one.

    ``samples``: with their windows on the guest's clock. Other VMs have no guest here that could
    say when they did what.
    """
    signals = {part for one in SHARPENED for part in one.parts}

    def needed(entity: str, metric: str) -> bool:
        return metric in signals or _row_of(metric) is not None

    small = select(samples, needed)
    index = SeriesIndex(small)
    hosts = {parsed(entity).host for entity, _ in index.names() if parsed(entity).vm == vm}
    tables, metrics, absent = [samples.table], dict(samples.metrics), list(samples.absent)
    for entity, name in index.names():
        one, seen = _row_of(name), parsed(entity)
        if one is None or seen.vm not in {vm, None} or seen.host not in hosts:
            continue
        metric = _metric(samples.metrics[name], one)
        made = _estimate(index, small, entity, name, one)
        metrics[metric.name] = metric
        if made.reason is None:
            tables.append(_table(samples, entity, metric, made))
        else:
            absent.append(Series(entity=entity, metric=metric, reason=made.reason))
    estimated = {name: LEAST_CELL_S for name in metrics if name not in samples.metrics}
    return replace(
        samples,
        table=pa.concat_tables(tables).unify_dictionaries() if len(tables) > 1 else samples.table,
        metrics=metrics,
        absent=absent,
        periods=samples.periods | estimated,
    )


def _row_of(metric: str) -> Sharpened | None:
    return next((one for one in SHARPENED if re.fullmatch(one.metric, metric)), None)


def _metric(of: Metric, one: Sharpened) -> Metric:
    return replace(
        of,
        name=of.name + SUFFIX,
        meaning=f"estimate: {of.meaning}; each window's total, shared out in time by {one.what}",
        source=f"{of.source}; sharpened by proportional Denton",
    )


def _estimate(
    index: SeriesIndex, samples: SampleSet, entity: str, metric: str, one: Sharpened
) -> Estimate:
    windows = rows_of(index, samples, entity, metric)
    return sharpen(windows, list(_signals(index, one)), proportional=one.proportional)


def rows_of(index: SeriesIndex, samples: SampleSet, entity: str, metric: str) -> Stretches:
    """A series of windows as stretches that lie apart."""
    period_s = samples.period_s(entity, metric)
    return stretches_of(index.points(entity, metric), samples.metrics[metric], period_s)


def _signals(index: SeriesIndex, one: Sharpened) -> Iterator[Grown]:
    """The guest's signals to try: each entity's, and that of all together."""
    entities = index.entities(one.parts[0])
    matching = [entity for entity in entities if re.fullmatch(one.entity, entity)]
    together = [entity for entity in matching if entity != MACHINE]
    for group in [[entity] for entity in matching] + ([together] if len(together) > 1 else []):
        found = guest_signal(index, [(entity, part) for entity in group for part in one.parts])
        if found is not None:
            yield found


def guest_signal(index: SeriesIndex, names: Sequence[tuple[str, str]]) -> Grown | None:
    """What these counters grew by together, at the times of the first; None where one is missing.

    The kernel's files are read one after the other, within a few ms: the others' values are taken
    between their samples.
    """
    if not names or any(name not in index for name in names):
        return None
    first, values = sound(index.points(*names[0]))
    if not len(first):
        return None
    total = np.zeros(len(first))
    for number, name in enumerate(names):
        ts, level = (first, values) if not number else sound(index.points(*name))
        if not len(ts):
            return None
        at = (first - ts[0]).astype(np.float64)
        total += np.interp(at, (ts - ts[0]).astype(np.float64), level)
    return Grown.of(first, total)


def _table(samples: SampleSet, entity: str, metric: Metric, made: Estimate) -> pa.Table:
    count = len(made.level)
    names = [
        pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), [name])
        for name in (entity, metric.name)
    ]
    columns = {
        "ts_ns": pa.array(made.end_ns),
        "start_ns": pa.array(made.start_ns),
        "entity": names[0],
        "metric": names[1],
        "value": pa.array(made.level),
    }
    schema = samples.table.schema
    return pa.table([columns[name] for name in schema.names], schema=schema)
