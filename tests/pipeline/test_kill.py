"""Whatever is killed, whenever: the next run goes on; nothing is lost, half made or left over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifact import digest_tree
from tests.pipeline.small import STAGES, environment, latest, run, run_command, statuses

MARK = "STAGESCOPE_TEST_MARK"
PATIENCE_S = 120

Found = Callable[[Path, dict[str, Any]], int | None]


def pid_of_stage(name: str) -> Found:
    """The stage's process, as soon as the record names it."""

    def find(out: Path, record: dict[str, Any]) -> int | None:
        for stage in record["stages"]:
            if stage["name"] == name and stage["status"] == "running":
                return int(stage["pid"])
        return None

    return find


def runner_in(name: str) -> Found:
    """The runner, while this stage runs."""

    def find(out: Path, record: dict[str, Any]) -> int | None:
        return RUNNER if pid_of_stage(name)(out, record) else None

    return find


def runner_with_checkpoint(out: Path, record: dict[str, Any]) -> int | None:
    """The runner, once the training has left a checkpoint."""
    if pid_of_stage("training")(out, record) is None:
        return None
    found = any((out / ".stagescope/work/training").rglob("checkpoint.pt"))
    return RUNNER if found else None


def recorder_in(name: str) -> Found:
    """The recorder, while this stage runs."""

    def find(out: Path, record: dict[str, Any]) -> int | None:
        if pid_of_stage(name)(out, record) is None:
            return None
        return next((pid for pid, line in processes() if "telemetry.recorder" in line), None)

    return find


def server_of_serving(out: Path, record: dict[str, Any]) -> int | None:
    """The model server of the serving stage."""
    return next((pid for pid, line in processes() if "serving.server" in line), None)


def runner_while_serving(out: Path, record: dict[str, Any]) -> int | None:
    """The runner, while the model server is up."""
    return RUNNER if server_of_serving(out, record) else None


RUNNER = -1
KILLS: list[tuple[str, Found, int]] = [
    ("runner as ingest begins", runner_in("ingest"), signal.SIGKILL),
    ("ingest", pid_of_stage("ingest"), signal.SIGKILL),
    ("runner in processing", runner_in("processing"), signal.SIGKILL),
    ("processing", pid_of_stage("processing"), signal.SIGKILL),
    ("features", pid_of_stage("features"), signal.SIGKILL),
    ("runner in features", runner_in("features"), signal.SIGTERM),
    ("runner after a checkpoint", runner_with_checkpoint, signal.SIGKILL),
    ("training", pid_of_stage("training"), signal.SIGKILL),
    ("runner in validation", runner_in("validation"), signal.SIGKILL),
    ("validation", pid_of_stage("validation"), signal.SIGKILL),
    ("server in serving", server_of_serving, signal.SIGKILL),
    ("runner while serving", runner_while_serving, signal.SIGKILL),
    ("Ctrl-C while serving", runner_while_serving, signal.SIGINT),
]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder for all: each killed run is the beginning of the next."""
    os.environ[MARK] = str(os.getpid())
    yield tmp_path_factory.mktemp("killed") / "runs"
    del os.environ[MARK]


@pytest.mark.parametrize(("what", "find", "number"), KILLS, ids=[kill[0] for kill in KILLS])
def test_killed_and_gone_on(out: Path, what: str, find: Found, number: int) -> None:
    finished_before = finished_stages(out)
    process = subprocess.Popen(
        run_command(out),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    victim = wait_for(out, process, find)
    os.kill(process.pid if victim == RUNNER else victim, number)
    output, _ = process.communicate(timeout=PATIENCE_S)
    record = latest(out)
    if victim != RUNNER:
        assert process.returncode == 1, output
        assert record["status"] == "failed"
    elif number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130, output
        assert record["status"] == "interrupted"
    nothing_is_left_running()
    every_output_is_whole(out)
    for name in finished_before:
        assert statuses(record).get(name, "reused") != "finished", f"{name} was done before"


def test_then_it_ends_and_no_finished_stage_was_repeated(out: Path) -> None:
    before = finished_stages(out)
    record = run(out)
    assert record["status"] == "finished"
    assert set(statuses(record)) == set(STAGES)
    for name in before:
        assert statuses(record)[name] == "reused"
    assert not any((out / ".stagescope/tmp").iterdir())
    assert not list(out.rglob("*.part"))
    for folder in out.iterdir():
        if not folder.is_symlink() and (folder / "run.json").is_file():
            ended = json.loads((folder / "run.json").read_text())
            assert ended["status"] != "running", "a dead run must be ended by the next"
            assert (folder / "profile.json").is_file()
            assert (folder / "report.html").is_file()
    every_output_is_whole(out)
    nothing_is_left_running()


def test_a_killed_training_went_on_from_its_checkpoint(out: Path) -> None:
    manifests = [
        json.loads(path.read_text())
        for path in (out / ".stagescope/artifacts/training").glob("*.json")
    ]
    assert len(manifests) == 1
    folds = manifests[0]["result"]["summary"]["folds"]
    assert sum(fold["resumed_epochs"] for fold in folds.values()) > 0


def test_a_killed_recorder_costs_samples_and_no_run(out: Path) -> None:
    process = subprocess.Popen(
        run_command(out, "--force", "training"), env=environment(), start_new_session=True
    )
    os.kill(wait_for(out, process, recorder_in("training")), signal.SIGKILL)
    assert process.wait(PATIENCE_S) == 0
    record = latest(out)
    assert record["status"] == "finished"
    assert any("recorder" in loss for loss in record["losses"])
    profile = json.loads((out / "latest" / "profile.json").read_text())
    training = next(stage for stage in profile["stages"] if stage["name"] == "training")
    covered = [
        row["coverage"]
        for row in training["metrics"]
        # A level: a counter's growth is known over a gap within the stage, which then is covered.
        if (row["entity"], row["metric"]) == ("machine", "mem_used_bytes")
    ]
    assert len(covered) == 1
    assert 0 < covered[0] < 1
    nothing_is_left_running()


def wait_for(out: Path, process: subprocess.Popen[str], find: Found) -> int:
    known = {path.name for path in out.iterdir()} if out.is_dir() else set()
    before = latest(out)["run_id"] if "latest" in known else None
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            output = process.stdout.read() if process.stdout else ""
            pytest.fail(f"it ended with {process.returncode} before it could be killed: {output}")
        if (out / "latest" / "run.json").is_file() and latest(out)["run_id"] != before:
            victim = find(out, latest(out))
            if victim is not None:
                return victim
        time.sleep(0.01)
    process.kill()
    pytest.fail("the moment to kill did not come")


def finished_stages(out: Path) -> set[str]:
    if not out.is_dir():
        return set()
    return {path.parent.name for path in (out / ".stagescope/artifacts").glob("*/*.json")}


def every_output_is_whole(out: Path) -> None:
    for path in (out / ".stagescope/artifacts").glob("*/*.json"):
        for artifact in json.loads(path.read_text())["artifacts"].values():
            assert digest_tree(Path(artifact["path"])) == (artifact["digest"], artifact["bytes"])


def nothing_is_left_running() -> None:
    deadline = time.monotonic() + 10
    while (left := processes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def processes() -> list[tuple[int, str]]:
    """Processes that carry the mark of these tests, besides the tests themselves."""
    mark = f"{MARK}={os.getpid()}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found.append((int(entry.name), line))
        except OSError:
            continue
    return found
