"""Where a request's time goes: the parts, their sum, their distribution, and the way to them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.online import OnlineFeatures
from serving.app import ServerSettings
from serving.batcher import Batcher
from serving.load import LoadSettings, payment_bodies, put_load
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
from tests.online_support import dense_table, one_torch_thread, running, write_tiny_model
from tests.redis_server import free_port

HOST = "127.0.0.1"
WAIT_S = 0.03


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    from features.online_views import open_online_store

    model = Model.load(write_tiny_model(tmp_path / "model"))
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
    assert (one["payments_lost"], one["labels_never_arrived"]) == (0, 0)
    assert (stats["success"]["count"], stats["fail"]["count"]) == (4, 1)
    assert stats["success"]["ns"] > stats["compute_infer"]["ns"] > 0
    assert labels.status_code == 404
    assert "card-fraud-labels has no statistics" in labels.json()["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/card-fraud/infer",
        "/v2/models/card-fraud/infer/",
        "/v2/models/card-fraud/versions/1/infer",
        "/v2/models/card-fraud/versions/1/infer/",
    ],
)
def test_failures_are_counted_wherever_successes_are(
    predictor: Predictor, bodies: Iterator[bytes], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    def broken(rows: Any) -> Any:
        raise RuntimeError("no memory")

    with running(predictor, ServerSettings()) as port:
        assert httpx.post(url(port, path), content=next(bodies)).status_code == 200
        assert httpx.post(url(port, path), content=b"{").status_code == 400
        for other in ("/v2/models/card-fraud/versions/9/infer", "/v3/models/card-fraud/infer"):
            assert httpx.post(url(port, other), content=b"{").status_code in (404, 405)
        monkeypatch.setattr(predictor.model, "predict", broken)
        assert httpx.post(url(port, path), content=next(bodies)).status_code == 503
        stats = httpx.get(url(port, STATS_PATH)).json()["model_stats"][0]["inference_stats"]
    assert (stats["success"]["count"], stats["fail"]["count"]) == (1, 2)


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
