"""Watched process trees, and all processes of the machine, read from /proc.

Members are read at each sample through files that stay open. New ones are looked for once a
second, as the list of all processes is what costs; those that came and went in between are in the
counters of the parent that waited for them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from telemetry.collectors.procfs import parse_status
from telemetry.collectors.proctree import Key, Process, Reading, TreeAccount, Usage

OWN = "recorder"
"""Entity of the recorder's own tree: it belongs to no other, whoever started it."""
SLOW_SHARE = 5
"""The I/O of a process whose other figures stand still is read in one scan of this many."""


@dataclass(frozen=True, kw_only=True)
class TreeState:
    """One tree at one moment: counters in the order of ``USAGE``, and what its living ones hold."""

    usage: Usage
    rss_bytes: int
    threads: int
    processes: int
    peak_rss_bytes: int = 0
    swap_bytes: int = 0


@dataclass(kw_only=True)
class _Tree:
    """``whole``: all descendants but the recorder; else those alone that no other tree has."""

    root: int
    whole: bool
    account: TreeAccount = field(default_factory=TreeAccount)
    members: dict[int, Process] = field(default_factory=dict)
    peak_rss_bytes: int = 0
    swap_bytes: int = 0


class Forest:
    """The trees by entity. Not safe for several threads."""

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._processes: dict[int, Process] = {}
        self._trees: dict[str, _Tree] = {}
        self._all = TreeAccount()
        self._left: set[Key] = set()
        self._scans = 0

    def watch(self, entity: str, pid: int) -> Reading:
        """Begin the tree of ``pid``; raises ProcessLookupError if there is no such process."""
        process = self._process(pid)
        first = process.look() if process is not None else None
        if process is None or first is None:
            self._forget(pid)
            raise ProcessLookupError(f"there is no process {pid}")
        tree = _Tree(root=pid, whole=entity.startswith("stage:"))
        self._trees[entity] = tree
        self._join(tree, pid, process)
        return first

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
        """Look at the members of all trees."""
        mine = {pid for tree in self._trees.values() for pid in tree.members}
        now = self._look(self._processes[pid] for pid in mine | self._leavers())
        return self._update(now)

    def scan(self) -> tuple[dict[str, TreeState], TreeState]:
        """Look at all processes; returns the trees with their new members, and the sum of all."""
        self._scans += 1
        present = {int(name) for name in os.listdir(self._proc) if name.isdigit()}  # noqa: PTH208
        for pid in self._processes.keys() - present:
            self._forget(pid)
        for pid in present - self._processes.keys():
            self._process(pid)
        now = self._look(list(self._processes.values()), thrifty=True)
        self._adopt(now)
        for tree in self._trees.values():
            self._read_status(tree)
        states = self._update(now)
        usage = self._all.update(now, {})
        self._left &= {one.order for one in now.values()}
        return states, self._state(usage, now.values())

    def unreadable(self) -> tuple[list[int], int]:
        """Processes whose I/O may not be read, and the number of all."""
        pids = [pid for pid, one in self._processes.items() if one.io_error is not None]
        return pids, len(self._processes)

    def close(self) -> None:
        for pid in list(self._processes):
            self._forget(pid)
        self._trees.clear()

    def _process(self, pid: int) -> Process | None:
        if pid not in self._processes:
            with contextlib.suppress(OSError):  # it ended just now
                self._processes[pid] = Process(pid, self._proc)
        return self._processes.get(pid)

    def _forget(self, pid: int) -> None:
        process = self._processes.pop(pid, None)
        if process is not None:
            process.close()
        for tree in self._trees.values():
            tree.members.pop(pid, None)

    def _leavers(self) -> set[int]:
        return {pid for _, pid in self._left if pid in self._processes}

    def _look(self, processes: Iterable[Process], *, thrifty: bool = False) -> dict[int, Reading]:
        """Readings of the processes that are there, a parent's before its children's."""
        watched = {pid for tree in self._trees.values() for pid in tree.members}
        found = {}
        for process in sorted(processes, key=_order):
            slow = thrifty and process.pid not in watched
            one = process.look(with_io=not slow or (process.pid + self._scans) % SLOW_SHARE == 0)
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
            while todo:
                for pid in children.get(todo.pop(), ()):
                    if pid not in tree.members and pid not in barred:
                        self._join(tree, pid, self._processes[pid])
                        todo.append(pid)

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
        tree.swap_bytes = 0
        for pid in tree.members:
            with contextlib.suppress(OSError), open(f"{self._proc}/{pid}/status", "rb") as file:  # noqa: PTH123
                peak_bytes, swap_bytes = parse_status(file.read())
                tree.peak_rss_bytes = max(tree.peak_rss_bytes, peak_bytes)
                tree.swap_bytes += swap_bytes

    def _update(self, now: Mapping[int, Reading]) -> dict[str, TreeState]:
        states = {}
        for entity, tree in self._trees.items():
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
        return TreeState(
            usage=usage,
            rss_bytes=self._page * sum(stat.rss_pages for stat in stats),
            threads=sum(stat.threads for stat in stats),
            processes=len(stats),
            peak_rss_bytes=tree.peak_rss_bytes if tree is not None else 0,
            swap_bytes=tree.swap_bytes if tree is not None else 0,
        )


def _order(process: Process) -> Key:
    """Parents first; one that was never looked at is younger than all that were."""
    return process.last.order if process.last is not None else (1 << 63, process.pid)
