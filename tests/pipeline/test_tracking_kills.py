"""A send that is killed between two calls: the next one goes on with what is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline.artifact import Artifact
from pipeline.recipe import Tracking as TrackingSettings
from pipeline.tracking import Tracking, TrackingAway
from pipeline.tracking_sender import State
from telemetry.runfolder import RunFolder
from tests.pipeline.test_tracking import make_model, make_run

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def tracking(tmp_path: Path) -> Tracking:
    (tmp_path / "store").mkdir()
    return Tracking(TrackingSettings(), tmp_path / "store")


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    return make_model(tmp_path / "model", 1.0)


def killed(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, *, after: bool
) -> Callable[[], int]:
    """Let a call fail once, before or after it did its work; returns how often it was called."""
    plain, calls = getattr(owner, name), 0

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        done = plain(*arguments, **named) if after or calls > 1 else None
        if calls == 1:
            raise ConnectionError("killed")
        return done

    monkeypatch.setattr(owner, name, call)
    return lambda: calls


def logged_models(tracking: Tracking) -> list[Any]:
    return list(MlflowClient(tracking.uri).search_logged_models(["1"]))


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("create_logged_model", True),
        ("log_model_artifacts", False),
        ("log_model_artifacts", True),
        ("finalize_logged_model", True),
        ("log_outputs", False),
        ("log_outputs", True),
    ],
)
def test_a_model_is_logged_once_wherever_its_send_is_cut_off(
    tmp_path: Path,
    tracking: Tracking,
    model: Artifact,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    after: bool,
) -> None:
    calls = killed(monkeypatch, MlflowClient, name, after=after)
    whole_after_a_kill(make_run(tmp_path / "run1", model), tracking, model)
    assert calls() >= 1


def test_a_model_is_logged_once_though_it_was_not_noted(
    tmp_path: Path, tracking: Tracking, model: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, cut = State.save, False

    def unwritten(state: State) -> None:
        nonlocal cut
        if "model:training" in state.fields["done"] and not cut:
            cut = True
            raise OSError("killed")
        save(state)

    monkeypatch.setattr(State, "save", unwritten)
    whole_after_a_kill(make_run(tmp_path / "run1", model), tracking, model)


def whole_after_a_kill(folder: RunFolder, tracking: Tracking, model: Artifact) -> None:
    with pytest.raises(TrackingAway, match="killed"):
        tracking.sync(folder)
    assert len(logged_models(tracking)) == 1
    tracking.retry()
    assert tracking.sync(folder) > 0
    (logged,) = logged_models(tracking)
    assert str(logged.status) == "READY"
    assert logged.tags["stagescope.digest"] == model.digest
    outputs = MlflowClient(tracking.uri).get_run(logged.source_run_id).outputs.model_outputs
    assert [one.model_id for one in outputs] == [logged.model_id]
    tracking.promote(folder, model, compared_with=None)
    champion = tracking.champion()
    assert champion is not None
    assert champion.artifact.digest == model.digest
    assert len(logged_models(tracking)) == 1


def versions(tracking: Tracking) -> list[int]:
    found = MlflowClient(tracking.uri).search_model_versions("name = 'card-fraud'")
    return sorted(int(one.version) for one in found)


def next_run(path: Path, model: Artifact) -> RunFolder:
    """The run after one that was killed: its training is reused."""
    folder = make_run(path, model, status="running")
    record = folder.read()
    record["stages"][0] |= {"status": "reused", "reused_from": "run1"}
    folder.write(record)
    return folder


@pytest.mark.parametrize(
    ("name", "after"), [("create_model_version", True), ("set_registered_model_alias", False)]
)
@pytest.mark.parametrize("again", ["same run", "next run"])
def test_a_promotion_that_is_cut_off_is_gone_on_with(
    tmp_path: Path,
    tracking: Tracking,
    model: Artifact,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    after: bool,
    again: str,
) -> None:
    folder = make_run(tmp_path / "run1", model, status="running")
    calls = killed(monkeypatch, MlflowClient, name, after=after)
    with pytest.raises(TrackingAway, match="killed"):
        tracking.promote(folder, model, compared_with=None)
    tracking.retry()
    assert calls() == 1
    assert tracking.champion() is None
    if again == "next run":
        folder = next_run(tmp_path / "run2", model)
    promoted = tracking.promote(folder, model, compared_with=None)
    assert promoted.version == "1"
    assert versions(tracking) == [1]
    assert len(logged_models(tracking)) == 1
    champion = tracking.champion()
    assert champion is not None
    assert (champion.version, champion.artifact.digest) == ("1", model.digest)


def test_a_model_that_comes_back_after_another_is_a_version_of_its_own(
    tmp_path: Path, tracking: Tracking, model: Artifact
) -> None:
    other = make_model(tmp_path / "other", 2.0)
    compared: str | None = None
    for number, one in enumerate((model, other, model, other), 1):
        folder = make_run(tmp_path / f"run{number}", one)
        assert tracking.promote(folder, one, compared_with=compared).version == str(number)
        compared = one.digest
    assert versions(tracking) == [1, 2, 3, 4]
