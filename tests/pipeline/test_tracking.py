"""A real MLflow store on SQLite, and a real server that is away: everything arrives, once."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from pipeline.artifact import Artifact, digest_tree
from pipeline.recipe import Tracking as TrackingSettings
from pipeline.tracking import Tracking, TrackingAway
from pipeline.tracking_sender import _own_figures
from telemetry.finish import finish
from telemetry.runfolder import RUN_SCHEMA, RunFolder
from telemetry.samples import Metric, Sample, Series
from telemetry.segments import SegmentWriter

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
ROOT = Path(__file__).parents[2]
START_NS = 1_750_000_000_000_000_000


def make_model(folder: Path, scale: float) -> Artifact:
    """An exported program and its description, as the training stage leaves them."""
    import torch

    from features.contracts import FEATURES

    class Net(torch.nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(features.mean(dim=1) * scale)

    folder.mkdir(parents=True)
    example = (torch.zeros(2, len(FEATURES)),)
    rows = {"features": {0: torch.export.Dim("rows", min=1)}}
    torch.export.save(
        torch.export.export(Net(), example, dynamic_shapes=rows), folder / "model.pt2"
    )
    (folder / "model.json").write_text(json.dumps({"features": FEATURES}))
    digest, size = digest_tree(folder)
    return Artifact(
        name="model", path=folder, digest=digest, rows=None, bytes=size, producer="run1"
    )


def make_run(path: Path, model: Artifact, status: str = "finished") -> RunFolder:
    folder = RunFolder(path)
    folder.samples.mkdir(parents=True)
    seconds = 1_000_000_000
    folder.write(
        {
            "schema": RUN_SCHEMA,
            "run_id": path.name,
            "name": "test",
            "status": status,
            "started_ns": START_NS,
            "ended_ns": START_NS + 9 * seconds,
            "recipe": {"seed": 7, "data": {"days": 3, "long": "x" * 700}},
            "stages": [
                {
                    "name": "training",
                    "status": "finished",
                    "start_ns": START_NS + seconds,
                    "end_ns": START_NS + 5 * seconds,
                    "settings": {"epochs": 3},
                    "summary": {"loss": 0.25, "device": "cpu", "folds": {"a": {"rows": 10}}},
                    "inputs": {"training_table": {**model.to_json(), "name": "training_table"}},
                    "outputs": {"model": model.to_json()},
                },
                {
                    "name": "serving",
                    "status": "skipped",
                    "start_ns": None,
                    "end_ns": None,
                    "reason": "there is no champion to serve",
                },
            ],
        }
    )
    return folder


def test_where_time_and_memory_went_is_sent_before_all_else() -> None:
    folds = {str(day): {"rows": 1, "frauds": 2, "best_epoch": 3, "loss": 0.5} for day in range(8)}
    summary = {
        "device": "cpu",
        "folds": folds,
        "rates": {"100": {"kept_up": True, "p99_ms": 3.0}},
        "steps": {"data_wait_s": 1.0, "compute_s": 2.0},
        "parts": {"queue": {"mean_ms": 0.1, "p95_ms": 0.3}},
        "memory": {"predicted": {"table_bytes": 5, "peak_bytes": 9}, "measured": {"peak_bytes": 8}},
    }
    figures = _own_figures({"summary": summary})
    assert len(figures) == 20
    assert list(figures)[:5] == [
        "steps.data_wait_s",
        "steps.compute_s",
        "parts.queue.mean_ms",
        "memory.predicted.peak_bytes",
        "memory.measured.peak_bytes",
    ]
    assert "rates.100.kept_up" not in _own_figures({"summary": {"rates": summary["rates"]}})


@pytest.fixture
def tracking(tmp_path: Path) -> Tracking:
    return Tracking(TrackingSettings(), tmp_path / "store")


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    return make_model(tmp_path / "model", 1.0)


def runs_of(tracking: Tracking) -> list[Any]:
    client = MlflowClient(tracking.uri)
    experiment = client.get_experiment_by_name("stagescope")
    return list(client.search_runs([experiment.experiment_id]))


def test_parent_and_children_with_original_times(
    tmp_path: Path, tracking: Tracking, model: Artifact
) -> None:
    (tmp_path / "store").mkdir()
    folder = make_run(tmp_path / "run1", model)
    assert tracking.sync(folder) > 0
    by_stage = {run.data.tags["stagescope.stage"]: run for run in runs_of(tracking)}
    assert set(by_stage) == {"-", "training", "serving"}
    parent, child = by_stage["-"], by_stage["training"]
    assert parent.info.start_time == START_NS // 1_000_000
    assert parent.info.end_time == START_NS // 1_000_000 + 9_000
    assert child.info.end_time == START_NS // 1_000_000 + 5_000
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.params["seed"] == "7"
    assert len(parent.data.params["data.long"]) == 500
    assert child.data.params == {"epochs": "3"}
    assert child.data.metrics == {"loss": 0.25, "folds.a.rows": 10.0}
    datasets = {one.dataset.name: one for one in child.inputs.dataset_inputs}
    assert datasets["training_table"].dataset.digest == model.digest[:32]
    assert by_stage["serving"].data.tags["mlflow.note.content"] == "there is no champion to serve"


def test_a_killed_stage_lasts_as_long_as_its_run(
    tmp_path: Path, tracking: Tracking, model: Artifact
) -> None:
    """Nobody saw its end; it went on for as long as anything is known of the run."""
    (tmp_path / "store").mkdir()
    folder = make_run(tmp_path / "run1", model, status="killed")
    record = folder.read()
    record["stages"][0] |= {"status": "killed", "end_ns": None, "outputs": {}}
    folder.write(record)
    tracking.sync(folder)
    by_stage = {run.data.tags["stagescope.stage"]: run for run in runs_of(tracking)}
    training = by_stage["training"].info
    assert (training.status, by_stage["serving"].info.status) == ("KILLED", "FINISHED")
    assert training.start_time == START_NS // 1_000_000 + 1_000
    assert training.end_time == by_stage["-"].info.end_time == START_NS // 1_000_000 + 9_000


def test_sending_twice_changes_nothing(tmp_path: Path, tracking: Tracking, model: Artifact) -> None:
    (tmp_path / "store").mkdir()
    folder = make_run(tmp_path / "run1", model)
    tracking.sync(folder)
    before = {run.info.run_id: run.to_dictionary() for run in runs_of(tracking)}
    assert tracking.sync(folder) == 0
    (folder.path / "tracking.json").unlink()  # as if killed before it was noted
    tracking.sync(folder)
    after = {run.info.run_id: run.to_dictionary() for run in runs_of(tracking)}
    assert after.keys() == before.keys()
    for run_id, run in after.items():
        assert run["data"] == before[run_id]["data"]


def test_what_was_made_anew_since_is_sent_anew(
    tmp_path: Path, tracking: Tracking, model: Artifact
) -> None:
    """As after a backfill: the windows that came late are in profile and report."""
    (tmp_path / "store").mkdir()
    folder = make_run(tmp_path / "run1", model)
    finish(folder)
    tracking.sync(folder)
    assert tracking.sync(folder) == 0
    document = json.loads(folder.profile_json.read_text())
    stage = next(one for one in document["stages"] if one["name"] == "training")
    stage["metrics"].append(
        {"entity": "vm:ml@esx-1", "metric": "vm_cpu_ready_percent", "unit": "%", "kind": "window",
         "mean": 7.5, "p50": 7.5, "p95": 7.5, "max": 7.5, "total": None, "coverage": 1.0,
         "reason": None}
    )  # fmt: skip
    folder.profile_json.write_text(json.dumps(document))
    folder.report_html.write_text("with the hypervisor")
    assert tracking.sync(folder) > 0
    by_stage = {run.data.tags["stagescope.stage"]: run for run in runs_of(tracking)}
    assert by_stage["training"].data.metrics["vcenter/cpu_ready_mean_percent"] == 7.5
    parent = by_stage["-"].info.run_id
    report = MlflowClient(tracking.uri).download_artifacts(parent, folder.report_html.name)
    assert Path(report).read_text() == "with the hypervisor"
    assert tracking.sync(folder) == 0


READY = "vcenter/cpu_ready_mean_percent"
GPU = "system/gpu/0_gpu_util_percent"
SPAN_NS = START_NS + 1_000_000_000
"""When the training begins."""


def row(entity: str, metric: str, **figures: float) -> dict[str, Any]:
    """A row of profile.json."""
    absent = dict.fromkeys(("mean", "p50", "p95", "max", "total", "reason"))
    known = {"entity": entity, "metric": metric, "unit": "1", "kind": "gauge", "coverage": 1.0}
    return {**absent, **known, **figures}


def ready(mean: float) -> dict[str, Any]:
    return row("vm:ml@esx-1", "vm_cpu_ready_percent", mean=mean)


def tell(folder: RunFolder, *rows: dict[str, Any]) -> None:
    """Give the training's profile these rows and no others, as when it is derived anew."""
    document = json.loads(folder.profile_json.read_text())
    next(one for one in document["stages"] if one["name"] == "training")["metrics"] = rows
    folder.profile_json.write_text(json.dumps(document))


def record_gpu(folder: RunFolder, at_ms: Iterable[int]) -> None:
    """Samples of a GPU at these ms after the start of the training."""
    metric = Metric(name="gpu_util_percent", unit="%", kind="gauge", meaning="m", source="s")
    series = Series(entity="gpu:0", metric=metric)
    writer = SegmentWriter(folder.samples, "gpu", [series], host="here", period_s=0.1)
    writer.write([Sample(SPAN_NS + at * 1_000_000, series, at % 97.0) for at in at_ms])
    writer.close()


@pytest.fixture
def ended(tmp_path: Path, model: Artifact) -> RunFolder:
    """A run with a profile, which nobody has sent yet."""
    (tmp_path / "store").mkdir()
    folder = make_run(tmp_path / "run1", model)
    finish(folder)
    return folder


def figures_of(tracking: Tracking) -> dict[str, float]:
    return dict(training_of(tracking).data.metrics)


def training_of(tracking: Tracking) -> Any:
    runs = runs_of(tracking)
    return next(one for one in runs if one.data.tags["stagescope.stage"] == "training")


def history(tracking: Tracking, name: str) -> list[Any]:
    """All points of a metric of the training, by their time."""
    run_id = training_of(tracking).info.run_id
    return list(MlflowClient(tracking.uri).get_metric_history(run_id, name))


def test_a_figure_that_falls_replaces_the_higher_one(tracking: Tracking, ended: RunFolder) -> None:
    """MLflow shows the greatest of (step, time, value)."""
    for mean in (9.0, 4.0, 6.0):
        tell(ended, ready(mean))
        assert tracking.sync(ended) > 0
        assert figures_of(tracking)[READY] == mean
    points = history(tracking, READY)
    assert [(one.step, one.value) for one in points] == [(0, 9.0), (1, 4.0), (2, 6.0)]
    assert {one.timestamp for one in points} == {START_NS // 1_000_000 + 5_000}
    assert tracking.sync(ended) == 0
    tell(ended)
    tracking.sync(ended)
    assert math.isnan(figures_of(tracking)[READY]), "a figure that is absent now must not stand"
    assert figures_of(tracking)["loss"] == 0.25


@pytest.mark.parametrize("lost", ["all", "names"])
def test_what_is_not_noted_any_more_is_replaced_all_the_same(
    tracking: Tracking, ended: RunFolder, lost: str
) -> None:
    """The note is lost, or was of a version that did not keep names."""
    record_gpu(ended, range(0, 4_000, 100))
    tell(ended, ready(9.0), row("stage", "cpu_busy_seconds", mean=1.5))
    tracking.sync(ended)
    before = [(one.timestamp, one.value) for one in history(tracking, GPU)]
    note = ended.path / "tracking.json"
    if lost == "all":
        note.unlink()
    else:
        note.write_text(json.dumps({**json.loads(note.read_text()), "names": {}}))
    tell(ended, ready(4.0))
    tracking.sync(ended)
    assert figures_of(tracking)[READY] == 4.0
    gone = {name for name, value in figures_of(tracking).items() if math.isnan(value)}
    assert gone == {"stage/cpu_cores_mean", "stage/coverage"}, "what is absent now"
    assert [(one.timestamp, one.value) for one in history(tracking, GPU)] == before


def test_a_send_that_was_broken_off_goes_on_in_its_generation(
    tracking: Tracking, ended: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_batch = MlflowClient.log_batch

    def unanswered(*arguments: Any, **named: Any) -> None:
        log_batch(*arguments, **named)
        raise ConnectionError("no answer")

    def break_off() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "log_batch", unanswered)
            with pytest.raises(TrackingAway, match="no answer"):
                tracking.sync(ended)
        tracking.retry()

    tell(ended, ready(9.0))
    tracking.sync(ended)
    tell(ended, ready(4.0))
    break_off()
    assert tracking.sync(ended) > 0
    assert [(one.step, one.value) for one in history(tracking, READY)] == [(0, 9.0), (1, 4.0)]
    tell(ended, ready(3.0))
    break_off()
    tell(ended, ready(2.0))  # before the one that was broken off went on
    tracking.sync(ended)
    assert figures_of(tracking)[READY] == 2.0


def test_a_stage_has_60_figures_however_often_they_are_sent(
    tracking: Tracking, ended: RunFolder
) -> None:
    """What is more important has no place once 60 names are taken, and what has one is kept up."""
    disks = [row(f"disk:sd{n}", "disk_read_bytes", total=9.0, p95=1.0) for n in range(40)]
    tell(ended, *disks)
    tracking.sync(ended)
    before = figures_of(tracking)
    assert len(before) == 60
    tell(ended, ready(5.0), *({**disk, "total": 3.0} for disk in disks))
    tracking.sync(ended)
    after = figures_of(tracking)
    assert after.keys() == before.keys()
    assert (after["guest/sd0_read_bytes"], after["guest/sd0_read_p95_bytes_per_s"]) == (3.0, 1.0)


def test_a_hole_that_is_filled_later_doubles_no_point(tracking: Tracking, ended: RunFolder) -> None:
    record_gpu(ended, [*range(0, 1_000, 100), *range(2_000, 4_000, 100)])
    tracking.sync(ended)
    assert len(history(tracking, GPU)) == 30
    record_gpu(ended, range(1_000, 2_000, 100))
    tell(ended, ready(5.0))
    tracking.sync(ended)
    points = history(tracking, GPU)
    assert [one.step for one in points] == list(range(0, 4_000, 100))
    assert all(one.timestamp == SPAN_NS // 1_000_000 + one.step for one in points)
    assert all(one.value == one.step % 97 for one in points)


def test_points_that_moved_by_some_ms_are_not_sent_again(
    tracking: Tracking, ended: RunFolder
) -> None:
    """As windows do when their host's clock was compared anew."""
    record_gpu(ended, range(0, 2_000, 100))
    tracking.sync(ended)
    for segment in ended.samples.iterdir():
        segment.unlink()
    record_gpu(ended, range(3, 4_000, 100))
    tell(ended, ready(5.0))
    tracking.sync(ended)
    steps = [one.step for one in history(tracking, GPU)]
    assert steps == [*range(0, 2_000, 100), *range(2_003, 4_000, 100)]


def test_a_series_that_grew_has_1000_points_at_most(tracking: Tracking, ended: RunFolder) -> None:
    record_gpu(ended, range(0, 1_800, 2))
    tracking.sync(ended)
    assert len(history(tracking, GPU)) == 900
    record_gpu(ended, range(1_800, 3_600, 2))
    for mean in (5.0, 4.0, 3.0):
        tell(ended, ready(mean))
        tracking.sync(ended)
        steps = [one.step for one in history(tracking, GPU)]
        assert 950 < len(steps) <= 1_000
        assert steps[:900] == list(range(0, 1_800, 2))
        assert steps[-1] == 3_598, "what is new reaches to the stage's end"


def test_a_stage_may_have_an_apostrophe(
    tmp_path: Path, tracking: Tracking, model: Artifact
) -> None:
    (tmp_path / "store").mkdir()
    folder = make_run(tmp_path / "run1", model)
    record = folder.read()
    record["stages"][0]["name"] = "bob's train"
    folder.write(record)
    for _ in range(2):
        tracking.sync(folder)
        names = [run.data.tags["stagescope.stage"] for run in runs_of(tracking)]
        assert sorted(names) == ["-", "bob's train", "serving"]
        (folder.path / "tracking.json").unlink()


def test_promotion_moves_the_alias_and_the_champion_comes_back_whole(
    tmp_path: Path, tracking: Tracking, model: Artifact
) -> None:
    (tmp_path / "store").mkdir()
    assert tracking.champion() is None
    folder = make_run(tmp_path / "run1", model, status="running")
    tracking.promote(folder, model, compared_with=None)
    first = tracking.champion()
    assert first is not None
    assert (first.version, first.compared_with) == ("1", "none")
    assert first.artifact.digest == model.digest
    assert first.artifact.path != model.path
    better = make_model(tmp_path / "better", 2.0)
    tracking.promote(make_run(tmp_path / "run2", better), better, compared_with=model.digest)
    second = tracking.champion()
    assert second is not None
    assert (second.version, second.compared_with) == ("2", model.digest)
    assert second.artifact.digest == better.digest


def test_the_logged_model_answers_any_batch(
    tmp_path: Path, tracking: Tracking, model: Artifact
) -> None:
    import numpy as np

    (tmp_path / "store").mkdir()
    tracking.promote(make_run(tmp_path / "run1", model), model, compared_with=None)
    loaded = mlflow.pyfunc.load_model("models:/card-fraud@champion")
    signature = loaded.metadata.signature
    assert [tuple(one.shape) for one in signature.inputs.inputs] == [(-1, 15)]
    for rows in (1, 2, 7, 500):
        features = np.full((rows, 15), 2.0, dtype=np.float32)
        assert np.allclose(loaded.predict(features), 1 / (1 + np.exp(-2.0)), atol=1e-6)


def test_an_absent_server_is_a_sentence_and_gets_everything_later(
    tmp_path: Path, model: Artifact
) -> None:
    (tmp_path / "store").mkdir()
    port = free_port()
    settings = TrackingSettings(uri=f"http://127.0.0.1:{port}", timeout_s=2)
    folder = make_run(tmp_path / "run1", model)
    tracking = Tracking(settings, tmp_path / "store")
    with pytest.raises(TrackingAway, match=f"127.0.0.1:{port}"):
        tracking.sync(folder)
    begin = time.monotonic()
    with pytest.raises(TrackingAway):
        tracking.sync(folder)
    assert time.monotonic() - begin < 1, "a server that is away must not be asked again and again"
    with server(tmp_path / "server", port):
        late = Tracking(settings, tmp_path / "store")
        assert late.sync(folder) > 0
        assert late.sync(folder) == 0
        runs = MlflowClient(settings.uri).search_runs(["1"])
        assert sorted(run.data.tags["stagescope.stage"] for run in runs) == [
            "-",
            "serving",
            "training",
        ]
        assert min(run.info.start_time for run in runs) == START_NS // 1_000_000
        finish(folder)
        record_gpu(folder, range(0, 1_000, 100))
        for rows in ((ready(9.0),), (ready(4.0),), ()):
            tell(folder, *rows)
            assert late.sync(folder) > 0
            assert [one.step for one in history(late, GPU)] == list(range(0, 1_000, 100))
        assert [one.step for one in history(late, READY)] == [0, 1, 2]
        assert math.isnan(figures_of(late)[READY])


ASKING = """
import sys
from pathlib import Path
from pipeline.recipe import Tracking as TrackingSettings
from pipeline.tracking import Tracking, TrackingAway
tracking = Tracking(TrackingSettings(uri="http://127.0.0.1:1", timeout_s=1), Path("."))
try:
    tracking.champion()
except TrackingAway as away:
    assert "http://127.0.0.1:1" in str(away), away
from mlflow.tracking.request_header.registry import _request_header_provider_registry
print(sorted(type(one).__name__ for one in _request_header_provider_registry))
print(sorted({"feast", "torch"} & sys.modules.keys()))
"""


def test_feast_is_asked_for_no_headers_of_requests(tmp_path: Path) -> None:
    """It has none for ours, and to ask it would import it, and torch."""
    plugins = entry_points(group="mlflow.request_header_provider")
    assert "feast" in plugins.names, "Feast is no plugin of MLflow any more: nothing to leave out"
    done = subprocess.run([sys.executable, "-c", ASKING], check=True, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": str(ROOT)},
                          stdout=subprocess.PIPE, text=True)  # fmt: skip
    asked, imported = done.stdout.splitlines()
    assert asked == "['DatabricksRequestHeaderProvider', 'DefaultRequestHeaderProvider']"
    assert imported == "[]"


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextmanager
def server(folder: Path, port: int) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
            *("--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
            *("--artifacts-destination", str(folder / "artifacts")),
        ],
        # Its job runner is for evaluations, and takes as long to start as all the rest.
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "the MLflow server did not start"
                time.sleep(0.3)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
