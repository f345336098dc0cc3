"""What the recorder takes: CPU and memory. What that costs the work is ``bench_overhead``'s."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from telemetry.clock import Clock, measure_offset_ns
from telemetry.recording import Recording
from telemetry.settings import TelemetrySettings

WATCHED_S = 30.0
TREE = "for i in 1 2 3 4; do while :; do sleep 0.05; done & done; wait"
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


if __name__ == "__main__":
    cost()
