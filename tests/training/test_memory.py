"""Predicted memory against what torch's own profiler saw, and against the process's peak."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from infra.device import Device
from infra.tensor_memory import LiveTensors
from telemetry.handle import NullHandle
from training.loader import shuffled
from training.loop import Context, Fit, TrainingSettings
from training.memory import predict_memory, take_workspaces
from training.models.mlp import INPUTS, MlpSettings
from training.steps import HostStepClock

ROOT = Path(__file__).resolve().parents[2]
MODEL = MlpSettings(hidden=(64, 32), members=2)
SETTINGS = TrainingSettings(batch_size=2048, refit=False)
CUDA = Device(kind="cuda", name="test", index=0, amp=False)
ROWS = 20_000


def test_the_parts_are_those_of_the_model_and_its_optimiser(cpu) -> None:
    said = predict_memory(ROWS, model=MODEL, settings=SETTINGS, device=cpu)
    module = MODEL.build()
    weights = [one.nbytes for one in module.parameters()]
    assert said.parameters_bytes == sum(one.nbytes for one in module.state_dict().values())
    assert said.gradients_bytes == sum(weights)
    assert said.optimiser_bytes == 2 * sum(weights) + 4 * len(weights)
    assert said.averages_bytes == 2 * said.parameters_bytes
    assert said.table_bytes == 4 * ROWS + (32 * 4 + 8) * round(ROWS * 0.85)
    assert said.step_bytes <= said.peak_bytes


@pytest.mark.parametrize("amp", [False, True])
def test_a_predicted_step_is_what_torchs_profiler_sees_of_a_real_one(cpu, amp) -> None:
    device = replace(cpu, amp=amp)
    said = predict_memory(ROWS, model=MODEL, settings=SETTINGS, device=device)
    context = Context(
        model=MODEL,
        settings=SETTINGS,
        seed=1,
        device=device,
        handle=NullHandle(),
        clock=HostStepClock(NullHandle()),
    )
    rows = round(ROWS * 0.85)
    features, labels = torch.rand(rows, 15), torch.rand(rows)
    fit = Fit.begin(context, "search", features)
    prepared = fit.live.prepare(features)
    for inputs, targets in islice(shuffled(prepared, labels, 2048), 1):
        fit.descend(fit.logits(inputs), targets)
    del inputs, targets
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        for inputs, targets in islice(shuffled(prepared, labels, 2048), 1):
            fit.descend(fit.logits(inputs), targets)
    resident = (
        said.parameters_bytes
        + said.averages_bytes
        + said.gradients_bytes
        + said.optimiser_bytes
        + said.table_bytes
        - rows * 8  # the order, which the profiled step draws anew
    )
    assert _profiled_peak(profiler) == pytest.approx(said.step_bytes - resident, rel=0.03)


def _profiled_peak(profiler: torch.profiler.profile) -> int:
    events = profiler.profiler.kineto_results.events()
    moves = sorted((one.start_ns(), one.nbytes()) for one in events if one.name() == "[memory]")
    live = peak = 0
    for _, moved in moves:
        live += moved
        peak = max(peak, live)
    return peak


def test_activations_and_what_is_temporary_follow_the_batch_and_the_weights_do_not(cpu) -> None:
    small, large = (
        predict_memory(ROWS, model=MODEL, settings=replace(SETTINGS, batch_size=size), device=cpu)
        for size in (1024, 4096)
    )
    assert large.activations_bytes == pytest.approx(4 * small.activations_bytes, rel=0.01)
    assert large.parameters_bytes == small.parameters_bytes
    assert large.optimiser_bytes == small.optimiser_bytes
    assert small.activations_bytes >= 1024 * 2 * (64 + 32) * 4
    more = 4096 - 1024
    gathered = more * 4 * (INPUTS + 1)
    grown = large.activations_bytes - small.activations_bytes
    assert large.step_bytes - small.step_bytes > grown + gathered


def test_a_gpu_holds_the_raw_rows_too_in_blocks_and_half_the_activations_in_mixed_precision(
    cpu,
) -> None:
    on_cpu = predict_memory(ROWS, model=MODEL, settings=SETTINGS, device=cpu)
    on_gpu = predict_memory(ROWS, model=MODEL, settings=SETTINGS, device=CUDA)
    mixed = predict_memory(ROWS, model=MODEL, settings=SETTINGS, device=replace(CUDA, amp=True))
    assert on_gpu.table_bytes == pytest.approx(on_cpu.table_bytes + ROWS * 15 * 4, abs=5 * 512)
    assert on_gpu.parameters_bytes % 512 == 0
    assert mixed.activations_bytes < 0.7 * on_gpu.activations_bytes
    assert mixed.gradients_bytes == on_gpu.gradients_bytes


def test_a_training_that_no_machine_holds_is_predicted_at_once_and_draws_nothing(cpu) -> None:
    before = torch.get_rng_state()
    said = predict_memory(
        2_000_000_000,
        model=MlpSettings(hidden=(4096, 4096), members=8),
        settings=replace(SETTINGS, batch_size=1_000_000, refit=True),
        device=cpu,
    )
    assert said.activations_bytes > 200e9
    assert said.table_bytes > 250e9
    assert torch.equal(torch.get_rng_state(), before)


def test_workspaces_are_taken_by_a_product_of_each_half_and_on_a_gpu_alone(cpu) -> None:
    class Played(Device):
        @property
        def torch_name(self) -> str:
            return "cpu"

    def products(device: Device) -> list[str]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            take_workspaces(device)
        return [one.name for one in seen.events() if "bmm" in one.name.lower()]

    assert products(cpu) == []
    made = products(Played(kind="cuda", name="played", index=0, amp=True))
    assert {"aten::bmm", "BmmBackward0"} <= set(made)


def test_live_tensors_count_storages_once_and_only_while_they_live() -> None:
    before = torch.zeros(1000)
    with LiveTensors(block_bytes=512) as live:
        kept = torch.zeros(100)  # 400 bytes: one block
        view = kept[10:].view(-1)
        view += 1
        assert live.bytes == 512
        large = before + before
        assert live.bytes == 512 + 4096
        del large
        assert live.bytes == 512
        assert live.peak_bytes == live.restart_peak() == 512 + 4096
        assert live.peak_bytes == 512
        del kept
        assert live.bytes == 512
        del view
        assert live.bytes == 0


PEAK = """
import json, sys, tempfile
from pathlib import Path
import numpy as np
from infra.device import Device
from infra.memory_peak import watch_peak
from telemetry.handle import NullHandle
from training.batches import Rows
from training.loop import TrainingSettings, train
from training.memory import predict_memory
from training.models.mlp import MlpSettings

n = 24_000
random = np.random.default_rng(1)
whole = np.zeros(n, dtype=np.int64)
rows = Rows(features=random.random((n, 15), dtype=np.float32), transaction_id=whole,
            customer_id=whole, day=whole, is_fraud=random.random(n) < 0.1, fraud_scenario=whole)
cpu = Device(kind="cpu", name="test", index=None, amp=False)
given = {"model": MlpSettings(hidden=(256, 256), members=4),
         "settings": TrainingSettings(epochs=1, batch_size=20_000, refit=False), "device": cpu}
said = predict_memory(n, **given)
peak = watch_peak(cpu)
train(rows, seed=1, work=Path(tempfile.mkdtemp()), handle=NullHandle(), **given)
print(json.dumps([said.to_json(), peak.read().to_json(), watch_peak(cpu).read().to_json()]))
"""


def test_the_process_grows_by_what_was_predicted(cpu) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PEAK],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    said, measured, again = json.loads(done.stdout)
    assert said["peak_bytes"] > 250e6
    assert measured["peak_bytes"] == pytest.approx(said["peak_bytes"], rel=0.3)
    assert measured["how"].startswith("coarse")
    assert "peak_bytes" not in again
    assert "stayed below that" in again["reason"]
