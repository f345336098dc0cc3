"""Open-loop load: requests leave by a schedule that was drawn before, whatever the answers do.

A latency runs from the *scheduled* arrival to the last byte of the answer. A request that finds
every connection busy waits in line with its clock running, so a server that stalls shows it in
full; a generator that waits for answers before it sends would hide it. A request without an answer
counts with the time it had waited at the end.

One process on one core, raw HTTP/1.1 on keep-alive connections. ``generator_lag_p99_ms`` is how
late the generator itself was with a free connection: where that is near p99, measure from a
machine with more room.

``python -m serving.load --port 8080 --payments FILE.parquet --rates 500,1000`` prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import uvloop
from numpy.typing import NDArray

from serving.stats import Reading, read_stats

PATH = "/v2/models/card-fraud/infer"
SETTLE_S = 0.05
"""Time between drawing a schedule and its first arrival."""


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """What load to put on a server, and when it counts as no longer keeping up."""

    port: int
    rates: tuple[float, ...]
    host: str = "127.0.0.1"
    seconds: float = 5.0
    connections: int = 64
    arrivals: Literal["poisson", "uniform"] = "poisson"
    seed: int = 1
    warm_up_s: float = 0.5
    drain_s: float = 5.0
    """How long answers are waited for after the last arrival."""
    held_share: float = 0.95
    p99_limit_ms: float = 250.0
    token_env: str | None = None
    parts: bool = False
    """Ask the server between the rates where its time went (``serving.stats``)."""


@dataclass(frozen=True, kw_only=True)
class RateResult:
    """What happened at one rate. Latencies are of good answers and of those that never came."""

    offered_per_s: float
    held_per_s: float
    sent: int
    answered: int
    errors: dict[str, int]
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    backlog_at_end: int
    generator_lag_p99_ms: float
    kept_up: bool
    reason: str | None
    parts: dict[str, dict[str, float]] | None = None
    """Mean, p50 and p95 of each part of the server's time, and of ``server``, the sum of them."""


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """All rates up to the first that was not kept up with, and the highest that was held."""

    results: tuple[RateResult, ...]
    held_per_s: float


def put_load(
    settings: LoadSettings,
    bodies: Iterator[bytes],
    progress: Callable[[int, int], None] | None = None,
) -> LoadResult:
    """Offer each rate in turn until one is not kept up with; blocks.

    ``bodies`` gives the requests, endless. Raises ConnectionError if the server is not there.
    """
    results: list[RateResult] = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if settings.warm_up_s:
            runner.run(_offer(settings, settings.rates[0], settings.warm_up_s, bodies, 0))
        for number, rate in enumerate(settings.rates, 1):
            before = _stats(settings)
            result = runner.run(_offer(settings, rate, settings.seconds, bodies, number))
            after = _stats(settings)
            if before is not None and after is not None:
                result = replace(result, parts=after.figures_since(before))
            results.append(result)
            if progress is not None:
                progress(number, len(settings.rates))
            if not results[-1].kept_up:
                break
    held = max((result.held_per_s for result in results if result.kept_up), default=0.0)
    return LoadResult(results=tuple(results), held_per_s=held)


def _stats(settings: LoadSettings) -> Reading | None:
    """What the server measured until now, where it is asked and, under load, gets to answer."""
    if settings.parts:
        token = None if settings.token_env is None else os.environ[settings.token_env]
        with suppress(OSError):
            return read_stats(settings.host, settings.port, token)
    return None


def arrivals_s(settings: LoadSettings, rate: float, seconds: float, number: int) -> NDArray[Any]:
    """The scheduled arrivals in seconds from the start, float64; the same for the same seed."""
    if settings.arrivals == "uniform":
        return np.arange(0, seconds, 1 / rate)
    random = np.random.default_rng([settings.seed, number])
    gaps = random.exponential(1 / rate, size=int(rate * seconds * 1.5) + 100)
    times = np.cumsum(gaps)
    return times[times < seconds]


def payment_bodies(payments: pa.Table) -> Iterator[bytes]:
    """Endless infer requests of one payment each, in the order of the table.

    At the end of the table it starts anew, with all times moved on by the table's span: a payment
    of the same time would be a retry.
    """
    columns = [payments[name].to_pylist() for name in ("customer_id", "terminal_id", "amount")]
    times = payments["event_time"].cast(pa.timestamp("ns")).to_numpy().astype(np.int64)
    span = int(times.max() - times.min()) + 10**9
    rounds = 0
    while True:
        for customer, terminal, amount, time_ns in zip(*columns, times.tolist(), strict=True):
            yield _infer_body(customer, terminal, amount, time_ns + rounds * span)
        rounds += 1


def _infer_body(customer: int, terminal: int, amount: float, time_ns: int) -> bytes:
    values = (
        ("customer_id", "INT64", customer),
        ("terminal_id", "INT64", terminal),
        ("amount", "FP64", amount),
        ("event_time", "INT64", time_ns),
    )
    inputs = [
        {"name": name, "datatype": datatype, "shape": [1], "data": [value]}
        for name, datatype, value in values
    ]
    return json.dumps({"inputs": inputs}).encode()


async def _offer(
    settings: LoadSettings, rate: float, seconds: float, bodies: Iterator[bytes], number: int
) -> RateResult:
    scheduled = arrivals_s(settings, rate, seconds, number)
    head = _request_head(settings)
    requests = [
        b"%sContent-Length: %d\r\n\r\n%s" % (head, len(body), body)
        for body in islice(bodies, len(scheduled))
    ]
    run = _Run(scheduled, requests)
    connections = [_Connection(run, settings) for _ in range(settings.connections)]
    try:
        await asyncio.gather(*(connection.open() for connection in connections))
        await run.go(settings.drain_s)
    finally:
        for connection in connections:
            connection.close()
    return run.result(settings, rate, seconds)


def _request_head(settings: LoadSettings) -> bytes:
    lines = [
        f"POST {PATH} HTTP/1.1",
        f"Host: {settings.host}:{settings.port}",
        "Content-Type: application/json",
    ]
    if settings.token_env is not None:
        lines.append(f"Authorization: Bearer {os.environ[settings.token_env]}")
    return ("\r\n".join(lines) + "\r\n").encode()


class _Run:
    """One rate: the schedule, who is free, who waits, and what came of each request."""

    def __init__(self, scheduled: NDArray[Any], requests: list[bytes]) -> None:
        self._scheduled, self._requests = scheduled.tolist(), requests
        self._free: deque[_Connection] = deque()
        self._line: deque[int] = deque()
        self._next = 0
        self._left = len(requests)
        self._backlog_at_end = 0
        self._ended = [0.0] * len(requests)
        self._outcome = [""] * len(requests)
        self._lag: list[float] = []
        self._loop = asyncio.get_running_loop()
        self._start = self._loop.time() + SETTLE_S
        self._all_out, self._all_in = asyncio.Event(), asyncio.Event()

    async def go(self, drain_s: float) -> None:
        """Send everything on its time, then wait for answers, at most ``drain_s``."""
        if not self._requests:
            return
        self._start = self._loop.time() + SETTLE_S
        self._loop.call_at(self._start + self._scheduled[0], self._send_due)
        await self._all_out.wait()
        self._backlog_at_end = self._left
        try:
            await asyncio.wait_for(self._all_in.wait(), drain_s)
        except TimeoutError:
            self._give_up()

    def free(self, connection: _Connection) -> None:
        """A connection can take a request: the first in line, if there is one."""
        if self._line:
            index = self._line.popleft()
            connection.send(index, self._requests[index])
        else:
            self._free.append(connection)

    def forget(self, connection: _Connection) -> None:
        """A connection is lost: nothing may be sent on it."""
        if connection in self._free:
            self._free.remove(connection)

    def done(self, index: int, outcome: str) -> None:
        """A request ended: ``outcome`` is "200", another status, or what went wrong."""
        self._ended[index] = self._loop.time() - self._start
        self._outcome[index] = outcome
        self._left -= 1
        if self._left == 0:
            self._all_in.set()

    def _send_due(self) -> None:
        now = self._loop.time() - self._start
        while self._next < len(self._scheduled) and self._scheduled[self._next] <= now:
            index = self._next
            self._next += 1
            if self._free:
                self._lag.append(now - self._scheduled[index])
                self._free.pop().send(index, self._requests[index])
            else:
                self._line.append(index)
        if self._next < len(self._scheduled):
            self._loop.call_at(self._start + self._scheduled[self._next], self._send_due)
        else:
            self._all_out.set()

    def _give_up(self) -> None:
        now = self._loop.time() - self._start
        for index, outcome in enumerate(self._outcome):
            if not outcome:
                self._ended[index], self._outcome[index] = now, "no answer"

    def result(self, settings: LoadSettings, rate: float, seconds: float) -> RateResult:
        ended, scheduled = np.array(self._ended), np.array(self._scheduled)
        outcome = np.array(self._outcome)
        counted = (outcome == "200") | (outcome == "no answer")
        latency_ms = (ended - scheduled)[counted] * 1e3
        good = int(np.count_nonzero(outcome == "200"))
        p50, p95, p99, worst = (_percentile(latency_ms, share) for share in (50, 95, 99, 100))
        offered = len(scheduled) / seconds
        held = good / max(seconds, float(ended[counted].max(initial=0.0)))
        reason = None
        if held < settings.held_share * offered:
            reason = f"held {held:.0f}/s of {offered:.0f}/s offered"
        elif p99 > settings.p99_limit_ms:
            reason = f"p99 {p99:.0f} ms is over the limit of {settings.p99_limit_ms:.0f} ms"
        elif self._backlog_at_end > max(1.0, offered * settings.p99_limit_ms / 1e3):
            reason = f"{self._backlog_at_end} requests waited at the end: the backlog grows"
        return RateResult(
            offered_per_s=offered,
            held_per_s=held,
            sent=len(scheduled),
            answered=good,
            errors=dict(Counter(kind for kind in self._outcome if kind != "200")),
            mean_ms=float(latency_ms.mean()) if len(latency_ms) else 0.0,
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            max_ms=worst,
            backlog_at_end=self._backlog_at_end,
            generator_lag_p99_ms=_percentile(np.array(self._lag) * 1e3, 99),
            kept_up=reason is None,
            reason=reason,
        )


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on its way; reopened when it is lost."""

    def __init__(self, run: _Run, settings: LoadSettings) -> None:
        self._run, self._settings = run, settings
        self._transport: asyncio.Transport | None = None
        self._index: int | None = None
        self._received = b""
        self._closed = False
        self._reopening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect; raises ConnectionError naming the address."""
        host, port = self._settings.host, self._settings.port
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, host, port)
        except OSError as error:
            raise ConnectionError(f"no server answers at {host}:{port}: {error}") from error

    def send(self, index: int, request: bytes) -> None:
        assert self._transport is not None
        self._index, self._received = index, b""
        self._transport.write(request)

    def close(self) -> None:
        self._closed = True
        if self._reopening is not None:
            self._reopening.cancel()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._run.free(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        status = complete_status(self._received)
        if status is not None and self._index is not None:
            index, self._index = self._index, None
            self._run.done(index, status)
            self._run.free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._closed:
            return
        if self._index is not None:
            index, self._index = self._index, None
            self._run.done(index, "connection lost")
        self._run.forget(self)
        self._reopening = asyncio.get_running_loop().create_task(self._reopen())

    async def _reopen(self) -> None:
        while not self._closed:
            await asyncio.sleep(0.1)
            with suppress(ConnectionError):
                await self.open()
                break


def complete_status(received: bytes) -> str | None:
    """The status of an HTTP/1.1 response once all of it is there, else None."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = received[:end].lower()
    at = head.find(b"\r\ncontent-length:")
    length = int(head[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
    return received[9:12].decode() if len(received) >= end + 4 + length else None


def _percentile(values: NDArray[Any], share: float) -> float:
    """A value that was measured, at or above the share; 0.0 where nothing was."""
    return float(np.percentile(values, share, method="higher")) if len(values) else 0.0


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of ``python -m serving.load``."""
    parser = argparse.ArgumentParser(prog="python -m serving.load", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--payments", type=Path, required=True, help="Parquet, in order of time")
    parser.add_argument("--rates", required=True, help="requests per second: 500,1000,2000")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--arrivals", choices=("poisson", "uniform"), default="poisson")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--p99-limit-ms", type=float, default=250.0)
    parser.add_argument("--token-env", help="the environment variable that holds the token")
    parser.add_argument("--parts", action="store_true", help="ask where the server's time went")
    parser.add_argument("--out", type=Path, help="write the JSON here instead of to stdout")
    given = parser.parse_args(arguments)
    settings = LoadSettings(
        host=given.host,
        port=given.port,
        rates=tuple(float(rate) for rate in given.rates.split(",")),
        seconds=given.seconds,
        connections=given.connections,
        arrivals=given.arrivals,
        seed=given.seed,
        p99_limit_ms=given.p99_limit_ms,
        token_env=given.token_env,
        parts=given.parts,
    )
    bodies = payment_bodies(pq.read_table(given.payments))
    gc.freeze()
    answer = json.dumps(asdict(put_load(settings, bodies)), indent=1) + "\n"
    if given.out is None:
        sys.stdout.write(answer)
    else:
        given.out.write_text(answer)


if __name__ == "__main__":
    main()
