"""The guest collector where /proc hides something or is not as the kernel writes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from telemetry.clock import Clock
from telemetry.collectors.guest import GuestCollector
from telemetry.collectors.machine import open_machine

ROOT = Path(__file__).resolve().parents[2]
STAT = b"cpu  347990 949 31626 264867 1428 3 410 658 17 4\n"
NOBODY = 65534

HIDDEN = f"""
import os, sys
from pathlib import Path
from telemetry.clock import Clock
from telemetry.collectors.guest import GuestCollector
os.chdir(sys.argv[1])  # the way to it is not everybody's
if os.getuid() == 0:
    os.setuid({NOBODY})
guest = GuestCollector(clock=Clock(offset_ns=0), period_s=0.1, proc=Path("proc"))
print(*{{one.reason for one in guest.open() if one.entity == "processes"}})
print(len([one for one in guest.sample() if one.series.entity == "machine"]))
guest.close()
"""


def test_where_one_may_not_look_at_others_processes_that_is_the_reason(tmp_path: Path) -> None:
    """As under hidepid=1: the processes are listed, and nothing in them may be looked at."""
    (tmp_path / "proc/1").mkdir(parents=True)
    (tmp_path / "proc/1").chmod(0)
    (tmp_path / "proc/stat").write_bytes(STAT)
    tmp_path.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN, str(tmp_path)],
        cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    reasons, count = done.stdout.splitlines()
    assert reasons == "proc hides other users' processes (hidepid)"
    assert int(count) >= 8, "the machine is sampled all the same"


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_could_not_be_opened_holds_no_files(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "stat").write_bytes(STAT)
    (tmp_path / "1/stat").write_bytes(b"not what the kernel writes\n")
    guest = GuestCollector(clock=Clock(offset_ns=0), period_s=0.1, proc=tmp_path)
    before = open_files()
    for _ in range(10):
        with pytest.raises(ValueError, match="not found"):
            guest.open()
    assert open_files() == before


def test_a_machine_that_could_not_be_opened_holds_no_files(tmp_path: Path) -> None:
    """Its disk says no size, after files before it were opened."""
    (tmp_path / "stat").write_bytes(STAT)
    (tmp_path / "diskstats").write_text("8 0 sda " + "0 " * 17 + "\n")
    (tmp_path / "block/sda").mkdir(parents=True)
    (tmp_path / "block/sda/size").write_text("none\n")
    before = open_files()
    for _ in range(10):
        with pytest.raises(ValueError, match="none"):
            open_machine(tmp_path, tmp_path)
    assert open_files() == before
