"""The gate: is a new model good enough to take the champion's place?

It compares on the same rows, says why in sentences, and moves nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any

from training.batches import Scores
from training.protocol import AssessedRows
from training.slices import METRICS, Values, bootstrap, evaluate, middle


@dataclass(frozen=True, kw_only=True)
class GateSettings:
    """By how much a candidate may be worse than the champion, and what a first one must reach."""

    margins: Mapping[str, float] = field(default_factory=lambda: {"average_precision": 0.01})
    """Metric to the largest loss that is still let through; only these metrics decide."""
    floors: Mapping[str, float] = field(default_factory=dict)
    """Metric to the least value that any champion needs."""
    bootstrap_samples: int = 200

    def __post_init__(self) -> None:
        unknown = sorted({*self.margins, *self.floors} - set(METRICS))
        if unknown:
            raise ValueError(
                f"the gate knows no metric {', '.join(unknown)}; known: {', '.join(METRICS)}"
            )
        if not self.margins:
            raise ValueError(f"the gate needs a margin for one of {', '.join(METRICS)}")
        if any(margin < 0 for margin in self.margins.values()):
            raise ValueError(f"margins must not be negative: {dict(self.margins)}")


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The registered model: its scores of the gate's rows [n], and its days of training."""

    scores: Scores
    first_day: date
    last_day: date


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate decided, on what, and why."""

    promote: bool
    reasons: tuple[str, ...]
    """Sentences: each refusal if there is one, else what let the candidate through."""
    compared: bool
    first_day: str
    last_day: str
    rows: int
    frauds: int
    candidate: Values
    champion: Values | None
    difference_intervals: Mapping[str, tuple[float, float] | None]
    """Metric to the middle 95 % of candidate minus champion on resampled cards; empty if alone."""

    def as_json(self) -> dict[str, Any]:
        """Return the verdict as JSON types."""
        return asdict(self)


def decide(
    candidate: Scores,
    champion: Champion | None,
    assessed: AssessedRows,
    *,
    settings: GateSettings,
    seed: int,
) -> Verdict:
    """Compare two models on the same rows, or judge the candidate alone if there is no champion.

    A champion that was trained on a day of the gate's rows has an advantage there: it is not
    compared, and without a comparison nothing takes its place.
    """
    values = evaluate(candidate, assessed.rows)
    refusals = list(_below_floor(values, settings))
    comparable = champion is not None and not _overlap(champion, assessed)
    theirs = evaluate(champion.scores, assessed.rows) if champion and comparable else None
    if champion is not None and theirs is None:
        refusals.append(_not_comparable(champion, assessed))
    if theirs is not None:
        refusals.extend(_worse(values, theirs, settings))
    elif champion is None:
        refusals.extend(_undefined(values, settings))
    return Verdict(
        promote=not refusals,
        reasons=tuple(refusals) or tuple(_passed(values, theirs, settings)),
        compared=theirs is not None,
        first_day=assessed.window.test_start.isoformat(),
        last_day=assessed.window.test_end.isoformat(),
        rows=len(assessed),
        frauds=int(assessed.rows.is_fraud.sum()),
        candidate=values,
        champion=theirs,
        difference_intervals=(
            _differences(candidate, champion.scores, assessed, settings, seed)
            if champion is not None and theirs is not None
            else {}
        ),
    )


def _overlap(champion: Champion, assessed: AssessedRows) -> bool:
    window = assessed.window
    return champion.first_day <= window.test_end and champion.last_day >= window.test_start


def _not_comparable(champion: Champion, assessed: AssessedRows) -> str:
    window = assessed.window
    return (
        f"the champion was trained on {champion.first_day} to {champion.last_day}, which overlaps "
        f"the gate's days {window.test_start} to {window.test_end}: it is not compared on rows it "
        f"has learned, so it stays; choose a later fold for the gate"
    )


def _below_floor(values: Values, settings: GateSettings) -> Iterator[str]:
    for name, floor in settings.floors.items():
        value = values[name]
        if value is None or value < floor:
            shown = "undefined" if value is None else f"{value:.4f}"
            yield f"{name} is {shown}, below the floor of {floor:.4f}"


def _undefined(values: Values, settings: GateSettings) -> Iterator[str]:
    for name in settings.margins:
        if values[name] is None:
            yield f"{name} is undefined on the gate's rows: they hold only one class"


def _worse(values: Values, theirs: Values, settings: GateSettings) -> Iterator[str]:
    for name, margin in settings.margins.items():
        ours, champion = values[name], theirs[name]
        if ours is None or champion is None:
            yield f"{name} is undefined on the gate's rows: they hold only one class"
        elif ours < champion - margin:
            yield (
                f"{name} is {ours:.4f}, the champion's {champion:.4f}: worse by "
                f"{champion - ours:.4f}, and the margin is {margin:.4f}"
            )


def _passed(values: Values, theirs: Values | None, settings: GateSettings) -> Iterator[str]:
    for name, margin in settings.margins.items():
        if theirs is None:
            yield f"there is no champion yet; {name} is {values[name]:.4f}"
        else:
            yield (
                f"{name} is {values[name]:.4f}, the champion's {theirs[name]:.4f}: no worse by "
                f"more than the margin of {margin:.4f}"
            )


def _differences(
    candidate: Scores, champion: Scores, assessed: AssessedRows, settings: GateSettings, seed: int
) -> dict[str, tuple[float, float] | None]:
    drawn = bootstrap(
        [candidate, champion], assessed.rows, samples=settings.bootstrap_samples, seed=seed
    )
    difference = drawn[:, 0] - drawn[:, 1]
    return {name: middle(difference[:, column]) for column, name in enumerate(METRICS)}
