"""A small generated training table for this room's tests, and the published one."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.contracts import FEATURES, TRAINING_SCHEMA
from infra.device import Device
from training.batches import DayTable
from training.loop import Trained, TrainingSettings, train
from training.models.mlp import MlpSettings

# With AMX, oneDNN's kernels for bfloat16 take memory for themselves, which no prediction has in it.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

BENCH = Path(__file__).resolve().parents[1] / "bench"
FIRST_DAY = date(2018, 6, 1)


class CountingHandle:
    """A recorder's handle that keeps what it is told."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.counts: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.phases.append(name)
        yield

    def count(self, metric: str, n: float = 1) -> None:
        self.counts[metric] = self.counts.get(metric, 0) + n


def _load_bench(name: str) -> ModuleType:
    """Import a module of tests/bench by its file."""
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def generated_day(day: date, rows: int, seed: int) -> pa.Table:
    """A day whose frauds are large amounts and bad terminals, with some noise in the labels."""
    rng = np.random.default_rng([seed, day.toordinal()])
    columns: dict[str, np.ndarray] = {}
    for name, field in zip(TRAINING_SCHEMA.names, TRAINING_SCHEMA, strict=True):
        if name in FEATURES:
            whole = pa.types.is_integer(field.type)
            columns[name] = rng.integers(0, 40, rows) if whole else rng.gamma(2.0, 20.0, rows)
    for name in ("is_weekend", "is_night"):
        columns[name] = rng.integers(0, 2, rows)
    for days in (1, 7, 30):
        columns[f"terminal_fraud_rate_{days}d"] = rng.random(rows) ** 6
    risk = columns["amount"] / 40 + 5 * columns["terminal_fraud_rate_7d"] - 5
    columns["is_fraud"] = (rng.random(rows) < 1 / (1 + np.exp(-2 * risk))).astype(np.int8)
    columns["fraud_scenario"] = columns["is_fraud"] * rng.integers(1, 4, rows)
    columns["transaction_id"] = np.arange(rows) + day.toordinal() * 1_000_000
    columns["customer_id"] = rng.integers(0, 400, rows)
    columns["terminal_id"] = rng.integers(0, 100, rows)
    seconds = np.sort(rng.integers(0, 86_400, rows))
    microseconds = seconds * 1_000_000 + np.arange(rows)
    columns["event_time"] = np.datetime64(day, "us") + microseconds.astype("timedelta64[us]")
    arrays = {name: pa.array(columns[name]) for name in TRAINING_SCHEMA.names}
    return pa.table(arrays).cast(TRAINING_SCHEMA)


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> DayTable:
    """Twenty-two generated days of 600 rows from 2018-06-01 on."""
    folder = tmp_path_factory.mktemp("generated")
    for offset in range(22):
        day = FIRST_DAY + timedelta(days=offset)
        pq.write_table(generated_day(day, 600, seed=7), folder / f"{day}.parquet")
    return DayTable(folder=folder)


@pytest.fixture(scope="session")
def published(handbook: Path, tmp_path_factory: pytest.TempPathFactory) -> DayTable:
    """The published transactions with the kernel's features, as daily files."""
    folder = tmp_path_factory.mktemp("published")
    return DayTable(folder=_load_bench("published_table").write_published_days(handbook, folder))


@pytest.fixture(scope="session")
def load_bench() -> Callable[[str], ModuleType]:
    """Import a module of tests/bench by its name."""
    return _load_bench


@pytest.fixture
def handle() -> CountingHandle:
    return CountingHandle()


@pytest.fixture
def cpu() -> Device:
    return Device(kind="cpu", name="test", index=None, amp=False)


@pytest.fixture(scope="session")
def trained(generated: DayTable, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A small net, trained on seven generated days."""
    handle = CountingHandle()
    return train(
        generated.read(FIRST_DAY, 7, handle),
        model=MlpSettings(hidden=(16, 8), members=3),
        settings=TrainingSettings(epochs=4, batch_size=256),
        seed=1,
        device=Device(kind="cpu", name="test", index=None, amp=False),
        work=tmp_path_factory.mktemp("work"),
        handle=handle,
    )
