"""From a run's folder to its profile and report, whatever became of the run."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow.parquet as pq
import pytest

from telemetry.clock import Clock, measure_offset_ns
from telemetry.finish import finish
from telemetry.headlines import headlines
from telemetry.profile import Profile
from telemetry.recording import Recording
from telemetry.runfolder import RUN_SCHEMA, RunFolder
from telemetry.settings import TelemetrySettings

SCHEMA = json.loads((Path(__file__).resolve().parents[2] / "docs/profile.schema.json").read_text())
START_NS = 1_795_485_600_000_000_000
WORK = """
import os, sys, time
end = time.process_time() + 1.5
while time.process_time() < end:
    sum(range(1000))
with open(sys.argv[1], "wb") as file:
    file.write(os.urandom(1 << 20) * 16)
    file.flush()
    os.fsync(file.fileno())
"""


def write_run(folder: RunFolder, stages: list[dict[str, Any]], **changed: Any) -> dict[str, Any]:
    record = {
        "schema": RUN_SCHEMA, "run_id": "20261124-020000-3fa9c1", "name": "default",
        "status": "finished", "started_ns": START_NS, "ended_ns": START_NS + 10**10,
        "host": "ml-1", "seed": 7, "clock": {"offset_start_ns": 0, "offset_end_ns": 0},
        "environment": {"cpu": {"count": os.cpu_count()}}, "recipe": {}, "losses": [],
        "stages": stages,
    } | changed  # fmt: skip
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write(record)
    return record


def stage(name: str, status: str, start_ns: int | None, end_ns: int | None) -> dict[str, Any]:
    return {
        "name": name, "status": status, "start_ns": start_ns, "end_ns": end_ns, "pid": None,
        "exit_code": None, "reused_from": None, "rusage": None, "bytes_in": None,
        "bytes_out": None, "rows_in": None, "rows_out": None, "summary": {}, "reason": None,
    }  # fmt: skip


def documents(folder: RunFolder) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(folder.profile_json.read_text())
    jsonschema.validate(document, SCHEMA)
    return document


def test_a_recorded_process_gets_its_profile_and_closes_its_books(tmp_path: Path) -> None:
    """Real parts: a recorder beside a process that burns 1.5 s of CPU and writes 16 MiB."""
    folder = RunFolder(tmp_path / "run")
    clock = Clock(offset_ns=measure_offset_ns())
    started_ns = clock.now_ns()
    settings = TelemetrySettings(collectors=("guest",))
    with Recording(folder.samples, clock, settings) as recording:
        entry = stage("burn", "finished", clock.now_ns(), None)
        command = [sys.executable, "-c", WORK, str(tmp_path / "out")]
        pid = os.posix_spawn(sys.executable, command, os.environ)
        recording.watch("burn", pid)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        recording.unwatch("burn")
        _, status, usage = os.wait4(pid, 0)
        entry["end_ns"] = clock.now_ns()
        assert status == 0
        time.sleep(0.3)
    entry |= {
        "bytes_out": 16 << 20,
        "rusage": {"user_s": usage.ru_utime, "system_s": usage.ru_stime, "max_rss_bytes": 0,
                   "read_bytes": usage.ru_inblock * 512, "write_bytes": usage.ru_oublock * 512},
    }  # fmt: skip
    assert not [loss for loss in recording.losses if "recorder" in loss]
    record = write_run(
        folder, [entry], started_ns=started_ns, ended_ns=clock.now_ns(), host="here",
        clock={"offset_start_ns": clock.offset_ns, "offset_end_ns": measure_offset_ns()},
    )  # fmt: skip
    profile = finish(folder)
    burn = headlines(profile, record)[0]
    assert burn.cpu_s is not None
    assert burn.cpu_s >= 1.5
    assert burn.coverage is not None
    assert burn.coverage > 0.95
    assert burn.write_bytes == pytest.approx(16 << 20, rel=0.1)
    ledger = {one["name"]: one for one in documents(folder)["ledger"]}
    assert ledger["CPU of stage burn"]["closes"] is True, ledger["CPU of stage burn"]
    assert ledger["bytes written of stage burn"]["closes"] is True
    assert ledger["CPU of the machine, stages and between"]["closes"] is True
    assert ledger["time of the run"]["closes"] is True
    assert "burn" in folder.report_html.read_text()


def test_each_file_is_there_and_says_the_same(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_run(folder, [stage("a", "finished", START_NS, START_NS + 10**9)])
    profile = finish(folder)
    assert Profile.from_json(documents(folder)) == profile
    assert pq.read_table(folder.profile_parquet).num_rows == len(profile.rows) == 5
    assert pq.read_table(folder.spans_parquet).to_pylist() == [
        {"stage": "a", "kind": "stage", "status": "finished",
         "start_ns": START_NS, "end_ns": START_NS + 10**9}
    ]  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {
        "run.json", "spans.parquet", "profile.parquet", "profile.json", "report.html"
    }  # fmt: skip


def test_finishing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_run(folder, [stage("a", "finished", START_NS, START_NS + 10**9)])
    finish(folder)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    finish(folder)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("status", ["failed", "interrupted", "killed"])
def test_a_run_that_was_cut_short_has_a_profile_of_what_it_measured(
    tmp_path: Path, status: str
) -> None:
    folder = RunFolder(tmp_path)
    killed = stage("b", status, START_NS + 10**9, None) | {"reason": "the run was killed"}
    ended = stage("a", "finished", START_NS, START_NS + 10**9)
    skipped = stage("c", "skipped", None, None) | {"reason": "b failed"}
    write_run(folder, [ended, killed, skipped], status=status, ended_ns=None)
    finish(folder)
    first, second, third = documents(folder)["stages"]
    assert first["metrics"]
    assert (second["status"], second["reason"], second["metrics"]) == (
        status, "the run was killed", []
    )  # fmt: skip
    assert (third["status"], third["reason"], third["metrics"]) == ("skipped", "b failed", [])
    assert [one["end_ns"] for one in pq.read_table(folder.spans_parquet).to_pylist()] == [
        START_NS + 10**9, None
    ]  # fmt: skip


def test_a_run_that_never_began_a_stage_can_be_finished(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_run(folder, [], status="interrupted", ended_ns=None)
    folder.samples.mkdir()
    assert finish(folder).rows == ()
    assert documents(folder)["stages"] == []
    assert pq.read_table(folder.spans_parquet).num_rows == 0


def test_a_failed_write_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    write_run(folder, [stage("a", "finished", START_NS, START_NS + 10**9)])
    finish(folder)
    before = folder.profile_parquet.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        finish(folder)
    assert folder.profile_parquet.read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
