"""A machine made worse on purpose: a CPU quota, a neighbour on the CPUs, a slow disk. Needs root.

Each is a context manager that gives the words to put before a command, so that the whole command
runs in the control group. Version 1 of control groups where its controllers are mounted, else 2.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PERIOD_US = 100_000
_EMPTY_S = 10.0
_SPIN = "while True:\n    pass"


def why_not() -> str | None:
    """Why nothing can be throttled here, as a sentence; None where it can."""
    if os.geteuid() != 0:
        return "it makes control groups, which root alone may: run it with sudo"
    if not ((ROOT / "cpu").is_dir() or (ROOT / "cgroup.controllers").is_file()):
        return f"there are no control groups under {ROOT}"
    return None


@contextlib.contextmanager
def quota(cores: float) -> Iterator[list[str]]:
    """At most ``cores`` of CPU time a second for all of the command together."""
    most_us = round(cores * PERIOD_US)
    one = {"cpu.cfs_period_us": f"{PERIOD_US}", "cpu.cfs_quota_us": f"{most_us}"}
    with _group("cpu", one, {"cpu.max": f"{most_us} {PERIOD_US}"}) as prefix:
        yield prefix


@contextlib.contextmanager
def slow_reads(path: Path, bytes_per_s: int) -> Iterator[list[str]]:
    """The disk that holds ``path`` gives the command so many bytes a second, and no more."""
    disk = disk_of(path)
    one = {"blkio.throttle.read_bps_device": f"{disk} {bytes_per_s}"}
    with _group("io", one, {"io.max": f"{disk} rbps={bytes_per_s}"}) as prefix:
        yield prefix


@contextlib.contextmanager
def neighbour(processes: int) -> Iterator[list[str]]:
    """So many processes beside it that do nothing but use their CPU."""
    busy = [subprocess.Popen([sys.executable, "-c", _SPIN]) for _ in range(processes)]
    try:
        yield []
    finally:
        for one in busy:
            one.kill()
            one.wait()


@contextlib.contextmanager
def nothing() -> Iterator[list[str]]:
    yield []


def disk_of(path: Path) -> str:
    """``major:minor`` of the whole disk under a file system: a partition cannot be throttled."""
    device = path.stat().st_dev
    folder = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if not folder.exists():
        raise ValueError(f"{path} lies on no block device (tmpfs, overlay): nothing to throttle")
    folder = folder.resolve()
    whole = folder.parent if (folder / "partition").exists() else folder
    return (whole / "dev").read_text().strip()


@contextlib.contextmanager
def _group(controller: str, one: Mapping[str, str], two: Mapping[str, str]) -> Iterator[list[str]]:
    """A new control group with these limits, and the words that start a command in it."""
    mount = ROOT / {"io": "blkio"}.get(controller, controller)
    settings = one
    if not mount.is_dir():
        mount, settings = ROOT, two
        (ROOT / "cgroup.subtree_control").write_text(f"+{controller}")
    group = mount / f"stagescope-study-{os.getpid()}"
    group.mkdir()
    try:
        for name, value in settings.items():
            (group / name).write_text(value)
        yield ["sh", "-c", 'echo $$ > "$0"; exec "$@"', str(group / "cgroup.procs")]
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    """A group goes once its last process has been reaped."""
    end = time.monotonic() + _EMPTY_S
    while True:
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return
