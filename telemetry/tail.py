"""Samples of a run that goes on, as they come: every segment read on from its last whole batch.

A reader of its own for each refresh would unpack a segment from its beginning each time. Here the
messages of Arrow's stream are counted instead: names (schema and dictionaries) are kept, batches
are unpacked once, and a tail that is being written is left for the next time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from telemetry.samples import Metric
from telemetry.segments import META, SUFFIX

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

CATCH_UP_S = 900.0
"""Of segments that ended earlier than this before the newest one only the stages' rows are told:
what a stage counted until its end stays true, all else is told anew in later ones."""
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""What Arrow writes at the end of a stream."""


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """Rows of one batch; ``entity`` and ``metric`` are places in the lists of names."""

    entities: list[str]
    metrics: list[str]
    entity: Ints
    metric: Ints
    ts_ns: Ints
    value: Floats

    def of_stages(self) -> Fresh:
        """The rows of stages alone: of their processes, and what they count themselves."""
        own = ("stage:", "app:")
        stages = np.array([name.startswith(own) for name in self.entities], dtype=bool)
        rows = stages[self.entity]
        parts = {name: getattr(self, name)[rows] for name in ("entity", "metric", "ts_ns", "value")}
        return replace(self, **parts)


@dataclass(kw_only=True)
class _Segment:
    path: Path
    head: bytes = b""
    """Schema and dictionaries so far: what a batch needs before it to be read."""
    offset: int = 0
    dead: bool = False
    learnt: bool = False
    schema: pa.Schema | None = None
    names: dict[str, list[str]] = field(default_factory=dict)

    def read_on(self) -> Iterator[pa.RecordBatch]:
        """The batches that have become whole since the last call."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read()
        stream, whole = pa.BufferReader(data), 0
        dictionaries, batches = b"", []
        while True:
            try:
                message = pa.ipc.read_message(stream)
            except (EOFError, pa.ArrowException, OSError):
                break  # the stream's end, or a message that is being written
            piece = data[whole : stream.tell()]
            whole = stream.tell()
            if message.type == "record batch":
                batches.append((len(dictionaries), piece))
            else:
                dictionaries += piece
        if data[whole:] == _END:
            whole = len(data)  # so that a segment that is over is not opened again
        self.offset += whole
        if not self.head and dictionaries:
            self.schema = pa.ipc.read_schema(pa.BufferReader(dictionaries))
        if batches:
            yield from self._unpacked(dictionaries, batches)
        self.head += dictionaries

    def _unpacked(
        self, dictionaries: bytes, batches: list[tuple[int, bytes]]
    ) -> Iterator[pa.RecordBatch]:
        pieces, done = [self.head], 0
        for known, piece in batches:
            pieces += [dictionaries[done:known], piece]
            done = known
        with pa.ipc.open_stream(pa.BufferReader(b"".join(pieces))) as reader:
            yield from reader

    def name_list(self, column: pa.DictionaryArray, which: str) -> list[str]:
        """The names of a column; they only grow in number within a segment."""
        known = self.names.get(which, [])
        if len(known) != len(column.dictionary):
            known = self.names[which] = column.dictionary.to_pylist()
        return known


class Tail:
    """Reads a folder of samples on and on. Not safe for several threads.

    ``metrics``, ``absent`` (reasons by entity and metric) and ``periods`` (s, by metric or by
    ``<entity> <metric>``) are what the segments so far say.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._segments: dict[str, _Segment] = {}
        self.metrics: dict[str, Metric] = {}
        self.absent: dict[tuple[str, str], str] = {}
        self.periods: dict[str, float] = {}

    def period_s(self, entity: str, metric: str) -> float:
        """Seconds between two samples of a series, as its collector promised."""
        return self.periods.get(f"{entity} {metric}", self.periods.get(metric, 1.0))

    def read(self) -> Iterator[Fresh]:
        """All whole batches since the last call; none where there is no folder (yet).

        A segment that cannot be read, or is not one, is passed over.
        """
        for segment, old in self._grown():
            try:
                batches = list(segment.read_on())
            except (OSError, pa.ArrowException):
                segment.dead = True
                continue
            self._learn(segment)
            for batch in batches:
                fresh = _fresh(segment, batch)
                yield fresh.of_stages() if old else fresh

    def _grown(self) -> list[tuple[_Segment, bool]]:
        """Segments that are longer than what was read of them, and whether their rows are old."""
        try:
            with os.scandir(self._folder) as entries:
                seen = {
                    entry.name: entry.stat() for entry in entries if entry.name.endswith(SUFFIX)
                }
        except FileNotFoundError:
            return []
        newest_s = max((stat.st_mtime for stat in seen.values()), default=0.0)
        grown = []
        for name in sorted(seen):
            segment = self._segments.setdefault(name, _Segment(path=self._folder / name))
            if seen[name].st_size > segment.offset and not segment.dead:
                grown.append((segment, seen[name].st_mtime < newest_s - CATCH_UP_S))
        return grown

    def _learn(self, segment: _Segment) -> None:
        """What the segment's metadata say, once."""
        if segment.schema is None or segment.learnt:
            return
        segment.learnt = True
        meta = json.loads(segment.schema.metadata[META])
        for fields in meta["metrics"]:
            metric = Metric(**fields)
            self.metrics[metric.name] = metric
            self.periods[metric.name] = meta["period_s"]
        self.periods |= meta["slow"]
        for one in meta["absent"]:
            self.absent[one["entity"], one["metric"]] = one["reason"]


def _fresh(segment: _Segment, batch: pa.RecordBatch) -> Fresh:
    entity, metric = batch.column("entity"), batch.column("metric")
    return Fresh(
        entities=segment.name_list(entity, "entity"),
        metrics=segment.name_list(metric, "metric"),
        entity=entity.indices.to_numpy().astype(np.int64),
        metric=metric.indices.to_numpy().astype(np.int64),
        ts_ns=batch.column("ts_ns").to_numpy(),
        value=batch.column("value").to_numpy(),
    )
