"""What a stage says of itself."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from telemetry.clock import Clock, measure_offset_ns
from telemetry.handle import Handle, NullHandle
from telemetry.segments import read_samples
from telemetry.series import SeriesIndex

ROOT = Path(__file__).resolve().parents[2]


def handle_in(folder: Path, flush_s: float = 60.0) -> Handle:
    return Handle(folder, "train", Clock(offset_ns=measure_offset_ns()), flush_s=flush_s)


def test_phases_and_counts_begin_at_zero_and_add_up(tmp_path: Path) -> None:
    handle = handle_in(tmp_path)
    for _ in range(3):
        with handle.phase("data_wait"):
            time.sleep(0.02)
    handle.count("read_bytes", 5)
    handle.count("read_bytes", 7)
    handle.count("rows")
    handle.close()
    samples = read_samples(tmp_path)
    index = SeriesIndex(samples)
    waited = index.points("app:train", "phase_data_wait_seconds").values
    assert waited[0] == 0.0
    assert 0.06 <= waited[-1] < 5.0
    assert list(index.points("app:train", "app_read_bytes").values) == [0.0, 12.0]
    assert index.points("app:train", "app_rows").values[-1] == 1.0
    units = {name: metric.unit for name, metric in samples.metrics.items()}
    assert units == {"phase_data_wait_seconds": "s", "app_read_bytes": "B", "app_rows": "1"}
    assert {metric.kind for metric in samples.metrics.values()} == {"counter"}


def test_a_phase_that_goes_on_counts_as_it_goes(tmp_path: Path) -> None:
    handle = handle_in(tmp_path, flush_s=0.05)
    with handle.phase("run"):
        time.sleep(1.0)
        with pytest.raises(KeyError), handle.phase("inner"):
            raise KeyError
    handle.close()
    index = SeriesIndex(read_samples(tmp_path))
    values = index.points("app:train", "phase_run_seconds").values
    assert len(values) >= 4
    assert list(values) == sorted(values)
    assert 0.0 < values[2] < values[-1]
    assert index.points("app:train", "phase_inner_seconds").values[-1] < values[-1]


def test_threads_together(tmp_path: Path) -> None:
    handle = handle_in(tmp_path, flush_s=0.01)

    def work() -> None:
        for _ in range(500):
            handle.count("rows", 2)
            with handle.phase("busy"):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handle.close()
    assert SeriesIndex(read_samples(tmp_path)).points("app:train", "app_rows").values[-1] == 4000


FORKS = """
import os, sys, warnings
from pathlib import Path
from telemetry.clock import Clock, measure_offset_ns
from telemetry.handle import Handle
warnings.simplefilter("always")
handle = Handle(Path(sys.argv[1]), "train", Clock(offset_ns=measure_offset_ns()), flush_s=60.0)
handle.count("rows", 1)
with handle.phase("load"):
    handle._lock.acquire()  # another thread is just counting
    child = os.fork()
    if child:
        handle._lock.release()
if child == 0:
    handle.count("rows", 100)
    with handle.phase("busy"):
        pass
    handle.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
handle.close()
"""


def test_a_forked_worker_counts_nothing_says_so_and_never_hangs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "stage train: a worker process that was forked is not counted" in done.stderr
    index = SeriesIndex(read_samples(tmp_path))
    assert index.names() == [
        ("app:train", "app_rows"), ("app:train", "phase_load_seconds")
    ]  # fmt: skip
    assert index.points("app:train", "app_rows").values[-1] == 1.0


def test_a_handle_that_is_not_used_leaves_nothing(tmp_path: Path) -> None:
    with handle_in(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_does_not_fail_the_stage(tmp_path: Path) -> None:
    handle = handle_in(tmp_path / "not made", flush_s=0.02)
    with handle.phase("load"):
        handle.count("rows")
        time.sleep(0.2)
    with pytest.raises(FileNotFoundError):
        handle.close()


def test_totals_that_the_next_write_brings_are_not_lost(tmp_path: Path) -> None:
    handle = handle_in(tmp_path / "made later", flush_s=0.02)
    handle.count("rows", 7)
    time.sleep(0.2)
    (tmp_path / "made later").mkdir()
    handle.close()
    index = SeriesIndex(read_samples(tmp_path / "made later"))
    assert list(index.points("app:train", "app_rows").values) == [0.0, 7.0]


def test_a_stage_that_is_killed_loses_one_flush(tmp_path: Path) -> None:
    code = """
import os, signal, sys, time
from pathlib import Path
from telemetry.clock import Clock
from telemetry.handle import Handle
handle = Handle(Path(sys.argv[1]), "train", Clock(offset_ns=0), flush_s=0.1)
handle.count("rows", 7)
while not handle._written: time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert SeriesIndex(read_samples(tmp_path)).points("app:train", "app_rows").values[-1] == 7


def test_no_recorder_no_difference() -> None:
    handle = NullHandle()
    with handle.phase("data_wait"):
        handle.count("rows", 3)
    handle.close()
    assert {name for name in dir(handle) if not name.startswith("_")} == {"close", "count", "phase"}
    assert all(callable(getattr(Handle, name)) for name in ("close", "count", "phase"))
