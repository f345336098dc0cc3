"""What a served model takes: predicted without taking it, for the largest batch that can be and for
the largest that was scored; and what was copied to its device."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from features.online import OnlineFeatures
from infra.device import Device, choose_device
from infra.tensor_memory import LiveTensors
from serving.app import App, ServerSettings
from serving.memory import Prediction, ServingMemory
from serving.predictor import Model, Predictor
from serving.stats import STATS_PATH, read_stats
from telemetry.handle import NullHandle
from tests.online_support import TinyNet, one_torch_thread, running, write_tiny_model
from training.models.mlp import MlpSettings

HOST = "127.0.0.1"
NOW_NS = 1_700_000_000 * 10**9
WARM_UP_ROWS = 64
KEPT_BYTES = (15 + 1) * 4
MADE_PER_ROW = (15 + 15 + 1) * 4
"""Of a ``TinyNet``: inputs, inputs by a hundred, and their sum. The sigmoid takes less: by then the
second is gone."""


class NetWithView(TinyNet):
    """Looks at its weights through views, which take nothing."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return (features @ self.layer.weight.t() + self.layer.bias.view(1, 1)).squeeze(1)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


@pytest.fixture
def memory() -> ServingMemory:
    return ServingMemory(choose_device("cpu"))


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model.load(write_tiny_model(tmp_path / "model"))


@pytest.fixture
def predictor(model: Model, tmp_path: Path) -> Predictor:
    from features.online_views import open_online_store

    store = open_online_store(tmp_path / "store", {"type": "sqlite"})
    return Predictor(model, OnlineFeatures(store), NullHandle())


# Predicted


@pytest.mark.parametrize("build", [TinyNet, NetWithView, MlpSettings(hidden=(64, 32)).build])
def test_a_predicted_call_is_what_torchs_profiler_sees_of_a_real_one(
    tmp_path: Path, build: Callable[[], torch.nn.Module]
) -> None:
    net = build()
    model = Model.load(write_tiny_model(tmp_path, net))
    features = np.zeros((1000, 15))
    model.predict(features)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        model.predict(features)
    kept, made = model.predicted_bytes(1000)
    assert kept == model.parameters_bytes() == sum(one.nbytes for one in net.state_dict().values())
    assert made == pytest.approx(profiled_peak(profiler), rel=0.03)


def profiled_peak(profiler: torch.profiler.profile) -> int:
    events = profiler.profiler.kineto_results.events()
    moves = sorted((one.start_ns(), one.nbytes()) for one in events if one.name() == "[memory]")
    live = peak = 0
    for _, moved in moves:
        live += moved
        peak = max(peak, live)
    return peak


def test_a_view_of_a_weight_is_not_made_by_a_call(tmp_path: Path) -> None:
    model = Model.load(write_tiny_model(tmp_path, NetWithView()))
    assert model.predicted_bytes(1) == (KEPT_BYTES, (15 + 1 + 1) * 4)


def test_what_is_predicted_grows_with_the_rows_and_by_whole_blocks(model: Model) -> None:
    kept, made = model.predicted_bytes(1)
    assert (kept, made) == (KEPT_BYTES, MADE_PER_ROW)
    assert model.predicted_bytes(4096) == (kept, 4096 * made)
    in_blocks = model.predicted_bytes(1, block_bytes=512)
    assert in_blocks == (2 * 512, 3 * 512), "two weights, three tensors, each in a block of its own"


def test_a_batch_that_no_machine_holds_is_predicted_and_nothing_is_run(model: Model) -> None:
    rows = 10**12
    features = np.random.default_rng(1).random((5, 15))
    before = model.predict(features)
    assert model.predicted_bytes(rows) == (KEPT_BYTES, rows * MADE_PER_ROW)
    assert model.largest_batch_rows == 5
    assert np.array_equal(model.predict(features), before)


def test_predicting_takes_no_tensor_of_the_device(model: Model) -> None:
    model.predicted_bytes(100_000)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        model.predicted_bytes(100_000)
    assert profiled_peak(profiler) < 100_000


@pytest.mark.parametrize(("block_bytes", "off_bytes"), [(1, 1), (512, 10 * 512)])
def test_a_batch_between_takes_what_the_line_to_the_largest_says(
    tmp_path: Path, block_bytes: int, off_bytes: int
) -> None:
    model = Model.load(write_tiny_model(tmp_path, MlpSettings(hidden=(64, 32)).build()))
    prediction = Prediction.of(model, 4096, block_bytes)
    for rows in (1, 7, 64, 1000, 4096):
        kept, made = model.predicted_bytes(rows, block_bytes)
        said = prediction.batch(rows)
        assert said["parameters_bytes"] == kept
        assert said["activations_bytes"] == pytest.approx(made, abs=off_bytes)
        assert said["peak_bytes"] == kept + said["activations_bytes"]
    assert prediction.batch(4096)["activations_bytes"] == made


# The largest batch that can be, and the largest that was


@pytest.mark.parametrize(("max_rows", "largest"), [(300, 300), (50, 256)])
def test_the_largest_batch_that_can_be_is_one_request_or_several_together(
    predictor: Predictor, memory: ServingMemory, max_rows: int, largest: int
) -> None:
    settings = ServerSettings(max_rows=max_rows, max_batch_rows=256)
    with running(predictor, settings, memory=memory) as port:
        said = read_stats(HOST, port).memory
    assert said["predicted"] == {
        "batch_rows": largest,
        "parameters_bytes": KEPT_BYTES,
        "activations_bytes": largest * MADE_PER_ROW,
        "peak_bytes": KEPT_BYTES + largest * MADE_PER_ROW,
    }
    assert said["predicted_scored"]["batch_rows"] == WARM_UP_ROWS, "the server ran no more"


def test_what_was_measured_has_a_prediction_for_the_largest_batch_that_was_scored(
    predictor: Predictor, memory: ServingMemory
) -> None:
    with running(predictor, ServerSettings(max_rows=300, max_batch_rows=8), memory=memory) as port:
        scored = []
        for rows in (3, 200, 100):
            sent = httpx.post(f"http://{HOST}:{port}/v2/models/card-fraud/infer", json=body(rows))
            assert sent.status_code == 200
            scored.append(read_stats(HOST, port).memory["predicted_scored"])
        said = read_stats(HOST, port).memory
    assert [one["batch_rows"] for one in scored] == [WARM_UP_ROWS, 200, 200]
    assert scored[-1]["peak_bytes"] == KEPT_BYTES + 200 * MADE_PER_ROW
    assert said["predicted"]["batch_rows"] == 300
    assert said["measured"].keys() & {"peak_bytes", "reason"}


def body(rows: int) -> dict[str, Any]:
    columns = {"customer_id": [1], "terminal_id": [2], "amount": [10.0], "event_time": [NOW_NS]}
    return {
        "inputs": [
            {
                "name": name,
                "datatype": "FP64" if name == "amount" else "INT64",
                "shape": [rows],
                "data": value * rows,
            }
            for name, value in columns.items()
        ]
    }


def test_before_a_batch_was_scored_there_is_a_reason(memory: ServingMemory, model: Model) -> None:
    memory.predict(model, 256)
    said = memory.to_json()
    assert said["predicted"]["batch_rows"] == 256
    assert said["predicted_scored"] == {"reason": "no batch was scored yet"}
    assert said["gpu"] == "absent: the server scores on the CPU"
    assert said["device"]


def test_on_a_gpu_what_torch_counts_there_is_beside_the_process(
    monkeypatch: pytest.MonkeyPatch, model: Model
) -> None:
    """The allocator's counts are given, and the model itself stays on the CPU."""
    counts = {
        "reset_peak_memory_stats": 0,
        "memory_allocated": 1000,
        "max_memory_allocated": 51_000,
        "max_memory_reserved": 1 << 21,
    }
    for name, value in counts.items():
        monkeypatch.setattr(torch.cuda, name, lambda index, value=value: value)
    memory = ServingMemory(Device(kind="cuda", name="a GPU", index=0, amp=True))
    memory.predict(model, 1000)
    said = memory.to_json()
    assert "gpu" not in said
    assert said["predicted"]["parameters_bytes"] == 2 * 512, "two tensors, each in a whole block"
    assert said["predicted"]["activations_bytes"] % 512 == 0
    assert said["predicted"]["activations_bytes"] >= 1000 * MADE_PER_ROW
    assert said["measured"]["peak_bytes"] == 50_000
    assert said["measured"]["reserved_bytes"] == 1 << 21
    assert said["process"].keys() & {"peak_bytes", "reason"}


def test_a_model_is_moved_with_its_constants_and_batches_follow_it(tmp_path: Path) -> None:
    class WithConstant(TinyNet):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return super().forward(features + torch.arange(features.shape[1]))

    model = Model.load(write_tiny_model(tmp_path, WithConstant()), device="meta")
    with (
        LiveTensors(kind="meta") as live,
        LiveTensors(kind="meta", block_bytes=1 << 20) as in_blocks,
        LiveTensors(kind="cpu") as on_host,
        pytest.raises(NotImplementedError, match="meta"),  # its answer has no contents
    ):
        model.predict(np.zeros((64, 15)))
    assert live.peak_bytes >= 64 * 15 * 4
    assert in_blocks.peak_bytes >= 2 << 20
    assert in_blocks.peak_bytes % (1 << 20) == 0
    assert on_host.peak_bytes == 64 * 15 * (8 + 4), "the batch, as it came and as it goes over"


def test_the_statistics_carry_the_memory_where_it_is_watched(
    predictor: Predictor, memory: ServingMemory
) -> None:
    assert "memory" not in asked_without_a_server(App(predictor, ServerSettings(), NullHandle()))
    memory.predict(predictor.model, 256)
    watched = App(predictor, ServerSettings(), NullHandle(), memory)
    assert asked_without_a_server(watched)["memory"]["predicted"]["batch_rows"] == 256


def test_what_a_model_copies_to_and_from_its_device_is_counted_and_told(
    predictor: Predictor,
) -> None:
    """By its number the CPU is another device to the model, and computes all the same."""
    app = App(predictor, ServerSettings(), NullHandle())
    assert predictor.model.copies == {}
    assert "copies" not in asked_without_a_server(app)
    predictor.model = Model(TinyNet().eval(), "1", "cpu:0")
    for rows in (64, 3):
        predictor.model.predict(np.zeros((rows, 15)))
    assert asked_without_a_server(App(predictor, ServerSettings(), NullHandle()))["copies"] == {
        "host_to_device_bytes": KEPT_BYTES + 67 * 15 * 4,
        "device_to_host_bytes": 67 * 4,
    }


def asked_without_a_server(app: App) -> dict[str, Any]:
    """The statistics of payments, from the application itself."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def ask() -> None:
        scope = {"type": "http", "method": "GET", "path": STATS_PATH, "headers": []}
        await app(scope, receive, send)
        await app.batcher.close()

    async def receive() -> dict[str, Any]:
        raise AssertionError("a GET has no body")

    asyncio.run(ask())
    stats: dict[str, Any] = json.loads(sent[1]["body"])["model_stats"][0]
    return stats
