"""Ended runs in a folder, made up, and sides of them: what is published and compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from telemetry.profile import Profile, Row
from telemetry.publish import reference_of
from telemetry.reference import Reference
from telemetry.runfolder import RunFolder

START_NS = 1_795_485_600_000_000_000
STAGES = ("processing", "training")
RECIPE = {"name": "lab", "seed": 7, "data": {"source": "generator", "path": "/home/ann/in"}}
ENVIRONMENT = {"host": "node7", "cpu": {"model": "EPYC", "count": 8}, "cpu_usable": 8}
QUIET = (1.0, 1.004, 0.997, 1.002, 0.999)
"""Five runs that vary by little: shares of a time."""


def made_run(
    out: Path,
    number: int,
    seconds: Mapping[str, float],
    *,
    rows: Sequence[Row] = (),
    recipe: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    verdict: str | None = None,
    ended: Mapping[str, str] | None = None,
    **more: Any,
) -> RunFolder:
    """A finished run whose stages took so long; ``rows`` beside the stages' CPU time.

    ``verdict``: what held the training back; ``ended``: how stages did that did not finish.
    """
    folder = RunFolder(out / f"2026-{number:02d}")
    folder.path.mkdir(parents=True)
    at, stages, found = START_NS + number * 10**12, [], list(rows)
    for name, took in seconds.items():
        end = at + round(took * 1e9)
        stages.append(
            {"name": name, "status": (ended or {}).get(name, "finished"), "start_ns": at}
            | {"end_ns": end}
            | {"reused_from": None, "reason": None}
        )
        found.append(cpu(name, 0.8 * took))
        at = end
    run = {
        "schema": 1,
        "run_id": folder.path.name,
        "name": "lab",
        "status": "finished",
        "started_ns": START_NS + number * 10**12,
        "ended_ns": at,
        "host": "node7",
        "clock": {"offset_start_ns": 0, "offset_end_ns": 0},
        "environment": dict(environment or ENVIRONMENT),
        "recipe": dict(recipe or RECIPE),
        "seed": 7,
        "stages": stages,
        "losses": [],
        **more,
    }
    folder.write(run)
    told = () if verdict is None else ({"stage": "training", "verdict": verdict},)
    profile = Profile(rows=tuple(found), verdicts=told)
    folder.profile_json.write_text(json.dumps(profile.to_json(run)))
    return folder


def cpu(stage: str, seconds: float) -> Row:
    return row(stage, "stage", "cpu_busy_seconds", "s", seconds)


def row(stage: str, entity: str, metric: str, unit: str, total: float) -> Row:
    return Row(
        stage=stage, entity=entity, metric=metric, unit=unit, kind="counter", mean=total, p50=total,
        p95=total, max=total, total=total, coverage=1.0,
    )  # fmt: skip


def side(
    out: Path, name: str, *, training: float = 10.0, runs: int = 5, spread: float = 1.0, **more: Any
) -> Reference:
    noise = [1 + spread * (one - 1) for one in QUIET][:runs]
    folders = [
        made_run(out / name, i, {"processing": 4 * (2 - one), "training": training * one}, **more)
        for i, one in enumerate(noise, 1)
    ]
    return reference_of(name, folders)
