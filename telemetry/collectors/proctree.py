"""Accounts of process trees: what they used, children that are gone included.

The kernel adds a process's counters to its parent's when the parent waits for it, so a sum over a
tree keeps what its dead used, as long as each is counted once. ``TreeAccount`` sees to that and is
pure; ``Process`` reads /proc.

Whether a parent took a vanished child over is told by page faults: they move together with CPU
time and I/O, no process runs without them, and unlike CPU time they are not cut to whole ticks.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from telemetry.collectors.procfs import Io, Stat, is_kernel_thread, parse_io, parse_stat

Usage = tuple[int, ...]
"""Counters of one or more processes with their reaped children, in the order of ``USAGE``."""
USAGE = ("user_ticks", "system_ticks", "minor_faults", "major_faults", *Io._fields)
_BEFORE_IO = USAGE.index(Io._fields[0])
NOTHING: Usage = (0,) * len(USAGE)
_NO_IO = Io(0, 0, 0, 0, 0)
_DEAD = b"X"
"""State of a process that is being reaped: its parent may have its counters already."""
DISK_WAIT = b"D"
"""State of an uninterruptible sleep, mostly for a disk; of a process, that of its first thread."""

Bytes = tuple[bytes, bytes]
"""What /proc/<pid>/stat and /proc/<pid>/io said at one moment."""
Key = tuple[int, int]
"""A process for good: its start in ticks and its number, as numbers are given again."""


class Reading(NamedTuple):
    """One look at one process."""

    stat: Stat
    usage: Usage
    has_io: bool = True
    """False where its I/O cannot be read: what it takes over from children is not seen either."""

    @property
    def order(self) -> Key:
        """Start and number: a parent comes before its children."""
        return self.stat.start_ticks, self.stat.pid


def reading(stat: Stat, io: Io, *, has_io: bool = True) -> Reading:
    """Put together what two files say of one process."""
    usage = (
        stat.utime + stat.cutime,
        stat.stime + stat.cstime,
        stat.minflt + stat.cminflt,
        stat.majflt + stat.cmajflt,
        *io,
    )
    return Reading(stat, usage, has_io)


class TreeAccount:
    """The sum over a set of processes that come and go; it never goes back. No I/O.

    A child is read after its parent. One that is waited for in between is seen as gone one update
    before its parent has its counters: until then its last ones are kept, and never counted twice.
    """

    def __init__(self) -> None:
        self._members: dict[int, Reading] = {}
        self._others: dict[int, Reading] = {}
        self._owing: list[tuple[int, Usage]] = []
        self._left: list[Reading] = []
        self._lost: Usage = NOTHING
        self._debt: Usage = NOTHING
        self._total: Usage = NOTHING

    def update(self, now: Mapping[int, Reading], others: Mapping[int, Reading]) -> Usage:
        """Take in the set as it is now; returns what it has used so far.

        ``others`` are processes outside of the set whose parent is in it: what the parent takes
        over from them when they end is not the set's.
        """
        if now == self._members and others == self._others and not (self._owing or self._left):
            return self._total  # everything slept
        left, gone = _gone(self._others, others), _gone(self._members, now)
        if left or gone or self._left or self._owing:
            growth = {
                pid: max(0, _taken_over(one) - _taken_over(self._members[pid]))
                for pid, one in now.items()
                if _same(self._members.get(pid), one)
            }
            self._settle_others(left, growth)
            self._settle_members(gone, now, growth)
        self._members, self._others = dict(now), dict(others)
        usages = [one.usage for one in now.values()]
        usages += [owed for _, owed in self._owing]
        held = _minus(map(sum, zip(NOTHING, self._lost, *usages, strict=True)), self._debt)
        self._total = tuple(map(max, self._total, held))
        return self._total

    @property
    def others(self) -> Collection[int]:
        """Children of members that are no members: who looks again has to look at them too."""
        return self._others.keys()

    def leave(self, pid: int) -> None:
        """Let a process that is found to belong elsewhere go, without taking it for dead."""
        self._members.pop(pid, None)

    def _settle_others(self, gone: list[Reading], growth: dict[int, int]) -> None:
        unpaid = []
        for again, ones in ((True, self._left), (False, gone)):
            for one in ones:
                if _pay(growth, one.stat.ppid, one.usage):
                    self._debt = _plus(self._debt, one.usage)
                elif not again:
                    unpaid.append(one)
        self._left = unpaid

    def _settle_members(
        self, gone: list[Reading], now: Mapping[int, Reading], growth: dict[int, int]
    ) -> None:
        """Find out who has taken over what the members that are gone had used.

        What a parent took over is shared out by faults, to those first that must have arrived by
        now: where it is not enough, as much is kept as is missing, whoever it was from.
        """
        gone.sort(key=lambda one: one.order)
        due, self._owing = self._owing, []
        claims = [(parent, owed, True) for parent, owed in due if parent in now]
        claims += [(one.stat.ppid, one.usage, False) for one in gone]
        # A parent that went in the meantime has gone on with it, and so it is asked for once more.
        claims += [(parent, owed, False) for parent, owed in due if parent not in now]
        for pid, owed, last in claims:
            heir = self._heir(pid, now)
            paid, unpaid = (NOTHING, owed) if heir is None else _shared(growth, heir, owed)
            if heir is not None:
                self._keep_unseen(now[heir], paid)
            if heir is None or last:
                self._lost = _plus(self._lost, unpaid)  # nobody waited for it
            elif any(unpaid):
                self._owing.append((heir, unpaid))

    def _keep_unseen(self, heir: Reading, owed: Usage) -> None:
        if not heir.has_io:
            self._lost = _plus(self._lost, (0,) * _BEFORE_IO + owed[_BEFORE_IO:])

    def _heir(self, pid: int, now: Mapping[int, Reading]) -> int | None:
        """``pid`` or its nearest ancestor that lives: what a dead one had got went on to that."""
        for _ in range(len(self._members)):
            was = self._members.get(pid)
            if was is None:
                return None
            if _same(now.get(pid), was):
                return pid
            pid = was.stat.ppid
        return None


def _gone(before: Mapping[int, Reading], now: Mapping[int, Reading]) -> list[Reading]:
    return [one for pid, one in before.items() if not _same(now.get(pid), one)]


def _taken_over(one: Reading) -> int:
    return one.stat.cminflt + one.stat.cmajflt


def _pay(growth: dict[int, int], parent: int, owed: Usage) -> bool:
    """Whether ``parent`` took over at least what is owed; it is paid only once."""
    faults = _faults(owed)
    if growth.get(parent, -1) < faults:
        return False
    growth[parent] -= faults
    return True


def _shared(growth: dict[int, int], parent: int, owed: Usage) -> tuple[Usage, Usage]:
    """What is owed, parted into what ``parent`` took over and what it did not, by faults.

    Who never had a fault is a kernel thread, and nobody waits for those.
    """
    faults = _faults(owed)
    paid_faults = min(faults, growth.get(parent, 0))
    if not paid_faults:
        return NOTHING, owed
    growth[parent] -= paid_faults
    paid = tuple([value * paid_faults // faults for value in owed])
    return paid, _minus(owed, paid)


def _faults(usage: Usage) -> int:
    return usage[2] + usage[3]


def _same(one: Reading | None, other: Reading) -> bool:
    return one is not None and one.stat[1] == other.stat[1]


def _plus(a: Usage, b: Usage) -> Usage:
    return tuple([x + y for x, y in zip(a, b, strict=True)])


def _minus(a: Iterable[int], b: Usage) -> Usage:
    return tuple([x - y for x, y in zip(a, b, strict=True)])


class Process:
    """A process whose files stay open: a look costs two reads, and none of parsing if it slept."""

    def __init__(self, pid: int, proc: str) -> None:
        """Raises OSError if it is gone already."""
        self.pid = pid
        self._stat = os.open(f"{proc}/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        self._io = -1
        self.io_error: OSError | None = None
        try:
            self._io = os.open(f"{proc}/{pid}/io", os.O_RDONLY | os.O_CLOEXEC)
            os.pread(self._io, 1, 0)
        except OSError as error:
            self.io_error = error
        self._stat_bytes, self._io_bytes = b"", b""
        self._read_bytes = b"", b""
        self._waits = False
        self._io_values = _NO_IO
        self.last: Reading | None = None
        self.is_kernel_thread = False

    def look(self, *, with_io: bool = True) -> Reading | None:
        """The process now; None once it has been waited for.

        Without ``with_io`` its I/O is read only where something else has moved, or while it waits
        for a disk: that takes no CPU time that is seen, and is when its I/O moves.
        """
        found = self.read(with_io=with_io)
        return None if found is None else self.take(found)

    def read(self, *, with_io: bool = True) -> Bytes | None:
        """The first half of ``look``: what its files say now."""
        try:
            stat_bytes = os.pread(self._stat, 1024, 0)
        except ProcessLookupError:
            return None
        before, io_bytes = self._read_bytes
        if stat_bytes != before:
            with_io = True  # so it is after a wait, too
            self._waits = _state(stat_bytes) == DISK_WAIT
        if (with_io or self._waits) and self.io_error is None:
            try:  # noqa: SIM105 - so often that a context manager is felt
                io_bytes = os.pread(self._io, 512, 0)
            except OSError:
                pass  # it changed its user: its last values stand
        self._read_bytes = stat_bytes, io_bytes
        return self._read_bytes

    def take(self, found: Bytes) -> Reading | None:
        """The second half, which may come later, in the order of reading."""
        stat_bytes, io_bytes = found
        if self.last is not None and stat_bytes == self._stat_bytes and io_bytes == self._io_bytes:
            return self.last
        if self.last is None:
            self.is_kernel_thread = is_kernel_thread(stat_bytes)
        stat = parse_stat(self.pid, stat_bytes)
        if stat.state == _DEAD:
            return None
        if io_bytes != self._io_bytes:
            self._io_values = parse_io(io_bytes)
        self._stat_bytes, self._io_bytes = stat_bytes, io_bytes
        self.last = reading(stat, self._io_values, has_io=self.io_error is None)
        return self.last

    def close(self) -> None:
        os.close(self._stat)
        if self._io >= 0:
            os.close(self._io)


def _state(stat_bytes: bytes) -> bytes:
    at = stat_bytes.rfind(b")") + 2
    return stat_bytes[at : at + 1]
