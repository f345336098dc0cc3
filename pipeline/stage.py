"""What a stage is, what it is given, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pipeline.artifact import Artifact


class RecorderHandle(Protocol):
    """What a stage may tell the recorder about itself."""

    def phase(self, name: str) -> AbstractContextManager[None]: ...

    def count(self, metric: str, n: float = 1) -> None: ...


class Progress(Protocol):
    """Told how far a long piece of work has come."""

    def __call__(self, done: int, total: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What belongs to the run and not to a stage's settings. Passed, never global."""

    run_id: str
    seed: int
    device: str
    cluster: ClusterSettings
    recorder: RecorderHandle
    progress: Progress
    work: Path
    """Survives a kill: checkpoints. Empty at the first try under this stage's key."""


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Dask workers of the stages that use them."""

    workers: int
    threads_per_worker: int
    memory_limit_bytes: int | None
    scheduler: str | None


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage says about its run, beside the outputs that it wrote.

    ``rows`` counts the rows per output, ``summary`` holds figures for people and MLflow.
    """

    rows: dict[str, int] = field(default_factory=dict)
    rows_in: int | None = None
    bytes_in: int | None = None
    summary: dict[str, Any] = field(default_factory=dict)


class Stage(Protocol):
    """A frozen dataclass: its fields are its settings. It calls no other stage and no MLflow."""

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]
    outputs: ClassVar[tuple[str, ...]]
    code: ClassVar[tuple[str, ...]]
    """Packages and modules whose sources are part of the key of this stage's outputs."""

    def run(
        self, context: RunContext, inputs: Mapping[str, Artifact], out: Path
    ) -> StageResult: ...
