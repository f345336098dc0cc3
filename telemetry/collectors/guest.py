"""The guest: the whole machine, and the process trees of stages, from /proc and /sys."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from telemetry.clock import Clock
from telemetry.collectors import guest_metrics as metrics
from telemetry.collectors.cpu_speed import cpu_loop_us
from telemetry.collectors.forest import Forest, Look, TreeState
from telemetry.collectors.machine import MACHINE, Machine, Source, open_machine
from telemetry.collectors.newcomers import Newcomers
from telemetry.collectors.quota import QuotaAccount
from telemetry.samples import Metric, Sample, Samples, Series, samples_at

SLOW_S = 1.0
"""New processes, and all of them, are looked at so often: it costs ten times a usual sample."""
MOST_WAIT_S = 0.05
"""Who wants the rows of looks does not wait longer for one that is going on."""
MOST_UNREADABLE = 0.1
"""Share of processes without which the sum over all processes still says something of I/O."""
PROCESSES = "processes"
WATCHERS = ("runner", "recorder")
"""Trees that are no stage: looked at every ``SLOW_S``, and whenever a stage begins or ends."""
_FIRST_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of linux/proc_ns.h
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_TREE = tuple(metrics.TREE.values())
_TREE_SLOW = tuple(metrics.TREE_SLOW.values())
_NO_QUOTA = "its control groups have no account of a CPU quota"
_ALL = tuple(metrics.PROCESSES.values())
_OfMachine = list[tuple[Source, int, bytes]]
"""What the machine's files said, each with its time in ns."""
_Look = tuple[_OfMachine, int, Look]
"""What was read at one tick: of the machine; the time, ns; of the trees."""


@dataclass(kw_only=True)
class GuestCollector:
    """Samples /proc at ``period_s``; process trees come and go by ``watch`` and ``unwatch``.

    ``folder``: the use of its file system is sampled, because that is where a run's outputs go.
    ``losses``: what could not be read after opening. Safe for several threads.
    """

    clock: Clock
    period_s: float
    folder: Path | None = None
    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    name: str = field(default="guest", init=False)
    losses: list[str] = field(default_factory=list, init=False)

    def open(self) -> Sequence[Series]:
        """Open the files of the kernel and keep them; what is missing is absent with a reason.

        Raises what a file raises that is not as the kernel writes it; nothing stays open then.
        """
        self._lock = threading.Lock()
        self._machine: Machine = open_machine(self.proc, self.sys)
        self._newcomers = Newcomers(self._machine, self.proc, self.sys)
        self._forest = Forest(str(self.proc))
        self._trees: dict[str, tuple[Series, ...]] = {}
        self._plain: set[str] = set()  # trees of which everything can be read
        self._quotas: dict[str, QuotaAccount] = {}
        self._slow_at_s = 0.0
        self._read_looks: deque[_Look] = deque()
        self._rows: deque[Sample] = deque()
        """What is settled and was not given away yet: an error or a file that hangs loses none."""
        self._fixed = [
            *(
                Series(entity=MACHINE, metric=metrics.MACHINE_OTHER[name])
                for name in ("cpu_count", "cpu_loop_us")
            ),
            *(
                Series(entity="fs:runs", metric=metrics.MACHINE_OTHER[name])
                for name in ("fs_used_bytes", "fs_free_bytes")
                if self.folder is not None
            ),
        ]
        try:
            self._all = self._all_series()
        except BaseException:
            self.close()
            raise
        return [*self._machine.series, *self._machine.absent, *self._fixed, *self._all]

    @property
    def slow_periods(self) -> dict[str, float]:
        """Periods in s of what is not sampled each time, by metric or by entity and metric."""
        period_s = max(SLOW_S, self.period_s)
        names = [metric.name for metric in metrics.SLOW]
        names += [f"{PROCESSES} {metric.name}" for metric in _ALL]
        names += [f"{entity} {metric.name}" for entity in WATCHERS for metric in _TREE]
        return dict.fromkeys(names, period_s)

    def watch(
        self, entity: str, pid: int, *, from_start: bool = True, orphans: bool = False
    ) -> list[Sample]:
        """Begin to sample the tree below ``pid``.

        With ``from_start`` its counters begin with a 0 at the start of the process, true by
        definition. ``orphans``: what its parent adopts from now on is of the tree.
        Raises ProcessLookupError if there is no such process.
        """
        with self._lock:
            self._settle_looks()
            first = self._forest.watch(entity, pid, orphans=orphans)
            of_tree = self._tree_series(entity)
            if all(one.reason is None for one in of_tree):
                self._plain.add(entity)
            self._trees[entity] = (*of_tree, *self._quota_series(entity, pid))
            rows = self._look()
            if not from_start:
                return [*self._settled(), *rows]
            # A start is known to a tick; at the tick's end nothing that counts has been used.
            started_ns = (first.stat.start_ticks + 1) * 1_000_000_000 // _TICKS_PER_S
            age_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - started_ns
            ts_ns = min(self.clock.now_ns() - age_ns, min(row.ts_ns for row in rows) - 1)
            zero = [
                Sample(ts_ns, series, 0.0)
                for series in self._trees[entity]
                if series.reason is None and series.metric.kind == "counter"
            ]
            return [*self._settled(), *zero, *rows]

    def unwatch(self, entity: str) -> list[Sample]:
        """Take a last sample of a tree and forget it; its root may be a zombie."""
        with self._lock:
            if entity not in self._trees:
                return []
            self._settle_looks()
            rows = [*self._settled(), *self._look()]
            self._forest.unwatch(entity)
            del self._trees[entity]
            self._quotas.pop(entity, None)
            self._plain.discard(entity)
            return rows

    def series_of(self, entity: str) -> Sequence[Series]:
        """The series of a watched tree, absent ones with their reasons."""
        return [*self._trees[entity], *_never(entity)]

    def sample(self) -> Samples:
        """One look at everything that is due."""
        with self._lock:
            rows = self._looked()
            self._settle_looks()
            return [*rows, *self._settled()]

    def look(self) -> Samples:
        """As ``sample``, but what was read may stay as it is until ``settle`` is called.

        A tick finds memory and code cold: only to read, and to parse and account for several looks
        in one go, costs up to a fifth less.
        """
        with self._lock:
            return self._looked()

    def settle(self) -> Samples:
        """The rows of all looks before; while another thread is at it, or hangs in a file, of those
        that it has settled itself."""
        if self._lock.acquire(timeout=MOST_WAIT_S):
            try:
                self._settle_looks()
            finally:
                self._lock.release()
        return self._settled()

    def close(self) -> None:
        """Close all files. The same collector can be opened again."""
        sources = (*self._machine.fast, *self._machine.slow)
        self._machine = replace(self._machine, fast=(), slow=())  # closed again, they are others'
        for source in sources:
            source.close()
        self._forest.close()
        self._trees.clear()
        self._quotas.clear()
        self._plain.clear()

    def _looked(self) -> list[Sample]:
        now_s = time.monotonic()
        if now_s < self._slow_at_s:
            machine = self._read(self._machine.fast)
            trees = self._forest.read()
            self._read_looks.append((machine, self.clock.now_ns(), trees))
            return []
        self._settle_looks()
        read = self._read((*self._machine.fast, *self._machine.slow))
        self._rows += _rows(read)
        self._meet_newcomers({source.path: data for source, _, data in read})
        # At whole seconds of the monotonic clock, as writing is: so looks are settled only once.
        whole_s = math.floor((now_s + self.period_s / 2) / SLOW_S) * SLOW_S
        self._slow_at_s = whole_s + SLOW_S - self.period_s / 2
        self._rows += self._constant()
        self._rows += self._look(whole=False)
        return self._settled()

    def _meet_newcomers(self, said: Mapping[str, bytes]) -> None:
        """Sample disks that are new from now on. Interfaces are not: the sum over them is fixed."""
        try:
            sources = self._newcomers.disks(said)
        except OSError as error:  # one that went again meanwhile: the next look asks anew
            self._lose(f"a disk that is new cannot be sampled: {error}")
        else:
            self._machine = replace(self._machine, fast=(*self._machine.fast, *sources))
        for name in self._newcomers.interfaces(said):
            at = datetime.fromtimestamp(self.clock.now_ns() / 1e9, UTC).isoformat(
                timespec="seconds"
            )
            self._lose(f"net:{name} came into use at {at}: it is not sampled, nor in machine's sum")

    def _settle_looks(self) -> None:
        """Parse and account for the looks that were only read, in their order."""
        while self._read_looks:
            machine, ts_ns, trees = self._read_looks.popleft()
            for entity, state in self._forest.settle(trees).items():
                self._rows += self._tree_rows(ts_ns, entity, state, slow=False)
            self._rows += _rows(machine)

    def _settled(self) -> list[Sample]:
        """Give away what is settled; safe beside a thread that settles more."""
        found: list[Sample] = []
        with contextlib.suppress(IndexError):  # the other thread took the last one
            while True:
                found.append(self._rows.popleft())
        return found

    def _read(self, sources: Sequence[Source]) -> _OfMachine:
        found = []
        for source in sources:
            try:
                found.append((source, *source.read(self.clock.now_ns)))
            except OSError as error:
                self._lose(f"{source.path}: {error.strerror}")
        return found

    def _lose(self, loss: str) -> None:
        if loss not in self.losses:
            self.losses.append(loss)

    def _look(self, *, whole: bool = True) -> list[Sample]:
        """Look at all processes and at every tree."""
        states, machine = self._forest.scan(whole=whole)
        ts_ns = self.clock.now_ns()
        rows: list[Sample] = []
        for entity, state in states.items():
            rows += self._tree_rows(ts_ns, entity, state, slow=True)
        if self._forest.out_of_files:
            self._lose("more processes than files that may be open (ulimit -n): some are not read")
        values = (*_counted(machine), machine.processes, self._forest.without_io())
        rows += [
            Sample(ts_ns, series, value)
            for series, value in zip(self._all, values, strict=True)
            if series.reason is None
        ]
        return rows

    def _tree_rows(self, ts_ns: int, entity: str, state: TreeState, *, slow: bool) -> list[Sample]:
        values = (
            *_counted(state),
            *(state.processes, state.threads, state.rss_bytes, state.ready, state.disk_waits),
        )
        if not slow and entity in self._plain:
            return samples_at(ts_ns, self._trees[entity], values)
        if slow:
            values = (*values, state.peak_rss_bytes, state.swap_bytes)
            if entity in self._quotas:
                values = (*values, *(self._quotas[entity].look() or ()))
        return [
            Sample(ts_ns, series, value)
            for series, value in zip(self._trees[entity], values, strict=False)
            if series.reason is None
        ]

    def _tree_series(self, entity: str) -> tuple[Series, ...]:
        error = self._forest.io_error(entity)
        reason = None if error is None else f"/proc/<pid>/io: {error.strerror}"
        return tuple(_series(entity, metric, reason) for metric in (*_TREE, *_TREE_SLOW))

    def _quota_series(self, entity: str, pid: int) -> tuple[Series, ...]:
        """Of a stage alone: the recorder and who runs it are in groups that are sampled anyway."""
        if not entity.startswith("stage:"):
            return ()
        account = QuotaAccount(pid, self.proc)
        if account.look() is None:
            return tuple(_series(entity, one, None, _NO_QUOTA) for one in metrics.QUOTA)
        self._quotas[entity] = account
        return tuple(_series(entity, one, None) for one in metrics.QUOTA)

    def _all_series(self) -> tuple[Series, ...]:
        hidden = _why_hidden(self.proc)
        if hidden is not None:
            return tuple(Series(entity=PROCESSES, metric=one, reason=hidden) for one in _ALL)
        _, machine = self._forest.scan(whole=True)
        without, count = self._forest.without_io(), machine.processes
        reason = None
        if without > MOST_UNREADABLE * count:
            reason = f"/proc/<pid>/io of {without} of {count} processes may not be read; root could"
        return tuple(_series(PROCESSES, metric, reason) for metric in _ALL)

    def _constant(self) -> list[Sample]:
        values: list[float] = [os.cpu_count() or 1, cpu_loop_us()]
        if self.folder is not None:
            try:
                space = os.statvfs(self.folder)
            except OSError as error:
                self._lose(f"{self.folder}: {error.strerror}")
            else:
                values.append((space.f_blocks - space.f_bfree) * space.f_frsize)
                values.append(space.f_bavail * space.f_frsize)
        return samples_at(self.clock.now_ns(), self._fixed, values)


def _rows(found: _OfMachine) -> list[Sample]:
    return [row for source, ts_ns, data in found for row in source.rows(ts_ns, data)]


def _series(entity: str, metric: Metric, no_io: str | None, why: str | None = None) -> Series:
    return Series(
        entity=entity, metric=metric, reason=no_io if metric.name.startswith("io_") else why
    )


def _why_hidden(proc: Path) -> str | None:
    """Why the processes that are seen are not all of the machine's."""
    try:
        (proc / "1/stat").stat()  # exists() raises where one may not look
    except OSError:
        return f"{proc} hides other users' processes (hidepid)"
    try:
        namespace = (proc / "self/ns/pid").readlink().name
    except OSError:
        return None
    if namespace != _FIRST_PID_NAMESPACE:
        return "in a container's PID namespace the machine's other processes are not seen"
    return None


def _never(entity: str) -> list[Series]:
    return [
        Series(entity=entity, metric=metric, reason=reason)
        for metric, reason in metrics.NOT_PER_TREE
    ]


def _counted(state: TreeState) -> tuple[float, ...]:
    """The counters in the order of ``guest_metrics``: CPU in s, faults, bytes."""
    user, system, *others = state.usage
    return (user / _TICKS_PER_S, system / _TICKS_PER_S, *others)
