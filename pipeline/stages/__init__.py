"""The six stages, in the order in which they run, made from a recipe."""

from __future__ import annotations

from pipeline.recipe import Recipe
from pipeline.stage import ClusterSettings, Stage
from pipeline.stages.features import FeaturesStage
from pipeline.stages.ingest import IngestStage
from pipeline.stages.processing import ProcessingStage
from pipeline.stages.serving import ServingStage
from pipeline.stages.training import TrainingStage
from pipeline.stages.validation import ValidationStage

STAGES = (
    IngestStage,
    ProcessingStage,
    FeaturesStage,
    TrainingStage,
    ValidationStage,
    ServingStage,
)


def build_stages(recipe: Recipe) -> list[Stage]:
    """The stages with the recipe's settings."""
    return [kind.from_recipe(recipe) for kind in STAGES]


def uses_cluster(stage: Stage) -> bool:
    """Whether the stage hands its work to Dask workers, or to those of ``cluster.scheduler``."""
    generates = isinstance(stage, IngestStage) and stage.source == "generator"
    return generates or isinstance(stage, ProcessingStage | FeaturesStage)


def cluster_settings(recipe: Recipe) -> ClusterSettings:
    """The Dask workers that the recipe asks for."""
    cluster = recipe.cluster
    return ClusterSettings(
        workers=cluster.workers,
        threads_per_worker=cluster.threads_per_worker,
        memory_limit_bytes=round(cluster.memory_limit_gib * 2**30),
        scheduler=cluster.scheduler or None,
    )
