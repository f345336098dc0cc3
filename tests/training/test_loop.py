"""The loop: repeatable to the bit, early stopping in order of time, and no work lost to a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.device import Device
from training.batches import DayTable, Rows
from training.checkpoint import NAME
from training.loop import Trained, TrainingSettings, score, train
from training.metrics import auc_roc
from training.models.mlp import INPUTS, MlpSettings
from training.repeatable import state_digest

MODEL = MlpSettings(hidden=(16, 16), members=2, dropout=0.1)
SETTINGS = TrainingSettings(epochs=5, batch_size=256, patience=2, holdout_share=0.2)
GOLDEN = Path(__file__).resolve().parents[1] / "golden/mlp_loss.json"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def rows(generated: DayTable, handle) -> Rows:
    return generated.read(generated.days()[0], 7, handle)


def run(rows: Rows, work: Path, device: Device, handle, **changed) -> Trained:
    arguments = {"model": MODEL, "settings": SETTINGS, "seed": 3, "progress": None} | changed
    return train(rows, device=device, work=work, handle=handle, **arguments)


def test_two_trainings_are_equal_to_the_bit(rows, tmp_path, cpu, handle) -> None:
    first = run(rows, tmp_path / "a", cpu, handle)
    torch.rand(17)  # what the process drew before does not matter
    second = run(rows, tmp_path / "b", cpu, handle)
    assert state_digest(first.module) == state_digest(second.module)
    assert first.history == second.history
    other = run(rows, tmp_path / "c", cpu, handle, seed=4)
    assert state_digest(other.module) != state_digest(first.module)


def test_a_training_leaves_the_process_as_it_was(rows, tmp_path, cpu, handle) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    run(rows, tmp_path, cpu, handle)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_it_learns_and_the_history_follows_the_golden_curve(rows, tmp_path, cpu, handle) -> None:
    trained = run(rows, tmp_path, cpu, handle)
    golden = json.loads(GOLDEN.read_text())
    losses = [[epoch.phase, epoch.loss, epoch.holdout_loss] for epoch in trained.history]
    assert [phase for phase, *_ in losses] == [phase for phase, *_ in golden["epochs"]]
    for (_, loss, holdout), (_, golden_loss, golden_holdout) in zip(
        losses, golden["epochs"], strict=True
    ):
        assert loss == pytest.approx(golden_loss, rel=golden["relative_tolerance"])
        if golden_holdout is not None:
            assert holdout == pytest.approx(golden_holdout, rel=golden["relative_tolerance"])
    assert auc_roc(score(trained.module, rows), rows.is_fraud) > 0.8
    assert (trained.rows, trained.frauds) == (len(rows), rows.is_fraud.sum())
    assert not trained.module.training


def test_the_search_never_trains_on_the_last_rows_and_the_refit_does(
    rows, tmp_path, cpu, handle
) -> None:
    cut = len(rows) - round(len(rows) * SETTINGS.holdout_share)
    changed = replace(rows, features=rows.features.copy())
    changed.features[cut:] *= 7  # only rows of the hold-out
    first = run(rows, tmp_path / "a", cpu, handle)
    second = run(changed, tmp_path / "b", cpu, handle)
    search_losses = [
        [epoch.loss for epoch in trained.history if epoch.phase == "search"][:2]
        for trained in (first, second)
    ]
    assert search_losses[0] == search_losses[1]
    assert first.history[0].holdout_loss != second.history[0].holdout_loss
    assert first.history[-1].phase == "refit"
    assert first.history[-1].loss != second.history[-1].loss


def test_early_stopping_keeps_the_epoch_that_was_best(rows, tmp_path, cpu, handle) -> None:
    settings = replace(
        SETTINGS, epochs=60, patience=2, learning_rate=0.05, average_decay=0.0, refit=False
    )
    trained = run(rows, tmp_path / "long", cpu, handle, settings=settings)
    losses = [epoch.holdout_loss for epoch in trained.history]
    assert trained.best_epoch == int(np.argmin(losses)) + 1
    assert len(losses) == trained.best_epoch + settings.patience < settings.epochs
    short = run(
        rows,
        tmp_path / "short",
        cpu,
        handle,
        settings=replace(settings, epochs=trained.best_epoch),
    )
    assert state_digest(short.module) == state_digest(trained.module)


def test_a_training_that_diverges_is_a_sentence_with_a_way_out(rows, tmp_path, cpu, handle) -> None:
    settings = replace(SETTINGS, learning_rate=1e38)
    with pytest.raises(ValueError, match=r"diverged.*lower model\.learning_rate"):
        run(rows, tmp_path, cpu, handle, settings=settings)


def test_a_refit_takes_the_best_number_of_epochs(rows, tmp_path, cpu, handle) -> None:
    trained = run(rows, tmp_path, cpu, handle)
    assert sum(epoch.phase == "refit" for epoch in trained.history) == trained.best_epoch


KILLED = """
import os, pickle, signal, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent))
from contextlib import nullcontext
from infra.device import Device
from training.loop import TrainingSettings, train
from training.models.mlp import MlpSettings

class Silent:
    def phase(self, name): return nullcontext()
    def count(self, metric, n=1): pass

def kill_at(done, total):
    if done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

given = pickle.loads(Path(sys.argv[1]).read_bytes())
train(progress=kill_at, handle=Silent(), **given)
"""


@pytest.mark.parametrize("epoch", [2, 7])
def test_a_killed_training_goes_on_to_the_same_bits(rows, tmp_path, cpu, handle, epoch) -> None:
    import pickle

    whole = run(rows, tmp_path / "whole", cpu, handle)
    assert len(whole.history) > epoch
    given = {
        "rows": rows,
        "model": MODEL,
        "settings": SETTINGS,
        "seed": 3,
        "device": cpu,
        "work": tmp_path / "killed",
    }
    arguments = tmp_path / "arguments.pickle"
    arguments.write_bytes(pickle.dumps(given))
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(arguments), str(epoch)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    resumed = run(rows, tmp_path / "killed", cpu, handle)
    assert resumed.resumed_epochs == epoch
    searched = sum(one.phase == "search" for one in whole.history)
    assert whole.whole
    assert resumed.whole == (epoch < searched)
    assert resumed.history == whole.history
    assert state_digest(resumed.module) == state_digest(whole.module)


def test_a_finished_training_is_not_repeated(rows, tmp_path, cpu, handle) -> None:
    first = run(rows, tmp_path, cpu, handle)
    seen: list[tuple[int, int]] = []
    again = run(rows, tmp_path, cpu, handle, progress=lambda *step: seen.append(step))
    assert seen == []
    assert not again.whole
    assert state_digest(again.module) == state_digest(first.module)


def test_a_checkpoint_of_another_training_is_not_taken_up(rows, tmp_path, cpu, handle) -> None:
    run(rows, tmp_path, cpu, handle)
    for changed in ({"seed": 9}, {"settings": replace(SETTINGS, learning_rate=1e-3)}):
        assert run(rows, tmp_path, cpu, handle, **changed).resumed_epochs == 0
    fewer = rows.where(np.arange(len(rows)) < len(rows) - 1)
    assert run(fewer, tmp_path, cpu, handle).resumed_epochs == 0


def test_a_half_written_checkpoint_is_never_read(rows, tmp_path, cpu, handle) -> None:
    whole = run(rows, tmp_path, cpu, handle)
    (tmp_path / f"{NAME}.part").write_bytes(b"torn")
    again = run(rows, tmp_path, cpu, handle)
    assert state_digest(again.module) == state_digest(whole.module)


def test_the_recorder_hears_of_samples_and_phases(rows, tmp_path, cpu, handle) -> None:
    steps: list[tuple[int, int]] = []
    trained = run(rows, tmp_path, cpu, handle, progress=lambda *step: steps.append(step))
    cut = len(rows) - round(len(rows) * SETTINGS.holdout_share)
    searched = sum(epoch.phase == "search" for epoch in trained.history)
    expected = searched * cut + trained.best_epoch * len(rows)
    assert handle.counts["samples"] == expected
    assert {"data_wait", "holdout", "checkpoint"} <= set(handle.phases)
    assert handle.counts["steps"] == trained.steps.steps
    assert handle.counts["epochs"] == len(trained.history)
    row_bytes = 4 * (INPUTS + 1)  # float32: prepared inputs and the label
    assert handle.counts["epoch_bytes"] == expected * row_bytes
    assert not {"host_to_device_bytes", "device_to_host_bytes"} & handle.counts.keys()  # on the CPU
    assert [done for done, _ in steps] == list(range(1, len(trained.history) + 1))
    assert steps[-1][0] == steps[-1][1]


def test_mixed_precision_stays_close_to_float32(rows, tmp_path, cpu, handle) -> None:
    mixed = run(rows, tmp_path / "mixed", replace(cpu, amp=True), handle)
    exact = run(rows, tmp_path / "exact", cpu, handle)
    assert state_digest(mixed.module) != state_digest(exact.module)
    assert mixed.history[0].loss == pytest.approx(exact.history[0].loss, rel=0.05)
    assert all(value.dtype == torch.float32 for value in mixed.module.state_dict().values())


def test_rows_that_cannot_be_learned_from_are_refused(rows, tmp_path, cpu, handle) -> None:
    honest = replace(rows, is_fraud=np.zeros(len(rows), dtype=bool))
    with pytest.raises(ValueError, match=r"the first .* have 0 frauds"):
        run(honest, tmp_path, cpu, handle)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": 0}, "epochs = 0"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"average_decay": 1.0}, "average_decay = 1.0"),
        ({"holdout_share": 0.0}, "early stopping needs rows"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainingSettings(**wrong)  # type: ignore[arg-type]
