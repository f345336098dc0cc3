"""Samples on disk: Arrow IPC streams that are readable up to the last whole batch after any death.

A segment is ``<collector>-<NNNN>.arrows``. Its schema's metadata hold the collector's metrics and
absent series as JSON; its batches hold rows of entity, metric, time and value. A tail that was cut
off by a kill or a full disk is passed over by the reader, which never needs more than this file.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from telemetry.samples import Metric, Sample, Series

SUFFIX = ".arrows"
ROTATE_S = 600.0
"""A segment is ended after this time, so that a damaged file costs no more of a long run."""
META = b"stagescope"
_MOST_KNOWN = 10_000
_FIELDS = (
    pa.field("ts_ns", pa.int64(), nullable=False),
    pa.field("start_ns", pa.int64()),
    pa.field("entity", pa.dictionary(pa.int32(), pa.string()), nullable=False),
    pa.field("metric", pa.dictionary(pa.int32(), pa.string()), nullable=False),
    pa.field("value", pa.float64(), nullable=False),
)
_SCHEMA = pa.schema(_FIELDS)


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
        return cls(table=_SCHEMA.empty_table(), metrics={}, absent=[], periods={})


class SegmentWriter:
    """Appends batches of one collector to its next free segment. Not safe for several threads.

    ``slow``: periods in s of what is sampled less often, by metric or ``<entity> <metric>``.
    """

    def __init__(
        self,
        folder: Path,
        collector: str,
        series: Sequence[Series],
        *,
        host: str,
        period_s: float,
        slow: Mapping[str, float] | None = None,
        offset_ns: int = 0,
    ) -> None:
        self._folder, self._collector = folder, collector
        self._meta = {
            "collector": collector,
            "host": host,
            "period_s": period_s,
            "offset_ns": offset_ns,
        }
        self.slow = dict(slow or {})
        self._series = {(one.entity, one.metric.name): one for one in series}
        self._metrics = {one.metric.name: one.metric for one in series}
        self._descriptor = -1
        self._end = 0  # of the last whole batch in the file

    def declare(self, series: Sequence[Series]) -> None:
        """Make more series known: the next batch begins a segment whose metadata has them."""
        fresh = {(one.entity, one.metric.name): one for one in series}
        if any(self._series.get(key) != one for key, one in fresh.items()):
            self._series |= fresh
            self._metrics |= {one.metric.name: one.metric for one in series}
            self.close()

    def write(self, rows: Sequence[Sample]) -> None:
        """Append one batch, unless it is empty, and hand it to the operating system.

        Raises OSError (a full disk, say): the batch is then lost as a whole, the segment ends with
        the batch before it, and the next batch begins a new one.
        """
        if rows:
            self._append(rows)

    def begin(self) -> None:
        """Write a segment without rows: that a series is absent, and why, is worth it alone."""
        self._append(())

    def _append(self, rows: Sequence[Sample]) -> None:
        if self._descriptor < 0 or time.monotonic() > self._rotate_at:
            self.close()
            self._open()
        try:
            self._writer.write_batch(self._batch(rows))
            self._flush()
        except OSError:
            self._abandon()
            raise

    def close(self) -> None:
        """End the segment; the next batch begins a new one. A full disk here costs nothing.

        Raises OSError where the file system says only now that it kept not all, as NFS may: the
        segment is given up all the same.
        """
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                self._writer.close()
                self._flush()
            self._release()

    def _release(self) -> None:
        """Close the file. Its number is forgotten first: if closing fails it is not ours either."""
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)

    def _open(self) -> None:
        number = 0
        while True:
            self._path = self._folder / f"{self._collector}-{number:04d}{SUFFIX}"
            try:
                self._descriptor = os.open(
                    self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644
                )
                break
            except FileExistsError:
                number += 1
        self._rotate_at = time.monotonic() + ROTATE_S
        self._end = 0
        self._names = _Names(), _Names()
        self._codes: dict[int, tuple[Series, int, int]] = {}
        self._buffer = io.BytesIO()
        self._writer = pa.ipc.new_stream(
            self._buffer,
            _SCHEMA.with_metadata({META: self._metadata()}),
            options=pa.ipc.IpcWriteOptions(
                compression="zstd",
                emit_dictionary_deltas=True,
                use_threads=False,  # to wake others for a few KB costs more than it saves
            ),
        )

    def _metadata(self) -> bytes:
        absent = [
            {"entity": one.entity, "metric": one.metric.name, "reason": one.reason}
            for one in self._series.values()
            if one.reason is not None
        ]
        metrics = [asdict(metric) for metric in self._metrics.values()]
        return json.dumps(
            {**self._meta, "slow": self.slow, "metrics": metrics, "absent": absent}
        ).encode()

    def _flush(self) -> None:
        data = memoryview(self._buffer.getvalue())
        self._buffer.seek(0)
        self._buffer.truncate()
        written = 0
        while written < len(data):
            written += os.write(self._descriptor, data[written:])
        self._end += written

    def _abandon(self) -> None:
        """Cut a torn batch off, and leave no file without a batch."""
        with contextlib.suppress(OSError):
            if self._end:
                os.ftruncate(self._descriptor, self._end)
            else:
                self._path.unlink()
        with contextlib.suppress(OSError):  # that the batch is lost is told anyway
            self._release()

    def _batch(self, rows: Sequence[Sample]) -> pa.RecordBatch:
        ts_ns, series, values, starts_ns = zip(*rows, strict=True) if rows else ((),) * 4
        if len(self._codes) > _MOST_KNOWN:  # of a collector that makes each sample's series anew
            self._codes.clear()
        ids = list(map(id, series))
        for number, one in zip(ids, series, strict=True):
            if number not in self._codes:
                self._codes[number] = self._coded(one)
        codes = [self._codes[number] for number in ids]
        entities, metrics = self._names
        columns = [
            _numbers(pa.int64(), array("q", ts_ns)),
            _nullable(starts_ns),
            entities.array([entity for _, entity, _ in codes]),
            metrics.array([metric for _, _, metric in codes]),
            _numbers(pa.float64(), array("d", values)),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)

    def _coded(self, series: Series) -> tuple[Series, int, int]:
        """A series and its codes; it is kept, so that no other has its ``id``."""
        entities, metrics = self._names
        return series, entities.code(series.entity), metrics.code(series.metric.name)


# Arrays are made from buffers: pa.array of a list imports pandas where there is one, and with it
# half of the recorder's memory would be for nothing.


def _numbers(kind: pa.DataType, values: array[Any], valid: pa.Buffer | None = None) -> pa.Array:
    return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(values)])


def _nullable(values: Sequence[int | None]) -> pa.Array:
    if values.count(None) == len(values):  # none is a window
        nothing = array("q", bytes(8 * len(values)))
        return _numbers(pa.int64(), nothing, pa.py_buffer(bytes((len(values) + 7) // 8)))
    numbers = array("q", [value or 0 for value in values])
    bits = sum(1 << index for index, value in enumerate(values) if value is not None)
    return _numbers(
        pa.int64(), numbers, pa.py_buffer(bits.to_bytes((len(values) + 7) // 8, "little"))
    )


class _Names:
    """Strings by number, in the order in which they were first seen."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._ends = array("i", [0])
        self._data = b""
        self._dictionary: pa.Array | None = None

    def code(self, name: str) -> int:
        """The number of a name, which is known from now on."""
        if name not in self._codes:
            self._codes[name] = len(self._codes)
            self._data += name.encode()
            self._ends.append(len(self._data))
            self._dictionary = None
        return self._codes[name]

    def array(self, codes: Sequence[int]) -> pa.DictionaryArray:
        """The names with these numbers."""
        if self._dictionary is None:
            # A copy: the buffer of an array that grows may move.
            buffers = [None, pa.py_buffer(self._ends.tobytes()), pa.py_buffer(self._data)]
            self._dictionary = pa.Array.from_buffers(pa.string(), len(self._codes), buffers)
        numbers = _numbers(pa.int32(), array("i", codes))
        return pa.DictionaryArray.from_arrays(numbers, self._dictionary)


def read_samples(folder: Path) -> SampleSet:
    """Read every whole batch of every segment in ``folder``; no folder is an empty one."""
    tables: list[pa.Table] = []
    metrics: dict[str, Metric] = {}
    absent: dict[tuple[str, str], Series] = {}
    periods: dict[str, float] = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        schema, batches = whole_batches(path)
        if schema is None:
            continue
        meta = json.loads(schema.metadata[META])
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
        if batches:
            tables.append(_one_piece(batches))
    table = SampleSet.empty().table
    if tables:
        table = pa.concat_tables(tables).unify_dictionaries()
    return SampleSet(table=table, metrics=metrics, absent=list(absent.values()), periods=periods)


def _one_piece(batches: Sequence[pa.Table]) -> pa.Table:
    """A segment's rows as one piece: a day has 86,400 batches, and each piece has its price.

    Where none is a window, their starts are nulls of no memory of their own.
    """
    table = pa.concat_tables(batches).unify_dictionaries().combine_chunks()
    at = table.schema.get_field_index("start_ns")
    if table.num_rows == 0 or table.column(at).null_count < table.num_rows:
        return table
    nothing = _zeros(1 << (8 * table.num_rows - 1).bit_length())
    nulls = pa.Array.from_buffers(pa.int64(), table.num_rows, [nothing, nothing])
    return table.set_column(at, table.field(at), nulls)


@cache
def _zeros(size: int) -> pa.Buffer:
    return pa.py_buffer(bytes(size))


def whole_batches(path: Path) -> tuple[pa.Schema | None, list[pa.Table]]:
    """The schema and batches of a segment up to the first byte that is missing."""
    tables: list[pa.Table] = []
    schema = None
    # A torn file shows in many ways (ArrowInvalid, OSError, TypeError for half a header): all of
    # them mean that what came before counts.
    with path.open("rb") as file, contextlib.suppress(pa.ArrowException, OSError):
        reader = pa.ipc.open_stream(file)
        schema = reader.schema
        for batch in _until_end(reader):
            tables.append(pa.Table.from_batches([batch]).replace_schema_metadata(None))
    return schema, tables


def _until_end(reader: Any) -> Iterator[pa.RecordBatch]:
    while True:
        try:
            yield reader.read_next_batch()
        except StopIteration:
            return
