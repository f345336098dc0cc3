"""The training table: each clean transaction with its fifteen features, by day, through Feast."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from features.contracts import TRAINING_SCHEMA, TRANSACTION_SCHEMA
from features.definitions import SERVICE
from features.windows import calendar

if TYPE_CHECKING:
    from feast import FeatureStore

CHUNK_ROWS = 4_000_000
"""Whole files are joined together up to this many rows: about 1.5 GB, few scans of the tables."""
COMPRESSION = "lz4"

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class TableReport:
    """What was written: a file per day under ``out``."""

    rows: int
    files: int
    bytes_out: int


def training_table(
    store: FeatureStore,
    transactions: Sequence[Path],
    out: Path,
    progress: Progress | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> TableReport:
    """Write a Parquet file under ``out`` for each clean file, named as it is and synced.

    Rows and their order are the clean file's, columns are ``TRAINING_SCHEMA``. ``progress`` gets
    (files done, files). Raises ValueError if a row would lack a feature: then the window tables
    were built from other transactions.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = bytes_out = done = 0
    for chunk in _chunks(transactions, chunk_rows):
        tables = [pq.read_table(path, columns=TRANSACTION_SCHEMA.names) for path in chunk]
        entities = pa.concat_tables(table.cast(TRANSACTION_SCHEMA) for table in tables)
        joined = _with_features(store, entities)
        first = 0
        for path, table in zip(chunk, tables, strict=True):
            target = out / f"{path.stem}.parquet"
            _write(target, joined.slice(first, len(table)))
            first += len(table)
            bytes_out += target.stat().st_size
        rows += first
        done += len(chunk)
        if progress:
            progress(done, len(transactions))
    _sync(out)
    return TableReport(rows=rows, files=len(transactions), bytes_out=bytes_out)


def _chunks(transactions: Sequence[Path], chunk_rows: int) -> list[list[Path]]:
    chunks: list[list[Path]] = [[]]
    held = 0
    for path in transactions:
        with pq.ParquetFile(path) as file:
            rows = file.metadata.num_rows
        if chunks[-1] and held + rows > chunk_rows:
            chunks.append([])
            held = 0
        chunks[-1].append(path)
        held += rows
    return [chunk for chunk in chunks if chunk]


def _with_features(store: FeatureStore, entities: pa.Table) -> pa.Table:
    if len(entities) == 0:
        return TRAINING_SCHEMA.empty_table()
    service = store.get_feature_service(SERVICE)
    joined = store.get_historical_features(entity_df=entities, features=service).to_arrow()
    if len(joined) != len(entities) or joined["transaction_id"] != entities["transaction_id"]:
        raise ValueError(
            f"the join gave other rows ({len(joined)}) than it was asked for ({len(entities)})"
        )
    second = torch.from_numpy(
        pc.divide(entities["event_time"].cast(pa.int64()), 1_000_000).to_numpy().copy()
    )
    for name, value in calendar(second).items():
        joined = joined.append_column(name, pa.array(value.numpy()))
    # The store answers in UTC with a zone; clean times are UTC without one.
    joined = joined.set_column(
        joined.schema.get_field_index("event_time"), "event_time", entities["event_time"]
    )
    table = joined.select(TRAINING_SCHEMA.names).cast(TRAINING_SCHEMA)
    _check_complete(table)
    return table


def _check_complete(table: pa.Table) -> None:
    for name in table.column_names:
        missing = table[name].null_count
        if missing:
            which = table.filter(pc.is_null(table[name]))["transaction_id"][0]
            raise ValueError(
                f"{missing} of {len(table)} rows have no {name}, the first is transaction {which}: "
                "the window tables were built from other transactions; build them again"
            )


def _write(target: Path, table: pa.Table) -> None:
    with target.open("wb") as sink:
        pq.write_table(table, sink, compression=COMPRESSION)
        sink.flush()
        os.fsync(sink.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
