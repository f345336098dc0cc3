"""One checkpoint file in a stage's work folder: it is whole, or it is the one before."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

NAME = "checkpoint.pt"


def write_checkpoint(work: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint in ``work``; a kill or a power cut leaves the old or the new one."""
    work.mkdir(parents=True, exist_ok=True)
    part = work / f"{NAME}.part"
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(work / NAME)
    folder = os.open(work, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_checkpoint(work: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return the state last written under ``fingerprint``, on the CPU.

    None where there is no checkpoint or another training wrote it (other data, seed or settings).
    """
    path = work / NAME
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state if state["fingerprint"] == fingerprint else None
