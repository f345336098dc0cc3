"""The training table through Feast, against the kernel on the same rows."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from features.build import build_tables
from features.contracts import FEATURES, TRAINING_SCHEMA, TRANSACTION_SCHEMA
from features.windows import assemble, customer_windows, terminal_windows, to_cents
from infra.cluster import Cluster

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from features.definitions import open_store
    from features.training_table import training_table

DAYS, ROWS = 50, 4_000


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Daily files; few seconds and few keys, so that many rows share both."""
    folder = tmp_path_factory.mktemp("clean")
    random = np.random.default_rng(4)
    second = np.sort(random.integers(0, DAYS * 48, ROWS)) * 1800 + 1_522_540_800
    event_us = second * 1_000_000 + np.arange(ROWS) - np.searchsorted(second, second)
    table = pa.table(
        {
            "transaction_id": np.arange(ROWS),
            "event_time": event_us.astype("datetime64[us]"),
            "customer_id": random.integers(0, 12, ROWS),
            "terminal_id": random.integers(0, 20, ROWS),
            "amount": np.round(random.gamma(2, 27, ROWS), 2),
            "is_fraud": (random.random(ROWS) < 0.2).astype(np.int8),
            "fraud_scenario": random.integers(0, 4, ROWS).astype(np.int8),
        }
    ).cast(TRANSACTION_SCHEMA)
    day = (second - second[0] // 86_400 * 86_400) // 86_400
    paths = []
    for number in range(DAYS):
        paths.append(folder / f"{np.datetime64('2018-04-01') + number}.parquet")
        pq.write_table(table.filter(pa.array(day == number)), paths[-1])
    return paths


@pytest.mark.parametrize("chunk_rows", [1, 500, 10**9])
def test_every_row_once_with_the_features_of_the_kernel(
    clean: list[Path], tmp_path: Path, chunk_rows: int
) -> None:
    build_tables(clean, tmp_path / "tables", Cluster(workers=0))
    steps: list[tuple[int, int]] = []
    report = training_table(
        open_store(tmp_path / "tables"),
        clean,
        tmp_path / "out",
        lambda done, total: steps.append((done, total)),
        chunk_rows,
    )
    files = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in files] == [path.name for path in clean]
    assert all(pq.read_schema(path).equals(TRAINING_SCHEMA) for path in files)
    assert (report.rows, report.files) == (ROWS, DAYS)
    assert report.bytes_out == sum(path.stat().st_size for path in files)
    assert steps[-1] == (DAYS, DAYS)
    source, got = pl.read_parquet(clean), pl.read_parquet(files)
    kept = [name for name in TRANSACTION_SCHEMA.names if name in got.columns]
    assert got.select(kept).equals(source.select(kept))
    assert got.select(FEATURES).to_numpy().tolist() == from_kernel(source).tolist()


def from_kernel(rows: pl.DataFrame) -> torch.Tensor:
    column = {name: torch.from_numpy(rows[name].to_numpy().copy()) for name in (
        "customer_id", "terminal_id", "amount", "is_fraud")}  # fmt: skip
    second = torch.from_numpy(rows["event_time"].dt.epoch("s").to_numpy().copy())
    customer = customer_windows(column["customer_id"], second, to_cents(column["amount"]))
    terminal = terminal_windows(column["terminal_id"], second, column["is_fraud"].long())
    return assemble(column["amount"], second, customer, terminal)


def test_tables_of_other_transactions_are_refused(clean: list[Path], tmp_path: Path) -> None:
    build_tables(clean[:30], tmp_path / "tables", Cluster(workers=0))
    store = open_store(tmp_path / "tables")
    with pytest.raises(
        ValueError, match=r"of \d+ rows have no customer_count_1d.*build them again"
    ):
        training_table(store, clean, tmp_path / "out")


def test_an_empty_day_gives_an_empty_file(clean: list[Path], tmp_path: Path) -> None:
    build_tables(clean, tmp_path / "tables", Cluster(workers=0))
    empty = tmp_path / "2018-06-01.parquet"
    pq.write_table(TRANSACTION_SCHEMA.empty_table(), empty)
    report = training_table(open_store(tmp_path / "tables"), [empty], tmp_path / "out")
    assert report.rows == 0
    assert pq.read_table(tmp_path / "out" / empty.name).equals(TRAINING_SCHEMA.empty_table())
