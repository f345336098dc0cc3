"""A model in MLflow's own format: signature, input example and the exported program."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import mlflow.pytorch
import numpy as np
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from features.contracts import FEATURES
from training.export import load


def save_mlflow_model(folder: Path, local: Path) -> None:
    """Write the exported model of ``folder`` as an MLflow model to ``local``.

    Input: float32 [n, 15], the features in their order; output: float32 [n], the probability of
    fraud. The example has two rows because an export from one row fixes the batch size at one.
    """
    module = load(folder)
    example = np.zeros((2, len(FEATURES)), dtype=np.float32)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, len(FEATURES)))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1,))]),
    )
    with torch.no_grad():
        mlflow.pytorch.save_model(
            module,
            str(local),
            signature=signature,
            input_example=example,
            pip_requirements=[f"torch=={metadata.version('torch').partition('+')[0]}"],
            metadata={"features": json.dumps(FEATURES)},
        )
