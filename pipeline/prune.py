"""Deleting old runs, and the outputs that only they used."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pipeline.artifact import STORE, Store
from telemetry.runfolder import LATEST, list_runs, point_latest_at


def prune(out: Path, keep: int) -> tuple[int, int]:
    """Delete all but the last ``keep`` ended runs; returns how many, and the bytes freed.

    A run that is going on is never deleted, and neither is an output that a kept run made or used.
    """
    store = Store(out.resolve() / STORE)
    folders = list_runs(out)
    records = [folder.read() for folder in folders]
    ended = [index for index, record in enumerate(records) if record["status"] != "running"]
    doomed = set(ended[: max(0, len(ended) - keep)])
    for index in doomed:
        shutil.rmtree(folders[index].path)
    kept = [record for index, record in enumerate(records) if index not in doomed]
    freed = store.prune(set().union(*map(_used, kept))) if doomed else 0
    latest = out / LATEST
    if latest.is_symlink() and not latest.exists():
        latest.unlink()
        if kept:
            point_latest_at(out, kept[-1]["run_id"])
    return len(doomed), freed


def _used(record: dict[str, Any]) -> set[str]:
    reused = {stage.get("reused_from") for stage in record["stages"]}
    return {record["run_id"], *filter(None, reused)}
