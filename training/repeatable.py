"""What makes a training the same each time: streams, threads, and digests of what it is of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from infra.device import Device
from training.batches import Rows


def stream(seed: int, phase: int, epoch: int) -> int:
    """Seed of the random stream of one epoch; epoch 0 draws the first weights."""
    words = np.random.SeedSequence([seed, phase, epoch]).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


def fingerprint(rows: Rows, *about: Any) -> str:
    """What a checkpoint must agree with to be gone on from: the rows, and ``about`` as text."""
    digest = hashlib.sha256(repr(about).encode())
    digest.update(np.ascontiguousarray(rows.transaction_id).tobytes())
    digest.update(np.ascontiguousarray(rows.is_fraud).tobytes())
    return digest.hexdigest()


@contextmanager
def repeatable(cpu_threads: int, device: Device) -> Iterator[None]:
    """Let nothing but the seed decide, and leave the process as it was."""
    threads, was_strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(cpu_threads)
    torch.use_deterministic_algorithms(device.kind == "cpu")
    try:
        with torch.random.fork_rng(devices=[device.index] if device.index is not None else []):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(was_strict)


def state_digest(module: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and bits of a module's state."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
