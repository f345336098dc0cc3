"""Recording somebody else's command as a stage, with its profile in MLflow where one is named."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.recipe import RecipeError, Telemetry, read_recipe
from pipeline.recipe import Tracking as TrackingSettings
from pipeline.runner import STORE
from pipeline.tracking import Tracking, TrackingAway
from telemetry.record import record_command
from telemetry.runfolder import RunFolder
from telemetry.settings import TelemetrySettings


def record_stage(
    name: str,
    command: list[str],
    out: Path,
    overrides: Sequence[str],
    note: Callable[[str], None],
) -> tuple[RunFolder, int]:
    """Run and profile ``command``; returns the run's folder and the command's exit code.

    ``overrides`` may set ``telemetry.*`` and ``tracking.*``. Raises RecipeError on others.
    """
    for override in overrides:
        if not override.startswith(("telemetry.", "tracking.")):
            raise RecipeError("of record", [f"--set {override}: only telemetry.* and tracking.*"])
    recipe = read_recipe("default", overrides)
    folder, code = record_command(name, command, out, _settings(recipe.telemetry))
    tracking = _tracking(recipe.tracking)
    if tracking is not None:
        record = folder.read()
        record["recipe"] = {"tracking": tracking.model_dump(mode="json")}
        folder.write(record)
        try:
            Tracking(tracking, out.resolve() / STORE).sync(folder)
        except TrackingAway as away:
            note(f"note: tracking away, send later with stagescope sync: {away}")
    return folder, code


def _settings(telemetry: Telemetry) -> TelemetrySettings:
    return TelemetrySettings(
        guest_hz=telemetry.guest_hz, gpu_hz=telemetry.gpu_hz, flush_s=telemetry.flush_s
    )


def _tracking(settings: TrackingSettings) -> TrackingSettings | None:
    """The named server; without a name a recorded command stays out of MLflow."""
    uri = settings.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    return settings.model_copy(update={"uri": uri}) if uri else None
