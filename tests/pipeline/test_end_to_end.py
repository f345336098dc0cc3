"""One small run with two GPUs, looked at from all sides: folder, MLflow and its page, server, gate.

The run is made once for all tests of this file. The GPUs are the C library with NVML's symbols.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.recipe import Tracking as TrackingSettings
from pipeline.tracking import Tracking, TrackingAway
from telemetry.profile import is_whole
from telemetry.runfolder import RunFolder, Span, find_run
from tests.browser import Browser, Page
from tests.live_browser import text_when_there
from tests.nvml import build as nvml
from tests.pipeline.small import STAGES, command, environment, latest, run, run_command, statuses
from tests.pipeline.test_tracking import free_port, server
from training.models.mlp import INPUTS

pytestmark = [
    pytest.mark.needs("gcc"),
    # MLflow's own store uses it.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]
ROOT = Path(__file__).parents[2]
GPUS = ("gpu:0", "gpu:1")
REFUSING = ("validation.floor=0.999", "tracking.registered_model=strict")


@dataclass(frozen=True, kw_only=True)
class Made:
    """The run, its folder, and what the command printed."""

    out: Path
    folder: RunFolder
    record: dict[str, Any]
    output: str

    @property
    def spans(self) -> dict[str, Span]:
        return {span.stage: span for span in self.folder.spans()}

    @property
    def profile(self) -> dict[str, Any]:
        return dict(json.loads(self.folder.profile_json.read_text()))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    base = tmp_path_factory.mktemp("end-to-end")
    out = base / "runs"
    env = nvml.environment(nvml.build(base / "nvml"), "gpus=2")
    done = subprocess.run(
        run_command(out),
        capture_output=True,
        text=True,
        check=False,
        env={**environment(), **env},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = latest(out)
    folder = find_run(record["run_id"], out)
    return Made(out=out, folder=folder, record=record, output=done.stdout)


def stagescope(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


# The folder


def test_all_six_stages_are_finished_and_told(made: Made) -> None:
    assert made.record["status"] == "finished"
    assert made.record["losses"] == []
    assert statuses(made.record) == dict.fromkeys(STAGES, "finished")
    for name in STAGES:
        assert f"{name}: started" in made.output
        assert re.search(rf"{name}: finished in [\d.]+ s", made.output)
        assert re.search(rf"GPU in {name}: gpu:0: 50 % busy, [\d,]+ J; gpu:1: ", made.output)
    assert f"run {made.record['run_id']}: finished" in made.output
    assert f"folder: {made.folder.path}" in made.output
    assert (made.out / "latest").resolve() == made.folder.path
    ingest, serving = made.record["stages"][0], made.record["stages"][-1]
    assert ingest["rows_out"] > 10_000
    assert serving["summary"]


def test_spans_follow_each_other_within_the_run(made: Made) -> None:
    spans = [made.spans[name] for name in STAGES]
    assert made.record["started_ns"] <= spans[0].start_ns
    assert spans[-1].end_ns <= made.record["ended_ns"]
    for before, after in pairwise(spans):
        assert before.start_ns < before.end_ns <= after.start_ns
    table = pq.read_table(made.folder.spans_parquet).to_pylist()
    assert [(row["stage"], row["start_ns"], row["end_ns"]) for row in table] == [
        (span.stage, span.start_ns, span.end_ns) for span in spans
    ]


def test_the_profile_is_as_its_schema_says(made: Made) -> None:
    import jsonschema  # type: ignore[import-untyped]

    schema = json.loads((ROOT / "docs/profile.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(made.profile)
    assert [stage["name"] for stage in made.profile["stages"]] == list(STAGES)


def test_every_stage_has_its_cpu_memory_io_and_data_well_covered(made: Made) -> None:
    for stage in made.profile["stages"]:
        rows = {(row["entity"], row["metric"]): row for row in stage["metrics"]}
        for metric in ("cpu_busy_seconds", "mem_rss_bytes", "io_write_bytes"):
            row = rows["stage", metric]
            assert row["reason"] is None, row
            assert row["coverage"] > 0.9, (stage["name"], row)
            assert row["mean"] > 0
        assert rows["machine", "cpu_busy_seconds"]["coverage"] > 0.9
        assert rows["data", "bytes_out"]["total"] > 0
        assert rows["data", "growth_ratio"]["mean"] > 0


def test_every_stage_has_utilization_power_and_energy_of_each_gpu(made: Made) -> None:
    for stage in made.profile["stages"]:
        rows = {(row["entity"], row["metric"]): row for row in stage["metrics"]}
        assert sorted({entity for entity, _ in rows if entity.startswith("gpu:")}) == list(GPUS)
        seconds = made.spans[stage["name"]].seconds
        for gpu in GPUS:
            busy, power, energy = (
                rows[gpu, metric] for metric in ("gpu_util_percent", "power_instant_w", "energy_j")
            )
            for row in (busy, power, energy):
                assert row["coverage"] > 0.9, (stage["name"], row)
            assert busy["mean"] == 50
            assert 90 < power["mean"] < 360
            assert energy["total"] == pytest.approx(energy["mean"] * seconds, rel=0.01)
            # Two witnesses: the counter, which moves ten times a second, and the power's integral.
            assert energy["total"] == pytest.approx(power["total"], rel=0.05, abs=40)


def test_the_ledger_holds_what_was_measured_twice(made: Made) -> None:
    closes = {entry["name"]: entry["closes"] for entry in made.profile["ledger"]}
    assert closes["time of the run"] is True
    for gpu in GPUS:
        assert closes[f"energy of {gpu}, stages and between"] is True
        assert closes[f"energy of {gpu}, counter and power"] is True
    assert {f"CPU of stage {name}" for name in STAGES} <= closes.keys()
    told = [entry for entry in made.profile["ledger"] if entry["closes"] is not True]
    assert all(entry["reason"] for entry in told)


def test_every_stage_says_what_it_moved_and_training_what_an_epoch_took(made: Made) -> None:
    profile = made.profile
    totals = {  # of what is told for the whole stage: a window of GPM may be a part of a short one
        (stage["name"], f"{row['entity']} {row['metric']}"): row["total"]
        for stage in profile["stages"]
        for row in stage["metrics"]
        if is_whole(row["total_share"], row["coverage"])
    }
    told = {entry["stage"]: entry for entry in profile["data_moved"]}
    assert list(told) == list(STAGES)
    for name, entry in told.items():
        for one in entry["moved"]:
            assert one["bytes"] == totals.get((name, one["source"])), one
            assert (one["bytes"] is None) == bool(one["reason"]), one
        assert entry["growth_ratio"] is not None
        known = {one["what"] for one in entry["moved"] if one["bytes"] is not None}
        assert {"read by calls", "written by calls", "input", "output"} <= known
    training = told.pop("training")
    assert training["epochs"] == totals["training", "app app_epochs"] > 0
    assert training["bytes_per_epoch"] * training["epochs"] == pytest.approx(
        totals["training", "app app_epoch_bytes"]
    )
    row_bytes = 4 * (INPUTS + 1)  # float32: prepared inputs and the label
    assert totals["training", "app app_epoch_bytes"] == pytest.approx(
        totals["training", "app app_samples"] * row_bytes
    )
    (to_gpu,) = (one for one in training["moved"] if one["source"].startswith("app ")
                 and one["what"] == "to the GPU")  # fmt: skip
    assert to_gpu["reason"] == "ran on the CPU: nothing is copied to a GPU"
    assert {entry["epochs"] for entry in told.values()} == {None}


def test_the_profile_and_the_report_are_printed_again(made: Made) -> None:
    run_id = made.record["run_id"]
    shown = stagescope("profile", run_id, "--out", str(made.out), "--stage", "training")
    assert re.search(r"│ gpu:1 +│ energy_j", shown)
    assert re.search(r"│ stage +│ cpu_busy_seconds", shown)
    assert json.loads(stagescope("profile", str(made.folder.path), "--json")) == made.profile
    before = (made.folder.profile_json.read_bytes(), made.folder.report_html.read_bytes())
    printed = stagescope("report", run_id, "--out", str(made.out)).strip()
    assert Path(printed) == made.folder.report_html
    after = (made.folder.profile_json.read_bytes(), made.folder.report_html.read_bytes())
    assert after == before, "the same folder gives the same profile and report"


@pytest.mark.needs("chromium")
def test_the_report_opens_without_an_error_and_shows_every_stage(made: Made) -> None:
    page = Browser().open(made.folder.report_html.as_uri())
    assert page.console == []
    text = words(page)
    for name in (*STAGES, made.record["run_id"], "gpu:0", "gpu:1"):
        assert name in text


# MLflow, embedded


@pytest.fixture(scope="module")
def stored(made: Made) -> dict[str, Any]:
    """The runs of the embedded store by stage; the parent under ``-``."""
    return runs_of(f"sqlite:///{made.out.resolve()}/.stagescope/mlflow.db")


def runs_of(uri: str) -> dict[str, Any]:
    client = client_of(uri)
    experiment = client.get_experiment_by_name("stagescope")
    found = client.search_runs([experiment.experiment_id])
    by_stage = {one.data.tags["stagescope.stage"]: one for one in found}
    assert len(by_stage) == len(found), "a run is there twice"
    return by_stage


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri, uri)


def has_it_all(client: Any, stored: dict[str, Any], made: Made) -> None:
    """Parent and children with times, parameters, data sets, summaries, series and artifacts."""
    assert set(stored) == {"-", *STAGES}
    parent = stored["-"]
    assert parent.info.run_name == made.record["run_id"]
    assert parent.info.status == "FINISHED"
    assert parent.info.start_time == made.record["started_ns"] // 1_000_000
    assert parent.info.end_time == made.record["ended_ns"] // 1_000_000
    assert parent.data.params["data.customers"] == "600"
    artifacts = {one.path: one.file_size for one in client.list_artifacts(parent.info.run_id)}
    for path in (
        made.folder.profile_json,
        made.folder.profile_parquet,
        made.folder.report_html,
    ):
        assert artifacts[path.name] == path.stat().st_size
    for stage in made.record["stages"]:
        child, span = stored[stage["name"]], made.spans[stage["name"]]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.info.status == "FINISHED"
        assert child.info.start_time == span.start_ns // 1_000_000
        assert child.info.end_time == span.end_ns // 1_000_000
        said = {
            (context, one["name"], one["digest"][:32])
            for context, ones in (("input", stage["inputs"]), ("output", stage["outputs"]))
            for one in ones.values()
        }
        assert said == {
            (one.tags[0].value, one.dataset.name, one.dataset.digest)
            for one in child.inputs.dataset_inputs
        }
        summary = {name for name in child.data.metrics if not name.startswith("system/")}
        assert len(summary) <= 60, sorted(summary)
        assert {"stage/cpu_seconds", "gpu/0_energy_j", "gpu/1_energy_from_power_j"} <= summary
        profiled = next(one for one in made.profile["stages"] if one["name"] == stage["name"])
        energy = next(
            row["total"]
            for row in profiled["metrics"]
            if (row["entity"], row["metric"]) == ("gpu:1", "energy_j")
        )
        assert child.data.metrics["gpu/1_energy_j"] == pytest.approx(energy)


SERIES = ("gpu/0_power_instant_w", "gpu/1_gpu_util_percent", "guest/cpu_user_cores")


def has_series(
    client: Any, stored: dict[str, Any], made: Made, stages: tuple[str, ...], every: bool
) -> None:
    """The series, of which a server need show only some: each request costs it its time."""
    for name in stages:
        child, span = stored[name], made.spans[name]
        names = [one for one in child.data.metrics if one.startswith("system/")]
        wanted = {f"system/{one}" for one in (*SERIES, "stage/cpu_user_cores")}
        assert wanted <= set(names)
        for metric in names if every else sorted(wanted):
            points = client.get_metric_history(child.info.run_id, metric)
            times = [point.timestamp for point in points]
            assert 0 < len(points) <= 1_000
            assert len(set(times)) == len(times), "a point is there twice"
            assert span.start_ns // 1_000_000 <= min(times)
            assert max(times) <= span.end_ns // 1_000_000
        power = client.get_metric_history(child.info.run_id, "system/gpu/0_power_instant_w")
        assert len(power) > 0.7 * 10 * span.seconds - 2
        assert {point.value for point in power} != {power[0].value}


def test_mlflow_has_parent_children_and_what_belongs_to_them(
    made: Made, stored: dict[str, Any]
) -> None:
    client = client_of(f"sqlite:///{made.out.resolve()}/.stagescope/mlflow.db")
    has_it_all(client, stored, made)
    has_series(client, stored, made, STAGES, every=True)


def test_the_model_is_registered_and_champion(made: Made, stored: dict[str, Any]) -> None:
    client = client_of(f"sqlite:///{made.out.resolve()}/.stagescope/mlflow.db")
    version = client.get_model_version_by_alias("card-fraud", "champion")
    training = next(one for one in made.record["stages"] if one["name"] == "training")
    assert version.run_id == stored["training"].info.run_id
    assert version.tags["stagescope.digest"] == training["outputs"]["model"]["digest"]
    outputs = stored["training"].outputs.model_outputs
    assert [f"models:/{one.model_id}" for one in outputs] == [version.source]
    verdict = made.record["stages"][4]["outputs"]["verdict"]
    said = json.loads((Path(verdict["path"]) / "verdict.json").read_text())
    assert said["promote"] is True


def test_a_second_sync_sends_nothing(made: Made) -> None:
    run_id = made.record["run_id"]
    assert stagescope("sync", run_id, "--out", str(made.out)) == f"{run_id}: complete\n"


# MLflow, a server that was away for the whole run


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server that has the run, brought to it when it came back."""

    uri: str
    tracking: Tracking
    folder: RunFolder


@pytest.fixture(scope="module")
def served(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    base = tmp_path_factory.mktemp("served")
    folder = RunFolder(base / made.folder.path.name)
    shutil.copytree(made.folder.path, folder.path)
    (folder.path / "tracking.json").unlink()
    port = free_port()
    settings = TrackingSettings(uri=f"http://127.0.0.1:{port}", timeout_s=30)
    with pytest.raises(TrackingAway, match=str(port)):
        Tracking(settings, base).sync(folder)
    with server(base / "server", port):
        tracking = Tracking(settings, base)
        assert tracking.sync(folder) > len(STAGES) * 5
        yield Served(uri=settings.uri, tracking=tracking, folder=folder)


def test_a_server_that_was_away_gets_everything_once(made: Made, served: Served) -> None:
    client = client_of(served.uri)
    before = runs_of(served.uri)
    has_it_all(client, before, made)
    has_series(client, before, made, ("ingest", "training"), every=False)
    assert served.tracking.sync(served.folder) == 0
    (served.folder.path / "tracking.json").unlink()  # as if killed before it was noted
    served.tracking.sync(served.folder)
    after = runs_of(served.uri)
    assert {name: one.to_dictionary()["data"] for name, one in after.items()} == {
        name: one.to_dictionary()["data"] for name, one in before.items()
    }
    has_series(client, after, made, ("training",), every=False)


@pytest.mark.needs("chromium")
def test_mlflow_draws_the_series_on_its_own_page(served: Served) -> None:
    client = client_of(served.uri)
    experiment = client.get_experiment_by_name("stagescope").experiment_id
    run_id = runs_of(served.uri)["training"].info.run_id
    url = f"{served.uri}/#/experiments/{experiment}/runs/{run_id}/system-metrics"
    charts = (*SERIES, "stage/mem_rss_bytes")
    lines = [f"training (system/{chart})" for chart in charts]
    # Charts are drawn when they come into view: a window as high as the page shows all of them.
    text = text_when_there(url, lines, height=12_000, timeout_s=300)
    for section in ("gpu", "guest", "stage"):
        found = re.search(rf"system/{section}\s+\((\d+)\)", text)
        assert found, text
        assert int(found[1]) >= 4
    for chart, line in zip(charts, lines, strict=True):
        assert chart.partition("/")[2] in text.splitlines(), f"no chart of {chart}"
        assert line in text, f"no line of {chart}"


def words(page: Page) -> str:
    """The text of a page, one space between any two words."""
    visible = re.sub(r"<(script|style)\b.*?</\1>", " ", page.dom, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", visible).split())


# Serving


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``stagescope serve`` as a process, and its address."""
    process = subprocess.Popen(
        command("serve", *arguments, "--port", "0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.match(r"serving at http://([\d.:]+),", line):
                yield process, found[1]
                break
        else:
            pytest.fail(process.stderr.read() if process.stderr else "it said nothing")
    finally:
        process.kill()
        process.communicate()


def test_serve_answers_the_protocol_and_ends_in_peace(made: Made) -> None:
    import httpx
    from tritonclient import http

    with serving(str(made.folder.path), "--out", str(made.out)) as (process, address):
        assert process.stdout is not None
        example = process.stdout.readline()
        with http.InferenceServerClient(address) as client:
            assert client.is_server_ready()
            assert client.is_model_ready("card-fraud")
            inputs = []
            for name, kind, values in (
                ("customer_id", "INT64", np.array([1, 2, 3])),
                ("terminal_id", "INT64", np.array([1, 1, 2])),
                ("amount", "FP64", np.array([12.5, 300.0, 0.01])),
                ("event_time", "INT64", np.full(3, 1_524_700_800_000_000_000)),
            ):
                inputs.append(http.InferInput(name, [3], kind))
                inputs[-1].set_data_from_numpy(values)
            answer = client.infer("card-fraud", inputs).as_numpy("fraud_probability")
            assert answer.shape == (3,)
            assert answer.dtype == np.float32
            assert ((answer >= 0) & (answer <= 1)).all()
        infer = f"http://{address}/v2/models/card-fraud/infer"
        taught = re.fullmatch(rf"curl {infer} -d '(.+)'\n", example)
        assert taught, example
        assert httpx.post(infer, content=taught[1]).status_code == 200
        for path, content, status in (
            (infer, "{nonsense", 400),
            (infer, "{}", 400),
            (infer.replace("card-fraud", "nobody"), "{}", 404),
            (infer, "x" * (5 << 20), 413),
        ):
            refused = httpx.post(path, content=content)
            assert refused.status_code == status
            assert len(refused.json()["error"].split()) > 2
        assert httpx.get(f"http://{address}/v2/health/ready").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


# Again, and refused. These come last: they move ``latest``.


def test_again_all_stages_are_reused_and_nothing_is_measured_twice(made: Made) -> None:
    record = run(made.out)
    assert record["run_id"] != made.record["run_id"]
    assert statuses(record) == dict.fromkeys(STAGES, "reused")
    assert {stage["reused_from"] for stage in record["stages"]} == {made.record["run_id"]}
    planned = json.loads(
        stagescope(
            *("plan", "--json", "--out", str(made.out)),
            *run_command(made.out)[run_command(made.out).index(str(made.out)) + 1 :],
        )
    )
    assert [stage["action"] for stage in planned["stages"][:4]] == ["reuse"] * 4


def test_a_run_whose_reader_left_goes_on_to_its_end(made: Made) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        run_command(made.out),
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
        env=environment(),
        timeout=120,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    record = latest(made.out)
    assert record["run_id"] != made.record["run_id"]
    assert record["status"] == "finished"


def test_a_refused_model_is_never_served(made: Made) -> None:
    settings = [part for one in REFUSING for part in ("--set", one)]
    record = run(made.out, *settings)
    assert record["status"] == "finished"
    assert statuses(record) == {
        **dict.fromkeys(STAGES[:4], "reused"),
        "validation": "finished",
        "serving": "skipped",
    }
    reason = record["stages"][-1]["reason"]
    assert re.match(r"there is no champion to serve \(gate: .*0\.999", reason), reason
    client = client_of(f"sqlite:///{made.out.resolve()}/.stagescope/mlflow.db")
    assert [one.name for one in client.search_registered_models()] == ["card-fraud"]
    said = stagescope("serve", "latest", "--out", str(made.out), code=2)
    assert "no version of strict is champion" in said
