"""Samples on disk: Arrow IPC streams that are readable up to the last whole batch after any death.

A segment is ``<collector>-<NNNN>.arrows``. Its schema's metadata hold the collector's metrics and
absent series as JSON; its batches hold rows of entity, metric, time and value. A tail that was cut
off by a kill or a full disk is passed over by the reader, which never needs more than this file.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from telemetry.samples import Metric, Sample, Series

SUFFIX = ".arrows"
_META = b"stagescope"
_FIELDS = (
    pa.field("ts_ns", pa.int64(), nullable=False),
    pa.field("start_ns", pa.int64()),
    pa.field("entity", pa.dictionary(pa.int32(), pa.string()), nullable=False),
    pa.field("metric", pa.dictionary(pa.int32(), pa.string()), nullable=False),
    pa.field("value", pa.float64(), nullable=False),
)


@dataclass(frozen=True, kw_only=True)
class SampleSet:
    """All samples of a run: a table of rows, and what is known of their metrics.

    ``table`` has entity and metric (dictionaries of strings), ts_ns, start_ns (null but for
    windows) and value, in no particular order. ``periods`` gives each metric's period in s, and
    under ``"<entity> <metric>"`` that of a series that is sampled at another pace.
    """

    table: pa.Table
    metrics: dict[str, Metric]
    absent: list[Series]
    periods: dict[str, float]

    def period_s(self, entity: str, metric: str) -> float:
        """Seconds between two samples of a series, as its collector promised."""
        return self.periods.get(f"{entity} {metric}", self.periods[metric])

    @classmethod
    def empty(cls) -> SampleSet:
        return cls(table=pa.schema(_FIELDS).empty_table(), metrics={}, absent=[], periods={})


class SegmentWriter:
    """Appends batches of one collector to its next free segment. Not safe for several threads."""

    def __init__(
        self,
        folder: Path,
        collector: str,
        series: Sequence[Series],
        *,
        host: str,
        period_s: float,
        slow: Mapping[str, float] | None = None,
    ) -> None:
        """``slow``: periods of what is sampled less often, by metric or ``<entity> <metric>``."""
        metrics = {one.metric.name: asdict(one.metric) for one in series}
        absent = [
            {"entity": one.entity, "metric": one.metric.name, "reason": one.reason}
            for one in series
            if one.reason is not None
        ]
        meta = {
            "collector": collector,
            "host": host,
            "period_s": period_s,
            "slow": dict(slow or {}),
            "metrics": list(metrics.values()),
            "absent": absent,
        }
        self._folder, self._collector = folder, collector
        self._schema = pa.schema(_FIELDS, metadata={_META: json.dumps(meta).encode()})
        self._names: tuple[dict[str, int], dict[str, int]] = ({}, {})
        self._file: BinaryIO | None = None
        self._writer: Any = None

    def write(self, rows: Sequence[Sample]) -> None:
        """Append one batch and hand it to the operating system. Raises OSError (a full disk)."""
        if not rows:
            return
        if self._file is None:
            self._open()
        assert self._file is not None
        self._writer.write_batch(self._batch(rows))
        self._file.flush()

    def close(self) -> None:
        """End the segment; the next batch begins a new one."""
        if self._file is not None:
            self._writer.close()
            self._file.close()
            self._file = None

    def abandon(self) -> None:
        """Give the segment up as it is, after a failed write; the next batch begins a new one."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # its tail is lost, and a reader passes over it
                self._file.close()
            self._file = None

    def _open(self) -> None:
        number = 0
        while True:
            path = self._folder / f"{self._collector}-{number:04d}{SUFFIX}"
            try:
                self._file = path.open("xb")
                break
            except FileExistsError:
                number += 1
        self._names = ({}, {})
        self._writer = pa.ipc.new_stream(
            self._file,
            self._schema,
            options=pa.ipc.IpcWriteOptions(compression="zstd", emit_dictionary_deltas=True),
        )

    def _batch(self, rows: Sequence[Sample]) -> pa.RecordBatch:
        entities, metrics = self._names
        count = len(rows)
        columns = [
            pa.array([row.ts_ns for row in rows], pa.int64()),
            pa.array([row.start_ns for row in rows], pa.int64())
            if any(row.start_ns is not None for row in rows)
            else pa.nulls(count, pa.int64()),
            _coded(entities, (row.series.entity for row in rows)),
            _coded(metrics, (row.series.metric.name for row in rows)),
            pa.array([row.value for row in rows], pa.float64()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)


def _coded(known: dict[str, int], names: Iterable[str]) -> pa.DictionaryArray:
    codes = [known.setdefault(name, len(known)) for name in names]
    return pa.DictionaryArray.from_arrays(
        pa.array(codes, pa.int32()), pa.array(list(known), pa.string())
    )


def read_samples(folder: Path) -> SampleSet:
    """Read every whole batch of every segment in ``folder``, which need not exist."""
    tables, metrics, absent, periods = [], {}, {}, {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        schema, batches = _whole_batches(path)
        if schema is None:
            continue
        meta = json.loads(schema.metadata[_META])
        for fields in meta["metrics"]:
            metric = Metric(**fields)
            metrics[metric.name] = metric
            periods[metric.name] = meta["period_s"]
        periods |= meta["slow"]
        for one in meta["absent"]:
            series = Series(
                entity=one["entity"], metric=metrics[one["metric"]], reason=one["reason"]
            )
            absent[series.entity, series.metric.name] = series
        tables += batches
    if not tables:
        return SampleSet(
            table=SampleSet.empty().table,
            metrics=metrics,
            absent=list(absent.values()),
            periods=periods,
        )
    table = pa.concat_tables(tables).unify_dictionaries()
    return SampleSet(table=table, metrics=metrics, absent=list(absent.values()), periods=periods)


def _whole_batches(path: Path) -> tuple[pa.Schema | None, list[pa.Table]]:
    """The schema and batches of a segment up to the first byte that is missing."""
    tables: list[pa.Table] = []
    schema = None
    with path.open("rb") as file:
        try:
            reader = pa.ipc.open_stream(file)
            schema = reader.schema
            for batch in _until_torn(reader):
                tables.append(pa.Table.from_batches([batch]).replace_schema_metadata(None))
        except (pa.ArrowInvalid, OSError):
            pass  # not even the schema is whole, or the tail is torn: what came before counts
    return schema, tables


def _until_torn(reader: Any) -> Iterator[pa.RecordBatch]:
    while True:
        try:
            yield reader.read_next_batch()
        except StopIteration:
            return
