"""A day at 10 Hz by a moved clock: memory, disk and what is made of it stay within bounds.

The recorder's own parts are driven: a worker, its buffer and its writer, 864,000 samples of each
series and a flush for each of 86,400 seconds. Series are few, so that it takes seconds: what grows
with time would grow with two of them as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from telemetry import health, segments
from telemetry.clock import Clock
from telemetry.health import HEALTH, Worker
from telemetry.runfolder import RUN_SCHEMA, RunFolder
from telemetry.samples import Collector, Metric, Sample, Samples, Series
from telemetry.segments import ROTATE_S, SUFFIX, SegmentWriter

HOUR_S = 3600
HZ = 10
SPIKE_NS = 3_555 * 1_000_000_000
START_NS = 1_795_485_600_000_000_000
MOST_GROWTH_MB = 16.0
"""Of the process, from the first hour to the last; the day's samples would be 20 times that."""
MOST_BYTES_PER_S = 1_000.0
"""On disk, of two series: most of it is the head of each second's batch, whatever is in it."""
ENTITY = "machine"
ROUND = """
import json, sys
from pathlib import Path
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak from here on: a parent's is handed down otherwise
from telemetry.finish import finish
from telemetry.runfolder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
rows = finish(folder).rows
status = Path("/proc/self/status").read_text()
peak_kb = int(status.split("VmHWM:")[1].split()[0])
print(json.dumps({"peak_mb": peak_kb / 1e3, "report": folder.report_html.stat().st_size,
    "coverage": {row.metric: row.coverage for row in rows if row.entity == "machine"},
    "total": {row.metric: row.total for row in rows if row.entity == "machine"},
    "max": {row.metric: row.max for row in rows if row.entity == "machine"}}))
"""


class MovedTime:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.ns = 0

    def monotonic(self) -> float:
        return self.ns / 1e9


class MovedClock(Clock):
    """The guest's clock by that time."""

    def now_ns(self) -> int:
        return START_NS + TIME.ns


TIME = MovedTime()


class Two:
    """A gauge with one spike in the day, and a counter of half a core."""

    name = "guest"
    period_s = 1 / HZ

    def open(self) -> Sequence[Series]:
        self.series = (
            _series("mem_used_bytes", "B", "gauge"),
            _series("cpu_user_seconds", "s", "counter"),
        )
        return self.series

    def sample(self) -> Samples:
        now_s = TIME.ns / 1e9
        level = 1e12 if TIME.ns == SPIKE_NS else 1e9 + now_s % 977
        values = (level, now_s / 2)
        return [
            Sample(START_NS + TIME.ns, one, value)
            for one, value in zip(self.series, values, strict=True)
        ]

    def close(self) -> None:
        pass


def _series(name: str, unit: str, kind: str) -> Series:
    metric = Metric(name=name, unit=unit, kind=kind, meaning="made up", source="a test")  # type: ignore[arg-type]
    return Series(entity=ENTITY, metric=metric)


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def drive(folder: Path, hours: int, collector: Collector) -> list[float]:
    """Record that many hours of ``collector``; returns the process's memory after each."""
    clock = MovedClock(offset_ns=0)
    writer = SegmentWriter(
        folder,
        "guest",
        [Series(entity="collector:guest", metric=metric) for metric in HEALTH],
        host="here",
        period_s=1 / HZ,
        slow={metric.name: 1.0 for metric in HEALTH},
    )
    worker = Worker(collector=collector, writer=writer, clock=clock)
    TIME.ns = 0
    assert worker.open()
    held = []
    for _ in range(hours):
        for _ in range(HOUR_S):
            for _ in range(HZ):
                TIME.ns += 1_000_000_000 // HZ
                worker.put(collector.sample())
            worker.flush()
        held.append(resident_mb())
    worker.close()
    assert worker.rows_lost == 0
    return held


def write_run(folder: RunFolder, hours: int) -> None:
    end_ns = START_NS + hours * HOUR_S * 1_000_000_000
    one = {
        "name": "training", "status": "finished", "start_ns": START_NS, "end_ns": end_ns,
        "pid": None, "exit_code": 0, "reused_from": None, "rusage": None, "bytes_in": None,
        "bytes_out": None, "rows_in": None, "rows_out": None, "summary": {}, "reason": None,
    }  # fmt: skip
    folder.write({
        "schema": RUN_SCHEMA, "run_id": folder.path.name, "name": "day", "status": "finished",
        "started_ns": START_NS, "ended_ns": end_ns, "host": "here", "seed": 7,
        "clock": {"offset_start_ns": 0, "offset_end_ns": 0}, "environment": {"cpu": {"count": 2}},
        "recipe": {}, "losses": [], "stages": [one],
    })  # fmt: skip


def finished(folder: RunFolder) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", ROUND, str(folder.path)], capture_output=True, text=True, check=True
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def move_clocks(patch: pytest.MonkeyPatch) -> None:
    """Let the recorder's parts go by the clock that is moved."""
    for module in (health, segments):
        patch.setattr(module, "time", SimpleNamespace(monotonic=TIME.monotonic))


def test_a_day_stays_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    move_clocks(monkeypatch)
    told = {}
    for hours in (1, 24):
        folder = RunFolder(tmp_path / f"20261124-0200{hours:02d}-3fa9c1")
        folder.samples.mkdir(parents=True)
        held = drive(folder.samples, hours, Two())
        assert held[-1] - held[0] < MOST_GROWTH_MB
        files = list(folder.samples.glob(f"*{SUFFIX}"))
        assert len(files) <= hours * HOUR_S / ROTATE_S + 1
        size = sum(file.stat().st_size for file in files)
        assert size / (hours * HOUR_S) < MOST_BYTES_PER_S
        write_run(folder, hours)
        told[hours] = finished(folder)
    hour, day = told[1], told[24]
    assert day["coverage"]["mem_used_bytes"] == pytest.approx(1.0, abs=1e-4)
    assert day["total"]["cpu_user_seconds"] == pytest.approx(12 * HOUR_S, rel=1e-4)
    assert day["max"]["mem_used_bytes"] == 1e12, "the spike of one sample"
    assert day["report"] < 1.5 * hour["report"]
    assert day["peak_mb"] - hour["peak_mb"] < 23 * HOUR_S * HZ * 2 * 200 / 1e6
