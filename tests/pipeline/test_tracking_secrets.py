"""User and password of MLflow's address: in memory for the connection, and nowhere else."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline.plan import read_and_plan
from pipeline.recipe import RecipeError, read_recipe
from pipeline.recipe import Tracking as TrackingSettings
from pipeline.tracking import Tracking, TrackingAway
from tests.pipeline import small
from tests.pipeline.test_tracking import free_port, make_model, make_run, server

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
PASSWORD = "s3cret"
URI = "MLFLOW_TRACKING_URI"


def command(line: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if key != URI}
    return subprocess.run(
        small.command(*line),
        env={**inherited, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def telling(folder: Path) -> list[str]:
    """Files below a folder that hold the password."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return [str(path) for path in files if PASSWORD.encode() in path.read_bytes()]


def test_a_recording_tells_no_password_and_sync_takes_it_from_the_environment(
    tmp_path: Path,
) -> None:
    port, out = free_port(), tmp_path / "runs"
    uri = f"http://mlflow:{PASSWORD}@127.0.0.1:{port}"
    shown = f"http://***@127.0.0.1:{port}"
    short = ["--set", "tracking.timeout_s=1", "--out", str(out)]
    done = command(["record", "--name", "nap", *short, "--", "true"], **{URI: uri})
    assert done.returncode == 0, done.stderr
    assert f"send later with stagescope sync: {shown}: " in done.stderr.replace("\n", " ")
    record = small.latest(out)
    assert record["recipe"]["tracking"]["uri"] == shown
    assert shown in (out / "latest" / "report.html").read_text()
    said = done.stdout + done.stderr
    for env, told in (
        ({}, f"{shown}: its user and password are recorded nowhere, and {URI} is not set"),
        ({URI: f"http://a:{PASSWORD}@other.example"}, f"{URI} holds http://***@other.example"),
        ({URI: shown}, f"{URI} holds {shown}: set it to this address with both"),
        ({URI: uri}, f"{shown}: MlflowException: "),
    ):
        done = command(["sync", "--out", str(out)], **env)
        assert done.returncode == 1
        assert told in done.stderr
        said += done.stdout + done.stderr
    with server(tmp_path / "server", port):
        done = command(["sync", "--out", str(out)], **{URI: uri})
        assert re.fullmatch(rf"{record['run_id']}: \d+ records sent\n", done.stdout)
        said += done.stdout + done.stderr
        (run,) = MlflowClient(shown.replace("***@", "")).search_runs(
            ["1"], "tags.`stagescope.stage` = '-'"
        )
        assert run.data.params["tracking.uri"] == shown
        note = out.resolve() / "latest" / "tracking.json"
        assert json.loads(note.read_text())["uri"] == shown
        note.write_text(note.read_text().replace(shown, uri))  # as an older version noted it
        assert "complete" in command(["sync", "--out", str(out)], **{URI: uri}).stdout
    assert PASSWORD not in said
    assert telling(tmp_path) == []


def test_a_whole_run_tells_no_password(tmp_path: Path) -> None:
    """One whose first stage fails: record, orders, logs and report are there all the same."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for day in range(1, 27):
        (raw / f"2018-04-{day:02d}.parquet").write_bytes(b"no Parquet")
    uri = f"http://mlflow:{PASSWORD}@127.0.0.1:{free_port()}"
    keys = ("data.source=files", f"data.path={raw}", f"tracking.uri={uri}", "tracking.timeout_s=1")
    out = tmp_path / "runs"
    record = small.run(out, *(word for key in keys for word in ("--set", key)), code=1)
    assert record["status"] == "failed"
    assert any("tracking away" in loss and "http://***@127.0.0.1" in loss
               for loss in record["losses"])  # fmt: skip
    assert (out / "latest" / "logs" / "ingest.json").is_file()
    assert telling(tmp_path) == []


def test_what_is_said_of_a_recipe_has_no_password() -> None:
    uri = f"http://mlflow:{PASSWORD}@127.0.0.1:{free_port()}"
    planned = read_and_plan("default", [f"tracking.uri={uri}"], Path())
    assert planned.recipe.tracking.uri == uri, "the connection needs it"
    assert PASSWORD not in json.dumps(planned.to_json())
    assert any("tracking.uri: http://***@127.0.0.1" in one for one in planned.warnings)
    for wrong in (f"tracking={uri}", f".uri={uri}"):
        with pytest.raises(RecipeError) as refused:
            read_recipe("default", [wrong])
        assert PASSWORD not in str(refused.value)
        assert "http://***@127.0.0.1" in str(refused.value)


@pytest.fixture
def reached(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a server, with a password, and a folder for its client."""
    port = free_port()
    with server(tmp_path / "server", port):
        yield f"http://mlflow:{PASSWORD}@127.0.0.1:{port}", tmp_path / "store"


def test_the_address_stays_in_memory(
    reached: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, store = reached
    folder = make_run(tmp_path / "run1", make_model(tmp_path / "model", 1.0))
    for name in (URI, "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    assert Tracking(TrackingSettings(uri=uri), store).sync(folder) > 0
    assert not any(PASSWORD in value for value in os.environ.values()), "stages inherit it"
    monkeypatch.setenv(URI, uri)
    masked = TrackingSettings(uri=TrackingSettings(uri=uri).model_dump()["uri"])
    assert PASSWORD not in masked.uri
    assert Tracking(masked, store).sync(folder) == 0, "the same server: nothing is sent again"
    assert os.environ[URI] == uri


def raised(error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said when MLflow raises this."""

    def fails(*_: Any, **__: Any) -> None:
        raise error

    folder = make_run(tmp_path / "run1", make_model(tmp_path / "model", 1.0))
    tracking = Tracking(TrackingSettings(uri=f"http://u:{PASSWORD}@db.example"), tmp_path)
    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", fails)
    with pytest.raises(TrackingAway) as away:
        tracking.sync(folder)
    return str(away.value)


@pytest.mark.parametrize("error", [MemoryError(), TimeoutError(), ConnectionError("\n")])
def test_an_error_without_a_text_is_told_by_its_kind(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = raised(error, tmp_path, monkeypatch)
    assert told == f"http://***@db.example: {type(error).__name__}"


def test_an_error_tells_no_password_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = ValueError(f"http://u:{PASSWORD}@db.example/api: {PASSWORD!r} refused\nmore")
    told = raised(error, tmp_path, monkeypatch)
    assert told == "http://***@db.example: ValueError: http://***@db.example/api: '***' refused"
