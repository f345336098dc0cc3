"""Processing's first step: one raw file becomes a clean part per day, and a quarantine file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.rawfiles import RawTable, UnreadableError, read_raw
from pipeline.data.rules import DUPLICATE, MALFORMED, Judged, judge
from pipeline.data.schema import TRANSACTIONS, write_parquet

Ints = NDArray[np.int64]

DAY_SECONDS = 86_400
ORDINALS_PER_SECOND = 1_000_000
MICROSECONDS = 1_000_000
PARTS_FOLDER = ".parts"


@dataclass(frozen=True, kw_only=True)
class Part:
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
class FileOutcome:
    """What phase 1 found in a raw file."""

    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    notes: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    first_id: int = 0
    last_id: int = -1
    unreadable: str | None = None


@dataclass(frozen=True, kw_only=True)
class Places:
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


def read_file(places: Places, file: int) -> FileOutcome:
    """Judge one raw file's rows, write its parts and its quarantine file."""
    path = places.files[file]
    try:
        raw = read_raw(path)
    except UnreadableError as error:
        return FileOutcome(unreadable=str(error))
    judged = judge(raw.table)
    sound = np.flatnonzero(judged.sound)
    ids = judged.columns["transaction_id"][sound] if len(sound) else np.empty(0, np.int64)
    repeated = _repeated(ids)
    bad_rows, reasons = _reasons(judged, sound[repeated])
    quarantine_rows(places.quarantine_file(file, "rows"), path.name, raw, bad_rows, reasons)
    _quarantine_malformed(places, file, raw)
    counts = Counter(reasons)
    counts.update([MALFORMED] * len(raw.malformed))
    kept = np.delete(sound, repeated)
    return FileOutcome(
        rows=raw.rows,
        reasons=counts,
        notes=judged.notes,
        parts=tuple(_write_parts(places, file, raw, judged, kept)) if len(kept) else (),
        first_id=int(ids.min()) if len(ids) else 0,
        last_id=int(ids.max()) if len(ids) else -1,
    )


def _repeated(ids: Ints) -> Ints:
    """Return the positions of ids that came before, in order."""
    if np.all(ids[1:] > ids[:-1]):
        return np.empty(0, np.int64)
    _, first = np.unique(ids, return_index=True)
    return np.delete(np.arange(len(ids)), first)


def _reasons(judged: Judged, repeated: Ints) -> tuple[Ints, list[str]]:
    """Return the rows that do not pass, in their order, and each one's reason."""
    reason = judged.reason.copy()
    reason[repeated] = len(judged.reasons)
    texts = [*judged.reasons, DUPLICATE]
    bad = np.flatnonzero(reason)
    return bad, [texts[code] for code in reason[bad]]


def quarantine_rows(
    path: Path, source_file: str, raw: RawTable, rows: Ints, reasons: list[str]
) -> None:
    """Write rows of a raw table as they were read, with where they were and why they are here."""
    if not len(rows):
        return
    table = raw.table.take(pa.array(rows))
    taken = {"source_file", "row_number", "reason"}
    table = table.rename_columns(
        [f"raw_{name}" if name in taken else name for name in table.column_names]
    )
    table = table.append_column("source_file", pa.array([source_file] * len(rows)))
    table = table.append_column("row_number", pa.array(raw.row_numbers[rows]))
    write_parquet(table.append_column("reason", pa.array(reasons)), path)


def _quarantine_malformed(places: Places, file: int, raw: RawTable) -> None:
    if not raw.malformed:
        return
    count = len(raw.malformed)
    table = pa.table(
        {
            "line": pa.array(raw.malformed.values(), pa.string()),
            "source_file": pa.array([places.files[file].name] * count),
            "row_number": pa.array(raw.malformed.keys(), pa.int64()),
            "reason": pa.array([MALFORMED] * count),
        }
    )
    write_parquet(table, places.quarantine_file(file, "lines"))


def _write_parts(
    places: Places, file: int, raw: RawTable, judged: Judged, kept: Ints
) -> list[Part]:
    """Write the rows ``kept`` in order of time, a file per day."""
    seconds = judged.columns["event_time"][kept]
    if np.any(seconds[1:] < seconds[:-1]):
        order = np.argsort(seconds, kind="stable")
        kept, seconds = kept[order], seconds[order]
    days = seconds // DAY_SECONDS
    edges = np.append(np.flatnonzero(np.diff(days, prepend=days[0] - 1)), len(days))
    parts = []
    for start, stop in pairwise(edges):
        rows = kept[start:stop]
        day = datetime.fromtimestamp(int(seconds[start]), UTC).date()
        part = Part(
            day=day,
            file=file,
            path=places.parts / f"{day.isoformat()}-{file:05d}.parquet",
            rows=len(rows),
        )
        # Rows that lie in one piece, as in most files, need no copy of the day.
        in_one_piece = bool(np.all(np.diff(rows) == 1))
        chosen = slice(int(rows[0]), int(rows[0]) + len(rows)) if in_one_piece else rows
        columns = {name: values[chosen] for name, values in judged.columns.items()}
        write_parquet(clean_table(columns, seconds[start:stop]), part.path)
        np.save(part.row_numbers, raw.row_numbers[chosen])
        parts.append(part)
    return parts


def clean_table(columns: dict[str, NDArray[Any]], seconds: Ints) -> pa.Table:
    """Return a clean table of rows in order, ``seconds`` [n] since 1970 never falling.

    The microseconds of ``event_time`` become each row's ordinal within its second.
    """
    starts = np.diff(seconds, prepend=seconds[0] - 1) > 0
    positions = np.arange(len(seconds))
    ordinals = positions - np.maximum.accumulate(np.where(starts, positions, 0))
    if ordinals.max() >= ORDINALS_PER_SECOND:
        crowded = datetime.fromtimestamp(int(seconds[ordinals.argmax()]), UTC)
        raise ValueError(
            f"more than {ORDINALS_PER_SECOND} payments in the second {crowded:%Y-%m-%d %H:%M:%S}; "
            "their order does not fit into microseconds"
        )
    event_time = (seconds * MICROSECONDS + ordinals).astype("datetime64[us]")
    return pa.table({**columns, "event_time": event_time}, schema=TRANSACTIONS)
