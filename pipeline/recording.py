"""Recording somebody else's command as a stage, with its profile in MLflow where one is named."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.artifact import STORE
from pipeline.plan import vcenter_problems
from pipeline.recipe import RecipeError, read_recipe, telemetry_settings
from pipeline.recipe import Tracking as TrackingSettings
from pipeline.tracking import Tracking, TrackingAway
from telemetry.finish import finish
from telemetry.record import STDOUT, record_command
from telemetry.runfolder import RunFolder


def record_stage(
    name: str,
    command: list[str],
    out: Path,
    overrides: Sequence[str],
    note: Callable[[str], None],
    *,
    stdout: int = STDOUT,
) -> tuple[RunFolder, int]:
    """Run and profile ``command``; returns the run's folder and the command's exit code.

    ``overrides`` may set ``telemetry.*``, ``vcenter.*`` and ``tracking.*``. Raises RecipeError on
    others, and on what only a recipe's stages have. ``stdout``: as of ``record_command``.
    """
    for override in overrides:
        if override.startswith("telemetry.page_cache"):
            sentence = f"--set {override}: only a recipe's stages have inputs that are known"
            raise RecipeError("of record", [sentence])
        if not override.startswith(("telemetry.", "vcenter.", "tracking.")):
            sentence = f"--set {override}: only telemetry.*, vcenter.* and tracking.*"
            raise RecipeError("of record", [sentence])
    recipe = read_recipe("default", overrides)
    if problems := list(vcenter_problems(recipe)):
        raise RecipeError("of record", problems)
    settings = telemetry_settings(recipe)
    folder, code = record_command(name, command, out, settings, say=note, stdout=stdout)
    if not folder.profile_json.is_file():
        return folder, code
    tracking = _tracking(recipe.tracking)
    more: dict[str, Any] = {}
    if any(one.startswith("vcenter.contention.") for one in overrides):
        more["contention"] = recipe.vcenter.contention.model_dump(mode="json")
    if tracking is not None:
        more["recipe"] = {"tracking": tracking.model_dump(mode="json")}
    if more:
        try:
            folder.write({**folder.read(), **more})
            finish(folder)  # profile and report are of the record as it stands
        except OSError as error:
            note(f"lost: server and thresholds are not in the record: {error.strerror}")
    if tracking is not None:
        try:
            Tracking(tracking, out.resolve() / STORE).sync(folder)
        except TrackingAway as away:
            note(f"note: tracking away, send later with stagescope sync: {away}")
    return folder, code


def _tracking(settings: TrackingSettings) -> TrackingSettings | None:
    """The named server; without a name a recorded command stays out of MLflow."""
    uri = settings.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    return settings.model_copy(update={"uri": uri}) if uri else None
