"""What a killed run leaves behind: put in order by the next; what is not its own is let be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.artifact import STORE, Store
from pipeline.leftovers import recover_dead_runs
from telemetry.runfolder import REPLAYED, RunFolder
from tests.telemetry.reference_runs import made_run

ROOT = Path(__file__).resolve().parents[2]
LEFT = """
import os, subprocess, sys, time
from pipeline import leftovers
leftovers.MOST_WAIT_S = 0.2
mine, spared, held = (subprocess.Popen(["sleep", "60"]) for _ in range(3))
kill = os.kill
os.kill = lambda pid, number: None if pid == held.pid else kill(pid, number)
left = leftovers.kill_children(os.getpid(), spare=[spared.pid])
alive = [one.pid for one in (mine, spared, held) if os.path.exists(f"/proc/{one.pid}")]
began_s = time.monotonic()
again = leftovers.kill_children(os.getpid(), spare=[spared.pid, *left])
assert time.monotonic() - began_s < 0.2, "nobody waits for it twice"
print(left == [held.pid], alive == [spared.pid, held.pid], again)
for one in (spared, held):
    kill(one.pid, 9)
    one.wait()
"""


def test_a_process_that_cannot_be_ended_is_waited_for_once_and_named() -> None:
    """As one that a driver or a disk holds: no order to end reaches it."""
    done = subprocess.run(
        [sys.executable, "-c", LEFT], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    assert done.stdout.split() == ["True", "True", "[]"]


@pytest.fixture
def going(tmp_path: Path) -> RunFolder:
    """A run in the making, in whose folder nobody is."""
    folder = made_run(tmp_path, 1, {"processing": 4.0})
    record = folder.read()
    record["stages"][0] |= {"status": "running", "end_ns": None}
    folder.write({**record, "status": "running", "ended_ns": None})
    folder.samples.mkdir()
    return folder


def recover(folder: RunFolder) -> list[str]:
    notes: list[str] = []
    recover_dead_runs(folder.path.parent, Store(folder.path.parent / STORE), notes.append)
    return notes


def test_a_run_whose_runner_is_gone_is_ended(going: RunFolder) -> None:
    assert recover(going) == ["run 2026-01 was killed: its finished stages are used again"]
    assert going.read()["status"] == "killed"
    assert [one["status"] for one in going.read()["stages"]] == ["killed"]


def test_a_run_whose_runner_lives_is_let_be(going: RunFolder) -> None:
    before = going.run_json.read_bytes()
    with Store(going.path.parent / STORE).locked("run-2026-01"):
        assert recover(going) == []
    assert going.run_json.read_bytes() == before


def test_a_replay_among_the_runs_is_let_be(going: RunFolder) -> None:
    """It holds its folder by another lock, and ends its record itself."""
    (going.path / REPLAYED).write_text(json.dumps({"source": "elsewhere"}))
    before = going.run_json.read_bytes()
    assert recover(going) == []
    assert going.run_json.read_bytes() == before


def test_a_record_with_another_runs_id_touches_nothing_of_that_run(going: RunFolder) -> None:
    """A folder that was copied: its scratch is that of its own name."""
    store = Store(going.path.parent / STORE)
    scratch = store.scratch("other", "training")
    going.write({**going.read(), "run_id": "other"})
    assert len(recover(going)) == 1
    assert scratch.is_dir()
