"""What watching costs the work: ours and the rivals, set going and stopped in turns beside it.

All CPUs hash without end and one process writes and syncs. What is counted is how many units are
hashed in slices of ``SLICE_S``; in each slice one of those that watch is set going (SIGCONT) and
all others are stopped (SIGSTOP), in blocks in random order, so that a drift of the machine falls on
all alike. A slice holds whole periods of what is done once a second; what follows on being set
going falls before it. It writes ``docs/overhead-table.md``.
"""

from __future__ import annotations

import argparse
import math
import mmap
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from telemetry.runfolder import write_atomically
from telemetry.statistics import t_quantile
from tests.bench.bench_recorder import cpu_s, memory_mb
from tests.bench.overhead_telemetries import Telemetry, codecarbon, codecarbon_python, mlflow, ours

TABLE = Path(__file__).resolve().parents[2] / "docs/overhead-table.md"
SETTLE_S, SLICE_S = 0.5, 2.0
EACH = 3
"""Slices of ours, and of nobody, in a block; the rivals have one each."""
COST_S = 40.0
MINUTES = 21.0
"""Of slices; the environment of CodeCarbon and the costs come to about three more."""
TRIMMED = 0.1
LEVEL = 0.05
LIMIT_PERCENT, LIMIT_CORE_PERCENT, LIMIT_MB = 0.5, 1.0, 100.0
NOBODY = "nobody"
LOAD = """
import hashlib, mmap, os, sys, time
path, cpus = sys.argv[1], int(sys.argv[2])
if os.fork() == 0:
    with open(path + ".written", "r+b" if os.path.exists(path + ".written") else "w+b") as file:
        while True:
            file.seek(0)
            file.write(os.urandom(1 << 16) * 16)
            file.flush()
            os.fdatasync(file.fileno())
            time.sleep(0.5)
with open(path, "r+b") as file:
    counts = memoryview(mmap.mmap(file.fileno(), 8 * cpus)).cast("q")
for number in range(cpus):
    if os.fork() == 0:
        data = os.urandom(1 << 18)
        while True:
            data = hashlib.sha256(data).digest() * (1 << 13)
            counts[number] += 1
sys.stdin.read()  # until whoever started it is gone, however that was
os.killpg(0, 9)
"""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Load:
    pid: int
    counts: memoryview

    def rate(self, seconds: float) -> float:
        """Units hashed per second, of all CPUs together."""
        before, begin = sum(self.counts), time.perf_counter()
        time.sleep(seconds)
        return (sum(self.counts) - before) / (time.perf_counter() - begin)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one that watches, beside the load and without a break."""

    core_percent: float
    memory_mb: float
    kept_per_s: float


@dataclass(frozen=True, kw_only=True)
class Slowdown:
    """In %: trimmed mean over the blocks, two-sided interval's half width, one-sided bound."""

    percent: float
    half: float
    upper: float
    blocks: int


@contextmanager
def load(folder: Path) -> Iterator[Load]:
    cpus = len(os.sched_getaffinity(0))
    path = folder / "counts"
    path.write_bytes(bytes(8 * cpus))
    with path.open("r+b") as file:
        shared = memoryview(mmap.mmap(file.fileno(), 8 * cpus)).cast("q")
    process = subprocess.Popen(
        [sys.executable, "-c", LOAD, str(path), str(cpus)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        time.sleep(1)
        yield Load(pid=process.pid, counts=shared)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def cost(one: Telemetry, seconds: float) -> Cost:
    one.go_on()
    time.sleep(2 * SETTLE_S)
    kept, spent_s, begin = one.kept(), sum(map(cpu_s, one.pids)), time.perf_counter()
    time.sleep(seconds)
    took_s = time.perf_counter() - begin
    spent_s = sum(map(cpu_s, one.pids)) - spent_s
    peak_mb = memory_mb(one.main)[1]
    one.stop()
    return Cost(
        core_percent=100 * spent_s / took_s,
        memory_mb=peak_mb,
        kept_per_s=(one.kept() - kept) / took_s,
    )


def slices(
    work: Load, ones: Mapping[str, Telemetry], order: Sequence[str]
) -> dict[str, list[float]]:
    """The rates of one block."""
    rates: dict[str, list[float]] = {}
    for name in order:
        if name != NOBODY:
            ones[name].go_on()
        time.sleep(SETTLE_S)
        rates.setdefault(name, []).append(work.rate(SLICE_S))
        if name != NOBODY:
            ones[name].stop()
    return rates


def slowdown(percents: Sequence[float]) -> Slowdown:
    """Trimmed mean and its interval from the winsorized spread (Tukey and McLaughlin).

    A slice in which something else ran is no matter of who watched: a tenth of the blocks at each
    end has no more weight than its neighbours.
    """
    values: Floats = np.sort(np.asarray(percents, dtype=np.float64))
    cut = int(TRIMMED * len(values))
    kept = values[cut : len(values) - cut]
    spread = float(np.std(np.clip(values, kept[0], kept[-1]), ddof=1))
    error = spread / ((1 - 2 * cut / len(values)) * math.sqrt(len(values)))
    mean, df = float(kept.mean()), len(kept) - 1
    return Slowdown(
        percent=mean,
        half=float(t_quantile(LEVEL / 2, df)) * error,
        upper=mean + float(t_quantile(LEVEL, df)) * error,
        blocks=len(values),
    )


def blocks(work: Load, ones: Sequence[Telemetry], count: int) -> dict[str, Slowdown]:
    """As many blocks as were said before the first: to stop on a good bound would make it false."""
    chance, named = random.Random(4), {one.name: one for one in ones}
    order = [NOBODY, ones[0].name] * EACH + [one.name for one in ones[1:]]
    slower: dict[str, list[float]] = {name: [] for name in named}
    for number in range(count):
        chance.shuffle(order)
        rates = slices(work, named, order)
        free = float(np.mean(rates[NOBODY]))
        for name in named:
            slower[name].append(100 * (free / float(np.mean(rates[name])) - 1))
        if number % 10 == 0:
            print(f"  block {number + 1} of {count}", flush=True)
    return {name: slowdown(percents) for name, percents in slower.items()}


def blocks_in(minutes: float, ones: int) -> int:
    a_block_s = (2 * EACH + ones - 1) * (SETTLE_S + SLICE_S)
    return max(5, int(60 * minutes / a_block_s))


def table(
    ones: Sequence[Telemetry], costs: Mapping[str, Cost], slower: Mapping[str, Slowdown]
) -> Iterator[str]:
    yield (
        "| who watches | slowdown (95 %) | at most (95 %, one-sided) | CPU, % of a core | memory |"
        " values kept per s | stages | process tree | GPU | energy per stage |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for one in ones:
        spent, slow = costs[one.name], slower.get(one.name)
        figures = (
            f"{slow.percent:+.2f} % ± {slow.half:.2f} % | {slow.upper:.2f} %"
            if slow is not None
            else "not by slices: its period is longer | –"
        )
        yield (
            f"| {one.name} | {figures} | {spent.core_percent:.2f} | {spent.memory_mb:.0f} MB |"
            f" {spent.kept_per_s:.1f} | {' | '.join(one.knows)} |"
        )


def told(spent: Cost, slow: Slowdown) -> str:
    """Whether what is claimed of ours holds."""
    claims = (
        ("the slowdown's upper bound", slow.upper, LIMIT_PERCENT, "%"),
        ("CPU", spent.core_percent, LIMIT_CORE_PERCENT, "% of a core"),
        ("memory", spent.memory_mb, LIMIT_MB, "MB"),
    )
    parts = [
        f"{name} {value:.2f} {unit}, {'within' if value <= most else 'above'} {most:g}"
        for name, value, most, unit in claims
    ]
    return f"Ours: {'; '.join(parts)} ({slow.blocks} blocks)."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of slices")
    parser.add_argument("--cost-s", type=float, default=COST_S)
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # and so to every "finally"
    with (
        tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as name,
        ExitStack() as open_,
    ):
        folder = Path(name)
        python = codecarbon_python(folder / "venv")
        work = open_.enter_context(load(folder))
        ones = [
            open_.enter_context(ours(folder / "ours", work.pid)),
            open_.enter_context(mlflow(folder / "mlflow-1", 1.0)),
        ]
        if isinstance(python, Path):
            ones.append(open_.enter_context(codecarbon(folder / "carbon", python, 1.0)))
        slow_one = open_.enter_context(mlflow(folder / "mlflow-10", 10.0))
        for one in (*ones, slow_one):
            one.stop()
        costs = {one.name: cost(one, asked.cost_s) for one in (*ones, slow_one)}
        slower = blocks(work, ones, blocks_in(asked.minutes, len(ones)))
    lines = [*table([*ones, slow_one], costs, slower), "", told(costs[ones[0].name],
             slower[ones[0].name])]  # fmt: skip
    if isinstance(python, str):
        lines += ["", python]
    lines += ["", f"{os.cpu_count()} CPUs, Linux {platform.release()}, all of them busy;"
              f" no GPU was watched." if not Path("/dev/nvidia0").exists() else ""]  # fmt: skip
    text = "\n".join(lines) + "\n"
    print(f"\n{text}")
    if asked.write:
        command = "python -m tests.bench.bench_overhead --write"
        write_atomically(TABLE, f"<!-- written by {command} -->\n\n{text}")


if __name__ == "__main__":
    main()
