"""The memory that a served model takes: predicted from the program, measured on its device."""

from __future__ import annotations

from typing import Any

import numpy as np

from features.contracts import FEATURES
from infra.device import Device
from infra.memory_peak import CUDA_BLOCK_BYTES, ProcessPeak, watch_peak
from infra.tensor_memory import LiveTensors
from serving.predictor import Model


class ServingMemory:
    """Made before the model is loaded; ``predict`` once it is, ``to_json`` whenever asked."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._peak, self._process = watch_peak(device), ProcessPeak()
        self._predicted: dict[str, int] = {}

    def predict(self, model: Model, batch_rows: int) -> None:
        """Run the program once on the largest batch, and count what it keeps and what it makes."""
        features = np.zeros((batch_rows, len(FEATURES)))
        on_gpu = self._device.kind == "cuda"
        block_bytes = CUDA_BLOCK_BYTES if on_gpu else 1
        with LiveTensors(block_bytes=block_bytes, kind="cuda" if on_gpu else None) as live:
            model.predict(features)
        parameters = model.parameters_bytes(block_bytes)
        self._predicted = {
            "batch_rows": batch_rows,
            "parameters_bytes": parameters,
            "activations_bytes": live.peak_bytes,
            "peak_bytes": parameters + live.peak_bytes,
        }

    def to_json(self) -> dict[str, Any]:
        """Predicted, and measured until now; on the CPU why the GPU has no figures.

        On the CPU what was measured has features, store and requests in it; beside a GPU's tensors
        that is ``process``.
        """
        both = {
            "device": self._device.name,
            "predicted": dict(self._predicted),
            "measured": self._peak.read().to_json(),
        }
        if self._device.kind == "cuda":
            return {**both, "process": self._process.read().to_json()}
        return {**both, "gpu": "absent: the server scores on the CPU"}
