"""The machine's own figures: files of the kernel, each with its parser and the series it gives.

Every file is opened once and stays open; what is not there is decided then, with its reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from telemetry.collectors import guest_metrics as metrics
from telemetry.collectors.cgroups import cgroup_folders
from telemetry.collectors.devices import (
    Parser,
    Values,
    counted_once,
    is_disk,
    is_up,
    rows_of,
    series_of,
)
from telemetry.collectors.procfs import (
    parse_cpu_ticks,
    parse_diskstats,
    parse_flat,
    parse_meminfo,
    parse_net_dev,
    parse_pressure_us,
    parse_quota,
)
from telemetry.samples import Metric, Sample, Series, samples_at

MACHINE = "machine"
_CHUNK_BYTES = 1 << 16
_ONE_READ_BYTES = 2048
"""A file that is longer can have more than one read gave (the kernel's buffer begins at 4 KiB)."""
_CPU_LINE_BYTES = 512
_SI = 1e6
_NO_TRAFFIC = (0, 0, 0, 0)
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_VMWARE = b"VMware"  # how the DMI vendor of its VMs begins


@dataclass(kw_only=True)
class Source:
    """One file and the series that it gives, in the order of the parser's values."""

    path: str
    descriptor: int
    series: tuple[Series, ...]
    parse: Parser
    limit: int | None = None
    """Only so many bytes are of use."""
    _data: bytes = field(default=b"", init=False, repr=False)
    _values: Values = field(default=(), init=False, repr=False)

    def read(self, now_ns: Callable[[], int]) -> tuple[int, bytes]:
        """When it was read, in ns, and what it said; raises OSError."""
        if self.limit is None:
            data = read_whole(self.descriptor)
        else:
            data = os.pread(self.descriptor, self.limit, 0)
        return now_ns(), data

    def rows(self, ts_ns: int, data: bytes) -> list[Sample]:
        """Parse what was read, unless it says what it said before; a value of None is left out."""
        if data != self._data:
            self._data, self._values = data, self.parse(data)
        values = self._values
        if None not in values:
            return samples_at(ts_ns, self.series, values)  # type: ignore[arg-type]
        pairs = zip(self.series, values, strict=True)
        return [Sample(ts_ns, series, value) for series, value in pairs if value is not None]

    def close(self) -> None:
        os.close(self.descriptor)


def read_whole(descriptor: int) -> bytes:
    """All of a kernel's file from its beginning; long ones come a page at a time."""
    data = os.pread(descriptor, _CHUNK_BYTES, 0)
    while len(data) > _ONE_READ_BYTES and (chunk := os.pread(descriptor, _CHUNK_BYTES, len(data))):
        data += chunk
    return data


def read_file(path: str) -> bytes | None:
    """A short file of the kernel that is read seldom; None where there is none (any more)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(descriptor, _CHUNK_BYTES)
    except OSError:
        return None
    finally:
        os.close(descriptor)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What was found: sources for each sample, those for once a second, and what is absent."""

    fast: tuple[Source, ...]
    slow: tuple[Source, ...]
    absent: tuple[Series, ...]

    @property
    def series(self) -> list[Series]:
        return [one for source in (*self.fast, *self.slow) for one in source.series]


def open_machine(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> Machine:
    """Open every file of the machine once; a missing one becomes absent series with the reason.

    Raises what a file raises that is not as the kernel writes it; nothing stays open then.
    """
    found = _Found()
    try:
        _open_cpu(found, proc, sys)
        memory = [(MACHINE, one) for one in metrics.MEMORY.values()]
        found.try_open(proc / "meminfo", memory, _memory)
        for resource in ("cpu", "memory", "io"):
            _open_pressure(found, proc / "pressure" / resource, resource)
        _open_disks(found, proc / "diskstats", sys)
        _open_interfaces(found, proc / "net/dev", sys)
        fast = len(found.sources)
        _open_cgroup(found, proc)
    except BaseException:
        for source in found.sources:
            source.close()
        raise
    sources = tuple(found.sources)
    return Machine(fast=sources[:fast], slow=sources[fast:], absent=tuple(found.absent))


class _Found:
    """Sources and absent series on the way to a ``Machine``."""

    def __init__(self) -> None:
        self.sources: list[Source] = []
        self.absent: list[Series] = []

    def try_open(
        self,
        path: Path,
        series: Iterable[tuple[str, Metric]],
        parse: Parser,
        *,
        why: str = "",
        limit: int | None = None,
    ) -> None:
        """Open, read and parse a file once; it becomes a source or a reason."""
        wanted = list(series)
        descriptor = -1
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            values = parse(read_whole(descriptor))
        except (OSError, ValueError, KeyError, IndexError) as error:
            reason = error.strerror if isinstance(error, OSError) else f"unreadable ({error!r})"
            self.lack(wanted, f"{path}: {reason}{why}")
            if descriptor >= 0:
                os.close(descriptor)
            return
        missing = [one for one, value in zip(wanted, values, strict=True) if value is None]
        self.lack(missing, f"{path} does not have it{why}")
        self.sources.append(
            Source(
                path=str(path),
                descriptor=descriptor,
                series=tuple(
                    Series(entity=entity, metric=metric)
                    for (entity, metric), value in zip(wanted, values, strict=True)
                    if value is not None
                ),
                parse=_only(parse, values) if missing else parse,
                limit=limit,
            )
        )

    def lack(self, series: Iterable[tuple[str, Metric]], reason: str) -> None:
        self.absent += [
            Series(entity=entity, metric=metric, reason=reason) for entity, metric in series
        ]


def _only(parse: Parser, first: Values) -> Parser:
    """Leave out what was missing on opening."""
    kept = [index for index, value in enumerate(first) if value is not None]

    def some(data: bytes) -> Values:
        values = parse(data)
        return [values[index] for index in kept]

    return some


def _open_cpu(found: _Found, proc: Path, sys: Path) -> None:
    """The modes of /proc/stat; steal, the last of them, where it is measured."""
    *others, steal = [(MACHINE, one) for one in metrics.CPU.values()]
    why = _why_no_steal(proc, sys)
    if why is None:
        found.try_open(proc / "stat", [*others, steal], _cpu, limit=_CPU_LINE_BYTES)
    else:
        found.lack([steal], why)
        found.try_open(
            proc / "stat", others, lambda data: _cpu(data)[: len(others)], limit=_CPU_LINE_BYTES
        )


def _why_no_steal(proc: Path, sys: Path) -> str | None:
    """Why a VMware VM's steal of 0 says nothing, in a sentence; None elsewhere, and above 0.

    Since 5.8 its kernel has a clock of stolen time to read, if the VM offers one: by default it
    does not (arch/x86/kernel/cpu/vmware.c). Only such a clock makes steal more than 0.
    """
    vendor = read_file(str(sys / "class/dmi/id/sys_vendor")) or b""
    stat = read_file(str(proc / "stat"))
    if not vendor.startswith(_VMWARE) or stat is None or parse_cpu_ticks(stat)[-1] > 0:
        return None
    kernel = (read_file(str(proc / "sys/kernel/osrelease")) or b"unknown").decode().strip()
    return (
        f"0 since boot on a VMware VM (kernel {kernel}): Linux counts steal there from 5.8 on, and "
        'only if the VM has stealclock.enable = "TRUE", which is not the default. Without it steal '
        "is not measured; with it nothing was stolen before the recording began"
    )


def _cpu(data: bytes) -> Values:
    return [ticks / _TICKS_PER_S for ticks in parse_cpu_ticks(data)]


_MEMINFO = (
    "MemTotal",
    "MemAvailable",
    "Cached",
    "Buffers",
    "Shmem",
    "Dirty",
    "Writeback",
    "SwapTotal",
    "SwapFree",
)


def _memory(data: bytes) -> Values:
    total, available, cached, buffers, shared, dirty, writeback, swap, swap_free = parse_meminfo(
        data, _MEMINFO
    )
    cache = cached + buffers - shared
    return [total, total - available, available, cache, dirty, writeback, swap - swap_free]


def _open_pressure(found: _Found, path: Path, resource: str) -> None:
    extents = ["some", "full"]
    if resource == "cpu":
        # The kernel writes 0 there for the sake of old readers (kernel/sched/psi.c).
        extents.remove("full")
        found.lack(
            [(MACHINE, metrics.PRESSURE["cpu", "full"])],
            "the kernel defines it for control groups only, not for a machine",
        )
    found.try_open(
        path,
        [(MACHINE, metrics.PRESSURE[resource, extent]) for extent in extents],
        lambda data: [parse_pressure_us(data)[extent.encode()] / _SI for extent in extents],
        why=" (a kernel without pressure stall information, or psi=0)",
    )


def _open_disks(found: _Found, path: Path, sys: Path) -> None:
    try:
        names = [name for name in parse_diskstats(path.read_bytes()) if is_disk(name, sys)]
    except OSError:
        names = []
    if not names:
        found.lack(
            [("disk", metric) for metric in metrics.DISK.values()],
            f"{path} shows no whole disk",
        )
        return
    found.try_open(path, series_of("disk", names, metrics.DISK), rows_of(parse_diskstats, names, 7))


def _open_interfaces(found: _Found, path: Path, sys: Path) -> None:
    try:
        names = [name for name, row in parse_net_dev(path.read_bytes()).items()
                 if any(row) or is_up(name, sys)]  # fmt: skip
    except OSError:
        names = []
    added = counted_once(names, sys)
    every = rows_of(parse_net_dev, names, 4)
    series = list(series_of("net", names, metrics.NET))
    if not added:
        found.lack(
            [(MACHINE, metric) for metric in metrics.NET.values()],
            f"{path} shows no interface but lo",
        )
        found.try_open(path, series, every)
        return

    def with_sum(data: bytes) -> Values:
        rows = parse_net_dev(data)
        parts = [rows.get(name, _NO_TRAFFIC) for name in added]
        return [
            *(value for name in names for value in rows.get(name, (None,) * 4)),
            *(sum(column) for column in zip(*parts, strict=True)),
        ]

    series += [(MACHINE, metric) for metric in metrics.NET.values()]
    found.try_open(path, series, with_sum)


def _open_cgroup(found: _Found, proc: Path) -> None:
    cgroup = metrics.CGROUP
    entity = "cgroup"
    cpu = [(entity, cgroup["cgroup_cpu_seconds"])]
    throttled = [(entity, metric) for metric in metrics.QUOTA]
    used = [(entity, cgroup["cgroup_mem_used_bytes"])]
    cache = [(entity, cgroup["cgroup_mem_page_cache_bytes"])]
    two, one = cgroup_folders(proc)
    if (two / "cpu.stat").is_file() and (two / "memory.current").is_file():
        found.try_open(two / "cpu.stat", [*cpu, *throttled], _cpu_stat_2)
        found.try_open(two / "memory.current", used, lambda data: [int(data)])
        found.try_open(two / "memory.stat", cache, lambda data: [parse_flat(data)[b"file"]])
        return
    for controller, name, series, parse in (
        ("cpuacct", "cpuacct.usage", cpu, lambda data: [int(data) / 1e9]),
        ("cpu", "cpu.stat", throttled, _cpu_stat_1),
        ("memory", "memory.usage_in_bytes", used, lambda data: [int(data)]),
        ("memory", "memory.stat", cache, lambda data: [parse_flat(data)[b"total_cache"]]),
    ):
        if controller in one:
            found.try_open(one[controller] / name, series, parse)
        else:
            found.lack(series, f"this process is in no control group with {controller} accounts")


def _cpu_stat_2(data: bytes) -> Values:
    return [parse_flat(data)[b"usage_usec"] / _SI, *(parse_quota(data) or (None,) * 3)]


def _cpu_stat_1(data: bytes) -> Values:
    values = parse_quota(data)
    if values is None:
        raise ValueError("no account of a quota in it")
    return values
