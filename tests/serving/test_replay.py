"""Online equals offline: a week replayed through HTTP, all fifteen features to the bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.contracts import FEATURES
from features.online import OnlineFeatures
from serving.app import ServerSettings
from serving.predictor import Model, Predictor
from telemetry.handle import NullHandle
from tests.online_support import (
    DAY_NS,
    START_S,
    dense_table,
    offline,
    one_torch_thread,
    running,
    times_ns,
    write_tiny_model,
)
from tests.redis_server import free_port, redis_on

BACKENDS = ("sqlite", pytest.param("redis", marks=pytest.mark.needs("redis-server")))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


@pytest.fixture(params=BACKENDS)
def online(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    if request.param == "sqlite":
        yield {"type": "sqlite"}
        return
    port = free_port()
    with redis_on(port, tmp_path):
        yield {"type": "redis", "connection_string": f"127.0.0.1:{port}"}


def between(table: pa.Table, start_ns: int, end_ns: int) -> pa.Table:
    time_ns = times_ns(table)
    return table.filter(pa.array((time_ns >= start_ns) & (time_ns < end_ns)))


def tensor(name: str, datatype: str, values: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(values)], "data": values.tolist()}


def identity(table: pa.Table) -> list[dict[str, Any]]:
    return [
        tensor("customer_id", "INT64", table["customer_id"].to_numpy()),
        tensor("terminal_id", "INT64", table["terminal_id"].to_numpy()),
        tensor("amount", "FP64", table["amount"].to_numpy()),
        tensor("event_time", "INT64", times_ns(table)),
    ]


def ask(client: httpx.Client, table: pa.Table) -> tuple[Any, Any]:
    """The features and probabilities of these payments, in one request."""
    outputs = [{"name": "features"}, {"name": "fraud_probability"}]
    request = {"inputs": identity(table), "outputs": outputs}
    answer = client.post("/v2/models/card-fraud/infer", content=json.dumps(request))
    assert answer.status_code == 200, answer.text
    features, probability = (output["data"] for output in answer.json()["outputs"])
    return np.array(features).reshape(-1, len(FEATURES)), np.array(probability)


def tell(client: httpx.Client, table: pa.Table) -> None:
    is_fraud = tensor("is_fraud", "BOOL", table["is_fraud"].to_numpy().astype(bool))
    request = {"inputs": [*identity(table), is_fraud]}
    answer = client.post("/v2/models/card-fraud-labels/infer", content=json.dumps(request))
    assert answer.status_code == 200, answer.text
    assert all(answer.json()["outputs"][0]["data"])


def replay(
    folder: Path, online: dict[str, str], table: pa.Table, first_ns: int, days: int, rows: int
) -> None:
    """State from before ``first_ns``; then each day the labels that come due, then the payments."""
    from features.online_views import open_online_store

    features = OnlineFeatures(open_online_store(folder / "store", online))
    features.load_state(between(table, 0, first_ns), known_until_ns=first_ns - 7 * DAY_NS - 1)
    model = Model.load(write_tiny_model(folder / "model"))
    predictor = Predictor(model, features, NullHandle())
    settings = ServerSettings(max_rows=100_000, max_body_bytes=1 << 26)
    answers, probabilities = [], []
    with (
        running(predictor, settings) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        for start_ns in range(first_ns, first_ns + days * DAY_NS, DAY_NS):
            tell(client, between(table, start_ns - 7 * DAY_NS, start_ns - 6 * DAY_NS))
            day = between(table, start_ns, start_ns + DAY_NS)
            for at in range(0, len(day), rows):
                got, probability = ask(client, day.slice(at, rows))
                answers.append(got)
                probabilities.append(probability)
    asked = times_ns(table) >= first_ns
    asked &= times_ns(table) < first_ns + days * DAY_NS
    expected = offline(table)[asked]
    got = np.concatenate(answers)
    assert got.shape == expected.shape
    for column, name in enumerate(FEATURES):
        assert np.array_equal(got[:, column], expected[:, column]), name
    assert np.concatenate(probabilities) == pytest.approx(model.predict(expected), abs=1e-6)


@pytest.mark.parametrize("rows", [1, 23])
def test_a_dense_week_with_ties_and_late_labels(
    tmp_path: Path, online: dict[str, str], rows: int
) -> None:
    table = dense_table(days=50, per_day=80, cards=20, terminals=12, seed=11)
    first_ns = (START_S + 43 * 86_400) * 10**9
    week = between(table, first_ns, first_ns + 7 * DAY_NS)
    second = times_ns(week) // 10**9
    for key in ("customer_id", "terminal_id"):
        pairs = np.stack([second, week[key].to_numpy()])
        assert np.unique(pairs, axis=1).shape[1] < len(week), f"no ties of {key}"
    replay(tmp_path, online, table, first_ns, days=7, rows=rows)


@pytest.mark.needs("handbook")
def test_days_of_the_published_table(
    tmp_path: Path, handbook: Path, online: dict[str, str]
) -> None:
    days = 7 if online["type"] == "sqlite" else 2
    published = pq.read_table(handbook)
    first_ns = int(np.datetime64("2018-08-08", "ns").astype(np.int64))
    second = published["TX_DATETIME"].cast(pa.timestamp("s")).to_numpy().astype(np.int64)
    starts = np.flatnonzero(np.concatenate([[True], second[1:] != second[:-1]]))
    ordinal = np.arange(len(second)) - np.repeat(starts, np.diff(np.append(starts, len(second))))
    table = pa.table(
        {
            "event_time": pa.array(second * 10**6 + ordinal, pa.timestamp("us")),
            "customer_id": published["CUSTOMER_ID"].cast(pa.int64()),
            "terminal_id": published["TERMINAL_ID"].cast(pa.int64()),
            "amount": published["TX_AMOUNT"],
            "is_fraud": published["TX_FRAUD"],
        }
    )
    recent = between(table, first_ns - 40 * DAY_NS, first_ns + days * DAY_NS)
    replay(tmp_path, online, recent, first_ns, days=days, rows=2_048)
