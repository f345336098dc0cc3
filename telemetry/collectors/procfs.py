"""What the kernel's text files say: parsers of bytes, apart from reading them.

Each takes the bytes of one file as the kernel wrote them and returns plain numbers in the kernel's
own units or in SI; `proc(5)` and the kernel's Documentation/ are the sources.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

CPU_MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
"""The first columns of the ``cpu`` line; ``guest`` follows and is within ``user`` already."""
_PF_KTHREAD = 0x00200000  # linux/sched.h
SECTOR_BYTES = 512
"""Of /proc/diskstats, whatever the device's own is (Documentation/admin-guide/iostats.rst)."""


class Stat(NamedTuple):
    """/proc/<pid>/stat as far as it is used; times in clock ticks, rss in pages."""

    pid: int
    start_ticks: int
    ppid: int
    state: bytes
    minflt: int
    cminflt: int
    majflt: int
    cmajflt: int
    utime: int
    stime: int
    cutime: int
    cstime: int
    threads: int
    rss_pages: int


class Io(NamedTuple):
    """/proc/<pid>/io in bytes; reaped children are in it."""

    rchar: int
    wchar: int
    read_bytes: int
    write_bytes: int
    cancelled_write_bytes: int


def parse_stat(pid: int, data: bytes) -> Stat:
    """Fields of /proc/<pid>/stat. The command in it may hold anything, `) ` included."""
    f = data[data.rindex(b")") + 2 :].split(None, 22)
    return Stat(
        pid,
        int(f[19]),
        int(f[1]),
        f[0],
        int(f[7]),
        int(f[8]),
        int(f[9]),
        int(f[10]),
        int(f[11]),
        int(f[12]),
        int(f[13]),
        int(f[14]),
        int(f[17]),
        int(f[21]),
    )


def is_kernel_thread(data: bytes) -> bool:
    """Whether /proc/<pid>/stat is that of a kernel thread."""
    return bool(int(data[data.rindex(b")") + 2 :].split(None, 7)[6]) & _PF_KTHREAD)


def parse_io(data: bytes) -> Io:
    """/proc/<pid>/io: `name: value` lines in a fixed order."""
    f = data.split()
    return Io(int(f[1]), int(f[3]), int(f[9]), int(f[11]), int(f[13]))


def parse_status(data: bytes) -> tuple[int, int]:
    """Peak resident memory (VmHWM) and swap of /proc/<pid>/status in bytes.

    Kernel threads and processes that have ended have none: 0 and 0.
    """
    return _kilobytes(data, b"\nVmHWM:"), _kilobytes(data, b"\nVmSwap:")


def _kilobytes(data: bytes, name: bytes) -> int:
    at = data.find(name)
    return 0 if at < 0 else 1024 * int(data[at + len(name) : data.index(b"kB", at)])


def parse_cpu_ticks(data: bytes) -> list[int]:
    """The first line of /proc/stat: clock ticks in each of ``CPU_MODES`` since boot."""
    return [int(field) for field in data[: data.index(b"\n")].split()[1:9]]


def parse_meminfo(data: bytes, names: Sequence[str]) -> list[int]:
    """The values of these lines of /proc/meminfo in bytes; ValueError if there is no such line."""
    data = b"\n" + data
    values = []
    for name in names:
        line = f"\n{name}:".encode()
        start = data.index(line) + len(line)
        values.append(1024 * int(data[start : data.index(b"kB", start)]))
    return values


def parse_pressure_us(data: bytes) -> dict[bytes, int]:
    """/proc/pressure/*: total stall time in µs of `some` and `full`."""
    return {
        line[: line.index(b" ")]: int(line[line.rindex(b"=") + 1 :]) for line in data.splitlines()
    }


def parse_diskstats(data: bytes, names: Collection[str] | None = None) -> dict[str, list[float]]:
    """/proc/diskstats: reads, bytes read, s of reading, the same of writes, and s busy.

    By device: all, or those with ``names``.
    """
    found: dict[str, list[float]] = {}
    for line in data.splitlines():
        f = line.split(None, 13)
        name = f[2].decode()
        if names is not None and name not in names:
            continue
        found[name] = [
            int(f[3]),
            int(f[5]) * SECTOR_BYTES,
            int(f[6]) / 1e3,
            int(f[7]),
            int(f[9]) * SECTOR_BYTES,
            int(f[10]) / 1e3,
            int(f[12]) / 1e3,
        ]
    return found


def parse_net_dev(data: bytes, names: Collection[str] | None = None) -> dict[str, list[float]]:
    """/proc/net/dev: bytes and packets received, bytes and packets sent; per interface.

    All interfaces, or those with ``names``.
    """
    found: dict[str, list[float]] = {}
    for line in data.splitlines()[2:]:
        raw, _, rest = line.rpartition(b":")
        name = raw.strip().decode()
        if names is not None and name not in names:
            continue
        f = rest.split()
        found[name] = [int(f[0]), int(f[1]), int(f[8]), int(f[9])]
    return found


def parse_flat(data: bytes) -> dict[bytes, int]:
    """`name value` lines, as in the cgroups' cpu.stat and memory.stat."""
    return {name: int(value) for name, value in (line.split() for line in data.splitlines())}


def parse_quota(data: bytes) -> tuple[float, float, float] | None:
    """A cpu.stat of v1 or v2: s held back (summed over CPUs), periods held back, periods in all.

    None where the kernel keeps no such account (the root of v2, or no bandwidth control).
    """
    stat = parse_flat(data)
    held_s = (
        stat[b"throttled_usec"] / 1e6
        if b"throttled_usec" in stat
        else stat.get(b"throttled_time", 0) / 1e9
    )
    if b"nr_throttled" not in stat or b"nr_periods" not in stat:
        return None
    return held_s, stat[b"nr_throttled"], stat[b"nr_periods"]


def parse_cgroup_paths(data: bytes) -> Mapping[str, str]:
    """/proc/<pid>/cgroup: the path per v1 controller, and under "" that of v2."""
    found = {}
    for line in data.decode().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = path
    return found


def parse_mounts(data: bytes) -> list[tuple[str, str, frozenset[str]]]:
    """/proc/self/mounts: mount point, type and options of each mount, in order."""
    mounts = []
    for line in data.decode(errors="surrogateescape").splitlines():
        f = line.split(" ")
        point = f[1].replace(r"\040", " ").replace(r"\011", "\t").replace(r"\134", "\\")
        mounts.append((point, f[2], frozenset(f[3].split(","))))
    return mounts
