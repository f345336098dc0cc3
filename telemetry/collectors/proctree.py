"""Accounts of process trees: what they used, children that are gone included.

The kernel adds a process's counters to its parent's when the parent waits for it. A sum over a tree
therefore keeps what its dead used, as long as each is counted once: ``Accounts`` sees to that.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from telemetry.collectors.proc_files import PidIo, PidStat, parse_pid_io, parse_pid_stat

Usage = tuple[int, ...]
USAGE = (
    "user",
    "system",
    "minor_faults",
    "major_faults",
    *PidIo._fields,
)
"""Fields of a ``Usage``, each with the share of reaped children in it; CPU in ticks."""
_NOTHING: Usage = (0,) * len(USAGE)
_NO_IO = PidIo(0, 0, 0, 0, 0)
_SLACK_TICKS = 2  # each of user and system is cut to whole ticks


class Reading(NamedTuple):
    """One look at one process."""

    start: int
    ppid: int
    usage: Usage
    from_children: int
    """CPU ticks in ``usage`` that came from reaped children."""
    rss_bytes: int
    threads: int


class _Debt(NamedTuple):
    """What processes that are gone had used and their parent has to take over."""

    parent_start: int
    taken_before: int
    owed: Usage
    processes: int


class Accounts:
    """The sum over a set of processes that come and go; it never goes back. Pure state, no I/O."""

    def __init__(self) -> None:
        self._seen: Mapping[int, Reading] = {}
        self._debts: dict[int, _Debt] = {}
        self._kept: Usage = _NOTHING
        self._total: Usage = _NOTHING

    def update(self, now: Mapping[int, Reading]) -> Usage:
        """Take in all processes of the set as they are now; returns what the set has used so far.

        Parents must have been read before their children: a child that is waited for between the
        two readings is then missing for one moment, and never counted twice.
        """
        gone = {pid: was for pid, was in self._seen.items() if not _same(now.get(pid), was)}
        carried: dict[int, Usage] = {}
        for parent, debt in self._debts.items():
            heir = now.get(parent)
            if heir is not None and heir.start == debt.parent_start:
                taken = heir.from_children - debt.taken_before
                if taken + _SLACK_TICKS * debt.processes < debt.owed[0] + debt.owed[1]:
                    self._kept = _sum(self._kept, debt.owed)  # nobody waited: it would be lost
            elif parent in gone:
                carried[parent] = debt.owed
            else:
                self._kept = _sum(self._kept, debt.owed)
        self._debts = {}
        for pid, was in gone.items():
            self._owe(was, _sum(was.usage, carried.get(pid, _NOTHING)))
        self._seen = dict(now)
        live = _NOTHING
        for reading in now.values():
            live = _sum(live, reading.usage)
        self._total = tuple(map(max, self._total, _sum(live, self._kept)))
        return self._total

    def _owe(self, was: Reading, owed: Usage) -> None:
        parent = self._seen.get(was.ppid)
        if parent is None:
            self._kept = _sum(self._kept, owed)
            return
        before = self._debts.get(was.ppid)
        if before is not None:
            owed = _sum(owed, before.owed)
        self._debts[was.ppid] = _Debt(
            parent_start=parent.start,
            taken_before=parent.from_children,
            owed=owed,
            processes=1 if before is None else before.processes + 1,
        )


def _same(now: Reading | None, was: Reading) -> bool:
    return now is not None and now.start == was.start


def _sum(a: Usage, b: Usage) -> Usage:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def reading(stat: PidStat, io: PidIo) -> Reading:
    """Put together what two files say of one process."""
    return Reading(
        start=stat.start,
        ppid=stat.ppid,
        usage=(
            stat.user + stat.children_user,
            stat.system + stat.children_system,
            stat.minor_faults + stat.children_minor_faults,
            stat.major_faults + stat.children_major_faults,
            *io,
        ),
        from_children=stat.children_user + stat.children_system,
        rss_bytes=stat.rss_bytes,
        threads=stat.threads,
    )


class _Member:
    """An open process: its files stay open, so that a look costs two reads."""

    def __init__(self, pid: int) -> None:
        self._stat = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        self._io: int | None = None
        with contextlib.suppress(OSError):  # another user's process
            self._io = os.open(f"/proc/{pid}/io", os.O_RDONLY | os.O_CLOEXEC)

    def look(self) -> Reading:
        """Raises ProcessLookupError when the process has been waited for."""
        stat = parse_pid_stat(os.pread(self._stat, 1024, 0))
        io = _NO_IO
        if self._io is not None:
            with contextlib.suppress(OSError):
                io = parse_pid_io(os.pread(self._io, 1024, 0))
        return reading(stat, io)

    def close(self) -> None:
        os.close(self._stat)
        if self._io is not None:
            os.close(self._io)


class Tree:
    """A process and all that descend from it, from its start on."""

    def __init__(self, root: int) -> None:
        """Raises ProcessLookupError or FileNotFoundError if the process is gone already."""
        self._members = {root: _Member(root)}
        self._accounts = Accounts()
        self.start_ticks = self._members[root].look().start

    def adopt(self, parents: Mapping[int, int]) -> None:
        """Take in the new descendants; ``parents`` has the parent of every process."""
        children: dict[int, list[int]] = {}
        for pid, parent in parents.items():
            children.setdefault(parent, []).append(pid)
        todo = list(self._members)
        while todo:
            for pid in children.get(todo.pop(), ()):
                if pid not in self._members:
                    with contextlib.suppress(OSError):  # it ended just now
                        self._members[pid] = _Member(pid)
                        todo.append(pid)

    def look(self) -> tuple[Usage, list[Reading]]:
        """What the tree has used since its root began, and its living processes."""
        now = {}
        for pid, member in list(self._members.items()):
            try:
                now[pid] = member.look()
            except OSError:
                member.close()
                del self._members[pid]
        return self._accounts.update(now), list(now.values())

    def pids(self) -> list[int]:
        """Its processes at the last look."""
        return list(self._members)

    def close(self) -> None:
        for member in self._members.values():
            member.close()
        self._members = {}


def read_all(pids: Iterable[int]) -> dict[int, Reading]:
    """Look at every process once, the oldest first; those of other users without their I/O."""
    found = {}
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", "rb", 0) as file:  # noqa: PTH123 - half the time of Path
                stat = parse_pid_stat(file.read(1024))
        except OSError:
            continue
        io = _NO_IO
        with contextlib.suppress(OSError), open(f"/proc/{pid}/io", "rb", 0) as file:  # noqa: PTH123
            io = parse_pid_io(file.read(1024))
        found[pid] = reading(stat, io)
    return found


def all_pids() -> list[int]:
    """Every process of this machine, in the order of their numbers: mostly parents first."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208
