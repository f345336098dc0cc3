"""Rows of clean files as tensors, split by a hash of their key, in memory or over spill files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from features.windows import to_cents

READ_ROWS = 1 << 20
HASH_FACTOR = 0x9E3779B97F4A7C15 - (1 << 64)
"""2^64 over the golden ratio, as a signed number: spreads neighbouring ids (Fibonacci hashing)."""
HASH_SHIFT = 33
"""The upper bits of the product are the well mixed ones."""
SPILL_SCHEMA = pa.schema({"key": pa.int64(), "event_us": pa.int64(), "value": pa.int64()})


class Rows(NamedTuple):
    """Rows in the order of time: key, time (µs since 1970), and cents or label. Each of [n]."""

    key: Tensor
    event_us: Tensor
    value: Tensor


Span = tuple[int, int] | None
"""First and last time (µs since 1970) of rows that are in order; None where there are none."""


@dataclass(kw_only=True)
class TimeOrder:
    """Holds that rows come in the order of time: windows look back by position."""

    span: Span = None

    def follow(self, source: Path, span: Span) -> None:
        """Take note of further rows of ``source``; ValueError if they step back in time."""
        if span is not None and self.span is not None and span[0] < self.span[1]:
            raise ValueError(
                f"{source} goes back to {_moment(span[0])} after a row of "
                f"{_moment(self.span[1])}: clean files must come in the order of time"
            )
        if span is not None:
            self.span = (self.span or span)[0], span[1]


def _moment(event_us: int) -> np.datetime64:
    return np.datetime64(event_us, "us")


def read_rows(source: Path, key: str, value: str, order: TimeOrder) -> Iterator[Rows]:
    """Read the rows of a clean file in chunks; ``value`` is ``amount`` (as cents) or a label.

    Raises ValueError for a null or for rows that are not in the order of time.
    """
    with pq.ParquetFile(source) as file:
        for batch in file.iter_batches(READ_ROWS, columns=[key, "event_time", value]):
            if batch.num_rows == 0:
                continue
            for name in (key, "event_time", value):
                if batch[name].null_count:
                    raise ValueError(f"{source} has a null in {name}: run processing again")
            event_us = _tensor(batch["event_time"].cast(pa.timestamp("us")).cast(pa.int64()))
            if bool((event_us[1:] < event_us[:-1]).any()):
                raise ValueError(f"{source} is not sorted by event_time: run processing again")
            order.follow(source, (int(event_us[0]), int(event_us[-1])))
            yield Rows(_tensor(batch[key]), event_us, _value(batch[value]))


def _value(column: pa.Array) -> Tensor:
    if not pa.types.is_floating(column.type):
        return _tensor(column)
    return _narrow(to_cents(torch.from_numpy(np.array(column.to_numpy(zero_copy_only=False)))))


def _tensor(column: pa.Array) -> Tensor:
    """Integers as a tensor, in 32 bits or fewer where they all fit: less to move and to sort."""
    array = column.to_numpy(zero_copy_only=False)
    if array.dtype != np.int64:
        return torch.from_numpy(np.array(array))
    least_most = pc.min_max(column).as_py()
    fits = least_most["min"] >= -(2**31) and least_most["max"] < 2**31
    return torch.from_numpy(array.astype(np.int32 if fits else np.int64))


def _narrow(column: Tensor) -> Tensor:
    least, most = torch.aminmax(column)
    fits = int(least) >= -(2**31) and int(most) < 2**31
    return column.to(torch.int32) if fits else column


def scatter(rows: Rows, buckets: int) -> list[Rows]:
    """Split rows by the hash of their key, their order kept within each of the ``buckets``."""
    if buckets == 1:
        return [rows]
    mixed = (rows.key.to(torch.int64) * HASH_FACTOR) >> HASH_SHIFT
    bucket = torch.remainder(mixed, buckets).to(torch.int16 if buckets < 1 << 15 else torch.int32)
    order = torch.sort(bucket, stable=True).indices
    sizes = torch.bincount(bucket, minlength=buckets).tolist()
    columns = [torch.split(column[order], sizes) for column in rows]
    return [Rows(*pieces) for pieces in zip(*columns, strict=True)]


def spill_file(source: Path, target: Path, key: str, value: str, partitions: int) -> Span:
    """Write a clean file's rows to ``target``, each partition apart; returns their time span."""
    order = TimeOrder()
    with (
        pa.OSFile(str(target), "wb") as sink,
        pa.ipc.new_file(sink, SPILL_SCHEMA) as writer,
    ):
        for rows in read_rows(source, key, value, order):
            for piece in scatter(rows, partitions):
                columns = [pa.array(column.numpy()).cast(pa.int64()) for column in piece]
                writer.write_batch(pa.record_batch(columns, schema=SPILL_SCHEMA))
    return order.span


def read_spilled(target: Path, index: int, partitions: int) -> Iterator[Rows]:
    """Read partition ``index`` of what ``spill_file`` wrote: batches go round the partitions."""
    with pa.OSFile(str(target)) as source, pa.ipc.open_file(source) as reader:
        for number in range(index, reader.num_record_batches, partitions):
            batch = reader.get_batch(number)
            if batch.num_rows:
                yield Rows(*(_tensor(column) for column in batch.columns))
