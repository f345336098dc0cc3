"""Processing's second step: ids that an earlier raw file had already.

Within a file they are known by then. Files whose ranges of ids overlap no other's are left out;
for the others the ids are scattered into buckets, each small enough to be sorted whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
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


class Mapper(Protocol):
    """Runs a function over items, in order."""

    def __call__(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        ...


def find_repeats(
    places: Places, outcomes: Sequence[FileOutcome], run: Mapper, ids_per_bucket: int
) -> dict[int, int]:
    """Return how many ids each file repeats, for files that do.

    Their raw row numbers lie in ``places.repeated(file)``.
    """
    files = overlapping([(outcome.first_id, outcome.last_id) for outcome in outcomes])
    if not files:
        return {}
    rows = sum(part.rows for file in files for part in outcomes[file].parts)
    buckets = -(-rows // ids_per_bucket)
    run(
        partial(_scatter, places, buckets), [(file, outcomes[file].parts) for file in files]
    )
    found = run(partial(_repeats_in_bucket, places, files), range(buckets))
    repeats = {}
    for file in sorted({file for bucket in found for file in bucket}):
        of_file = [np.load(_found(places, bucket, file)) for bucket in range(buckets) if file in found[bucket]]
        np.save(places.repeated(file), np.sort(np.concatenate(of_file)))
        repeats[file] = sum(len(rows) for rows in of_file)
    return repeats


def overlapping(ranges: Sequence[tuple[int, int]]) -> list[int]:
    """Return the numbers of those ranges (first, last) that share a value with another one."""
    shared: set[int] = set()
    filled = sorted((first, last, number) for number, (first, last) in enumerate(ranges) if first <= last)
    reach, reaching = -1, -1
    for first, last, number in filled:
        if reaching >= 0 and first <= reach:
            shared |= {number, reaching}
        if reaching < 0 or last > reach:
            reach, reaching = last, number
    return sorted(shared)
