"""The 12 window features against polars and DuckDB: the same rows, Parquet to Parquet, in one run.

    python -m tests.bench.bench_features [--rows 20000000]

Each engine runs in a process of its own, from the same files, to files with the same compression,
and is asked the same: count and mean of each row's customer over 1, 7 and 30 days, count and fraud
share of its terminal over the same windows seven days back. The work's seconds leave out imports,
which stand beside them (``whole``); peak memory is the process's, imports included. All three
answers are then compared on every thousandth customer and terminal.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.bench.measure import Measured, measured

CUSTOMERS, TERMINALS, DAYS, FILES = 100_000, 200_000, 183, 16
DAY_S, START_S, DELAY_DAYS, WINDOWS = 86_400, 1_522_540_800, 7, (1, 7, 30)
TABLES = (
    ("customer", "customer_id", "amount", 0, "mean_amount"),
    ("terminal", "terminal_id", "is_fraud", DELAY_DAYS, "fraud_rate"),
)
SAMPLE = 1000
COMMAND = (sys.executable, "-m", "tests.bench.bench_features")
TOLERANCE = 1e-6
"""The others sum floats; ours is exact."""


def make_inputs(folder: Path, rows: int) -> None:
    """Uniform rows in the order of time, no two of a key in one second: engines differ on ties."""
    random = np.random.default_rng(0)
    second = np.sort(random.integers(0, DAYS * DAY_S, rows)) + START_S
    keys = [random.integers(0, count, rows) for count in (CUSTOMERS, TERMINALS)]
    for number in range(2):
        _, first = np.unique(keys[number] * (1 << 34) + second, return_index=True)
        first.sort()
        second, keys = second[first], [key[first] for key in keys]
    rows = len(second)
    table = pa.table(
        {
            "transaction_id": np.arange(rows),
            "event_time": pa.array(second * 1_000_000).cast(pa.timestamp("us")),
            "customer_id": keys[0],
            "terminal_id": keys[1],
            "amount": np.round(random.gamma(2, 27, rows), 2),
            "is_fraud": (random.random(rows) < 0.0084).astype(np.int8),
            "fraud_scenario": np.zeros(rows, np.int8),
        }
    )
    step = -(-rows // FILES)
    for number in range(FILES):
        part = table.slice(number * step, step)
        pq.write_table(part, folder / f"{number:03d}.parquet", compression="lz4")


def run_ours(source: Path, out: Path) -> Callable[[], None]:
    import torch  # noqa: F401 (its import is not the work)

    from features.build import build_tables
    from infra.cluster import Cluster

    files = sorted(source.glob("*.parquet"))
    return lambda: void(build_tables(files, out, Cluster(workers=0)))


def void(_: object) -> None:
    """Take a result and give nothing."""


def run_polars(source: Path, out: Path) -> Callable[[], None]:
    """polars' ``rolling`` over sorted rows: faster here than ``rolling_*_by`` over groups."""
    import polars as pl

    def work() -> None:
        for table, key, value, delay, kind in TABLES:
            rows = pl.scan_parquet(source / "*.parquet").select(key, "event_time", value).collect()
            rows = rows.sort(key, "event_time")
            answer = rows.select(key, "event_time")
            for days in WINDOWS:
                window = rows.rolling(
                    "event_time",
                    period=f"{days}d",
                    offset=f"-{days + delay}d",
                    closed="right",
                    group_by=key,
                ).agg(
                    pl.len().alias(f"{table}_count_{days}d"),
                    pl.col(value).mean().fill_null(0.0).alias(f"{table}_{kind}_{days}d"),
                )
                answer = answer.hstack(window.drop(key, "event_time"))
            answer.write_parquet(out / f"{table}_windows.parquet", compression="lz4")

    return work


def run_duckdb(source: Path, out: Path) -> Callable[[], None]:
    import duckdb

    def work() -> None:
        connection = duckdb.connect()
        connection.execute("set preserve_insertion_order = false")
        for table, key, value, delay, kind in TABLES:
            end = f"interval {delay} day preceding" if delay else "current row"
            features = ", ".join(
                f"count(*) over w{days} as {table}_count_{days}d, "
                f"coalesce(avg({value}) over w{days}, 0) as {table}_{kind}_{days}d"
                for days in WINDOWS
            )
            windows = ", ".join(
                f"w{days} as (partition by {key} order by event_time range between "
                f"interval {(days + delay) * DAY_S - 1} second preceding and {end})"
                for days in WINDOWS
            )
            connection.execute(
                f"copy (select {key}, event_time, {features} from "
                f"read_parquet('{source}/*.parquet') window {windows}) to "
                f"'{out}/{table}_windows.parquet' (format parquet, compression lz4_raw)"
            )

    return work


ENGINES = {"ours": run_ours, "polars": run_polars, "duckdb": run_duckdb}


def differences(outs: dict[str, Path]) -> list[str]:
    """What differs from ours, beyond ``TOLERANCE``, on every thousandth key."""
    import polars as pl

    found = []
    for table, key, *_ in TABLES:
        answers = {}
        for engine, out in outs.items():
            files = "*_windows/*.parquet" if engine == "ours" else f"{table}_windows.parquet"
            files = files.replace("*_windows/", f"{table}_windows/")
            rows = pl.scan_parquet(out / files).filter(pl.col(key) % SAMPLE == 0)
            answers[engine] = rows.sort(key, "event_time").collect()
        ours = answers.pop("ours")
        for engine, other in answers.items():
            if len(other) != len(ours):
                found.append(f"{table}: {engine} has {len(other)} rows, ours {len(ours)}")
                continue
            for name in ours.columns[2:]:
                gap = (ours[name].cast(pl.Float64) - other[name].cast(pl.Float64)).abs().max()
                if not isinstance(gap, float) or gap > TOLERANCE:
                    found.append(f"{name}: {engine} is off by {gap}")
    return found


def child(engine: str, source: Path, out: Path) -> None:
    work = ENGINES[engine](source, out)
    start = time.perf_counter()
    work()
    print(json.dumps({"seconds": time.perf_counter() - start}))


def show(results: dict[str, Measured]) -> None:
    print(f"{'engine':<8}{'work s':>9}{'whole s':>9}{'CPU s':>9}{'peak GB':>9}")
    for engine, result in results.items():
        work = f"{result.answer['seconds']:>9.1f}" if result.answer else f"  {result.error}"
        print(f"{engine:<8}{work}{result.wall_s:>9.1f}{result.cpu_s:>9.1f}{result.peak_gb:>9.2f}")
    done = {engine: result.answer["seconds"] for engine, result in results.items() if result.answer}
    for peer in done.keys() - {"ours"}:
        print(f"{peer} / ours: {done[peer] / done['ours']:.2f} in time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--child", nargs=3, metavar=("ENGINE", "SOURCE", "OUT"))
    parser.add_argument("--make", metavar="FOLDER")
    options = parser.parse_args()
    if options.make:
        make_inputs(Path(options.make), options.rows)
        return
    if options.child:
        engine, source, out = options.child
        child(engine, Path(source), Path(out))
        return
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "clean"
        source.mkdir()
        subprocess.run(
            [*COMMAND, "--rows", str(options.rows), "--make", str(source)], check=True
        )  # apart, so that this process stays small
        outs = {engine: Path(place) / engine for engine in ENGINES}
        results = {}
        for engine, out in outs.items():
            out.mkdir()
            results[engine] = measured([*COMMAND, "--child", engine, str(source), str(out)])
        show(results)
        found = differences({engine: outs[engine] for engine in ENGINES})
        print("\n".join(found) if found else "the three answers are the same on the sample")
        shutil.rmtree(place, ignore_errors=True)
        if found:
            sys.exit(1)


if __name__ == "__main__":
    main()
