"""A recorded run in one small file: its record, events and samples, nothing that is derived.

A tar of ``run.json``, ``samples/`` and ``archive.json``, packed by xz. Samples lie by series in it,
which packs several times better than by time; unpacked they are in the order of time again. With
pseudonyms (the default) nothing in it says whose machine it was.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import tarfile
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from telemetry.archive_names import KEPT, Pseudonyms, of_run
from telemetry.archive_reading import ABOUT
from telemetry.archive_reading import members as members_of
from telemetry.replay import DERIVED, EVENTS, derived_anew
from telemetry.runfolder import RunFolder
from telemetry.segments import META, SUFFIX, whole_batches

SUFFIX_OF_ARCHIVES = ".tar.xz"
EXAMPLE = Path(__file__).with_name("assets") / f"example{SUFFIX_OF_ARCHIVES}"
"""The recorded run that comes with StageScope."""
SCHEMA = "stagescope.archive/1"
_RARE_S = 5.0
"""Collectors that sample no more often bring windows of the past: their batches stay."""


def pack(source: RunFolder, path: Path, *, pseudonyms: bool = True) -> Path:
    """Write an archive of an ended run; returns ``path``. The same run gives the same bytes.

    Raises ValueError for a run that goes on or a name that is no archive's, OSError where it cannot
    be written.
    """
    record = source.read()
    if record["status"] == "running":
        raise ValueError(f"run {record['run_id']} is still running: pack it when it has ended")
    if not path.name.endswith(SUFFIX_OF_ARCHIVES):
        raise ValueError(f"{path}: give a name that ends in {SUFFIX_OF_ARCHIVES}")
    names = _names(source, record) if pseudonyms else KEPT
    members: dict[str, bytes] = {"run.json": _json(names.value(record), indent=1)}
    sorted_segments = []
    for segment in sorted(source.samples.glob(f"*{SUFFIX}")):
        schema, tables = whole_batches(segment)
        if schema is None:
            continue
        meta = json.loads(schema.metadata[META])
        by_series = meta["period_s"] < _RARE_S and sum(len(table) for table in tables) > 0
        if by_series:
            sorted_segments.append(segment.name)
        members[f"samples/{segment.name}"] = _packed(
            schema, tables, names.value(meta), names, by_series=by_series
        )
    if (source.samples / EVENTS).is_file():
        events = [json.loads(line) for line in _lines(source.samples / EVENTS)]
        members[f"samples/{EVENTS}"] = b"".join(_json(names.value(one)) for one in events)
    path.parent.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {"schema": SCHEMA, "made_by": version("stagescope")}
    about["by_series"] = sorted_segments
    about["digests"] = _digests_of({**members, ABOUT: _json({**about, "digests": {}})})
    members[ABOUT] = _json(about, indent=1)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_bytes(_tar(members))
        scratch.replace(path)  # it may be the archive that is packed
    finally:
        scratch.unlink(missing_ok=True)
    return path


def unpack(path: Path, into: Path) -> tuple[RunFolder, dict[str, str]]:
    """Unpack an archive into the folder ``into`` (new); returns the run and its digests.

    The digests are those of the files that were derived of it when it was packed. Raises ValueError
    for a file that is no archive of a run.
    """
    members = members_of(path)
    about = json.loads(members.get(ABOUT, b"{}"))
    if about.get("schema") != SCHEMA or "run.json" not in members:
        told = about.get("schema")
        raise ValueError(f"{path} is no archive of a run: schema {told!r}, wanted {SCHEMA!r}")
    folder = RunFolder(into)
    folder.samples.mkdir(parents=True)
    for name, data in members.items():
        if name == ABOUT:
            continue
        by_series = PurePosixPath(name).name in set(about["by_series"])
        (folder.path / name).write_bytes(_by_time(data) if by_series else data)
    return folder, {name: about["digests"][name] for name in DERIVED if name in about["digests"]}


def _digests_of(members: Mapping[str, bytes]) -> dict[str, str]:
    """What is derived of the run as it comes out of the archive."""
    with tempfile.TemporaryDirectory(prefix="stagescope-") as scratch:
        path = Path(scratch) / f"run{SUFFIX_OF_ARCHIVES}"
        path.write_bytes(_tar(members, preset=0))
        return derived_anew(unpack(path, Path(scratch) / "run")[0])


def _names(source: RunFolder, record: Mapping[str, Any]) -> Pseudonyms:
    entities: set[str] = set()
    for segment in source.samples.glob(f"*{SUFFIX}"):
        schema, tables = whole_batches(segment)
        if schema is not None:
            entities |= {one["entity"] for one in json.loads(schema.metadata[META])["absent"]}
        for table in tables:
            entities |= set(table.column("entity").combine_chunks().dictionary.to_pylist())
    path = source.samples / EVENTS
    events = [json.loads(line) for line in _lines(path)] if path.is_file() else []
    return of_run(record, events, entities)


def _lines(path: Path) -> list[str]:
    """Whole lines; a torn one is left out."""
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            json.loads(line)
        except json.JSONDecodeError:
            continue
        kept.append(line)
    return kept


def _packed(
    schema: pa.Schema,
    tables: list[pa.Table],
    meta: Mapping[str, Any],
    names: Pseudonyms,
    *,
    by_series: bool,
) -> bytes:
    """A segment as Arrow stream without compression (xz does that), by series where told."""
    named = [_renamed(table, names) for table in tables]
    if by_series:
        table = pa.concat_tables(named).unify_dictionaries().combine_chunks()
        keys = pa.table(
            {
                "entity": table.column("entity").combine_chunks().indices,
                "metric": table.column("metric").combine_chunks().indices,
                "row": pa.array(range(len(table))),
            }
        )
        order = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in keys.column_names])
        named = [table.take(order).combine_chunks()]
    return _stream(schema.with_metadata({META: json.dumps(meta).encode()}), named, None)


def _by_time(data: bytes) -> bytes:
    """A segment that lay by series in the order of time, in one batch as it was in none."""
    with pa.ipc.open_stream(pa.BufferReader(data)) as reader:
        table, schema = reader.read_all(), reader.schema
    keys = pa.table({"ts_ns": table.column("ts_ns"), "row": pa.array(range(len(table)))})
    order = pc.sort_indices(keys, sort_keys=[("ts_ns", "ascending"), ("row", "ascending")])
    return _stream(schema, [table.take(order).combine_chunks()], "zstd")


def _stream(schema: pa.Schema, tables: list[pa.Table], compression: str | None) -> bytes:
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression, emit_dictionary_deltas=True)
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        for table in tables:
            for batch in table.to_batches() or [_no_rows(schema)]:
                writer.write_batch(batch)
    return sink.getvalue()


def _no_rows(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=schema)


def _renamed(table: pa.Table, names: Pseudonyms) -> pa.Table:
    """The table with its entities under their pseudonyms."""
    place = table.schema.get_field_index("entity")
    chunks = [
        pa.DictionaryArray.from_arrays(
            chunk.indices,
            pa.array(map(names.text, chunk.dictionary.to_pylist()), chunk.dictionary.type),
        )
        for chunk in table.column("entity").chunks
    ]
    column = pa.chunked_array(chunks, type=table.schema.field(place).type)
    return table.set_column(place, table.schema.field(place), column)


def _json(value: Any, indent: int | None = None) -> bytes:
    return (json.dumps(value, indent=indent, allow_nan=False) + "\n").encode()


def _tar(members: Mapping[str, bytes], preset: int = 9 | lzma.PRESET_EXTREME) -> bytes:
    """A tar in the order of the names, without times and owners."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(members):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(members[name]), 0o644
            tar.addfile(entry, io.BytesIO(members[name]))
    return lzma.compress(plain.getvalue(), preset=preset)
