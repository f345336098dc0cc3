"""Training: one model per fold of the protocol; the last fold's is the candidate."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pipeline.artifact import Artifact
from pipeline.recipe import Recipe
from pipeline.stage import Progress, RecorderHandle, RunContext, StageResult

if TYPE_CHECKING:
    from infra.device import Device
    from infra.memory_peak import MeasuredPeak
    from training.loop import Trained
    from training.memory import PredictedMemory


GONE_ON = (
    "this fold went on from a checkpoint, and a phase of its training had ended before: the peak "
    "of the whole was not seen"
)


@dataclass(frozen=True, kw_only=True)
class TrainingStage:
    """``model`` holds the settings of the model, ``training`` those of the loop."""

    name: ClassVar[str] = "training"
    inputs: ClassVar[tuple[str, ...]] = ("training_table",)
    outputs: ClassVar[tuple[str, ...]] = ("model", "fold_models")
    code: ClassVar[tuple[str, ...]] = (
        "training",
        "features/contracts.py",
        "pipeline/stages/training.py",
    )

    folds: tuple[date, ...]
    train_days: int
    device: str
    model: Mapping[str, Any]
    training: Mapping[str, Any]

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> TrainingStage:
        settings = recipe.model.model_dump(exclude={"name", "device"})
        shape = {name: settings.pop(name) for name in ("hidden", "members", "dropout")}
        return cls(
            folds=recipe.protocol.folds,
            train_days=recipe.protocol.train_days,
            device=recipe.model.device,
            model=shape,
            training=settings,
        )

    def run(self, context: RunContext, inputs: Mapping[str, Artifact], out: Path) -> StageResult:
        """Train each fold, going on from its checkpoint after a kill, and export its program."""
        from infra.device import choose_device
        from training.batches import DayTable
        from training.export import export
        from training.loop import TrainingSettings, train
        from training.memory import predict_memory
        from training.models.mlp import MlpSettings
        from training.steps import StepTimes

        table = DayTable(folder=inputs["training_table"].path)
        device = choose_device(self.device)
        model, settings = MlpSettings(**self.model), TrainingSettings(**self.training)
        summary: dict[str, Any] = {"device": device.name, "folds": {}}
        rows_in, steps, memory = 0, [], _Memory(context.recorder, device)
        for number, fold in enumerate(self.folds):
            rows = table.read(fold, self.train_days, context.recorder)
            rows_in += len(rows)
            work = context.work / fold.isoformat()
            work.mkdir(exist_ok=True)
            trained = memory.watch(
                fold.isoformat(),
                predict_memory(len(rows), model=model, settings=settings, device=device),
                partial(
                    train,
                    rows,
                    model=model,
                    settings=settings,
                    seed=context.seed,
                    device=device,
                    work=work,
                    handle=context.recorder,
                    progress=partial(_of_all, context.progress, number, len(self.folds)),
                ),
            )
            steps.append(trained.steps)
            last_day = fold + timedelta(days=self.train_days - 1)
            place = out / "fold_models" / fold.isoformat()
            place.mkdir(parents=True)
            export(
                trained,
                place,
                {
                    "name": model.name,
                    "model": asdict(model),
                    "training": asdict(settings),
                    "seed": context.seed,
                    "first_day": fold.isoformat(),
                    "last_day": last_day.isoformat(),
                    "table_digest": inputs["training_table"].digest,
                },
            )
            summary["folds"][fold.isoformat()] = {
                "rows": trained.rows,
                "frauds": trained.frauds,
                "best_epoch": trained.best_epoch,
                "resumed_epochs": trained.resumed_epochs,
                "loss": trained.history[-1].loss,
            }
        summary["steps"] = StepTimes.of(steps).to_json()
        summary["memory"] = memory.tell()
        shutil.copytree(out / "fold_models" / self.folds[-1].isoformat(), out / "model")
        return StageResult(rows_in=rows_in, summary=summary)


class _OfFold(NamedTuple):
    """What one fold was predicted to take, and what it took."""

    fold: str
    predicted: PredictedMemory
    measured: MeasuredPeak

    def rank(self) -> tuple[bool, int]:
        """What was measured comes before what was not, and large before small."""
        return self.measured.peak_bytes is not None, self.predicted.peak_bytes


class _Memory:
    """Predicted against measured, both of one fold: of those measured the largest by prediction."""

    def __init__(self, recorder: RecorderHandle, device: Device) -> None:
        self._recorder, self._device = recorder, device
        self._folds: list[_OfFold] = []

    def watch(
        self, fold: str, predicted: PredictedMemory, training: Callable[[], Trained]
    ) -> Trained:
        """Do the training of a fold. Of one that fails the recorder is told what was predicted."""
        from infra.memory_peak import watch_peak
        from training.memory import take_workspaces

        take_workspaces(self._device)
        peak = watch_peak(self._device)
        try:
            trained = training()
        except BaseException:
            self._recorder.count("memory_predicted_bytes", predicted.peak_bytes)
            raise
        measured = peak.read()
        if not trained.whole:
            measured = replace(measured, peak_bytes=None, reason=GONE_ON)
        self._folds.append(_OfFold(fold, predicted, measured))
        return trained

    def tell(self) -> dict[str, Any]:
        """Tell the recorder both, and return them; on the CPU with why the GPU has no figures."""
        fold, predicted, measured = max(self._folds, key=_OfFold.rank)
        self._recorder.count("memory_predicted_bytes", predicted.peak_bytes)
        if measured.peak_bytes is not None:
            self._recorder.count("memory_measured_bytes", measured.peak_bytes)
        gpu = {"gpu": f"absent: the model was trained on the CPU ({self._device.name})"}
        return {
            "fold": fold,
            "predicted": predicted.to_json(),
            "measured": measured.to_json(),
            **({} if self._device.kind == "cuda" else gpu),
        }


def _of_all(progress: Progress, fold: int, folds: int, done: int, total: int) -> None:
    progress(fold * total + done, folds * total)
