"""What the stage says of memory: prediction and measurement of one fold, and of which."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import infra.memory_peak
import training.export
from infra.device import Device
from infra.memory_peak import MeasuredPeak
from pipeline.artifact import Artifact
from pipeline.stage import ClusterSettings, RunContext
from pipeline.stages.training import GONE_ON, TrainingStage
from tests.training.conftest import FIRST_DAY, CountingHandle, generated_day
from training.loop import TrainingSettings
from training.memory import predict_memory
from training.models.mlp import MlpSettings

MIB = 2**20
ROWS = (400, 900, 600)
"""Rows of a day in each fold; a fold has two days."""
SMALL, LARGE, MIDDLE = (FIRST_DAY + timedelta(days=2 * fold) for fold in range(3))
STAGE = TrainingStage(
    folds=(SMALL, LARGE, MIDDLE),
    train_days=2,
    device="cpu",
    model={"hidden": (8,), "members": 1, "dropout": 0.0},
    training={"epochs": 2, "batch_size": 256},
)


class Peaks:
    """Watches the memory of one fold after the other; None is a peak that could not be seen."""

    how = "by the test"

    def __init__(self, *mib: int | None) -> None:
        self._left = list(mib)

    def __call__(self, device: Device) -> Peaks:
        return self

    def read(self) -> MeasuredPeak:
        mib = self._left.pop(0)
        if mib is None:
            return MeasuredPeak(how=self.how, reason="it stayed below what was held before")
        return MeasuredPeak(how=self.how, peak_bytes=mib * MIB)


@pytest.fixture
def table(tmp_path: Path) -> Artifact:
    folder = tmp_path / "table"
    folder.mkdir()
    for number in range(6):
        day = FIRST_DAY + timedelta(days=number)
        pq.write_table(generated_day(day, ROWS[number // 2], seed=7), folder / f"{day}.parquet")
    return Artifact(
        name="training_table", path=folder, digest="d", rows=None, bytes=1, producer="r"
    )


@pytest.fixture
def memory_of(table: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the stage with what a watch of each fold's memory reads; return the summary's memory."""
    monkeypatch.setattr(training.export, "export", lambda *_: None)  # takes seconds, says nothing
    work = tmp_path / "work"
    work.mkdir()

    def run(
        handle: CountingHandle, *mib: int | None, stage: TrainingStage = STAGE
    ) -> dict[str, Any]:
        monkeypatch.setattr(infra.memory_peak, "watch_peak", Peaks(*mib))
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        context = RunContext(
            run_id="r",
            seed=1,
            device="cpu",
            cluster=ClusterSettings(
                workers=1, threads_per_worker=1, memory_limit_bytes=None, scheduler=None
            ),
            recorder=handle,
            progress=lambda done, total: None,
            work=work,
        )
        return stage.run(context, {"training_table": table}, out).summary["memory"]

    return run


def predicted_bytes(fold: int, device: Device) -> int:
    return predict_memory(
        2 * ROWS[fold],
        model=MlpSettings(**STAGE.model),
        settings=TrainingSettings(**STAGE.training),
        device=device,
    ).peak_bytes


@pytest.mark.parametrize(
    ("read", "fold", "measured"),
    [
        pytest.param((100, 90, 120), 1, 90, id="the largest prediction, not the largest peak"),
        pytest.param((100, None, 70), 2, 70, id="the largest that was seen"),
    ],
)
def test_both_figures_are_of_one_fold(memory_of, handle, cpu, read, fold, measured) -> None:
    said = memory_of(handle, *read)
    assert said["fold"] == STAGE.folds[fold].isoformat()
    assert said["predicted"]["rows"] == 2 * ROWS[fold]
    assert said["predicted"]["peak_bytes"] == predicted_bytes(fold, cpu)
    assert said["measured"] == {"how": Peaks.how, "peak_bytes": measured * MIB}
    assert handle.counts["memory_predicted_bytes"] == predicted_bytes(fold, cpu)
    assert handle.counts["memory_measured_bytes"] == measured * MIB


def test_a_fold_that_has_nothing_left_to_train_is_not_measured(
    memory_of, handle, cpu, tmp_path
) -> None:
    memory_of(CountingHandle(), 100, 90, 120)
    said = memory_of(handle, 3, 2, 1)
    assert said["fold"] == LARGE.isoformat()
    assert said["measured"] == {"how": Peaks.how, "reason": GONE_ON}
    assert handle.counts["memory_predicted_bytes"] == predicted_bytes(1, cpu)
    assert "memory_measured_bytes" not in handle.counts
    shutil.rmtree(tmp_path / "work" / SMALL.isoformat())
    said = memory_of(handle, 50, 2, 1)
    assert (said["fold"], said["measured"]["peak_bytes"]) == (SMALL.isoformat(), 50 * MIB)


def test_of_a_fold_that_fails_the_prediction_is_told(memory_of, handle) -> None:
    nothing_held_out = {**STAGE.training, "holdout_share": 1e-6}
    with pytest.raises(ValueError, match="held-out 0"):
        memory_of(handle, 100, stage=replace(STAGE, training=nothing_held_out))
    assert handle.counts["memory_predicted_bytes"] > 0
    assert "memory_measured_bytes" not in handle.counts
