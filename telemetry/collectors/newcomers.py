"""Disks and interfaces that come, or do their first work, after a machine's files were opened."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from telemetry.collectors import guest_metrics as metrics
from telemetry.collectors.devices import counted_once, is_disk, rows_of, series_of
from telemetry.collectors.machine import Machine, Source
from telemetry.collectors.procfs import parse_diskstats, parse_net_dev
from telemetry.samples import Series


class Newcomers:
    """Looks in what the machine's files said for whole devices that are not sampled.

    Each is told once, when it has counted anything. ``said``: the bytes of each file, by its path.
    """

    def __init__(self, machine: Machine, proc: Path, sys: Path) -> None:
        self._sys = sys
        self._diskstats, self._net_dev = str(proc / "diskstats"), str(proc / "net/dev")
        self._known = {one.entity for one in machine.series}

    def disks(self, said: Mapping[str, bytes]) -> list[Source]:
        """What samples whole disks that are new, from now on. Raises OSError; what was new then is
        new the next time as well."""
        fresh = self._fresh("disk", parse_diskstats(said.get(self._diskstats, b"")))
        names = [name for name in fresh if is_disk(name, self._sys)]
        sources = [self._source(names)] if names else []
        self._known.update(f"disk:{name}" for name in fresh)
        return sources

    def interfaces(self, said: Mapping[str, bytes]) -> list[str]:
        """Names of interfaces whose bytes belong in the machine's sum."""
        rows = parse_net_dev(said.get(self._net_dev, b""))
        before = [name for name in rows if f"net:{name}" in self._known]
        fresh = self._fresh("net", rows)
        self._known.update(f"net:{name}" for name in fresh)
        return sorted(set(counted_once([*before, *fresh], self._sys)) & set(fresh)) if fresh else []

    def _fresh(self, kind: str, rows: Mapping[str, Sequence[float]]) -> list[str]:
        return [
            name for name, row in rows.items() if f"{kind}:{name}" not in self._known and any(row)
        ]

    def _source(self, disks: Sequence[str]) -> Source:
        series = series_of("disk", disks, metrics.DISK)
        return Source(
            path=self._diskstats,
            descriptor=os.open(self._diskstats, os.O_RDONLY | os.O_CLOEXEC),
            series=tuple(Series(entity=entity, metric=metric) for entity, metric in series),
            parse=rows_of(parse_diskstats, disks, len(metrics.DISK)),
        )
