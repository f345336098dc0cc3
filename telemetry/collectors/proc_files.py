"""Parsers of /proc: bytes in, numbers out. They open nothing, so recorded bytes test them."""

from __future__ import annotations

import os
from typing import NamedTuple

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
SECTOR_BYTES = 512
"""Unit of /proc/diskstats on every device (Documentation/admin-guide/iostats.rst)."""
CPU_MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


def parse_stat_cpu(stat: bytes) -> list[float]:
    """Seconds by mode (``CPU_MODES``) from the first line of /proc/stat.

    The kernel counts guests' time in user and nice as well; it is not taken off here, so that the
    modes add up to the time of all CPUs.
    """
    fields = stat[: stat.index(b"\n")].split()
    return [int(field) / TICKS_PER_S for field in fields[1:9]]


def parse_meminfo(text: bytes) -> dict[bytes, int]:
    """Name to bytes from /proc/meminfo."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(b":")
        found[name] = int(rest.split(None, 1)[0]) * (1024 if rest.endswith(b"kB") else 1)
    return found


def parse_pressure(text: bytes) -> dict[str, float]:
    """``some`` and ``full`` to seconds stalled since boot, from a file of /proc/pressure."""
    return {
        line[:4].decode(): int(line.rpartition(b"total=")[2]) / 1e6
        for line in text.splitlines()
        if b"total=" in line
    }


class DiskCounters(NamedTuple):
    """Counters of one block device since boot."""

    read_ops: float
    read_bytes: float
    read_seconds: float
    write_ops: float
    write_bytes: float
    write_seconds: float
    busy_seconds: float


def parse_diskstats(text: bytes) -> dict[str, DiskCounters]:
    """Device name to counters from /proc/diskstats."""
    found = {}
    for line in text.splitlines():
        f = line.split()
        found[f[2].decode()] = DiskCounters(
            read_ops=int(f[3]),
            read_bytes=int(f[5]) * SECTOR_BYTES,
            read_seconds=int(f[6]) / 1e3,
            write_ops=int(f[7]),
            write_bytes=int(f[9]) * SECTOR_BYTES,
            write_seconds=int(f[10]) / 1e3,
            busy_seconds=int(f[12]) / 1e3,
        )
    return found


class NetCounters(NamedTuple):
    """Counters of one network interface since it came up."""

    rx_bytes: float
    rx_packets: float
    tx_bytes: float
    tx_packets: float


def parse_net_dev(text: bytes) -> dict[str, NetCounters]:
    """Interface name to counters from /proc/net/dev."""
    found = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(b":")
        f = rest.split()
        found[name.strip().decode()] = NetCounters(int(f[0]), int(f[1]), int(f[8]), int(f[9]))
    return found


class PidStat(NamedTuple):
    """What /proc/<pid>/stat says of one process; CPU in ticks, its reaped children's apart."""

    ppid: int
    minor_faults: int
    major_faults: int
    user: int
    system: int
    children_user: int
    children_system: int
    children_minor_faults: int
    children_major_faults: int
    threads: int
    start: int
    rss_bytes: int


def parse_pid_stat(text: bytes) -> PidStat:
    """The command's name may hold spaces and brackets: fields count from the last bracket."""
    f = text[text.rindex(b")") + 2 :].split()
    return PidStat(
        ppid=int(f[1]),
        minor_faults=int(f[7]),
        children_minor_faults=int(f[8]),
        major_faults=int(f[9]),
        children_major_faults=int(f[10]),
        user=int(f[11]),
        system=int(f[12]),
        children_user=int(f[13]),
        children_system=int(f[14]),
        threads=int(f[17]),
        start=int(f[19]),
        rss_bytes=int(f[21]) * PAGE_BYTES,
    )


class PidIo(NamedTuple):
    """What /proc/<pid>/io says, in bytes; a parent takes over what its reaped children did."""

    read_calls_bytes: int
    write_calls_bytes: int
    read_bytes: int
    write_bytes: int
    cancelled_write_bytes: int


def parse_pid_io(text: bytes) -> PidIo:
    """Bytes through system calls (rchar, wchar), and bytes that storage had to deliver or take."""
    f = text.split()
    return PidIo(int(f[1]), int(f[3]), int(f[9]), int(f[11]), int(f[13]))
