"""Two profiles side by side: what differs, by how much, and whether that is noise or change.

The times of the stages are a family of their own and tested first; all other metrics share what is
left of the chance of a false alarm. ``docs/compare.md`` says why, and with what power.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from telemetry.compared import Compared, can_decide, family, percent, rule_of
from telemetry.explain import (
    EnvironmentDifference,
    Explanation,
    environment_differences,
    explain,
)
from telemetry.published_recipe import is_same_recipe
from telemetry.reference import DURATION, Entry, Reference, StageEntries, sittings_of

SCHEMA = "stagescope.comparison/1"
ALPHA_TIMES, ALPHA_REST = 0.04, 0.01
"""Chance of a false alarm in each family; together one in twenty over the whole profile."""
TOLERANCE = 0.20
"""A stage whose time is off by less than this share of it, beyond doubt, is called the same."""
LEAST_SHARE = 0.05
"""Stages that took less of every run than this do not keep it from being called the same."""
Outcome = Literal["same", "differs", "unsure"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """``only``: stages that one side alone has, less those that the other has in its
    ``incomplete``; ``too_small``: figures below their grain.

    ``only_figures``: by side, those of the stages of both sides that it alone has. ``notes``: what
    is to be known of the sides themselves, a sentence each.
    """

    a: Reference
    b: Reference
    tolerance: float
    times: tuple[Compared, ...]
    rest: tuple[Compared, ...]
    only: dict[str, list[str]]
    only_figures: dict[str, list[OnlyFigure]]
    too_small: int
    environment: tuple[EnvironmentDifference, ...]
    explanations: tuple[Explanation, ...]
    notes: tuple[str, ...] = ()

    @property
    def found(self) -> list[Compared]:
        return [row for row in (*self.times, *self.rest) if row.is_found]

    @property
    def shared_cards(self) -> set[str]:
        """GPUs in MIG mode: their power, energy and memory are those of all that have a part."""
        stages = (*self.a.stages, *self.b.stages)
        entities = {one.entity for stage in stages for one in stage.metrics}
        return {entity.partition("/")[0] for entity in entities if "/mig:" in entity}

    @property
    def unused_cards(self) -> set[str]:
        """GPUs of which, as the driver tells, no run of either side held memory: others' alone."""
        return _unused(self.a) & _unused(self.b)

    @property
    def outcome(self) -> Outcome:
        evidence_only = self.shared_cards | self.unused_cards
        if any(row.decides and row.entity not in evidence_only for row in self.found):
            return "differs"
        return "unsure" if self.open_points() else "same"

    def open_points(self) -> list[str]:
        """Why nothing that differs does not yet mean the same, a sentence each."""
        points = [*_not_whole(self.a, "A"), *_not_whole(self.b, "B")]
        points += [
            f"{stage} was measured on one side only"
            for side in ("a", "b")
            for stage in self.only[side]
        ]
        for row in self.times:
            if row.verdict != "unsure" or self._is_little(row.stage):
                continue
            if row.spread is None:
                points.append(
                    f"{row.stage}: one run on each side says nothing of how much it varies"
                )
            elif row.smallest is None:
                points.append(
                    f"{row.stage} took less than 10 ms: too little to say how much it is off"
                )
            else:
                points.append(
                    f"{row.stage} varies by {percent(row.spread)} from run to run: too much to "
                    f"say that it is within the {100 * self.tolerance:g} % asked for (a difference "
                    f"of {percent(row.smallest)} would have been found"
                    f"{row.way_out(self.tolerance)})"
                )
        evidence_only = self.shared_cards | _unused(self.a)  # no matter what B has in its place
        points += _lost(self.only_figures["a"], evidence_only, self.b.absent)
        return points or ([] if self.times else ["no stage was measured on both sides"])

    def _is_little(self, stage: str) -> bool:
        """Whether no run of either side spent ``LEAST_SHARE`` of a usual one's time in it."""
        return all(
            max(side.by_stage[stage].duration.known)
            < LEAST_SHARE * sum(one.duration.median for one in side.stages)
            for side in (self.a, self.b)
        )

    def other_verdicts(self) -> list[str]:
        """Of each stage that most runs of either side judge differently, both in a sentence."""
        return [
            f"{stage}: its verdict is {b} in B, and {a} in A"
            for stage, (a, b) in self.held_back_by.items()
            if (one := self.a.by_stage[stage].verdict) and (other := self.b.by_stage[stage].verdict)
            if one != other
        ]

    @property
    def held_back_by(self) -> dict[str, tuple[str, str]]:
        """What held each stage back on either side, in words; of those that both sides measured."""
        return {
            row.stage: (self.a.by_stage[row.stage].verdicts, self.b.by_stage[row.stage].verdicts)
            for row in self.times
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "outcome": self.outcome,
            "open": self.open_points(),
            "notes": list(self.notes),
            "tolerance": self.tolerance,
            "a": _side(self.a),
            "b": _side(self.b),
            "times": [row.to_json() for row in self.times],
            "metrics": [row.to_json() for row in self.rest],
            "only": self.only,
            "incomplete": {"a": dict(self.a.incomplete), "b": dict(self.b.incomplete)},
            "unpaired": sum(map(len, self.only_figures.values())),
            "only_figures": {
                side: [one.text for one in ones] for side, ones in self.only_figures.items()
            },
            "too_small": self.too_small,
            "environment": [asdict(one) for one in self.environment],
            "explanations": [one.to_json() for one in self.explanations],
            "held_back_by": {
                stage: {"a": a or None, "b": b or None}
                for stage, (a, b) in self.held_back_by.items()
            },
        }


def _not_whole(side: Reference, key: str) -> Iterator[str]:
    """A sentence for each stage that some runs of a side did not measure, or of the runs that did
    not finish for another reason."""
    for stage, many in side.incomplete.items():
        yield f"{stage} was measured in {_runs(many, side.runs)} of {key}"
    if side.unfinished and not side.incomplete:
        yield f"{_runs(side.unfinished, side.runs)} of {key} did not finish"


def _runs(many: int, of: int) -> str:
    return "no run" if not many else "the run" if of == 1 else f"{many} of {of} runs"


def _unused(side: Reference) -> set[str]:
    """GPUs of which each run told that it held no memory, in each stage that tells of them."""
    held: dict[str, list[bool]] = {}
    for stage in side.stages:
        for entity in {one.entity for one in stage.metrics if one.entity.startswith("gpu:")}:
            told = stage.by_key.get((entity, "gpu_run_mem_bytes", "max"))
            nothing = told is not None and all(value == 0.0 for value in told.values)
            held.setdefault(entity, []).append(nothing)
    return {entity for entity, nothing in held.items() if all(nothing)}


@dataclass(frozen=True, order=True)
class OnlyFigure:
    """A figure of a stage that one side alone has. ``matters``: all its runs do, and it is no
    amount that nobody would look at."""

    entity: str
    metric: str
    figure: str
    stage: str
    matters: bool

    @property
    def text(self) -> str:
        return f"{self.stage} {self.entity} {self.metric} {self.figure}"


def _only(a: StageEntries, b: StageEntries) -> Iterator[OnlyFigure]:
    for key in a.by_key.keys() - b.by_key.keys():
        one = a.by_key[key]
        in_all = len(one.known) == len(one.values)
        yield OnlyFigure(*key, a.name, in_all and not _is_too_small(one))


def _lost(
    only_a: Sequence[OnlyFigure], shared: Collection[str], absent: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """A sentence for each entity of which B lacks figures that could have decided."""
    lost: dict[str, list[OnlyFigure]] = {}
    for one in only_a:
        if one.matters and can_decide(one.entity, one.metric) and one.entity not in shared:
            lost.setdefault(one.entity, []).append(one)
    for entity, ones in sorted(lost.items()):
        metrics = sorted({one.metric for one in ones})
        more = f" and {len(metrics) - 3} more" if len(metrics) > 3 else ""
        names = {f"{of} {one}" for of in (entity, entity.partition(":")[0]) for one in metrics}
        why = next((why for why, what in absent.items() if names.intersection(what)), None)
        yield (
            f"{', '.join(metrics[:3])}{more} of {entity} in {', '.join(_stages(ones))}: measured "
            f"in A alone{f' (B: {why})' if why else ''}"
        )


def _stages(ones: Sequence[OnlyFigure]) -> list[str]:
    return list(dict.fromkeys(one.stage for one in ones))


def _side(one: Reference) -> dict[str, Any]:
    return {"name": one.name, "runs": one.runs, "recipe_digest": one.recipe_digest}


def compare(
    a: Reference,
    b: Reference,
    *,
    tolerance: float = TOLERANCE,
    defaults: Mapping[str, Any] | None = None,
    sittings: tuple[Sequence[int], Sequence[int]] | None = None,
) -> Comparison:
    """Compare B with A. Raises ValueError for different recipes, with the keys that differ.

    ``defaults``: a published recipe of defaults alone, which is what a version of StageScope did
    that did not have a key yet. ``sittings``: of the runs of A and B, where not as they were made.
    """
    if why := is_same_recipe(a.recipe, b.recipe, a.stagescope, b.stagescope, defaults or {}):
        raise ValueError(
            f"{a.name} and {b.name} are of different recipes and say nothing of each other: {why}"
        )
    stages = [stage for stage in a.stages if stage.name in b.by_stage]
    sittings = sittings_of(a, b) if sittings is None else sittings
    times = family(
        [(stage.name, stage.duration, b.by_stage[stage.name].duration) for stage in stages],
        ALPHA_TIMES,
        tolerance,
        sittings,
    )
    pairs = [(s.name, *pair) for s in stages for pair in _pairs(s, b.by_stage[s.name])]
    large = [pair for pair in pairs if not _is_too_small(pair[1], pair[2])]
    rest = family(large, ALPHA_REST, tolerance, sittings)
    environment = environment_differences(a, b)
    return Comparison(
        a=a,
        b=b,
        tolerance=tolerance,
        times=times,
        rest=rest,
        only={
            "a": [one.name for one in a.stages if one.name not in {*b.by_stage, *b.incomplete}],
            "b": [one.name for one in b.stages if one.name not in {*a.by_stage, *a.incomplete}],
        },
        only_figures={
            "a": sorted(one for s in stages for one in _only(s, b.by_stage[s.name])),
            "b": sorted(one for s in stages for one in _only(b.by_stage[s.name], s)),
        },
        too_small=len(pairs) - len(large),
        environment=tuple(environment),
        explanations=tuple(
            explain(row, a, b, environment, rule_of) for row in times if row.is_found
        ),
    )


def _pairs(a: StageEntries, b: StageEntries) -> Iterator[tuple[Entry, Entry]]:
    """The figures besides the time that both sides have."""
    for entry in a.metrics:
        other = b.by_key.get(entry.key)
        if other is not None and entry.key != DURATION and other.unit == entry.unit:
            yield entry, other


def _is_too_small(*sides: Entry) -> bool:
    """Chosen by the amount alone, which says nothing of whether the sides differ."""
    grain = rule_of(sides[0]).grain
    return max(abs(value) for side in sides for value in side.known) < grain
