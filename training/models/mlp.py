"""``mlp``: a few small feed-forward nets over the fifteen features, averaged.

The nets of the ensemble lie in one batched tensor per layer, so that one small matrix product does
the work of all. Amounts, counts and means also enter as logarithms and as differences of them: a
leaked card is one whose amounts are a multiple of its habit, and a net finds no ratio by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from features.contracts import FEATURES
from training.models.base import FraudModel, InputRange

HEAVY_TAILED = tuple(
    index
    for index, name in enumerate(FEATURES)
    if name == "amount" or "_count_" in name or "_mean_amount_" in name
)
"""Columns that span orders of magnitude: they enter as they are and as log(1 + x)."""
INPUTS = len(FEATURES) + len(HEAVY_TAILED) + 7
"""Raw, logarithms, and seven differences of logarithms (see ``_expand``)."""


@dataclass(frozen=True, kw_only=True)
class MlpSettings:
    """Shape of the ensemble: ``members`` nets of ``hidden`` widths, with ``dropout`` between.

    The defaults are what the published table's validation folds chose.
    """

    name: ClassVar[str] = "mlp"
    hidden: tuple[int, ...] = (128, 64)
    members: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.members < 1 or any(width < 1 for width in self.hidden):
            raise ValueError(
                f"an mlp needs at least one member and widths of at least 1, "
                f"not members = {self.members}, hidden = {self.hidden}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout = {self.dropout} is no share: choose one from 0 to below 1")

    def build(self) -> Mlp:
        """Make an ensemble with fresh weights drawn from torch's global generator."""
        return Mlp(self)


class Mlp(FraudModel):
    """``settings.members`` nets over raw and logarithmic inputs; see ``FraudModel``."""

    mean: Tensor
    spread: Tensor

    def __init__(self, settings: MlpSettings) -> None:
        super().__init__()
        self.dropout = settings.dropout
        self.register_buffer("mean", torch.zeros(INPUTS))
        self.register_buffer("spread", torch.ones(INPUTS))
        widths = (INPUTS, *settings.hidden, 1)
        self.layers = nn.ModuleList(
            MemberLinear(settings.members, width_in, width_out)
            for width_in, width_out in pairwise(widths)
        )

    def fit_inputs(self, features: Tensor) -> None:
        """Set mean and spread of the inputs from raw training features, float32 [n, 15]."""
        found = InputRange.of(_expand(features))
        self.mean.copy_(found.mean)
        self.spread.copy_(found.spread)

    def prepare(self, features: Tensor) -> Tensor:
        """Return standardised raw and logarithmic inputs, float32 [n, 32]."""
        return (_expand(features) - self.mean) / self.spread

    def logits(self, prepared: Tensor) -> Tensor:
        """Return each member's logit, [members, n], for ``prepared`` inputs [n, 32]."""
        hidden = prepared
        for layer in self.layers[:-1]:
            hidden = functional.dropout(torch.relu(layer(hidden)), self.dropout, self.training)
        logit: Tensor = self.layers[-1](hidden).squeeze(-1)
        return logit


class MemberLinear(nn.Module):
    """One linear layer of every member: [n, in] or [members, n, in] to [members, n, out]."""

    def __init__(self, members: int, width_in: int, width_out: int) -> None:
        super().__init__()
        bound = math.sqrt(6 / width_in)  # He's uniform initialisation, for the ReLU that follows.
        self.weight = nn.Parameter(torch.empty(members, width_in, width_out))
        self.bias = nn.Parameter(torch.zeros(members, 1, width_out))
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return every member's product."""
        members = self.weight.shape[0]
        each = inputs.expand(members, -1, -1) if inputs.dim() == 2 else inputs
        return torch.baddbmm(self.bias, each, self.weight)


def _expand(features: Tensor) -> Tensor:
    """Raw features, logarithms of the heavy-tailed, and how now differs from the card's habit."""
    log = torch.log1p(features[:, HEAVY_TAILED].clamp_min(0))
    amount, counts, means = log[:, :1], log[:, 1:4], log[:, 4:7]
    change = torch.cat(
        [amount - means, means[:, :2] - means[:, 2:], counts[:, :2] - counts[:, 2:]], dim=1
    )
    return torch.cat([features, log, change], dim=1)
