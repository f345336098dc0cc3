"""Processing's second step: ids that an earlier raw file had already.

Within a file they are known by then. Files whose ranges of ids overlap no other's are left out;
for the others the ids are scattered into buckets, each small enough to be sorted whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.data.cleanparts import FileOutcome, Part, Places, quarantine_rows
from pipeline.data.rawfiles import read_raw
from pipeline.data.rules import DUPLICATE

Ints = NDArray[np.int64]
Item = TypeVar("Item")
Result = TypeVar("Result")

IDS_PER_BUCKET = 4_000_000
"""Ids of one bucket are sorted together: about 100 bytes each."""
SCATTER = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: its multiples spread neighbouring ids over all buckets."""
HIGH_WORD = np.uint64(32)


class Run(Protocol):
    """Runs a function over items, in order."""

    def __call__(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> list[Result]: ...


def find_repeats(
    places: Places, outcomes: Sequence[FileOutcome], run: Run, ids_per_bucket: int
) -> dict[int, int]:
    """Return how many ids each file repeats, for files that do.

    Their raw row numbers lie in ``places.repeated(file)``.
    """
    files = overlapping([(outcome.first_id, outcome.last_id) for outcome in outcomes])
    if not files:
        return {}
    rows = sum(part.rows for file in files for part in outcomes[file].parts)
    buckets = -(-rows // ids_per_bucket)
    run(partial(_scatter, places, buckets), [(file, outcomes[file].parts) for file in files])
    found = run(partial(_search, places, files), range(buckets))
    repeats = {}
    for file in sorted({file for in_bucket in found for file in in_bucket}):
        rows_of_file = [
            np.load(_found(places, bucket, file))
            for bucket, in_bucket in enumerate(found)
            if file in in_bucket
        ]
        np.save(places.repeated(file), np.sort(np.concatenate(rows_of_file)))
        repeats[file] = sum(len(numbers) for numbers in rows_of_file)
    return repeats


def overlapping(ranges: Sequence[tuple[int, int]]) -> list[int]:
    """Return the numbers of those ranges (first, last) that share a value with another one."""
    shared: set[int] = set()
    filled = sorted(
        (first, last, number) for number, (first, last) in enumerate(ranges) if first <= last
    )
    reach, reaching = -1, -1
    for first, last, number in filled:
        if reaching >= 0 and first <= reach:
            shared |= {number, reaching}
        if reaching < 0 or last > reach:
            reach, reaching = last, number
    return sorted(shared)


def _scattered(places: Places, bucket: int, file: int) -> Path:
    return places.parts / f"ids-{bucket}-{file}.npy"


def _found(places: Places, bucket: int, file: int) -> Path:
    return places.parts / f"found-{bucket}-{file}.npy"


def _scatter(places: Places, buckets: int, job: tuple[int, tuple[Part, ...]]) -> None:
    """Write a file's sound ids and their row numbers, [2, n], by bucket."""
    file, parts = job
    ids = np.concatenate([_ids(part) for part in parts])
    rows = np.concatenate([np.load(part.row_numbers) for part in parts])
    bucket = ((ids.astype(np.uint64) * SCATTER) >> HIGH_WORD) % np.uint64(buckets)
    for number in range(buckets):
        chosen = bucket == number
        np.save(_scattered(places, number, file), np.stack([ids[chosen], rows[chosen]]))


def _ids(part: Part) -> Ints:
    return np.asarray(pq.read_table(part.path, columns=["transaction_id"])["transaction_id"])


def _search(places: Places, files: Sequence[int], bucket: int) -> list[int]:
    """Write the rows whose id an earlier file has, per file; return the files that have some."""
    loaded = [np.load(_scattered(places, bucket, file)) for file in files]
    ids, rows = np.concatenate(loaded, axis=1)
    of_file = np.repeat(files, [part.shape[1] for part in loaded])
    _, first = np.unique(ids, return_index=True)
    again = np.delete(np.arange(len(ids)), first)
    repeating = [int(file) for file in np.unique(of_file[again])]
    for file in repeating:
        np.save(_found(places, bucket, file), rows[again[of_file[again] == file]])
    return repeating


def quarantine_repeats(places: Places, file: int) -> None:
    """Write the rows of a file whose ids an earlier file has, as they were read."""
    raw = read_raw(places.files[file])
    rows = np.flatnonzero(np.isin(raw.row_numbers, np.load(places.repeated(file))))
    quarantine_rows(
        places.quarantine_file(file, "repeats"),
        places.files[file].name,
        raw,
        rows,
        [DUPLICATE] * len(rows),
    )
