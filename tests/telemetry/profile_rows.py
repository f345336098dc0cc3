"""A run and its profile by hand, for the tests of what is told of them."""

from __future__ import annotations

from typing import Any

from telemetry.profile import Profile, Row, data_rows

START_NS = 1_795_485_600_000_000_000


def row(stage: str, entity: str, metric: str, **values: Any) -> Row:
    figures = {"mean": 2.0, "p50": 1.0, "p95": 3.0, "max": 4.0, "total": 20.0, "coverage": 0.9}
    figures |= {"total_share": 1.0} if entity == "stage" else {}
    return Row(
        stage=stage, entity=entity, metric=metric, unit="s", kind="counter", **(figures | values)
    )


def absent(stage: str, entity: str, metric: str, reason: str = "no driver here") -> Row:
    return Row(stage=stage, entity=entity, metric=metric, unit="W", kind="gauge", reason=reason)


def a_run() -> dict[str, Any]:
    """A run of which one stage was measured, one reused, and one was killed."""
    ends = {"name": None, "reused_from": None, "reason": None}
    second = 1_000_000_000
    return {
        "schema": 1, "run_id": "20261124-020000-3fa9c1", "name": "default", "status": "killed",
        "started_ns": START_NS, "ended_ns": START_NS + 20 * second, "host": "ml-1", "seed": 7,
        "clock": {"offset_start_ns": 5, "offset_end_ns": None}, "losses": ["recorder lost"],
        "environment": {"cpu": {"count": 2}},
        "stages": [
            {**ends, "name": "ingest", "status": "reused", "start_ns": None, "end_ns": None,
             "reused_from": "20261123-1", "bytes_in": None, "bytes_out": 1000},
            {**ends, "name": "features", "status": "finished", "start_ns": START_NS,
             "end_ns": START_NS + 10 * second, "bytes_in": 1000, "bytes_out": 2500,
             "rows_in": 50, "rows_out": None},
            {**ends, "name": "training", "status": "killed", "start_ns": START_NS + 11 * second,
             "end_ns": None, "reason": "the run was killed"},
        ],
    }  # fmt: skip


def a_profile() -> Profile:
    return Profile(
        rows=(
            row("features", "stage", "cpu_busy_seconds"),
            row("features", "stage", "mem_rss_bytes", total=None, max=9e9),
            row("features", "stage", "io_read_bytes", total=7e6),
            absent("features", "gpu", "energy_j"),
            *data_rows(a_run()),
        ),
        ledger=(
            {"name": "CPU of stage features", "unit": "s", "parts": {"cpu_user_seconds": 20.0},
             "witnesses": {"sampled process tree": 20.0, "wait4 rusage": 20.1},
             "remainder": -0.1, "remainder_percent": -0.498, "closes": True, "reason": None},
        ),
    )  # fmt: skip
