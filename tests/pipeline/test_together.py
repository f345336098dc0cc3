"""Two runs at once in one folder, and a disk that is full."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
from pathlib import Path

from telemetry.runfolder import list_runs
from tests.pipeline.small import STAGES, command, environment, run, run_command, statuses


def test_two_runs_at_once_share_the_work(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    both = [
        subprocess.Popen(
            run_command(out),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(outputs)
    records = [folder.read() for folder in list_runs(out)]
    assert [record["status"] for record in records] == ["finished", "finished"]
    for name in STAGES[:4]:
        told = sorted(statuses(record)[name] for record in records)
        assert told == ["finished", "reused"], name
    for folder in list_runs(out):
        assert folder.profile_json.is_file()
        assert folder.report_html.is_file()


def test_work_that_goes_to_a_scheduler_is_told_as_unwatched(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # so that the first stage is the last
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        more = ("--set", f"cluster.scheduler={address}")
        record = run(tmp_path / "runs", *more, code=1)
    assert record["stages"][0]["scheduler"] == address
    assert (
        f"stage ingest: its work goes to the workers of {address}, which this run does not watch: "
        "the figures are those of the client alone"
    ) in record["losses"]


def on_a_small_disk(disk: Path, size: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command that sees a file system of its own, of this size, at ``disk``."""
    inner = " ".join(shlex.quote(word) for word in words)
    script = f"mount -t tmpfs -o size={size} none '{disk}' && {inner}"
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        check=False,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
    )


def test_a_full_disk_ends_with_a_sentence(tmp_path: Path) -> None:
    raw, disk = tmp_path / "raw", tmp_path / "disk"
    made = ("--customers", "600", "--terminals", "120", "--days", "26", "--workers", "0")
    subprocess.run(command("data", "generate", str(raw), *made), check=True, capture_output=True)
    disk.mkdir()
    given = ("--set", "data.source=files", "--set", f"data.path={raw}")
    done = on_a_small_disk(disk, "3m", run_command(disk / "runs", *given))
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "no space left on the disk" in said
    assert "--out" in said
    assert "Traceback" not in said


def test_a_full_disk_costs_a_recording_its_profile_and_not_the_commands_code(
    tmp_path: Path,
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    fill = f"dd if=/dev/zero of='{disk}/filler' bs=4k 2>/dev/null; exit 7"
    words = command("record", "--name", "fill", "--out", str(disk / "runs"), "--", "sh", "-c", fill)
    done = on_a_small_disk(disk, "1m", words)
    said = done.stdout + done.stderr
    assert done.returncode == 7, said
    assert "No space left on device" in said
    assert "Traceback" not in said


FULL_AFTERWARDS = """
import sys
from pathlib import Path
from pipeline import recording
from pipeline.cli import main
record = recording.record_command

def record_and_fill(name, command, out, *more, **named):
    done = record(name, command, out, *more, **named)
    with (out.parent / "filler").open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return done

recording.record_command = record_and_fill
main()
"""


def test_a_disk_that_is_full_when_the_profile_is_sent_costs_nothing_of_the_commands(
    tmp_path: Path,
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    away = ("--set", "tracking.uri=http://127.0.0.1:1", "--set", "tracking.timeout_s=1")
    words = command(
        "record", "--name", "x", "--out", str(disk / "runs"), *away, "--", "sh", "-c", "exit 7"
    )
    done = on_a_small_disk(disk, "8m", [sys.executable, "-c", FULL_AFTERWARDS, *words[3:]])
    said = done.stdout + done.stderr
    assert done.returncode == 7, said
    assert "lost: server and thresholds are not in the record: No space left on device" in said
    assert "Traceback" not in said
