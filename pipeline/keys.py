"""The key of a stage's outputs: a digest of all that could change them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.artifact import Artifact, digest_of
from pipeline.stage import Stage

PACKAGES = ("dask", "feast", "mlflow", "numpy", "pandas", "polars", "pyarrow", "torch")
"""Packages whose version may change an output."""

_ROOT = Path(__file__).resolve().parent.parent


def stage_key(stage: Stage, inputs: Mapping[str, Artifact], seed: int) -> str:
    """Digest over settings, inputs, seed, the stage's sources and package versions."""
    return digest_of(
        {
            "stage": stage.name,
            "settings": settings_of(stage),
            "inputs": {name: artifact.digest for name, artifact in inputs.items()},
            "seed": seed,
            "code": code_digest(stage.code),
            "packages": package_versions(),
        }
    )[:24]


def settings_of(stage: Stage) -> dict[str, Any]:
    """The stage's settings as plain values."""
    return asdict(stage)  # type: ignore[call-overload,no-any-return]  # stages are dataclasses


@cache
def code_digest(modules: tuple[str, ...]) -> str:
    """Digest of the sources of packages and modules given as paths below the project's root."""
    total = hashlib.sha256()
    for module in sorted(modules):
        place = _ROOT / module
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            total.update(f"{path.relative_to(_ROOT)}\0".encode() + path.read_bytes())
    return total.hexdigest()


@cache
def package_versions() -> dict[str, str]:
    """Installed versions of the packages that may change an output."""
    return {name: metadata.version(name) for name in PACKAGES}
