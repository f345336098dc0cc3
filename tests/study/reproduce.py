"""Does ``stagescope reproduce`` say the same on the same machine, and what holds a throttled one?

Writes docs/study-reproduce.md after each trial; what was run lies in ``.study-reproduce/``, so that
a study that was cut short goes on (``--anew`` begins again). Its recipe is reproduce.toml.
``python -m tests.study.reproduce [--trials N] [--throttled N] [--runs N] [--slow-runs N] [--anew]
[CAUSE...]``
Throttling needs root: where it may not, only the unchanged machine is tried, and the page says so.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from telemetry.compared import percent
from telemetry.reference import Reference, read_reference
from telemetry.runfolder import list_runs, write_atomically
from tests.study import throttle
from tests.study.speedometer import Speedometer

RECIPE = Path(__file__).with_name("reproduce.toml")
DOCS = Path(__file__).resolve().parents[2] / "docs"
FOLDER = Path(".study-reproduce")
OUT = FOLDER / "runs"
COUNTED = FOLDER / "counted.json"
EARLY, PROFILE = FOLDER / "early.profile.json", FOLDER / "here.profile.json"
"""What throttled machines are held against (the first runs), and the unchanged one: of all runs,
a fifth before the throttled trials and the rest in sittings, one after each of them: so that they
are spread over the time of the trials, as docs/compare.md asks of whoever publishes."""
SLOW_RUNS = 5
"""On a throttled machine; as many as the command makes by itself."""
QUOTA_CORES = 0.7
NEIGHBOURS = 4
TIMETABLE = frozenset({"serving"})
"""Stages whose load comes by the clock, as fast as it does on any machine."""
READ_BYTES_PER_S = 1 << 20
UNCHANGED = 0.03
"""A machine whose own speed differs by more from that of the published runs is not unchanged."""


@dataclass(frozen=True, kw_only=True)
class Cause:
    """What is done to the machine, and the resource that a right answer names first."""

    name: str
    done: str
    resource: str | None
    feels: str
    """The metric of the published profile whose largest stage must be found."""

    def apply(self) -> AbstractContextManager[list[str]]:
        return {
            "none": throttle.nothing,
            "quota": lambda: throttle.quota(QUOTA_CORES),
            "neighbour": lambda: throttle.neighbour(NEIGHBOURS),
            "disk": lambda: throttle.slow_reads(FOLDER, READ_BYTES_PER_S),
        }[self.name]()


CAUSES = (
    Cause(name="none", done="nothing", resource=None, feels=""),
    Cause(
        name="quota",
        done=f"a control group of {QUOTA_CORES:g} cores",
        resource="CPU quota",
        feels="cpu_busy_seconds",
    ),
    Cause(
        name="neighbour",
        done=f"{NEIGHBOURS} endless loops beside it",
        resource="waiting for a CPU",
        feels="cpu_busy_seconds",
    ),
    Cause(
        name="disk",
        done=f"reads at {READ_BYTES_PER_S / 2**20:g} MiB/s",
        resource="disk",
        feels="io_read_bytes",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one ``reproduce`` answered. ``slower``: stage → its change; ``named``: → resources."""

    cause: str
    done: str
    exit_code: int
    outcome: str
    runs: int
    seconds: float
    slower: Mapping[str, float]
    faster: Mapping[str, float]
    others: Sequence[str]
    named: Mapping[str, Sequence[str]]
    environment: Sequence[str]
    open: Sequence[str]
    spread: Mapping[str, float] = field(default_factory=dict)
    speed_per_s: float | None = None
    """Rounds of the speedometer's work a second, while the trial was made."""


def main() -> None:
    told = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS)
    told.add_argument("causes", nargs="*", default=[cause.name for cause in CAUSES])
    told.add_argument("--trials", type=int, default=10)
    told.add_argument("--throttled", type=int, default=2)
    told.add_argument("--runs", type=int, default=5)
    told.add_argument("--slow-runs", type=int, default=SLOW_RUNS)
    told.add_argument("--published", type=int, default=15)
    told.add_argument("--anew", action="store_true")
    asked = told.parse_args()
    if asked.anew:
        shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(exist_ok=True)
    first = asked.published // 5
    publish(EARLY, first)
    throttled = [cause for cause in CAUSES[1:] if cause.name in asked.causes]
    sittings = max(1, asked.throttled * len(throttled))
    in_a_row = -(-(asked.published - first) // sittings)
    for place, cause in enumerate(() if throttle.why_not() else throttled):
        for number in range(1, asked.throttled + 1):
            try_out(cause, EARLY, number, asked.slow_runs)
            sitting = place * asked.throttled + number
            wanted = min(asked.published, first + in_a_row * sitting)
            while len(speeds()) < wanted and not PROFILE.exists():
                run_to_publish(asked.published)
    publish(PROFILE, asked.published)
    if CAUSES[0].name in asked.causes:
        try_out(CAUSES[0], PROFILE, asked.trials, asked.runs)
    print((DOCS / "study-reproduce.md").read_text())


def try_out(cause: Cause, profile: Path, many: int, runs: int) -> None:
    """Trials until there are so many; the page is written after each."""
    while sum(one.cause == cause.name for one in trials()) < many:
        keep(trial(cause, profile, runs))
        write_atomically(DOCS / "study-reproduce.md", "\n".join(page()) + "\n")


def publish(profile: Path, runs: int) -> None:
    """The machine as it is, from the runs that there are and as many more as are missing."""
    if profile.exists():
        return
    while len(speeds()) < runs:
        run_to_publish(runs)
    folders = [str(OUT / name) for name in speeds()]
    stagescope(
        "profile",
        "publish",
        *folders,
        "--name",
        profile.name.partition(".")[0],
        "--file",
        str(profile),
    )


def run_to_publish(most: int) -> None:
    """One run of the machine as it is, if there are not ``most`` yet."""
    names = speeds()
    if len(names) >= most:
        return
    if not names:
        stagescope("run", str(RECIPE), "--fresh", "--out", str(OUT))  # warms up, and is not counted
    with Speedometer() as speed:
        stagescope("run", str(RECIPE), "--fresh", "--out", str(OUT))
    names[list_runs(OUT)[-1].path.name] = speed.per_s
    COUNTED.write_text(json.dumps(names))
    print(f"to publish: {len(names)} of {most}", flush=True)


def trial(cause: Cause, profile: Path, runs: int) -> Trial:
    """One ``reproduce`` with its whole process tree under the cause, in a folder that is warm."""
    began = time.monotonic()
    order = ("reproduce", str(profile), "--json", "--runs", str(runs), "--warm-up", "0")
    with cause.apply() as prefix, Speedometer() as speed:
        done = stagescope(*order, "--out", str(OUT), prefix=prefix, check=False)
    answer = json.loads(done.stdout)
    one = read_trial(cause, done.returncode, answer, time.monotonic() - began)
    one = replace(one, speed_per_s=speed.per_s)
    print(f"{cause.name}: {one.outcome}, {dict(one.slower)} {dict(one.named)}", flush=True)
    return one


def read_trial(cause: Cause, code: int, answer: Mapping[str, Any], seconds: float) -> Trial:
    times = answer.get("times", [])
    explained = answer.get("explanations", [])
    found = [row for row in answer.get("metrics", []) if row["verdict"] in {"more", "less"}]
    return Trial(
        cause=cause.name,
        done=cause.done,
        exit_code=code,
        outcome=answer["outcome"],
        runs=answer["b"]["runs"] if "b" in answer else 0,
        seconds=round(seconds),
        slower={row["stage"]: row["change"] for row in times if row["verdict"] == "slower"},
        faster={row["stage"]: row["change"] for row in times if row["verdict"] == "faster"},
        others=[f"{row['stage']} {row['entity']} {row['metric']}" for row in found],
        named={one["stage"]: one["resources"] for one in explained},
        environment=sorted({d["key"] for one in explained for d in one["environment"]}),
        open=answer["open"],
        spread={row["stage"]: row["spread"] for row in times},
    )


def stagescope(
    *arguments: str, prefix: Sequence[str] = (), check: bool = True
) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(command, check=check, stdout=subprocess.PIPE, text=True)


def speeds() -> dict[str, float]:
    """The published runs, and how fast the machine was meanwhile."""
    told: dict[str, float] = json.loads(COUNTED.read_text()) if COUNTED.exists() else {}
    return told


def faster(one: Trial) -> float | None:
    """By what share the machine itself was faster than while the published runs were made."""
    known = speeds().values()
    if one.speed_per_s is None or not known:
        return None
    return one.speed_per_s / statistics.harmonic_mean(known) - 1


def trials() -> list[Trial]:
    """Those that were made, under what the causes do now."""
    file = FOLDER / "trials.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    told = [json.loads(line) for line in lines]
    now = {(cause.name, cause.done) for cause in CAUSES}
    return [Trial(**one) for one in told if (one["cause"], one.get("done")) in now]


def keep(one: Trial) -> None:
    with (FOLDER / "trials.jsonl").open("a") as file:
        file.write(json.dumps(asdict(one)) + "\n")


def expected_stage(reference: Reference, metric: str) -> str:
    """The stage that uses most of what is throttled, of those whose work sets their time."""

    def amount(stage: str) -> float:
        entry = reference.by_stage[stage].by_key.get(("stage", metric, "total"))
        return entry.median if entry else 0.0

    return max(reference.by_stage.keys() - TIMETABLE, key=amount)


def is_right(cause: Cause, one: Trial, reference: Reference) -> bool:
    """Same where nothing was done; else differs, with the stage that feels it most and why."""
    if cause.resource is None:
        return one.outcome == "same"
    stage = expected_stage(reference, cause.feels)
    first = next(iter(one.named.get(stage, ())), None)
    return one.exit_code == 1 and stage in one.slower and first == cause.resource


def page() -> Iterator[str]:
    reference, done = read_reference(PROFILE if PROFILE.exists() else EARLY), trials()
    cpu, sat = reference.environment["cpu"], len(set(reference.sittings))
    yield "# Does `reproduce` say the same, and what holds a throttled machine?"
    yield ""
    yield from summary(reference, done)
    yield ""
    yield f"`python -m tests.study reproduce` on {cpu['count']} CPUs ({cpu['model']}), kernel"
    yield f"{reference.environment['kernel']}. Its recipe (`tests/study/reproduce.toml`) runs every"
    yield "stage in half a minute, because a trial is several runs; inputs are read from the disk."
    yield "The throttled machine is held against the first runs of the study, the unchanged one"
    yield f"against {reference.runs} runs ({reference.measured['from']} to"
    yield f"{reference.measured['to']}). They were made in {max(sat, 1)} sittings, a few runs"
    yield "after each throttled trial where there were any, so that it knows how the machine"
    yield "drifts (docs/compare.md). All trials are held against one profile, so they are"
    yield "not independent: an unlucky one would spoil them all. A trial is `stagescope reproduce"
    yield "PROFILE --runs N --warm-up 0` in a folder that is warm. Control groups need root."
    yield ""
    if why := throttle.why_not():
        yield f"**A machine was not throttled: {why}.**"
        yield ""
    yield from published(reference)
    yield ""
    yield "## The machine as it is"
    yield ""
    yield "A virtual machine is not the same all day: its host's clock rate and its neighbours"
    yield "change. So fixed work, which is no part of StageScope, is done every second while runs"
    yield "are made (`tests/study/speedometer.py`): *speed* is by how much faster it was in CPU"
    yield "time than during the published runs, means both. From"
    yield f"{100 * UNCHANGED:.0f} % on the machine is not what it was; this was fixed beforehand."
    yield ""
    columns = (
        "trial", "runs", "speed", "exit code", "answer", "found to differ", "it points to",
        "could not tell because",
    )  # fmt: skip
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for number, one in enumerate((t for t in done if t.cause == "none"), 1):
        changed = changes({**one.slower, **one.faster}) + list(one.others[:4])
        speed = faster(one)
        shown = "not measured" if speed is None else percent(speed, signed=True)
        causes = list(dict.fromkeys(cause for named in one.named.values() for cause in named))
        cells = (
            number, one.runs, shown, one.exit_code, one.outcome, told(changed), told(causes),
            told(one.open),
        )  # fmt: skip
        yield f"| {' | '.join(map(str, cells))} |"
    yield ""
    yield "## The machine throttled"
    yield ""
    yield "The whole command runs in the control group. Right is: exit code 1, the stage that uses"
    yield "most of the resource is among the slower ones, and the resource is named first for it."
    yield f"Left out is {' and '.join(TIMETABLE)}, whose load comes by a timetable: its time says"
    yield "little of its machine. Each neighbour is a session of its own, because the kernel shares"
    yield "CPUs out by session first."
    yield ""
    columns = ("done", "expected", "runs", "exit code", "slower: resources", "environment", "right")
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for cause in CAUSES[1:]:
        for one in (t for t in done if t.cause == cause.name):
            yield f"| {' | '.join(row(cause, one, reference))} |"


def row(cause: Cause, one: Trial, reference: Reference) -> tuple[str, ...]:
    stages = [
        f"{stage} {percent(change, signed=True)}: {told(one.named.get(stage, ()))}"
        for stage, change in one.slower.items()
    ]
    return (
        cause.done,
        f"{expected_stage(reference, cause.feels)}: {cause.resource}",
        str(one.runs),
        f"{one.exit_code} ({one.outcome})",
        "; ".join(stages) or "none",
        told(one.environment),
        "yes" if is_right(cause, one, reference) else "no",
    )


def summary(reference: Reference, done: Sequence[Trial]) -> Iterator[str]:
    for cause in CAUSES:
        ones = [one for one in done if one.cause == cause.name]
        right = sum(is_right(cause, one, reference) for one in ones)
        what = "says *same*" if cause.resource is None else f"names the stage and {cause.resource}"
        if ones:
            yield f"- {cause.done}: {what} in {share(right, len(ones))}"
        if cause.resource is None:
            kept = [one for one in ones if abs(faster(one) or 0.0) < UNCHANGED]
            right = sum(is_right(cause, one, reference) for one in kept)
            if len(kept) < len(ones):
                yield (
                    f"- of these, while the machine's own speed was within {100 * UNCHANGED:.0f} % "
                    f"of what it had been: {what} in {share(right, len(kept))}"
                )


def share(right: int, many: int) -> str:
    if not many:
        return "none, as there was no such trial"
    sure = f"{100 * at_least(right, many):.0f} %"
    return f"{right} of {many} trials (with 95 % confidence in {sure} or more)"


def at_least(right: int, many: int, alpha: float = 0.05) -> float:
    """The share of right answers below which so many would come by a chance less than ``alpha``."""
    low, high = 0.0, right / many
    for _ in range(50):
        share = (low + high) / 2
        chance = sum(
            math.comb(many, n) * share**n * (1 - share) ** (many - n)
            for n in range(right, many + 1)
        )
        low, high = (share, high) if chance < alpha else (low, share)
    return low


def published(reference: Reference) -> Iterator[str]:
    yield "| stage | median | band | CPU | read from the disk |"
    yield "|---|---|---|---|---|"
    for stage in reference.stages:
        time_ = stage.duration
        cpu, read = (
            stage.by_key.get(("stage", name, "total"))
            for name in ("cpu_busy_seconds", "io_read_bytes")
        )
        yield (
            f"| {stage.name} | {time_.median:.3g} s | {min(time_.known):.3g} to "
            f"{max(time_.known):.3g} s | {f'{cpu.median:.3g} s' if cpu else 'not measured'} | "
            f"{f'{read.median / 2**20:.3g} MiB' if read else 'not measured'} |"
        )


def changes(shares: Mapping[str, float]) -> list[str]:
    return [f"{stage} {percent(change, signed=True)}" for stage, change in shares.items()]


def told(texts: Sequence[str]) -> str:
    return "; ".join(texts) or "nothing"


if __name__ == "__main__":
    main()
