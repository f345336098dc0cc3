"""Control groups to hold a process back with: CPU quota, reads of a device, memory (v1 or v2).

Every one is made below the group that this process is in, or below the root, and removed again.
Who may not make one (no root, no such controller) is told by ``why_not``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from telemetry.collectors.cgroups import cgroup_folders

V1 = {"cpu": "cpu", "cpuacct": "cpuacct", "io": "blkio", "memory": "memory"}
"""``cpuacct`` is v1's alone, which counts the CPU time of a group apart from its quota."""


def why_not(controller: str) -> str | None:
    """Why this process cannot hold another back by ``controller`` (cpu, io, memory); None if so."""
    try:
        with group(controller, {}):
            return None
    except OSError as error:
        return f"no control group with {controller} can be made here: {error}"


@contextlib.contextmanager
def group(controller: str, limits: Mapping[str, str]) -> Iterator[Path]:
    """A new group with these files written (by their names in v1; v2's are made of them).

    Raises OSError where it cannot be made.
    """
    parent, is_v1 = _parent(controller)
    folder = parent / f"stagescope-{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        files = dict(limits) if is_v1 else _as_v2(controller, limits)
        for name, value in files.items():
            (folder / name).write_text(value)
        if not is_v1 and not (folder / f"{controller}.max").exists() and controller != "cpu":
            raise FileNotFoundError(f"{folder} has no {controller}.max")
        yield folder
    finally:
        _remove(folder)


def _parent(controller: str) -> tuple[Path, bool]:
    two, one = cgroup_folders()
    name = V1[controller]
    if name in one:
        return one[name], True
    if controller not in (two / "cgroup.controllers").read_text().split():
        raise FileNotFoundError(f"neither v1's {name} nor v2's {controller} is mounted")
    with contextlib.suppress(OSError):
        (two / "cgroup.subtree_control").write_text(f"+{controller}")
    return two, False


def _as_v2(controller: str, limits: Mapping[str, str]) -> dict[str, str]:
    if controller == "cpu":
        quota, period = limits.get("cpu.cfs_quota_us"), limits.get("cpu.cfs_period_us", "100000")
        return {} if quota is None else {"cpu.max": f"{quota} {period}"}
    if controller == "memory":
        return {"memory.max": value for value in limits.values()}  # noqa: B035 - one at most
    files = {}
    for name, value in limits.items():
        device, rate = value.split()
        way = "rbps" if "read" in name else "wbps"
        files["io.max"] = f"{device} {way}={rate}"
    return files


def _remove(folder: Path) -> None:
    """A group with a process that has just ended is busy for a moment."""
    for _ in range(50):
        try:
            folder.rmdir()
        except OSError:
            time.sleep(0.1)
        else:
            return


def device_of(path: Path) -> str:
    """``major:minor`` of the whole disk on which a file system lies."""
    number = path.stat().st_dev
    name = f"{os.major(number)}:{os.minor(number)}"
    block = Path("/sys/dev/block") / name
    if (block / "partition").exists():
        return (block.resolve().parent / "dev").read_text().strip()
    return name
