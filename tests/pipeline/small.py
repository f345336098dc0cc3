"""The whole pipeline, small: what the tests of the runner and the command line run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SMALL = (
    "data.days=26",
    "data.customers=600",
    "data.terminals=120",
    "protocol.folds=[2018-04-02, 2018-04-03]",
    "protocol.train_days=9",
    "cluster.workers=0",
    "model.epochs=6",
    "model.patience=6",
    "model.members=1",
    "validation.bootstrap_samples=20",
    "serving.rates=[40]",
    "serving.seconds_per_rate=1",
    "telemetry.flush_s=0.2",
)
STAGES = ("ingest", "processing", "features", "training", "validation", "serving")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", *arguments]


def run_command(out: Path, *more: str) -> list[str]:
    settings = [part for one in SMALL for part in ("--set", one)]
    return command("run", "--out", str(out), *settings, *more)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def run(out: Path, *more: str, code: int = 0, **env: str) -> dict[str, Any]:
    """Run it to its end and return the record; the output is shown where the code differs."""
    done = subprocess.run(
        run_command(out, *more),
        check=False,
        capture_output=True,
        text=True,
        env=environment(**env),
        timeout=300,
    )
    assert done.returncode == code, done.stdout + done.stderr + logs(out)
    return latest(out)


def latest(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "latest" / "run.json").read_text()))


def statuses(record: dict[str, Any]) -> dict[str, str]:
    return {stage["name"]: stage["status"] for stage in record["stages"]}


def logs(out: Path) -> str:
    return "".join(path.read_text()[-2000:] for path in (out / "latest" / "logs").glob("*.log"))
