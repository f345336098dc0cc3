"""Which GPU a vGPU profile belongs to, told by the profile's name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

_PROFILE = re.compile(r"^(?:grid|nvidia)_(?P<board>[a-z0-9_]+?)-(?:\d+-)?\d+[a-z]+\d*$")
_MODEL = re.compile(r"[a-z]+\d+")

BOARD_MEMORY_GIB: Mapping[str, float] = {
    "a2": 16,
    "a10": 24,
    "a16": 16,
    "a30": 24,
    "a40": 48,
    "a100": 40,  # PCIe
    "a100x": 40,  # HGX
    "a100d": 80,  # PCIe
    "a100dx": 80,  # HGX
    "a800": 40,
    "a800d": 80,
    "a800dx": 80,
    "h20": 96,
    "h20x": 141,
    "h100": 80,  # PCIe
    "h100xm": 80,  # SXM5
    "h100xs": 64,
    "h100l": 94,  # NVL
    "h100xl": 94,
    "h200": 141,  # NVL
    "h200x": 141,  # SXM5
    "l2": 24,
    "l4": 24,
    "l20": 48,
    "l40": 48,
    "l40s": 48,
    "rtx6000": 24,
    "rtx6000p": 24,
    "rtx8000": 48,
    "rtx8000p": 48,
    "rtxa5000": 24,
    "rtxa5500": 24,
    "rtxa6000": 48,
    "t4": 16,
    "v100": 16,
    "v100x": 16,
    "v100d": 32,
    "v100dx": 32,
    "v100l": 16,
}
"""Frame buffer of a GPU, by the board in its profiles' names.

From the vGPU types and boards in NVIDIA's vGPU and AI Enterprise documentation.
"""


def profile_board(profile: str) -> str | None:
    """The board of a profile: a100d for grid_a100d-3-40c; None where the name is another kind."""
    found = _PROFILE.match(profile.lower())
    return found["board"] if found else None


def board_memory_gib(profile: str) -> float | None:
    """Frame buffer of the GPU that a profile belongs to, GiB; None: not known."""
    return BOARD_MEMORY_GIB.get(profile_board(profile) or "")


def belongs_to(profile: str, device_name: str) -> bool | None:
    """Whether a profile is one of the named device; None where the names do not tell."""
    board = profile_board(profile)
    model = _MODEL.match(board) if board else None
    if model is None or not device_name:
        return None
    words = re.split(r"[^a-z0-9]+", device_name.lower())
    named = [
        one[0] for word in (*words, *map("".join, pairwise(words))) if (one := _MODEL.match(word))
    ]
    return model[0] in named if named else None


def nominal_gib(said_gib: float) -> float:
    """The size that a GPU is sold as: with ECC the driver reports up to a tenth less of it."""
    sizes = sorted(set(BOARD_MEMORY_GIB.values()))
    near = (size for size in sizes if said_gib <= size <= said_gib * 1.1)
    return next(near, float(-int(-said_gib // 1)))
