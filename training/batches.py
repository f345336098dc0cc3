"""Daily Parquet files of the training table, brought column by column into arrays and tensors.

No row is ever touched by itself: each Arrow column is seen as an array without a copy and written
into its place of one float32 matrix, which torch and numpy then share.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from features.contracts import EVENT_TIME, FEATURES

EPOCH = date(1970, 1, 1)
US_PER_DAY = 86_400_000_000
ID_COLUMNS = ("transaction_id", "event_time", "customer_id", "is_fraud", "fraud_scenario")

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float32] | npt.NDArray[np.float64]


class Handle(Protocol):
    """What this room asks of the recorder's handle (``telemetry.handle``)."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Account the time inside to ``name``."""
        ...

    def count(self, metric: str, n: float = 1) -> None:
        """Add ``n`` to the counter ``metric``."""
        ...


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of the training table, as columns of one length n, in order of time."""

    features: FloatArray
    """float32 [n, 15], raw, in the order of ``FEATURES``; [n, 0] where not asked for."""
    transaction_id: IntArray
    customer_id: IntArray
    day: IntArray
    """Days since 1970-01-01, UTC."""
    is_fraud: BoolArray
    fraud_scenario: IntArray

    def __len__(self) -> int:
        return len(self.is_fraud)

    def where(self, keep: BoolArray) -> Rows:
        """Return the rows that ``keep`` (bool [n]) marks."""
        return Rows(**{name: column[keep] for name, column in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class DayTable:
    """The training table: ``<folder>/<YYYY-MM-DD>.parquet``, a file a day, without gaps."""

    folder: Path

    def days(self) -> list[date]:
        """Return the days that have a file, in order."""
        return sorted(date.fromisoformat(path.stem) for path in self.folder.glob("*.parquet"))

    def read(self, start: date, days: int, handle: Handle, *, features: bool = True) -> Rows:
        """Read ``days`` days from ``start`` on; without ``features`` only ids and labels.

        Raises ValueError for days that the table does not have.
        """
        with handle.phase("data_wait"):
            return _rows([self._day(day, features) for day in self._span(start, days)], features)

    def _span(self, start: date, days: int) -> Iterator[date]:
        wanted = [start + timedelta(days=offset) for offset in range(days)]
        missing = [day for day in wanted if not self._path(day).is_file()]
        if missing:
            have = self.days()
            held = f"it has {have[0]} to {have[-1]}" if have else "it is empty"
            raise ValueError(
                f"the training table in {self.folder} lacks {len(missing)} of the {days} days from "
                f"{start} on, first {missing[0]}; {held}: choose a window inside, or make more days"
            )
        return iter(wanted)

    def _path(self, day: date) -> Path:
        return self.folder / f"{day.isoformat()}.parquet"

    def _day(self, day: date, features: bool) -> pa.Table:
        names = [*ID_COLUMNS, *(FEATURES if features else ())]
        return pq.read_table(self._path(day), columns=names, partitioning=None)


def day_number(day: date) -> int:
    """Days since 1970-01-01, as in ``Rows.day``."""
    return (day - EPOCH).days


def _rows(tables: list[pa.Table], features: bool) -> Rows:
    time_us = _column(tables, "event_time")
    return Rows(
        features=_matrix(tables, FEATURES if features else ()),
        transaction_id=_column(tables, "transaction_id"),
        customer_id=_column(tables, "customer_id"),
        day=time_us // US_PER_DAY,
        is_fraud=_column(tables, "is_fraud").astype(np.bool_),
        fraud_scenario=_column(tables, "fraud_scenario"),
    )


def _column(tables: list[pa.Table], name: str) -> IntArray:
    whole = np.empty(sum(table.num_rows for table in tables), dtype=np.int64)
    _fill(whole, tables, name)
    return whole


def _matrix(tables: list[pa.Table], names: tuple[str, ...]) -> FloatArray:
    whole = np.empty((sum(table.num_rows for table in tables), len(names)), dtype=np.float32)
    for index, name in enumerate(names):
        _fill(whole[:, index], tables, name)
    return whole


def _fill(target: npt.NDArray[np.int64] | FloatArray, tables: list[pa.Table], name: str) -> None:
    at = 0
    for table in tables:
        if table[name].null_count:
            count = table[name].null_count
            raise ValueError(f"column {name} of the training table must have no nulls, not {count}")
        for chunk in table[name].chunks:
            is_time = pa.types.is_timestamp(chunk.type)
            values = chunk.cast(EVENT_TIME).view(pa.int64()) if is_time else chunk
            target[at : at + len(chunk)] = values.to_numpy(zero_copy_only=True)
            at += len(chunk)
