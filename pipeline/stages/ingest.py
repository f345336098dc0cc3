"""Ingest: raw card payments, generated or brought in, as one file a day."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pipeline.artifact import Artifact, digest_of
from pipeline.recipe import Recipe
from pipeline.stage import RunContext, StageResult


@dataclass(frozen=True, kw_only=True)
class IngestStage:
    """``source``: where raw data come from; ``fingerprint`` stands for what lies at ``path``."""

    name: ClassVar[str] = "ingest"
    inputs: ClassVar[tuple[str, ...]] = ()
    outputs: ClassVar[tuple[str, ...]] = ("raw",)
    code: ClassVar[tuple[str, ...]] = ("pipeline/data", "pipeline/stages/ingest.py")

    source: Literal["generator", "published", "files"]
    path: str = ""
    fingerprint: str = ""
    generator: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> IngestStage:
        data = recipe.data
        if data.source == "generator":
            return cls(source="generator", generator=data.model_dump(include=_GENERATOR_KEYS))
        path = data.path or os.environ.get(data.path_env or "", "")
        place = Path(path).expanduser().resolve()
        return cls(source=data.source, path=str(place), fingerprint=_fingerprint(place))

    def run(self, context: RunContext, inputs: Mapping[str, Artifact], out: Path) -> StageResult:
        """Generate, import or copy; returns rows and, where they are known, frauds by scenario."""
        raw = out / "raw"
        raw.mkdir()
        if self.source == "generator":
            return self._generate(context, raw)
        if self.source == "published":
            return self._import(context, raw)
        return self._copy(context, raw)

    def _generate(self, context: RunContext, raw: Path) -> StageResult:
        from infra.cluster import open_cluster
        from pipeline.data.drift import Drift
        from pipeline.data.generator import GeneratorSpec, generate

        settings = dict(self.generator)
        drift = Drift(**settings.pop("drift"))
        spec = GeneratorSpec(seed=context.seed, drift=drift, **settings)
        with open_cluster(**asdict(context.cluster), local_directory=context.work) as cluster:
            report = generate(spec, raw, cluster, context.progress)
        context.recorder.count("rows", report.rows)
        return StageResult(
            rows={"raw": report.rows},
            summary={
                "rows": report.rows,
                "files": report.files,
                "frauds": report.frauds,
                "table_digest": report.digest,
            },
        )

    def _import(self, context: RunContext, raw: Path) -> StageResult:
        from pipeline.data.handbook import import_published

        report = import_published(Path(self.path), raw, context.progress)
        context.recorder.count("rows", report.rows)
        return StageResult(
            rows={"raw": report.rows},
            bytes_in=_size(Path(self.path)),
            summary={"rows": report.rows, "files": report.files, "frauds": report.frauds},
        )

    def _copy(self, context: RunContext, raw: Path) -> StageResult:
        files = _files(Path(self.path))
        for done, file in enumerate(files, 1):
            shutil.copyfile(file, raw / file.name)
            context.progress(done, len(files))
        return StageResult(bytes_in=_size(Path(self.path)), summary={"files": len(files)})


_GENERATOR_KEYS = {"start", "days", "customers", "terminals", "drift"}


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(one for one in path.rglob("*") if one.is_file())


def _size(path: Path) -> int:
    return sum(one.stat().st_size for one in _files(path))


def _fingerprint(path: Path) -> str:
    """Digest of names, sizes and times of change: to read 100 GB for it costs too much."""
    stats = [(str(one), one.stat().st_size, one.stat().st_mtime_ns) for one in _files(path)]
    return digest_of(stats)[:16] if path.exists() else ""
