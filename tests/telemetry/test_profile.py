"""The profile as Parquet, JSON, summary and headlines; its JSON Schema."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from telemetry.profile import SUMMARY_LIMIT, Profile, Row, data_rows, headlines, summary

SCHEMA_FILE = Path(__file__).resolve().parents[2] / "docs/profile.schema.json"
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


def test_headlines_show_every_stage_and_say_why_there_is_no_gpu() -> None:
    ingest, features, training = headlines(a_profile(), a_run())
    assert (features.seconds, features.cpu_s, features.cores) == (10.0, 20.0, 2.0)
    assert (features.rss_peak_bytes, features.read_bytes, features.write_bytes) == (9e9, 7e6, None)
    assert (features.gpu, features.coverage) == ("no driver here", 0.9)
    assert (ingest.seconds, ingest.cpu_s, ingest.reused_from) == (None, None, "20261123-1")
    assert (training.seconds, training.gpu, training.reason) == (None, "", "the run was killed")


def test_headlines_show_each_gpu() -> None:
    rows = (
        row("features", "gpu:0", "gpu_util_percent", mean=91.6),
        row("features", "gpu:0", "energy_j", total=12345.6, coverage=1.0),
        row("features", "gpu:1", "gpu_util_percent", mean=3.0),
        absent("features", "gpu:1", "energy_j"),
    )
    line = headlines(Profile(rows=rows), a_run())[1]
    assert line.gpu == "gpu:0: 92 % busy, 12,346 J; gpu:1: 3 % busy"
    lost = replace(rows[1], coverage=0.4)
    line = headlines(Profile(rows=(lost,)), a_run())[1]
    assert line.gpu == "gpu:0: 12,346 J in 40 % of it"


def test_headlines_tell_no_part_as_the_whole() -> None:
    """The recorder was lost: cores are of what it saw, sums are the kernel's at the end or none."""
    half = {"coverage": 0.5, "total_share": 0.5}
    rows = (
        row("features", "stage", "cpu_busy_seconds", **half),
        row("features", "stage", "io_read_bytes", total=7e6, **half),
    )
    run = a_run()
    line = headlines(Profile(rows=rows), run)[1]
    assert (line.cpu_s, line.cores, line.read_bytes, line.coverage) == (None, 2.0, None, 0.5)
    run["stages"][1]["rusage"] = {"user_s": 30.0, "system_s": 9.5, "read_bytes": 8192}
    line = headlines(Profile(rows=rows), run)[1]
    assert (line.cpu_s, line.read_bytes) == (39.5, 8192)


def test_the_summary_has_only_what_was_measured() -> None:
    figures = summary(a_profile(), "features")
    assert figures["stage/cpu_seconds"] == 20.0
    assert figures["stage/cpu_cores_p95"] == 3.0
    assert figures["stage/coverage"] == 0.9
    assert figures["data/growth_ratio"] == 2.5
    assert not [name for name in figures if name.startswith("gpu/")]
    assert "data/rows_out" not in figures
    assert summary(a_profile(), "training") == {}


def test_the_summary_is_bounded_and_keeps_the_important() -> None:
    rows = [row("features", "stage", "cpu_busy_seconds")]
    for place in range(40):
        rows += [
            row("features", f"gpu:{place}", "energy_j", coverage=1.0),
            row("features", "net:lo", "net_rx_bytes", coverage=1.0),
            row("features", f"disk:nvme{place} n&1", "disk_read_bytes", coverage=1.0),
        ]
    figures = summary(Profile(rows=tuple(rows)), "features")
    assert len(figures) == SUMMARY_LIMIT
    assert figures["stage/cpu_seconds"] == 20.0
    assert figures["gpu/all_energy_j"] == 40 * 20.0
    assert "guest/nvme0 n_1_read_bytes" in figures
    assert not [name for name in figures if "lo_rx" in name]


def test_of_many_gpus_each_figure_is_one_and_the_hypervisor_is_there() -> None:
    rows = [row("features", "vm:ml@esx-1", "vm_cpu_ready_percent", mean=7.0)]
    for place in range(8):
        rows.append(row("features", f"gpu:{place}", "gpu_util_percent", mean=10.0 * place))
        rows.append(row("features", f"gpu:{place}", "energy_j", total=100.0, coverage=1.0))
    rows.append(row("features", "gpu:0/mig:0", "gpu_mem_used_bytes", max=5.0))
    assert summary(Profile(rows=tuple(rows)), "features") == {
        "vcenter/cpu_ready_mean_percent": 7.0,
        "gpu/all_util_percent": 35.0,
        "gpu/0/mig_0_mem_used_max_bytes": 5.0,
        "gpu/all_energy_j": 800.0,
    }


@pytest.mark.parametrize("lost", ["absent", "half"])
def test_of_many_gpus_a_sum_without_one_of_them_is_no_sum(lost: str) -> None:
    """One fell off the bus before the stage, or in the middle of it."""
    rows = []
    for place in range(8):
        rows.append(row("features", f"gpu:{place}", "energy_j", total=100.0, coverage=1.0))
        rows.append(row("features", f"gpu:{place}", "gpu_util_percent", mean=10.0))
    rows[6] = (
        absent("features", "gpu:3", "energy_j", "lost")
        if lost == "absent"
        else replace(rows[6], total=40.0, coverage=0.4)
    )
    assert summary(Profile(rows=tuple(rows)), "features") == {"gpu/all_util_percent": 10.0}


def test_a_total_of_a_part_of_the_stage_is_not_told_as_the_stages() -> None:
    rows = (
        row("features", "esxi:esx-1", "host_power_w", total=5e4, mean=100.0, coverage=0.5),
        row("features", "gpu:0", "power_instant_w", total=9e3, mean=90.0, coverage=0.6),
        row("features", "stage", "io_read_bytes", total=7e6, coverage=0.7, total_share=1.0),
        row("features", "stage", "io_write_bytes", total=7e6, coverage=0.5, total_share=0.5),
        row("features", "vm:a@b", "vm_cpu_used_cores", total=9.0, coverage=0.9, total_share=1.0),
    )
    assert summary(Profile(rows=rows), "features") == {
        "vcenter/host_power_mean_w": 100.0,
        "gpu/0_power_mean_w": 90.0,
        "stage/io_read_bytes": 7e6,  # its processes were watched from beginning to end
        "vcenter/cpu_used_seconds": 9.0,  # its windows reach over both ends
    }


def test_the_summary_has_the_hypervisors_figures() -> None:
    rows = (
        row("features", "vm:ml@esx-1", "vm_cpu_ready_percent", mean=7.0),
        row("features", "vm:ml@esx-1", "vm_cpu_used_cores", total=33.0, coverage=1.0),
        row(
            "features", "vm:ml@esx-1/scsi0:0", "vm_disk_read_bytes_per_s", total=9.0, coverage=0.96
        ),
        row("features", "esxi:esx-1", "host_power_w", total=5e4, coverage=0.95),
        row("features", "esxi:esx-1/gpu:0", "host_gpu_util_percent", mean=81.0),
    )
    assert summary(Profile(rows=rows), "features") == {
        "vcenter/cpu_used_seconds": 33.0,
        "vcenter/cpu_ready_mean_percent": 7.0,
        "vcenter/host_energy_j": 5e4,
        "vcenter/host_power_mean_w": 2.0,
        "vcenter/gpu_0_util_percent": 81.0,
        "vcenter/scsi0_0_read_bytes": 9.0,
    }


def test_a_vm_that_moved_has_a_figure_of_each_host() -> None:
    rows = tuple(
        row("features", f"vm:ml@{host}", "vm_cpu_ready_percent", mean=mean)
        for host, mean in (("esx-1", 1.0), ("esx-2", 8.0))
    )
    assert summary(Profile(rows=rows), "features") == {
        "vcenter/cpu_ready_mean_percent ml_esx-1": 1.0,
        "vcenter/cpu_ready_mean_percent ml_esx-2": 8.0,
    }


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
