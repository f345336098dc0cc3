"""What this machine is: what a profile has to say so that another can be compared with it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from infra.gpus import gpu_environment

_CGROUP = Path("/sys/fs/cgroup")


def environment() -> dict[str, Any]:
    """Host, kernel, CPU, memory, limits of the control group, virtualization, GPUs, Python."""
    return {
        "host": platform.node(),
        "kernel": platform.release(),
        "distribution": _distribution(),
        "cpu": {"model": _cpu_model(), "count": os.cpu_count()},
        "cpu_usable": len(os.sched_getaffinity(0)),
        "memory_total_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "cgroup": _cgroup(),
        "container": _container(),
        "gpu": gpu_environment(),
        "python": platform.python_version(),
    }


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


def _cgroup() -> dict[str, Any]:
    """Version, CPU quota in cores and memory limit in bytes of this process's own control group.

    None means that no limit is set; version None that there are no control groups.
    """
    memberships = [
        line.split(":", 2) for line in (_text(Path("/proc/self/cgroup")) or "").splitlines()
    ]
    paths = {controller: path for _, names, path in memberships for controller in names.split(",")}
    if (_CGROUP / "cgroup.controllers").is_file():
        own = _CGROUP / paths.get("", "/").lstrip("/")
        quota, _, period = (_text(own / "cpu.max") or "max 100000").strip().partition(" ")
        memory = (_text(own / "memory.max") or "max").strip()
        return {
            "version": 2,
            "cpu_quota_cores": None if quota == "max" else int(quota) / int(period),
            "memory_limit_bytes": None if memory == "max" else int(memory),
        }
    if "memory" in paths or "cpu" in paths:
        cpu = _CGROUP / "cpu" / paths.get("cpu", "/").lstrip("/")
        quota_us = int(_text(cpu / "cpu.cfs_quota_us") or -1)
        period_us = int(_text(cpu / "cpu.cfs_period_us") or 100_000)
        folder = _CGROUP / "memory" / paths.get("memory", "/").lstrip("/")
        limit = int(_text(folder / "memory.limit_in_bytes") or 1 << 63)
        return {
            "version": 1,
            "cpu_quota_cores": quota_us / period_us if quota_us > 0 else None,
            "memory_limit_bytes": limit if limit < 1 << 62 else None,
        }
    return {"version": None, "cpu_quota_cores": None, "memory_limit_bytes": None}


def _container() -> str | None:
    """The kind of container around this process, as far as it says so itself."""
    if Path("/.dockerenv").exists():
        return "docker"
    if Path("/run/.containerenv").exists():
        return "podman"
    return os.environ.get("container")  # noqa: SIM112 - systemd writes it in small letters


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
