"""The memory that a served model takes: predicted from the program, measured of the process."""

from __future__ import annotations

from typing import Any

import numpy as np

from features.contracts import FEATURES
from infra.memory_peak import ProcessPeak
from infra.tensor_memory import LiveTensors
from serving.predictor import Model

NO_GPU = "absent: the server scores on the CPU"


class ServingMemory:
    """Made before the model is loaded; ``predict`` once it is, ``to_json`` whenever asked."""

    def __init__(self) -> None:
        self._peak = ProcessPeak()
        self._predicted: dict[str, int] = {}

    def predict(self, model: Model, batch_rows: int) -> None:
        """Run the program once on the largest batch, and count what it keeps and what it makes."""
        features = np.zeros((batch_rows, len(FEATURES)))
        with LiveTensors() as live:
            model.predict(features)
        parameters = model.parameters_bytes()
        self._predicted = {
            "batch_rows": batch_rows,
            "parameters_bytes": parameters,
            "activations_bytes": live.peak_bytes,
            "peak_bytes": parameters + live.peak_bytes,
        }

    def to_json(self) -> dict[str, Any]:
        """Predicted; measured until now, with features, store and requests; why there is no GPU."""
        return {
            "predicted": dict(self._predicted),
            "measured": self._peak.read().to_json(),
            "gpu": NO_GPU,
        }
