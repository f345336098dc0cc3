"""Is a slower stage found, and how often is nothing taken for something? Ten thousand profiles.

Writes docs/study-detection.md. Runs are made of normal noise, of noise with heavy tails, and of the
runs that were recorded (tests/golden/spread.json): of those, two groups of a side's runs are drawn
without putting back, so that nothing differs between them but chance.
``python -m tests.study.detection --record RUN...`` writes that file anew.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from telemetry.compare import ALPHA_REST, ALPHA_TIMES, TOLERANCE
from telemetry.compared import ALPHA_SAME, TIME, Rule, rule_of
from telemetry.publish import reference_of
from telemetry.reference import DURATION, Entry
from telemetry.runfolder import RunFolder, write_atomically
from telemetry.statistics import (
    chance,
    digits,
    half_width,
    holm,
    over_sittings,
    runs_needed,
    smallest,
    welch,
)

TRIALS = 10_000
REAL_TRIALS = 1_000
STAGES, METRICS = 6, 360
SLOWER = 0.05
DOCS = Path(__file__).resolve().parents[2] / "docs"
SPREAD = Path(__file__).resolve().parents[1] / "golden" / "spread.json"
Floats = npt.NDArray[np.float64]
Noise = Callable[[np.random.Generator, tuple[int, ...]], Floats]
CASES = ((0.005, 3), (0.005, 5), (0.01, 3), (0.01, 4), (0.01, 5), (0.02, 5))
SITTINGS = ((3, 3, 3, 3, 3), (5, 5, 5, 5), (3, 1, 1, 1, 1, 1, 1), (2, 2, 2, 2), (3, 3, 3))
REST = Rule(grain=1.0, floor=0.01, margin=0.02)


def normal(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return random.standard_normal(shape)


def heavy(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Student's t with 3 degrees, standard deviation 1: now and then a run far from the others."""
    return random.standard_t(3, shape) / np.sqrt(3)


def recorded(residuals: Floats) -> Noise:
    """Residuals of recorded runs about their stage's mean, in standard deviations."""
    return lambda random, shape: random.choice(residuals, shape)


def drifting(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Neighbouring runs resemble each other: a machine that gets slower and faster."""
    steps = random.standard_normal(shape)
    for i in range(1, shape[-1]):
        steps[..., i] = 0.5 * steps[..., i - 1] + np.sqrt(0.75) * steps[..., i]
    return steps


def found(
    noise: Noise, spread: float, runs: int, *, slower: float, stages: int = STAGES, seed: int = 0
) -> tuple[float, float]:
    """How often the slower first stage is found, and how often one of the others is "found"."""
    random = np.random.default_rng(seed)
    a, b = (spread * noise(random, (TRIALS, stages, runs)) for _ in "ab")
    b[:, 0] += np.log1p(slower)
    hits = holm(chance(welch(a, b, TIME.floor), TIME.margin)) <= ALPHA_TIMES
    return float(hits[:, 0].mean()), float(hits[:, 1:].any(-1).mean())


def false_alarms(noise: Noise, spread: float, runs: int, seed: int = 1) -> tuple[float, float]:
    """Share of whole profiles in which a time, or anything at all, is said to differ; none does."""
    random = np.random.default_rng(seed)
    alarms = np.zeros((2, REAL_TRIALS), bool)
    for family, many, rule, alpha in (
        (0, STAGES, TIME, ALPHA_TIMES),
        (1, METRICS, REST, ALPHA_REST),
    ):
        a, b = (spread * noise(random, (REAL_TRIALS, many, runs)) for _ in "ab")
        adjusted = holm(chance(welch(a, b, rule.floor), rule.margin))
        alarms[family] = (adjusted <= alpha).any(-1)
    return float(alarms[0].mean()), float(alarms.any(0).mean())


def told(noise: Noise, spread: float, runs: int, seed: int = 2) -> tuple[float, float]:
    """The middle "could have been found" of a stage, and how often it is found when it is there."""
    random = np.random.default_rng(seed)
    a, b = (spread * noise(random, (2_000, runs)) for _ in "ab")
    share = ALPHA_TIMES / STAGES
    least = float(np.median(smallest(welch(a, b, TIME.floor), share, TIME.margin)))
    hits = chance(welch(a, b + least, TIME.floor), TIME.margin) <= share
    return float(np.expm1(least)), float(hits.mean())


def called_same(
    noise: Noise, spread: float, runs: int, *, off: float, stages: int = STAGES, seed: int = 4
) -> float:
    """How often all stages are called the same while the first is slower by ``off``."""
    random = np.random.default_rng(seed)
    a, b = (spread * noise(random, (TRIALS, stages, runs)) for _ in "ab")
    b[:, 0] += np.log1p(off)
    difference = welch(a, b, TIME.floor)
    found_ = holm(chance(difference, TIME.margin)) <= ALPHA_TIMES
    within = np.abs(difference.value) + half_width(difference, 2 * ALPHA_SAME) <= np.log1p(
        TOLERANCE
    )
    return float((within & ~found_).all(-1).mean())


def in_sittings(
    drift: float,
    sittings: Sequence[int],
    runs: int,
    *,
    slower: float,
    spread_b: float = 0.01,
    seed: int = 5,
) -> tuple[tuple[float, float], tuple[float, float]]:
    """A published profile of so many runs in each sitting, and ``runs`` of another one.

    The machine differs by ``drift`` from sitting to sitting, half of it alike in all stages, and
    by 1 % from run to run, that of the other one by ``spread_b``. How often a time is found to
    differ, the slower one or any, by Welch's test and by that which knows of the sittings.
    """
    random = np.random.default_rng(seed)

    def sat(many: int, spread: float = 0.01) -> Floats:
        common, own = random.standard_normal((TRIALS, 1, 1)), normal(random, (TRIALS, STAGES, 1))
        level = drift * (np.sqrt(0.5) * common + np.sqrt(0.5) * own)
        return np.asarray(level + spread * normal(random, (TRIALS, STAGES, many)))

    a, b = np.concatenate([sat(many) for many in sittings], axis=-1), sat(runs, spread_b)
    b[:, 0] += np.log1p(slower)
    of_a = [place for place, many in enumerate(sittings) for _ in range(many)]
    found_ = []
    tests = welch(a, b, TIME.floor), over_sittings(a, b, of_a, [0] * runs, TIME.floor)
    for difference in tests:
        hits = holm(chance(difference, TIME.margin)) <= ALPHA_TIMES
        found_.append((float(hits[:, 0].mean()), float(hits.any(-1).mean())))
    return found_[0], found_[1]


def recorded_profiles() -> dict[str, list[Entry]]:
    document = json.loads(SPREAD.read_text())
    return {name: list(map(Entry.from_json, ones)) for name, ones in document["stages"].items()}


def recorded_alarms(
    profiles: dict[str, list[Entry]], runs: int, slower: float
) -> tuple[float, float, float]:
    """Groups drawn from recorded runs: alarms in times, in all; a slower stage found."""
    random = np.random.default_rng(3)
    entries = [(stage, one) for stage, ones in profiles.items() for one in ones]
    many = len(entries[0][1].values)
    scaled = np.array([rule_of(e).scaled([v or 0.0 for v in e.values]) for _, e in entries])
    rules = [rule_of(entry) for _, entry in entries]
    floor, margin = (
        np.array([getattr(rule, name) for rule in rules]) for name in ("floor", "margin")
    )
    is_time = np.array([entry.key == DURATION for _, entry in entries])
    drawn = np.array([random.permutation(many)[: 2 * runs] for _ in range(REAL_TRIALS)])
    a, b = (scaled[:, drawn[:, half]] for half in (slice(None, runs), slice(runs, None)))
    a, b = np.moveaxis(a, 0, 1), np.moveaxis(b, 0, 1)

    def hits(extra: Floats) -> Floats:
        chances = chance(welch(a, b + extra[None, :, None], floor), margin)
        adjusted = np.empty(chances.shape)
        for own, alpha in ((is_time, ALPHA_TIMES), (~is_time, ALPHA_REST)):
            adjusted[:, own] = holm(chances[:, own]) / alpha
        return adjusted <= 1

    none = hits(np.zeros(len(entries)))
    each = []
    for place in np.flatnonzero(is_time):
        extra = np.zeros(len(entries))
        extra[place] = np.log1p(slower)
        each.append(hits(extra)[:, place].mean())
    return float(none[:, is_time].any(-1).mean()), float(none.any(-1).mean()), float(np.mean(each))


def page() -> Iterator[str]:
    profiles = recorded_profiles()
    times = {name: ones[0] for name, ones in profiles.items()}
    logs = {name: np.log(np.array(one.known)) for name, one in times.items()}
    residuals = np.concatenate([(one - one.mean()) / one.std(ddof=1) for one in logs.values()])
    noises: dict[str, Noise] = {
        "normal": normal,
        "heavy tails": heavy,
        "as recorded": recorded(residuals),
        "drifting": drifting,
    }
    many = len(next(iter(times.values())).values)
    yield "# Is a slower stage found, and is nothing taken for something?"
    yield ""
    yield f"{TRIALS:,} profiles of {STAGES} stages a line (`python -m tests.study detection`); one"
    yield f"stage is {100 * SLOWER:g} % slower in B. Runs vary by the spread named, as named:"
    yield "*as recorded* takes the residuals of recorded runs (below), *drifting* resembles its"
    yield "neighbours (correlation 0.5). docs/compare.md says what is tested."
    yield ""
    yield "| noise | spread | runs a side | 5 % slower is found | another stage is, wrongly |"
    yield "|---|---|---|---|---|"
    for name, noise in noises.items():
        for spread, runs in CASES:
            hit, alarm = found(noise, spread, runs, slower=SLOWER)
            yield f"| {name} | {_percent(spread, hit, alarm, runs=runs)} |"
    for stages in (3, 12):
        hit, alarm = found(normal, 0.01, 5, slower=SLOWER, stages=stages)
        yield f"| normal, {stages} stages | {_percent(0.01, hit, alarm, runs=5)} |"
    yield ""
    yield f"## False alarms over the whole profile: {STAGES} times and {METRICS} other figures"
    yield ""
    yield "| noise | spread | runs a side | in a time | in anything |"
    yield "|---|---|---|---|---|"
    for name, noise in noises.items():
        for spread, runs in ((0.01, 3), (0.01, 5), (0.1, 3), (0.1, 5)):
            alarm, any_alarm = false_alarms(noise, spread, runs)
            yield f"| {name} | {_percent(spread, alarm, any_alarm, runs=runs)} |"
    yield ""
    yield "## The smallest difference that could have been found"
    yield ""
    yield "The median of what is told, and how often a stage that differs by so much is found"
    yield "(90 % is meant)."
    yield ""
    yield "| spread | runs a side | told | is found | runs that 5 % needs |"
    yield "|---|---|---|---|---|"
    for spread in (0.01, 0.02, 0.05, 0.1):
        needed = runs_needed(spread, np.log1p(SLOWER), ALPHA_TIMES / STAGES, TIME.margin)
        for runs in (3, 5, 10):
            least, hit = told(normal, spread, runs)
            yield f"| {_percent(spread, least, hit, runs=runs)} | {needed} |"
    yield ""
    yield "## Runs in sittings"
    yield ""
    yield "A machine differs from hour to hour. The published profile is of runs in several"
    yield "sittings, B of five in one; within a sitting runs vary by 1 %. The 5 % are in one stage."
    yield ""
    yield "| sittings of the profile | differ by | an alarm, of nothing | 5 % slower is found |"
    yield "|---|---|---|---|"
    for sittings in SITTINGS:
        for drift, spread in ((0.0, 0.01), (0.005, 0.01), (0.02, 0.01), (0.05, 0.01), (0.0, 0.05)):
            none, there = (
                in_sittings(drift, sittings, 5, slower=slower, spread_b=spread)
                for slower in (0.0, SLOWER)
            )
            runs = " + ".join(map(str, sittings))
            noisy = "" if spread == 0.01 else f", B's runs vary by {100 * spread:g} %"
            alarms = f"{100 * none[1][1]:.1f} % (Welch {100 * none[0][1]:.1f} %)"
            hits = f"{100 * there[1][0]:.0f} % (Welch {100 * there[0][0]:.0f} %)"
            yield f"| {runs} runs{noisy} | {100 * drift:g} % | {alarms} | {hits} |"
    yield ""
    yield "## Called the same"
    yield ""
    yield f"How often *same* is said of a whole profile ({STAGES} stages) in which nothing differs,"
    yield f"and of one of which a stage is {100 * TOLERANCE:g} % slower, the default tolerance."
    yield ""
    yield "| noise | spread | runs a side | nothing differs | a stage does |"
    yield "|---|---|---|---|---|"
    for name in ("normal", "heavy tails", "drifting"):
        for spread in (0.01, 0.02, 0.05, 0.1):
            for runs in (3, 5):
                same, wrong = (
                    called_same(noises[name], spread, runs, off=off) for off in (0.0, TOLERANCE)
                )
                yield f"| {name} | {_percent(spread, same, wrong, runs=runs)} |"
    yield ""
    yield f"## Recorded runs: {many} of a small recipe, one after another"
    yield ""
    yield "| stage | median | varies by |"
    yield "|---|---|---|"
    for name, one in times.items():
        yield f"| {name} | {one.median:.3g} s | {100 * logs[name].std(ddof=1):.1f} % |"
    yield ""
    yield f"Two groups drawn from them {REAL_TRIALS:,} times, all their figures compared; then"
    yield "each stage's time made longer in one of the groups:"
    yield ""
    yield "| runs a side | a time differs, wrongly | anything does | 5 % is found | 20 % | 50 % |"
    yield "|---|---|---|---|---|---|"
    for runs in (3, 5):
        if 2 * runs <= many:
            told_of = [recorded_alarms(profiles, runs, slower) for slower in (SLOWER, 0.2, 0.5)]
            alarms = f"{100 * told_of[0][0]:.1f} % | {100 * told_of[0][1]:.1f} %"
            hits = " | ".join(f"{100 * one[2]:.0f} %" for one in told_of)
            yield f"| {runs} | {alarms} | {hits} |"


def _percent(spread: float, first: float, second: float, *, runs: int) -> str:
    return f"{100 * spread:g} % | {runs} | {100 * first:.1f} % | {100 * second:.1f} %"


def record(folders: list[Path]) -> None:
    """Keep the figures of these runs, without what is too small to be compared."""
    reference = reference_of("recorded", [RunFolder(folder) for folder in folders], whole=True)
    kept = {
        stage.name: [
            replace(one, values=tuple(None if v is None else digits(v, 5) for v in one.values))
            for one in stage.metrics
            if max(map(abs, one.known)) >= rule_of(one).grain and len(one.known) == reference.runs
        ]
        for stage in reference.stages
    }
    lines = {
        name: [json.dumps(one.to_json(), ensure_ascii=False) for one in ones]
        for name, ones in kept.items()
    }
    comma = ",\n"
    stages = comma.join(f'"{name}": [\n{comma.join(ones)}\n]' for name, ones in lines.items())
    environment = json.dumps(reference.environment, ensure_ascii=False)
    write_atomically(SPREAD, f'{{"environment": {environment},\n"stages": {{\n{stages}\n}}}}\n')


def main() -> None:
    if sys.argv[1:2] == ["--record"]:
        record([Path(name) for name in sys.argv[2:]])
        return
    began = time.monotonic()
    text = "\n".join(page()) + "\n"
    (DOCS / "study-detection.md").write_text(text)
    print(text)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
