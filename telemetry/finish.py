"""From the record and the samples of a run to its spans, profile and report."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from telemetry.attribution import correlate
from telemetry.contention import Thresholds, flags
from telemetry.data_moved import data_moved
from telemetry.energy import energy_rows
from telemetry.hypervisor import joined
from telemetry.ledger import close_ledger
from telemetry.peaks import with_peaks
from telemetry.profile import Profile, data_rows
from telemetry.runfolder import RunFolder, write_atomically
from telemetry.verdict import verdicts

_SPANS = pa.schema(
    [
        pa.field("stage", pa.string(), False),
        pa.field("kind", pa.string(), False),
        pa.field("status", pa.string(), False),
        pa.field("start_ns", pa.int64(), False),
        pa.field("end_ns", pa.int64()),
    ]
)


def finish(folder: RunFolder) -> Profile:
    """Write spans.parquet, profile.parquet, profile.json and report.html of an ended run.

    Works for any end, and without samples: a stage without an end is listed with status and reason
    and has no metrics. Each file is replaced in one step; the same folder gives the same bytes.
    Raises OSError where a file cannot be written, and what ``RunFolder.read`` raises.
    """
    from telemetry.report import render

    run = folder.read()
    samples, hypervisor = joined(folder, run)
    spans = folder.spans()
    measured = (*correlate(samples, spans).rows, *energy_rows(samples, spans), *data_rows(run))
    profile = Profile(
        rows=tuple(with_peaks(measured, run)),
        ledger=tuple(close_ledger(samples, spans, run)),
        hypervisor=hypervisor,
    )
    if hypervisor is not None:
        hypervisor["contention"] = flags(profile, _thresholds(run))
    profile = replace(
        profile,
        verdicts=tuple(verdicts(profile, run)),
        data_moved=tuple(data_moved(profile, run)),
    )
    document = profile.to_json(run)
    _write_table(folder.spans_parquet, _spans_table(run))
    _write_table(folder.profile_parquet, profile.to_table())
    write_atomically(folder.profile_json, json.dumps(document, indent=1, allow_nan=False) + "\n")
    write_atomically(folder.report_html, render(run, document, samples))
    return profile


def _thresholds(run: Mapping[str, Any]) -> Thresholds:
    """What the run's recipe or settings say of them."""
    recipe = (run.get("recipe") or {}).get("vcenter") or {}
    return Thresholds.from_json(run.get("contention") or recipe.get("contention"))


def _spans_table(run: Mapping[str, Any]) -> pa.Table:
    """The stages that were started in this run; those that were killed have no end."""
    rows = [
        {
            "stage": stage["name"],
            "kind": "stage",
            "status": stage["status"],
            "start_ns": stage["start_ns"],
            "end_ns": stage.get("end_ns"),
        }
        for stage in run["stages"]
        if stage.get("start_ns") is not None
    ]
    return pa.Table.from_pylist(rows, schema=_SPANS)


def _write_table(path: Path, table: pa.Table) -> None:
    """Write Parquet beside ``path``, sync it and rename it over."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with scratch.open("wb") as file:
            pq.write_table(table, file)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
