"""A run while it goes: what is read of a file that is being written, and what is made of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from telemetry.archive import EXAMPLE, unpack
from telemetry.derived import BUSY
from telemetry.runfolder import RunFolder, find_run
from telemetry.samples import Metric, Sample, Series
from telemetry.segments import SegmentWriter, read_samples
from telemetry.tail import Fresh, Tail
from telemetry.watch import Live, follow
from telemetry.watch_series import MAIN
from tests.telemetry.test_finish import START_NS, stage, write_run

ROOT = Path(__file__).parents[2]
NS = 10**9
WORK = "import time\nend = time.time() + 5\nwhile time.time() < end: sum(range(1000))"


def metric(name: str, kind: Any = "gauge", unit: str = "1") -> Metric:
    return Metric(name=name, unit=unit, kind=kind, meaning="m", source="s")


def rows(found: Iterable[Fresh]) -> Counter[tuple[str, str, int, float]]:
    return Counter(
        (one.entities[entity], one.metrics[name], int(ts), float(value))
        for one in found
        for entity, name, ts, value in zip(
            one.entity, one.metric, one.ts_ns, one.value, strict=True
        )
    )


def test_what_is_read_piece_by_piece_is_what_is_read_at_once(tmp_path: Path) -> None:
    """Whatever the moment at which somebody looks: whole batches, each once, and all in the end."""
    made, grown = tmp_path / "made", tmp_path / "grown"
    made.mkdir()
    grown.mkdir()
    absent = Series(entity="gpu", metric=metric("power"), reason="no driver")
    writer = SegmentWriter(made, "guest", [absent], host="h", period_s=0.1, slow={"x": 1.0})
    for batch in range(12):  # names are added on the way
        writer.write([
            Sample(batch * 10 + place, Series(entity=f"e{batch // 3}", metric=metric(f"m{place}")),
                   batch + place / 10)
            for place in range(1 + batch % 4)
        ])  # fmt: skip
    writer.close()
    (path,) = made.iterdir()
    data = path.read_bytes()
    chance = np.random.default_rng(4)
    for trial in range(40):
        tail, target = Tail(grown), grown / f"guest-{trial:04d}.arrows"
        seen: Counter[tuple[str, str, int, float]] = Counter()
        for end in sorted({*chance.integers(0, len(data), 9).tolist(), len(data)}):
            target.write_bytes(data[:end])
            seen += rows(tail.read())
        whole = Counter(
            (one["entity"], one["metric"], one["ts_ns"], one["value"])
            for one in read_samples(made).table.to_pylist()
        )
        assert seen == whole
        assert list(tail.read()) == []
        assert tail.absent == {("gpu", "power"): "no driver"}
        assert (tail.period_s("e", "x"), tail.period_s("e", "unknown")) == (1.0, 1.0)
        assert tail.period_s("gpu", "power") == 0.1
        target.unlink()


def test_what_is_no_segment_is_passed_over(tmp_path: Path) -> None:
    assert list(Tail(tmp_path / "not there").read()) == []
    (tmp_path / "guest-0000.arrows").write_bytes(os.urandom(999))
    (tmp_path / "gpu-0000.arrows").write_bytes(b"")
    tail = Tail(tmp_path)
    assert list(tail.read()) == list(tail.read()) == []


def test_of_what_is_long_over_only_reasons_and_stages_are_told(tmp_path: Path) -> None:
    """A stage that ended hours ago has counted what it has counted."""
    for number, age_s in enumerate((2000, 0)):
        absent = Series(entity="gpu", metric=metric(f"m{number}"), reason="why")
        writer = SegmentWriter(tmp_path, "guest", [absent], host="h", period_s=0.1)
        writer.write([
            Sample(number, Series(entity=entity, metric=metric("m")), 1.0)
            for entity in ("machine", f"stage:s{number}", f"app:s{number}", "disk:sda")
        ])  # fmt: skip
        writer.close()
        path = tmp_path / f"guest-{number:04d}.arrows"
        os.utime(path, (path.stat().st_atime - age_s, path.stat().st_mtime - age_s))
    tail = Tail(tmp_path)
    newest = ("machine", "stage:s1", "app:s1", "disk:sda")
    ended = ("stage:s0", "app:s0")
    assert rows(tail.read()) == rows_of([(one, 0) for one in ended] + [(one, 1) for one in newest])
    assert set(tail.absent) == {("gpu", "m0"), ("gpu", "m1")}


def rows_of(found: Iterable[tuple[str, int]]) -> Counter[tuple[str, str, int, float]]:
    return Counter((entity, "m", ts_ns, 1.0) for entity, ts_ns in found)


def test_a_segment_that_is_over_is_not_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real_open = Path.open

    def noted(path: Path, *arguments: Any, **more: Any) -> Any:
        opened.append(path.name)
        return real_open(path, *arguments, **more)

    tail = Tail(tmp_path)
    writers = []
    for number in range(3):
        writer = SegmentWriter(tmp_path, "guest", [], host="h", period_s=0.1)
        writer.write([Sample(number, Series(entity="e", metric=metric("m")), 1.0)])
        writers.append(writer)
    for writer in writers[:2]:
        writer.close()
    assert len(list(tail.read())) == 3
    monkeypatch.setattr(Path, "open", noted)
    assert list(tail.read()) == []
    assert opened == []
    writers[2].write([Sample(9, Series(entity="e", metric=metric("m")), 2.0)])
    assert rows(tail.read()) == Counter({("e", "m", 9, 2.0): 1})
    assert opened == ["guest-0002.arrows"]


class Script:
    """A run whose samples a test writes."""

    def __init__(self, path: Path, stages: list[dict[str, Any]]) -> None:
        self.folder = RunFolder(path)
        write_run(self.folder, stages, status="running", ended_ns=None)
        self.folder.samples.mkdir()
        self.writer = SegmentWriter(self.folder.samples, "guest", [], host="h", period_s=1.0)
        self.live = Live(self.folder)

    def write(self, at_s: float, **values: tuple[Any, str, float]) -> None:
        """``name=(entity, kind, value)`` at this second of the run."""
        self.writer.declare(
            [Series(entity=of, metric=metric(name, kind)) for name, (of, kind, _) in values.items()]
        )
        self.writer.write([
            Sample(START_NS + round(at_s * NS), Series(entity=of, metric=metric(name, kind)), value,
                   START_NS if kind == "window" else None)
            for name, (of, kind, value) in values.items()
        ])  # fmt: skip

    def now(self, name: str, **labels: str) -> float | None:
        self.live.update()
        return self.live.snapshot().total(name, **labels)


def test_rates_levels_and_totals(tmp_path: Path) -> None:
    script = Script(tmp_path, [stage("fit", "running", START_NS, None)])

    def cpu(at_s: float, value: float) -> None:
        script.write(at_s, **dict.fromkeys(BUSY, ("machine", "counter", value)))

    cpu(1.0, 10.0)
    assert script.now("cpu_busy_cores") is None, "one sample is no rate"
    cpu(3.0, 10.5)
    assert script.now("cpu_busy_cores") == pytest.approx(len(BUSY) * 0.25)
    cpu(3.1, 12.0)
    assert script.now("cpu_busy_cores") == pytest.approx(len(BUSY) * 0.25), "too short for a rate"
    cpu(5.0, 12.5)
    assert script.now("cpu_busy_cores") == pytest.approx(len(BUSY))
    cpu(6.0, 1.0)
    assert script.now("cpu_busy_cores") is None, "a counter that went back has no rate"
    cpu(7.0, 2.0)
    assert script.now("cpu_busy_cores") == pytest.approx(len(BUSY))
    script.write(8.0, gpu_util_percent=("gpu:1", "gauge", 40.0), energy_j=("gpu:1", "counter", 7.0))
    assert script.now("gpu_utilization_ratio", gpu="1") == pytest.approx(0.4)
    assert script.now("gpu_energy_joules", gpu="1") == 7.0
    assert script.now("gpu_utilization_ratio", gpu="0") is None
    script.write(
        8.0, app_rows=("app:fit", "counter", 3.0), phase_io_seconds=("app:fit", "counter", 2)
    )
    assert script.now("stage_counted", stage="fit", what="rows") == 3.0
    assert script.now("stage_phase_seconds", stage="fit", phase="io") == 2.0


def test_what_a_stage_counts_is_apart_by_unit(tmp_path: Path) -> None:
    script = Script(tmp_path, [stage("fit", "running", START_NS, None)])
    counted = {"app_rows": 3.0, "app_read_bytes": 4.0, "app_wait_seconds": 5.0, "app_bytes": 6.0}
    script.write(1.0, **{name: ("app:fit", "counter", one) for name, one in counted.items()})
    script.live.update()
    told = [(one.main.name, one.labels["what"], one.value) for one in script.live.snapshot().values]
    assert sorted(told) == [
        ("stage_counted", "bytes", 6.0), ("stage_counted", "rows", 3.0),
        ("stage_counted_bytes", "read", 4.0), ("stage_counted_seconds", "wait", 5.0),
    ]  # fmt: skip


def test_of_a_sum_no_part_is_guessed(tmp_path: Path) -> None:
    script = Script(tmp_path, [])
    for at_s in (1.0, 2.0):
        script.write(at_s, **dict.fromkeys(BUSY[:-1], ("machine", "counter", at_s)))
    assert script.now("cpu_busy_cores") is None


def test_what_is_not_sampled_any_more_is_not_shown_any_more(tmp_path: Path) -> None:
    script = Script(tmp_path, [stage("fit", "running", START_NS, None)])
    script.write(
        1.0, mem_rss_bytes=("stage:fit", "gauge", 5.0), io_read_bytes=("stage:fit", "counter", 9.0)
    )
    script.write(1.0, vm_cpu_ready_percent=("vm:a@b", "window", 10.0))
    assert script.now("stage_memory_resident_bytes", stage="fit") == 5.0
    script.write(30.0, mem_used_bytes=("machine", "gauge", 1.0))
    assert script.now("stage_memory_resident_bytes", stage="fit") is None
    assert script.now("stage_storage_read_bytes", stage="fit") == 9.0, "what was counted stays"
    assert script.now("vm_cpu_ready_ratio", vm="a", host="b") == pytest.approx(0.1)
    script.write(1000.0, mem_used_bytes=("machine", "gauge", 1.0))
    assert script.now("vm_cpu_ready_ratio", vm="a") is None
    assert script.live.snapshot().seconds == 1000.0


def test_of_a_vm_that_moved_only_the_host_that_it_is_on_is_shown(tmp_path: Path) -> None:
    script = Script(tmp_path, [stage("fit", "running", START_NS, None)])

    def ready(at_s: float, entity: str, percent: float) -> None:
        script.write(at_s, vm_cpu_ready_percent=(entity, "window", percent))

    ready(20.0, "vm:a@old", 60.0)
    ready(20.0, "vm:b@old", 5.0)
    script.write(20.0, vm_cpu_used_cores=("vm:a@old", "window", 1.5))
    assert script.now("vm_cpu_ready_ratio", vm="a") == pytest.approx(0.6)
    ready(40.0, "vm:a@new", 50.0)
    assert script.now("vm_cpu_ready_ratio", vm="a") == pytest.approx(0.5)
    assert script.now("vm_cpu_ready_ratio", vm="a", host="old") is None
    assert script.now("vm_cpu_used_cores", vm="a") is None, "the new host has told nothing of it"
    assert script.now("vm_cpu_ready_ratio", vm="b") == pytest.approx(0.05), "that one has not moved"
    ready(30.0, "vm:a@old", 70.0)
    assert script.now("vm_cpu_ready_ratio", vm="a") == pytest.approx(0.5), "it is late, not new"
    ready(60.0, "vm:a@old", 10.0)
    assert script.now("vm_cpu_ready_ratio", vm="a") == pytest.approx(0.1), "it came back"
    script.write(80.0, vm_disk_read_bytes_per_s=("vm:a@new/scsi0:0", "window", 1.0))
    assert script.now("vm_cpu_ready_ratio", vm="a") is None, "a part of it has moved, so it has"


def test_which_window_is_newer_goes_by_the_clock_of_the_run(tmp_path: Path) -> None:
    script = Script(tmp_path, [stage("fit", "running", START_NS, None)])
    script.write(1.0, clock_offset_seconds=("esxi:old", "gauge", 120.0))
    script.write(140.0, vm_cpu_ready_percent=("vm:a@old", "window", 60.0))
    script.live.update()
    (ready,) = script.live.snapshot().of("vm_cpu_ready_ratio")
    assert (ready.window, ready.ts_ns) == (True, START_NS + 20 * NS)
    script.write(40.0, vm_cpu_ready_percent=("vm:a@new", "window", 50.0))
    assert script.now("vm_cpu_ready_ratio") == pytest.approx(0.5)


def test_a_window_of_the_future_does_not_move_the_time(tmp_path: Path) -> None:
    """Its stamp is the host's clock, which may be ahead."""
    script = Script(tmp_path, [])
    script.write(1.0, mem_used_bytes=("machine", "gauge", 1.0))
    script.write(500.0, vm_cpu_ready_percent=("vm:a@b", "window", 10.0))
    assert script.now("memory_used_bytes") == 1.0
    assert script.live.snapshot().now_ns == START_NS + NS


def test_following_ends_with_the_run_or_says_that_it_is_gone(tmp_path: Path) -> None:
    script = Script(tmp_path, [stage("fit", "running", START_NS, None)])
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        if clock[0] == 3.0:
            script.write(3.0, mem_used_bytes=("machine", "gauge", 1.0))
        if clock[0] == 5.0:
            record = script.folder.read()
            record["stages"][0] |= {"status": "finished", "end_ns": START_NS + 4 * NS}
            script.folder.write({**record, "status": "finished", "ended_ns": START_NS + 5 * NS})

    seen = list(follow(script.live, sleep=sleep, monotonic=lambda: clock[0]))
    assert [(one.ended, one.stage) for one in seen] == [(False, "fit"), (False, "fit"), (True, "")]
    assert seen[-1].seconds == 5.0
    assert seen[-1].stage_seconds(seen[-1].record["stages"][0]) == 4.0
    gone = Script(tmp_path / "gone", [])
    with pytest.raises(TimeoutError, match="nothing was written of this run for 60 s"):
        list(follow(gone.live, sleep=sleep, monotonic=lambda: clock[0]))


def test_a_run_of_another_process_is_followed_to_its_end(tmp_path: Path) -> None:
    """Real parts: somebody records five busy seconds, and somebody else looks on."""
    command = [sys.executable, "-m", "pipeline.cli", "record", "--name", "burn", "--out",
               str(tmp_path), "--", sys.executable, "-c", WORK]  # fmt: skip
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as recording:
        while not (tmp_path / "latest/run.json").is_file():
            assert recording.poll() is None
        folder = find_run("latest", tmp_path)
        seen = list(follow(Live(folder), every_s=0.5))
    assert seen[-1].ended
    assert not seen[0].ended
    busy = [one.total("stage_cpu_busy_cores", stage="burn") for one in seen]
    assert max(one for one in busy if one is not None) > 0.3
    assert (seen[-1].total("stage_cpu_seconds", stage="burn") or 0.0) > 1.5
    assert {one.main.name for one in seen[-2].values} >= {
        "cpu_busy_cores", "cpus", "memory_used_bytes", "stage_memory_resident_bytes",
        "collector_up", "filesystem_free_bytes",
    }  # fmt: skip
    assert [one.stage for one in seen].count("burn") >= 3


def test_the_example_shows_every_main_series(tmp_path: Path) -> None:
    folder, _ = unpack(EXAMPLE, tmp_path / "run")
    live = Live(folder)
    assert live.update()
    assert not live.update(), "nothing new"
    missing = {one.name for one in MAIN} - {one.main.name for one in live.snapshot().values}
    assert not missing
    profile_cpu = json.loads(json.dumps(folder.read()["stages"][3]["rusage"]))
    total = live.snapshot().total("stage_cpu_seconds", stage="training")
    assert total == pytest.approx(profile_cpu["user_s"] + profile_cpu["system_s"], abs=0.1)
