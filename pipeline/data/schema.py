"""The transactions table: its columns, its daily files, and how a file is written for good."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifact import sync_folder

TRANSACTIONS = pa.schema(
    [
        ("transaction_id", pa.int64()),
        ("event_time", pa.timestamp("us")),
        ("customer_id", pa.int64()),
        ("terminal_id", pa.int64()),
        ("amount", pa.float64()),
        ("is_fraud", pa.int8()),
        ("fraud_scenario", pa.int8()),
    ]
)
"""Raw and clean daily files alike. ``event_time`` is UTC without saying so. In raw files it is in
whole seconds; in clean ones the microseconds are the row's ordinal within its second."""

LABEL_TIME = pa.field("label_time", pa.timestamp("us"))
"""When the label becomes known: in generated tables with random label delays only."""

DELTA_CODED = ("transaction_id", "event_time", "label_time", "customer_id", "terminal_id")
"""Columns of few bits per row: by differences they take half the time and three quarters of the
space of a dictionary (measured on a generated day of 200,000 rows)."""
ROW_GROUP_ROWS = 1 << 20


def day_path(folder: Path, day: date) -> Path:
    """Where the rows of one day lie in a folder of daily files."""
    return folder / f"{day.isoformat()}.parquet"


def day_files(folder: Path) -> list[Path]:
    """Return the daily Parquet files of a folder, oldest day first.

    Raises FileNotFoundError if the folder is not there or holds none.
    """
    files = sorted(path for path in folder.glob("*.parquet") if _day(path) is not None)
    if not files:
        raise FileNotFoundError(
            f"no daily files (<YYYY-MM-DD>.parquet) in {folder}; "
            "`stagescope data generate` or `stagescope data import` makes them"
        )
    return files


def day_of(path: Path) -> date:
    """Return the day that a daily file is named by; raises ValueError for another name."""
    day = _day(path)
    if day is None:
        raise ValueError(f"{path} is not named by a day, such as 2018-04-01{path.suffix}")
    return day


def _day(path: Path) -> date | None:
    try:
        return date.fromisoformat(path.stem)
    except ValueError:
        return None


def write_parquet(table: pa.Table, path: Path) -> int:
    """Write one file and sync it to the device; return its size in bytes.

    The sync is inside the span of the stage that writes, so that the bytes count there. A file
    of this name appears whole or not at all.
    """
    scratch = path.with_name(f".{path.name}.part")
    # A quarantined column has whatever type it was read with.
    delta = [
        field.name for field in table.schema if field.name in DELTA_CODED and _is_whole(field.type)
    ]
    pq.write_table(
        table,
        scratch,
        row_group_size=ROW_GROUP_ROWS,
        compression="zstd",
        compression_level=1,
        use_dictionary=[name for name in table.column_names if name not in delta],
        column_encoding=dict.fromkeys(delta, "DELTA_BINARY_PACKED"),
    )
    sync_folder(scratch)
    scratch.replace(path)
    return path.stat().st_size


def _is_whole(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_timestamp(kind))
