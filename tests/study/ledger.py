"""Does the ledger close? Ten fresh runs of the default recipe, every witness against the other.

Writes docs/study-ledger.md. A remainder is shown with its sign; a quantity that is too small to
tell (less than the witnesses' own grain) is counted apart and never as closed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

RUNS = 10
DOCS = Path(__file__).resolve().parents[2] / "docs"


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    entries: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    environment: Mapping[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".study-") as out:
        for number in range(runs):
            done = _stagescope("run", "--fresh", "--json", "--out", out)
            profile = json.loads(done)
            environment = profile["environment"]
            for entry in profile["ledger"]:
                entries[entry["name"]].append(entry)
            page = "\n".join(_page(entries, number + 1, environment)) + "\n"
            (DOCS / "study-ledger.md").write_text(page)  # each time: one that is cut short counts
            print(f"run {number + 1} of {runs} done", flush=True)
            _stagescope("runs", "prune", "--keep", "1", "--yes", "--out", out)
    print(page)


def _stagescope(*arguments: str) -> str:
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _page(
    entries: Mapping[str, Sequence[Mapping[str, Any]]], runs: int, environment: Mapping[str, Any]
) -> Iterable[str]:
    cpu = environment["cpu"]
    yield "# Does the ledger close?"
    yield ""
    yield f"{runs} fresh runs of the default recipe, one after another (`make study`), on"
    yield f"{cpu['count']} CPUs ({cpu['model']}), kernel {environment['kernel']}."
    yield "Remainder: the first witness less the second, as a share of the second. An account"
    yield "closes where the two are within 2 %; docs/profile.md says what each shows."
    yield ""
    yield "| account | witnesses | median remainder | worst | closes | too small to tell |"
    yield "|---|---|---|---|---|---|"
    for name, ones in entries.items():
        told = [one for one in ones if one["closes"] is not None]
        remainders = [one["remainder_percent"] for one in told]
        middle = f"{median(remainders):+.2f} %" if remainders else "–"
        worst = f"{max(remainders, key=abs):+.2f} %" if remainders else "–"
        closed = sum(one["closes"] for one in told)
        figures = (middle, worst, f"{closed} of {len(told)}", str(len(ones) - len(told)))
        yield f"| {name} | {' / '.join(ones[0]['witnesses'])} | {' | '.join(figures)} |"


if __name__ == "__main__":
    main()
