"""Somebody else's work as a run: spans in a script, and commands."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

import telemetry
from telemetry.record import record_command
from telemetry.runfolder import RunFolder, find_run
from telemetry.settings import TelemetrySettings

ROOT = Path(__file__).resolve().parents[2]
LIGHT = TelemetrySettings(collectors=("guest",))


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def metrics(folder: RunFolder, stage: str, entity: str) -> dict[str, Any]:
    profile = json.loads(folder.profile_json.read_text())
    (one,) = [one for one in profile["stages"] if one["name"] == stage]
    return {row["metric"]: row for row in one["metrics"] if row["entity"] == entity}


def test_a_span_is_a_run_of_its_own(tmp_path: Path) -> None:
    burn(0.3)  # what came before is not the span's
    with telemetry.span("train", out=tmp_path, settings=LIGHT) as handle:
        with handle.phase("compute"):
            burn(0.6)
        handle.count("rows", 4)
    folder = find_run("latest", tmp_path)
    record = folder.read()
    assert record["status"] == "finished"
    (stage,) = record["stages"]
    used_s = stage["rusage"]["user_s"] + stage["rusage"]["system_s"]
    assert used_s >= 0.59
    busy = metrics(folder, "train", "stage")["cpu_busy_seconds"]
    assert abs(busy["total"] - used_s) < 0.06
    assert busy["coverage"] > 0.9
    assert metrics(folder, "train", "app")["app_rows"]["total"] == pytest.approx(4, rel=0.05)
    assert folder.report_html.is_file()


def test_spans_within_a_span_are_of_its_run_and_a_failure_is_told(tmp_path: Path) -> None:
    def fail() -> None:
        with telemetry.span("outer", out=tmp_path, settings=LIGHT):
            for _ in range(2):
                with telemetry.span("inner", out=tmp_path / "elsewhere"):
                    burn(0.15)
            raise ZeroDivisionError("no")

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not (tmp_path / "elsewhere").exists()
    record = find_run("latest", tmp_path).read()
    assert record["status"] == "failed"
    said = {one["name"]: (one["status"], one["reason"]) for one in record["stages"]}
    assert said == {
        "outer": ("failed", "ZeroDivisionError: no"),
        "inner": ("finished", None),
        "inner-2": ("finished", None),
    }


def test_a_session_of_several_stages(tmp_path: Path) -> None:
    with telemetry.Session("mine", tmp_path, LIGHT) as run:
        with run.span("one"):
            burn(0.15)
        with telemetry.span("two"):
            burn(0.15)
    names = [one["name"] for one in find_run("latest", tmp_path).read()["stages"]]
    assert names == ["one", "two"]


@pytest.mark.parametrize("name", ["", "a/b", "a:b", ".hidden"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with (
        pytest.raises(ValueError, match="cannot name a stage"),
        telemetry.span(name, out=tmp_path, settings=LIGHT),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_importing_the_room_is_light() -> None:
    code = "import sys\nfrom telemetry import span\nprint({'pyarrow', 'numpy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    assert done.stdout == "set()\n"


RECORD = """
import sys
from pathlib import Path
from telemetry.record import record_command
from telemetry.settings import TelemetrySettings
folder, code = record_command(
    "theirs", sys.argv[2:], Path(sys.argv[1]), TelemetrySettings(collectors=("guest",)))
sys.exit(code)
"""


def recording(out: Path, *command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", RECORD, str(out), *command], cwd=ROOT, stdout=subprocess.PIPE
    )


LEAVES = """
    import os, subprocess, sys, time
    end = time.process_time() + 0.5
    while time.process_time() < end: pass
    print("hello", flush=True)
    left = subprocess.Popen(["sleep", "300"], stdout=subprocess.DEVNULL, start_new_session=True)
    open(sys.argv[1], "w").write(str(left.pid))
    sys.exit(5)
"""


def test_a_command_with_its_output_exit_code_and_leftovers(tmp_path: Path) -> None:
    left = tmp_path / "left"
    code = textwrap.dedent(LEAVES)
    process = recording(tmp_path / "runs", sys.executable, "-c", code, str(left))
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 5
    assert out == b"hello\n"
    assert not Path(f"/proc/{left.read_text()}").exists()
    folder = find_run("latest", tmp_path / "runs")
    record = folder.read()
    (stage,) = record["stages"]
    assert (record["status"], stage["status"], stage["reason"]) == (
        "failed",
        "failed",
        "exit code 5",
    )
    used_s = stage["rusage"]["user_s"] + stage["rusage"]["system_s"]
    busy = metrics(folder, "theirs", "stage")["cpu_busy_seconds"]
    assert abs(busy["total"] - used_s) <= max(0.02 * used_s, 0.05)
    assert busy["coverage"] > 0.9


def test_signals_reach_the_command(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *a: sys.exit(7))\n"
        "print('ready', flush=True)\ntime.sleep(300)"
    )
    process = recording(tmp_path, sys.executable, "-c", code)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 7

    process = recording(tmp_path, "sh", "-c", "echo ready; exec sleep 300")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert find_run("latest", tmp_path).read()["stages"][0]["reason"] == "SIGTERM"


def test_no_such_command(tmp_path: Path) -> None:
    for command in (["no-such-command-here"], []):
        with pytest.raises(FileNotFoundError, match="no command"):
            record_command("theirs", command, tmp_path, LIGHT)
    assert list(tmp_path.iterdir()) == []
