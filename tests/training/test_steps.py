"""The parts of a step: exact by the host's clock, by marks on a device, and summing up."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

import training.loop
from training.batches import DayTable, Rows
from training.loop import Fit, TrainingSettings, train
from training.models.mlp import Mlp, MlpSettings
from training.steps import (
    MARKED_ONE_IN,
    PARTS,
    DeviceStepClock,
    HostStepClock,
    StepTimes,
    step_clock,
)

WAIT_S = 0.01
LOST_S = 0.05
"""What a busy machine may take between two clocks; all waits of a run are more than twice it."""
QUEUE = 1000
"""Pieces of work that a device's queue holds before the host has to wait."""
SETTINGS = TrainingSettings(epochs=2, batch_size=512, refit=False)


class SlowNet(Mlp):
    def logits(self, prepared: torch.Tensor) -> torch.Tensor:
        if self.training:
            time.sleep(WAIT_S)
        return super().logits(prepared)


class SlowSettings(MlpSettings):
    def build(self) -> SlowNet:
        return SlowNet(self)


@pytest.fixture
def rows(generated: DayTable, handle) -> Rows:
    return generated.read(generated.days()[0], 7, handle)


def sum_of_parts(times: StepTimes) -> float:
    return sum(getattr(times, f"{part}_seconds") for part in PARTS)


@pytest.mark.parametrize("slow", ["nothing", "loader", "model"])
def test_injected_waits_fall_into_their_part_and_the_parts_sum_to_the_loop(
    rows, tmp_path, cpu, handle, monkeypatch, slow
) -> None:
    shuffled, run_epoch = training.loop.shuffled, Fit.run_epoch
    loops: list[float] = []

    def slow_loader(*given: object) -> Iterator[object]:
        for batch in shuffled(*given):  # type: ignore[arg-type]
            time.sleep(WAIT_S)
            yield batch

    def timed(*given: object) -> float:
        begin = time.perf_counter()
        loss = run_epoch(*given)  # type: ignore[arg-type]
        loops.append(time.perf_counter() - begin)
        return loss

    monkeypatch.setattr(Fit, "run_epoch", timed)
    if slow == "loader":
        monkeypatch.setattr(training.loop, "shuffled", slow_loader)
    kind = SlowSettings if slow == "model" else MlpSettings
    trained = train(
        rows,
        model=kind(hidden=(8,), members=1),
        settings=SETTINGS,
        seed=1,
        device=cpu,
        work=tmp_path,
        handle=handle,
    )
    times = trained.steps
    waited = times.steps * WAIT_S
    assert times.steps == 2 * -(-(len(rows) - round(len(rows) * 0.15)) // 512)
    assert sum_of_parts(times) == pytest.approx(times.loop_seconds, rel=1e-9)
    assert sum(loops) - LOST_S <= times.loop_seconds <= sum(loops)
    for part in PARTS:
        assert handle.counts[f"step_{part}_seconds"] == pytest.approx(
            getattr(times, f"{part}_seconds")
        )
    assert handle.counts["steps"] == times.steps
    assert (times.data_wait_seconds >= waited) == (slow == "loader")
    if slow == "model":
        assert times.compute_seconds >= waited
        assert times.data_wait_seconds < waited / 2


def test_the_hosts_clock_counts_every_part_exactly(handle) -> None:
    now = iter([0, 5, 6, 106, 110, 118, 119, 219, 220, 227])
    clock = HostStepClock(handle, lambda: next(now))
    clock.begin()
    for _ in range(2):
        clock.lap("data_wait")
        clock.lap("host_to_device")
        clock.lap("compute")
        clock.step_done(10)
    clock.end()
    times = clock.times()
    nanoseconds = [round(getattr(times, f"{part}_seconds") * 1e9) for part in PARTS]
    assert nanoseconds == [5 + 8, 1 + 1, 100 + 100, 4 + 1 + 7]
    assert round(times.loop_seconds * 1e9) == 227
    assert (handle.counts["samples"], handle.counts["steps"]) == (20, 2)


def test_the_recorder_is_told_while_the_loop_goes_on_but_not_at_every_step(handle) -> None:
    now_ns = 0
    told: list[float] = []
    count = handle.count
    handle.count = lambda metric, n=1: (
        told.append(n) if metric == "steps" else None,
        count(metric, n),
    )

    def clock_ns() -> int:
        nonlocal now_ns
        now_ns += 10_000_000
        return now_ns

    clock = HostStepClock(handle, clock_ns)
    clock.begin()
    for _ in range(100):
        clock.lap("data_wait")
        clock.lap("compute")
        clock.step_done(1)
    clock.end()
    assert sum(told) == 100
    assert 8 <= len(told) <= 14


@dataclass
class Gpu:
    """A device with a queue: the host goes on, the device does one piece after the other."""

    host_ms: float = 0.0
    free_ms: float = 0.0
    marks: int = 0
    query_ms: float = 0.001
    elapsed_ms: float = 0.001
    """What asking for a mark takes of the host."""
    queued: deque[float] = field(default_factory=deque)

    def on_host(self, ms: float) -> None:
        self.host_ms += ms

    def queue(self, ms: float) -> None:
        self.on_host(0.01)
        self.free_ms = max(self.free_ms, self.host_ms) + ms
        self.queued.append(self.free_ms)
        if len(self.queued) > QUEUE:
            self.host_ms = max(self.host_ms, self.queued.popleft())

    def wait(self) -> None:
        self.host_ms = max(self.host_ms, self.free_ms)

    def mark(self) -> GpuMark:
        self.marks += 1
        self.queue(0.0)
        return GpuMark(self, self.free_ms)

    def now_ns(self) -> int:
        return round(self.host_ms * 1e6)


@dataclass
class GpuMark:
    gpu: Gpu = field(repr=False)
    at_ms: float

    @property
    def passed(self) -> bool:
        return self.gpu.host_ms >= self.at_ms

    def query(self) -> bool:
        self.gpu.on_host(self.gpu.query_ms)
        return self.passed

    def elapsed_time(self, later: GpuMark) -> float:
        self.gpu.on_host(self.gpu.elapsed_ms)
        assert self.passed
        assert later.passed, "a mark is not read before the device has passed it"
        return later.at_ms - self.at_ms


def clock_of(handle, gpu: Gpu) -> DeviceStepClock:
    return DeviceStepClock(handle, gpu.mark, gpu.wait, gpu.now_ns)


def loop(
    clock: DeviceStepClock, gpu: Gpu, loader_ms: list[float], order_ms: float = 0, scale: float = 1
) -> None:
    """A loop of steps: host work in the loader, then 0.1 ms gather, 1 ms copy, 5 ms compute."""
    clock.begin()
    gpu.on_host(order_ms)
    for ms in loader_ms:
        gpu.on_host(ms)
        gpu.queue(0.1 * scale)
        clock.lap("data_wait")
        gpu.queue(1.0 * scale)
        clock.lap("host_to_device")
        gpu.queue(5.0 * scale)
        clock.lap("compute")
        clock.step_done(100)
    gpu.wait()
    clock.end()


def loop_of_launches(
    clock: DeviceStepClock,
    gpu: Gpu,
    *,
    kernel_ms: float,
    loader_ms: float = 0.02,
    large_ms: float = 0,
) -> None:
    """4000 steps of host work in the loader, a gather, and 40 kernels, the first of them large."""
    clock.begin()
    for _ in range(4000):
        gpu.on_host(loader_ms)
        gpu.queue(kernel_ms)
        clock.lap("data_wait")
        clock.lap("host_to_device")
        for number in range(40):
            gpu.queue(kernel_ms + (large_ms if number == 0 else 0))
        clock.lap("compute")
        clock.step_done(100)
    gpu.wait()
    clock.end()


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("loader", ["hidden", "starving"])
def test_on_a_device_only_the_wait_that_the_device_had_counts(handle, loader, scale) -> None:
    """3 ms in the loader pass while the device computes 6.1 ms; of 20 ms it waits for 14."""
    gpu = Gpu()
    clock = clock_of(handle, gpu)
    loader_ms, data_wait_ms = (3.0, 0.1) if loader == "hidden" else (20.0, 14.0)
    for _ in range(3):
        loop(clock, gpu, [loader_ms * scale] * 400, scale=scale)
    times = clock.times()
    assert times.steps == 1200
    assert times.loop_seconds == pytest.approx(gpu.host_ms / 1e3, rel=1e-6)
    assert sum_of_parts(times) == pytest.approx(times.loop_seconds, rel=1e-9)
    per_step_ms = {part: getattr(times, f"{part}_seconds") * 1e3 / 1200 for part in PARTS}
    assert per_step_ms["data_wait"] == pytest.approx(data_wait_ms * scale, rel=0.1, abs=0.05)
    assert per_step_ms["host_to_device"] == pytest.approx(1.0 * scale, rel=0.05)
    assert per_step_ms["compute"] == pytest.approx(5.0 * scale, rel=0.05)
    assert handle.counts["samples"] == 120_000


def test_short_steps_are_marked_seldom_and_long_ones_always(handle) -> None:
    short, long = Gpu(), Gpu()
    loop(clock_of(handle, short), short, [0.0] * 4000, scale=0.1)
    loop(clock_of(handle, long), long, [0.0] * 4000, scale=2)
    assert 4000 * 5 / 10 < short.marks < 4000 * 5 / 6
    assert long.marks > 4000 * 5 * 0.8


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_a_stall_at_every_eighth_step_is_neither_missed_nor_taken_for_all(handle, scale) -> None:
    gpu = Gpu()
    clock = clock_of(handle, gpu)
    stalls_ms = [80.0 * scale if step % 8 == 0 else 0.0 for step in range(8000)]
    loop(clock, gpu, stalls_ms, scale=scale)
    times = clock.times()
    truth = 1 - 8000 * 6.0 * scale / gpu.host_ms
    assert times.data_wait_seconds / times.loop_seconds == pytest.approx(truth, rel=0.1)


def test_a_long_first_step_stands_for_itself_alone(handle) -> None:
    gpu = Gpu()
    clock = clock_of(handle, gpu)
    for _ in range(20):
        loop(clock, gpu, [0.0] * 50, order_ms=100.0)
    times = clock.times()
    assert times.data_wait_seconds * 1e3 == pytest.approx(20 * (100 + 50 * 0.1), rel=0.03)
    assert times.compute_seconds * 1e3 == pytest.approx(20 * 50 * 5, rel=0.03)


def test_steps_of_a_second_are_told_within_a_few_of_them(handle) -> None:
    gpu = Gpu()
    clock = clock_of(handle, gpu)
    told_after_s: list[float] = []
    handle.count = lambda metric, n=1: told_after_s.append(gpu.host_ms / 1e3)
    loop(clock, gpu, [1000.0] * 60)
    assert told_after_s[0] < 20
    assert max(np.diff(told_after_s)) < 2 * MARKED_ONE_IN


def test_a_loop_of_one_step_is_known_whole(handle) -> None:
    gpu = Gpu()
    clock = clock_of(handle, gpu)
    loop(clock, gpu, [7.0])
    times = clock.times()
    assert times.loop_seconds * 1e3 == pytest.approx(gpu.host_ms)
    assert times.compute_seconds * 1e3 == pytest.approx(5.0, rel=0.02)


def test_what_the_clock_asks_for_is_no_part_of_a_step(handle) -> None:
    """The device waits for the host, so all that the host does between two marks would count."""
    gpu = Gpu(elapsed_ms=0.2)
    clock = clock_of(handle, gpu)
    loop_of_launches(clock, gpu, kernel_ms=0.001)
    times = clock.times()
    with_its_mark = 0.02 + 0.01 + 0.01
    assert times.data_wait_seconds / times.loop_seconds == pytest.approx(
        with_its_mark / (with_its_mark + 40 * 0.01 + 3 * 0.01), rel=0.05
    )
    assert times.loop_seconds * 1e3 == pytest.approx(gpu.host_ms, rel=1e-6)


def test_what_was_queued_before_a_loop_is_none_of_its_time(handle) -> None:
    gpu = Gpu()
    clock = clock_of(handle, gpu)
    gpu.queue(500.0)
    loop(clock, gpu, [0.0] * 50)
    times = clock.times()
    assert times.loop_seconds * 1e3 == pytest.approx(50 * 6.1, rel=0.02)
    assert times.compute_seconds * 1e3 == pytest.approx(50 * 5, rel=0.02)


@pytest.mark.parametrize(
    ("kernel_ms", "loader_ms", "large_ms", "share"),
    [
        pytest.param(0.001, 0.02, 0.0, 1.0, id="launches cost more than kernels"),
        pytest.param(0.05, 0.02, 0.0, 0.0, id="kernels cost more than launches"),
        pytest.param(0.001, 20.0, 5.0, 0.42 / 5.05, id="a large kernel behind a wait for data"),
    ],
)
def test_how_much_of_compute_can_be_the_devices_wait_for_launches(
    handle, kernel_ms, loader_ms, large_ms, share
) -> None:
    gpu = Gpu()
    clock = clock_of(handle, gpu)
    loop_of_launches(clock, gpu, kernel_ms=kernel_ms, loader_ms=loader_ms, large_ms=large_ms)
    times = clock.times()
    bound = times.compute_host_bound_seconds
    assert bound / times.compute_seconds == pytest.approx(share, rel=0.02, abs=0.001)
    assert handle.counts["step_compute_host_bound_seconds"] == pytest.approx(bound)
    assert sum_of_parts(times) == pytest.approx(times.loop_seconds, rel=1e-9)


def test_the_cpu_is_timed_by_the_hosts_clock_and_launches_nothing(cpu, handle) -> None:
    clock = step_clock(cpu, handle)
    clock.begin()
    clock.step_done(1)
    clock.end()
    said = clock.times().to_json()
    assert said["measured_by"] == "the host's clock, every step"
    assert "compute_host_bound_seconds" not in said
    assert "step_compute_host_bound_seconds" not in handle.counts


def test_trainings_add_up() -> None:
    one = StepTimes(
        measured_by="x",
        steps=2,
        loop_seconds=10.0,
        data_wait_seconds=1.0,
        host_to_device_seconds=2.0,
        compute_seconds=3.0,
        other_seconds=4.0,
    )
    both = StepTimes.of([one, one])
    assert (both.steps, both.loop_seconds, both.other_seconds) == (4, 20.0, 8.0)
    assert both.compute_host_bound_seconds is None
    on_gpu = replace(one, compute_host_bound_seconds=1.5)
    assert StepTimes.of([on_gpu, on_gpu]).compute_host_bound_seconds == 3.0
