"""A registry that does not answer now and then: who becomes champion, and what is said of it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline.artifact import Artifact
from pipeline.recipe import Tracking as TrackingSettings
from pipeline.succession import Succession
from pipeline.tracking import Tracking, TrackingAway
from telemetry.runfolder import RunFolder
from tests.pipeline.small import STAGES, environment, latest, logs, run_command, statuses
from tests.pipeline.test_tracking import make_model, make_run
from tests.pipeline.test_tracking_kills import killed

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
WON: dict[str, Any] = {"promote": True, "reasons": ["better"]}
LOST: dict[str, Any] = {"promote": False, "reasons": ["too few", "too late"]}
ASK = "get_model_version_by_alias"


@dataclass(kw_only=True)
class Court:
    """A candidate's run, its succession on a store of its own, and what was said."""

    folder: RunFolder
    candidate: Artifact
    tracking: Tracking
    succession: Succession = field(init=False)
    losses: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.succession = Succession(
            tracking=self.tracking, lost=self.losses.append, note=self.notes.append
        )

    def decide(self, verdict: dict[str, Any]) -> str | None:
        return self.succession.decide(self.folder, self.candidate, verdict)


@pytest.fixture
def court(tmp_path: Path) -> Court:
    (tmp_path / "store").mkdir()
    candidate = make_model(tmp_path / "model", 1.0)
    return Court(
        folder=make_run(tmp_path / "run1", candidate, status="running"),
        candidate=candidate,
        tracking=Tracking(TrackingSettings(), tmp_path / "store"),
    )


def fails(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Let a call of MLflow's fail always; returns a list that has its name for each time."""
    calls: list[str] = []

    def call(*_: Any, **__: Any) -> None:
        calls.append(name)
        raise ConnectionError("no answer")

    monkeypatch.setattr(MlflowClient, name, call)
    return calls


def test_a_request_that_failed_hours_before_costs_no_promotion(
    court: Court, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(monkeypatch, MlflowClient, "get_experiment_by_name", after=False)
    with pytest.raises(TrackingAway):
        court.tracking.sync(court.folder)
    assert court.succession.fetch() is None
    assert court.decide(WON) is None
    assert court.losses == []
    assert court.notes == ["card-fraud version 1 is the champion"]


def test_a_registry_that_is_back_after_validation_takes_the_first_champion(
    court: Court, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(monkeypatch, MlflowClient, ASK, after=False)
    assert court.succession.fetch() is None
    assert court.decide(WON) is None
    assert court.succession.artifact is not None
    assert court.succession.artifact.digest == court.candidate.digest
    (loss,) = court.losses
    assert loss.startswith("model registry away, so the champion is not known: ")


def test_a_champion_that_was_not_known_is_served_and_not_replaced(
    court: Court, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_model(tmp_path / "other", 2.0)
    court.tracking.promote(make_run(tmp_path / "run0", other), other, compared_with=None)
    killed(monkeypatch, MlflowClient, ASK, after=False)
    assert court.succession.fetch() is None
    assert court.decide(WON) is None
    assert court.succession.artifact is not None
    assert court.succession.artifact.digest == other.digest
    assert (
        court.losses[1]
        == "no promotion: card-fraud version 1 was not known when its rival was validated"
    )


@pytest.mark.parametrize("verdict", [WON, LOST])
def test_a_registry_that_stays_away_is_asked_twice_and_is_why_nothing_is_served(
    court: Court, monkeypatch: pytest.MonkeyPatch, verdict: dict[str, Any]
) -> None:
    calls = fails(monkeypatch, ASK)
    assert court.succession.fetch() is None
    with pytest.raises(TrackingAway):
        court.tracking.sync(court.folder)
    why = court.decide(verdict)
    assert calls == [ASK, ASK]
    assert why is not None
    assert why.startswith("there is no champion to serve (registry away: sqlite:")
    assert "no answer" in why
    assert len(court.losses) == 1


def test_a_promotion_that_fails_is_why_nothing_is_served(
    court: Court, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails(monkeypatch, "create_model_version")
    court.succession.fetch()
    why = court.decide(WON)
    assert why is not None
    assert why.startswith("there is no champion to serve (registry away: sqlite:")
    (loss,) = court.losses
    assert loss.startswith("model registry away, so no promotion: ")


def test_a_gate_that_says_no_is_why_nothing_is_served(court: Court) -> None:
    court.succession.fetch()
    assert court.decide(LOST) == "there is no champion to serve (gate: too few; too late)"
    assert court.losses == []


ONE_FAILS = """
from mlflow import MlflowClient
from pipeline.cli import main
plain, failed = MlflowClient.get_experiment_by_name, []

def fails_once(*arguments):
    if not failed:
        failed.append(True)
        raise ConnectionError("no answer")
    return plain(*arguments)

MlflowClient.get_experiment_by_name = fails_once
main()
"""


def test_one_request_that_fails_before_the_first_stage_costs_a_run_nothing(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    done = subprocess.run(
        [sys.executable, "-c", ONE_FAILS, *run_command(out)[3:]],
        check=False, capture_output=True, text=True, env=environment(), timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr + logs(out)
    record = latest(out)
    assert "no answer" in done.stdout + done.stderr
    assert [loss for loss in record["losses"] if "away" in loss] == []
    assert statuses(record) == dict.fromkeys(STAGES, "finished")
    sent = json.loads((out / "latest/tracking.json").read_text())["done"]
    assert {"artifact:report.html", "end:", "profile:ingest"} <= set(sent)
