"""The artifact answers as the model does, at any batch size, without this project's code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from features.contracts import FEATURES
from training.batches import DayTable
from training.export import PROGRAM, STATE, describe, export, load
from training.loop import Trained, score
from training.models.mlp import MlpSettings
from training.repeatable import state_digest

ALONE = """
import sys, torch
program = torch.export.load(sys.argv[1] + "/model.pt2").module()
features = torch.load(sys.argv[1] + "/features.pt")
torch.save(program(features), sys.argv[1] + "/answer.pt")
assert not {"training", "features"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def folder(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model")
    export(trained, out, {"model": {"name": "mlp"}, "table_digest": "abc"})
    return out


def test_the_program_equals_the_model_for_every_batch_from_1_to_1000(
    trained: Trained, folder: Path, generated: DayTable, handle
) -> None:
    features = torch.from_numpy(generated.read(generated.days()[8], 2, handle).features)
    program = load(folder)
    with torch.inference_mode():
        unequal = [
            rows
            for rows in range(1, 1001)
            if not torch.equal(program(features[:rows]), trained.module(features[:rows]))
        ]
    assert unequal == []
    answer = program(features)
    assert (answer.dtype, answer.shape) == (torch.float32, (len(features),))
    assert answer.std() > 0


def test_scores_come_out_alike_from_program_and_model(
    trained: Trained, folder: Path, generated: DayTable, handle
) -> None:
    rows = generated.read(generated.days()[9], 1, handle)
    np.testing.assert_array_equal(score(load(folder), rows), score(trained.module, rows))


def test_the_program_needs_nothing_but_torch(trained: Trained, folder: Path, tmp_path) -> None:
    features = torch.rand(5, len(FEATURES)) * 30
    (tmp_path / PROGRAM).write_bytes((folder / PROGRAM).read_bytes())
    torch.save(features, tmp_path / "features.pt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-W", "ignore", "-c", ALONE, str(tmp_path)]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    with torch.inference_mode():
        assert torch.equal(torch.load(tmp_path / "answer.pt"), trained.module(features))


def test_the_description_says_what_the_model_is(trained: Trained, folder: Path) -> None:
    description = describe(folder)
    assert description["schema"] == "stagescope.model/1"
    assert description["features"] == list(FEATURES)
    assert description["rows"] == 4200
    assert description["table_digest"] == "abc"
    assert description["state_digest"] == state_digest(trained.module)
    json.dumps(description, allow_nan=False)


def test_the_weights_can_be_taken_up_by_another_training(trained: Trained, folder: Path) -> None:
    module = MlpSettings(hidden=(16, 8), members=3).build()
    module.load_state_dict(torch.load(folder / STATE, weights_only=True))
    assert state_digest(module) == state_digest(trained.module)


def test_a_folder_without_a_model_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no model: there is no model\.pt2"):
        load(tmp_path)


def test_a_program_that_answers_otherwise_is_not_published(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.export.load", lambda folder: lambda rows: rows.sum(dim=1))
    with pytest.raises(RuntimeError, match="answers a batch of 1 differently"):
        export(trained, tmp_path, {})
