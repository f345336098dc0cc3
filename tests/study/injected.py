"""Is a stage that was really made 5 % slower found, and is nothing found where nothing was done?

Writes docs/study-injected.md. Programs that vary little from run to run are recorded with
``stagescope record``, in turn as they are and with 5 % more of their own steps; each trial compares
five runs of one kind with five of the other, and five of a trial as it is with those of the next.
``python -m tests.study.injected [--trials N]``; nothing else may run meanwhile.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from telemetry.compare import Comparison, compare
from telemetry.compared import Compared, percent
from telemetry.publish import reference_of
from telemetry.runfolder import RunFolder, list_runs, write_atomically

ROOT = Path(__file__).resolve().parents[2]
RUNS = 5
SLOWER = 0.05
ASKED = 0.9
FACTOR = "STAGESCOPE_STUDY_FACTOR"
PROGRAMS = {
    "steps at a pace": (
        "sleeps 10 ms a step, as a loop that waits for a device does",
        "import os, time\n"
        f"for _ in range(round(120 * float(os.environ['{FACTOR}']))):\n"
        "    time.sleep(0.01)\n",
    ),
    "digests": (
        "hashes 1 MiB a step on one CPU",
        "import hashlib, os\n"
        "block = bytes(1 << 20)\n"
        f"for _ in range(round(1200 * float(os.environ['{FACTOR}']))):\n"
        "    hashlib.sha256(block).digest()\n",
    ),
}


@dataclass(frozen=True)
class Trial:
    """Five runs as they are and five slower ones, recorded in turn."""

    usual: Sequence[RunFolder]
    slower: Sequence[RunFolder]


def record(folder: Path, factor: float) -> RunFolder:
    """One run of the program in ``folder``, with so many times its steps."""
    out = folder / "runs"
    command = [sys.executable, "-m", "pipeline.cli", "record", "--name", "work", "--out", str(out)]
    subprocess.run(
        [*command, "--", sys.executable, "work.py"],
        check=True,
        capture_output=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), FACTOR: str(factor)},
    )
    return list_runs(out)[-1]


def trials(folder: Path, many: int) -> Iterator[Trial]:
    record(folder, 1.0)  # warms up
    for number in range(many):
        pairs = [(record(folder, 1.0), record(folder, 1 + SLOWER)) for _ in range(RUNS)]
        print(f"  trial {number + 1} of {many}", flush=True)
        yield Trial([usual for usual, _ in pairs], [slower for _, slower in pairs])


def compared(a: Sequence[RunFolder], b: Sequence[RunFolder]) -> Comparison:
    return compare(reference_of("a", a), reference_of("b", b))


def holds(row: Compared) -> bool:
    """Whether the interval that is told has what was injected in it."""
    assert row.change_low is not None
    assert row.change_high is not None
    return row.change_low <= SLOWER <= row.change_high


def line(name: str, done: Sequence[Trial]) -> tuple[str, bool]:
    """A row of the table, and whether as many were found as are asked for."""
    slower = [compared(one.usual, one.slower) for one in done]
    alike = [compared(one.usual, after.usual) for one, after in pairwise(done)]
    times = [one.times[0] for one in slower]
    found = sum(row.verdict == "slower" for row in times)
    spread = median(row.spread or 0.0 for row in times)
    wrong = sum(bool(one.found) for one in alike)
    wrong_times = sum(one.times[0].is_found for one in alike)
    changes = sorted(row.change or 0.0 for row in times)
    enough = found >= ASKED * len(times) or spread > 0.01
    return (
        f"| {name} | {median(row.a for row in times):.2f} s | {percent(spread)} "
        f"| {found} of {len(times)} | {percent(changes[0])} to {percent(changes[-1])} "
        f"| {sum(map(holds, times))} of {len(times)} "
        f"| {wrong_times} of {len(alike)} | {wrong} of {len(alike)} |"
    ), enough


def page(lines: Sequence[str], many: int) -> Iterator[str]:
    yield "# Is a slowdown that was made found on real runs?"
    yield ""
    yield f"Programs recorded with `stagescope record`, {RUNS} runs a side in turn (A B A B …), the"
    yield f"B side with {100 * SLOWER:.0f} % more steps: {many} trials each"
    yield "(`python -m tests.study.injected`, on"
    yield f"{os.cpu_count()} CPUs, kernel {os.uname().release})."
    yield "Where a stage varies by at most 1 %, 9 of 10 are asked for. The last two columns compare"
    yield "the A side of each trial with that of the next: nothing differs there, and one alarm in"
    yield "twenty is allowed over the whole profile."
    yield ""
    yield (
        "| program | takes | varies by | found slower | told as | interval holds "
        f"{100 * SLOWER:.0f} % | nothing done: a time differs | anything differs |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    yield from lines
    yield ""
    yield from (f"- *{name}* {what}." for name, (what, _) in PROGRAMS.items())


def main() -> None:
    told = argparse.ArgumentParser(description=__doc__)
    told.add_argument("--trials", type=int, default=10)
    many = told.parse_args().trials
    lines, enough = [], []
    for name, (_, code) in PROGRAMS.items():
        began_s = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / "work.py").write_text(code)
            text, ok = line(name, list(trials(Path(scratch), many)))
        print(f"{text} {time.monotonic() - began_s:.0f} s", flush=True)
        lines.append(text)
        enough.append(ok)
    write_atomically(ROOT / "docs" / "study-injected.md", "\n".join(page(lines, many)) + "\n")
    if not all(enough):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
