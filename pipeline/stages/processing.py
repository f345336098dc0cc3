"""Processing: raw files become typed, ordered days without doubles; the rest is quarantined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from pipeline.artifact import Artifact
from pipeline.recipe import Recipe
from pipeline.stage import RunContext, StageResult


@dataclass(frozen=True, kw_only=True)
class ProcessingStage:
    """No settings: what a clean table is does not depend on the recipe."""

    name: ClassVar[str] = "processing"
    inputs: ClassVar[tuple[str, ...]] = ("raw",)
    outputs: ClassVar[tuple[str, ...]] = ("clean", "quarantine")
    code: ClassVar[tuple[str, ...]] = ("pipeline/data", "pipeline/stages/processing.py")

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> ProcessingStage:
        return cls()

    def run(self, context: RunContext, inputs: Mapping[str, Artifact], out: Path) -> StageResult:
        """Rows in = rows out + rows in quarantine, each of those with its reason."""
        from infra.cluster import open_cluster
        from pipeline.data.cleaning import clean

        with open_cluster(**asdict(context.cluster), local_directory=context.work) as cluster:
            report = clean(
                inputs["raw"].path, out / "clean", out / "quarantine", cluster, context.progress
            )
        context.recorder.count("rows", report.rows_in)
        return StageResult(
            rows={"clean": report.rows_out, "quarantine": report.rows_quarantined},
            rows_in=report.rows_in,
            summary={
                "rows_in": report.rows_in,
                "rows_out": report.rows_out,
                "rows_quarantined": report.rows_quarantined,
                "reasons": report.reasons,
                "unreadable_files": report.unreadable,
                "notes": report.notes,
            },
        )
