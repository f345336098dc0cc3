"""Import of the Handbook's published transactions, as one Parquet file or as daily pickles.

Facts about the data: Le Borgne, Siblini, Lebichot, Bontempi, "Reproducible Machine Learning for
Credit Card Fraud Detection: Practical Handbook", ULB 2022. Their public repository holds one
pickled pandas table per day; no code of theirs is used here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifact import sync_folder
from pipeline.data.schema import (
    TRANSACTIONS,
    day_files,
    day_of,
    day_path,
    write_parquet,
)
from pipeline.data.tablepickle import read_table_pickle

COLUMNS = {
    "TRANSACTION_ID": "transaction_id",
    "TX_DATETIME": "event_time",
    "CUSTOMER_ID": "customer_id",
    "TERMINAL_ID": "terminal_id",
    "TX_AMOUNT": "amount",
    "TX_FRAUD": "is_fraud",
    "TX_FRAUD_SCENARIO": "fraud_scenario",
}
"""Published names and ours. TX_TIME_SECONDS and TX_TIME_DAYS say again what TX_DATETIME says."""
PICKLE_SUFFIXES = (".pkl", ".pickle")
DAY_SECONDS = 86_400


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What was imported."""

    rows: int
    bytes: int
    files: int
    frauds: int
    bytes_in: int


def import_published(
    source: Path, out: Path, progress: Callable[[int, int], None] | None = None
) -> ImportReport:
    """Write the published table as raw daily files into ``out``, rows in their published order.

    ``source`` is one Parquet file or a folder of pickles. ``progress`` gets (files written, files
    in all). Raises FileNotFoundError if there is nothing there, ValueError naming file and column
    (or forbidden name) if it is not the published table.
    """
    out.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if path.suffix in PICKLE_SUFFIXES)
        if not files:
            raise FileNotFoundError(
                f"no pickles ({', '.join(PICKLE_SUFFIXES)}) in {source}; "
                "name the folder of daily files, or one Parquet file"
            )
        days, total = _days_of_pickles(files), len(files)
    elif source.is_file():
        files = [source]
        table = _read_parquet(source)
        ends = _day_ends(table, source)
        days, total = _days_of_table(table, ends), len(ends)
    else:
        raise FileNotFoundError(
            f"{source} is not there; the published data are one Parquet file or a folder of "
            "daily pickles"
        )
    rows = size = frauds = written = 0
    for day, part in days:
        path = day_path(out, day)
        if path.exists():
            raise ValueError(f"{source} holds {day} twice, or {out} was not empty")
        size += write_parquet(part, path)
        rows += part.num_rows
        frauds += int(pc.sum(part["is_fraud"]).as_py() or 0)
        written += 1
        if progress:
            progress(written, total)
    sync_folder(out)
    return ImportReport(
        rows=rows,
        bytes=size,
        files=written,
        frauds=frauds,
        bytes_in=sum(path.stat().st_size for path in files),
    )


def write_single(folder: Path, file: Path) -> int:
    """Join imported daily files into one Parquet file as published; return its rows."""
    days = day_files(folder)
    midnight = np.datetime64(day_of(days[0]), "s")
    tables = [_as_published(pq.read_table(path), midnight) for path in days]
    write_parquet(pa.concat_tables(tables), file)
    return sum(len(table) for table in tables)


def _as_published(table: pa.Table, midnight: np.datetime64) -> pa.Table:
    table = table.rename_columns(list(COLUMNS))
    since = (table["TX_DATETIME"].to_numpy() - midnight) // np.timedelta64(1, "s")
    table = table.append_column("TX_TIME_SECONDS", pa.array(since))
    return table.append_column("TX_TIME_DAYS", pa.array(since // DAY_SECONDS))


def _read_parquet(source: Path) -> pa.Table:
    try:
        file = pq.ParquetFile(source)
        _require(file.schema_arrow.names, source)
        return _in_our_columns(file.read(columns=list(COLUMNS)), source)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{source} is not a readable Parquet file: {error}") from error


def _days_of_pickles(files: list[Path]) -> Iterator[tuple[date, pa.Table]]:
    for path in files:
        frame = read_table_pickle(path)
        _require([str(name) for name in frame.columns], path)
        columns = {name: _column(frame[name], name, path) for name in COLUMNS}
        table = _in_our_columns(pa.table(columns), path)
        yield from _days_of_table(table, _day_ends(table, path))


def _column(values: pd.Series, name: str, path: Path) -> pa.Array:
    """The published pickles hold ids as Python objects: take them for what they are."""
    try:
        return pa.Array.from_pandas(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"{path}: column {name} is of mixed types: {error}") from error


def _require(names: list[str], path: Path) -> None:
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}; the published table has {', '.join(COLUMNS)}"
        )


def _in_our_columns(table: pa.Table, path: Path) -> pa.Table:
    columns = []
    for published, field in zip(COLUMNS, TRANSACTIONS, strict=True):
        try:
            columns.append(table[published].cast(field.type))
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path}: column {published} is not {field.type}: {error}") from error
    return pa.table(columns, schema=TRANSACTIONS)


def _day_ends(table: pa.Table, path: Path) -> list[tuple[date, int]]:
    """Return each day and the row after its last; raises ValueError if days are not in order."""
    if table["event_time"].null_count:
        raise ValueError(f"{path}: TX_DATETIME is empty in {table['event_time'].null_count} rows")
    day = table["event_time"].to_numpy().astype("datetime64[D]")
    if np.any(day[1:] < day[:-1]):
        raise ValueError(f"{path}: days are not in order; sort the table by TX_DATETIME first")
    ends = np.append(np.flatnonzero(day[1:] != day[:-1]) + 1, len(day))[: len(day)]
    return [(day[end - 1].astype(date), int(end)) for end in ends]


def _days_of_table(
    table: pa.Table, ends: list[tuple[date, int]]
) -> Iterator[tuple[date, pa.Table]]:
    start = 0
    for day, end in ends:
        yield day, table.slice(start, end - start)
        start = end
