"""What this machine is: what a profile has to say so that another can be compared with it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from infra.gpus import gpu_environment
from telemetry.collectors.cgroups import cgroup_folders

_NO_LIMIT_BYTES = 1 << 62


def environment() -> dict[str, Any]:
    """Host, kernel, CPU, memory, limits of the control group, virtualization, GPUs, Python."""
    return {
        "host": platform.node(),
        "kernel": platform.release(),
        "distribution": _distribution(),
        "cpu": {"model": _cpu_model(), "count": os.cpu_count()},
        "cpu_usable": len(os.sched_getaffinity(0)),
        "memory_total_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "cgroup": cgroup_limits(),
        "container": _container(),
        "gpu": gpu_environment(),
        "python": platform.python_version(),
    }


def stagescope_version() -> str:
    """StageScope's own, as it is installed; "" where it runs from a folder that is not."""
    try:
        return metadata.version("stagescope")
    except metadata.PackageNotFoundError:
        return ""


def _distribution() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _cpu_model() -> str:
    for line in (_text(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def cgroup_limits(proc: Path = Path("/proc")) -> dict[str, Any]:
    """Version, and what this process's groups set it: CPU quota, memory, bytes/s of reads, writes.

    A group is held to the limits of those above it too, so the tightest one counts, and of several
    disks that of the slowest. None means that no limit is set; version None that there are no
    control groups.
    """
    two, one = cgroup_folders(proc)
    if "cpu" in one or "memory" in one:  # version 2 can be there as well, without them
        cpu, memory, disk = (_upward(one.get(name)) for name in ("cpu", "memory", "blkio"))
        return {
            "version": 1,
            "cpu_quota_cores": _tightest(
                _quota(f"{_text(group / 'cpu.cfs_quota_us')} {_text(group / 'cpu.cfs_period_us')}")
                for group in cpu
            ),
            "memory_limit_bytes": _tightest(
                _bytes(_text(group / "memory.limit_in_bytes")) for group in memory
            ),
            **{
                f"{way}_limit_bytes_per_s": _tightest(
                    _bytes(line.rpartition(" ")[2])
                    for group in disk
                    for line in _lines(group / f"blkio.throttle.{way}_bps_device")
                )
                for way in ("read", "write")
            },
        }
    groups = _upward(two)
    disks = [line.split() for group in groups for line in _lines(group / "io.max")]
    return {
        "version": 2 if groups else None,
        "cpu_quota_cores": _tightest(_quota(_text(group / "cpu.max")) for group in groups),
        "memory_limit_bytes": _tightest(_bytes(_text(group / "memory.max")) for group in groups),
        **{
            f"{way}_limit_bytes_per_s": _tightest(
                _bytes(word.removeprefix(f"{way[0]}bps="))
                for words in disks
                for word in words
                if word.startswith(f"{way[0]}bps=")
            )
            for way in ("read", "write")
        },
    }


def _tightest(limits: Iterable[float | None]) -> float | None:
    return min((one for one in limits if one is not None), default=None)


def _upward(group: Path | None) -> list[Path]:
    """A control group and those above it, to the root of its hierarchy."""
    groups: list[Path] = []
    while group is not None and (group / "cgroup.procs").exists():
        groups.append(group)
        group = group.parent
    return groups


def _quota(text: str | None) -> float | None:
    """Cores from ``quota period`` in µs; None where there is no quota (``max`` or -1)."""
    fields = (text or "").split()
    if len(fields) != 2 or not all(field.isdigit() for field in fields):
        return None
    return int(fields[0]) / int(fields[1])


def _bytes(text: str | None) -> int | None:
    """Bytes; None for ``max``, and for the huge number that version 1 has in its place."""
    value = (text or "").strip()
    return int(value) if value.isdigit() and int(value) < _NO_LIMIT_BYTES else None


def _container() -> str | None:
    """The kind of container around this process, as far as it says so itself."""
    if Path("/.dockerenv").exists():
        return "docker"
    if Path("/run/.containerenv").exists():
        return "podman"
    return os.environ.get("container")  # noqa: SIM112 - systemd writes it in small letters


def _lines(path: Path) -> list[str]:
    return (_text(path) or "").splitlines()


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
