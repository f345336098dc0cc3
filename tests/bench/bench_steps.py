"""What timing the parts of a training step costs: the clock alone, and epochs with and without."""

from __future__ import annotations

import math
import random
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from infra.device import Device
from telemetry.clock import Clock, measure_offset_ns
from telemetry.handle import Handle
from training.loop import Context, Fit, TrainingSettings
from training.models.mlp import MlpSettings
from training.steps import HostStepClock, Part, StepTimes

ROWS = 57_344
"""56 steps of the default batch: an epoch of the published training window."""
PAIRS = 40
T_95 = 2.023
"""Student's t, two-sided 95 %, for ``PAIRS`` - 1 degrees of freedom."""
STEPS_ALONE = 200_000


class NoClock:
    """The same calls; nothing is timed."""

    def begin(self) -> None:
        pass

    def lap(self, part: Part) -> None:
        pass

    def step_done(self, rows: int) -> None:
        pass

    def end(self) -> None:
        pass

    def times(self) -> StepTimes:
        raise NotImplementedError


def alone_us(handle: Handle) -> float:
    """Microseconds that the calls of one step take, what the recorder is told included."""
    clock = HostStepClock(handle)
    begin_ns = time.perf_counter_ns()
    clock.begin()
    for _ in range(STEPS_ALONE):
        clock.lap("data_wait")
        clock.lap("host_to_device")
        clock.lap("compute")
        clock.step_done(1024)
    clock.end()
    return (time.perf_counter_ns() - begin_ns) / STEPS_ALONE / 1e3


def epochs(handle: Handle) -> tuple[float, list[float]]:
    """Milliseconds of a step, and by how many percent each pair's timed epoch was slower.

    By the CPU time of this thread, which does all the work: other processes do not count.
    """
    device = Device(kind="cpu", name="bench", index=None, amp=False)
    context = Context(
        model=MlpSettings(),
        settings=TrainingSettings(),
        seed=1,
        device=device,
        handle=handle,
        clock=NoClock(),
    )
    features, labels = torch.rand(ROWS, 15), (torch.rand(ROWS) < 0.01).float()
    fit = Fit.begin(context, "search", features)
    prepared = fit.live.prepare(features)
    timed = replace(context, clock=HostStepClock(handle))

    def epoch_s(with_it: Context) -> float:
        fit.context = with_it
        begin_s = time.thread_time()
        fit.run_epoch(1, prepared, labels)
        return time.thread_time() - begin_s

    chance, slower, without = random.Random(2), [], []
    epoch_s(timed)
    for _ in range(PAIRS):
        both = [context, timed]
        chance.shuffle(both)
        took = {id(one): epoch_s(one) for one in both}
        slower.append(100 * (took[id(timed)] / took[id(context)] - 1))
        without.append(took[id(context)])
    steps = ROWS / context.settings.batch_size
    return statistics.median(without) / steps * 1e3, slower


def main() -> None:
    torch.set_num_threads(1)
    clock = Clock(offset_ns=measure_offset_ns())
    with tempfile.TemporaryDirectory() as folder, Handle(Path(folder), "bench", clock) as handle:
        us = alone_us(handle)
        step_ms, slower = epochs(handle)
    half = T_95 * statistics.stdev(slower) / math.sqrt(PAIRS)
    print(f"the clock alone: {us:.2f} us per step, {us / step_ms / 10:.3f} % of {step_ms:.2f} ms")
    print(f"epochs with it: slower by {statistics.mean(slower):+.2f} % ± {half:.2f} % of CPU time")
    print(f"(95 %, {PAIRS} pairs); in the middle pair by {statistics.median(slower):+.2f} %")


if __name__ == "__main__":
    main()
