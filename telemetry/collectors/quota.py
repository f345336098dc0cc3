"""What a CPU quota did to a process: the accounts of its control group and of the groups above it.

A stage can be in a group of its own (a scheduler of batch jobs, systemd-run), which the recorder,
in its own, does not feel. The group is asked for at each look, for a process can be moved.
"""

from __future__ import annotations

from pathlib import Path

from telemetry.collectors.cgroups import cgroup_below, cgroup_mounts
from telemetry.collectors.machine import read_file
from telemetry.collectors.procfs import parse_cgroup_paths, parse_quota

Quota = tuple[float, float, float]
"""Seconds held back, summed over CPUs; periods in which it was; periods with work in all."""


class QuotaAccount:
    """Counters of what the quotas above one process did since the first look; never backwards."""

    def __init__(self, pid: int, proc: Path) -> None:
        self._said_in, self._said = f"{proc}/{pid}/cgroup", b""
        mounts = cgroup_mounts(proc)
        self._mounts = {name: mounts[name] for name in ("cpu", "") if name in mounts}
        self._chain: list[str] = []
        self._last: dict[str, Quota] = {}
        self._total: Quota = (0.0, 0.0, 0.0)

    def look(self) -> Quota | None:
        """The counters now; None where no group of the process has such an account.

        Of groups within each other the one that held the process back the most counts.
        """
        now = {file: one for file in self._groups() if (one := _read(file)) is not None}
        grown = (0.0, 0.0, 0.0)
        for file, one in now.items():
            before = self._last.get(file, one)
            step = (one[0] - before[0], one[1] - before[1], one[2] - before[2])
            grown = max(grown, step)
        self._total = tuple(max(0.0, a) + b for a, b in zip(grown, self._total, strict=True))  # type: ignore[assignment]
        known = bool(self._last or now)
        self._last |= now
        return self._total if known else None

    def _groups(self) -> list[str]:
        """The accounts from the mount down to the process's group.

        Of a process that has ended v1 says the root, so a chain is not cut short.
        """
        said = read_file(self._said_in)
        if said is None or said == self._said:
            return self._chain
        self._said, paths = said, parse_cgroup_paths(said)
        found: list[Path] = []
        for controller, mount in self._mounts.items():
            folder = cgroup_below(mount, paths.get(controller, "/"))
            found += [one for one in (folder, *folder.parents) if one.is_relative_to(mount)]
        files = [str(folder / "cpu.stat") for folder in found]
        if not set(files) <= set(self._chain):
            self._chain = files
        return self._chain


def _read(file: str) -> Quota | None:
    data = read_file(file)
    try:
        return None if data is None else parse_quota(data)
    except ValueError:
        return None
