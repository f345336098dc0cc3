"""The training loop: the same for every model, seeded, and able to go on after a kill.

Two phases. ``search`` trains on the earlier part of the days, asks the later part (the hold-out,
never shuffled into the earlier) after each epoch, and stops when it no longer gains. ``refit``
trains a fresh model on all days for the best number of epochs, because the last days are worth
too much to be left out. Both phases train with a running average of the weights, which is the
model that is asked and kept.

Every epoch draws from a random stream of its own, made from the seed, the phase and the epoch: one
that starts from a checkpoint draws the same as one that was never stopped. On the CPU the number of
threads is a setting, so that sums are made in one order on any machine.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from infra.device import Device
from training.batches import Handle, Rows
from training.checkpoint import read_checkpoint, write_checkpoint
from training.copies import ORDER_BYTES_PER_ROW, Copies
from training.loader import gathered_bytes, shuffled
from training.models.base import FraudModel, ModelSettings
from training.repeatable import fingerprint, repeatable, stream
from training.steps import StepClock, StepTimes, step_clock

Phase = Literal["search", "refit"]
Progress = Callable[[int, int], None]
Weights = dict[str, Tensor]
PHASES: tuple[Phase, ...] = ("search", "refit")
WARM_UP_STEPS = 10
"""The average's memory grows with the steps until it reaches its setting; ten to begin with."""
SCORED_AT_ONCE = 262_144
"""Rows per call when a whole table is scored: some 100 MB of hidden values at most."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How any model is trained. Units: rows, epochs; rates are per step.

    The defaults are what the published table's validation folds chose for the mlp.
    """

    epochs: int = 12
    batch_size: int = 1024
    learning_rate: float = 8e-3
    weight_decay: float = 0.1
    average_decay: float = 0.99
    """Share of the running average of weights that one step keeps; 0 keeps the last weights."""
    patience: int = 3
    """Epochs without gain on the hold-out after which the search ends."""
    holdout_share: float = 0.15
    """The last share of the rows, in order of time, that the search does not train on."""
    refit: bool = True
    """Train on all rows afterwards, for as many epochs as the search found best."""
    cpu_threads: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience", "cpu_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: it must be at least 1")
        for name in ("holdout_share", "average_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: it must be from 0 to below 1")
        if self.holdout_share == 0:
            raise ValueError("holdout_share = 0: early stopping needs rows to ask; try 0.15")


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch gave: mean losses per row and member; no hold-out loss in a refit."""

    phase: Phase
    epoch: int
    loss: float
    holdout_loss: float | None


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model on the CPU, in evaluation mode, and how it came about."""

    module: FraudModel
    history: tuple[Epoch, ...]
    best_epoch: int
    """Epochs that the hold-out found best (1 is the first)."""
    resumed_epochs: int
    """Epochs that an earlier, killed training had done."""
    rows: int
    frauds: int
    steps: StepTimes
    """Where the time of the steps went; those of an earlier, killed training are not in it."""

    @property
    def whole(self) -> bool:
        """Whether it made steps in each of its phases: none had been ended by an earlier one."""
        now = {epoch.phase for epoch in self.history[self.resumed_epochs :]}
        return now == {epoch.phase for epoch in self.history}


def train(
    rows: Rows,
    *,
    model: ModelSettings,
    settings: TrainingSettings,
    seed: int,
    device: Device,
    work: Path,
    handle: Handle,
    progress: Progress | None = None,
) -> Trained:
    """Train a model on ``rows`` (in order of time) and return it with its history.

    A checkpoint is left in ``work`` after every epoch; a training with the same rows, settings and
    seed goes on from it to the same result, to the bit on a CPU. Raises ValueError where the rows
    cannot be split into a training part and a hold-out with a fraud in each.
    """
    cut = _cut(rows, settings)
    journal = _Journal(
        work=work,
        fingerprint=fingerprint(rows, model.name, model, settings, seed, device.kind),
        handle=handle,
        copies=Copies(device, handle),
        progress=progress,
    )
    resumed_epochs = journal.read()
    clock = step_clock(device, handle)
    with repeatable(settings.cpu_threads, device):
        context = Context(
            model=model, settings=settings, seed=seed, device=device, handle=handle, clock=clock
        )
        module = _search(context, rows, cut, journal)
        if settings.refit:
            module = _refit(context, rows, journal)
    journal.copies.from_gpu(module.state_dict())
    return Trained(
        module=module.cpu().eval(),
        history=tuple(journal.history),
        best_epoch=journal.best_epoch,
        resumed_epochs=resumed_epochs,
        rows=len(rows),
        frauds=int(rows.is_fraud.sum()),
        steps=clock.times(),
    )


def score(model: Callable[[Tensor], Tensor], rows: Rows) -> npt.NDArray[np.float32]:
    """Return the fraud probability, float32 [n], of ``rows`` under a model or exported program."""
    return probability(model, torch.from_numpy(rows.features)).numpy()


def probability(model: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """As ``score``, from raw features on the model's device, and answered there."""
    with torch.inference_mode():
        return torch.cat([model(part) for part in torch.split(features, SCORED_AT_ONCE)])


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a training is given, and what its steps are timed by."""

    model: ModelSettings
    settings: TrainingSettings
    seed: int
    device: Device
    handle: Handle
    clock: StepClock

    @property
    def copies(self) -> Copies:
        return Copies(self.device, self.handle)

    def tensors(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Raw features and labels (float32) on the device; on the CPU no feature is copied."""
        features = torch.from_numpy(rows.features)
        labels = torch.from_numpy(rows.is_fraud).float()
        if self.device.kind == "cpu":
            return features, labels
        with self.handle.phase("host_to_device"):
            self.copies.to_gpu((features, labels))
            return features.to(self.device.torch_name), labels.to(self.device.torch_name)

    def fresh_model(self, phase: Phase) -> FraudModel:
        """A model with the first weights of ``phase``, on the device."""
        torch.manual_seed(stream(self.seed, PHASES.index(phase), 0))
        model = self.model.build()
        self.copies.to_gpu(model.state_dict())
        return model.to(self.device.torch_name)


@dataclass(kw_only=True)
class _Journal:
    """How far a training is, and its checkpoints."""

    work: Path
    fingerprint: str
    handle: Handle
    copies: Copies
    progress: Progress | None
    history: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    best_loss: float = math.inf
    best_weights: Weights = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    """State of the phase that the last entry of the history belongs to."""

    def read(self) -> int:
        """Take up the checkpoint of an earlier try, if there is one; return its epochs."""
        state = read_checkpoint(self.work, self.fingerprint)
        if state is not None:
            self.history = [Epoch(**epoch) for epoch in state["history"]]
            self.best_epoch, self.best_loss = state["best_epoch"], state["best_loss"]
            self.best_weights, self.fit = state["best_weights"], state["fit"]
        return len(self.history)

    def write(self, epoch: Epoch, fit: Fit, total_epochs: int) -> None:
        """Enter an epoch and leave a checkpoint."""
        self.history.append(epoch)
        state = {
            "fingerprint": self.fingerprint,
            "history": [asdict(one) for one in self.history],
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "best_weights": self.best_weights,
            "fit": fit.state(),
        }
        with self.handle.phase("checkpoint"):
            self.copies.from_gpu(state)
            write_checkpoint(self.work, state)
        if self.progress is not None:
            self.progress(len(self.history), total_epochs)

    def begin(self, phase: Phase, fit: Fit) -> int:
        """Bring ``fit`` to where ``phase`` was left; return the first epoch that is missing."""
        done = sum(epoch.phase == phase for epoch in self.history)
        if done and self.history[-1].phase == phase:
            self.copies.to_gpu(self.fit)
            fit.load(self.fit)
        return done + 1


class Fit:
    """One model on its way: its weights, their running average, and the optimiser."""

    def __init__(
        self, context: Context, phase: Phase, live: FraudModel, average: FraudModel
    ) -> None:
        self.context, self.phase = context, phase
        self.live, self.average = live, average
        self.steps = 0
        self.optimiser = torch.optim.AdamW(
            self.live.parameters(),
            lr=context.settings.learning_rate,
            weight_decay=context.settings.weight_decay,
            fused=True,
        )

    @classmethod
    def begin(cls, context: Context, phase: Phase, features: Tensor) -> Fit:
        """A fresh model with the input scaler of ``features``; its average begins as its copy."""
        live = context.fresh_model(phase)
        live.fit_inputs(features)
        return cls(context, phase, live, copy.deepcopy(live))

    def run_epoch(self, epoch: int, prepared: Tensor, labels: Tensor) -> float:
        """Train on every row once, in the epoch's own order; return the mean loss."""
        torch.manual_seed(stream(self.context.seed, PHASES.index(self.phase), epoch))
        clock, batch_size = self.context.clock, self.context.settings.batch_size
        device = labels.device
        total = torch.zeros((), device=device)
        self.live.train()
        self.context.copies.bytes_to_gpu(ORDER_BYTES_PER_ROW * len(labels))
        clock.begin()
        for batch in shuffled(prepared, labels, batch_size):
            clock.lap("data_wait")
            inputs, targets = (tensor.to(device) for tensor in batch)
            clock.lap("host_to_device")
            total += self.descend(self.logits(inputs), targets) * len(targets)
            clock.lap("compute")
            clock.step_done(len(targets))
        mean = float(total) / len(labels)  # waits for the device
        clock.end()
        self.context.handle.count("epochs")
        self.context.handle.count("epoch_bytes", gathered_bytes(prepared, labels))
        return mean

    def logits(self, inputs: Tensor) -> Tensor:
        """The forward half of a step: float32 [members, n], with what the backward half needs."""
        device = self.context.device
        with torch.autocast(device.kind, dtype=torch.bfloat16, enabled=device.amp):
            return self.live.logits(inputs).float()

    def descend(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The backward half: gradients, optimiser, average. Returns the mean loss."""
        loss = functional.binary_cross_entropy_with_logits(logits, targets.expand_as(logits))
        self.optimiser.zero_grad()
        (loss * len(logits)).backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.steps += 1
        self._take_into_average()
        return loss.detach()

    def _take_into_average(self) -> None:
        kept = min(
            self.context.settings.average_decay, (1 + self.steps) / (WARM_UP_STEPS + self.steps)
        )
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.live.parameters()), 1 - kept
            )

    def state(self) -> dict[str, Any]:
        """Return all that goes on changing."""
        return {
            "live": self.live.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "steps": self.steps,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up what ``state`` returned."""
        self.live.load_state_dict(state["live"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.steps = state["steps"]


def _search(context: Context, rows: Rows, cut: int, journal: _Journal) -> FraudModel:
    """Find the number of epochs on the hold-out; return the model that was best there."""
    settings = context.settings
    features, labels = context.tensors(rows)
    fit = Fit.begin(context, "search", features[:cut])
    first = journal.begin("search", fit)
    prepared = fit.live.prepare(features[:cut])
    for epoch in range(first, settings.epochs + 1):
        if epoch - 1 - journal.best_epoch >= settings.patience or _in_refit(journal):
            break
        loss = fit.run_epoch(epoch, prepared, labels[:cut])
        with context.handle.phase("holdout"):
            holdout_loss = _loss(fit.average, features[cut:], labels[cut:])
        if holdout_loss < journal.best_loss:
            journal.best_epoch, journal.best_loss = epoch, holdout_loss
            journal.best_weights = copy.deepcopy(fit.average.state_dict())
        done = Epoch(phase="search", epoch=epoch, loss=loss, holdout_loss=holdout_loss)
        journal.write(done, fit, settings.epochs * (1 + settings.refit))
    fit.average.load_state_dict(journal.best_weights)
    return fit.average


def _refit(context: Context, rows: Rows, journal: _Journal) -> FraudModel:
    """Train a fresh model on all rows for the number of epochs that the search found."""
    features, labels = context.tensors(rows)
    fit = Fit.begin(context, "refit", features)
    first = journal.begin("refit", fit)
    prepared = fit.live.prepare(features)
    searched = sum(epoch.phase == "search" for epoch in journal.history)
    for epoch in range(first, journal.best_epoch + 1):
        loss = fit.run_epoch(epoch, prepared, labels)
        done = Epoch(phase="refit", epoch=epoch, loss=loss, holdout_loss=None)
        journal.write(done, fit, searched + journal.best_epoch)
    return fit.average


def _in_refit(journal: _Journal) -> bool:
    return bool(journal.history) and journal.history[-1].phase == "refit"


def held_out(rows: int, settings: TrainingSettings) -> int:
    """How many of so many rows the search only asks about."""
    return round(rows * settings.holdout_share)


def _cut(rows: Rows, settings: TrainingSettings) -> int:
    """First row of the hold-out."""
    cut = len(rows) - held_out(len(rows), settings)
    for part, frauds in (("first", rows.is_fraud[:cut]), ("held-out", rows.is_fraud[cut:])):
        if not frauds.any() or frauds.all():
            raise ValueError(
                f"the {part} {len(frauds)} of {len(rows)} training rows have {int(frauds.sum())} "
                f"frauds: a model needs both classes there. Train on more days, or on other ones"
            )
    return cut


def _loss(model: FraudModel, features: Tensor, labels: Tensor) -> float:
    """Mean log loss of the averaged probability, which is what the model answers with."""
    answered = probability(model.eval(), features)
    if not bool(torch.isfinite(answered).all()):
        raise ValueError(
            "the training diverged: the model answers with what is no number; lower "
            "model.learning_rate"
        )
    return float(functional.binary_cross_entropy(answered, labels))
