"""A disk that is full, or a profile that cannot be made: the work goes on and ends as it does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import telemetry
from telemetry.runfolder import find_run
from telemetry.settings import TelemetrySettings
from tests.pipeline.small import command, environment
from tests.pipeline.test_together import on_a_small_disk

ROOT = Path(__file__).resolve().parents[2]
FILL = """
import sys
from pathlib import Path
import telemetry
from telemetry.settings import TelemetrySettings
out = Path(sys.argv[1])
light = TelemetrySettings(collectors=("guest",))

def fill():
    with (out.parent / "filler").open("ab", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return
"""
SPAN = """
try:
    with telemetry.span("train", out, light) as handle:
        fill()
        handle.count("rows", 3)
        if sys.argv[2:]:
            raise ZeroDivisionError("their own")
    print("the model is saved")
except ZeroDivisionError as error:
    print("they failed by", error)
"""
LATER = """
with telemetry.Session("mine", out, light) as run:
    fill()
    with run.span("train") as handle:
        handle.count("rows", 3)
    print("the model is saved")
"""
RECORD = """
from telemetry.record import record_command
from telemetry.session import Session
begin = Session.begin

def begin_on_a_full_disk(*arguments):
    fill()
    return begin(*arguments)

Session.begin = begin_on_a_full_disk
_, code = record_command("theirs", ["sh", "-c", "echo ran; exit 7"], out, light, say=print)
sys.exit(code)
"""


def on_a_full_disk(
    tmp_path: Path, code: str, *arguments: str
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """What Python code did that fills the small disk on which its runs are."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = [sys.executable, "-c", FILL + code, str(disk / "runs"), *arguments]
    return on_a_small_disk(disk, "8m", words), disk / "runs"


def says_the_way_out(said: str, out: Path) -> None:
    assert "record or profile could not be written: No space left on device" in said
    assert f"once there is room, `stagescope report {out}/" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("code", [SPAN, LATER], ids=["in its span", "before its span"])
def test_a_disk_that_fills_up_costs_a_program_its_profile(tmp_path: Path, code: str) -> None:
    done, out = on_a_full_disk(tmp_path, code)
    assert (done.returncode, done.stdout) == (0, "the model is saved\n"), done.stderr
    assert "RuntimeWarning" in done.stderr
    says_the_way_out(done.stderr, out)


def test_a_programs_own_exception_is_the_one_that_comes_out(tmp_path: Path) -> None:
    done, out = on_a_full_disk(tmp_path, SPAN, "fail")
    assert (done.returncode, done.stdout) == (0, "they failed by their own\n"), done.stderr
    says_the_way_out(done.stderr, out)


MOMENT = """
with telemetry.span("train", out, light) as handle:
    fill()
    with telemetry.span("inner"):
        pass
    (out.parent / "filler").unlink()
print(telemetry.runfolder.find_run("latest", out).read()["losses"])
"""


def test_a_disk_that_was_full_for_a_moment_costs_nothing_that_is_told(tmp_path: Path) -> None:
    done, _ = on_a_full_disk(tmp_path, MOMENT)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "could not be written" not in done.stdout


def test_with_room_again_the_way_out_is_one(tmp_path: Path) -> None:
    report = "import pipeline.cli\n(out.parent / 'filler').unlink()\nsys.argv = ['stagescope', "
    report += "'report', 'latest', '--out', str(out)]\npipeline.cli.main()"
    done, _ = on_a_full_disk(tmp_path, SPAN + report)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("/report.html")


def test_a_command_whose_record_finds_no_room_is_seen_to_its_end(tmp_path: Path) -> None:
    done, out = on_a_full_disk(tmp_path, RECORD)
    assert done.returncode == 7, done.stdout + done.stderr
    assert "ran\n" in done.stdout
    says_the_way_out(done.stdout, out)


BROKEN = """
import sys
from pathlib import Path
import pyarrow as pa
import telemetry.finish
from pipeline.cli import main

def broken(folder):
    raise {error}

telemetry.finish.finish = broken
main()
"""


@pytest.mark.parametrize("error", ["pa.ArrowInvalid('torn')", "MemoryError('none left')"])
def test_a_profile_that_cannot_be_made_costs_a_command_nothing(tmp_path: Path, error: str) -> None:
    words = command(
        "record", "--name", "theirs", "--out", str(tmp_path), "--", "sh", "-c", "exit 7"
    )
    done = subprocess.run(
        [sys.executable, "-c", BROKEN.format(error=error), *words[3:]],
        check=False, capture_output=True, text=True, cwd=ROOT, env=environment(),
    )  # fmt: skip
    kind = error.partition("(")[0].removeprefix("pa.")
    assert done.returncode == 7, done.stderr
    said = " ".join(done.stderr.split())
    assert f"record or profile could not be written: {kind}:" in said
    assert "Traceback" not in said
    record = find_run("latest", tmp_path).read()
    assert record["status"] == "failed"
    assert any(kind in loss for loss in record["losses"])


def test_what_is_wrong_before_any_work_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = TelemetrySettings(collectors=("guest",))
    with pytest.raises(NotADirectoryError), telemetry.span("train", tmp_path / "file", settings):
        pytest.fail("it has begun")
