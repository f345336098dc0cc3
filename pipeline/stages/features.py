"""Features: the window tables, and the training table that Feast joins from them point in time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from pipeline.artifact import Artifact
from pipeline.recipe import Recipe
from pipeline.stage import RunContext, StageResult


@dataclass(frozen=True, kw_only=True)
class FeaturesStage:
    """``rows_per_partition`` bounds the memory of a task; ``device`` is where the kernel runs."""

    name: ClassVar[str] = "features"
    inputs: ClassVar[tuple[str, ...]] = ("clean",)
    outputs: ClassVar[tuple[str, ...]] = ("windows", "training_table")
    code: ClassVar[tuple[str, ...]] = ("features", "pipeline/stages/features.py")

    device: str
    rows_per_partition: int

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> FeaturesStage:
        return cls(**recipe.features.model_dump())

    def run(self, context: RunContext, inputs: Mapping[str, Artifact], out: Path) -> StageResult:
        """Build in Dask, then join in this process."""
        from infra.cluster import open_cluster
        from infra.device import choose_device
        from pipeline.data.schema import day_files

        files = day_files(inputs["clean"].path)
        device = choose_device(self.device)
        with context.recorder.phase("build_windows"):
            from features.build import build_tables

            with open_cluster(**asdict(context.cluster), local_directory=context.work) as cluster:
                built = build_tables(
                    files,
                    out / "windows",
                    cluster,
                    device.torch_name,
                    self.rows_per_partition,
                    lambda done, total: context.progress(done, 2 * total),
                )
        with context.recorder.phase("point_in_time_join"):
            from features.definitions import open_store
            from features.training_table import training_table

            store = open_store(context.work / "store", tables=out / "windows")
            table = training_table(
                store,
                files,
                out / "training_table",
                lambda done, total: context.progress(total + done, 2 * total),
            )
        context.recorder.count("rows", table.rows)
        return StageResult(
            rows={"windows": 2 * built.rows, "training_table": table.rows},
            rows_in=built.rows,
            summary={
                "rows": table.rows,
                "features": 15,
                "partitions": built.partitions,
                "spilled": built.spilled,
                "device": device.name,
            },
        )
