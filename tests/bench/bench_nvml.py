"""What NVML costs here: update period and cost per call of every question, buffer and GPM sample.

On a machine with a GPU it asks that, beside a program that works on it and rests by turns. Without
one it asks the C library of the tests, and says so: then the costs are those of the Python binding,
and periods those of the library's own script.
``python -m tests.bench.bench_nvml`` prints the tables of ``docs/gpu.md``.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from infra import nvml
from infra.gpus import choose
from infra.nvml_buffers import POWER_W, kept, step_us, used
from infra.nvml_fields import FieldReader
from infra.nvml_gpm import SM_UTIL, Gpm
from telemetry.clock import Clock, measure_offset_ns
from telemetry.collectors.gpu import GpuCollector
from telemetry.collectors.gpu_metrics import (
    GPM_METRICS,
    POWER_BUFFER,
    PROCESS_MEMORY,
    QUESTIONS,
    Question,
)

CALLS = 300
BLOCKING_CALLS = 20
WATCH_S = 1.5
GPM_MS = (50, 100, 200)
GPM_PAIRS = 20
COLLECTOR_S = 10.0
LIBRARY = "STAGESCOPE_BENCH_LIBRARY"
LOAD = """
import time, torch
a = torch.rand(4096, 4096, device="cuda")
print("ready", flush=True)
while True:
    until_s = time.monotonic() + 0.5
    while time.monotonic() < until_s:
        a @ a
        torch.cuda.synchronize()
    time.sleep(0.5)
"""
"""On a GPU at rest next to nothing moves: half of each second is work."""


@contextlib.contextmanager
def load() -> Iterator[str]:
    """``LOAD`` in a process of its own while the block lasts; what is to be said of it."""
    beside = subprocess.Popen(
        [sys.executable, "-c", LOAD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert beside.stdout is not None
    assert beside.stderr is not None
    try:
        if beside.stdout.readline():
            yield "while matrices were multiplied on it for half of each second"
        else:
            why = beside.stderr.read().strip().rpartition("\n")[2]
            yield f"at rest, because nothing could be run on it ({why})"
    finally:
        beside.kill()
        beside.communicate()


def cost_us(ask: Callable[[], Any], calls: int) -> tuple[float, float]:
    """The median and the 99th percentile of a call, µs."""
    ask()
    took = []
    for _ in range(calls):
        begin = time.perf_counter_ns()
        ask()
        took.append((time.perf_counter_ns() - begin) / 1e3)
    took.sort()
    return statistics.median(took), took[min(len(took) - 1, int(0.99 * len(took)))]


def update_ms(ask: Callable[[], nvml.Values | nvml.Absent], watch_s: float) -> float | None:
    """The median time between two changes of an answer, ms; None if it changed less than twice."""
    changed, last = [], ask()
    end = time.perf_counter() + watch_s
    while (now := time.perf_counter()) < end:
        value = ask()
        if value != last:
            changed.append(now)
            last = value
        time.sleep(0.0005)
    steps = [1e3 * (after - before) for before, after in pairwise(changed)]
    return statistics.median(steps) if steps else None


def questions(gpu: nvml.Gpu) -> Iterator[str]:
    yield "| Question | Metrics | Asked | Update period, ms | p50, µs | p99, µs |"
    yield "|---|---|---|---:|---:|---:|"
    for question in QUESTIONS:
        metrics = ", ".join(f"`{metric.name}`" for metric in question.metrics)
        for reader in (*question.readers, *([question.again] if question.again else [])):
            names = f"{metrics} | {_asked(question, reader)}"
            first = reader(gpu)
            answers = () if isinstance(first, nvml.Absent) else first
            if all(isinstance(one, nvml.Absent) for one in answers):
                why = first if isinstance(first, nvml.Absent) else answers[0]
                assert isinstance(why, nvml.Absent)
                yield f"| {_name(reader)} | {names} | absent: {why.reason} | | |"
                continue
            calls = BLOCKING_CALLS if question.window_ns else CALLS
            p50, p99 = cost_us(lambda reader=reader: reader(gpu), calls)
            step = None if question.window_ns else update_ms(lambda r=reader: r(gpu), WATCH_S)
            moved = "did not move" if step is None else f"{step:.3g}"
            if question.window_ns:
                moved = f"window of {question.window_ns / 1e6:.0f}"
            yield f"| {_name(reader)} | {names} | {moved} | {p50:.1f} | {p99:.1f} |"
    names = ", ".join(f"`{metric.name}`" for metric in PROCESS_MEMORY)
    held = nvml.process_memory_bytes(gpu)
    if isinstance(held, nvml.Absent):
        yield f"| process_memory_bytes | {names} | once a second | absent: {held.reason} | | |"
        return
    p50, p99 = cost_us(lambda: nvml.process_memory_bytes(gpu), CALLS)
    yield f"| process_memory_bytes | {names} | once a second | | {p50:.1f} | {p99:.1f} |"


def _asked(question: Question, reader: nvml.Reader) -> str:
    if question.window_ns:
        return "one in turn each sample, where GPM has it not"
    if question.again not in {None, reader}:
        return "on opening"
    return "once a second" if question.slow else "each sample"


def _name(reader: nvml.Reader) -> str:
    return reader.name if isinstance(reader, FieldReader) else reader.__name__


def buffers(gpu: nvml.Gpu) -> Iterator[str]:
    yield "| Buffer | Samples kept | Apart, ms | Reach, s | p50, µs | p99, µs |"
    yield "|---|---:|---:|---:|---:|---:|"
    found = kept(gpu, POWER_W, 0)
    if isinstance(found, nvml.Absent) or len(found) < 3:
        why = found.reason if isinstance(found, nvml.Absent) else "empty"
        yield f"| `{POWER_BUFFER.name}` | absent: {why} | | | | |"
    else:
        newest = found[-1].stamp_us
        p50, p99 = cost_us(lambda: kept(gpu, POWER_W, newest), CALLS)
        step, reach_s = step_us(found), (newest - found[0].stamp_us) / 1e6
        assert step is not None
        numbers = f"{len(found)} | {step / 1e3:.3g} | {reach_s:.3g} | {p50:.1f} | {p99:.1f}"
        yield f"| `{POWER_BUFFER.name}` | {numbers} |"
    found_use = used(gpu, 0)
    if isinstance(found_use, nvml.Absent):
        yield f"| processes | absent: {found_use.reason} | | | | |"
    else:
        p50, p99 = cost_us(lambda: used(gpu, 0), CALLS)
        yield f"| processes | {len(found_use)} | | | {p50:.1f} | {p99:.1f} |"


def gpm(gpu: nvml.Gpu) -> Iterator[str]:
    counters = Gpm(gpu=gpu)
    failure = counters.open()
    if failure is not None:
        yield f"GPM: absent: {failure.reason}"
        return
    every = list(GPM_METRICS.values())
    yield "| Pair, ms | Pairs | Valid values | SM activity, mean and spread, % |"
    yield "|---:|---:|---:|---|"
    for pair_ms in GPM_MS:
        valid, seen = 0, []
        counters.take()
        due = time.perf_counter()
        for _ in range(GPM_PAIRS):
            due += pair_ms / 1e3
            time.sleep(max(0.0, due - time.perf_counter()))
            if counters.take() is not None:
                continue
            values = counters.values(every)
            if not isinstance(values, nvml.Absent):
                valid += sum(not isinstance(value, nvml.Absent) for value in values)
                sm = values[every.index(SM_UTIL)]
                seen += [] if isinstance(sm, nvml.Absent) else [sm]
        share = 100 * valid / (GPM_PAIRS * len(every))
        spread = f"{statistics.mean(seen):.1f} ± {statistics.pstdev(seen):.1f}" if seen else "none"
        yield f"| {pair_ms} | {GPM_PAIRS} | {share:.0f} % | {spread} |"
    for name, ask in (
        ("one sample", counters.take),
        ("all values", lambda: counters.values(every)),
    ):
        p50, p99 = cost_us(ask, CALLS)
        yield f"\nGPM, {name}: p50 {p50:.1f} µs, p99 {p99:.1f} µs."
    counters.close()


def collector() -> Iterator[str]:
    """What the whole collector takes at 10 Hz, and without what this page is about."""
    one = GpuCollector(clock=Clock(offset_ns=measure_offset_ns()))
    begin = time.perf_counter()
    one.open()
    opened_s, took, rows = time.perf_counter() - begin, [], 0
    cpu_s, due = time.process_time(), time.perf_counter()
    for _ in range(int(COLLECTOR_S / one.period_s)):
        begin = time.perf_counter()
        rows += len(one.sample())
        took.append(1e3 * (time.perf_counter() - begin))
        due += one.period_s
        time.sleep(max(0.0, due - time.perf_counter()))
    cpu_s = time.process_time() - cpu_s
    one.close()
    took.sort()
    hz, core = 1 / one.period_s, 100 * cpu_s / COLLECTOR_S
    p50_ms, p99_ms = took[len(took) // 2], took[int(0.99 * len(took))]
    yield (
        f"The whole collector at {hz:.0f} Hz: {core:.2f} % of a core, {rows / COLLECTOR_S:.0f} "
        f"values a second; a sample takes {p50_ms:.2f} ms (p99 {p99_ms:.2f} ms; 20 ms more where "
        f"PCIe traffic has to be asked for, which blocks); opening takes {opened_s:.2f} s."
    )


def tables(gpu: nvml.Gpu) -> None:
    for title, lines in (
        ("Questions", questions(gpu)),
        ("The driver's own buffers", buffers(gpu)),
        ("GPM", gpm(gpu)),
        ("Together", collector()),
    ):
        print(f"\n### {title}\n")
        for line in lines:
            print(line, flush=True)


def main() -> None:
    failure = nvml.start()
    if failure is not None and LIBRARY not in os.environ:
        print(f"No GPU here: {failure.reason}.")
        _again_with_the_library()
        return
    if failure is not None:
        raise SystemExit(f"the C library does not start: {failure.reason}")
    listed = nvml.list_gpus()
    chosen = [] if isinstance(listed, nvml.Absent) else choose(listed).gpus
    if not chosen:
        raise SystemExit("NVML answers, and this run may use no GPU: look at CUDA_VISIBLE_DEVICES")
    gpu = chosen[0]
    if LIBRARY in os.environ:
        print("Not yet seen on a GPU: this is the C library of the tests, a scripted H100.")
        tables(gpu)
    else:
        with load() as beside:
            print(f"{gpu.name}, driver {nvml.driver_version()}, {gpu.virtualization}, {beside}.")
            tables(gpu)
    nvml.stop()


def _again_with_the_library() -> None:
    """The loader looks for libraries when a process starts: start one that finds the tests'."""
    from tests.nvml.build import build, environment

    with tempfile.TemporaryDirectory() as folder:
        env = environment(build(Path(folder)), "gpus=1;process_util=self:30:10")
        subprocess.run(
            [sys.executable, "-m", "tests.bench.bench_nvml"], check=True, env={**env, LIBRARY: "1"}
        )


if __name__ == "__main__":
    main()
