"""Reading one raw file as it is: every row and column, nothing judged yet."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv

SUFFIXES = (".parquet", ".csv")
HEADER_LINES = 1


class UnreadableError(ValueError):
    """A raw file of which not even the number of rows can be told."""


@dataclass(frozen=True, kw_only=True)
class RawTable:
    """A raw file's rows as read.

    ``row_numbers`` [n] counts a file's rows from 0. ``malformed`` maps the number of a CSV row
    that has too many or too few fields to its text; such rows are not in ``table``.
    """

    table: pa.Table
    row_numbers: NDArray[np.int64]
    malformed: dict[int, str]

    @property
    def rows(self) -> int:
        return len(self.row_numbers) + len(self.malformed)


def list_raw_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the raw files of a folder by name, and the names of what else lies there.

    Raises FileNotFoundError if there is no such folder or no raw file in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder of raw files {folder} is not there")
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in paths if path.is_file() and path.suffix.lower() in SUFFIXES]
    if not files:
        raise FileNotFoundError(f"no raw files ({', '.join(SUFFIXES)}) in the folder {folder}")
    return files, [path.name for path in paths if path not in files]


def read_raw(path: Path) -> RawTable:
    """Read a Parquet or CSV file whole. Columns of a CSV file are strings, empty ones null.

    Raises UnreadableError with the reason.
    """
    if path.stat().st_size == 0:
        raise UnreadableError("the file is empty (0 bytes)")
    try:
        raw = _read_csv(path) if path.suffix.lower() == ".csv" else _read_parquet(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UnreadableError(f"not a whole {path.suffix[1:]} file: {error}") from error
    twice = [name for name, count in Counter(raw.table.column_names).items() if count > 1]
    if twice:
        raise UnreadableError(f"column {', '.join(twice)} is there more than once")
    return raw


def _read_parquet(path: Path) -> RawTable:
    with pq.ParquetFile(path) as file:
        table = file.read(use_threads=False)
    return RawTable(table=table, row_numbers=np.arange(table.num_rows), malformed={})


def _read_csv(path: Path) -> RawTable:
    with path.open(encoding="utf-8-sig") as file:
        header = file.readline()
    names = csv.read_csv(pa.py_buffer(header.encode())).column_names
    malformed: dict[int, str] = {}

    def put_aside(row: csv.InvalidRow) -> str:
        malformed[row.number - HEADER_LINES - 1] = row.text
        return "skip"

    table = csv.read_csv(
        path,
        # Rows are numbered by the reader only if it reads them one after another.
        read_options=csv.ReadOptions(use_threads=False),
        parse_options=csv.ParseOptions(invalid_row_handler=put_aside),
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
            null_values=[""],
        ),
    )
    numbers = np.arange(table.num_rows + len(malformed))
    return RawTable(
        table=table,
        row_numbers=np.delete(numbers, sorted(malformed)),
        malformed=malformed,
    )
