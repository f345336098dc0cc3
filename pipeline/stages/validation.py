"""Validation: each fold's model on its own test days, and the gate before the champion's place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.artifact import Artifact
from pipeline.recipe import Recipe
from pipeline.stage import RunContext, StageResult

if TYPE_CHECKING:
    from training.protocol import AssessedRows


@dataclass(frozen=True, kw_only=True)
class ValidationStage:
    """The protocol's days, and what the gate compares by."""

    name: ClassVar[str] = "validation"
    inputs: ClassVar[tuple[str, ...]] = ("training_table", "model", "fold_models", "champion")
    outputs: ClassVar[tuple[str, ...]] = ("verdict",)
    code: ClassVar[tuple[str, ...]] = (
        "training",
        "features/contracts.py",
        "pipeline/stages/validation.py",
    )

    folds: tuple[date, ...]
    train_days: int
    delay_days: int
    test_days: int
    metric: str
    margin: float
    floor: float
    bootstrap_samples: int

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> ValidationStage:
        return cls(**recipe.protocol.model_dump(), **recipe.validation.model_dump())

    def run(self, context: RunContext, inputs: Mapping[str, Artifact], out: Path) -> StageResult:
        """Score the folds; on the last one's rows decide. Writes ``verdict.json``."""
        from training.batches import DayTable
        from training.export import load
        from training.loop import score
        from training.protocol import Window, assessed_rows
        from training.slices import evaluate, intervals, slices

        table = DayTable(folder=inputs["training_table"].path)
        assessed, metrics = None, {}
        rows_in = 0
        for number, fold in enumerate(self.folds):
            window = Window(
                train_start=fold,
                train_days=self.train_days,
                delay_days=self.delay_days,
                test_days=self.test_days,
            )
            assessed = assessed_rows(table, window, context.recorder)
            rows_in += len(assessed)
            with context.recorder.phase("score"):
                scores = score(load(inputs["fold_models"].path / fold.isoformat()), assessed.rows)
            metrics[fold.isoformat()] = evaluate(scores, assessed.rows)
            context.progress(number + 1, len(self.folds) + 1)
        assert assessed is not None
        verdict = self._decide(context.seed, inputs, assessed, scores)
        with context.recorder.phase("bootstrap"):
            bounds = intervals(
                scores, assessed.rows, samples=self.bootstrap_samples, seed=context.seed
            )
        context.progress(len(self.folds) + 1, len(self.folds) + 1)
        record = {
            **verdict,
            "metrics": metrics,
            "mean": _over_folds(metrics),
            "intervals": bounds,
            "slices": [one.as_json() for one in slices(scores, assessed)],
        }
        (out / "verdict").mkdir()
        (out / "verdict" / "verdict.json").write_text(json.dumps(record, indent=1) + "\n")
        summary = {
            "promote": verdict["promote"],
            "reasons": verdict["reasons"],
            **{name: metrics[self.folds[-1].isoformat()][name] for name in record["mean"]},
            **({"folds": {"count": len(metrics), **record["mean"]}} if len(metrics) > 1 else {}),
            "intervals": bounds,
            "slices": record["slices"],
        }
        return StageResult(rows_in=rows_in, summary=summary)

    def _decide(
        self, seed: int, inputs: Mapping[str, Artifact], assessed: AssessedRows, scores: Any
    ) -> dict[str, Any]:
        from training.export import describe, load
        from training.gate import Champion, GateSettings, decide
        from training.loop import score

        champion = None
        if "champion" in inputs:
            path = inputs["champion"].path
            said = describe(path)
            champion = Champion(
                scores=score(load(path), assessed.rows),
                first_day=date.fromisoformat(said["first_day"]),
                last_day=date.fromisoformat(said["last_day"]),
            )
        settings = GateSettings(
            margins={self.metric: self.margin},
            floors={self.metric: self.floor} if self.floor else {},
            bootstrap_samples=self.bootstrap_samples,
        )
        verdict = decide(scores, champion, assessed, settings=settings, seed=seed)
        return dict(verdict.as_json())


def _over_folds(metrics: Mapping[str, Mapping[str, float | None]]) -> dict[str, Any]:
    """Mean and standard deviation of each metric over the folds; None where a fold has none."""
    from statistics import mean, pstdev

    table: dict[str, Any] = {}
    for name in next(iter(metrics.values())):
        values = [one[name] for one in metrics.values()]
        known = [value for value in values if value is not None]
        whole = len(known) == len(values)
        table[name] = {"mean": mean(known), "sd": pstdev(known)} if whole else None
    return table
