"""The server over real sockets: tritonclient, broken requests, tokens, overload, a lost store."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.online import OnlineFeatures, Payments
from serving.app import ServerSettings
from serving.predictor import Model, Predictor
from serving.server import main
from telemetry.handle import NullHandle
from tests.online_support import one_torch_thread, running, write_tiny_model
from tests.redis_server import free_port, redis_on

NOW_NS = 1_700_000_000 * 10**9
INFER = "/v2/models/card-fraud/infer"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return Model.load(write_tiny_model(folder / "model"))


@pytest.fixture(scope="module")
def store(folder: Path) -> Any:
    from features.online_views import open_online_store

    return open_online_store(folder / "store", {"type": "sqlite"})


@pytest.fixture(scope="module")
def predictor(model: Model, store: Any) -> Predictor:
    return Predictor(model, OnlineFeatures(store), NullHandle())


@pytest.fixture(scope="module")
def port(predictor: Predictor) -> Iterator[int]:
    with running(predictor, ServerSettings(max_body_bytes=100_000, max_rows=50)) as port:
        yield port


def body(rows: int = 1, **columns: list[Any]) -> dict[str, Any]:
    values = {
        "customer_id": [1] * rows,
        "terminal_id": [2] * rows,
        "amount": [10.0] * rows,
        "event_time": [NOW_NS] * rows,
        **columns,
    }
    return {
        "inputs": [
            {
                "name": name,
                "datatype": "FP64" if name == "amount" else "INT64",
                "shape": [len(data)],
                "data": data,
            }
            for name, data in values.items()
        ]
    }


def inputs_of(columns: dict[str, Any], binary: bool) -> list[Any]:
    from tritonclient import http

    types = {"amount": "FP64", "is_fraud": "BOOL"}
    inputs = []
    for name, values in columns.items():
        inputs.append(http.InferInput(name, [len(values)], types.get(name, "INT64")))
        inputs[-1].set_data_from_numpy(np.asarray(values), binary_data=binary)
    return inputs


@pytest.fixture
def client(port: int) -> Iterator[Any]:
    from tritonclient import http

    with http.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield client


def test_tritonclient_finds_a_live_ready_server_and_its_models(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("card-fraud")
    assert client.is_model_ready("card-fraud-labels", "1")
    assert not client.is_model_ready("card-fraud", "9")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "statistics"]
    about = client.get_model_metadata("card-fraud")
    assert [tensor["name"] for tensor in about["inputs"]] == [
        "customer_id",
        "terminal_id",
        "amount",
        "event_time",
    ]
    assert about["outputs"][1] == {"name": "features", "datatype": "FP64", "shape": [-1, 15]}


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_tritonclient_infers_in_json_and_in_binary(
    client: Any, model: Model, binary_in: bool, binary_out: bool | None
) -> None:
    from tritonclient import http

    card = int(binary_in) * 10 + {True: 1, False: 2, None: 3}[binary_out] + 100
    columns = {
        "customer_id": np.array([card, card]),
        "terminal_id": np.array([7, 7]),
        "amount": np.array([1.5, 2.25]),
        "event_time": np.array([NOW_NS, NOW_NS + 10**9]),
    }
    names = ("fraud_probability", "features")
    asked = [http.InferRequestedOutput(name, binary_data=binary_out) for name in names]
    answer = client.infer(
        "card-fraud",
        inputs_of(columns, binary_in),
        outputs=None if binary_out is None else asked,
        request_id="r1",
    )
    assert answer.get_response()["id"] == "r1"
    probability = answer.as_numpy("fraud_probability")
    assert probability.dtype == np.float32
    assert probability.shape == (2,)
    features = answer.as_numpy("features")
    if binary_out is None:
        assert features is None
    else:
        assert features[:, 3].tolist() == [1, 2]
        assert features[1, 6] == (150 + 225) / 200
        assert np.array_equal(model.predict(features.copy()), probability)


def test_labels_come_as_a_model_of_their_own(client: Any) -> None:
    paid = {
        "customer_id": np.array([900]),
        "terminal_id": np.array([901]),
        "amount": np.array([3.25]),
        "event_time": np.array([NOW_NS]),
    }
    client.infer("card-fraud", inputs_of(paid, True))
    for customer, known in ((900, True), (999, False)):
        label = {**paid, "customer_id": np.array([customer]), "is_fraud": np.array([True])}
        for binary in (True, False):
            answer = client.infer("card-fraud-labels", inputs_of(label, binary))
            assert answer.as_numpy("found").tolist() == [known]
    later = {**paid, "event_time": np.array([NOW_NS + 8 * 86_400 * 10**9])}
    from tritonclient import http

    asked = [http.InferRequestedOutput("features")]
    features = client.infer("card-fraud", inputs_of(later, True), outputs=asked)
    assert features.as_numpy("features")[0, 13] == 1.0


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "says"),
    [
        ("GET", "/", None, 404, "/v2"),
        ("GET", "/v2/models/fraud", None, 404, "no model 'fraud'"),
        ("GET", "/v2/models/card-fraud/versions/2", None, 404, "no version '2'"),
        ("POST", "/v2/models/fraud/infer", "{}", 404, "card-fraud"),
        ("GET", "/v2/models/card-fraud/config", None, 404, "nothing at"),
        ("GET", INFER, None, 405, "use POST"),
        ("POST", "/v2", "{}", 405, "use GET"),
        ("DELETE", "/v2/models/card-fraud", None, 405, "use GET"),
        ("POST", INFER, "{", 400, "not JSON"),
        ("POST", INFER, "", 400, "not JSON"),
        ("POST", INFER, json.dumps(body(51)), 400, "1 to 50"),
        ("POST", INFER, json.dumps(body(amount=[float("nan")])), 400, "NaN"),
        ("POST", INFER, json.dumps(body(amount=[-1])), 400, "amount[0] is -1"),
        ("POST", INFER, json.dumps(body(event_time=[2**62])), 400, "ahead of this server"),
        ("POST", INFER, " " * 100_001, 413, "larger than 100000 bytes"),
    ],
)
def test_what_is_wrong_is_a_4xx_with_a_sentence(
    port: int, method: str, path: str, content: str | None, status: int, says: str
) -> None:
    answer = httpx.request(method, f"http://127.0.0.1:{port}{path}", content=content)
    assert answer.status_code == status
    assert says in answer.json()["error"]


def test_a_compressed_body_is_refused(port: int) -> None:
    headers = {"content-encoding": "gzip"}
    answer = httpx.post(f"http://127.0.0.1:{port}{INFER}", content=b"x", headers=headers)
    assert answer.status_code == 415


def test_a_body_in_chunks_is_bounded_too(port: int) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 10_000

    answer = httpx.post(f"http://127.0.0.1:{port}{INFER}", content=chunks())
    assert answer.status_code == 413


def raw(port: int, sent: bytes, wait_s: float = 0.3) -> bytes:
    """Send bytes, close the sending side, return what comes."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as connection:
        received = b""
        with contextlib.suppress(OSError):
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65_536):
                received += part
        return received


def assert_alive(port: int) -> None:
    answer = httpx.post(f"http://127.0.0.1:{port}{INFER}", json=body())
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{}",
        b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n{",
        b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
        b"GET /%ff%00 HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_broken_http_neither_gets_a_500_nor_stops_the_server(port: int, sent: bytes) -> None:
    received = raw(port, sent)
    assert not received.startswith(b"HTTP/1.1 5")
    assert_alive(port)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_mangled_request_neither_gets_a_500_nor_stops_the_server(
    port: int, data: st.DataObject
) -> None:
    content = json.dumps(body()).encode()
    head = b"POST %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    sent = bytearray(head % (INFER.encode(), len(content)) + content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(sent) - 1))
        sent[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    received = raw(port, bytes(sent), wait_s=0.1)
    assert not received.startswith(b"HTTP/1.1 5")


def test_the_server_lives_after_all_that(port: int) -> None:
    assert_alive(port)


def test_one_who_leaves_in_the_middle_of_a_body_hurts_nobody(port: int) -> None:
    for _ in range(20):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(
            b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n{" % INFER.encode()
        )
        connection.close()
    assert_alive(port)


class Counted:
    """Sums what is counted and remembers the phases, as the recorder's handle does."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.phases: Counter[str] = Counter()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        yield
        self.phases[name] += 1

    def count(self, metric: str, n: float) -> None:
        self.counts[metric] += n  # type: ignore[assignment]


def test_the_parts_of_an_answer_are_counted(model: Model, store: Any) -> None:
    counted = Counted()
    predictor = Predictor(model, OnlineFeatures(store), counted)
    with running(predictor, ServerSettings(), counted) as port:
        url = f"http://127.0.0.1:{port}{INFER}"
        assert httpx.post(url, json=body(3)).status_code == 200
        assert httpx.post(url, content="{").status_code == 400
    assert counted.counts["rows"] == 3
    assert counted.counts["batches"] == 1
    assert counted.counts["responses_2xx"] == counted.counts["responses_4xx"] == 1
    assert counted.counts["queue_wait_seconds"] > 0
    assert counted.phases == {"features": 1, "model": 1, "store_write": 1}


def test_what_an_outage_cost_is_counted(
    model: Model, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.predictor.MAX_PENDING_ROWS", 3)
    counted = Counted()
    predictor = Predictor(model, OnlineFeatures(store), counted)
    ids, cents = np.arange(2), np.ones(2)
    for _ in range(3):
        predictor._keep(Payments(customer_id=ids, terminal_id=ids, amount=cents, time_ns=ids))
    assert predictor.payments_lost == counted.counts["payments_lost"] == 4


def test_an_address_that_is_in_no_variable_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--model", "m", "--store", "s", "--online-env", "NO_REDIS_HERE"])
    assert ended.value.code == 2
    assert "the environment variable NO_REDIS_HERE is not set" in capsys.readouterr().err


def test_a_token_is_asked_for_and_health_stays_open(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_TOKEN", "s3cret")
    with running(predictor, ServerSettings(token_env="A_TOKEN")) as port:
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/v2/health/live").status_code == 200
        for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": "s3cret"}):
            refused = httpx.post(f"{url}{INFER}", json=body(), headers=given)
            assert refused.status_code == 401
            assert "s3cret" not in refused.text
        good = {"authorization": "Bearer s3cret"}
        assert httpx.post(f"{url}{INFER}", json=body(), headers=good).status_code == 200


def test_a_token_that_is_not_set_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A_TOKEN", raising=False)
    with pytest.raises(ValueError, match="A_TOKEN, which is not set"):
        ServerSettings(token_env="A_TOKEN").token()


def test_an_address_in_use_is_said(predictor: Predictor, port: int) -> None:
    with (
        pytest.raises(OSError, match=f"cannot serve at 127.0.0.1:{port}"),
        running(predictor, ServerSettings(port=port)),
    ):
        pass


def test_a_model_of_other_features_is_refused(folder: Path) -> None:
    other = write_tiny_model(folder / "other")
    (other / "model.json").write_text(json.dumps({"features": ["amount"]}))
    with pytest.raises(ValueError, match="train it again"):
        Model.load(other)


def test_overload_is_a_503_that_says_so_and_passes(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Event()
    answer = predictor.answer
    monkeypatch.setattr(predictor, "answer", lambda jobs: (held.wait(20), answer(jobs))[1])
    with running(predictor, ServerSettings(max_waiting_rows=4)) as port:
        url = f"http://127.0.0.1:{port}{INFER}"
        codes: list[int] = []
        texts: list[str] = []

        def send() -> None:
            response = httpx.post(url, json=body(), timeout=30)
            codes.append(response.status_code)
            texts.append(response.text)

        threads = [threading.Thread(target=send) for _ in range(12)]
        for thread in threads:
            thread.start()
        for _ in range(200):
            if len(codes) >= 6:
                break
            time.sleep(0.02)
        live = httpx.get(f"http://127.0.0.1:{port}/v2/health/live", timeout=5)
        held.set()
        for thread in threads:
            thread.join()
        assert live.status_code == 200
        assert codes.count(503) >= 6
        assert codes.count(200) == 12 - codes.count(503)
        assert any("overloaded" in text for text in texts)
        assert httpx.post(url, json=body()).status_code == 200


@pytest.mark.needs("redis-server")
def test_a_lost_store_is_a_503_and_what_was_answered_is_written_when_it_is_back(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from features.online_views import open_online_store

    redis_port = free_port()
    address = f"127.0.0.1:{redis_port},socket_timeout=1,socket_connect_timeout=1"
    online_settings = {"type": "redis", "connection_string": address}
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(redis_on(redis_port, tmp_path))
        online = OnlineFeatures(open_online_store(tmp_path, online_settings))
        predictor = Predictor(model, online, NullHandle())
        look_up = online.look_up

        def look_up_then_lose_it(payments: Payments) -> Any:
            found = look_up(payments)
            redis.kill()
            redis.wait()
            return found

        port = stack.enter_context(running(predictor, ServerSettings()))
        url = f"http://127.0.0.1:{port}"
        monkeypatch.setattr(online, "look_up", look_up_then_lose_it)
        assert httpx.post(f"{url}{INFER}", json=body()).status_code == 200
        monkeypatch.undo()
        away = httpx.post(f"{url}{INFER}", json=body(), timeout=60)
        assert away.status_code == 503
        assert "the online store does not answer" in away.json()["error"]
        assert httpx.get(f"{url}/v2/health/live").status_code == 200
        assert httpx.get(f"{url}/v2/health/ready", timeout=60).status_code == 503
        stack.enter_context(redis_on(redis_port, tmp_path))
        assert httpx.get(f"{url}/v2/health/ready", timeout=60).status_code == 200
        later = body(event_time=[NOW_NS + 10**9])
        later["outputs"] = [{"name": "features"}]
        answer = httpx.post(f"{url}{INFER}", json=later, timeout=60)
        assert answer.json()["outputs"][0]["data"][3] == 2


def test_sigterm_ends_the_process_in_peace(folder: Path, model: Model) -> None:
    command = [sys.executable, "-m", "serving.server", "--model", str(folder / "model")]
    command += ["--store", str(folder / "own"), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    said = json.loads(process.stdout.readline())
    assert said["host"] == "127.0.0.1"
    assert_alive(said["port"])
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in errors
