"""A real MLflow store on SQLite, and a real server that is away: everything arrives, once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
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

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
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
