"""The batches of an epoch, gathered from a table that lies whole on one device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]


def shuffled(inputs: Tensor, labels: Tensor, batch_size: int) -> Iterator[Batch]:
    """Every row once, in an order drawn from torch's generator, where the tensors lie."""
    order = torch.randperm(len(labels)).to(labels.device)
    for chosen in torch.split(order, batch_size):
        yield inputs[chosen], labels[chosen]


def gathered_bytes(inputs: Tensor, labels: Tensor) -> int:
    """Bytes that all batches of one ``shuffled`` take from the table: each row once."""
    return inputs.nbytes + labels.nbytes
