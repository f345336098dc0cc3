"""``make bench``: ours and the peers in turn, in one run, with the ratio; no test."""

from __future__ import annotations

import subprocess
import sys

BENCHES = (
    "bench_features",
    "bench_join",
    "bench_feast",
    "bench_generator",
    "bench_recorder",
    "bench_overhead",
    "bench_day",
    "bench_nvml",
    "bench_steps",
    "bench_vcenter",
    "bench_watch",
    "bench_report",
    "bench_vcenter_load",
)


def main() -> None:
    chosen = sys.argv[1:] or BENCHES
    for name in chosen:
        print(f"\n== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"tests.bench.{name}"], check=True)


if __name__ == "__main__":
    main()
