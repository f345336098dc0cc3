"""The model artifact: the exported program, what it is, and its weights.

``model.pt2`` is a torch.export program: raw features, float32 [n, 15], in; fraud probability,
float32 [n], out; any n from 1 on; the scaler inside. It needs no code of this project to run.
``model.json`` says what the model is and what it was trained on. ``state.pt`` holds the weights
for a training that wants to begin with them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from features.contracts import FEATURES
from training.loop import Trained
from training.repeatable import state_digest

PROGRAM, DESCRIPTION, STATE = "model.pt2", "model.json", "state.pt"
SCHEMA = "stagescope.model/1"
EXAMPLE_ROWS = 2
"""One row would make the exporter take the batch for a constant."""
CHECKED_BATCHES = (1, 2, 3, 64, 1000)

Predictor = Callable[[Tensor], Tensor]


def export(trained: Trained, out: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Write the artifact into the existing folder ``out`` and return its description.

    ``metadata`` (for JSON) joins the description: model, settings, days, table digest,
    metrics. Raises RuntimeError if the program does not answer as the model does.
    """
    program = torch.export.export(
        trained.module,
        (torch.zeros(EXAMPLE_ROWS, len(FEATURES)),),
        dynamic_shapes={"features": {0: Dim("rows", min=1)}},
    )
    torch.export.save(program, out / PROGRAM)
    torch.save(trained.module.state_dict(), out / STATE)
    _verify(load(out), trained.module)
    description = {"schema": SCHEMA, **_description(trained), **metadata}
    text = json.dumps(description, indent=2, default=str)
    (out / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
    return description


def load(folder: Path) -> Predictor:
    """Return the program of an artifact: float32 [n, 15] raw features to float32 [n]."""
    path = folder / PROGRAM
    if not path.is_file():
        raise ValueError(f"{folder} holds no model: there is no {PROGRAM}; train one first")
    module: Predictor = torch.export.load(path).module()
    return module


def describe(folder: Path) -> dict[str, Any]:
    """Return the description of an artifact."""
    description: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    return description


def _description(trained: Trained) -> dict[str, Any]:
    return {
        "features": list(FEATURES),
        "input": {"name": "features", "type": "float32", "shape": ["n", len(FEATURES)]},
        "output": {"name": "fraud_probability", "type": "float32", "shape": ["n"]},
        "torch": torch.__version__,
        "state_digest": state_digest(trained.module),
        "best_epoch": trained.best_epoch,
        "epochs": len(trained.history),
        "rows": trained.rows,
        "frauds": trained.frauds,
    }


def _verify(program: Predictor, module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for rows in CHECKED_BATCHES:
        features = torch.rand(rows, len(FEATURES), generator=generator) * 100
        with torch.inference_mode():
            if not torch.equal(program(features), module(features)):
                raise RuntimeError(
                    f"the exported program answers a batch of {rows} differently than the model: "
                    f"torch {torch.__version__} cannot export it; nothing was published"
                )
