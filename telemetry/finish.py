"""From the record and the samples of a run to its spans, profile and report."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from telemetry.attribution import Row, correlate
from telemetry.ledger import close_ledger
from telemetry.profile import Profile
from telemetry.runfolder import RunFolder, write_atomically
from telemetry.segments import read_samples

DATA = "data"
"""Entity of a stage's own account: bytes of its inputs and outputs."""


def finish(folder: RunFolder) -> Profile:
    """Write spans.parquet, profile.parquet, profile.json and report.html of an ended run.

    Works for any end: stages without a span are listed without metrics. Each file is replaced in
    one step; the same folder gives the same bytes.
    """
    from telemetry.report import render

    record = folder.read()
    samples = read_samples(folder.samples)
    spans = folder.spans()
    rows = [*correlate(samples, spans), *_data_rows(record)]
    profile = Profile(rows=tuple(rows))
    fields = profile.to_json(record, close_ledger(samples, spans, record))
    _write_table(folder.spans_parquet, _spans_table(record))
    _write_table(folder.profile_parquet, profile.to_table())
    write_atomically(folder.profile_json, json.dumps(fields, indent=1, allow_nan=False) + "\n")
    write_atomically(folder.report_html, render(record, fields, samples))
    return profile


def _data_rows(record: Mapping[str, Any]) -> Iterator[Row]:
    """What each stage read and left, and how that compares with the first stage's output."""
    raw = next((stage.get("bytes_out") for stage in record["stages"]), None)
    for stage in record["stages"]:
        if stage.get("end_ns") is None:
            continue
        bytes_in, bytes_out = stage.get("bytes_in"), stage.get("bytes_out")
        yield _data(stage["name"], "bytes_in", "B", bytes_in, "the stage did not say what it read")
        yield _data(stage["name"], "bytes_out", "B", bytes_out, "the stage left no outputs")
        ratio = bytes_out / raw if bytes_out is not None and raw else None
        yield _data(stage["name"], "growth_ratio", "1", ratio, "no raw data to compare with")


def _data(stage: str, metric: str, unit: str, value: float | None, reason: str) -> Row:
    if value is None:
        return Row(
            stage=stage, entity=DATA, metric=metric, unit=unit, kind="gauge", reason=reason
        )
    level = None if unit == "B" else float(value)
    return Row(
        stage=stage,
        entity=DATA,
        metric=metric,
        unit=unit,
        kind="counter" if unit == "B" else "gauge",
        mean=level,
        max=level,
        total=float(value) if unit == "B" else None,
        coverage=1.0,
    )


def _spans_table(record: Mapping[str, Any]) -> pa.Table:
    names = ("name", "status", "start_ns", "end_ns", "reused_from")
    schema = pa.schema(
        [
            ("stage", pa.string()),
            ("status", pa.string()),
            ("start_ns", pa.int64()),
            ("end_ns", pa.int64()),
            ("reused_from", pa.string()),
        ]
    )
    rows = [[stage.get(name) for name in names] for stage in record["stages"]]
    return pa.Table.from_arrays(
        [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(schema)],
        schema=schema,
    )


def _write_table(path: Path, table: pa.Table) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, scratch)
    scratch.replace(path)
