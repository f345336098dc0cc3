"""What is said of a run whose process is gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from telemetry.runfolder import killed, last_sample_ns
from telemetry.samples import Sample, Series
from telemetry.segments import SegmentWriter
from tests.telemetry.oracle import make_metric

T0_NS = 1_795_485_600_000_000_000
MS = 1_000_000
USED = Series(entity="machine", metric=make_metric("mem_used_bytes", "gauge", "B"))
READY = Series(entity="vm:ml-01", metric=make_metric("vm_cpu_ready_percent", "window", "%"))


def stage(name: str, status: str, start_ms: int | None, end_ms: int | None) -> dict[str, Any]:
    start_ns, end_ns = (None if at is None else T0_NS + at * MS for at in (start_ms, end_ms))
    return {"name": name, "status": status, "start_ns": start_ns, "end_ns": end_ns}


def sampled(folder: Path, *rows: Sample) -> Path:
    folder.mkdir()
    writer = SegmentWriter(folder, "guest", [USED, READY], host="here", period_s=0.1)
    writer.write(rows)
    writer.close()
    return folder


def at(ms: int) -> Sample:
    return Sample(T0_NS + ms * MS, USED, 1.0)


REUSED = stage("ingest", "reused", None, None)
FINISHED = stage("features", "finished", 100, 5_000)


@pytest.mark.parametrize(
    ("stages", "samples_ms", "ended_ms"),
    [
        ([], [], 0),
        ([], [300], 300),
        ([REUSED, stage("train", "running", 700, None)], [], 700),
        ([stage("train", "running", 700, None)], [800, 2_900], 2_900),
        ([FINISHED, stage("train", "running", 6_000, None)], [5_900], 6_000),
        ([FINISHED], [4_900], 5_000),
    ],
)
def test_a_killed_run_ends_with_the_last_thing_known_of_it(
    tmp_path: Path, stages: list[dict[str, Any]], samples_ms: list[int], ended_ms: int
) -> None:
    samples = sampled(tmp_path / "samples", *map(at, samples_ms))
    going = {"started_ns": T0_NS, "ended_ns": None, "status": "running", "stages": stages}
    got = killed(going, samples)
    assert got["status"] == "killed"
    assert got["ended_ns"] == T0_NS + ended_ms * MS
    for before, after in zip(stages, got["stages"], strict=True):
        if before["status"] == "running":
            assert (after["status"], after["end_ns"]) == ("killed", None)
        else:
            assert after == before


def test_the_last_sample_is_this_machines_own_up_to_where_a_file_was_torn(tmp_path: Path) -> None:
    window = Sample(T0_NS + 60_000 * MS, READY, 3.0, T0_NS + 40_000 * MS)
    folder = sampled(tmp_path / "samples", at(100), at(200), window)
    (folder / "gpu-0000.arrows").write_bytes(b"\xff\xff\xff\xfftorn")
    assert last_sample_ns(folder) == T0_NS + 200 * MS
    assert last_sample_ns(tmp_path / "none") is None
