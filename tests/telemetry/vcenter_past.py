"""A run that lies in the past: its clock stands where a test puts it, and the simulated vCenter
posts, keeps and forgets windows as though it were then. So an hour takes no time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.vsphere.settings import VCenterSettings
from telemetry.backfill import backfill
from telemetry.clock import Clock
from telemetry.collectors.vcenter import VCenterCollector
from telemetry.collectors.vcenter_journal import read_events
from telemetry.runfolder import RUN_SCHEMA, RunFolder
from telemetry.segments import SegmentWriter, read_samples
from telemetry.series import SeriesIndex
from tests.vcsim_server import Vcsim

NS = 1_000_000_000
STEP_S = 20
VM = "DC0_C0_RP0_VM0"


@dataclass(frozen=True, kw_only=True)
class Standing(Clock):
    """A clock that stands still until it is put elsewhere."""

    at: list[int] = field(default_factory=lambda: [0])

    def now_ns(self) -> int:
        return self.at[0]


class Past:
    """One run of ``seconds`` that began ``ago_s`` before now, and its vCenter at any time of it.

    Times are seconds since the start of the run.
    """

    def __init__(self, vcsim: Vcsim, path: Path, *, ago_s: float, seconds: float) -> None:
        self.vcsim = vcsim
        self.start_ns = (time.time_ns() - round(ago_s * NS)) // NS * NS
        self.end_ns = self.start_ns + round(seconds * NS)
        self.clock = Standing(offset_ns=0)
        self.folder = RunFolder(path)
        self.folder.samples.mkdir(parents=True)
        self.folder.write(
            {"schema": RUN_SCHEMA, "started_ns": self.start_ns, "ended_ns": self.end_ns}
        )
        self._writer: SegmentWriter | None = None

    def put(self, at_s: float) -> None:
        """Let it be ``at_s`` after the start, here and there."""
        self.clock.at[0] = self.start_ns + round(at_s * NS)
        self.vcsim.control(time_shift_s=self.clock.at[0] / NS - time.time())

    def unix_s(self, at_s: float) -> float:
        return self.start_ns / NS + at_s

    def amid_window_s(self, after_s: float) -> float:
        """The middle of the first whole window after ``after_s``: no error of a clock, some ten
        milliseconds here, takes it over the window's edge."""
        start_s = self.start_ns // NS
        return (start_s + after_s) // STEP_S * STEP_S + 1.5 * STEP_S - start_s

    def settings(self, **more: Any) -> VCenterSettings:
        return self.vcsim.settings(**{"vm": VM, **more})

    @contextlib.contextmanager
    def collector(self, **more: Any) -> Iterator[VCenterCollector]:
        """The collector, opened and closed as the recorder does it."""
        one = VCenterCollector(
            clock=self.clock,
            settings=self.settings(**more),
            folder=self.folder.samples,
            environ=self.vcsim.environ(),
        )
        self._writer = SegmentWriter(
            self.folder.samples, "vcenter", one.open(), host="x", period_s=one.period_s
        )
        self._writer.slow |= one.slow_periods
        self._writer.begin()
        try:
            yield one
        finally:
            self._writer.close()
            one.close()

    def sample(self, one: VCenterCollector, at_s: float) -> bool:
        """One query round at a time of the run; whether the vCenter was there."""
        self.put(at_s)
        assert self._writer is not None
        try:
            self._writer.write(one.sample())
        except OSError:
            return False
        return True

    def backfill(self, at_s: float, deadline_s: float = 0.0, **more: Any) -> list[str]:
        self.put(at_s)
        asleep_s = at_s

        def sleep(seconds: float) -> None:
            nonlocal asleep_s
            asleep_s += seconds
            self.put(asleep_s)

        environ: Mapping[str, str] = self.vcsim.environ()
        return backfill(
            self.folder,
            self.settings(**more),
            self.clock,
            deadline_s=deadline_s,
            sleep=sleep,
            environ=environ,
        )

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [one for one in read_events(self.folder.samples) if one["event"] == kind]

    def index(self) -> SeriesIndex:
        return SeriesIndex(read_samples(self.folder.samples))

    def stamps_s(self, entity: str, metric: str) -> list[float]:
        """The windows' ends, s since the start of the run; each once, or the test fails."""
        ts_ns = self.index().points(entity, metric).ts_ns.tolist()
        assert len(set(ts_ns)) == len(ts_ns), f"{entity} {metric} has windows twice"
        return [(one - self.start_ns) / NS for one in ts_ns]

    def expected_s(self, from_s: float = 0.0, to_s: float | None = None) -> list[float]:
        """The ends of all windows that lie in the run, in part or whole."""
        start_s = self.start_ns // NS
        last_s = (self.end_ns - self.start_ns) / NS if to_s is None else to_s
        first = int((start_s + from_s) // STEP_S + 1) * STEP_S
        ends = [float(first - start_s)]
        while ends[-1] < last_s:
            ends.append(ends[-1] + STEP_S)
        return ends

    def whole(self, prefix: str = "") -> set[str]:
        """Entities whose windows cover the run without a hole; each window is there once."""
        needed = set(self.expected_s())
        index, found = self.index(), {}
        for entity, metric in index.names():
            if entity.startswith(prefix) and not metric.startswith("clock_"):
                there = needed <= set(self.stamps_s(entity, metric))
                found[entity] = found.get(entity, True) and there
        return {entity for entity, there in found.items() if there}
