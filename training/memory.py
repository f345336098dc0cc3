"""The memory that a training will take, from its own code run on tensors without contents.

The first steps of both phases are run as they will be, model, loss, optimiser and table included,
under torch's ``FakeTensorMode``: every tensor has its shape and type and takes no memory, and what
would be alive is counted. So the prediction follows the code, for any model, batch and precision.
It runs on fake tensors of the CPU also where the training will run on CUDA, because without a CUDA
build a CUDA tensor cannot even be imitated; mixed precision is then the CPU's, whose lists name the
same matrix products. What kernels take for themselves is not in it; on CUDA that is cuBLAS's
workspaces above all, which ``take_workspaces`` takes before anything is measured. On a CPU with AMX
oneDNN takes a third of a step for bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from features.contracts import FEATURES
from infra.device import Device
from infra.memory_peak import CUDA_BLOCK_BYTES
from infra.tensor_memory import LiveTensors
from telemetry.handle import NullHandle
from training.loader import shuffled
from training.loop import Context, Fit, Phase, TrainingSettings, held_out, probability
from training.models.base import ModelSettings
from training.steps import HostStepClock

WARM_STEPS = 2
"""The first makes gradients and the optimiser's state, the second has them."""


@dataclass(frozen=True, kw_only=True)
class PredictedMemory:
    """Bytes of tensors on the device, for a batch size and a number of rows.

    The parts are of the phase with the larger step. ``peak_bytes`` is the most that is alive at
    once, in ``peak_in``: ``prepare`` (scaling the inputs), ``step`` or ``holdout`` (scoring).
    """

    batch_size: int
    rows: int
    parameters_bytes: int
    """Parameters and buffers."""
    gradients_bytes: int
    optimiser_bytes: int
    activations_bytes: int
    """What the forward half of a step leaves for its backward half; it grows with the batch."""
    averages_bytes: int
    """The running average of the weights, and the best ones that are kept."""
    table_bytes: int
    """What the table takes on the device: inputs, labels and an epoch's order; on CUDA the raw rows
    as well. On the CPU the raw rows are the caller's."""
    step_bytes: int
    """The largest sum during a step. What the parts above do not hold of it is temporary and grows
    with the batch too: the gathered rows, and what the backward half makes."""
    peak_bytes: int
    peak_in: str

    def to_json(self) -> dict[str, Any]:
        """As it is."""
        return dict(vars(self))


def predict_memory(
    rows: int, *, model: ModelSettings, settings: TrainingSettings, device: Device
) -> PredictedMemory:
    """What a training on so many rows will hold at most; nothing of it is allocated."""
    context = Context(
        model=model,
        settings=settings,
        seed=0,
        device=Device(kind="cpu", name="fake", index=None, amp=device.amp),
        handle=NullHandle(),
        clock=HostStepClock(NullHandle()),
    )
    held, block = held_out(rows, settings), CUDA_BLOCK_BYTES if device.kind == "cuda" else 1
    phases = [_predict(context, "search", rows=rows - held, held=held, kept=1, block=block)]
    if settings.refit:
        phases.append(_predict(context, "refit", rows=rows, held=0, kept=2, block=block))
    largest = max(phases, key=lambda one: one.step_bytes)
    peak = max(phases, key=lambda one: one.peak_bytes)
    return replace(largest, peak_bytes=peak.peak_bytes, peak_in=peak.peak_in)


def take_workspaces(device: Device) -> None:
    """Have cuBLAS take its workspaces on ``device``, so that a peak watched from now on lacks them.

    torch takes one from its own allocator for each thread that multiplies matrices, and keeps it:
    one for this thread, and one for autograd's, in which the backward half runs. On the CPU there
    are none.
    """
    if device.kind == "cpu":
        return
    one = torch.ones(2, 8, 8, device=device.torch_name, requires_grad=True)
    torch.bmm(one, one).sum().backward()  # type: ignore[no-untyped-call]


def _predict(
    context: Context, phase: Phase, *, rows: int, held: int, kept: int, block: int
) -> PredictedMemory:
    """One phase; ``kept`` are the weights of earlier models that stay beside its own."""
    batch_size = context.settings.batch_size
    on_cpu = block == 1
    with (
        torch.random.fork_rng(devices=[]),
        FakeTensorMode(),
        LiveTensors(block_bytes=block) as live,
    ):
        features, labels = torch.empty(rows + held, len(FEATURES)), torch.empty(rows + held)
        given = features.nbytes if on_cpu else 0
        table = live.bytes - given
        module = context.model.build()
        parameters = live.bytes - given - table
        average = context.model.build()  # a copy would ask fake tensors for their contents
        peaks, before = {}, live.bytes
        module.fit_inputs(features[:rows])
        prepared = module.prepare(features[:rows])
        peaks["prepare"] = live.restart_peak()
        table += live.bytes - before
        fit = Fit(context, phase, module, average)
        activations = 0
        for inputs, targets in islice(shuffled(prepared, labels[:rows], batch_size), WARM_STEPS):
            activations = _step(fit, live, inputs, targets)
        peaks["step"] = live.restart_peak()
        if held:
            probability(average.eval(), features[rows:])
        peaks["holdout"] = live.restart_peak()
    peaks = {part: peak - given + kept * parameters for part, peak in peaks.items()}
    peak_in = max(peaks, key=lambda part: peaks[part])
    return PredictedMemory(
        batch_size=batch_size,
        rows=rows + held,
        parameters_bytes=parameters,
        gradients_bytes=_bytes(one.grad for one in module.parameters()),
        optimiser_bytes=_bytes(
            one for kind in fit.optimiser.state.values() for one in kind.values()
        ),
        activations_bytes=activations,
        averages_bytes=(1 + kept) * parameters,
        table_bytes=table + rows * torch.int64.itemsize,
        step_bytes=peaks["step"],
        peak_bytes=peaks[peak_in],
        peak_in=peak_in,
    )


def _step(fit: Fit, live: LiveTensors, inputs: Tensor, targets: Tensor) -> int:
    """One step; returns the bytes that its forward half leaves."""
    before = live.bytes
    logits = fit.logits(inputs)
    activations = live.bytes - before
    fit.descend(logits, targets)
    return activations


def _bytes(tensors: Iterable[Tensor | None]) -> int:
    return sum(one.nbytes for one in tensors if one is not None)
