"""Where a request's time goes: the parts, their sum, their distribution, and the way to them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.online import OnlineFeatures
from infra.device import Device, choose_device
from infra.tensor_memory import LiveTensors
from serving.app import App, ServerSettings
from serving.batcher import Batcher
from serving.load import LoadSettings, payment_bodies, put_load
from serving.memory import ServingMemory
from serving.predictor import Model, Predictor
from serving.stats import (
    PARTS,
    SERVER,
    STATS_PATH,
    BatchTimes,
    Reading,
    ServerStats,
    Times,
    Work,
    read_stats,
)
from telemetry.handle import NullHandle
from tests.online_support import (
    TinyNet,
    dense_table,
    one_torch_thread,
    running,
    write_tiny_model,
)
from tests.redis_server import free_port

HOST = "127.0.0.1"
WAIT_S = 0.03


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


@pytest.fixture(scope="module")
def memory() -> ServingMemory:
    return ServingMemory(choose_device("cpu"))


@pytest.fixture
def predictor(memory: ServingMemory, tmp_path: Path) -> Predictor:
    from features.online_views import open_online_store

    model = Model.load(write_tiny_model(tmp_path / "model"))
    memory.predict(model, 256)
    store = open_online_store(tmp_path / "store", {"type": "sqlite"})
    return Predictor(model, OnlineFeatures(store), NullHandle())


@pytest.fixture
def bodies() -> Iterator[bytes]:
    return payment_bodies(dense_table(days=2, per_day=400, cards=30, terminals=10, seed=3))


def url(port: int, path: str = "/v2/models/card-fraud/infer") -> str:
    return f"http://{HOST}:{port}{path}"


def spent(reading: Reading) -> dict[str, float]:
    return {part: reading.seconds(part) for part in (*PARTS, SERVER)}


# The distribution


@given(st.lists(st.integers(0, 10**11), min_size=1, max_size=200), st.floats(0.01, 1))
@settings(max_examples=200, deadline=None)
def test_a_percentile_is_the_measured_one_or_a_thirtieth_more(ns: list[int], share: float) -> None:
    times = Times.none()
    for one in ns:
        times.add(one)
    exact = sorted(ns)[int(np.ceil(share * len(ns) - 1e-9)) - 1]
    assert exact <= times.percentile_ms(share) * 1e6 * (1 + 1e-12)
    assert times.percentile_ms(share) * 1e6 <= exact * (1 + 1 / 32) + 1 + 1e-6
    assert (times.count, times.ns) == (len(ns), sum(ns))


@given(st.lists(st.integers(0, 10**9)), st.lists(st.integers(0, 10**9), min_size=1))
@settings(max_examples=50, deadline=None)
def test_two_readings_give_what_came_between_them(before: list[int], after: list[int]) -> None:
    times, alone = Times.none(), Times.none()
    for one in before:
        times.add(one)
    earlier = Times.from_json(times.to_json())
    for one in after:
        times.add(one)
        alone.add(one)
    assert times.since(earlier) == alone


def test_nothing_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="no request was answered"):
        Times.none().percentile_ms(0.5)


def test_the_parts_leave_nothing_out() -> None:
    stats = ServerStats()
    batch = BatchTimes(taken_ns=130, features_ns=180, model_ns=200)
    stats.answered(100, Work(110, 2, batch), 260)
    stats.answered(105, Work(120, 3, batch), 270)
    said = stats.to_json("card-fraud", "1")
    ns = {part: said["parts"][part]["ns"] for part in (*PARTS, SERVER)}
    assert ns == {
        "read": 10 + 15,
        "queue": 20 + 10,
        "features": 50 + 50,
        "model": 20 + 20,
        "answer": 60 + 70,
        SERVER: 160 + 165,
    }
    assert sum(ns[part] for part in PARTS) == ns[SERVER]
    assert (said["inference_count"], said["execution_count"]) == (5, 1)


# The server


@pytest.mark.parametrize("slow", ["features", "model", "answer"])
def test_an_injected_wait_falls_into_its_part_and_the_parts_sum_to_what_the_client_saw(
    predictor: Predictor, bodies: Iterator[bytes], monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    import serving.app

    places = {
        "features": (predictor._online, "look_up"),
        "model": (predictor.model, "predict"),
        "answer": (serving.app, "render_infer"),
    }
    place, name = places[slow]
    whole = getattr(place, name)
    with running(predictor, ServerSettings()) as port:
        monkeypatch.setattr(place, name, lambda *given: (time.sleep(WAIT_S), whole(*given))[1])
        with httpx.Client() as client:
            begin = time.monotonic()
            for body in islice(bodies, 5):
                assert client.post(url(port), content=body).status_code == 200
            seen_s = time.monotonic() - begin
        reading = read_stats(HOST, port)
    parts = spent(reading)
    assert reading.requests == 5
    assert sum(parts[part] for part in PARTS) == pytest.approx(parts[SERVER], rel=1e-9)
    assert 0.7 * seen_s < parts[SERVER] <= seen_s
    assert parts[slow] >= 5 * WAIT_S
    assert all(parts[part] < 5 * WAIT_S for part in PARTS if part != slow)
    figures = reading.figures_since(
        Reading(times={part: Times.none() for part in (*PARTS, SERVER)}, memory={})
    )
    assert WAIT_S * 1e3 <= figures[slow]["p50_ms"] <= figures[slow]["p95_ms"]


def test_who_finds_the_worker_busy_waits_in_the_queue(
    predictor: Predictor, bodies: Iterator[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, held = threading.Event(), threading.Event()
    predict = predictor.model.predict

    def held_back(rows: Any) -> Any:
        busy.set()
        held.wait(20)
        return predict(rows)

    submitted: list[object] = []
    submit = Batcher.submit

    async def noted(batcher: Any, job: Any) -> Any:
        submitted.append(job)
        return await submit(batcher, job)

    monkeypatch.setattr(Batcher, "submit", noted)
    with running(predictor, ServerSettings()) as port:
        monkeypatch.setattr(predictor.model, "predict", held_back)
        threads = [
            threading.Thread(
                target=httpx.post, args=(url(port),), kwargs={"content": body, "timeout": 30}
            )
            for body in islice(bodies, 3)
        ]
        threads[0].start()
        assert busy.wait(20)
        for thread in threads[1:]:
            thread.start()
        while len(submitted) < len(threads):
            time.sleep(0.01)
        time.sleep(0.1)
        held.set()
        for thread in threads:
            thread.join()
        reading = read_stats(HOST, port)
    assert reading.requests == 3
    assert reading.seconds("queue") >= 2 * 0.1
    assert reading.seconds("model") >= 0.1


def test_triton_clients_find_the_statistics(predictor: Predictor, bodies: Iterator[bytes]) -> None:
    from tritonclient import http

    with running(predictor, ServerSettings()) as port:
        for body in islice(bodies, 4):
            assert httpx.post(url(port), content=body).status_code == 200
        assert httpx.post(url(port), content=b"{").status_code == 400
        with http.InferenceServerClient(f"{HOST}:{port}") as client:
            one = client.get_inference_statistics("card-fraud")["model_stats"][0]
            every = client.get_inference_statistics()["model_stats"]
        labels = httpx.get(url(port, "/v2/models/card-fraud-labels/stats"))
        assert httpx.post(url(port, "/v2/models/card-fraud/stats"), content=b"").status_code == 405
    assert [model["name"] for model in every] == ["card-fraud"]
    stats = one["inference_stats"]
    assert (one["inference_count"], one["execution_count"]) == (4, 4)
    assert (stats["success"]["count"], stats["fail"]["count"]) == (4, 1)
    assert stats["success"]["ns"] > stats["compute_infer"]["ns"] > 0
    assert labels.status_code == 404
    assert "card-fraud-labels has no statistics" in labels.json()["error"]


def test_the_statistics_ask_for_the_token(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_TOKEN", "s3cret")
    with running(predictor, ServerSettings(token_env="A_TOKEN")) as port:
        with pytest.raises(OSError, match=f"{HOST}:{port} gave no statistics: HTTP 401"):
            read_stats(HOST, port)
        assert read_stats(HOST, port, "s3cret").requests == 0


def test_a_server_that_is_not_there_is_an_oserror() -> None:
    with pytest.raises(OSError):  # noqa: PT011 - the system's own words
        read_stats(HOST, free_port())


def test_the_load_says_for_each_rate_where_the_servers_time_went(
    predictor: Predictor, bodies: Iterator[bytes]
) -> None:
    with running(predictor, ServerSettings()) as port:
        load = LoadSettings(port=port, rates=(30, 60), seconds=1, connections=8, parts=True)
        result = put_load(load, bodies)
        silent = put_load(LoadSettings(port=port, rates=(30,), seconds=0.3, warm_up_s=0), bodies)
    for rate in result.results:
        assert rate.parts is not None
        assert set(rate.parts) == {*PARTS, SERVER}
        means = {part: figures["mean_ms"] for part, figures in rate.parts.items()}
        assert sum(means[part] for part in PARTS) == pytest.approx(means[SERVER])
        assert 0 < means[SERVER] <= rate.mean_ms
        assert rate.parts[SERVER]["p50_ms"] <= rate.parts[SERVER]["p95_ms"]
    assert silent.results[0].parts is None


# Memory


def test_a_served_models_memory_is_predicted_from_its_program(
    predictor: Predictor, memory: ServingMemory
) -> None:
    said = memory.to_json()
    assert said["predicted"]["parameters_bytes"] == (15 + 1) * 4
    assert said["predicted"]["activations_bytes"] >= 256 * (15 * 4 + 15 * 4 + 4)
    assert said["predicted"]["batch_rows"] == 256
    assert said["gpu"] == "absent: the server scores on the CPU"
    assert said["device"]
    assert said["measured"].keys() & {"peak_bytes", "reason"}


def test_on_a_gpu_what_torch_counts_there_is_beside_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
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
    memory.predict(Model.load(write_tiny_model(tmp_path)), 256)
    said = memory.to_json()
    assert "gpu" not in said
    assert said["predicted"]["parameters_bytes"] == 2 * 512, "two tensors, each in a whole block"
    assert said["predicted"]["activations_bytes"] == 0, "no tensor was made on CUDA here"
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
        "host_to_device_bytes": (15 + 1) * 4 + 67 * 15 * 4,
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
