"""The profile as Parquet, JSON, summary and headlines; its JSON Schema."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from telemetry.profile import Profile, data_rows
from tests.telemetry.profile_rows import a_profile, a_run

SCHEMA_FILE = Path(__file__).resolve().parents[2] / "docs/profile.schema.json"


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    document = json.loads(SCHEMA_FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)


def test_json_keeps_everything_and_its_schema_holds(
    schema: jsonschema.Draft202012Validator,
) -> None:
    profile = a_profile()
    document = json.loads(json.dumps(profile.to_json(a_run()), allow_nan=False))
    schema.validate(document)
    assert Profile.from_json(document) == profile
    assert [(stage["name"], len(stage["metrics"])) for stage in document["stages"]] == [
        ("ingest", 0),
        ("features", 9),
        ("training", 0),
    ]
    assert document["stages"][0]["reused_from"] == "20261123-1"
    assert document["stages"][2]["reason"] == "the run was killed"


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("schema",), "stagescope.profile/2"),
        (("stages", 1, "metrics", 0, "coverage"), 1.5),
        (("stages", 1, "metrics", 0, "coverage"), 0.0),
        (("stages", 1, "metrics", 0, "mean"), None),
        (("stages", 1, "metrics", 0, "p95"), None),
        (("stages", 1, "metrics", 0, "reason"), "there all the same"),
        (("stages", 1, "metrics", 3, "reason"), None),
        (("stages", 1, "metrics", 3, "total"), 0.0),
        (("stages", 1, "end_ns"), None),
        (("stages", 1, "status"), "perfect"),
        (("run", "extra"), 1),
        (("ledger", 0, "closes"), False),
    ],
)
def test_the_schema_refuses_what_a_profile_must_not_say(
    schema: jsonschema.Draft202012Validator, where: tuple[Any, ...], value: Any
) -> None:
    document = copy.deepcopy(a_profile().to_json(a_run()))
    inner: Any = document
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    assert not schema.is_valid(document)


def test_an_unknown_schema_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"schema 'x/9'.*make it anew with stagescope report RUN"):
        Profile.from_json({"schema": "x/9"})


def test_the_table_has_null_where_something_is_absent() -> None:
    table = a_profile().to_table()
    energy = next(one for one in table.to_pylist() if one["metric"] == "energy_j")
    assert energy["mean"] is None
    assert energy["total"] is None
    assert (energy["coverage"], energy["reason"]) == (0.0, "no driver here")
    assert table.column_names == [
        "stage", "entity", "metric", "unit", "kind",
        "mean", "p50", "p95", "max", "total", "coverage", "total_share", "reason",
    ]  # fmt: skip


def test_data_rows_give_bandwidth_and_growth_against_the_raw_data() -> None:
    rows = {one.metric: one for one in data_rows(a_run())}
    assert {one.stage for one in rows.values()} == {"features"}  # nothing else was measured
    assert (rows["bytes_in"].total, rows["bytes_in"].mean) == (1000.0, 100.0)
    assert rows["growth_ratio"].mean == 2.5
    assert rows["rows_out"].reason == "the stage does not say how many rows it wrote"
    assert rows["bytes_out"].p95 is None


@pytest.mark.parametrize(
    ("raw", "reason"),
    [(None, "ingest does not say how many bytes it wrote"),
     (0, "ingest, the first stage, wrote nothing")],
)  # fmt: skip
def test_growth_needs_raw_data(raw: int | None, reason: str) -> None:
    run = a_run()
    run["stages"][0]["bytes_out"] = raw
    growth = next(one for one in data_rows(run) if one.metric == "growth_ratio")
    assert (growth.mean, growth.reason) == (None, reason)


def test_only_a_window_may_have_coverage_without_figures(
    schema: jsonschema.Draft202012Validator,
) -> None:
    document = a_profile().to_json(a_run())
    metric = document["stages"][1]["metrics"][3]
    assert metric["reason"]
    metric["coverage"] = 0.4
    assert not schema.is_valid(document)
    metric["kind"] = "window"
    assert schema.is_valid(document)
