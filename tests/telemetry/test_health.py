"""When a collector's thread samples, and how it is woken for the last time."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.clock import Clock
from telemetry.health import Stop, Worker
from telemetry.samples import Metric, Sample, Samples, Series
from telemetry.segments import SegmentWriter, read_samples
from telemetry.series import SeriesIndex

LEVEL = Series(
    entity="made", metric=Metric(name="level", unit="1", kind="gauge", meaning="", source="")
)


@dataclass(kw_only=True)
class Ticking:
    """A collector that notes when it was asked."""

    period_s: float
    name: str = "made"
    remote: bool = False
    times_s: list[float] = field(default_factory=list)

    def open(self) -> Sequence[Series]:
        return [LEVEL]

    def sample(self) -> Samples:
        self.times_s.append(time.monotonic())
        return []

    def close(self) -> None:
        """Nothing was taken."""


def ticks(folder: Path, collector: Ticking, *, phase_s: float, count: int) -> list[float]:
    writer = SegmentWriter(folder, "made", [], host="here", period_s=collector.period_s)
    worker = Worker(collector=collector, writer=writer, clock=Clock(offset_ns=0), phase_s=phase_s)
    stop = Stop()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    while len(collector.times_s) < count:
        time.sleep(0.01)
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
    return collector.times_s[:count]


@pytest.mark.parametrize("phase_s", [0.0, 0.03])
def test_ticks_are_at_multiples_of_the_period_and_a_phase(tmp_path: Path, phase_s: float) -> None:
    times_s = ticks(tmp_path, Ticking(period_s=0.1), phase_s=phase_s, count=12)
    late_s = sorted((at_s - phase_s) % 0.1 for at_s in times_s)
    assert late_s[6] < 0.02, "half of them at most 20 ms late, on a machine that does other work"
    assert all(after > before for before, after in pairwise(times_s))


@settings(max_examples=60, deadline=None)
@given(
    begin_s=st.floats(0, 1e8),
    hz=st.sampled_from([0.2, 1, 3, 7, 10, 30, 100]),
    phase_s=st.sampled_from([0.0, 0.002, 0.004]),
)
def test_no_moment_comes_twice_or_is_left_out(begin_s: float, hz: float, phase_s: float) -> None:
    collector = Ticking(period_s=1 / hz)
    writer = SegmentWriter(Path("unused"), "made", [], host="here", period_s=1 / hz)
    worker = Worker(collector=collector, writer=writer, clock=Clock(offset_ns=0), phase_s=phase_s)
    due_s = worker._moment(begin_s)
    assert 0.2 < (due_s - begin_s) * hz < 1.3
    for _ in range(300):
        before_s, due_s = due_s, worker._moment(due_s)
        assert (due_s - before_s) * hz == pytest.approx(1, abs=1e-4)


def test_another_machine_is_asked_at_once(tmp_path: Path) -> None:
    begin = time.monotonic()
    (first,) = ticks(tmp_path, Ticking(period_s=600.0, remote=True), phase_s=0.0, count=1)
    assert first - begin < 5


@dataclass(kw_only=True)
class Keeping(Ticking):
    """One that keeps what it looked at, and cannot make anything of a number below 0."""

    kept: list[int] = field(default_factory=list)

    def look(self) -> Samples:
        self.kept.append(len(self.times_s))
        return self.sample()

    def settle(self) -> Samples:
        looks, self.kept = self.kept, []
        if any(one < 0 for one in looks):
            raise ValueError("below 0")
        return [Sample(1 + one, LEVEL, float(one)) for one in looks]


def test_what_was_only_looked_at_is_written_and_what_cannot_be_settled_is_told(
    tmp_path: Path,
) -> None:
    collector = Keeping(period_s=0.1)
    writer = SegmentWriter(tmp_path, "made", [], host="here", period_s=0.1)
    worker = Worker(collector=collector, writer=writer, clock=Clock(offset_ns=0))
    for _ in range(2):
        for _ in range(3):
            assert worker._once()
        worker.flush()
        collector.kept.append(-1)
    worker.flush()
    assert worker.losses() == ["made: ValueError: below 0"]
    collector.kept.clear()
    worker.close()
    index = SeriesIndex(read_samples(tmp_path))
    assert list(index.points("made", "level").values) == [0.0, 1.0, 2.0]
    assert worker.failures == 2
    assert index.points("collector:made", "collector_failures").values[-1] == 2


@dataclass(kw_only=True)
class Repeating(Ticking):
    """A collector that can be asked again for what was not written."""

    back: list[Sample] = field(default_factory=list)

    def sample(self) -> Samples:
        return [Sample(20, LEVEL, 1.0, 0)]

    def take_back(self, rows: Samples) -> None:
        self.back += rows


def test_a_collector_gets_back_what_could_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = Repeating(period_s=0.1)
    writer = SegmentWriter(tmp_path, "made", [], host="here", period_s=0.1)
    worker = Worker(collector=collector, writer=writer, clock=Clock(offset_ns=0))

    def full(rows: Sequence[Sample]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert worker._once()
    with monkeypatch.context() as patched:
        patched.setattr(writer, "write", full)
        worker.flush()
    assert [row for row in collector.back if row.series == LEVEL] == [Sample(20, LEVEL, 1.0, 0)]
    monkeypatch.setattr("telemetry.health.MOST_WAITING", 1)
    collector.back.clear()
    assert worker._once()
    assert worker._once()
    assert collector.back == [Sample(20, LEVEL, 1.0, 0)]
    assert len(worker.losses()) == 1


def test_a_stop_wakes_all_that_sleep_and_nobody_sleeps_after_it() -> None:
    stop = Stop()
    assert not stop.wait(0.0)
    assert not stop.wait(0.01)
    said: list[bool] = []
    sleepers = [threading.Thread(target=lambda: said.append(stop.wait(60))) for _ in range(8)]
    for one in sleepers:
        one.start()
    time.sleep(0.05)
    assert said == []
    stop.set()
    for one in sleepers:
        one.join(5)
    assert said == [True] * 8
    stop.set()
    assert stop.wait(0.0)
    assert stop.wait(60)
