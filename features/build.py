"""Build the two window tables from clean transactions, partition by partition, inside Dask.

A partition is a share of the keys, chosen by a hash, so that each window lies whole in one task.
While all rows fit into one partition, each task reads the files itself, and only the columns it
needs. Beyond that the files are first split by partition into a spill folder, so that memory is
bounded by ``rows_per_partition`` however many rows there are.

Within a task rows go on into buckets small enough for the processor's cache: sorting, searching
and gathering there is several times faster than over all rows at once. A bucket is written in the
order of time, as row groups that a reader can skip by ``event_time``.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from features.contracts import CUSTOMER_SCHEMA, EVENT_TIME, TERMINAL_SCHEMA

if TYPE_CHECKING:
    from features.partitions import Rows, Span
    from infra.cluster import Cluster

ROWS_PER_PARTITION = 32_000_000
"""Measured: 20 M rows take 1.0 GB in a task, torch itself included."""
BUCKET_ROWS = 1 << 19
ROW_GROUP_ROWS = 1 << 16
COMPRESSION = "lz4"
SPILL_FOLDER = ".spill"
US_PER_S = 1_000_000

Progress = Callable[[int, int], None]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class WindowTable:
    """A table to build: its folder, its key, and the column that is summed in its windows."""

    name: str
    key: str
    value: str
    schema: pa.Schema


TABLES = (
    WindowTable(name="customer_windows", key="customer_id", value="amount", schema=CUSTOMER_SCHEMA),
    WindowTable(
        name="terminal_windows", key="terminal_id", value="is_fraud", schema=TERMINAL_SCHEMA
    ),
)


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What was built. ``rows`` is the number of rows of the input and of each of the tables."""

    rows: int
    partitions: int
    spilled: bool
    bytes_out: int


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """How the rows are divided: ``buckets`` is the number of buckets in each partition."""

    sources: tuple[Path, ...]
    out: Path
    rows: int
    partitions: int
    buckets: int
    spilled: bool
    device: str
    threads: int

    def spill_path(self, table: WindowTable, number: int) -> Path:
        return self.out / SPILL_FOLDER / f"{table.name}-{number:06d}.arrow"


@dataclass(frozen=True, kw_only=True)
class _Task:
    """Spill source ``number`` or build partition ``number`` of a table."""

    plan: _Plan
    table: WindowTable
    number: int


def build_tables(  # noqa: PLR0917 (files, where, with what; then settings)
    transactions: Sequence[Path],
    out: Path,
    cluster: Cluster,
    device: str = "cpu",
    rows_per_partition: int = ROWS_PER_PARTITION,
    progress: Progress | None = None,
) -> BuildReport:
    """Write ``out/customer_windows/`` and ``out/terminal_windows/``, synced to the disk.

    ``transactions`` are clean Parquet files in the order of time, as ``TRANSACTION_SCHEMA`` says.
    Each table has a row per transaction. All rows of one key are worked on together: one with more
    than ``rows_per_partition`` rows needs memory for all of them.

    Raises ValueError for no files, a missing column, a null, or rows out of the order of time.
    """
    plan = _plan(transactions, out, cluster, rows_per_partition, device)
    spills = [
        _Task(plan=plan, table=table, number=number)
        for number in range(len(plan.sources) if plan.spilled else 0)
        for table in TABLES
    ]
    parts = [
        _Task(plan=plan, table=table, number=number)
        for number in range(plan.partitions)
        for table in TABLES
    ]
    steps = len(spills) + len(parts)
    for table in TABLES:
        (out / table.name).mkdir(parents=True, exist_ok=True)
    (out / SPILL_FOLDER).mkdir(exist_ok=True)
    try:
        spans = cluster.map(_spill, spills, progress=_shifted(progress, 0, steps))
        _check_order(spills, spans)
        made = cluster.map(_build_part, parts, progress=_shifted(progress, len(spills), steps))
    finally:
        shutil.rmtree(out / SPILL_FOLDER)
    for table in TABLES:
        _sync(out / table.name)
    assert sum(rows for rows, _ in made) == len(TABLES) * plan.rows, "a row was lost or doubled"
    return BuildReport(
        rows=plan.rows,
        partitions=plan.partitions,
        spilled=plan.spilled,
        bytes_out=sum(size for _, size in made),
    )


def _plan(
    transactions: Sequence[Path], out: Path, cluster: Cluster, rows_per_partition: int, device: str
) -> _Plan:
    if not transactions:
        raise ValueError("no transaction files to build features from: did processing write any?")
    rows = sum(_count_rows(path) for path in transactions)
    needed = max(1, math.ceil(rows / rows_per_partition))
    partitions = max(needed, cluster.workers // len(TABLES))
    return _Plan(
        sources=tuple(transactions),
        out=out,
        rows=rows,
        partitions=partitions,
        buckets=max(1, math.ceil(rows / partitions / BUCKET_ROWS)),
        spilled=needed > 1,
        device=device,
        threads=cluster.threads_per_worker if cluster.workers else len(os.sched_getaffinity(0)),
    )


def _count_rows(path: Path) -> int:
    with pq.ParquetFile(path) as file:
        wanted = {name for table in TABLES for name in (table.key, table.value, "event_time")}
        missing = sorted(wanted - set(file.schema_arrow.names))
        if missing:
            raise ValueError(f"{path} has no column {', '.join(missing)}: run processing again")
        return int(file.metadata.num_rows)


def _shifted(progress: Progress | None, first: int, total: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, _: progress(first + done, total)


def _spill(task: _Task) -> Span:
    from features.partitions import spill_file

    target = task.plan.spill_path(task.table, task.number)
    source = task.plan.sources[task.number]
    with _lanes(1) as lane:
        return lane.submit(
            spill_file, source, target, task.table.key, task.table.value, task.plan.partitions
        ).result()


def _check_order(spills: Sequence[_Task], spans: Sequence[Span]) -> None:
    """Hold that each file follows the one before: the tasks that split them saw one each."""
    from features.partitions import TimeOrder

    order = TimeOrder()
    for task, span in zip(spills, spans, strict=True):
        if task.table is TABLES[0]:
            order.follow(task.plan.sources[task.number], span)


def _build_part(task: _Task) -> tuple[int, int]:
    """Write one partition of a table as one synced file; returns its rows and bytes."""
    path = task.plan.out / task.table.name / f"part-{task.number:05d}.parquet"
    rows = 0
    with (
        _lanes(task.plan.threads) as lanes,
        path.open("wb") as sink,
        pq.ParquetWriter(
            sink, task.table.schema, compression=COMPRESSION, use_dictionary=False
        ) as writer,
    ):
        buckets = _buckets(task, lanes)
        ahead = task.plan.threads + 1
        for table in _in_order(lanes, partial(_window_table, task), buckets, ahead):
            writer.write_table(table, ROW_GROUP_ROWS)
            rows += len(table)
    _sync(path)
    return rows, path.stat().st_size


@contextmanager
def _lanes(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that each work on a piece of their own, with torch's inner parallelism off.

    Measured: torch's threads meet at a barrier after each of its many short operations, and on a
    machine that has other work every barrier waits for the slowest: two to ten times the time.
    """
    import torch

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def _in_order(
    lanes: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """``work`` of each item in order, at most ``ahead`` results before the one in use."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(lanes.submit(work, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _buckets(task: _Task, lanes: ThreadPoolExecutor) -> Iterator[Rows]:
    """Bring the partition's rows together by bucket, each in the order of time."""
    import torch

    from features.partitions import Rows, TimeOrder

    order = TimeOrder()
    pieces: list[list[Rows]] = [[] for _ in range(task.plan.buckets)]
    numbers = range(len(task.plan.sources))
    for number, (chunks, span) in zip(
        numbers,
        _in_order(lanes, partial(_scattered, task), numbers, task.plan.threads),
        strict=True,
    ):
        order.follow(task.plan.sources[number], span)
        for scattered in chunks:
            for bucket, piece in zip(pieces, scattered, strict=True):
                bucket.append(piece)
    for number, bucket in enumerate(pieces):
        if bucket:
            yield Rows(*(torch.cat(columns) for columns in zip(*bucket, strict=True)))
        pieces[number] = []


def _scattered(task: _Task, number: int) -> tuple[list[list[Rows]], Span]:
    """The partition's rows of one source by bucket, chunk by chunk, and the source's time span.

    Bucket b of partition p is number p + b * partitions of the hash, so that the spill can split
    by partition alone.
    """
    from features.partitions import TimeOrder, read_rows, read_spilled, scatter

    plan, order = task.plan, TimeOrder()
    chunks = (
        read_spilled(plan.spill_path(task.table, number), task.number, plan.partitions)
        if plan.spilled
        else read_rows(plan.sources[number], task.table.key, task.table.value, order)
    )
    scattered = [
        scatter(rows, plan.partitions * plan.buckets)[task.number :: plan.partitions]
        for rows in chunks
    ]
    return scattered, order.span


def _window_table(task: _Task, rows: Rows) -> pa.Table:
    import torch

    from features.windows import customer_windows, terminal_windows

    kernel = customer_windows if task.table.value == "amount" else terminal_windows
    second = torch.div(rows.event_us, US_PER_S, rounding_mode="floor")
    inputs = (column.to(task.plan.device) for column in (rows.key, second, rows.value))
    features = kernel(*inputs)
    columns = [
        pa.array(rows.key.numpy()).cast(pa.int64()),
        pa.array(rows.event_us.numpy()).cast(EVENT_TIME),
        *(pa.array(value.cpu().numpy()) for value in features.values()),
    ]
    return pa.table(columns, schema=task.table.schema)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
