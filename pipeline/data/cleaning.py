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
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infra.cluster import Cluster, Item, Result
from pipeline.data.rawfiles import RawTable, UnreadableError, list_raw_files, read_raw
from pipeline.data.rules import DUPLICATE, MALFORMED, Judged, judge
from pipeline.data.schema import TRANSACTIONS, day_path, sync_folder, write_parquet

Ints = NDArray[np.int64]

DAY_SECONDS = 86_400
ORDINALS_PER_SECOND = 1_000_000
IDS_PER_BUCKET = 4_000_000
"""Ids of one bucket are sorted together: about 100 bytes each."""
SCATTER = np.uint64(0x9E3779B97F4A7C15)
PARTS_FOLDER = ".parts"


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


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Sound rows of one raw file that fall on one day, as a clean file of their own.

    Beside ``path`` lies the raw row number of each row, ``.npy``.
    """

    day: date
    file: int
    path: Path
    rows: int

    @property
    def row_numbers(self) -> Path:
        return self.path.with_suffix(".npy")


@dataclass(frozen=True, kw_only=True)
class _FileOutcome:
    """What phase 1 found in a raw file."""

    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    notes: tuple[str, ...] = ()
    parts: tuple[_Part, ...] = ()
    first_id: int = 0
    last_id: int = -1
    unreadable: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Folders and raw files that all tasks know."""

    files: tuple[Path, ...]
    out: Path
    quarantine: Path

    @property
    def parts(self) -> Path:
        return self.out / PARTS_FOLDER

    def quarantine_file(self, file: int, what: str) -> Path:
        return self.quarantine / f"quarantine-{file:05d}-{self.files[file].stem}-{what}.parquet"

    def repeated(self, file: int) -> Path:
        return self.parts / f"repeated-{file:05d}.npy"


def clean(
    source: Path,
    out: Path,
    quarantine: Path,
    cluster: Cluster,
    progress: Callable[[int, int], None] | None = None,
) -> CleanReport:
    """Clean all raw files of ``source`` into daily files in ``out``, synced to the device.

    A row's order in ``out`` is that of its second, then of the raw files by name, then of the rows
    in the raw file; its ordinal in the second becomes ``event_time``'s microseconds. Of rows with
    the same id the first sound one in that raw order stays. ``progress`` gets (tasks done, tasks
    known so far). Raises FileNotFoundError without raw files, ValueError if no row is sound.
    """
    files, others = list_raw_files(source)
    places = _Places(files=tuple(files), out=out, quarantine=quarantine)
    for folder in (out, quarantine, places.parts):
        folder.mkdir(parents=True, exist_ok=True)
    steps = _Steps(cluster, progress)
    outcomes = steps.map(partial(_read_file, places), range(len(files)))
    repeats = _find_repeats(places, outcomes, steps)
    bytes_out, days = _publish(places, outcomes, repeats, steps)
    steps.map(partial(_quarantine_repeats, places), sorted(repeats))
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
