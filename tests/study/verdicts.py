"""Are the verdicts right? Each cause is put upon a real recorded program, several times.

Needs root (control groups, a network namespace) and a machine with nothing else to do. Writes
docs/study-verdicts.md. A cause that cannot be injected here is listed with the reason and not
counted. ``--seed N`` chooses sizes, and ``--only CAUSE,…`` and ``--each N`` try a part, which is
only printed: the rules were tuned on other seeds than the study's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from telemetry.record import record_command
from telemetry.settings import TelemetrySettings
from tests.study import slow_link
from tests.study.control_groups import device_of, group, why_not

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROOT = Path(__file__).resolve().parents[2]
NOT_INJECTED = {
    "GPU-bound (`gpu-busy`), contention (`gpu-neighbour`)": "no GPU is driven here",
    "contention (`steal`, `hypervisor`)": "a guest cannot make its own hypervisor short of CPU",
}
"""Verdicts that only made-up profiles are held to, by the tests."""
SEED = 20261125
"""Of the study; the rules were tuned on trials of other seeds."""
FILE_MIB = 256
RIGHT = 0.95
CPUS = os.cpu_count() or 1
STAGE = "trial"


@dataclass(frozen=True)
class Place:
    """Where trials are made: a folder, and a file of random bytes in it."""

    folder: Path
    file: Path

    @property
    def runs(self) -> Path:
        return self.folder / "runs"


@dataclass
class Load:
    """A program of ``verdict_loads`` and its settings."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


Prepared = contextlib.AbstractContextManager[Load]


@dataclass(frozen=True, kw_only=True)
class Cause:
    """What is injected, what is to be found, how often, and how a trial is set up.

    ``rules``: any of them is right. ``source``: where the data came from, None where it reads next
    to nothing. ``impossible``: why this machine cannot do it.
    """

    name: str
    verdict: str
    rules: tuple[str, ...]
    prepare: Callable[[Place, random.Random, int], Prepared]
    source: str | None = None
    trials: int = 4
    impossible: Callable[[], str | None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Trial:
    cause: Cause
    verdict: str
    rule: str
    source: str
    sentence: str
    seconds: float

    @property
    def is_right(self) -> bool:
        return self.verdict == self.cause.verdict


# --- the injections -------------------------------------------------------------------------------


@contextlib.contextmanager
def _plain(load: Load) -> Iterator[Load]:
    yield load


@contextlib.contextmanager
def _quota(place: Place, draw: random.Random, number: int) -> Iterator[Load]:
    cores = draw.uniform(0.15, 0.6) * (1 if number % 2 else CPUS * 0.9)
    limits = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": str(round(1e5 * cores))}
    with group("cpu", limits) as folder:
        yield Load("one_thread" if number % 2 else "all_cpus", {"join": [str(folder)]})


def _read_limit(place: Place, rate: float) -> dict[str, str]:
    return {"blkio.throttle.read_bps_device": f"{device_of(place.folder)} {round(rate)}"}


@contextlib.contextmanager
def _slow_disk(place: Place, draw: random.Random, number: int) -> Iterator[Load]:
    evict(place.file)
    with group("io", _read_limit(place, draw.uniform(4e6, 25e6))) as folder:
        yield Load("read", {"path": str(place.file), "cold": True, "digest": number % 2,
                            "join": [str(folder)]})  # fmt: skip


@contextlib.contextmanager
def _slow_writes(place: Place, draw: random.Random, number: int) -> Iterator[Load]:
    rate = round(draw.uniform(4e6, 20e6))
    limits = {"blkio.throttle.write_bps_device": f"{device_of(place.folder)} {rate}"}
    with group("io", limits) as folder:
        yield Load("write", {"path": str(place.folder / "written"), "mib": draw.randint(2, 6),
                             "join": [str(folder)]})  # fmt: skip


def _decoder(place: Place, draw: random.Random, number: int) -> Prepared:
    compute_s, images = draw.uniform(0.002, 0.015), draw.randint(15, 40)
    return _plain(_steps(place, draw, "slow_decoder", worker=bool(number % 2),
                         images=images, compute_s=compute_s))  # fmt: skip


def _starved(place: Place, draw: random.Random, number: int) -> Prepared:
    wait_s = draw.uniform(0.02, 0.2)
    compute_s = wait_s * draw.uniform(0.05, 0.5)
    every_s = wait_s if number % 2 == 0 else wait_s + compute_s  # a thread's sleep overlaps
    return _plain(_steps(place, draw, "starved_loader", worker=bool(number % 2),
                         every_s=every_s, compute_s=compute_s))  # fmt: skip


@contextlib.contextmanager
def _reading_loader(place: Place, draw: random.Random, number: int) -> Iterator[Load]:
    evict(place.file)
    rate = draw.uniform(5e6, 20e6)
    with group("io", _read_limit(place, rate)) as folder:
        yield _steps(place, draw, "reading_loader", path=str(place.file), join=[str(folder)],
                     worker=bool(number % 2),
                     compute_s=draw.uniform(0.05, 0.4) * (1 << 20) / rate)  # fmt: skip


@contextlib.contextmanager
def _decoding_workers(place: Place, draw: random.Random, number: int) -> Iterator[Load]:
    """Each worker waits for its disk for a part of its time, and works for most of it.

    The kernel reads ahead while it works, so the disk is made slower than all of them together.
    """
    evict(place.file)
    decode_s = draw.uniform(0.04, 0.12)
    rate = CPUS * (1 << 20) / (decode_s * (1 + draw.uniform(0.2, 0.5)))
    with group("io", _read_limit(place, rate)) as folder:
        yield _steps(place, draw, "decoding_workers", path=str(place.file), join=[str(folder)],
                     decode_s=decode_s, compute_s=0.001)  # fmt: skip


@contextlib.contextmanager
def _reading_first(place: Place, draw: random.Random, number: int) -> Iterator[Load]:
    evict(place.file)
    with group("io", _read_limit(place, draw.uniform(4e6, 25e6))) as folder:
        yield Load("read_then_compute", {"path": str(place.file), "cold": True, "digest": 0,
                                         "reading": draw.uniform(0.6, 0.7),
                                         "join": [str(folder)]})  # fmt: skip


def _steps(place: Place, draw: random.Random, name: str, **settings: Any) -> Load:
    of_run = {"out": str(place.runs), "stage": STAGE, "seed": draw.randrange(1 << 30)}
    return Load(name, {**of_run, **settings})


def _warm(place: Place, draw: random.Random, number: int) -> Prepared:
    with place.file.open("rb") as file:
        while file.read(1 << 22):
            pass
    return _plain(Load("read", {"path": str(place.file), "cold": False, "digest": number % 2}))


@contextlib.contextmanager
def _cold(place: Place, draw: random.Random, number: int) -> Iterator[Load]:
    """An unthrottled disk can be faster than a digest: the same program as the warm one."""
    evict(place.file)
    yield Load("read", {"path": str(place.file), "cold": True, "digest": 1 + number % 2})


def _loopback(place: Place, draw: random.Random, number: int) -> Prepared:
    return _plain(Load("loopback", {"pause_s": draw.uniform(0.05, 0.2)}))


def _idle(place: Place, draw: random.Random, number: int) -> Prepared:
    return _plain(Load("idle", {"every_s": draw.uniform(0.02, 0.5)}))


@contextlib.contextmanager
def _neighbours(place: Place, draw: random.Random, number: int) -> Iterator[Load]:
    count = CPUS * draw.randint(2, 4)
    code = "while True: sum(range(2000))"
    others = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield Load("one_thread" if number % 2 else "all_cpus")
    finally:
        for other in others:
            other.kill()
            other.wait()


@contextlib.contextmanager
def _short_memory(place: Place, draw: random.Random, number: int) -> Iterator[Load]:
    """A mapped file that does not quite fit: its pages are thrown out and read again."""
    evict(place.file)
    mib = draw.randint(24, 96)
    with group("memory", {"memory.limit_in_bytes": str(mib << 20)}) as folder:
        touched = round(mib * draw.uniform(1.3, 2.5))
        yield Load("touch_mapped", {"path": str(place.file), "join": [str(folder)],
                                    "mib": touched, "seed": draw.randrange(1 << 30)})  # fmt: skip


@contextlib.contextmanager
def _slow_network(place: Place, draw: random.Random, number: int) -> Iterator[Load]:
    with slow_link.slow_link(draw.uniform(20e6, 150e6)) as address:
        yield Load("download", {"address": address})


CAUSES = (
    Cause(name="CPU quota", verdict="CPU-bound", rules=("cpu-quota",), prepare=_quota, trials=6,
          impossible=lambda: why_not("cpu")),
    Cause(name="disk throttled, reads", verdict="disk-bound", rules=("disk-read",),
          prepare=_slow_disk, source="storage", trials=5, impossible=lambda: why_not("io")),
    Cause(name="reads most of its time, then all CPUs", verdict="disk-bound", rules=("disk-read",),
          prepare=_reading_first, source="storage", trials=5, impossible=lambda: why_not("io")),
    Cause(name="disk throttled, synced writes", verdict="disk-bound", rules=("disk-write",),
          prepare=_slow_writes, impossible=lambda: why_not("io")),
    Cause(name="slow decoder", verdict="data-bound", rules=("data-decoding",), prepare=_decoder,
          trials=6),
    Cause(name="decoding workers on a disk", verdict="data-bound", rules=("data-decoding",),
          prepare=_decoding_workers, source="storage", trials=5, impossible=lambda: why_not("io")),
    Cause(name="starved loader", verdict="data-bound", rules=("data-starved",), prepare=_starved,
          trials=6),
    Cause(name="loader on a throttled disk", verdict="data-bound",
          rules=("data-storage", "data-machine"), prepare=_reading_loader, source="storage",
          trials=6, impossible=lambda: why_not("io")),
    Cause(name="digests, warm page cache", verdict="CPU-bound", rules=("cpu-one",), prepare=_warm,
          source="cache", trials=5),
    Cause(name="digests, cold page cache, fast disk", verdict="CPU-bound", rules=("cpu-one",),
          prepare=_cold, source="storage", trials=5),
    Cause(name="memory too small", verdict="memory-bound", rules=("memory-stall",),
          prepare=_short_memory, impossible=lambda: why_not("memory")),
    Cause(name="CPU neighbours", verdict="contention", rules=("neighbour",), prepare=_neighbours,
          trials=5),
    Cause(name="slow network", verdict="network-bound", rules=("network",),
          prepare=_slow_network, impossible=slow_link.why_not),
    Cause(name="one thread", verdict="CPU-bound", rules=("cpu-one",),
          prepare=lambda place, draw, number: _plain(Load("one_thread"))),
    Cause(name="all CPUs", verdict="CPU-bound", rules=("cpu-all",),
          prepare=lambda place, draw, number: _plain(Load("all_cpus"))),
    Cause(name="idle", verdict="idle", rules=("idle",), prepare=_idle),
    Cause(name="loopback traffic, paced", verdict="idle", rules=("idle",), prepare=_loopback),
)  # fmt: skip


def evict(file: Path) -> None:
    """Have nothing of a file in the page cache."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# --- a trial --------------------------------------------------------------------------------------


def trial(cause: Cause, place: Place, seed: int, number: int) -> Trial:
    """Record the program under the cause, and what the run's profile.json says of it."""
    draw = random.Random(f"{seed} {cause.name} {number}")
    seconds = draw.uniform(5.0, 8.0)
    settings = TelemetrySettings(collectors=("guest",))
    with cause.prepare(place, draw, number) as load:
        module = [sys.executable, "-m", "tests.study.verdict_loads"]
        command = [*module, load.name, f"{seconds:.2f}", json.dumps(load.settings)]
        folder, code = record_command(STAGE, command, place.runs, settings)
    if code:
        raise RuntimeError(f"{cause.name}: the program ended with {code}: {' '.join(command)}")
    found = json.loads(folder.profile_json.read_text())["verdicts"][0]
    shutil.rmtree(folder.path)
    return Trial(
        cause=cause,
        verdict=found["verdict"],
        rule=found["rule"],
        source=found["io"]["source"],
        sentence=found["sentence"],
        seconds=seconds,
    )


@contextlib.contextmanager
def somewhere(below: Path) -> Iterator[Place]:
    """A folder on a real disk with a file of bytes that no file system can make small."""
    with tempfile.TemporaryDirectory(dir=below, prefix=".study-") as name:
        place = Place(Path(name), Path(name) / "data")
        place.runs.mkdir()
        with place.file.open("wb") as file:
            for _ in range(FILE_MIB // 16):
                file.write(os.urandom(16 << 20))
            file.flush()
            os.fsync(file.fileno())
        yield place


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--seed", type=int, default=SEED)
    asked.add_argument("--each", type=int, help="trials of each cause")
    asked.add_argument("--only", help="causes that begin with these words, with commas between")
    given = asked.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("the study needs root: it makes control groups to hold programs back")
    os.chdir(ROOT)
    begins = tuple((given.only or "").split(","))
    causes = [cause for cause in CAUSES if cause.name.startswith(begins)]
    possible = [(cause, cause.impossible()) for cause in causes]
    trials: list[Trial] = []
    before = psutil.cpu_times()
    with somewhere(ROOT) as place:
        for cause, why in possible:
            for number in range(0 if why else given.each or cause.trials):
                one = trial(cause, place, given.seed, number)
                trials.append(one)
                mark = "right" if one.is_right else "WRONG"
                print(f"{mark}: {cause.name}: {one.verdict} by {one.rule}, {one.source}: "
                      f"{one.sentence}", flush=True)  # fmt: skip
                time.sleep(0.5)  # what one trial left is not the next one's
    stolen = _stolen(before, psutil.cpu_times())
    page = "\n".join(_page(trials, possible, given.seed, stolen)) + "\n"
    print(page)
    if not (given.only or given.each or given.seed != SEED):
        (DOCS / "study-verdicts.md").write_text(page)
    if sum(one.is_right for one in trials) < RIGHT * len(trials):
        raise SystemExit(1)


# --- the page -------------------------------------------------------------------------------------


def _stolen(before: Any, after: Any) -> float:
    """The share of the CPUs' time that the hypervisor took between two ``psutil.cpu_times()``."""
    taken = sum(after[:8]) - sum(before[:8])  # guest time is in user time already
    return float(after.steal - before.steal) / max(taken, 1e-9)


def _page(
    trials: list[Trial], possible: list[tuple[Cause, str | None]], seed: int, stolen: float
) -> Iterator[str]:
    right = sum(one.is_right for one in trials)
    by_rule = sum(one.rule in one.cause.rules for one in trials)
    percent = 100 * right / max(1, len(trials))
    told = [one for one in trials if one.cause.source is not None]
    sources = sum(one.source == one.cause.source for one in told)
    yield "# Are the verdicts right?"
    yield ""
    yield f"{len(trials)} recorded programs, each held back by one known cause, judged by the"
    yield "rules of [verdicts.md](verdicts.md) from nothing but their profiles. Made by"
    yield f"`python -m tests.study.verdicts` (root; seed {seed}; sizes are drawn anew for each"
    yield f"trial, 5 to 8 s each) on {CPUS} CPUs ({_cpu()}), kernel {os.uname().release},"
    yield f"{_controllers()}, on {datetime.now(UTC):%Y-%m-%d}; meanwhile its hypervisor took"
    yield f"{100 * stolen:.2g} % of the CPUs' time for others, which is no cause that was injected."
    yield "The rules and thresholds were fixed on trials of other seeds before."
    yield ""
    yield (
        f"**{right} of {len(trials)} verdicts are right** ({percent:.1f} %; at least "
        f"{100 * RIGHT:.0f} % are"
    )
    yield f"asked for), {by_rule} by the very rule that the cause is meant for; {sources} of"
    yield f"{len(told)} sources of data."
    yield ""
    yield "## Injected against found"
    yield ""
    yield from _matrix(trials, lambda one: one.verdict, lambda one: one.cause.verdict)
    yield ""
    yield "## The rules that decided"
    yield ""
    yield from _matrix(trials, lambda one: one.rule, lambda one: ", ".join(one.cause.rules))
    yield ""
    yield "## Where the data came from"
    yield ""
    yield from _matrix(told, lambda one: one.source, lambda one: one.cause.source or "")
    yield ""
    yield "## Not injected here, and not counted"
    yield ""
    yield from (f"- {cause.name}: {why}" for cause, why in possible if why is not None)
    yield from (f"- {name}: {why}; tests hold it to made-up profiles"
                for name, why in NOT_INJECTED.items())  # fmt: skip
    wrong = [one for one in trials if not one.is_right]
    if wrong:
        yield ""
        yield "## Wrong"
        yield ""
        yield from (f"- {one.cause.name}: {one.verdict} by `{one.rule}`: {one.sentence}"
                    for one in wrong)  # fmt: skip


def _matrix(
    trials: list[Trial], got: Callable[[Trial], str], right: Callable[[Trial], str]
) -> Iterator[str]:
    columns = sorted({got(one) for one in trials})
    yield f"| injected | n | right is | {' | '.join(columns)} |"
    yield f"|---|---|---|{'---|' * len(columns)}"
    for name in dict.fromkeys(one.cause.name for one in trials):
        ones = [one for one in trials if one.cause.name == name]
        counts = Counter(got(one) for one in ones)
        cells = (str(counts[column]) if counts[column] else "" for column in columns)
        yield f"| {name} | {len(ones)} | {right(ones[0])} | {' | '.join(cells)} |"


def _cpu() -> str:
    lines: Iterable[str] = Path("/proc/cpuinfo").read_text().splitlines()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, os.uname().machine)


def _controllers() -> str:
    one = Path("/sys/fs/cgroup/cpu").is_dir()
    return f"control groups {'v1' if one else 'v2'}"


if __name__ == "__main__":
    main()
