"""What a killed run leaves behind: put in order by the next; what is not its own is let be."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.artifact import STORE, Store
from pipeline.leftovers import recover_dead_runs
from telemetry.runfolder import REPLAYED, RunFolder
from tests.pipeline.small import environment, latest, run_command, statuses
from tests.pipeline.test_kill import PATIENCE_S, pid_of_stage, wait_for
from tests.telemetry.reference_runs import made_run
from tests.telemetry.test_lost_recorder import kept_from_its_parent

ROOT = Path(__file__).resolve().parents[2]
LEFT = """
import os, subprocess, sys, time
from infra.process import Child, children
from pipeline import leftovers
leftovers.REAP_S = 0.2
server = subprocess.Popen(["sleep", "60"])
before = children()
mine, spared, held = (subprocess.Popen(["sleep", "60"]) for _ in range(3))
before.add(Child(mine.pid, 0))  # it was another's number before
kill = os.kill
os.kill = lambda pid, number: None if pid == held.pid else kill(pid, number)
left = leftovers.kill_children([spared.pid], before)
alive = [one.pid for one in (server, mine, spared, held) if os.path.exists(f"/proc/{one.pid}")]
began_s = time.monotonic()
again = leftovers.kill_children([spared.pid, *left], before)
assert time.monotonic() - began_s < 0.2, "nobody waits for it twice"
print(left == [held.pid], alive == [server.pid, spared.pid, held.pid], again)
for one in (server, spared, held):
    kill(one.pid, 9)
    one.wait()
"""


def test_a_process_that_cannot_be_ended_is_waited_for_once_and_named() -> None:
    """As one that a driver or a disk holds: no order to end reaches it."""
    done = subprocess.run(
        [sys.executable, "-c", LEFT], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    assert done.stdout.split() == ["True", "True", "[]"]


def test_what_a_script_started_before_the_run_outlives_its_stages(tmp_path: Path) -> None:
    """As ``mlflow server & exec stagescope run`` has it: the server is a child of the runner."""
    raw, out = tmp_path / "raw", tmp_path / "runs"
    raw.mkdir()
    (raw / "readme.txt").write_text("no payments")
    given = ("--set", "data.source=files", "--set", f"data.path={raw}")
    script = 'sleep 600 >/dev/null 2>&1 & echo $!; exec "$@"'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *run_command(out, *given)],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )
    server = int(done.stdout.split()[0])
    try:
        found = statuses(latest(out))
        assert (found["ingest"], found["processing"]) == ("finished", "failed"), done.stdout
        assert b"sleep" in Path(f"/proc/{server}/cmdline").read_bytes(), "it lives"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)


IMPATIENT = """
from infra import process
process.REAP_S = 0.5
from pipeline.cli import main
main()
"""


def test_an_interrupted_run_ends_though_its_stage_is_held(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    process = subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, *run_command(out)[3:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )
    try:
        stage = wait_for(out, process, pid_of_stage("ingest"))
        os.kill(stage, signal.SIGSTOP)  # so that it does not end before it is held
        with kept_from_its_parent(stage):
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    record = latest(out)
    assert process.returncode == 130, said
    assert (record["status"], statuses(record)) == ("interrupted", {"ingest": "interrupted"})
    assert (
        f"ingest: of its processes {stage} did not end: a driver or disk holds" in record["losses"]
    )
    assert RunFolder(out / "latest").profile_json.is_file()


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
