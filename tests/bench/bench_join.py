"""The point-in-time join, ours against Feast's own stores, each in a process of its own.

    python -m tests.bench.bench_join [--rows 100000] [--more-rows 1000000] [--ours-rows 1750000]

As many feature rows as there are entity rows (at least a million), 10 features, 10,000 entities.
Then the published transactions through the project's own feature service, where their file is at
hand (STAGESCOPE_HANDBOOK). Peak memory is the process's own (``wait4``), imports included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import features  # noqa: F401 - Feast as the pipeline has it
from tests.bench.measure import Measured, measured
from tests.conftest import HANDBOOK_HINT, handbook_file

COMMAND = (sys.executable, "-m", "tests.bench.bench_join")
ENTITIES, FEATURES, DAYS = 10_000, 10, 180
STORES = {"ours": "features.offline_store.AsofOfflineStore", "dask": "dask", "duckdb": "duckdb"}


def make_inputs(folder: Path, history_rows: int, entity_rows: int) -> None:
    random = np.random.default_rng(0)

    def times(rows: int) -> np.ndarray[tuple[int], np.dtype[np.datetime64]]:
        seconds = np.sort(random.integers(0, DAYS * 86_400, rows))
        return np.datetime64("2026-01-01", "us") + seconds.astype("timedelta64[s]")

    history = {"card": random.integers(0, ENTITIES, history_rows), "at": times(history_rows)}
    history |= {f"f{number}": random.random(history_rows) for number in range(FEATURES)}
    pq.write_table(pa.table(history), folder / "history.parquet")
    rows = {
        "card": random.integers(0, ENTITIES, entity_rows),
        "event_timestamp": times(entity_rows),
    }
    pq.write_table(pa.table(rows), folder / "entities.parquet")


def join(folder: Path, kind: str) -> None:
    """Run one retrieval and print its seconds, rows and the sum of a feature as JSON."""
    warnings.simplefilter("ignore")
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
    from feast.types import Float64, Int64
    from feast.value_type import ValueType

    card = Entity(name="card_entity", join_keys=["card"], value_type=ValueType.INT64)
    names = [f"f{number}" for number in range(FEATURES)]
    view = FeatureView(
        name="history",
        entities=[card],
        schema=[Field(name="card", dtype=Int64), *(Field(name=n, dtype=Float64) for n in names)],
        source=FileSource(path=str(folder / "history.parquet"), timestamp_field="at"),
    )
    store = FeatureStore(
        config=RepoConfig(
            project="bench",
            provider="local",
            registry=str(folder / f"{kind}.db"),
            offline_store={"type": STORES[kind]},
            entity_key_serialization_version=3,
        )
    )
    store.apply([card, view])
    entities = pd.read_parquet(folder / "entities.parquet")
    start = time.perf_counter()
    table = store.get_historical_features(
        entity_df=entities, features=[f"history:{name}" for name in names]
    ).to_arrow()
    seconds = time.perf_counter() - start
    total = float(np.nansum(table["f0"].to_numpy().astype(float)))
    print(json.dumps({"seconds": seconds, "rows": len(table), "sum_f0": total}))


def make_published(published: Path, folder: Path) -> None:
    """Import and clean the published transactions and build their window tables."""
    from features.build import build_tables
    from infra.cluster import open_cluster
    from pipeline.data.cleaning import clean
    from pipeline.data.handbook import import_published
    from pipeline.data.schema import day_files

    import_published(published, folder / "raw")
    with open_cluster(workers=0, local_directory=folder) as cluster:
        clean(folder / "raw", folder / "clean", folder / "quarantine", cluster)
        build_tables(day_files(folder / "clean"), folder / "windows", cluster)


def join_published(folder: Path) -> None:
    """Retrieve all published rows through ``fraud_v1`` and print seconds and rows as JSON."""
    warnings.simplefilter("ignore")
    from features.definitions import SERVICE, open_store

    store = open_store(folder / "store", tables=folder / "windows")
    files = sorted((folder / "clean").glob("*.parquet"))
    entities = pa.concat_tables(pq.read_table(path) for path in files)
    start = time.perf_counter()
    service = store.get_feature_service(SERVICE)
    table = store.get_historical_features(entity_df=entities, features=service).to_arrow()
    seconds = time.perf_counter() - start
    total = float(np.nansum(table["customer_mean_amount_30d"].to_numpy()))
    print(json.dumps({"seconds": seconds, "rows": len(table), "sum_f0": total}))


def show_published() -> None:
    """Our store on the published table; it says so where the file is not at hand."""
    published = handbook_file()
    if published is None or not published.is_file():
        print(f" published ours    not measured: {HANDBOOK_HINT}")
        return
    with tempfile.TemporaryDirectory() as place:
        subprocess.run([*COMMAND, "--make-published", str(published), place], check=True)
        result = measured([*COMMAND, "--child", "published", place])
    _show(" published", "ours", result)


def compare(rows: int, kinds: list[str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        history_rows = str(max(1_000_000, rows))
        make = [*COMMAND, "--rows", str(rows), "--make", place, history_rows]
        subprocess.run(make, check=True)  # apart, so that this process stays small
        for kind in kinds:
            result = measured([*COMMAND, "--child", kind, place])
            _show(f"{rows:>10,}", kind, result)


def _show(rows: str, kind: str, result: Measured) -> None:
    said = result.answer
    figures = (
        f"{said['seconds']:>8.2f} s {result.peak_gb:>7.2f} GB {said['rows']:>10,} rows"
        f"  sum {said['sum_f0']:.3f}"
        if said
        else f"  not measured: {result.error}"
    )
    print(f"{rows} {kind:<8}{figures}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--more-rows", type=int, default=1_000_000)
    parser.add_argument("--ours-rows", type=int, default=1_750_000)
    parser.add_argument("--child", nargs=2, metavar=("STORE", "FOLDER"))
    parser.add_argument("--make", nargs=2, metavar=("FOLDER", "HISTORY_ROWS"))
    parser.add_argument("--make-published", nargs=2, metavar=("FILE", "FOLDER"))
    options = parser.parse_args()
    if options.make:
        make_inputs(Path(options.make[0]), int(options.make[1]), options.rows)
    elif options.make_published:
        make_published(*map(Path, options.make_published))
    elif options.child and options.child[0] == "published":
        join_published(Path(options.child[1]))
    elif options.child:
        join(Path(options.child[1]), options.child[0])
    else:
        print("entity rows store         join      peak")
        compare(options.rows, list(STORES))
        compare(options.more_rows, ["ours", "duckdb"])
        compare(options.ours_rows, ["ours"])
        show_published()


if __name__ == "__main__":
    main()
