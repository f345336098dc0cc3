"""What recording costs: the recorder's CPU and memory, and paired runs with and without it."""

from __future__ import annotations

import math
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from telemetry.clock import Clock, measure_offset_ns
from telemetry.recording import Recording
from telemetry.settings import TelemetrySettings

WATCHED_S = 30.0
PAIRS = 10
T_95 = 2.262
"""Student's t, two-sided 95 %, for ``PAIRS`` - 1 degrees of freedom."""
TREE = "for i in 1 2 3 4; do while :; do sleep 0.05; done & done; wait"
WORK = """
import hashlib, os, sys
data = os.urandom(1 << 20)
for i in range(int(sys.argv[2])):
    data = hashlib.sha256(data).digest() * (1 << 15)
with open(sys.argv[1], "wb") as file:
    for i in range(48):
        file.write(data)
    file.flush()
    os.fsync(file.fileno())
"""
ROUNDS = 3000
"""Of hashing 1 MiB: a few seconds, on every CPU at once, so that the recorder has to share one."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@contextmanager
def recording() -> Iterator[Recording]:
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock(offset_ns=measure_offset_ns())
        with Recording(Path(folder) / "samples", clock, TelemetrySettings()) as one:
            yield one


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def memory_mb(pid: int) -> tuple[float, float]:
    """Resident and peak."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kb = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
    return kb["VmRSS"] / 1e3, kb["VmHWM"] / 1e3


def cost(watched_s: float = WATCHED_S) -> None:
    """The recorder beside a tree of nine processes, four of which come and go."""
    tree = subprocess.Popen(["sh", "-c", TREE], start_new_session=True)
    try:
        with recording() as one:
            one.watch("work", tree.pid)
            (pid,) = one.pids()
            start_up_s = cpu_s(pid)
            time.sleep(1)
            before_s, begin = cpu_s(pid), time.perf_counter()
            time.sleep(watched_s)
            share = (cpu_s(pid) - before_s) / (time.perf_counter() - begin)
            rss_mb, peak_mb = memory_mb(pid)
    finally:
        os.killpg(tree.pid, signal.SIGKILL)
        tree.wait()
    processes = sum(name.isdigit() for name in os.listdir("/proc"))  # noqa: PTH208
    print(f"recorder at {TelemetrySettings().guest_hz:g} Hz, {processes} processes here:")
    print(f"  CPU {100 * share:.2f} % of a core, and {start_up_s:.2f} s to start")
    print(f"  memory {rss_mb:.0f} MB resident, {peak_mb:.0f} MB at most")


def work_s() -> float:
    """Seconds that a fixed amount of hashing and synced writing takes."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder:
        begin = time.perf_counter()
        ones = [
            subprocess.Popen([sys.executable, "-c", WORK, f"{folder}/{number}", str(ROUNDS)])
            for number in range(len(os.sched_getaffinity(0)))
        ]
        with_error = [one for one in ones if one.wait() != 0]
        seconds = time.perf_counter() - begin
    if with_error:
        raise RuntimeError("the work failed")
    return seconds


def recorded_work_s() -> float:
    with recording() as one:
        one.watch("work", os.getpid(), from_start=False)
        time.sleep(1)  # its start is over, as in a run
        return work_s()


def others_cpu_s() -> float:
    """CPU seconds of everything on this machine but this process's children that have ended."""
    modes = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    busy_s = (sum(modes) - modes[3] - modes[4] - modes[7]) / TICKS_PER_S  # idle, iowait, steal
    ours = resource.getrusage(resource.RUSAGE_CHILDREN)
    return busy_s - ours.ru_utime - ours.ru_stime


def pairs(count: int = PAIRS) -> None:
    """Runs with and without, in pairs in random order, so that a drift of the machine cancels.

    The last column is the CPU time of whatever else ran meanwhile: where it is not near 0, the
    pair says more of that than of the recorder.
    """
    work_s()
    chance, slower = random.Random(2), []
    print("\n  without s    with s   slower by  others' CPU s")
    for _ in range(count):
        kinds = [work_s, recorded_work_s]
        chance.shuffle(kinds)
        before_s = others_cpu_s()
        took = {kind: kind() for kind in kinds}
        others_s = others_cpu_s() - before_s
        slower.append(100 * (took[recorded_work_s] / took[work_s] - 1))
        times = f"{took[work_s]:9.3f} {took[recorded_work_s]:9.3f}"
        print(f"  {times} {slower[-1]:+9.2f} % {others_s:14.2f}", flush=True)
    half = T_95 * statistics.stdev(slower) / math.sqrt(count)
    print(f"slower by {statistics.mean(slower):+.2f} % ± {half:.2f} % (95 %, {count} pairs)")
    print(f"in the middle pair by {statistics.median(slower):+.2f} %")


if __name__ == "__main__":
    cost()
    pairs()
