"""A published profile: what at least three runs of one recipe took, in one file for people and git.

``docs/compare.md`` says what stands in it, ``docs/reference.schema.json`` is its schema. Comparing
works on this form alone: runs that were not published become one in memory.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from telemetry.profile import Profile, Row
from telemetry.pseudonyms import Pseudonyms, names_of
from telemetry.runfolder import RunFolder, write_atomically
from telemetry.statistics import digits

SCHEMA = "stagescope.reference/1"
LEAST_RUNS = 3
DURATION = ("stage", "duration_seconds", "total")
"""The row that is a stage's own time."""
_UPGRADES: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Older schemas that are still read: each to the document that the next one would have."""
_PLACES: tuple[tuple[str, ...], ...] = (
    ("vcenter",),
    ("tracking",),
    ("data", "path"),
    ("data", "path_env"),
    ("online", "redis_env"),
)
"""Keys of a recipe that say where something is, and not what is done."""
_ENTITIES = re.compile(
    r"(stage|app|data|machine|cgroup|disk:.+|net:(?!lo$).+|gpu:.+|vm:.+|esxi:.+)"
)
"""Whose figures are published: not the recorder's own, nor those of processes all together."""
_FOREIGN = re.compile(r"recorder|runner|collector:|processes|fs:|net:lo")
_PEAKS = re.compile(r"(gpu_)?mem_(rss|used)_bytes|gpu_temperature_c|gpu_process_mem_bytes")
_NEVER = re.compile(r"clock_.*|.*_total_bytes|mem_peak_rss_bytes|.*_estimate|cpu_count")
"""Constants, clocks, estimates, and a running maximum that is read once a second."""
_BEFORE = re.compile(r"machine mem_.*|cgroup cgroup_mem_.*|vm:[^ ]+ vm_mem_(consumed|active)_bytes")
"""Memory of a whole machine: what filled it ran before, and runs in a row resemble each other."""
_OF_PLACEMENT = ("host", "system", "vm", "esxi_host", "datastores", "vms")


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
    """A stage: when it began after the start of its run (median, s), and its figures."""

    name: str
    start_s: float
    metrics: tuple[Entry, ...]

    @cached_property
    def by_key(self) -> dict[tuple[str, str, str], Entry]:
        return {entry.key: entry for entry in self.metrics}

    @property
    def duration(self) -> Entry:
        return self.by_key[DURATION]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Runs of one recipe, together. ``varied``: what of the environment was not alike in all."""

    name: str
    recipe: Mapping[str, Any]
    recipe_digest: str
    runs: int
    measured: Mapping[str, str]
    environment: Mapping[str, Any]
    stages: tuple[StageEntries, ...]
    varied: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    absent: Mapping[str, Sequence[str]] = field(default_factory=dict)
    stagescope: str = ""

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
                    "metrics": [entry.to_json() for entry in stage.metrics],
                }
                for stage in self.stages
            ],
            "absent": self.absent,
        }

    def to_text(self) -> str:
        """The file: a line for each metric, so that a change in git is a line as well."""
        document = self.to_json()
        lines: list[str] = []

        def kept(metric: Mapping[str, Any]) -> str:
            lines.append(json.dumps(metric, ensure_ascii=False, allow_nan=False))
            return f"@line {len(lines) - 1}@"

        for stage in document["stages"]:
            stage["metrics"] = [kept(metric) for metric in stage["metrics"]]
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
        return re.sub(r'"@line (\d+)@"', lambda found: lines[int(found[1])], text) + "\n"

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Reference:
        """Read a published profile; ValueError for a schema or a digest that cannot be."""
        data = _upgraded(dict(document))
        try:
            one = cls(
                stages=tuple(
                    StageEntries(
                        name=stage["name"],
                        start_s=stage["start_s"],
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
        if digest_of(one.recipe) != one.recipe_digest:
            raise ValueError(
                f"the recipe in the published profile {one.name!r} does not have the digest that "
                "stands beside it: the file was changed after it was published"
            )
        return one


_PLAIN = (
    *("name", "stagescope", "measured", "runs", "recipe_digest", "recipe", "environment"),
    *("varied", "absent"),
)


def _upgraded(document: dict[str, Any]) -> dict[str, Any]:
    while (schema := str(document.get("schema"))) != SCHEMA:
        if schema not in _UPGRADES:
            known = ", ".join([*_UPGRADES, SCHEMA])
            raise ValueError(
                f"the profile has schema {schema!r}; this version of stagescope reads {known}"
                + (": name the run's folder instead" if schema.startswith("stagescope.p") else "")
            )
        document = _UPGRADES[schema](document)
    return document


def read_reference(path: Path) -> Reference:
    """Read a published profile. Raises ValueError or FileNotFoundError with the file's name."""
    try:
        document = json.loads(path.read_text())
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


def published_recipe(run: Mapping[str, Any], pseudonyms: Pseudonyms) -> dict[str, Any]:
    """What was done, without where: a recipe less its places, or the recorded commands.

    Whatever is published of it is what its digest is made of, so that another machine's is alike.
    """
    recipe = run.get("recipe") or {}
    if "seed" in recipe:
        portable = json.loads(json.dumps(recipe))
        for place in _PLACES:
            section = portable
            for key in place[:-1]:
                section = section.get(key, {})
            section.pop(place[-1], None)
        if portable.get("cluster", {}).get("scheduler"):
            portable["cluster"]["scheduler"] = "external"
        return dict(pseudonyms.data(portable))
    commands = {stage["name"]: stage.get("command") for stage in run["stages"]}
    return {
        "recorded": {
            name: command and [pseudonyms.text(_base_names(part)) for part in command]
            for name, command in commands.items()
        }
    }


def _base_names(argument: str) -> str:
    """``/opt/venv/bin/python`` is ``python``, on every machine."""
    return re.sub(r"(?<![\w.])/(?:[^\s/=]+/)*([^\s/=]+)", r"\1", argument)


def reference_of(
    name: str, folders: Sequence[RunFolder], *, keep_names: bool = False, whole: bool = False
) -> Reference:
    """Runs of one recipe as a published profile. Raises ValueError with a sentence if they are not.

    ``whole``: every run must have finished with every stage measured in it, and there must be
    three; else stages that were not measured in all of them are left out.
    """
    runs = [_Run(folder, keep_names) for folder in folders]
    _check(runs, whole)
    first = runs[0]
    flat = [dict(flatten(one.environment)) for one in runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    varied = {key: [one.get(key) for one in flat] for key in keys}
    names = [stage for stage in first.stages if all(stage in one.stages for one in runs)]
    return Reference(
        name=name,
        recipe=first.recipe,
        recipe_digest=digest_of(first.recipe),
        runs=len(runs),
        measured={
            "from": _when(min(one.record["started_ns"] for one in runs)),
            "to": _when(max(one.record["ended_ns"] or one.record["started_ns"] for one in runs)),
        },
        environment=first.environment,
        varied={key: values for key, values in varied.items() if _differ(values)},
        stages=tuple(_together(stage, runs) for stage in names),
        absent=_absent(runs),
        stagescope=metadata.version("stagescope"),
    )


def _differ(values: Sequence[Any]) -> bool:
    return any(value != values[0] for value in values)


def flatten(data: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Nested plain data as ``a.b.0`` → value."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from flatten(value, f"{place}.{key}" if place else str(key))
    elif isinstance(data, list | tuple):
        for index, value in enumerate(data):
            yield from flatten(value, f"{place}.{index}")
    else:
        yield place, data


class _Run:
    """One run as it is read: its record, its rows under the names that are published."""

    def __init__(self, folder: RunFolder, keep_names: bool) -> None:
        self.record = folder.read()
        self.id = self.record["run_id"]
        document = json.loads(folder.profile_json.read_text())
        profile = Profile.from_json(document)
        self.keep = keep_names
        self._pseudonyms = Pseudonyms(names_of(self.record, profile.hypervisor))
        self.recipe = published_recipe(self.record, self._pseudonyms)
        self.environment = self._environment(profile.hypervisor or {})
        self.stages = {
            stage["name"]: stage
            for stage in self.record["stages"]
            if stage.get("end_ns") and stage["status"] == "finished" and not stage["reused_from"]
        }
        self.rows: dict[str, list[Row]] = {}
        for row in profile.rows:
            self.rows.setdefault(row.stage, []).append(row)

    def _environment(self, seen: Mapping[str, Any]) -> dict[str, Any]:
        placement = {**(self.record.get("placement") or {})}
        placement["vms"] = placement.get("vms") or seen.get("vms")
        told = {key: placement[key] for key in _OF_PLACEMENT if placement.get(key)}
        told = {**(self.record.get("environment") or {}), **({"placement": told} if told else {})}
        told.pop("host", None) if not self.keep else None
        return dict(told if self.keep else self._pseudonyms.data(told))

    def entity(self, row: Row) -> str:
        return row.entity if self.keep else self._pseudonyms.entity(row.entity)

    def reason(self, row: Row) -> str:
        return str(row.reason) if self.keep else self._pseudonyms.text(str(row.reason))

    def figures(self, stage: str) -> Iterator[tuple[Row, str, str, float]]:
        """Row, entity, figure and value of all that is compared of a stage."""
        for row in self.rows.get(stage, ()):
            if row.reason is None and _ENTITIES.fullmatch(row.entity):
                for figure in _figures(row):
                    value = getattr(row, figure)
                    if value is not None:
                        yield row, self.entity(row), figure, digits(value)


def _figures(row: Row) -> Iterator[str]:
    """What of a row is compared: what a counter grew by, the mean of levels, the peak of memory."""
    if _PEAKS.fullmatch(row.metric) and row.kind != "counter" and row.entity != "machine":
        yield "max"
    if not _NEVER.fullmatch(row.metric) and not _BEFORE.fullmatch(f"{row.entity} {row.metric}"):
        yield "total" if row.kind == "counter" else "mean"


def _check(runs: Sequence[_Run], whole: bool) -> None:
    twice = [one.id for one in runs]
    if again := next((one for one in twice if twice.count(one) > 1), None):
        raise ValueError(f"run {again} is named twice: each run counts once")
    if whole and len(runs) < LEAST_RUNS:
        raise ValueError(
            f"{len(runs)} run{'s' if len(runs) != 1 else ''}: a profile is published from at least "
            f"{LEAST_RUNS}, so that it says how much they vary"
        )
    first = runs[0]
    for one in runs:
        if whole:
            _check_whole(one)
        if digest_of(one.recipe) != digest_of(first.recipe):
            where = recipe_difference(first.recipe, one.recipe)
            raise ValueError(f"runs {first.id} and {one.id} are of different recipes: {where}")
        if not one.stages:
            raise ValueError(f"run {one.id} measured no stage: run it with --fresh")


def _check_whole(run: _Run) -> None:
    if run.record["status"] != "finished":
        raise ValueError(
            f"run {run.id} is {run.record['status']}: only finished runs are published"
        )
    for stage in run.record["stages"]:
        if stage["reused_from"]:
            raise ValueError(
                f"run {run.id} reused {stage['name']} of run {stage['reused_from']}: a profile is "
                "published from runs that measured every stage (stagescope run --fresh)"
            )
        if stage["name"] not in run.stages:
            raise ValueError(f"run {run.id}: stage {stage['name']} is {stage['status']}")


def recipe_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """The first few keys by which two recipes differ, for a sentence."""
    one, two = dict(_leaves(a)), dict(_leaves(b))
    keys = [key for key in dict.fromkeys([*one, *two]) if one.get(key) != two.get(key)]
    told = [f"{key} is {one.get(key)!r} and {two.get(key)!r}" for key in keys[:3]]
    more = f", and {len(keys) - 3} more" if len(keys) > 3 else ""
    return "; ".join(told) + more


def is_same_recipe(
    a: Mapping[str, Any], b: Mapping[str, Any], version_a: str, version_b: str
) -> str | None:
    """None, or by what two published recipes differ.

    A key that one version of StageScope does not have yet is no difference.
    """
    if digest_of(a) == digest_of(b):
        return None
    one, two = dict(_leaves(a)), dict(_leaves(b))
    both = one.keys() & two.keys()
    grown = version_a != version_b and "recorded" not in a and len(both) > len(one) / 2
    if grown and all(one[key] == two[key] for key in both):
        return None
    return recipe_difference(a, b)


def _leaves(data: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """A recipe's keys with their values; a list is one value."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", value


def _together(stage: str, runs: Sequence[_Run]) -> StageEntries:
    found: dict[tuple[str, str, str], tuple[Row, list[float | None], list[float]]] = {}
    for index, run in enumerate(runs):
        for row, entity, figure, value in run.figures(stage):
            _, values, coverage = found.setdefault(
                (entity, row.metric, figure), (row, [None] * len(runs), [])
            )
            values[index] = value
            coverage.append(row.coverage)
    starts = [(run.stages[stage]["start_ns"] - run.record["started_ns"]) / 1e9 for run in runs]
    seconds = [(one["end_ns"] - one["start_ns"]) / 1e9 for one in (r.stages[stage] for r in runs)]
    entity, metric, figure = DURATION
    duration = Entry(
        entity=entity,
        metric=metric,
        unit="s",
        kind="gauge",
        figure=figure,
        values=tuple(map(digits, seconds)),
        coverage=1.0,
    )
    rest = (
        Entry(
            entity=key[0],
            metric=key[1],
            unit=row.unit,
            kind=row.kind,
            figure=key[2],
            values=tuple(values),
            coverage=digits(min(coverage), 4),
        )
        for key, (row, values, coverage) in sorted(found.items())
    )
    return StageEntries(name=stage, start_s=digits(median(starts)), metrics=(duration, *rest))


def _absent(runs: Sequence[_Run]) -> dict[str, list[str]]:
    """What no run measured in any stage, by its reason."""
    measured = {
        (run.entity(row), row.metric)
        for run in runs
        for rows in run.rows.values()
        for row in rows
        if row.reason is None
    }
    found: dict[str, set[str]] = {}
    for run in runs:
        for rows in run.rows.values():
            for row in rows:
                entity = run.entity(row)
                if _FOREIGN.match(entity) or (entity, row.metric) in measured:
                    continue
                if row.reason is not None:
                    found.setdefault(run.reason(row), set()).add(f"{entity} {row.metric}")
    return {reason: sorted(what) for reason, what in sorted(found.items())}


def _when(ns: int) -> str:
    return f"{datetime.fromtimestamp(ns / 1e9, UTC):%Y-%m-%dT%H:%M:%SZ}"
