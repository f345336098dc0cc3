"""The memory that a served model takes: predicted from its program, measured on its device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from infra.device import Device
from infra.memory_peak import CUDA_BLOCK_BYTES, ProcessPeak, watch_peak
from serving.predictor import Model


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a program keeps, and what a call makes of one row and of the largest batch; bytes."""

    parameters_bytes: int
    one_row_bytes: int
    largest_rows: int
    largest_bytes: int

    @classmethod
    def of(cls, model: Model, largest_rows: int, block_bytes: int) -> Prediction:
        """Both are predicted by the program; nothing is run on the device."""
        _, one_row_bytes = model.predicted_bytes(1, block_bytes)
        parameters_bytes, largest_bytes = model.predicted_bytes(largest_rows, block_bytes)
        return cls(
            parameters_bytes=parameters_bytes,
            one_row_bytes=one_row_bytes,
            largest_rows=largest_rows,
            largest_bytes=largest_bytes,
        )

    def batch(self, rows: int) -> dict[str, int]:
        """For a batch of 1 to ``largest_rows``: on the line between the two.

        A tensor of a call has the rows as a dimension or does not grow, so that a batch takes what
        the line says, or less, but for a block of the allocator for each tensor.
        """
        per_row = (self.largest_bytes - self.one_row_bytes) / max(self.largest_rows - 1, 1)
        activations_bytes = self.one_row_bytes + round(per_row * (rows - 1))
        return {
            "batch_rows": rows,
            "parameters_bytes": self.parameters_bytes,
            "activations_bytes": activations_bytes,
            "peak_bytes": self.parameters_bytes + activations_bytes,
        }


class ServingMemory:
    """Made before the model is loaded; ``predict`` once it is, ``to_json`` whenever asked."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._peak, self._process = watch_peak(device), ProcessPeak()
        self._model: Model | None = None
        self._prediction: Prediction | None = None

    def predict(self, model: Model, largest_rows: int) -> None:
        """Predict for batches up to the largest that the server can run."""
        block_bytes = CUDA_BLOCK_BYTES if self._device.kind == "cuda" else 1
        self._model = model
        self._prediction = Prediction.of(model, largest_rows, block_bytes)

    def to_json(self) -> dict[str, Any]:
        """Predicted, and measured until now; on the CPU why the GPU has no figures.

        ``predicted`` is of the largest batch that can be, ``predicted_scored`` of the largest that
        was scored, as ``measured`` is. On the CPU what was measured has features, store and
        requests in it; beside a GPU's tensors that is ``process``.
        """
        measured = self._peak.read().to_json()  # first: what is scored now is in the rows below
        said = {"device": self._device.name, **self._predicted(), "measured": measured}
        if self._device.kind == "cuda":
            return {**said, "process": self._process.read().to_json()}
        return {**said, "gpu": "absent: the server scores on the CPU"}

    def _predicted(self) -> dict[str, Any]:
        if self._model is None or self._prediction is None:
            missing = {"reason": "the model is not loaded yet"}
            return {"predicted": missing, "predicted_scored": missing}
        rows = self._model.largest_batch_rows
        scored = self._prediction.batch(rows) if rows else {"reason": "no batch was scored yet"}
        largest = self._prediction.batch(self._prediction.largest_rows)
        return {"predicted": largest, "predicted_scored": scored}
