"""The generator's rate: days of 50,000 customers on two workers, Parquet files synced to disk.

    python -m tests.bench.bench_generator [--customers 50000]

284,000 customers make 100 M rows, 2.6 GB of Parquet in the folder for temporary files.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path

import psutil

from infra.cluster import Cluster, open_cluster
from pipeline.data.generator import GeneratorSpec, generate

WORKERS = 2
CUSTOMERS, DAYS = 50_000, 183
MEMORY_LIMIT_BYTES = 2 << 30


class PeakMemory(threading.Thread):
    """Follows the largest resident set of any worker, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                try:
                    self.peak_bytes = max(self.peak_bytes, process.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue


def measure(spec: GeneratorSpec, cluster: Cluster, out: Path) -> tuple[int, float, int]:
    """Return rows, seconds and the peak resident bytes of a worker."""
    memory = PeakMemory()
    memory.start()
    start = time.perf_counter()
    rows = generate(spec, out, cluster).rows
    seconds = time.perf_counter() - start
    memory.stop.set()
    memory.join()
    return rows, seconds, memory.peak_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--customers", type=int, default=CUSTOMERS)
    customers = parser.parse_args().customers
    spec = GeneratorSpec(seed=1, customers=customers, terminals=2 * customers, days=DAYS)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        with open_cluster(
            workers=WORKERS, memory_limit_bytes=MEMORY_LIMIT_BYTES, local_directory=scratch
        ) as cluster:
            cluster.map(len, ["warm", "up"])
            rows, seconds, peak_bytes = measure(spec, cluster, scratch / "raw")
    print("generator              rows   seconds      rows/s   peak RSS per worker")
    print(
        f"{WORKERS} workers    {rows:>14,} {seconds:>9.1f} {rows / seconds:>11,.0f} "
        f"{peak_bytes / 2**20:>17,.0f} MiB"
    )


if __name__ == "__main__":
    main()
