"""Watched process trees, and all processes of the machine, read from /proc.

Members are read at each sample through files that stay open. New ones are looked for once a
second, as the list of all processes is what costs; those that came and went in between are in the
counters of the parent that waited for them.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

from telemetry.collectors.machine import read_file
from telemetry.collectors.procfs import parse_status
from telemetry.collectors.proctree import (
    DISK_WAIT,
    Bytes,
    Key,
    Process,
    Reading,
    TreeAccount,
    Usage,
)

OWN = "recorder"
"""Entity of the recorder's own tree: it belongs to no other, whoever started it."""
SLOW_SHARE = 5
"""The I/O of a process whose other figures stand still is read in one look of this many, unless it
waits for a disk.

So is a kernel thread as a whole: a large machine has thousands of them, nearly all asleep.
"""
_READY = b"R"
"""State of /proc/<pid>/stat: running or ready to."""
_OTHER_FILES = 64
"""Files that the recorder has open besides two for each process."""


@dataclass(frozen=True, kw_only=True)
class TreeState:
    """One tree at one moment: counters in the order of ``USAGE``, and what its living ones hold."""

    usage: Usage
    rss_bytes: int
    threads: int
    processes: int
    ready: int = 0
    disk_waits: int = 0
    """Processes whose first thread ran or could have, and those where it waited for a disk."""
    peak_rss_bytes: int = 0
    swap_bytes: int = 0


Look = list[tuple[Process, Bytes | None]]
"""What was read of each process at one moment, a parent's before its children's; None: gone."""


@dataclass(kw_only=True)
class _Tree:
    """``whole``: all descendants but the recorder; else those alone that no other tree has."""

    root: int
    whole: bool
    adopter: Reading | None = None
    """The root as it was at first, if what its parent adopts later is of this tree."""
    account: TreeAccount = field(default_factory=TreeAccount)
    members: dict[int, Process] = field(default_factory=dict)
    peak_rss_bytes: int = 0
    swap_bytes: int = 0
    held: dict[int, tuple[Reading | None, int]] = field(default_factory=dict)
    """By process: how it was when its status was read last, and its swap then."""


class Forest:
    """The trees by entity. Not safe for several threads."""

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._processes: dict[int, Process] = {}
        self._trees: dict[str, _Tree] = {}
        self._all = TreeAccount()
        self._left: set[Key] = set()
        self._samples = self._scans = 0
        self._sampled: list[Process] | None = None
        self._most = _most_processes()
        self.out_of_files = False
        """Whether there were more processes than files that may be open."""

    def watch(self, entity: str, pid: int, *, orphans: bool = False) -> Reading:
        """Begin the tree of ``pid``; raises ProcessLookupError if there is no such process.

        ``orphans``: its parent adopts orphans and has no other children of that age, so what comes
        to it after ``pid`` belongs to the tree.
        """
        process, first = self._first(pid)
        tree = _Tree(root=pid, whole=entity.startswith("stage:"))
        if orphans:
            tree.adopter = first
        self._trees[entity] = tree
        self._join(tree, pid, process)
        return first

    def _first(self, pid: int) -> tuple[Process, Reading]:
        """A process and how it is now; what is known under its number may be one that has ended."""
        for _ in range(2):
            process = self._process(pid)
            first = process.look() if process is not None else None
            if process is not None and first is not None:
                return process, first
            self._forget(pid)
        raise ProcessLookupError(f"there is no process {pid}")

    def unwatch(self, entity: str) -> None:
        """End a tree; its processes stay out of the trees that are not whole."""
        tree = self._trees.pop(entity)
        for process in tree.members.values():
            if process.last is not None:
                self._left.add(process.last.order)

    def io_error(self, entity: str) -> OSError | None:
        """Why the I/O of a tree's root cannot be read."""
        tree = self._trees[entity]
        root = tree.members.get(tree.root)
        return root.io_error if root is not None else None

    def entities(self) -> list[str]:
        return list(self._trees)

    def sample(self) -> dict[str, TreeState]:
        """Look at the members of the stages' trees; the others' are looked at by ``scan`` alone."""
        return self.settle(self.read())

    def read(self) -> Look:
        """The first half of ``sample``: what the files of those processes say now.

        Each is to be settled, in order, before anything else is asked of the forest.
        """
        self._samples += 1
        if self._sampled is None:
            trees = [tree for tree in self._trees.values() if tree.whole]
            pids = {pid for tree in trees for pid in (*tree.members, *tree.account.others)}
            known = [self._processes[pid] for pid in pids if pid in self._processes]
            self._sampled = sorted(known, key=_order)
        turn = self._samples
        return [
            (process, process.read(with_io=(process.pid + turn) % SLOW_SHARE == 0))
            for process in self._sampled
        ]

    def settle(self, look: Look) -> dict[str, TreeState]:
        """The second half: account for what was read."""
        self._sampled = None
        now = {}
        for process, found in look:
            if self._processes.get(process.pid) is not process:
                continue  # it was gone at an earlier look
            one = None if found is None else process.take(found)
            if one is None:
                self._forget(process.pid)
            else:
                now[process.pid] = one
        return self._update({name: one for name, one in self._trees.items() if one.whole}, now)

    def scan(self, *, whole: bool = False) -> tuple[dict[str, TreeState], TreeState]:
        """Look at all processes; returns the trees with their new members, and the sum of all.

        Not ``whole``, of the kernel's threads only those whose turn it is are asked.
        """
        self._sampled = None
        present = {int(name) for name in os.listdir(self._proc) if name.isdigit()}  # noqa: PTH208
        for pid in self._processes.keys() - present:
            self._forget(pid)
        for pid in present - self._processes.keys():
            self._process(pid)
        self._scans += 1
        known = list(self._processes.values())
        now = self._look(known, self._scans, self._watched(), whole=whole)
        self._adopt(now)
        for tree in self._trees.values():
            self._read_status(tree)
        states = self._update(self._trees, now)
        usage = self._all.update(now, {})
        self._left &= {one.order for one in now.values()}
        return states, self._state(usage, now.values())

    def without_io(self) -> int:
        """Number of processes whose I/O may not be read."""
        return sum(one.io_error is not None for one in self._processes.values())

    def close(self) -> None:
        for pid in list(self._processes):
            self._forget(pid)
        self._trees.clear()

    def _process(self, pid: int) -> Process | None:
        if pid not in self._processes:
            if len(self._processes) >= self._most:
                self.out_of_files = True
                return None
            with contextlib.suppress(OSError):  # it ended just now
                self._processes[pid] = Process(pid, self._proc)
        return self._processes.get(pid)

    def _forget(self, pid: int) -> None:
        process = self._processes.pop(pid, None)
        if process is not None:
            process.close()
        for tree in self._trees.values():
            tree.members.pop(pid, None)

    def _watched(self) -> set[int]:
        return {pid for tree in self._trees.values() for pid in tree.members}

    def _look(
        self,
        processes: Iterable[Process],
        turn: int,
        with_io: Container[int] = (),
        *,
        whole: bool = True,
    ) -> dict[int, Reading]:
        """Readings of the processes that are there, a parent's before its children's."""
        found = {}
        for process in sorted(processes, key=_order):
            in_turn = (process.pid + turn) % SLOW_SHARE == 0
            if process.is_kernel_thread and not (whole or in_turn):
                one = process.last
            else:
                one = process.look(with_io=in_turn or process.pid in with_io)
            if one is None:
                self._forget(process.pid)
            else:
                found[process.pid] = one
        return found

    def _adopt(self, now: Mapping[int, Reading]) -> None:
        """Let every tree have the children that its members have got since the scan before."""
        children: dict[int, list[int]] = {}
        for pid, one in now.items():
            children.setdefault(one.stat.ppid, []).append(pid)
        for tree in sorted(self._trees.values(), key=lambda one: not one.whole):
            barred = self._barred(tree, now)
            todo = list(tree.members)
            for pid in self._orphans(tree, children, now):
                if pid not in barred and pid not in tree.members:
                    self._join(tree, pid, self._processes[pid])
                    todo.append(pid)
            while todo:
                for pid in children.get(todo.pop(), ()):
                    if pid not in tree.members and pid not in barred:
                        self._join(tree, pid, self._processes[pid])
                        todo.append(pid)

    def _orphans(
        self, tree: _Tree, children: Mapping[int, list[int]], now: Mapping[int, Reading]
    ) -> list[int]:
        if tree.adopter is None:
            return []
        others = {pid for one in self._trees.values() if one is not tree for pid in one.members}
        brothers = children.get(tree.adopter.stat.ppid, [])
        return [
            pid for pid in brothers if pid not in others and now[pid].order > tree.adopter.order
        ]

    def _barred(self, tree: _Tree, now: Mapping[int, Reading]) -> set[int]:
        """Processes that do not belong to a tree although it has their parents."""
        own = self._trees.get(OWN)
        if tree.whole:
            return set(own.members) if own is not None else set()
        barred = {
            pid for other in self._trees.values() if other is not tree for pid in other.members
        }
        return barred | {pid for pid, one in now.items() if one.order in self._left}

    def _join(self, tree: _Tree, pid: int, process: Process) -> None:
        tree.members[pid] = process
        if tree.whole:
            for other in self._trees.values():
                shared = other.whole or other is tree or pid == other.root
                if not shared and other.members.pop(pid, None) is not None:
                    other.account.leave(pid)

    def _read_status(self, tree: _Tree) -> None:
        """Peak and swap of the members; a process that has ended has none any more."""
        held = {}
        for pid, process in tree.members.items():
            seen = tree.held.get(pid)
            if seen is None or seen[0] is not process.last:
                # One that slept since then has neither got nor lost a page.
                seen = None
                status = read_file(f"{self._proc}/{pid}/status")
                if status is not None:
                    peak_bytes, swap_bytes = parse_status(status)
                    tree.peak_rss_bytes = max(tree.peak_rss_bytes, peak_bytes)
                    seen = process.last, swap_bytes
            if seen is not None:
                held[pid] = seen
        tree.held = held
        tree.swap_bytes = sum(swap_bytes for _, swap_bytes in held.values())

    def _update(
        self, trees: Mapping[str, _Tree], now: Mapping[int, Reading]
    ) -> dict[str, TreeState]:
        states = {}
        for entity, tree in trees.items():
            members = {pid: now[pid] for pid in tree.members if pid in now}
            others = {
                pid: one
                for pid, one in now.items()
                if pid not in members and one.stat.ppid in members
            }
            usage = tree.account.update(members, others)
            states[entity] = self._state(usage, members.values(), tree)
        return states

    def _state(
        self, usage: Usage, alive: Iterable[Reading], tree: _Tree | None = None
    ) -> TreeState:
        stats = [one.stat for one in alive]
        states = [stat.state for stat in stats]
        if tree is not None and stats:  # the status files, with the true peak, are read seldom
            seen_bytes = self._page * max([stat.rss_pages for stat in stats])
            tree.peak_rss_bytes = max(tree.peak_rss_bytes, seen_bytes)
        return TreeState(
            usage=usage,
            rss_bytes=self._page * sum([stat.rss_pages for stat in stats]),
            threads=sum([stat.threads for stat in stats]),
            processes=len(stats),
            ready=states.count(_READY),
            disk_waits=states.count(DISK_WAIT),
            peak_rss_bytes=tree.peak_rss_bytes if tree is not None else 0,
            swap_bytes=tree.swap_bytes if tree is not None else 0,
        )


def _most_processes() -> int:
    """How many processes can be kept open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 31 if soft == resource.RLIM_INFINITY else max(0, soft - _OTHER_FILES) // 2


def _order(process: Process) -> Key:
    """Parents first; one that was never looked at is younger than all that were."""
    return process.last.order if process.last is not None else (1 << 63, process.pid)
