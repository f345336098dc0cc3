"""Running what a published profile holds, again: its recipe, or the command that was recorded."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.recipe import Recipe
from telemetry.pseudonyms import Pseudonyms
from telemetry.reference import Reference, is_same_recipe, published_recipe, reference_of
from telemetry.runfolder import RunFolder

PLACES = ("data.path", "cluster.scheduler", "online.redis_env", "vcenter.", "tracking.")
"""Keys that a profile does not hold, because they say where something is."""
Once = Callable[[], RunFolder]


class RunFailed(OSError):  # noqa: N818 - it is an outcome
    """A run of the recipe did not finish; the sentence names the stage and its reason."""


def reproduce(
    once: Once, *, runs: int, warm_up: int, say: Callable[[str], None] = lambda sentence: None
) -> Reference:
    """Run it ``warm_up`` times uncounted, then ``runs`` times. Raises RunFailed."""
    folders = []
    for number in range(warm_up + runs):
        counted = number >= warm_up
        say(f"run {number - warm_up + 1} of {runs}" if counted else "warm-up, not counted")
        folder = once()
        _check(folder)
        if counted:
            folders.append(folder)
    return reference_of("this machine", folders)


def _check(folder: RunFolder) -> None:
    record = folder.read()
    if record["status"] == "finished":
        return
    ended = {"finished", "reused"}
    stage = next((one for one in record["stages"] if one["status"] not in ended), None)
    what = f": {stage['name']} {stage['status']}, {stage.get('reason')}" if stage else ""
    raise RunFailed(f"run {record['run_id']} is {record['status']}{what}")


def ready(
    reference: Reference, overrides: Sequence[str], out: Path, note: Callable[[str], None]
) -> Once:
    """What runs it once. Raises ValueError, before anything is spent, for what cannot be run."""
    for override in overrides:
        if not override.startswith(PLACES):
            raise ValueError(
                f"--set {override}: a profile is reproduced as it is; what can be set here is "
                f"where things are: {', '.join(PLACES)}"
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
        file.write_text("\n".join(_toml(reference.recipe)) + "\n")
        planned = read_and_plan(str(file), overrides, out)
    if planned.problems:
        raise ValueError(planned.sentence())
    again = published_recipe(
        {"recipe": planned.recipe.model_dump(mode="json"), "stages": []}, Pseudonyms({})
    )
    if why := is_same_recipe(reference.recipe, again, reference.stagescope, ""):
        raise ValueError(f"the recipe of {reference.name} is read otherwise here: {why}")
    return lambda: _run(planned.recipe, out, note)


def _toml(recipe: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """A recipe's keys as TOML, which has JSON's strings, numbers and lists but no null."""
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            yield from _toml(value, f"{place}{key}.")
        elif value is not None and value != "external":
            yield f"{place}{key} = {json.dumps(value)}"


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

    def once() -> RunFolder:
        from pipeline.recording import record_stage

        folder, _ = record_stage(name, list(command), out, overrides, note=note)
        return folder

    return once
