"""Somebody else's work as a run: spans in a script, and commands."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import telemetry
from telemetry.record import record_command
from telemetry.runfolder import RunFolder, find_run
from telemetry.segments import read_samples
from telemetry.series import SeriesIndex
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
    assert record["stagescope"] == metadata.version("stagescope")
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


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [(None, "finished", None), (0, "finished", None), (3, "failed", "SystemExit: 3")],
)
def test_a_program_that_ends_within_its_span_has_finished_unless_it_says_otherwise(
    tmp_path: Path, code: int | None, status: str, reason: str | None
) -> None:
    with pytest.raises(SystemExit), telemetry.span("train", tmp_path, LIGHT):
        sys.exit(code)
    record = find_run("latest", tmp_path).read()
    assert (record["status"], record["stages"][0]["status"]) == (status, status)
    assert record["stages"][0]["reason"] == reason


def test_a_session_of_several_stages(tmp_path: Path) -> None:
    with telemetry.Session("mine", tmp_path, LIGHT) as run:
        with run.span("one"):
            burn(0.15)
        with telemetry.span("two"):
            burn(0.15)
    names = [one["name"] for one in find_run("latest", tmp_path).read()["stages"]]
    assert names == ["one", "two"]


FORKS = """
import os, sys
from pathlib import Path
import telemetry
from telemetry.settings import TelemetrySettings
pid = 0
with telemetry.span("train", sys.argv[1], TelemetrySettings(collectors=("guest",))) as handle:
    handle.count("rows", 3)
    pid = os.fork()
    if pid == 0:
        sys.exit(4)  # leaves both blocks, in the child
    os.waitpid(pid, 0)
    handle.count("rows", 2)
"""


def test_a_fork_that_leaves_a_span_ends_nothing(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", FORKS, str(tmp_path)], cwd=ROOT, check=True)
    folder = find_run("latest", tmp_path)
    record = folder.read()
    assert (record["status"], record["losses"]) == ("finished", [])
    assert record["stages"][0]["status"] == "finished"
    assert SeriesIndex(read_samples(folder.samples)).points("app:train", "app_rows").values[-1] == 5


def test_sessions_in_several_threads_do_not_mix(tmp_path: Path) -> None:
    def run(number: int) -> None:
        with telemetry.Session(f"s{number}", tmp_path / str(number), LIGHT) as session:
            with session.span("one") as handle:
                handle.count("rows", number)
            with telemetry.span("two"):  # of this thread's session
                burn(0.05)

    threads = [threading.Thread(target=run, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in (1, 2):
        folder = find_run("latest", tmp_path / str(number))
        assert [one["name"] for one in folder.read()["stages"]] == ["one", "two"]
        index = SeriesIndex(read_samples(folder.samples))
        assert index.points("app:one", "app_rows").values[-1] == number


@pytest.mark.parametrize(
    "name",
    ["", "-", "a/b", "a:b", ".hidden", """bob's "new" one""", "caf\udce9", "two\nlines", "nul\0"],
)
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


def record_of(tmp_path: Path) -> dict[str, Any]:
    return find_run("latest", tmp_path / "runs").read()


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
    assert "theirs left processes running: 1, now ended" in record_of(tmp_path)["losses"]
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
        "print('ready', flush=True)\n"
        "while True: time.sleep(0.05)"  # one long sleep begins in spite of a signal just before it
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


TERMINAL = """
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.executable, [sys.executable, "-c", *sys.argv[1:]])
said = b""
while b"ready" not in said:
    said += os.read(terminal, 1000)
os.write(terminal, bytes([3]))
try:
    while os.read(terminal, 1000):
        pass
except OSError:  # the other side is closed
    pass
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
COUNTS = """
import signal, sys, time
told = []
signal.signal(signal.SIGINT, lambda *a: told.append(1))
print("ready", flush=True)
while not told:
    time.sleep(0.05)
time.sleep(0.5)
sys.exit(10 + len(told))
"""


@pytest.mark.parametrize(
    ("command", "code"),
    [(["sh", "-c", "echo ready; exec sleep 300"], 130), ([sys.executable, "-c", COUNTS], 11)],
)
def test_ctrl_c_reaches_the_command_once(tmp_path: Path, command: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TERMINAL, RECORD, str(tmp_path), *command],
        cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    assert int(done.stdout) == code
    assert find_run("latest", tmp_path).report_html.is_file()


def test_no_such_command(tmp_path: Path) -> None:
    for command in (["no-such-command-here"], []):
        with pytest.raises(FileNotFoundError, match="no command"):
            record_command("theirs", command, tmp_path, LIGHT)
    assert list(tmp_path.iterdir()) == []
