"""The generated world: card payments of any number of customers, written as daily files.

Same settings, same table: every draw comes from a counter-based stream of its customer, terminal
or day, so a day can be made without the others, in blocks of customers of any size, by any number
of workers. A day's rows are held whole while they are put in order; that and the terminals' map
are all that grows in memory, by about 80 bytes per payment of a day and 40 bytes per terminal.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from infra.cluster import Cluster
from pipeline.artifact import sync_folder
from pipeline.data.payments import CUSTOMERS_PER_BLOCK, make_day
from pipeline.data.schema import day_path, write_parquet
from pipeline.data.world import GeneratorSpec

__all__ = ["GenerateReport", "GeneratorSpec", "digest_of", "generate"]


@dataclass(frozen=True, kw_only=True)
class GenerateReport:
    """What was made. ``digest`` is of the table's values, whatever the files look like."""

    rows: int
    bytes: int
    files: int
    frauds: int
    scenarios: dict[int, int]
    digest: str


def generate(
    spec: GeneratorSpec,
    out: Path,
    cluster: Cluster,
    progress: Callable[[int, int], None] | None = None,
    *,
    days: range | None = None,
    days_per_task: int = 1,
    customers_per_block: int = CUSTOMERS_PER_BLOCK,
) -> GenerateReport:
    """Write one Parquet file per day into ``out``, each synced to the device.

    ``days`` makes a part of the table only (numbers from 0); the other two set the size of the
    pieces of work and change no value. ``progress`` gets (days done, days in all).
    """
    out.mkdir(parents=True, exist_ok=True)
    todo = list(days if days is not None else range(spec.days))
    tasks = [tuple(todo[at : at + days_per_task]) for at in range(0, len(todo), days_per_task)]
    write = partial(_write_days, spec, out, customers_per_block)
    done_days = None if progress is None else _count_days(progress, len(todo), days_per_task)
    parts = [part for parts in cluster.map(write, tasks, done_days) for part in parts]
    sync_folder(out)
    scenarios: Counter[int] = Counter()
    digest = hashlib.sha256()
    for part in parts:
        scenarios.update(part.scenarios)
        digest.update(part.digest.encode())
    return GenerateReport(
        rows=sum(part.rows for part in parts),
        bytes=sum(part.bytes for part in parts),
        files=len(parts),
        frauds=sum(part.frauds for part in parts),
        scenarios=dict(sorted(scenarios.items())),
        digest=digest.hexdigest(),
    )


def _count_days(
    progress: Callable[[int, int], None], days: int, days_per_task: int
) -> Callable[[int, int], None]:
    return lambda done, _: progress(min(done * days_per_task, days), days)


def _write_days(
    spec: GeneratorSpec, out: Path, customers_per_block: int, days: tuple[int, ...]
) -> list[GenerateReport]:
    reports = []
    for day in days:
        table = make_day(spec, day, customers_per_block=customers_per_block)
        size = write_parquet(table, day_path(out, spec.start + timedelta(days=day)))
        counts = np.bincount(table["fraud_scenario"].to_numpy(), minlength=1)
        scenarios = {number: int(rows) for number, rows in enumerate(counts) if number and rows}
        reports.append(
            GenerateReport(
                rows=table.num_rows,
                bytes=size,
                files=1,
                frauds=sum(scenarios.values()),
                scenarios=scenarios,
                digest=digest_of(table),
            )
        )
    return reports


def digest_of(table: pa.Table) -> str:
    """Return the SHA-256 of a table's column names and values, the same for any chunks."""
    digest = hashlib.sha256()
    for name in table.column_names:
        digest.update(name.encode())
        for chunk in table[name].chunks:
            digest.update(chunk.to_numpy().view(np.uint8).data)
    return digest.hexdigest()
