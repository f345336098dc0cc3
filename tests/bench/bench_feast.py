"""The import of Feast: as it comes, and as features/__init__.py has it, in turn.

python -m tests.bench.bench_feast [--pairs 5]

Each import is a process of its own; times are its CPU time with Python's own start, medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from tests.bench.measure import measured

SAY = "; print('{}')"
WAYS = {
    "as it comes": f"import feast{SAY}",
    "without checks": f"import features, feast{SAY}",
}


def main() -> None:
    told = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS)
    told.add_argument("--pairs", type=int, default=5)
    pairs = told.parse_args().pairs
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(pairs + 1):
        for way, code in WAYS.items():
            one = measured((sys.executable, "-W", "ignore", "-c", code))
            assert one.answer is not None, one.error
            if number:  # the first of each fills the page cache
                taken[way].append(one.cpu_s)
    as_it_comes, ours = (statistics.median(found) for found in taken.values())
    print("| Feast | CPU time of its import |\n|---|---|")
    for way, found in taken.items():
        print(
            f"| {way} | {statistics.median(found):.2f} s ({min(found):.2f} to {max(found):.2f}) |"
        )
    print(f"\nAs it comes it takes {as_it_comes / ours:.2f} times as long.")


if __name__ == "__main__":
    main()
