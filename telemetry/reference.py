"""A published profile: what at least three runs of one recipe took, in one file for people and git.

``docs/compare.md`` says what stands in it, ``docs/reference.schema.json`` is its schema. Comparing
works on this form alone: runs that were not published become one in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import Any

from telemetry.reference_checks import check_document
from telemetry.runfolder import write_atomically
from telemetry.statistics import digits

SCHEMA = "stagescope.reference/3"
PAUSE_S = 60.0
"""Between runs that are made in a row there is less, and a run's own length."""
DURATION = ("stage", "duration_seconds", "total")
"""The row that is a stage's own time."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One figure of one metric in one stage: a value for each run, None where it has none."""

    entity: str
    metric: str
    unit: str
    kind: str
    figure: str
    values: tuple[float | None, ...]
    coverage: float

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.entity, self.metric, self.figure)

    @cached_property
    def known(self) -> tuple[float, ...]:
        return tuple(value for value in self.values if value is not None)

    @property
    def median(self) -> float:
        return digits(median(self.known))

    def to_json(self) -> dict[str, Any]:
        return {
            "entity": self.entity,
            "metric": self.metric,
            "unit": self.unit,
            "kind": self.kind,
            "figure": self.figure,
            "median": self.median,
            "low": min(self.known),
            "high": max(self.known),
            "values": list(self.values),
            "coverage": self.coverage,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Entry:
        names = ("entity", "metric", "unit", "kind", "figure", "coverage")
        return cls(values=tuple(data["values"]), **{name: data[name] for name in names})


@dataclass(frozen=True, kw_only=True)
class StageEntries:
    """A stage: when it began after the start of its run (median, s), and its figures.

    ``held_back_by``: its verdict in each run (docs/verdicts.md), None where it has none; empty in
    a profile that was published before they were kept.
    """

    name: str
    start_s: float
    metrics: tuple[Entry, ...]
    held_back_by: tuple[str | None, ...] = ()

    @cached_property
    def by_key(self) -> dict[tuple[str, str, str], Entry]:
        return {entry.key: entry for entry in self.metrics}

    @property
    def duration(self) -> Entry:
        return self.by_key[DURATION]

    def with_entry(self, entry: Entry | None) -> StageEntries:
        """The same with one figure more, if there is one."""
        return self if entry is None else replace(self, metrics=(*self.metrics, entry))

    @property
    def verdicts(self) -> str:
        """In words, with the number of runs where they are not all alike; "" where none is kept."""
        counted = Counter(one for one in self.held_back_by if one is not None)
        if len(counted) == 1 and None not in self.held_back_by:
            return next(iter(counted))
        runs = len(self.held_back_by)
        return ", ".join(f"{one} {counted[one]} of {runs}" for one in _by_number(counted))

    @property
    def verdict(self) -> str:
        """The one of most runs; of as many the first by name. "" where none is kept."""
        counted = Counter(one for one in self.held_back_by if one is not None)
        return next(iter(_by_number(counted)), "")


def sittings_of(a: Reference, b: Reference) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sittings of both sides; none where each has the same share of both sides' runs, made in
    turn, for then both drift alike."""
    if not (a.sittings and b.sittings):
        return (), ()
    together = _sittings([*a.began_s, *b.began_s], max(a.length_s, b.length_s))
    of_a, of_b = Counter(together[: a.runs]), Counter(together[a.runs :])
    alike = all(of_a[one] * b.runs == of_b[one] * a.runs for one in set(together))
    return ((), ()) if alike else (a.sittings, b.sittings)


def _sittings(began_s: Sequence[float], length_s: float) -> tuple[int, ...]:
    """Runs are of one sitting while each begins within two run lengths and ``PAUSE_S``."""
    found = [0] * len(began_s)
    last_s, sitting = float("inf"), 0
    for place in sorted(range(len(began_s)), key=began_s.__getitem__):
        if began_s[place] - last_s > 2 * length_s + PAUSE_S:
            sitting += 1
        found[place], last_s = sitting, began_s[place]
    return tuple(found)


def _levelled(values: Sequence[float | None], sittings: Sequence[int]) -> tuple[float | None, ...]:
    """Times whose geometric mean in each sitting is that of all."""
    logs: dict[int, list[float]] = {}
    for value, sitting in zip(values, sittings, strict=True):
        if value:
            logs.setdefault(sitting, []).append(math.log(value))
    whole = fmean(one for part in logs.values() for one in part) if logs else 0.0
    return tuple(
        value and value * math.exp(whole - fmean(logs[sitting]))
        for value, sitting in zip(values, sittings, strict=True)
    )


def _by_number(counted: Counter[str]) -> list[str]:
    return sorted(counted, key=lambda one: (-counted[one], one))


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Runs of one recipe, together. ``varied``: what of the environment was not alike in all.

    ``stagescope``: the version that made them; the one that published those that do not say.
    ``incomplete``: stages that are left out since some runs alone measured them, or none where one
    failed, with how many did; ``unfinished``: runs that were not finished. What is published is of
    whole runs: there are none in it, and its file has neither.
    """

    name: str
    recipe: Mapping[str, Any]
    recipe_digest: str
    runs: int
    measured: Mapping[str, Any]
    environment: Mapping[str, Any]
    stages: tuple[StageEntries, ...]
    varied: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    absent: Mapping[str, Sequence[str]] = field(default_factory=dict)
    stagescope: str = ""
    incomplete: Mapping[str, int] = field(default_factory=dict)
    unfinished: int = 0

    @cached_property
    def sittings(self) -> tuple[int, ...]:
        """In which sitting each run was made, counted from 0; empty where that is not known."""
        return _sittings(self.began_s, self.length_s) if self.length_s else ()

    @cached_property
    def began_s(self) -> tuple[float, ...]:
        """When each run began, s UTC; empty where that was not kept."""
        began = self.measured["began"]
        return tuple(datetime.fromisoformat(one).timestamp() for one in began)

    def _check_times(self) -> None:
        """ValueError for ``measured`` that says nothing of when the runs were made."""
        try:
            began, _ = self.began_s, self.length_s
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"no whole published profile: what it says of when it was measured: {error!r}"
            ) from error
        if len(began) not in {0, self.runs}:
            raise ValueError(
                f"the published profile {self.name!r} is of {self.runs} runs and says when "
                f"{len(began)} began"
            )

    @property
    def length_s(self) -> float:
        """How long a run goes on (median, s); 0 where that was not kept."""
        return float(self.measured["run_s"] or 0.0)

    def in_one_sitting(self) -> Reference:
        """The same with the stages' times without what each sitting differs by."""
        stages = (
            replace(
                stage,
                metrics=tuple(
                    replace(one, values=_levelled(one.values, self.sittings))
                    if one.key == DURATION and self.sittings
                    else one
                    for one in stage.metrics
                ),
            )
            for stage in self.stages
        )
        return replace(self, stages=tuple(stages))

    @cached_property
    def by_stage(self) -> dict[str, StageEntries]:
        return {stage.name: stage for stage in self.stages}

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "name": self.name,
            "stagescope": self.stagescope,
            "measured": dict(self.measured),
            "runs": self.runs,
            "recipe_digest": self.recipe_digest,
            "recipe": self.recipe,
            "environment": self.environment,
            "varied": self.varied,
            "stages": [
                {
                    "name": stage.name,
                    "start_s": stage.start_s,
                    "held_back_by": list(stage.held_back_by),
                    "metrics": [entry.to_json() for entry in stage.metrics],
                }
                for stage in self.stages
            ],
            "absent": self.absent,
        }

    def to_text(self) -> str:
        """The file: a line for each metric, so that a change in git is a line as well."""
        document = self.to_json()
        mark, whole = "@", _json(document)
        while f'"{mark}' in whole:  # so that no text of its own is taken for a line's place
            mark += "@"
        lines: list[str] = []

        def kept(metric: Mapping[str, Any]) -> str:
            lines.append(_json(metric))
            return f"{mark}{len(lines) - 1}"

        for stage in document["stages"]:
            stage["metrics"] = [kept(metric) for metric in stage["metrics"]]
        text = _json(document, indent=1)
        return re.sub(rf'"{mark}(\d+)"', lambda found: lines[int(found[1])], text) + "\n"

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Reference:
        """Read a published profile; ValueError for one that is not whole, or was changed."""
        try:
            data = _upgraded(dict(document))
            check_document(data, DURATION)
            one = cls(
                stages=tuple(
                    StageEntries(
                        name=stage["name"],
                        start_s=stage["start_s"],
                        held_back_by=tuple(stage["held_back_by"]),
                        metrics=tuple(map(Entry.from_json, stage["metrics"])),
                    )
                    for stage in data["stages"]
                ),
                **{name: data[name] for name in _PLAIN},
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"no whole published profile: {error!r} is missing or wrong"
            ) from error
        one._check_times()
        if digest_of(one.recipe) != one.recipe_digest:
            raise ValueError(
                f"the recipe in the published profile {one.name!r} does not have the digest that "
                "stands beside it: the file was changed after it was published"
            )
        return one


def _json(data: Any, indent: int | None = None) -> str:
    return json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False)


_PLAIN = (
    *("name", "stagescope", "measured", "runs", "recipe_digest", "recipe", "environment"),
    *("varied", "absent"),
)


def _without_verdicts(document: dict[str, Any]) -> dict[str, Any]:
    """Version 1 kept no verdicts."""
    stages = [{**stage, "held_back_by": []} for stage in document["stages"]]
    return {**document, "schema": "stagescope.reference/2", "stages": stages}


def _without_times(document: dict[str, Any]) -> dict[str, Any]:
    """Version 2 did not keep when each run began, nor how long it went on."""
    measured = {**document["measured"], "began": [], "run_s": None}
    return {**document, "schema": "stagescope.reference/3", "measured": measured}


_UPGRADES: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "stagescope.reference/1": _without_verdicts,
    "stagescope.reference/2": _without_times,
}
"""Older schemas that are still read: each to the document that the next one would have."""


def _upgraded(document: dict[str, Any]) -> dict[str, Any]:
    while (schema := str(document.get("schema"))) != SCHEMA:
        if schema not in _UPGRADES:
            known = ", ".join([*_UPGRADES, SCHEMA])
            if schema.startswith("stagescope.profile"):
                raise ValueError(
                    "it is the profile of one run, and a published one is of several: `stagescope "
                    "profile publish RUN RUN RUN --name N --file FILE` makes it; `compare` takes "
                    "the run itself by its folder"
                )
            raise ValueError(
                f"the profile has schema {schema!r}; this version of stagescope reads {known}"
            )
        document = _UPGRADES[schema](document)
    return document


def read_reference(path: Path) -> Reference:
    """Read a published profile. Raises ValueError or FileNotFoundError with the file's name."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError("it is no JSON object")
        return Reference.from_json(document)
    except ValueError as error:
        raise ValueError(f"{path} is not read: {error}") from error


def write_reference(reference: Reference, path: Path) -> None:
    """Write the file whole; the same runs give the same bytes."""
    write_atomically(path, reference.to_text())


def digest_of(recipe: Mapping[str, Any]) -> str:
    """Digest of a recipe as it is published."""
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
