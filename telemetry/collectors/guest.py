"""The guest: the whole machine, its disks and networks, and the process trees of stages."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from telemetry.clock import Clock
from telemetry.collectors.guest_metrics import (
    CPU,
    DISK,
    MACHINE_OTHER,
    MEMORY,
    NET,
    NOT_PER_TREE,
    PRESSURE,
    PROCESSES,
    TREE,
    TREE_SLOW,
)
from telemetry.collectors.proc_files import (
    CPU_MODES,
    TICKS_PER_S,
    parse_diskstats,
    parse_meminfo,
    parse_net_dev,
    parse_pressure,
    parse_stat_cpu,
)
from telemetry.collectors.proctree import USAGE, Accounts, Reading, Tree, Usage, all_pids, read_all
from telemetry.samples import Metric, Sample, Samples, Series

SLOW_S = 1.0
"""Looking for new processes, and at all of them, costs ten times a usual sample."""
_BOOT_CLOCK = time.CLOCK_BOOTTIME
_SKIPPED_DISKS = ("loop", "ram", "zram", "sr", "fd")


@dataclass
class _Watched:
    entity: str
    tree: Tree
    series: dict[str, Series]
    last_s: float = 0.0


@dataclass
class GuestCollector:
    """Samples /proc at ``period_s``; process trees come and go by ``watch`` and ``unwatch``.

    ``folder``: its file system's use is sampled, because that is where a run's outputs go.
    """

    clock: Clock
    period_s: float
    folder: Path | None = None
    name: str = field(default="guest", init=False)

    def open(self) -> Sequence[Series]:
        """Open the files of /proc for good; a missing one is an absent series with a reason."""
        self._lock = threading.Lock()
        self._files: dict[str, int] = {}
        self._series: dict[tuple[str, str], Series] = {}
        self._trees: dict[str, _Watched] = {}
        self._machine = Accounts()
        self._slow_at = 0.0
        self._pressure: list[str] = []
        absent = list(self._open_files())
        self._disks = sorted(name for name in self._read_disks() if _is_whole_disk(name))
        self._nets = sorted(self._read_nets())
        known = [*self._machine_series(), *absent]
        known += [self._one("stage:*", metric, reason) for metric, reason in NOT_PER_TREE]
        return known

    def _open_files(self) -> Iterator[Series]:
        for name in ("stat", "meminfo", "diskstats", "net/dev"):
            self._files[name] = os.open(f"/proc/{name}", os.O_RDONLY | os.O_CLOEXEC)
        for what in ("cpu", "memory", "io"):
            path = f"pressure/{what}"
            try:
                self._files[path] = os.open(f"/proc/{path}", os.O_RDONLY | os.O_CLOEXEC)
                parse_pressure(self._read(path))
                self._pressure.append(what)
            except OSError as error:
                reason = f"/proc/{path}: {error.strerror} (kernel without PSI, or psi=0)"
                for kind in ("some", "full"):
                    yield self._one("machine", PRESSURE[what, kind], reason)

    @property
    def slow_periods(self) -> dict[str, float]:
        """Periods of what is not sampled at every tick, by metric or by entity and metric."""
        slow = {metric.name: SLOW_S for metric in (*TREE_SLOW.values(), *MACHINE_OTHER.values())}
        return slow | {f"processes {name}": SLOW_S for name in PROCESSES}

    def watch(self, entity: str, pid: int) -> Samples:
        """Begin to sample the tree below ``pid``; its counters begin at 0 with the process.

        Raises OSError if there is no such process.
        """
        with self._lock:
            tree = Tree(pid)
            series = {
                metric.name: Series(entity=entity, metric=metric)
                for metric in (*TREE.values(), *TREE_SLOW.values())
            }
            watched = _Watched(entity=entity, tree=tree, series=series)
            self._trees[entity] = watched
            boot_ns = time.clock_gettime_ns(_BOOT_CLOCK)
            age_ns = boot_ns - tree.start_ticks * 1_000_000_000 // TICKS_PER_S
            began_ns = self.clock.now_ns() - max(age_ns, 1)
            zero = [
                Sample(began_ns, series[metric.name], 0.0)
                for metric in TREE.values()
                if metric.kind == "counter"
            ]
            return [*zero, *self._look_at(watched, with_children=True)]

    def unwatch(self, entity: str) -> Samples:
        """Take a last sample of a tree (its root may be a zombie) and forget it."""
        with self._lock:
            watched = self._trees.pop(entity, None)
            if watched is None:
                return []
            rows = self._look_at(watched, with_children=False)
            watched.tree.close()
            return rows

    def sample(self) -> Samples:
        """One look at everything that is due."""
        with self._lock:
            now_s = time.monotonic()
            slow = now_s >= self._slow_at
            if slow:
                self._slow_at = now_s + SLOW_S - self.period_s / 2
            rows = [*self._cpu(), *self._memory(), *self._stalls(), *self._devices()]
            if slow:
                rows += self._all_processes()
                rows += self._space()
            for watched in self._trees.values():
                rows += self._look_at(watched, with_children=False, slow=slow)
            return rows

    def close(self) -> None:
        for handle in self._files.values():
            os.close(handle)
        for watched in self._trees.values():
            watched.tree.close()
        self._files, self._trees = {}, {}

    def _read(self, name: str) -> bytes:
        return os.pread(self._files[name], 1 << 16, 0)

    def _one(self, entity: str, metric: Metric, reason: str | None = None) -> Series:
        key = (entity, metric.name)
        if key not in self._series:
            self._series[key] = Series(entity=entity, metric=metric, reason=reason)
        return self._series[key]

    def _machine_series(self) -> Iterator[Series]:
        """The series that are there from the start; trees bring their own."""
        for metric in (*CPU.values(), *MEMORY.values(), MACHINE_OTHER["cpu_count"]):
            yield self._one("machine", metric)
        for what in self._pressure:
            yield self._one("machine", PRESSURE[what, "some"])
            yield self._one("machine", PRESSURE[what, "full"])
        for disk in self._disks:
            yield from (self._one(f"disk:{disk}", metric) for metric in DISK.values())
        for net in self._nets:
            yield from (self._one(f"net:{net}", metric) for metric in NET.values())
        yield from (self._one("processes", metric) for metric in PROCESSES.values())
        if self.folder is not None:
            yield self._one("fs:runs", MACHINE_OTHER["fs_used_bytes"])
        yield from (self._one("stage:*", metric) for metric in TREE.values())
        yield from (self._one("stage:*", metric) for metric in TREE_SLOW.values())

    def _cpu(self) -> Iterator[Sample]:
        text = self._read("stat")
        now_ns = self.clock.now_ns()
        for mode, seconds in zip(CPU_MODES, parse_stat_cpu(text), strict=True):
            yield Sample(now_ns, self._one("machine", CPU[mode]), seconds)

    def _memory(self) -> Iterator[Sample]:
        found = parse_meminfo(self._read("meminfo"))
        now_ns = self.clock.now_ns()
        values = {
            "mem_used_bytes": found[b"MemTotal"] - found[b"MemAvailable"],
            "mem_available_bytes": found[b"MemAvailable"],
            "mem_page_cache_bytes": found[b"Cached"] + found[b"Buffers"] - found[b"Shmem"],
            "mem_dirty_bytes": found[b"Dirty"] + found[b"Writeback"],
            "mem_swap_used_bytes": found[b"SwapTotal"] - found[b"SwapFree"],
        }
        for name, value in values.items():
            yield Sample(now_ns, self._one("machine", MEMORY[name]), float(value))

    def _stalls(self) -> Iterator[Sample]:
        for what in self._pressure:
            found = parse_pressure(self._read(f"pressure/{what}"))
            now_ns = self.clock.now_ns()
            for kind, seconds in found.items():
                yield Sample(now_ns, self._one("machine", PRESSURE[what, kind]), seconds)

    def _read_disks(self) -> dict[str, tuple[float, ...]]:
        return dict(parse_diskstats(self._read("diskstats")))

    def _read_nets(self) -> dict[str, tuple[float, ...]]:
        return dict(parse_net_dev(self._read("net/dev")))

    def _devices(self) -> Iterator[Sample]:
        for kind, names, metrics, read in self._kinds_of_devices():
            found = read()
            now_ns = self.clock.now_ns()
            for name in names:
                if name in found:
                    for metric, value in zip(metrics.values(), found[name], strict=True):
                        yield Sample(now_ns, self._one(f"{kind}:{name}", metric), value)

    def _kinds_of_devices(
        self,
    ) -> tuple[
        tuple[str, list[str], dict[str, Metric], Callable[[], dict[str, tuple[float, ...]]]], ...
    ]:
        return (
            ("disk", self._disks, DISK, self._read_disks),
            ("net", self._nets, NET, self._read_nets),
        )

    def _all_processes(self) -> list[Sample]:
        now = read_all(all_pids())
        parents = {pid: one.ppid for pid, one in now.items()}
        for watched in self._trees.values():
            watched.tree.adopt(parents)
        used = self._machine.update(now)
        values = _usage_values(used)
        values["process_count"] = float(len(now))
        now_ns = self.clock.now_ns()
        return [
            Sample(now_ns, self._one("processes", metric), values[name])
            for name, metric in PROCESSES.items()
        ]

    def _space(self) -> Iterator[Sample]:
        now_ns = self.clock.now_ns()
        cpus = float(os.cpu_count() or 1)
        yield Sample(now_ns, self._one("machine", MACHINE_OTHER["cpu_count"]), cpus)
        if self.folder is not None:
            with contextlib.suppress(OSError):
                space = os.statvfs(self.folder)
                used = (space.f_blocks - space.f_bfree) * space.f_frsize
                yield Sample(
                    now_ns, self._one("fs:runs", MACHINE_OTHER["fs_used_bytes"]), float(used)
                )

    def _look_at(
        self, watched: _Watched, *, with_children: bool, slow: bool = False
    ) -> list[Sample]:
        if with_children:
            watched.tree.adopt(_parents())
        used, living = watched.tree.look()
        now_ns = self.clock.now_ns()
        values = _usage_values(used) | _living_values(living)
        rows = [
            Sample(now_ns, watched.series[name], values[name]) for name in TREE if name in values
        ]
        if slow:
            slow_values = _status_values(watched.tree.pids())
            rows += [
                Sample(now_ns, watched.series[name], slow_values[name])
                for name in TREE_SLOW
                if name in slow_values
            ]
        return rows


def _usage_values(used: Usage) -> dict[str, float]:
    by_name = dict(zip(USAGE, used, strict=True))
    return {
        "cpu_user_seconds": by_name["user"] / TICKS_PER_S,
        "cpu_system_seconds": by_name["system"] / TICKS_PER_S,
        "page_faults_minor": float(by_name["minor_faults"]),
        "page_faults_major": float(by_name["major_faults"]),
        "io_read_calls_bytes": float(by_name["read_calls_bytes"]),
        "io_write_calls_bytes": float(by_name["write_calls_bytes"]),
        "io_read_bytes": float(by_name["read_bytes"]),
        "io_write_bytes": float(by_name["write_bytes"]),
        "io_cancelled_write_bytes": float(by_name["cancelled_write_bytes"]),
    }


def _living_values(living: Sequence[Reading]) -> dict[str, float]:
    return {
        "mem_rss_bytes": float(sum(one.rss_bytes for one in living)),
        "thread_count": float(sum(one.threads for one in living)),
        "process_count": float(len(living)),
    }


def _status_values(pids: Sequence[int]) -> dict[str, float]:
    """Peak memory and swap, which only /proc/<pid>/status has."""
    peak = swap = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError):
            for line in Path(f"/proc/{pid}/status").read_bytes().splitlines():
                if line.startswith(b"VmHWM:"):
                    peak += int(line.split()[1]) * 1024
                elif line.startswith(b"VmSwap:"):
                    swap += int(line.split()[1]) * 1024
    return {"mem_peak_rss_bytes": float(peak), "mem_swap_bytes": float(swap)}


def _parents() -> dict[int, int]:
    return {pid: one.ppid for pid, one in read_all(all_pids()).items()}


def _is_whole_disk(name: str) -> bool:
    """Physical or virtual disks; partitions and what is stacked on disks would count twice."""
    if name.startswith(_SKIPPED_DISKS):
        return False
    block = Path("/sys/block") / name.replace("/", "!")
    if not block.is_dir():
        return False
    slaves = block / "slaves"
    return not (slaves.is_dir() and any(slaves.iterdir()))
