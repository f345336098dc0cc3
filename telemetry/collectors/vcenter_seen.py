"""Which of vCenter's windows have been here: none is taken twice, and none is given up too soon.

Times are the stamps as the hosts gave them. A series is named by whose it is and its metric; a VM
keeps its name when it changes its host.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow.compute as pc

from telemetry.segments import SUFFIX, whole_batches

Key = tuple[str, str]
NS = 1_000_000_000
SLACK_NS = 2 * NS
"""Stamps that stray from their grid by less than this leave no gap."""


def owner(entity: str) -> str:
    """An entity without the host that it is on: ``vm:a@host/scsi0:0`` is of ``vm:a/scsi0:0``."""
    if not entity.startswith("vm:"):
        return entity
    name, _, host = entity.rpartition("@")
    _, slash, instance = host.partition("/")
    return f"{name}{slash}{instance}"


class Seen:
    """Ends of the windows that were taken, by series. Not safe for several threads."""

    def __init__(self, interval_s: float) -> None:
        self._interval_ns = round(interval_s * NS)
        self._taken: dict[Key, set[int]] = {}
        self._void: dict[Key, set[int]] = {}
        self._floors_ns: dict[Key, int] = {}

    def take(self, key: Key, ends_ns: Iterable[int], values: Iterable[int]) -> list[int]:
        """Positions of the samples that are new and there, in order of time; they are taken now.

        Of one stamp the first sample counts. A negative one is an answer and no sample: a later
        one with the same stamp is still taken.
        """
        taken = self._taken.setdefault(key, set())
        void = self._void.setdefault(key, set())
        floor_ns = self._floors_ns.get(key, 0)
        fresh: dict[int, int] = {}
        for place, (end_ns, value) in enumerate(zip(ends_ns, values, strict=True)):
            if end_ns in taken or end_ns <= floor_ns:
                continue
            if value < 0:
                void.add(end_ns)
            else:
                taken.add(end_ns)
                fresh[end_ns] = place
        return [fresh[end_ns] for end_ns in sorted(fresh)]

    def give_back(self, key: Key, end_ns: int) -> None:
        """A window that was taken and is not kept: it is taken again when it comes again."""
        self._taken.get(key, set()).discard(end_ns)

    def names(self) -> list[Key]:
        """The series that ever had a sample."""
        return [key for key, taken in self._taken.items() if taken]

    def has(self, key: Key) -> bool:
        """Whether the series ever had a sample."""
        return bool(self._taken.get(key))

    def newest_ns(self, key: Key) -> int | None:
        """End of the last window that was answered, be it with nothing."""
        return max(self._answered(key), default=None)

    def unbroken_ns(self, key: Key, since_ns: int) -> int:
        """Up to where all windows after ``since_ns`` were answered."""
        last_ns = max(since_ns, self._floors_ns.get(key, 0))
        for end_ns in sorted(self._answered(key)):
            if end_ns - self._interval_ns > last_ns + SLACK_NS:
                break
            last_ns = max(last_ns, end_ns)
        return last_ns

    def gaps(self, key: Key, since_ns: int, until_ns: int) -> list[tuple[int, int]]:
        """Stretches of (since, until] without a sample."""
        ends_ns = self._taken.get(key, set())
        found = []
        last_ns = since_ns
        for end_ns in sorted(ends_ns):
            start_ns = end_ns - self._interval_ns
            if end_ns <= last_ns or start_ns >= until_ns:
                continue
            if start_ns > last_ns + SLACK_NS:
                found.append((last_ns, start_ns))
            last_ns = end_ns
        if last_ns < until_ns:
            found.append((last_ns, until_ns))
        return found

    def forget(self, kept_ns: int) -> None:
        """Let go of what is older than a series' newest by this; nothing so old is taken any more.

        Each series by itself: the hosts that stamp them can be hours apart.
        """
        for key in {*self._taken, *self._void}:
            newest_ns = self.newest_ns(key)
            if newest_ns is None:
                continue
            floor_ns = self._floors_ns[key] = max(self._floors_ns.get(key, 0), newest_ns - kept_ns)
            for kept in (self._taken, self._void):
                kept[key] = {end_ns for end_ns in kept.get(key, ()) if end_ns > floor_ns}

    def _answered(self, key: Key) -> set[int]:
        return self._taken.get(key, set()) | self._void.get(key, set())

    @classmethod
    def read(cls, folder: Path, interval_s: float) -> Seen:
        """What the segments of the vCenter collectors in ``folder`` hold."""
        seen = cls(interval_s)
        for path in sorted(folder.glob(f"vcenter*{SUFFIX}")):
            for batch in whole_batches(path)[1]:
                windows = batch.filter(pc.is_valid(batch.column("start_ns")))
                columns = (windows.column(name) for name in ("entity", "metric", "ts_ns"))
                for entity, metric, end_ns in zip(
                    *(one.to_pylist() for one in columns), strict=True
                ):
                    seen._taken.setdefault((owner(entity), metric), set()).add(end_ns)
        return seen
