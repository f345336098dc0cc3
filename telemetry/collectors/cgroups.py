"""Where the kernel's control groups of a process lie, in either version."""

from __future__ import annotations

from pathlib import Path

from telemetry.collectors.procfs import parse_cgroup_paths, parse_mounts


def cgroup_folders(proc: Path = Path("/proc")) -> tuple[Path, dict[str, Path]]:
    """Folder of this process's control group in v2, and per controller in v1."""
    try:
        paths = {"": "/", **parse_cgroup_paths((proc / "self/cgroup").read_bytes())}
    except OSError:  # a kernel without control groups
        paths = {}
    mounts = cgroup_mounts(proc)
    found = {
        name: cgroup_below(mounts[name], path) for name, path in paths.items() if name in mounts
    }
    return found.pop("", Path("/no cgroup2")), found


def cgroup_mounts(proc: Path = Path("/proc")) -> dict[str, Path]:
    """Where each controller of v1 is mounted (all words among its options), and v2 under ""."""
    found: dict[str, Path] = {}
    try:
        mounts = parse_mounts((proc / "self/mounts").read_bytes())
    except OSError:
        return found
    for point, kind, options in mounts:
        if kind == "cgroup2":
            found[""] = Path(point)
        elif kind == "cgroup":
            found |= dict.fromkeys(options, Path(point))
    return found


def cgroup_below(mount: Path, path: str) -> Path:
    """In a container the path can be the host's: what is mounted is then the group itself."""
    inside = mount / path.lstrip("/")
    return inside if inside.is_dir() else mount
