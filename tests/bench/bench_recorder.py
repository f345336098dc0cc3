"""What the recorder takes: CPU and memory. What that costs the work is ``bench_overhead``'s."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra import nvml
from telemetry.clock import Clock, measure_offset_ns
from telemetry.recording import Recording
from telemetry.settings import TelemetrySettings
from tests.bench.bench_overhead import load
from tests.bench.measure import exact_cpu_s, memory_mb
from tests.nvml.build import build, environment
from tests.study.throttle import neighbour

WATCHED_S = 30.0
BARE = """
import os, time
file = os.open("/proc/stat", os.O_RDONLY)
while True:
    time.sleep(0.1)
    os.pread(file, 512, 0)
"""
"""As often as the recorder samples; being woken with cold caches costs more on some machines."""
TREE = "for i in 1 2 3 4; do while :; do sleep 0.05; done & done; wait"
SCENARIO = "gpus=1;process_util=self:30:10"
"""A GPU that answers every question, in the C library of the tests."""


@contextmanager
def recording() -> Iterator[Recording]:
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock(offset_ns=measure_offset_ns())
        with Recording(Path(folder) / "samples", clock, TelemetrySettings()) as one:
            yield one


@contextmanager
def nine_processes() -> Iterator[int]:
    """A tree of nine, four of which come and go twenty times a second; yields its root."""
    tree = subprocess.Popen(["sh", "-c", TREE], start_new_session=True)
    try:
        yield tree.pid
    finally:
        os.killpg(tree.pid, signal.SIGKILL)
        tree.wait()


@contextmanager
def working_stage() -> Iterator[int]:
    """The load of ``bench_overhead``: all CPUs hash, and one process more writes and syncs."""
    with (
        tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder,
        load(Path(folder)) as one,
    ):
        yield one.pid


def costs() -> None:
    print("  beside a stage that uses all CPUs and writes:")
    with working_stage() as root:
        cost(root)
    print("  beside nine processes, four of which come and go:")
    with nine_processes() as root:
        cost(root)
    print("  the same, while all CPUs are busy:")
    with nine_processes() as root, neighbour(len(os.sched_getaffinity(0))):
        cost(root)


def cost(root: int, watched_s: float = WATCHED_S) -> None:
    """The recorder beside the tree of ``root``."""
    with recording() as one:
        one.watch("work", root)
        (pid,) = one.pids()
        start_up_s = exact_cpu_s(pid)
        time.sleep(1)
        before_s, begin = exact_cpu_s(pid), time.perf_counter()
        time.sleep(watched_s)
        share = (exact_cpu_s(pid) - before_s) / (time.perf_counter() - begin)
        rss_mb, peak_mb = memory_mb(pid)
    print(f"    CPU {100 * share:.2f} % of a core, and {start_up_s:.2f} s to start")
    print(f"    a Python process that reads one file as often: {100 * bare(watched_s):.2f} %")
    print(f"    memory {rss_mb:.0f} MB resident, {peak_mb:.0f} MB at most", flush=True)


def bare(seconds: float) -> float:
    """Share of a core that a process takes which is woken as often and does next to nothing."""
    with subprocess.Popen([sys.executable, "-c", BARE]) as process:
        time.sleep(1)
        before_s, begin = exact_cpu_s(process.pid), time.perf_counter()
        time.sleep(seconds)
        share = (exact_cpu_s(process.pid) - before_s) / (time.perf_counter() - begin)
        process.kill()
    return share


def main() -> None:
    processes = sum(name.isdigit() for name in os.listdir("/proc"))  # noqa: PTH208
    print(f"recorder at {TelemetrySettings().guest_hz:g} Hz, {processes} processes here:")
    costs()
    failure = nvml.start()
    if failure is None:
        nvml.stop()
        return
    print("the same with one GPU, which is the C library of the tests (its driver takes no time):")
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= environment(build(Path(folder)), SCENARIO)
        costs()


if __name__ == "__main__":
    main()
