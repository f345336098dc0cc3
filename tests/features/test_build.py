"""The Dask build of the window tables against the kernel over all rows at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from features import build
from features.build import build_tables
from features.contracts import CUSTOMER_SCHEMA, TERMINAL_SCHEMA, TRANSACTION_SCHEMA
from features.windows import customer_windows, terminal_windows
from infra.cluster import Cluster, open_cluster

ROWS, FILES = 6_000, 5
HERE = Cluster(workers=0)


def transactions(rows: int = ROWS, seed: int = 0, customers: int = 40) -> pa.Table:
    """Clean rows over 60 days, with many of one second, and ids that need 64 bits."""
    random = np.random.default_rng(seed)
    second = np.sort(random.integers(0, 60 * 1440, rows)) * 60 + 1_522_540_800
    first_of_second = np.searchsorted(second, second)
    event_us = second * 1_000_000 + np.arange(rows) - first_of_second
    columns = {
        "transaction_id": np.arange(rows),
        "event_time": event_us.astype("datetime64[us]"),
        "customer_id": random.integers(0, customers, rows) * 1024 + 2**40,
        "terminal_id": random.integers(0, 90, rows),
        "amount": np.round(random.gamma(2, 27, rows), 2),
        "is_fraud": (random.random(rows) < 0.2).astype(np.int8),
        "fraud_scenario": np.zeros(rows, np.int8),
    }
    return pa.table(columns).cast(TRANSACTION_SCHEMA)


def write_files(table: pa.Table, folder: Path, files: int = FILES) -> list[Path]:
    folder.mkdir(exist_ok=True)
    step = -(-len(table) // files)
    paths = [folder / f"{number}.parquet" for number in range(files)]
    for number, path in enumerate(paths):
        pq.write_table(table.slice(number * step, step), path)
    return paths


def expected(table: pa.Table) -> dict[str, pl.DataFrame]:
    column = {name: torch.from_numpy(table[name].to_numpy().copy()) for name in (
        "customer_id", "terminal_id", "amount", "is_fraud")}  # fmt: skip
    second = torch.from_numpy(table["event_time"].to_numpy().astype("datetime64[s]").astype(int))
    cents = torch.round(column["amount"] * 100).long()
    return {
        "customer_windows": _frame(
            table, "customer_id", customer_windows(column["customer_id"], second, cents)
        ),
        "terminal_windows": _frame(
            table,
            "terminal_id",
            terminal_windows(column["terminal_id"], second, column["is_fraud"].long()),
        ),
    }


def _frame(table: pa.Table, key: str, features: dict[str, torch.Tensor]) -> pl.DataFrame:
    frame = pl.DataFrame(
        {key: table[key].to_numpy(), "event_time": table["event_time"].to_numpy()}
        | {name: value.numpy() for name, value in features.items()}
    )
    return frame.sort(key, "event_time")


def check(out: Path, table: pa.Table) -> None:
    for name, wanted in expected(table).items():
        got = pl.read_parquet(out / name / "*.parquet").sort(wanted.columns[:2])
        assert got.equals(wanted), name


@pytest.mark.parametrize("rows_per_partition", [ROWS, 2_500, 300])
def test_the_same_tables_whatever_the_partitions(
    tmp_path: Path, rows_per_partition: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "BUCKET_ROWS", 1_000)
    table = transactions()
    paths = write_files(table, tmp_path / "clean")
    steps: list[tuple[int, int]] = []
    report = build_tables(
        paths,
        tmp_path / "out",
        HERE,
        rows_per_partition=rows_per_partition,
        progress=lambda done, total: steps.append((done, total)),
    )
    check(tmp_path / "out", table)
    assert report.rows == ROWS
    assert report.partitions == -(-ROWS // rows_per_partition)
    assert report.spilled == (rows_per_partition < ROWS)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "customer_windows",
        "terminal_windows",
    ]
    files = list((tmp_path / "out").rglob("*.parquet"))
    assert report.bytes_out == sum(path.stat().st_size for path in files)
    assert [done for done, _ in steps] == list(range(1, steps[-1][1] + 1))
    for name, schema in (("customer", CUSTOMER_SCHEMA), ("terminal", TERMINAL_SCHEMA)):
        parts = (tmp_path / "out" / f"{name}_windows").iterdir()
        assert all(pq.read_schema(path).equals(schema) for path in parts)


def test_the_same_tables_from_dask_workers(tmp_path: Path) -> None:
    table = transactions()
    paths = write_files(table, tmp_path / "clean")
    with open_cluster(workers=2, local_directory=tmp_path / "dask") as cluster:
        build_tables(paths, tmp_path / "one", cluster)
        build_tables(paths, tmp_path / "many", cluster, rows_per_partition=2_000)
    check(tmp_path / "one", table)
    check(tmp_path / "many", table)


def test_several_partitions_without_a_spill(tmp_path: Path) -> None:
    """More workers than tables: each task keeps its share of the keys of every file."""
    table = transactions()
    paths = write_files(table, tmp_path / "clean")
    report = build_tables(paths, tmp_path / "out", Cluster(workers=6))
    assert (report.partitions, report.spilled) == (3, False)
    check(tmp_path / "out", table)


def test_empty_files_and_one_key(tmp_path: Path) -> None:
    table = transactions(500, customers=1)
    paths = [*write_files(table, tmp_path / "a"), *write_files(table.slice(0, 0), tmp_path / "b")]
    build_tables(paths, tmp_path / "out", HERE, rows_per_partition=100)
    check(tmp_path / "out", table)


def test_torch_keeps_its_threads(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    build_tables(write_files(transactions(100), tmp_path / "a"), tmp_path / "out", HERE)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("rows_per_partition", [ROWS, 1_000])
def test_files_out_of_order_are_refused(tmp_path: Path, rows_per_partition: int) -> None:
    paths = write_files(transactions(), tmp_path / "clean")
    paths[1], paths[2] = paths[2], paths[1]
    with pytest.raises(ValueError, match=r"1\.parquet goes back to 2018-.*order of time"):
        build_tables(paths, tmp_path / "out", HERE, rows_per_partition=rows_per_partition)
    assert not (tmp_path / "out" / ".spill").exists()


def test_rows_out_of_order_are_refused(tmp_path: Path) -> None:
    table = transactions(100)
    paths = write_files(table.take(list(range(99, -1, -1))), tmp_path / "clean", 1)
    with pytest.raises(ValueError, match="is not sorted by event_time"):
        build_tables(paths, tmp_path / "out", HERE)


def test_no_files_a_missing_column_and_a_null_are_refused(tmp_path: Path) -> None:
    table = transactions(10)
    with pytest.raises(ValueError, match="no transaction files"):
        build_tables([], tmp_path / "out", HERE)
    lacking = write_files(table.drop_columns("amount"), tmp_path / "a", 1)
    with pytest.raises(ValueError, match="has no column amount"):
        build_tables(lacking, tmp_path / "out", HERE)
    nulls = table.set_column(4, "amount", pa.array([None, *[1.0] * 9]))
    with pytest.raises(ValueError, match="has a null in amount"):
        build_tables(write_files(nulls, tmp_path / "b", 1), tmp_path / "out", HERE)
