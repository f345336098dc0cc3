"""The recorder as a process: killed, orphaned, replaced, hindered; and its collectors that fail."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from telemetry.clock import Clock, measure_offset_ns
from telemetry.recorder import Factory, Recorder
from telemetry.recording import Recording
from telemetry.samples import Metric, Sample, Samples, Series
from telemetry.segments import read_samples
from telemetry.series import SeriesIndex
from telemetry.settings import TelemetrySettings

ROOT = Path(__file__).resolve().parents[2]
LIGHT = TelemetrySettings(collectors=("guest",), flush_s=0.5)
LEVEL = Series(
    entity="made", metric=Metric(name="level", unit="1", kind="gauge", meaning="", source="")
)


def clock() -> Clock:
    return Clock(offset_ns=measure_offset_ns())


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


@pytest.fixture
def sleeper() -> object:
    process = subprocess.Popen(["sleep", "600"])
    yield process.pid
    process.kill()
    process.wait()


def test_a_recording_from_start_to_end(tmp_path: Path, sleeper: int) -> None:
    with Recording(tmp_path / "samples", clock(), TelemetrySettings()) as recording:
        (pid,) = recording.pids()
        recording.watch("train", sleeper)
        recording.watch("runner", os.getpid())
        time.sleep(1.5)
        recording.unwatch("train")
    assert gone(pid)
    assert recording.pids() == []
    assert [loss for loss in recording.losses if "may not be read" not in loss] == []
    samples = read_samples(tmp_path / "samples")
    index = SeriesIndex(samples)
    entities = {entity for entity, _ in index.names()}
    assert {"machine", "stage:train", "runner", "recorder", "processes", "fs:runs"} <= entities
    assert index.points("collector:guest", "collector_up").values[-1] == 1.0
    ticks = index.points("machine", "mem_used_bytes").ts_ns
    assert 6 <= len(ticks) <= 60
    assert any(one.entity == "stage:train" and one.reason for one in samples.absent)
    assert not (tmp_path / "samples/recorder.log").exists()


def test_killed_at_any_moment_one_flush_is_lost_and_another_goes_on(
    tmp_path: Path, sleeper: int
) -> None:
    chance = random.Random(7)
    recording = Recording(tmp_path, clock(), LIGHT)
    killed_ns = []
    with recording:
        recording.watch("train", sleeper)
        for _ in range(3):
            time.sleep(1.0 + chance.random())
            (pid,) = recording.pids()
            os.kill(pid, signal.SIGKILL)
            killed_ns.append(clock().now_ns())
            until(lambda pid=pid: gone(pid))
            recording.flush()
            assert recording.pids() != [pid]
    index = SeriesIndex(read_samples(tmp_path))
    ts_ns = index.points("stage:train", "page_faults_minor").ts_ns
    for moment in killed_ns:
        before = ts_ns[ts_ns <= moment]
        assert moment - before[-1] < 3e9  # half a second, on a machine that may be busy
    assert ts_ns[-1] > killed_ns[-1]
    assert sum("ended with -9" in loss for loss in recording.losses) == 3
    assert any("replaced (3)" in loss for loss in recording.losses)


def test_a_recorder_that_cannot_live_is_given_up(tmp_path: Path, sleeper: int) -> None:
    with Recording(tmp_path, clock(), LIGHT) as recording:
        for _ in range(4):
            for pid in recording.pids():
                os.kill(pid, signal.SIGKILL)
                until(lambda pid=pid: gone(pid))
            recording.watch("train", sleeper)
        assert recording.pids() == []
        recording.unwatch("train")
        recording.flush()
    assert sum("ended with -9" in loss for loss in recording.losses) >= 1


def test_one_that_hangs_is_killed_and_replaced(
    tmp_path: Path, sleeper: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("telemetry.recording.ANSWER_S", 2.0)
    with Recording(tmp_path, clock(), LIGHT) as recording:
        (pid,) = recording.pids()
        os.kill(pid, signal.SIGSTOP)
        recording.watch("train", sleeper)
        assert gone(pid)
        assert len(recording.pids()) == 1
    assert any(
        "did not answer" in loss and "(watch stage:train)" in loss for loss in recording.losses
    )
    assert ("stage:train", "mem_rss_bytes") in SeriesIndex(read_samples(tmp_path))


PARENT = """
import os, sys, time
from pathlib import Path
from telemetry.clock import Clock, measure_offset_ns
from telemetry.recording import Recording
from telemetry.settings import TelemetrySettings
settings = TelemetrySettings(collectors=("guest",), flush_s=0.5)
with Recording(Path(sys.argv[1]), Clock(offset_ns=measure_offset_ns()), settings) as recording:
    recording.watch("train", os.getpid())
    if os.fork() == 0:  # holds the pipe to the recorder open
        time.sleep(30)
        os._exit(0)
    print(recording.pids()[0], flush=True)
    time.sleep(60)
"""


def test_the_death_of_its_parent_ends_it_whole(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
    )
    assert parent.stdout is not None
    recorder = int(parent.stdout.readline())
    time.sleep(0.5)
    parent.kill()
    killed_ns = clock().now_ns()
    parent.wait()
    until(lambda: gone(recorder), 10.0)  # within 2 s on a machine that is not busy
    with contextlib.suppress(ProcessLookupError):
        os.killpg(parent.pid, signal.SIGKILL)
    parent.stdout.close()
    last_ns = SeriesIndex(read_samples(tmp_path)).points("machine", "mem_used_bytes").ts_ns[-1]
    assert last_ns > killed_ns - 1e9  # nothing was lost: it had time to write all


def test_signals(tmp_path: Path) -> None:
    with Recording(tmp_path, clock(), LIGHT) as recording:
        (pid,) = recording.pids()
        os.kill(pid, signal.SIGINT)
        recording.flush()
        assert recording.pids() == [pid]
        os.kill(pid, signal.SIGTERM)

        def replaced() -> bool:
            recording.revive()
            return recording.pids() not in ([], [pid])

        until(replaced)
    assert any("ended with 0" in loss for loss in recording.losses)
    assert SeriesIndex(read_samples(tmp_path)).points("collector:guest", "collector_up").ts_ns.size


def test_closing_after_its_death_and_watching_what_is_gone(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    with Recording(tmp_path, clock(), LIGHT) as recording:
        recording.watch("train", ended.pid)
        recording.unwatch("train")
        assert any(f"no process {ended.pid}" in loss for loss in recording.losses)
        (pid,) = recording.pids()
        os.kill(pid, signal.SIGKILL)
        until(lambda: gone(pid))
    assert recording.pids() == []
    assert any("ended with -9" in loss and "(close)" in loss for loss in recording.losses)
    recording.close()  # twice is no trouble


def test_it_is_small_and_knows_only_its_collectors(tmp_path: Path) -> None:
    code = (
        "import sys, telemetry.recorder, telemetry.collectors.guest, telemetry.collectors.gpu\n"
        "from telemetry.samples import *; from telemetry.segments import SegmentWriter\n"
        "from pathlib import Path; import json\n"
        "one = Series(entity='e', metric=Metric(name='m', unit='s', kind='gauge',"
        " meaning='', source=''))\n"
        "w = SegmentWriter(Path(sys.argv[1]), 'x', [one], host='h', period_s=1.0)\n"
        "w.write([Sample(1, one, 1.0)]); w.close()\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=True, stdout=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    loaded = set(json.loads(done.stdout))
    heavy = {"torch", "mlflow", "feast", "pandas", "polars", "dask", "distributed", "pipeline"}
    assert loaded & heavy == set()
    with Recording(tmp_path / "samples", clock(), LIGHT) as recording:
        time.sleep(1.2)
        (pid,) = recording.pids()
        status = Path(f"/proc/{pid}/status").read_text()
    rss_kb = int(status.partition("VmHWM:")[2].split()[0])
    assert rss_kb < 100_000


@dataclass(kw_only=True)
class Made:
    """A collector that a test has made; ``act`` is called at each sample with its number."""

    act: Callable[[int], Samples]
    period_s: float = 0.02
    name: str = "made"
    fails_to_open: int = 0
    closed: bool = False
    series: Sequence[Series] = (LEVEL,)
    calls: int = 0
    times_s: list[float] = field(default_factory=list)

    def open(self) -> Sequence[Series]:
        if self.fails_to_open > 0:
            self.fails_to_open -= 1
            raise RuntimeError("not yet")
        return self.series

    def sample(self) -> Samples:
        self.calls += 1
        self.times_s.append(time.monotonic())
        return self.act(self.calls)

    def close(self) -> None:
        self.closed = True


@dataclass(frozen=True, kw_only=True)
class AnySettings(TelemetrySettings):
    def period_s(self, collector: str) -> float:
        return 0.02


def recorder_of(tmp_path: Path, *collectors: Made, flush_s: float = 0.05) -> Recorder:
    by_name = {one.name: one for one in collectors}

    def factory(name: str) -> Factory:
        return lambda clock, settings, folder: by_name[name]

    settings = AnySettings(collectors=tuple(by_name), flush_s=flush_s)
    return Recorder(tmp_path, clock(), settings, {name: factory(name) for name in by_name})


def level(number: int) -> Samples:
    return [Sample(time.time_ns(), LEVEL, float(number))]


def test_a_collector_that_raises_is_data_and_hinders_no_other(tmp_path: Path) -> None:
    def sometimes(number: int) -> Samples:
        if number in {3, 4}:
            raise RuntimeError("lost the device")
        return level(number)

    bad, late = Made(act=sometimes), Made(act=lambda number: [], name="late", fails_to_open=1)
    recorder = recorder_of(tmp_path, bad, late)
    recorder.open()
    until(lambda: bad.calls > 6 and late.calls > 3)
    recorder.close()
    index = SeriesIndex(read_samples(tmp_path))
    assert index.points("collector:made", "collector_failures").values[-1] == 2
    assert index.points("collector:made", "collector_up").values[-1] == 1
    assert index.points("collector:late", "collector_failures").values[-1] == 1
    kept = set(index.points("made", "level").values)
    assert {1.0, 2.0, 5.0} <= kept
    assert not kept & {3.0, 4.0}
    assert "made: RuntimeError: lost the device" in recorder.losses()
    assert "late: not opened: RuntimeError: not yet" in recorder.losses()
    assert bad.closed
    assert late.closed


def test_ticks_that_were_missed_are_left_out_and_not_made_up_for(tmp_path: Path) -> None:
    def slow_once(number: int) -> Samples:
        if number == 3:
            time.sleep(0.3)
        return level(number)

    made = Made(act=slow_once)
    recorder = recorder_of(tmp_path, made)
    recorder.open()
    until(lambda: made.calls >= 20)
    recorder.close()
    missed = SeriesIndex(read_samples(tmp_path)).points("collector:made", "collector_missed")
    assert missed.values[-1] >= 10
    after_s = made.times_s[3:12]
    bunched = sum(later - one < 0.002 for one, later in itertools.pairwise(after_s))
    assert bunched <= 2


def test_sampling_does_not_wait_for_a_disk_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = threading.Event()
    real = os.write

    def hang(handle: int, data: bytes) -> int:
        blocked.wait(20)
        return real(handle, data)

    made = Made(act=level)
    recorder = recorder_of(tmp_path, made)
    monkeypatch.setattr("telemetry.segments.os.write", hang)
    recorder.open()
    until(lambda: made.calls >= 20)
    blocked.set()
    recorder.close()
    kept = SeriesIndex(read_samples(tmp_path)).points("made", "level").values
    assert len(kept) == made.calls


def test_a_collector_that_hangs_is_left_behind(tmp_path: Path) -> None:
    free = threading.Event()

    def hang(number: int) -> Samples:
        free.wait(30)
        return level(number)

    made, well = Made(act=hang), Made(act=level, name="well")
    recorder = recorder_of(tmp_path, made, well)
    recorder.open()
    until(lambda: well.calls > 3)
    begin = time.monotonic()
    recorder.close()
    assert time.monotonic() - begin < 10
    assert "made: hangs, and was left behind" in recorder.losses()
    assert not made.closed
    free.set()


def test_one_that_hangs_on_opening_keeps_no_other_from_sampling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that does not answer: orders are taken, health says that it is down."""
    monkeypatch.setattr("telemetry.recorder.READY_S", 0.1)
    monkeypatch.setattr("telemetry.health.HUNG_S", 0.2)
    free = threading.Event()

    @dataclass(kw_only=True)
    class Stuck(Made):
        def open(self) -> Sequence[Series]:
            free.wait(30)
            return self.series

    stuck, well = Stuck(act=level), Made(act=level, name="well")
    recorder = recorder_of(tmp_path, stuck, well)
    recorder.open()
    until(lambda: well.calls > 60)
    recorder.close()
    free.set()
    index = SeriesIndex(read_samples(tmp_path))
    assert index.points("collector:made", "collector_up").values[-1] == 0
    assert index.points("collector:well", "collector_up").values[-1] == 1
    assert stuck.calls == 0


@dataclass(kw_only=True)
class Remote(Made):
    """Asks another machine, which may take its time."""

    remote: bool = True
    free: threading.Event = field(default_factory=threading.Event)

    def halt(self) -> None:
        self.free.set()


def test_nobody_waits_for_a_collector_that_asks_another_machine(tmp_path: Path) -> None:
    @dataclass(kw_only=True)
    class Slow(Remote):
        def open(self) -> Sequence[Series]:
            self.free.wait(30)
            return self.series

    slow, well = Slow(act=level), Made(act=level, name="well")
    recorder = recorder_of(tmp_path, slow, well)
    begin = time.monotonic()
    recorder.open()
    assert time.monotonic() - begin < 1
    until(lambda: well.calls > 3)
    begin = time.monotonic()
    recorder.close()
    assert time.monotonic() - begin < 1.5
    assert slow.closed
    assert slow.calls == 0
    assert recorder.losses() == []


def test_a_remote_one_that_hangs_is_closed_all_the_same_and_is_asked_no_last_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("telemetry.recorder.JOIN_S", 0.2)
    stuck = threading.Event()

    def hang(number: int) -> Samples:
        stuck.wait(30)
        return level(number)

    hanging, brisk = Remote(act=hang), Remote(act=level, name="brisk")
    recorder = recorder_of(tmp_path, hanging, brisk)
    recorder.open()
    until(lambda: hanging.calls == 1 and brisk.calls > 3)
    recorder.close()
    calls = brisk.calls
    assert hanging.closed
    assert brisk.closed
    assert recorder.losses() == []  # what it did not get, the backfill fetches
    kept = SeriesIndex(read_samples(tmp_path)).points("made", "level").values
    assert len(kept) == calls
    stuck.set()


def test_nothing_to_sample_is_told_and_costs_nothing(tmp_path: Path) -> None:
    absent = Series(entity="made", metric=LEVEL.metric, reason="not here")
    made = Made(act=level, series=[absent])
    recorder = recorder_of(tmp_path, made)
    recorder.open()
    time.sleep(0.2)
    recorder.close()
    assert made.calls == 0
    assert read_samples(tmp_path).absent == [absent]


FULL = """
import sys, resource
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
from telemetry import recorder
recorder.main()
"""


def test_a_full_disk_is_told_and_survived(tmp_path: Path) -> None:
    """The limit on the size of a file stands for the disk."""
    given = {
        "folder": str(tmp_path),
        "offset_ns": 0,
        "settings": TelemetrySettings(collectors=("guest",), guest_hz=50, flush_s=0.5).to_json(),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", FULL, json.dumps(given)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert "ready" in json.loads(process.stdout.readline())
    losses: list[str] = []

    def lost() -> bool:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b'{"do": "flush"}\n')
        process.stdin.flush()
        losses[:] = json.loads(process.stdout.readline())["losses"]
        time.sleep(0.4)
        return any("rows not written" in loss for loss in losses)

    until(lost, 60.0)
    out, _ = process.communicate(b'{"do": "nonsense"}\n{"do": "close"}\n')
    unknown, closed = out.decode().splitlines()
    assert "unknown order 'nonsense'" in json.loads(unknown)["error"]
    assert json.loads(closed)["closed"]
    assert process.returncode == 0
    assert read_samples(tmp_path).table.num_rows > 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"guest_hz": 0.0}, "guest_hz = 0.0"),
        ({"gpu_hz": 1e6}, "up to 100"),
        ({"flush_s": 0.0}, "flush_s = 0.0"),
        ({"collectors": ("gust",)}, "no collector 'gust'; there are guest, gpu"),
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TelemetrySettings(**wrong)  # type: ignore[arg-type]
    sound = TelemetrySettings(guest_hz=5.0, collectors=("gpu",))
    assert TelemetrySettings.from_json(json.loads(json.dumps(sound.to_json()))) == sound
