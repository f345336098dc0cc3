"""The series of a run by name, and those that a tracking server draws for a stage."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from telemetry.runfolder import Span
from telemetry.segments import SampleSet
from telemetry.thin import thin

MAX_POINTS = 1_000
"""Points of one series that a tracking server gets; minimum and maximum are among them."""

SHORT_PERIODS = 0.5
"""A counter's samples that are closer than this are too close for a rate of their own."""

_FEW_ROWS = 10_000

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Points:
    """Samples of one series in time order: ns UTC, and where windows start (0 elsewhere).

    ``requests_per_s``: of windows whose value is a mean over requests, how many there were.
    """

    ts_ns: Ints
    start_ns: Ints
    values: Floats
    requests_per_s: Floats | None = None


class SeriesIndex:
    """The samples of a run by (entity, metric).

    The table's columns are looked at where they are and never copied as a whole: a day at 10 Hz
    has 73 million rows. A piece of the table (a segment's rows) has its rows' numbers by series.
    """

    def __init__(self, samples: SampleSet) -> None:
        self._pieces = [_Piece(batch) for batch in _batches(samples.table)]
        found: dict[tuple[str, str], list[_Piece]] = {}
        for piece in self._pieces:
            for name in piece.ranges:
                found.setdefault(name, []).append(piece)
        self._found = found

    def __contains__(self, name: tuple[str, str]) -> bool:
        return name in self._found

    def names(self) -> list[tuple[str, str]]:
        """All (entity, metric) that have samples, sorted."""
        return sorted(self._found)

    def entities(self, metric: str) -> list[str]:
        """The entities that have samples of a metric, sorted."""
        return sorted(entity for entity, name in self._found if name == metric)

    def points(self, entity: str, metric: str) -> Points:
        """The samples of one series in time order; KeyError without any."""
        name = entity, metric
        parts = [(piece, piece.rows(name)) for piece in self._found[name]]
        ts = np.concatenate([piece.ts[rows] for piece, rows in parts])
        starts = np.concatenate([piece.starts(rows) for piece, rows in parts])
        values = np.concatenate([piece.values[rows] for piece, rows in parts])
        order = np.argsort(ts, kind="stable")
        return Points(ts[order], starts[order], values[order])

    def last_ns(self) -> int | None:
        """The time of the last sample of all."""
        return max((int(piece.ts.max()) for piece in self._pieces), default=None)


class _Piece:
    """A stretch of the table: its columns, and by series where in ``_order`` its rows are."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        entities, entity_codes = _coded(batch.column("entity"))
        metrics, metric_codes = _coded(batch.column("metric"))
        keys = entity_codes.astype(np.int64) * len(metrics) + metric_codes
        if len(entities) * len(metrics) <= 1 << 16:
            keys = keys.astype(np.uint16)  # sorted by counting
        self._order = np.argsort(keys, kind="stable").astype(np.int32)
        keys = keys[self._order]
        starts = np.append(0, np.flatnonzero(keys[1:] != keys[:-1]) + 1)
        ends = np.append(starts[1:], len(keys))
        self.ranges = {
            (entities[key // len(metrics)], metrics[key % len(metrics)]): (low, high)
            for key, low, high in zip(
                keys[starts].tolist(), starts.tolist(), ends.tolist(), strict=True
            )
        }
        self.ts: Ints = batch.column("ts_ns").to_numpy()
        self.values: Floats = np.asarray(batch.column("value").to_numpy(), dtype=np.float64)
        self._starts = batch.column("start_ns")
        self._no_windows = self._starts.null_count == len(self._starts)

    def rows(self, name: tuple[str, str]) -> npt.NDArray[np.int32]:
        low, high = self.ranges[name]
        return self._order[low:high]

    def starts(self, rows: npt.NDArray[np.int32]) -> Ints:
        if self._no_windows:
            return np.zeros(len(rows), np.int64)
        found: Ints = self._starts.take(pa.array(rows)).fill_null(0).to_numpy()
        return found


def _batches(table: pa.Table) -> list[pa.RecordBatch]:
    """The table's pieces; very small ones are put together, for each has its price."""
    pieces = max(table.column("value").num_chunks, 1)
    if pieces > 1 and table.num_rows < _FEW_ROWS * pieces:
        table = table.unify_dictionaries().combine_chunks()
    return [batch for batch in table.to_batches() if batch.num_rows]


def _coded(column: Any) -> tuple[list[str], npt.NDArray[np.int32]]:
    if not hasattr(column.type, "value_type"):
        column = column.dictionary_encode()
    return column.dictionary.to_pylist(), column.indices.to_numpy()


def select(samples: SampleSet, wanted: Callable[[str, str], bool]) -> SampleSet:
    """The rows of those series (entity, metric) alone; what is known of metrics stays."""
    entities, entity_codes = _codes(samples.table.column("entity"))
    metrics, metric_codes = _codes(samples.table.column("metric"))
    kept = np.array([[wanted(one, other) for other in metrics] for one in entities], dtype=bool)
    mask = kept[entity_codes, metric_codes] if kept.size else np.zeros(0, bool)
    return replace(samples, table=samples.table.filter(pa.array(mask)))


def _codes(column: Any) -> tuple[list[str], Ints]:
    """A column of strings, dictionary-encoded or not, as names and a code per row."""
    if not hasattr(column.type, "value_type"):
        column = column.dictionary_encode()
    column = column.unify_dictionaries()
    if not column.num_chunks:
        return [], np.empty(0, np.int64)
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in column.chunks])
    return column.chunk(0).dictionary.to_pylist(), codes.astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """Series that a tracking server gets, their place there, and a factor."""

    entity: str
    metric: str
    name: str
    scale: float = 1.0


_SEEN = r"((?:vm|host)_(?!\w+_estimate$)\w+)"
"""What vCenter says; estimates are drawn in the report, beside what they were made of."""

TRACKED = (
    Tracked(entity="machine", metric=r"cpu_(\w+)_seconds", name="guest/cpu_{}_cores"),
    Tracked(entity="machine", metric=r"(mem_\w+_bytes)", name="guest/{}"),
    Tracked(entity="machine", metric=r"psi_(\w+)_seconds", name="guest/psi_{}_percent", scale=100),
    Tracked(entity=r"disk:(.+)", metric=r"(disk_(?:read|write)_bytes)", name="guest/{}_{}_per_s"),
    Tracked(entity=r"net:(.+)", metric=r"(net_[rt]x_bytes)", name="guest/{}_{}_per_s"),
    Tracked(entity="stage:STAGE", metric=r"cpu_(\w+)_seconds", name="stage/cpu_{}_cores"),
    Tracked(entity="stage:STAGE", metric="(mem_rss_bytes|process_count)", name="stage/{}"),
    Tracked(entity="stage:STAGE", metric="(io_(?:read|write)_bytes)", name="stage/{}_per_s"),
    Tracked(entity="gpu:(.+)", metric="(gpu_(?:mem_)?util_percent)", name="gpu/{}_{}"),
    Tracked(entity="gpu:(.+)", metric=r"(gpu_mem_used_bytes|power_\w+_w)", name="gpu/{}_{}"),
    Tracked(entity="gpu:(.+)", metric=r"(gpu_temperature_c|gpu_clock_\w+)", name="gpu/{}_{}"),
    Tracked(
        entity="gpu:(.+)", metric=r"(gpm_\w+|power_buffer_w|gpu_run_sm_percent)", name="gpu/{}_{}"
    ),
    Tracked(entity=r"vm:.+@[^@/]+", metric=_SEEN, name="vcenter/{}"),
    Tracked(entity=r"vm:.+@[^@/]+/([^@]+)", metric=_SEEN, name="vcenter/{}_{}"),
    Tracked(entity=r"esxi:[^/]+", metric=_SEEN, name="vcenter/{}"),
    Tracked(entity=r"esxi:[^/]+/gpu:(.+)", metric=_SEEN, name="vcenter/{}_{}"),
)
"""MLflow's page makes a section of the part after ``system/``."""


def stage_series(
    samples: SampleSet, span: Span, index: SeriesIndex | None = None
) -> dict[str, tuple[list[int], list[float]]]:
    """What a tracking server draws for one stage: ``system/...`` names to times (ns) and values.

    Levels as they were, counters as rates per second, at their original times, thinned to
    ``MAX_POINTS`` each. The extra samples when a process starts or ends can be so close to others
    that one clock tick between them would be ten cores: they have no rate of their own.
    ``index``: of these samples, where it is there already.
    """
    index = SeriesIndex(samples) if index is None else index
    drawn = {}
    for entity, metric, tracked, name in _named_apart(_matches(index, span.stage)):
        points = index.points(entity, metric)
        times, values = points.ts_ns, points.values
        if samples.metrics[metric].kind == "counter":
            kept = _apart(times, round(SHORT_PERIODS * samples.period_s(entity, metric) * 1e9))
            times, values = times[kept], values[kept]
            seconds = np.diff(times) / 1e9
            whole = (seconds > 0) & (np.diff(values) >= 0)
            times, values = times[1:][whole], np.diff(values)[whole] / seconds[whole]
        inside = (times >= span.start_ns) & (times <= span.end_ns) & np.isfinite(values)
        if inside.any():
            thinned = thin(times[inside], values[inside] * tracked.scale, MAX_POINTS)
            drawn[f"system/{name}"] = (thinned[0].tolist(), thinned[1].tolist())
    return drawn


def _apart(times: Ints, least_ns: int) -> list[int]:
    """Indices of the samples that are at least this far from the one kept before."""
    if len(times) < 2 or int(np.diff(times).min()) >= least_ns:
        return list(range(len(times)))
    kept = [0]
    for index, ts_ns in enumerate(times.tolist()):
        if ts_ns - int(times[kept[-1]]) >= least_ns:
            kept.append(index)
    return kept


def _named_apart(
    found: Iterable[tuple[str, str, Tracked, str]],
) -> Iterator[tuple[str, str, Tracked, str]]:
    """Series that would have one name (a VM on two hosts, several VMs) get their entity's too."""
    matches = list(found)
    names = Counter(name for *_, name in matches)
    for entity, metric, tracked, name in matches:
        if names[name] > 1:
            name = f"{name} {clean(entity.partition(':')[2].partition('/')[0])}"  # noqa: PLW2901
        yield entity, metric, tracked, name


def clean(name: str) -> str:
    """The name with what a tracking server does not take replaced."""
    return re.sub(r"[^\w./ -]", "_", name)


def _matches(index: SeriesIndex, stage: str) -> Iterator[tuple[str, str, Tracked, str]]:
    for entity, metric in index.names():
        for tracked in TRACKED:
            of_entity = re.fullmatch(tracked.entity.replace("STAGE", re.escape(stage)), entity)
            of_metric = re.fullmatch(tracked.metric, metric)
            if of_entity and of_metric:
                name = tracked.name.format(*of_entity.groups(), *of_metric.groups())
                yield entity, metric, tracked, clean(name)
                break
