"""What the tests of online features and of serving share: a dense table, the offline answer, a
tiny exported model, and a server in a thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from features import windows
from features.contracts import FEATURES
from features.online import Payments
from serving.app import ServerSettings
from serving.memory import ServingMemory
from serving.predictor import Counting, Predictor
from serving.server import make_server
from telemetry.handle import NullHandle

START_S = 1_522_540_800
"""2018-04-01."""
DAY_NS = 86_400 * 10**9


def dense_table(*, days: int, per_day: int, cards: int, terminals: int, seed: int) -> pa.Table:
    """Payments in order of time, many of them in one second with another of card or terminal."""
    random = np.random.default_rng(seed)
    rows = days * per_day
    second = random.integers(0, days * 96, size=rows) * 900 + random.integers(0, 2, size=rows)
    second = np.sort(second) + START_S
    starts = np.flatnonzero(np.concatenate([[True], second[1:] != second[:-1]]))
    ordinal = np.arange(rows) - np.repeat(starts, np.diff(np.append(starts, rows)))
    return pa.table(
        {
            "event_time": pa.array(second * 10**6 + ordinal, pa.timestamp("us")),
            "customer_id": random.integers(0, cards, size=rows),
            "terminal_id": random.integers(0, terminals, size=rows),
            "amount": np.round(random.uniform(0, 300, size=rows), 2),
            "is_fraud": (random.random(rows) < 0.2).astype(np.int8),
        }
    )


def times_ns(table: pa.Table) -> np.ndarray[Any, Any]:
    return table["event_time"].cast(pa.timestamp("ns")).to_numpy().astype(np.int64)


def payments_of(table: pa.Table) -> Payments:
    return Payments(
        customer_id=table["customer_id"].to_numpy().astype(np.int64),
        terminal_id=table["terminal_id"].to_numpy().astype(np.int64),
        amount=table["amount"].to_numpy().astype(np.float64),
        time_ns=times_ns(table),
    )


def offline(table: pa.Table) -> np.ndarray[Any, Any]:
    """All fifteen features of every row, from the kernel over the whole table."""

    def column(name: str) -> torch.Tensor:
        return torch.from_numpy(table[name].to_numpy().astype(np.int64))

    second = torch.from_numpy(times_ns(table) // 10**9)
    amount = torch.from_numpy(table["amount"].to_numpy().astype(np.float64))
    cents = windows.to_cents(amount)
    customer = windows.customer_windows(column("customer_id"), second, cents)
    terminal = windows.terminal_windows(column("terminal_id"), second, column("is_fraud"))
    return windows.assemble(amount, second, customer, terminal).numpy()


class TinyNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.layer = torch.nn.Linear(len(FEATURES), 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.layer(features / 100)).squeeze(1)


def write_tiny_model(folder: Path, net: torch.nn.Module | None = None) -> Path:
    """A model folder as training leaves it, small."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = torch.export.Dim("rows", min=1)
    example = (torch.zeros(4, len(FEATURES)),)
    program = torch.export.export((net or TinyNet()).eval(), example, dynamic_shapes=({0: rows},))
    torch.export.save(program, folder / "model.pt2")
    (folder / "model.json").write_text(json.dumps({"features": FEATURES}))
    return folder


@contextmanager
def running(
    predictor: Predictor,
    settings: ServerSettings,
    counting: Counting | None = None,
    memory: ServingMemory | None = None,
) -> Iterator[int]:
    """Serve from a thread of this process; yields the port."""
    started, ports = threading.Event(), []

    def ready(port: int) -> None:
        ports.append(port)
        started.set()

    server, listening = make_server(
        predictor, settings, ready=ready, counting=counting or NullHandle(), memory=memory
    )
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        assert started.wait(10)
        yield ports[0]
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """As in a server's own process: small tensors lose by threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
