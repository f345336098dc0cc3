"""Running what a published profile holds, again: its recipe, or the command that was recorded."""

from __future__ import annotations

import json
import platform
import shlex
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from infra.uri import masked
from pipeline.recipe import Protocol, Recipe
from telemetry.pseudonyms import MARKED, Pseudonyms, names_of
from telemetry.publish import VERSION, reference_of
from telemetry.published_recipe import is_same_recipe, published_recipe
from telemetry.reference import Reference
from telemetry.runfolder import RunFolder, list_runs

PLACES = ("data.path", "cluster.scheduler", "online.redis_env", "vcenter.", "tracking.")
"""Keys that a profile does not hold, because they say where something is."""
Once = Callable[[], RunFolder]
STDERR = 2


class RunFailed(OSError):  # noqa: N818 - it is an outcome
    """A run of the recipe did not finish; the sentence names the stage and its reason."""


@dataclass(kw_only=True)
class Again:
    """Runs of what a profile holds. ``done`` grows as they end, so that a cut keeps what is there.

    ``had``: runs of an earlier reproduction to go on with; with any, nothing is warmed up.
    """

    once: Once
    runs: int
    warm_up: int
    had: Sequence[RunFolder] = ()
    done: list[RunFolder] = field(default_factory=list)

    def execute(self, say: Callable[[str], None]) -> list[RunFolder]:
        """Run it ``warm_up`` times uncounted, then until there are ``runs``. Raises RunFailed."""
        self.done += self.had[: self.runs]
        for _ in range(0 if self.had else self.warm_up):
            say("warm-up, not counted")
            self._once(say)
        while len(self.done) < self.runs:
            say(f"run {len(self.done) + 1} of {self.runs}")
            self.done.append(self._once(say))
        return self.done

    def _once(self, say: Callable[[str], None]) -> RunFolder:
        began_s = time.monotonic()
        folder = self.once()
        check(folder)
        say(f"  {folder.path.name}: {time.monotonic() - began_s:.0f} s in all")
        return folder


def check(folder: RunFolder) -> None:
    """Raises RunFailed where the run did not finish, with the stage and its reason."""
    record = folder.read()
    if record["status"] == "finished":
        return
    ended = {"finished", "reused"}
    stage = next((one for one in record["stages"] if one["status"] not in ended), None)
    what = f": {stage['name']} {stage['status']}, {stage.get('reason')}" if stage else ""
    raise RunFailed(f"run {record['run_id']} is {record['status']}{what} (logs: {folder.path})")


def earlier(reference: Reference, folders: Sequence[RunFolder]) -> list[RunFolder]:
    """Runs to go on with. Raises ValueError if one is of another recipe or is not whole."""
    if twice := [one for one, times in Counter(f.path for f in folders).items() if times > 1]:
        raise ValueError(f"--have: run {twice[0].name} is named twice")
    for folder in folders:
        try:
            check(folder)
            one = reference_of(folder.path.name, [folder])
        except RunFailed as failed:
            raise ValueError(f"--have: {failed}") from failed
        if why := _other_recipe(reference, one.recipe):
            raise ValueError(
                f"--have: run {one.name} is of another recipe than {reference.name}: {why}"
            )
        if missing := reference.by_stage.keys() - one.by_stage.keys():
            raise ValueError(
                f"--have: run {one.name} did not measure {', '.join(sorted(missing))}: take runs "
                "that a reproduction made, or those of `run --fresh`"
            )
    return list(folders)


def published_defaults() -> dict[str, Any]:
    """A recipe that says nothing but what it must, as it is published, and without that."""
    least = Recipe(name="defaults", protocol=Protocol(folds=(date(2018, 4, 8),)))
    recipe = _published(least.model_dump(mode="json"))
    del recipe["name"], recipe["protocol"]["folds"]
    return recipe


def _published(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return published_recipe({"recipe": recipe, "stages": []}, Pseudonyms({}))


def _other_recipe(reference: Reference, recipe: Mapping[str, Any]) -> str | None:
    """By what a recipe of this version is another one than the reference's; None if it is not."""
    versions = (reference.stagescope, VERSION)
    return is_same_recipe(reference.recipe, recipe, *versions, published_defaults())


def announced(reference: Reference, runs: int, warm_up: int, had: int) -> list[str]:
    """What will be done, and how long it took where the profile was made."""
    many = max(0, runs - had)
    warmed = 0 if had else warm_up
    took_s = sum(stage.duration.median for stage in reference.stages)
    seconds = (many + warmed) * took_s
    told = [f"{many} run{'' if many == 1 else 's'}"] + [f"{warmed} to warm up"] * bool(warmed)
    told += [f"{had} there already"] * bool(had)
    lines = [
        f"{reference.name}: {', '.join(told)}; where it was published the stages of a run took "
        f"{took_s:.3g} s, so this is {_about(seconds)} or more"
    ]
    commands = reference.recipe.get("recorded") or {}
    lines += [
        f"command of {name}, run in this folder: {shlex.join(one)}"
        for name, one in commands.items()
        if one
    ]
    return lines


def _about(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def foreign(reference: Reference, out: Path) -> str | None:
    """A sentence where the folder has a champion that another recipe may have left."""
    if "recorded" in reference.recipe:
        return None
    for folder in list_runs(out):
        try:
            recipe = folder.read().get("recipe") or {}
        except (OSError, ValueError):
            continue
        if "seed" not in recipe:
            continue
        theirs = _published(recipe)
        if _other_recipe(reference, theirs):
            return (
                f"note: {out} also has runs of another recipe ({folder.path.name}), and their "
                "champion may be the one that is compared with and served: an empty folder "
                "(--out) leaves no doubt"
            )
    return None


def ready(
    reference: Reference, overrides: Sequence[str], out: Path, note: Callable[[str], None]
) -> Once:
    """What runs it once. Raises ValueError, before anything is spent, for what cannot be run."""
    for override in overrides:
        if not override.startswith(PLACES):
            raise ValueError(
                f"--set {masked(override)}: a profile is reproduced as it is; what can be set here "
                f"is where things are: {', '.join(PLACES)}"
            )
    if "recorded" in reference.recipe:
        return _recorded(reference, overrides, out, note)
    return _of_recipe(reference, overrides, out, note)


def _of_recipe(
    reference: Reference, overrides: Sequence[str], out: Path, note: Callable[[str], None]
) -> Once:
    from pipeline.plan import read_and_plan

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.toml"
        file.write_text("\n".join(_toml(reference.recipe)) + "\n", encoding="utf-8")
        try:
            planned = read_and_plan(str(file), overrides, out)
        except ValueError as error:
            told = str(error).replace(f" {file} ", " in it ")
            raise ValueError(
                f"{reference.name} was made by stagescope {reference.stagescope}, this is "
                f"{VERSION}: {told}"
            ) from error
    if planned.problems:
        raise ValueError(planned.sentence())
    if why := _other_recipe(reference, _published(planned.recipe.model_dump(mode="json"))):
        raise ValueError(f"the recipe of {reference.name} is read otherwise here: {why}")
    return lambda: _run(planned.recipe, out, note)


def _toml(recipe: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """A recipe's keys as TOML, which has JSON's strings, numbers and lists but no null."""
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            yield from _toml(value, f"{place}{key}.")
        elif value is not None and (f"{place}{key}", value) != ("cluster.scheduler", "external"):
            yield f"{place}{key} = {json.dumps(value, ensure_ascii=False)}"


def _run(recipe: Recipe, out: Path, note: Callable[[str], None]) -> RunFolder:
    from pipeline.runner import Run

    return Run(recipe=recipe, out=out, listener=_Quiet(note), fresh=True).execute()


class _Quiet:
    """Tells of stages by a line each."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self.note = note

    def stage_started(self, name: str) -> None:
        """The end says it with its time."""

    def stage_progress(self, name: str, done: int, total: int) -> None:
        """Many runs in a row need no progress of each."""

    def stage_ended(self, record: Mapping[str, Any]) -> None:
        took = ""
        if record.get("end_ns") and record.get("start_ns"):
            took = f" in {(record['end_ns'] - record['start_ns']) / 1e9:.1f} s"
        self.note(f"  {record['name']}: {record['status']}{took}")


def _recorded(
    reference: Reference, overrides: Sequence[str], out: Path, note: Callable[[str], None]
) -> Once:
    commands = reference.recipe["recorded"]
    hint = (
        f"record it {reference.runs} times with stagescope record, and compare: "
        "stagescope compare PROFILE RUN,RUN,RUN"
    )
    if len(commands) != 1 or None in commands.values():
        raise ValueError(f"{reference.name} was measured by spans within a program: {hint}")
    ((name, command),) = commands.items()
    if gone := [one for word in command for one in MARKED.findall(word)]:
        raise ValueError(
            f"the command of {name} is not told in whole ({shlex.join(command)}): {gone[0]} stands "
            f"for a name, an address or a path; {hint}"
        )
    here = {"host": platform.node(), "stages": [{"name": name, "command": list(command)}]}
    told = published_recipe(here, Pseudonyms(names_of(here, None)))
    if told != reference.recipe:
        raise ValueError(
            f"the command of {name} ({shlex.join(command)}) holds a word that is the name of this "
            f"machine or user, so runs of it here would be published as another one "
            f"({shlex.join(told['recorded'][name])}): reproduce it as another user, or on another "
            "machine"
        )

    def once() -> RunFolder:
        from pipeline.recording import record_stage

        # Its output is not this command's answer.
        folder, _ = record_stage(name, list(command), out, overrides, note=note, stdout=STDERR)
        if folder.read()["status"] == "interrupted":
            raise KeyboardInterrupt
        return folder

    return once
