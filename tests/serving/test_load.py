"""The load generator against servers whose behaviour is known."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.load import LoadSettings, arrivals_s, complete_status, payment_bodies, put_load
from tests.online_support import dense_table, times_ns
from tests.redis_server import free_port

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"


@contextmanager
def answering(answer: Callable[[int], bytes | None]) -> Iterator[int]:
    """A one-thread server: ``answer`` is called with the number of the request and may block.

    None closes the connection instead of an answer.
    """
    ports: list[int] = []
    started, stop = threading.Event(), threading.Event()
    served = iter(range(10**9))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                said = answer(next(served))
                if said is None:
                    break
                writer.write(said)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        started.set()
        while not stop.is_set():
            await asyncio.sleep(0.01)
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert started.wait(5)
    try:
        yield ports[0]
    finally:
        stop.set()
        thread.join(10)


def bodies() -> Iterator[bytes]:
    while True:
        yield b"{}"


def load(port: int, *rates: float, **fields: object) -> LoadSettings:
    given = {"seconds": 1.0, "connections": 8, "warm_up_s": 0.0, "drain_s": 2.0, **fields}
    return LoadSettings(port=port, rates=rates, **given)  # type: ignore[arg-type]


def test_a_server_that_keeps_up_holds_each_rate() -> None:
    with answering(lambda _: OK) as port:
        result = put_load(load(port, 50, 200), bodies())
    assert [rate.kept_up for rate in result.results] == [True, True]
    last = result.results[-1]
    assert last.errors == {}
    assert last.sent == last.answered
    assert last.held_per_s == result.held_per_s == pytest.approx(last.offered_per_s, rel=0.05)
    assert last.p50_ms <= last.p95_ms <= last.p99_ms <= last.max_ms


def test_a_stall_shows_in_the_tail_though_few_requests_met_it() -> None:
    """One request of about 200 stalls for 0.4 s: a client that waits would see one slow answer."""
    closed_loop: list[float] = []

    def stalls(number: int) -> bytes:
        if number == 100:
            time.sleep(0.4)
        return OK

    with answering(stalls) as port:
        open_loop = put_load(load(port, 200, arrivals="uniform", connections=1), bodies())
    with answering(stalls) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(200):
            start = time.monotonic()
            connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
            connection.recv(1000)
            closed_loop.append((time.monotonic() - start) * 1e3)
            time.sleep(max(0.0, start + 0.005 - time.monotonic()))
    result = open_loop.results[0]
    assert np.percentile(closed_loop, 95) < 100
    assert result.p95_ms > 250
    assert result.max_ms >= 390
    assert result.answered == result.sent == 200


def test_a_server_that_is_too_slow_is_found_out_and_higher_rates_are_not_tried() -> None:
    def slow(_: int) -> bytes:
        time.sleep(0.01)
        return OK

    with answering(slow) as port:
        result = put_load(load(port, 40, 400, 800), bodies())
    assert [rate.kept_up for rate in result.results] == [True, False]
    assert result.held_per_s == result.results[0].held_per_s < 60
    assert "held" in str(result.results[1].reason)
    assert result.results[1].backlog_at_end > 100


def test_a_slow_tail_over_the_limit_is_not_keeping_up() -> None:
    def sometimes(number: int) -> bytes:
        if number % 50 == 25:
            time.sleep(0.15)
        return OK

    with answering(sometimes) as port:
        result = put_load(load(port, 100, p99_limit_ms=100.0), bodies())
    assert "p99" in str(result.results[0].reason)


def test_refusals_and_lost_connections_are_counted_by_kind() -> None:
    kinds = {0: BUSY, 1: None}
    with answering(lambda number: kinds.get(number % 10, OK)) as port:
        result = put_load(load(port, 100), bodies()).results[0]
    assert set(result.errors) == {"503", "connection lost"}
    assert result.answered + sum(result.errors.values()) == result.sent
    assert not result.kept_up


def test_what_is_never_answered_counts_with_the_time_it_waited() -> None:
    def hangs(number: int) -> bytes:
        if number == 3:
            time.sleep(2.5)
        return OK

    with answering(hangs) as port:
        result = put_load(load(port, 50, drain_s=0.3), bodies()).results[0]
    assert result.errors["no answer"] > 10
    assert result.max_ms > 300


def test_no_server_is_said() -> None:
    with pytest.raises(ConnectionError, match="no server answers at 127"):
        put_load(load(free_port(), 10), bodies())


def test_arrivals_are_seeded_and_have_the_rate() -> None:
    settings = load(1, 1000)
    first, again = (arrivals_s(settings, 1000, 20, 1) for _ in range(2))
    assert np.array_equal(first, again)
    assert len(first) == pytest.approx(20_000, rel=0.05)
    gaps = np.diff(first)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)
    assert not np.array_equal(first, arrivals_s(settings, 1000, 20, 2))
    uniform = arrivals_s(load(1, 10, arrivals="uniform"), 10, 2, 1)
    assert uniform == pytest.approx(np.arange(20) / 10)


def test_bodies_follow_the_table_and_then_move_on_in_time() -> None:
    table = dense_table(days=2, per_day=5, cards=3, terminals=3, seed=1)
    requests = payment_bodies(table)
    read = [json.loads(next(requests)) for _ in range(3 * len(table))]
    times = [request["inputs"][3]["data"][0] for request in read]
    assert times[: len(table)] == times_ns(table).tolist()
    assert times == sorted(times)
    cards = [request["inputs"][0]["data"][0] for request in read]
    assert cards == table["customer_id"].to_pylist() * 3


@pytest.mark.parametrize(
    ("received", "status"),
    [
        (b"HTTP/1.1 200 OK\r\nCont", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n1234", None),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n12345", "200"),
        (b"HTTP/1.1 503 Busy\r\n\r\n", "503"),
    ],
)
def test_a_response_is_complete_with_its_last_byte(received: bytes, status: str | None) -> None:
    assert complete_status(received) == status


def test_the_command_writes_json(tmp_path: Path) -> None:
    table: pa.Table = dense_table(days=2, per_day=5, cards=3, terminals=3, seed=1)
    pq.write_table(table, tmp_path / "payments.parquet")
    out = tmp_path / "load.json"
    with answering(lambda _: OK) as port:
        command = [sys.executable, "-m", "serving.load", "--port", str(port), "--rates", "40,80"]
        command += ["--payments", str(tmp_path / "payments.parquet"), "--seconds", "0.3"]
        subprocess.run([*command, "--out", str(out)], check=True, timeout=60)
    written = json.loads(out.read_text())
    assert [rate["kept_up"] for rate in written["results"]] == [True, True]
    assert written["held_per_s"] > 30
