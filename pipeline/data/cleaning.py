"""Processing: raw daily files become clean daily files, and every row that does not has a reason.

1. Each raw file, a task of its own: rows are judged, the sound ones written as one part per day.
2. Where the ids of files overlap, ids met in an earlier file are found, by buckets of ids.
3. A day with one part is that part, renamed. A day with several, or with such ids, is merged.

Memory is that of the largest raw file, or of the largest day, per task; nothing grows with the
number of files. Rows in = rows out + rows in quarantine, or an assertion fails.
"""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.cluster import Cluster
from pipeline.artifact import sync_folder
from pipeline.data.cleanparts import (
    MICROSECONDS,
    FileOutcome,
    Ints,
    Part,
    Places,
    clean_table,
    read_file,
)
from pipeline.data.rawfiles import list_raw_files
from pipeline.data.repeats import IDS_PER_BUCKET, find_repeats, quarantine_repeats
from pipeline.data.rules import DUPLICATE
from pipeline.data.schema import day_path, write_parquet

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class CleanReport:
    """What became of the raw files.

    ``rows_in = rows_out + rows_quarantined``, over the readable files. ``reasons`` counts the
    quarantined rows, ``unreadable`` gives the reason of each file whose rows cannot be counted,
    ``notes`` counts the files in which something was put right or left aside.
    """

    rows_in: int
    rows_out: int
    rows_quarantined: int
    reasons: dict[str, int]
    unreadable: dict[str, str]
    notes: dict[str, int]
    files: int
    bytes_in: int
    bytes_out: int


def clean(
    source: Path,
    out: Path,
    quarantine: Path,
    cluster: Cluster,
    progress: Callable[[int, int], None] | None = None,
    *,
    ids_per_bucket: int = IDS_PER_BUCKET,
) -> CleanReport:
    """Clean all raw files of ``source`` into daily files in ``out``, synced to the device.

    A row's order in ``out`` is that of its second, then of the raw files by name, then of the rows
    in the raw file; its ordinal in the second becomes ``event_time``'s microseconds. Of rows with
    the same id the first sound one in that raw order stays. ``progress`` gets (tasks done, tasks
    known so far). Raises FileNotFoundError without raw files, ValueError if no row is sound.
    """
    files, others = list_raw_files(source)
    places = Places(files=tuple(files), out=out, quarantine=quarantine)
    for folder in (out, quarantine, places.parts):
        folder.mkdir(parents=True, exist_ok=True)
    steps = _Steps(cluster=cluster, progress=progress)
    outcomes = steps.map(partial(read_file, places), range(len(files)))
    repeats = find_repeats(places, outcomes, steps.map, ids_per_bucket)
    bytes_out, days = _publish(places, outcomes, repeats, steps)
    steps.map(partial(quarantine_repeats, places), sorted(repeats))
    shutil.rmtree(places.parts)
    sync_folder(out)
    sync_folder(quarantine)

    reasons = sum((outcome.reasons for outcome in outcomes), Counter[str]())
    if repeats:
        reasons[DUPLICATE] += sum(repeats.values())
    notes = Counter(note for outcome in outcomes for note in outcome.notes)
    notes.update(f"{name} is not a raw file" for name in others)
    report = CleanReport(
        rows_in=sum(outcome.rows for outcome in outcomes),
        rows_out=sum(part.rows for o in outcomes for part in o.parts) - sum(repeats.values()),
        rows_quarantined=reasons.total(),
        reasons=dict(reasons.most_common()),
        unreadable={
            file.name: outcome.unreadable
            for file, outcome in zip(files, outcomes, strict=True)
            if outcome.unreadable is not None
        },
        notes=dict(notes),
        files=days,
        bytes_in=sum(file.stat().st_size for file in files),
        bytes_out=bytes_out,
    )
    assert report.rows_in == report.rows_out + report.rows_quarantined, report
    if report.rows_out == 0:
        raise ValueError(_nothing_left(source, report))
    return report


@dataclass(kw_only=True)
class _Steps:
    """Counts the tasks of all steps together for one progress."""

    cluster: Cluster
    progress: Callable[[int, int], None] | None
    done: int = 0
    known: int = 0

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Run one step's tasks."""
        self.known += len(items)
        results = self.cluster.map(function, items, self._tell)
        self.done += len(items)
        return results

    def _tell(self, done: int, _: int) -> None:
        if self.progress:
            self.progress(self.done + done, self.known)


def _publish(
    places: Places, outcomes: Sequence[FileOutcome], repeats: dict[int, int], steps: _Steps
) -> tuple[int, int]:
    """Put each day's clean file into its place; return bytes and files."""
    by_day: defaultdict[date, list[Part]] = defaultdict(list)
    for outcome in outcomes:
        for part in outcome.parts:
            by_day[part.day].append(part)
    to_merge, sizes = [], []
    for day, parts in sorted(by_day.items()):
        if len(parts) > 1 or parts[0].file in repeats:
            to_merge.append((day, tuple(parts)))
        else:
            path = parts[0].path.rename(day_path(places.out, day))
            sizes.append(path.stat().st_size)
    sizes += steps.map(partial(_merge, places, frozenset(repeats)), to_merge)
    written = [size for size in sizes if size]
    return sum(written), len(written)


def _merge(places: Places, repeating: frozenset[int], job: tuple[date, tuple[Part, ...]]) -> int:
    """Write a day made of several files' parts, without repeats; return its bytes, 0 if empty."""
    day, parts = job
    tables = []
    for part in parts:
        table = pq.read_table(part.path)
        if part.file in repeating:
            again = np.isin(np.load(part.row_numbers), np.load(places.repeated(part.file)))
            table = table.filter(pa.array(~again))
        tables.append(table)
    rows = pa.concat_tables(tables)
    if not rows.num_rows:
        return 0
    # A part is in the order of its raw rows within a second, and parts are in that of the files.
    seconds: Ints = rows["event_time"].to_numpy().astype(np.int64) // MICROSECONDS
    order = np.argsort(seconds, kind="stable")
    columns = {name: rows[name].to_numpy()[order] for name in rows.column_names}
    return write_parquet(clean_table(columns, seconds[order]), day_path(places.out, day))


def _nothing_left(source: Path, report: CleanReport) -> str:
    if report.unreadable:
        name, reason = next(iter(report.unreadable.items()))
        files = f"{len(report.unreadable)} files cannot be read, such as {name}: {reason}"
    else:
        files = "all files can be read"
    reasons = "; ".join(f"{reason}: {rows} rows" for reason, rows in report.reasons.items())
    return (
        f"no transaction is left of the raw files in {source}: {files}; of {report.rows_in} rows "
        f"{report.rows_quarantined} failed ({reasons or 'there were none'})"
    )
