"""From runs of one recipe to a published profile: what is compared of them, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from statistics import median
from typing import Any

from telemetry.collectors.vcenter_journal import read_events
from telemetry.profile import Profile, Row
from telemetry.pseudonyms import AS_IT_IS, DROPPED, Pseudonyms, named_in, names_of
from telemetry.published_recipe import published_recipe, recipe_difference
from telemetry.reference import DURATION, Entry, Reference, StageEntries, digest_of
from telemetry.runfolder import RunFolder
from telemetry.statistics import digits

LEAST_RUNS = 3
VERSION = metadata.version("stagescope")
_ENTITIES = re.compile(
    r"(stage|app|data|machine|cgroup|disk:.+|net:(?!lo$).+|gpu:.+|vm:.+|esxi:.+)"
)
"""Whose figures are published: not the recorder's own, nor those of processes all together."""
_FOREIGN = re.compile(r"recorder|runner|collector:|processes|fs:|net:lo")
_PEAKS = re.compile(r"(gpu_)?mem_(rss|used)_bytes|gpu_temperature_c|gpu_(run|process)_mem_bytes")
_NEVER = re.compile(r"clock_.*|.*_total_bytes|mem_peak_rss_bytes|.*_estimate|cpu_count")
"""Constants, clocks, estimates, and a running maximum that is read once a second."""
_BEFORE = re.compile(r"machine mem_.*|cgroup cgroup_mem_.*|vm:[^ ]+ vm_mem_(consumed|active)_bytes")
"""Memory of a whole machine: what filled it ran before, and runs in a row resemble each other."""
_PSEUDONYM = re.compile(r"(vm:vm-\d+@host-\d+|esxi:host-\d+)(/.*)?")
_WELL = frozenset({"finished", "reused", "skipped"})
"""How a stage ends without anything having failed in it."""
_NO_VM = frozenset(("vm", "esxi"))
"""Entities of a run whose VM was never found: why not is a sentence full of names."""
_NOT_FOUND = "the vCenter could not be asked, or does not show this VM"
_OF_PLACEMENT = ("host", "system", "vm", "esxi_host", "datastores", "vms")


def reference_of(
    name: str,
    folders: Sequence[RunFolder],
    *,
    keep_names: bool = False,
    whole: bool = False,
    beside: Sequence[RunFolder] = (),
) -> Reference:
    """Runs of one recipe as a published profile. Raises ValueError with a sentence if they are not.

    ``whole``: every run must have finished with every stage measured in it, and there must be
    three; else stages that were not measured in all of them are left out, and ``incomplete`` names
    those that were in some. ``beside``: other runs, whose environments have the same pseudonyms for
    the same names, and others for others. What is measured is numbered within each run: a VM is the
    run's own one, wherever it lies.
    """
    runs = [_Run(folder, keep_names) for folder in folders]
    _check(runs, whole)
    first = runs[0]
    others = [_Run(folder, keep_names) for folder in beside]
    alike = _together_named([*others, *runs])
    environments = [one.environment(alike) for one in (*others, *runs)][len(others) :]
    flat = [
        {**dict(flatten(where)), "stagescope": one.version}
        for where, one in zip(environments, runs, strict=True)
    ]
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
            "began": [_when(one.record["started_ns"]) for one in runs],
            "run_s": digits(median(one.seconds for one in runs), 4),
            "to": _when(max(one.record["ended_ns"] or one.record["started_ns"] for one in runs)),
        },
        environment=environments[0],
        varied={key: values for key, values in varied.items() if differ(values)},
        stages=tuple(_together(stage, runs) for stage in names),
        absent=_absent(runs),
        stagescope=first.version,
        incomplete=_incomplete(runs),
        unfinished=sum(one.record["status"] != "finished" for one in runs),
    )


def _incomplete(runs: Sequence[_Run]) -> dict[str, int]:
    """In how many runs a stage was measured, of those that some measured and others did not, or
    that did not end well in any. One that all reused or skipped is none."""
    noted = [stage for run in runs for stage in run.record["stages"]]
    broken = {stage["name"] for stage in noted if stage["status"] not in _WELL}
    measured = {one["name"]: sum(one["name"] in run.stages for run in runs) for one in noted}
    return {
        name: many
        for name, many in measured.items()
        if many < len(runs) and (many or name in broken)
    }


def differ(values: Sequence[Any]) -> bool:
    """Whether not all are alike."""
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
        self.version = self.record.get("stagescope") or VERSION
        document = json.loads(folder.profile_json.read_text())
        profile = Profile.from_json(document)
        self.keep = keep_names
        self._seen = profile.hypervisor or {}
        self.names = names_of(self.record, profile.hypervisor)
        self._pseudonyms = Pseudonyms(self.names)
        self._gpus = _gpu_places(self.record)
        self.recipe = published_recipe(self.record, self._pseudonyms)
        # Not before: what a vCenter says in one run alone is to change no word of the recipe.
        self._pseudonyms.know(named_in(read_events(folder.samples)))
        self.stages = {
            stage["name"]: stage
            for stage in self.record["stages"]
            if stage.get("end_ns") and stage["status"] == "finished" and not stage["reused_from"]
        }
        self.verdicts = {one["stage"]: one["verdict"] for one in profile.verdicts}
        self.rows: dict[str, list[Row]] = {}
        for row in profile.rows:
            self.rows.setdefault(row.stage, []).append(row)

    @property
    def seconds(self) -> float:
        """How long it went on, s."""
        ended_ns = self.record["ended_ns"] or self.record["started_ns"]
        return float(ended_ns - self.record["started_ns"]) / 1e9

    def environment(self, names: Pseudonyms) -> dict[str, Any]:
        """Where it ran, under ``names`` unless they are to be kept."""
        placement = {**(self.record.get("placement") or {})}
        placement["vms"] = placement.get("vms") or self._seen.get("vms")
        told = {key: placement[key] for key in _OF_PLACEMENT if placement.get(key)}
        told = {**(self.record.get("environment") or {}), **({"placement": told} if told else {})}
        if gpus := (told.get("gpu") or {}).get("gpus"):
            placed = [{**one, "entity": self._gpus[one["entity"]]} for one in gpus]
            told["gpu"] = {**told["gpu"], "gpus": [_without_index(one) for one in placed]}
        told.pop("host", None) if not self.keep else None
        return dict(told if self.keep else names.data(told))

    def entity(self, row: Row) -> str:
        entity = self._gpus.get(row.entity, row.entity)
        return entity if self.keep else self._pseudonyms.entity(entity)

    def reason(self, row: Row) -> str:
        told = str(row.reason)
        return told if self.keep else _told(told, row.entity, self._pseudonyms)

    def figures(self, stage: str) -> Iterator[tuple[Row, str, str, float]]:
        """Row, entity, figure and value of all that is compared of a stage."""
        for row in self.rows.get(stage, ()):
            if row.reason is None and _ENTITIES.fullmatch(row.entity):
                for figure in _figures(row):
                    value = row.whole if figure == "total" else getattr(row, figure)
                    if value is not None:
                        yield row, self.entity(row), figure, digits(value)


def _together_named(runs: Sequence[_Run]) -> Pseudonyms:
    """Pseudonyms for the names of all of them; the first run's have the first numbers."""
    kinds = dict.fromkeys(kind for run in runs for kind in run.names)
    return Pseudonyms({kind: [one for run in runs for one in run.names[kind]] for kind in kinds})


def unnamed(reference: Reference) -> Reference:
    """The same as runs are compared with it: one that was published with its names lacks them.

    A VM that was on several hosts is then several, as only the runs tell which were one.
    """
    entities = {one.entity for stage in reference.stages for one in stage.metrics}
    if "host" not in reference.environment and all(map(_is_pseudonym, entities)):
        return reference
    environment = {k: v for k, v in reference.environment.items() if k != "host"}
    names = Pseudonyms(names_of({"placement": environment.get("placement")}, None))
    return replace(
        reference,
        environment=names.data(environment),
        varied={
            key: values if _stays(key) else names.data(values)
            for key, values in reference.varied.items()
            if key.rpartition(".")[2] not in DROPPED | {"host"}
        },
        absent=_by_reason(
            (_told(why, one.rpartition(" ")[0], names), names.text(one))
            for why, what in reference.absent.items()
            for one in what
        ),
        stages=tuple(
            replace(
                stage,
                metrics=tuple(
                    replace(one, entity=names.entity(one.entity)) for one in stage.metrics
                ),
            )
            for stage in reference.stages
        ),
    )


def _stays(key: str) -> bool:
    """Whether a flat key of the environment, as ``packages.torch``, holds no names."""
    return any(map(AS_IT_IS.fullmatch, key.split(".")))


def _is_pseudonym(entity: str) -> bool:
    return not entity.startswith(("vm:", "esxi:")) or _PSEUDONYM.fullmatch(entity) is not None


def _gpu_places(record: Mapping[str, Any]) -> dict[str, str]:
    """GPUs and MIG instances of a run by their place among its own, as its programs number them.

    The driver's numbers are the machine's: a scheduler gives one run ``gpu:5``, the next ``gpu:2``.
    """
    listed = ((record.get("environment") or {}).get("gpu") or {}).get("gpus") or ()
    places: dict[str, str] = {}
    for entity in (one["entity"] for one in listed):
        card, _, slot = entity.partition("/")
        whole = places.setdefault(card, f"gpu:{sum('/' not in one for one in places)}")
        if slot:
            before = sum(one.startswith(f"{card}/") for one in places)
            places[entity] = f"{whole}/mig:{before}"
    return places


def _without_index(gpu: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in gpu.items() if key != "index"}


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
    return StageEntries(
        name=stage,
        start_s=digits(median(starts)),
        metrics=(duration, *rest),
        held_back_by=tuple(run.verdicts.get(stage) for run in runs),
    )


def _absent(runs: Sequence[_Run]) -> dict[str, list[str]]:
    """What no run measured in any stage, by its reason."""
    measured = {
        (run.entity(row), row.metric)
        for run in runs
        for rows in run.rows.values()
        for row in rows
        if row.reason is None
    }
    return _by_reason(
        (run.reason(row), f"{entity} {row.metric}")
        for run in runs
        for rows in run.rows.values()
        for row in rows
        if not _FOREIGN.match(entity := run.entity(row))
        and (entity, row.metric) not in measured
        and row.reason is not None
    )


def _by_reason(absent: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for reason, what in absent:
        found.setdefault(reason, set()).add(what)
    return {reason: sorted(what) for reason, what in sorted(found.items())}


def _told(reason: str, entity: str, names: Pseudonyms) -> str:
    """Why something of an entity was not measured, as it is published."""
    return _NOT_FOUND if entity in _NO_VM else names.text(reason)


def _when(ns: int) -> str:
    return f"{datetime.fromtimestamp(ns / 1e9, UTC):%Y-%m-%dT%H:%M:%SZ}"
