"""What the kernel's text files say: parsers of bytes, apart from reading them.

Each takes the bytes of one file as the kernel wrote them and returns plain numbers in the kernel's
own units or in SI; `proc(5)` and the kernel's Documentation/ are the sources.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

CPU_MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
"""The first eight columns of the ``cpu`` line; ``guest`` follows and is within ``user`` already."""
SECTOR_BYTES = 512
"""Unit of /proc/diskstats whatever the device's own sector is (Documentation/admin-guide/iostats)."""


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


def parse_io(data: bytes) -> Io:
    """/proc/<pid>/io: `name: value` lines in a fixed order."""
    f = data.split()
    return Io(int(f[1]), int(f[3]), int(f[9]), int(f[11]), int(f[13]))


def parse_peak_rss_bytes(status: bytes) -> int | None:
    """VmHWM of /proc/<pid>/status; None for kernel threads and zombies, which have no memory."""
    at = status.find(b"VmHWM:")
    return None if at < 0 else 1024 * int(status[at + 6 : status.index(b"kB", at)])


def parse_cpu_ticks(data: bytes) -> list[int]:
    """The first line of /proc/stat: clock ticks in each of ``CPU_MODES`` since boot."""
    return [int(field) for field in data[: data.index(b"\n")].split()[1:9]]


def parse_meminfo(data: bytes) -> dict[bytes, int]:
    """/proc/meminfo in bytes by name; the few lines without kB are counts."""
    found = {}
    for line in data.splitlines():
        name, _, rest = line.partition(b":")
        number, _, unit = rest.strip().partition(b" ")
        found[name] = int(number) * (1024 if unit == b"kB" else 1)
    return found


def parse_pressure_us(data: bytes) -> dict[bytes, int]:
    """/proc/pressure/*: total stall time in µs of `some` and `full`."""
    return {
        line[: line.index(b" ")]: int(line[line.rindex(b"=") + 1 :]) for line in data.splitlines()
    }


class Disk(NamedTuple):
    """One line of /proc/diskstats."""

    reads: int
    read_bytes: int
    read_ms: int
    writes: int
    write_bytes: int
    write_ms: int
    busy_ms: int


def parse_diskstats(data: bytes, wanted: Collection[bytes]) -> dict[bytes, Disk]:
    """The lines of /proc/diskstats that belong to the devices ``wanted``."""
    found = {}
    for line in data.splitlines():
        f = line.split(None, 13)
        if f[2] in wanted:
            found[f[2]] = Disk(
                int(f[3]),
                int(f[5]) * SECTOR_BYTES,
                int(f[6]),
                int(f[7]),
                int(f[9]) * SECTOR_BYTES,
                int(f[10]),
                int(f[12]),
            )
    return found


class Interface(NamedTuple):
    """One line of /proc/net/dev."""

    rx_bytes: int
    rx_packets: int
    tx_bytes: int
    tx_packets: int


def parse_net_dev(data: bytes) -> dict[str, Interface]:
    """/proc/net/dev: bytes and packets of each interface of this network namespace."""
    found = {}
    for line in data.splitlines()[2:]:
        name, _, rest = line.rpartition(b":")
        f = rest.split()
        found[name.strip().decode()] = Interface(int(f[0]), int(f[1]), int(f[8]), int(f[9]))
    return found


def parse_flat(data: bytes) -> dict[bytes, int]:
    """`name value` lines, as in the cgroups' cpu.stat and memory.stat."""
    return {name: int(value) for name, value in (line.split() for line in data.splitlines())}


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


class PidStat(NamedTuple):
    """/proc/<pid>/stat as far as accounts of process trees need it; CPU in ticks."""

    start: int
    ppid: int
    user: int
    system: int
    children_user: int
    children_system: int
    minor_faults: int
    major_faults: int
    children_minor_faults: int
    children_major_faults: int
    rss_bytes: int
    threads: int


PidIo = Io
parse_pid_io = parse_io


def parse_pid_stat(data: bytes) -> PidStat:
    """The same fields of /proc/<pid>/stat under the names of the accounts."""
    stat = parse_stat(0, data)
    return PidStat(
        start=stat.start_ticks,
        ppid=stat.ppid,
        user=stat.utime,
        system=stat.stime,
        children_user=stat.cutime,
        children_system=stat.cstime,
        minor_faults=stat.minflt,
        major_faults=stat.majflt,
        children_minor_faults=stat.cminflt,
        children_major_faults=stat.cmajflt,
        rss_bytes=stat.rss_pages * 4096,
        threads=stat.threads,
    )
