"""What watching costs the work: ours and the rivals, set going and stopped in turns beside it.

All CPUs hash without end and one process writes and syncs. All that watch are stopped (SIGSTOP).
Then pairs of slices of ``SLICE_S`` follow one another: in one of the two somebody who watches is
set going (SIGCONT), in the other nobody; which comes first, and whose pair it is, is random. A
slice holds whole periods of what is done once a second; what follows on being set going falls
before it. Two figures come of a pair:

- by the clock: units hashed per second. What is claimed is judged by it;
- by CPU time: units hashed per second of the hashers' CPU time (caches that were taken away, and
  interrupts, make it less), and the share of all CPUs that was taken by who watched. Both together
  are what the clock would say were nothing else running; what else runs falls out.

``docs/overhead.md`` says more; this writes ``docs/overhead-table.md``.
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
from tests.bench.measure import exact_cpu_s, memory_mb
from tests.bench.overhead_telemetries import Telemetry, codecarbon, codecarbon_python, mlflow, ours

TABLE = Path(__file__).resolve().parents[2] / "docs/overhead-table.md"
SETTLE_S, SLICE_S = 0.5, 2.0
EACH = 3
"""Pairs of ours in a block; the rivals have one each."""
COST_S = 40.0
MINUTES = 25.0
"""Of slices; the environment of CodeCarbon and the costs come to about three more."""
TRIMMED = 0.1
LEVEL = 0.05
QUIET_PERCENT = 1.0
LIMIT_PERCENT, LIMIT_CORE_PERCENT, LIMIT_MB = 0.5, 1.0, 100.0
LOAD = """
import hashlib, mmap, os, sys, time
path, cpus = sys.argv[1], int(sys.argv[2])
pids = [os.fork()]
if pids[0] == 0:
    with open(path + ".written", "w+b") as file:
        while True:
            file.seek(0)
            file.write(os.urandom(1 << 16) * 16)
            file.flush()
            os.fdatasync(file.fileno())
            time.sleep(0.5)
with open(path, "r+b") as file:
    counts = memoryview(mmap.mmap(file.fileno(), 8 * cpus)).cast("q")
for number in range(cpus):
    pids.append(os.fork())
    if pids[-1] == 0:
        data, digest = os.urandom(1 << 17), hashlib.sha256()
        while True:
            digest.update(data)
            counts[number] += 1
print(*pids, flush=True)
sys.stdin.read()  # until whoever started it is gone, however that was
os.killpg(0, 9)
"""

TICKS_PER_S = os.sysconf("SC_CLK_TCK")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Slice:
    """``clock``: units per s; ``work``: units per s of CPU, less what the watcher took."""

    clock: float
    work: float


@dataclass(frozen=True, kw_only=True)
class Load:
    """``pids``: whoever hashes, one for each CPU."""

    pid: int
    pids: tuple[int, ...]
    writer: int
    counts: memoryview

    def slice(self, seconds: float, watchers: Sequence[int]) -> Slice:
        begin = self._now(watchers)
        time.sleep(seconds)
        end = self._now(watchers)
        units, wall_s, cpu_s, watched_s = (b - a for a, b in zip(begin, end, strict=True))
        share = watched_s / (wall_s * len(self.pids))
        return Slice(clock=units / wall_s, work=units / cpu_s * (1 - share))

    def _now(self, watchers: Sequence[int]) -> tuple[float, float, float, float]:
        used_s = sum(map(exact_cpu_s, self.pids))
        return sum(self.counts), time.perf_counter(), used_s, sum(map(exact_cpu_s, watchers))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one that watches, beside the load and without a break."""

    core_percent: float
    memory_mb: float
    kept_per_s: float


@dataclass(frozen=True, kw_only=True)
class Slowdown:
    """In %: trimmed mean over the pairs, two-sided interval's half width, one-sided bound."""

    percent: float
    half: float
    upper: float
    pairs: int


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
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        writer, *pids = map(int, process.stdout.readline().split())
        time.sleep(1)
        yield Load(pid=process.pid, pids=tuple(pids), writer=writer, counts=shared)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def cost(one: Telemetry, seconds: float) -> Cost:
    one.go_on()
    time.sleep(2 * SETTLE_S)
    kept, spent_s, begin = one.kept(), sum(map(exact_cpu_s, one.pids)), time.perf_counter()
    time.sleep(seconds)
    took_s = time.perf_counter() - begin
    spent_s = sum(map(exact_cpu_s, one.pids)) - spent_s
    peak_mb = memory_mb(one.main)[1]
    one.stop()
    return Cost(
        core_percent=100 * spent_s / took_s,
        memory_mb=peak_mb,
        kept_per_s=(one.kept() - kept) / took_s,
    )


def pair(work: Load, one: Telemetry, chance: random.Random) -> tuple[float, float]:
    """How much slower the work is beside one that watches, in %: by the clock and by CPU time.

    Two slices next to each other, one with nobody: both have what the machine does in long waves.
    """
    found = {}
    for watched in chance.sample((False, True), 2):
        if watched:
            one.go_on()
        time.sleep(SETTLE_S)
        found[watched] = work.slice(SLICE_S, one.pids if watched else ())
        if watched:
            one.stop()
    free, beside = found[False], found[True]
    return 100 * (free.clock / beside.clock - 1), 100 * (free.work / beside.work - 1)


def slowdown(percents: Sequence[float]) -> Slowdown:
    """Trimmed mean and its interval from the winsorized spread (Tukey and McLaughlin).

    A slice in which something else ran is no matter of who watched: a tenth of the pairs at each
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
        pairs=len(values),
    )


def pairs(work: Load, ones: Sequence[Telemetry], blocks: int) -> dict[str, list[Slowdown]]:
    """By the clock and by CPU time; a block has ``EACH`` pairs of ours and one of each rival.

    As many as were said before the first: to stop on a good bound would make it false.
    """
    chance = random.Random(4)
    order = [ones[0]] * EACH + list(ones[1:])
    slower: dict[str, list[tuple[float, float]]] = {one.name: [] for one in ones}
    for number in range(blocks):
        chance.shuffle(order)
        for one in order:
            slower[one.name].append(pair(work, one, chance))
        if number % 10 == 0:
            print(f"  block {number + 1} of {blocks}", flush=True)
    return {
        name: [slowdown(column) for column in zip(*percents, strict=True)]
        for name, percents in slower.items()
    }


def blocks_in(minutes: float, ones: int) -> int:
    a_block_s = 2 * (EACH + ones - 1) * (SETTLE_S + SLICE_S)
    return max(2, int(60 * minutes / a_block_s))


def table(
    ones: Sequence[Telemetry],
    costs: Mapping[str, Cost],
    slower: Mapping[str, Sequence[Slowdown]],
) -> Iterator[str]:
    yield (
        "| who watches | slower, by the clock | at most | slower, by CPU time | at most |"
        " CPU, % of a core | memory | values kept per s |"
        " stages | process tree | GPU | energy per stage |"
    )
    yield "|---" * 12 + "|"
    for one in ones:
        spent = costs[one.name]
        figures = [
            f"{slow.percent:+.2f} % ± {slow.half:.2f} % | {slow.upper:.2f} %"
            for slow in slower.get(one.name, ())
        ]
        yield (
            f"| {one.name} | {' | '.join(figures or ['–'] * 4)} | {spent.core_percent:.2f} |"
            f" {spent.memory_mb:.0f} MB | {spent.kept_per_s:.1f} | {' | '.join(one.knows)} |"
        )


def told(spent: Cost, slow: Slowdown) -> str:
    """Whether what is claimed of ours holds."""
    claims = (
        ("slower by at most", slow.upper, LIMIT_PERCENT, "%"),
        ("CPU", spent.core_percent, LIMIT_CORE_PERCENT, "% of a core"),
        ("memory", spent.memory_mb, LIMIT_MB, "MB"),
    )
    parts = [
        f"{name} {value:.2f} {unit} ({'within' if value <= most else 'above'} {most:g})"
        for name, value, most, unit in claims
    ]
    return f"Ours: {'; '.join(parts)}."


def circumstances(slow: Slowdown, others_percent: float) -> str:
    gpu = "A GPU was watched" if Path("/dev/nvidia0").exists() else "No GPU was there to be watched"
    quiet = "" if others_percent < QUIET_PERCENT else ": not a quiet machine, measure again"
    return (
        f"{slow.pairs} pairs of ours on {os.cpu_count()} CPUs that were all busy (Linux"
        f" {platform.release()}). {gpu}. Whatever else ran took {others_percent:.1f} % of the CPUs"
        f"{quiet}. ±: 95 %; at most: 95 %, one-sided. MLflow's at 10 s has no place in slices that"
        " are shorter than its period."
    )


def busy_s() -> float:
    """CPU time of everything on this machine, guests of its own and stolen time left out."""
    modes = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(modes) - modes[3] - modes[4] - modes[7]) / TICKS_PER_S  # idle, iowait, steal


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of slices")
    parser.add_argument("--cost-s", type=float, default=COST_S)
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # and so to every "finally"
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as name:
        text = measured(Path(name), asked.minutes, asked.cost_s)
    print(f"\n{text}")
    if asked.write:
        command = "python -m tests.bench.bench_overhead --write"
        write_atomically(TABLE, f"<!-- written by {command} -->\n\n{text}")


def measured(folder: Path, minutes: float, cost_s: float) -> str:
    """All of it, as Markdown."""
    python = codecarbon_python(folder / "venv")
    with ExitStack() as stack:
        work = stack.enter_context(load(folder))
        ones = [
            stack.enter_context(ours(folder / "ours", work.pid)),
            stack.enter_context(mlflow(folder / "mlflow-1", 1.0)),
        ]
        if isinstance(python, Path):
            ones.append(stack.enter_context(codecarbon(folder / "carbon", python, 1.0)))
        everyone = [*ones, stack.enter_context(mlflow(folder / "mlflow-10", 10.0))]
        for one in everyone:
            one.stop()
        costs = {one.name: cost(one, cost_s) for one in everyone}
        known = [
            os.getpid(),
            *work.pids,
            work.writer,
            *(pid for one in everyone for pid in one.pids),
        ]
        begin, others_s = time.perf_counter(), busy_s() - sum(map(exact_cpu_s, known))
        slower = pairs(work, ones, blocks_in(minutes, len(ones)))
        others_s = busy_s() - sum(map(exact_cpu_s, known)) - others_s
        others = 100 * others_s / (time.perf_counter() - begin) / len(work.pids)
    first = slower[ones[0].name][0]
    lines = [*table(everyone, costs, slower), "", told(costs[ones[0].name], first), ""]
    lines.append(circumstances(first, others))
    lines += ["", python] if isinstance(python, str) else []
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
