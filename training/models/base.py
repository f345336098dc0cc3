"""What every model of this room answers to, so that nobody asks which one it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class FraudModel(nn.Module):
    """Raw features in, fraud probability out; the input scaler is a part of it.

    ``prepare`` is the part that is not learned by descent: it is run once over a training table,
    and its result is what batches are made of.
    """

    def fit_inputs(self, features: Tensor) -> None:
        """Learn the input scaler from raw training features, float32 [n, 15]."""
        raise NotImplementedError

    def prepare(self, features: Tensor) -> Tensor:
        """Return scaled inputs, float32 [n, inputs], for raw ``features``, float32 [n, 15]."""
        raise NotImplementedError

    def logits(self, prepared: Tensor) -> Tensor:
        """Return each member's logit, [members, n], for ``prepared`` inputs."""
        raise NotImplementedError

    def forward(self, features: Tensor) -> Tensor:
        """Return the fraud probability, float32 [n], for raw ``features``, float32 [n, 15]."""
        return torch.sigmoid(self.logits(self.prepare(features)).float()).mean(dim=0)


@dataclass(frozen=True, kw_only=True)
class InputRange:
    """Mean and spread of inputs, each float32 [inputs]."""

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, inputs: Tensor) -> InputRange:
        """Measure ``inputs`` [n, inputs] in float64; an input that never moves has spread 1."""
        exact = inputs.double()
        spread = exact.std(dim=0, correction=0)
        spread = torch.where(spread > 0, spread, torch.ones_like(spread))
        return cls(mean=exact.mean(dim=0).float(), spread=spread.float())


class ModelSettings(Protocol):
    """Settings of one kind of model: a frozen dataclass that can build it."""

    @property
    def name(self) -> str:
        """The model's name in a recipe."""
        ...

    def build(self) -> FraudModel:
        """Make a model with fresh weights drawn from torch's global generator."""
        ...
