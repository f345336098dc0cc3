"""A few causes put upon real recorded programs; all of them, and how often, is the study's."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.study import slow_link
from tests.study.control_groups import device_of, group, why_not

STAGE = "trial"
SECONDS = 3.0
RECORD = """
import json, sys
from pathlib import Path
from telemetry.record import record_command
from telemetry.settings import TelemetrySettings
name, command, out, groups = json.loads(sys.argv[1])
for group in groups:
    (Path(group) / "cgroup.procs").write_text("0")
settings = TelemetrySettings(collectors=("guest",))
folder, code = record_command(name, command, Path(out), settings)
print(folder.profile_json)
sys.exit(code)
"""


def needs(*controllers: str) -> None:
    """Leave a test out by name where such a control group cannot be made."""
    for controller in controllers:
        why = why_not(controller)
        if why is not None:
            pytest.skip(f"needs root and a control group with {controller}: {why}")


def judged(runs: Path, load: str, within: Sequence[Path] = (), **settings: Any) -> dict[str, Any]:
    """Record a load in a process of its own, which adopts orphans; the verdict on it.

    ``within``: control groups that all of it is in, the recorder too.
    """
    module = [sys.executable, "-m", "tests.study.verdict_loads", load, str(SECONDS)]
    command = [*module, json.dumps(settings)]
    given = json.dumps([STAGE, command, str(runs), [str(one) for one in within]])
    done = subprocess.run([sys.executable, "-c", RECORD, given], check=True,
                          stdout=subprocess.PIPE, text=True)  # fmt: skip
    verdict: dict[str, Any] = json.loads(Path(done.stdout.strip()).read_text())["verdicts"][0]
    if verdict["rule"] == "steal" and verdict["also"]:
        verdict |= verdict["also"][0]  # the host is oversold, and that is found first, rightly
    return verdict


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """64 MiB of random bytes that are in no cache."""
    path = tmp_path / "data"
    with path.open("wb") as file:
        file.write(os.urandom(16 << 20) * 4)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


def test_a_cpu_quota(tmp_path: Path) -> None:
    needs("cpu")
    with group("cpu", {"cpu.cfs_quota_us": "20000"}) as folder:
        found = judged(tmp_path / "runs", "one_thread", join=[str(folder)])
    assert (found["verdict"], found["rule"]) == ("CPU-bound", "cpu-quota"), found


def test_a_quota_below_half_a_cpu_and_threads_behind_a_sleeping_first_one(tmp_path: Path) -> None:
    """Nobody is seen ready to run; what the group used, and who used it, is."""
    needs("cpu")
    with contextlib.ExitStack() as groups:
        within = [groups.enter_context(group("cpu", {"cpu.cfs_quota_us": "40000"}))]
        if why_not("cpuacct") is None:
            within.append(groups.enter_context(group("cpuacct", {})))
        found = judged(tmp_path / "runs", "behind_a_sleeper", within)
    assert (found["verdict"], found["rule"]) == ("CPU-bound", "cpu-quota"), found


def test_what_reads_first_and_then_computes_on_all_cpus(tmp_path: Path, data: Path) -> None:
    needs("io")
    limit = {"blkio.throttle.read_bps_device": f"{device_of(tmp_path)} 6000000"}
    with group("io", limit) as folder:
        found = judged(tmp_path / "runs", "read_then_compute", path=str(data), cold=True, digest=0,
                       reading=0.65, join=[str(folder)])  # fmt: skip
    assert (found["verdict"], found["rule"]) == ("disk-bound", "disk-read"), found


def test_a_throttled_disk(tmp_path: Path, data: Path) -> None:
    needs("io")
    limit = {"blkio.throttle.read_bps_device": f"{device_of(tmp_path)} 6000000"}
    with group("io", limit) as folder:
        found = judged(tmp_path / "runs", "read", path=str(data), cold=True, digest=0,
                       join=[str(folder)])  # fmt: skip
    assert (found["verdict"], found["rule"]) == ("disk-bound", "disk-read"), found
    assert found["io"]["source"] == "storage"


@pytest.mark.parametrize(("worker", "rule"), [(False, "data-storage"), (True, "data-machine")])
def test_a_loader_on_a_throttled_disk(tmp_path: Path, data: Path, worker: bool, rule: str) -> None:
    """A thread that waits behind a sleeping first one is in no state that is seen."""
    needs("io")
    out = tmp_path / "runs"
    limit = {"blkio.throttle.read_bps_device": f"{device_of(tmp_path)} 6000000"}
    with group("io", limit) as folder:
        found = judged(out, "reading_loader", path=str(data), join=[str(folder)], compute_s=0.02,
                       worker=worker, out=str(out), stage=STAGE)  # fmt: skip
    assert (found["verdict"], found["rule"]) == ("data-bound", rule), found["sentence"]


def test_a_slow_decoder_and_a_starved_loader(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    steps = {"out": str(out), "stage": STAGE, "seed": 5, "worker": False}
    slow = judged(out, "slow_decoder", images=20, compute_s=0.005, **steps)
    starved = judged(out, "starved_loader", every_s=0.1, compute_s=0.01, **steps)
    assert (slow["verdict"], slow["rule"]) == ("data-bound", "data-decoding"), slow
    assert (starved["verdict"], starved["rule"]) == ("data-bound", "data-starved"), starved


def test_a_warm_page_cache(tmp_path: Path, data: Path) -> None:
    data.read_bytes()
    found = judged(tmp_path / "runs", "read", path=str(data), cold=False, digest=1)
    assert found["io"]["source"] == "cache", found["io"]
    assert found["io"]["witnesses"][0]["read_bytes"] > data.stat().st_size


def test_a_slow_network_and_a_fast_loopback(tmp_path: Path) -> None:
    paced = judged(tmp_path / "lo", "loopback", pause_s=0.1)
    assert paced["verdict"] == "idle", paced
    if (why := slow_link.why_not()) is not None:
        pytest.skip(f"needs root and a network namespace: {why}")
    with slow_link.slow_link(40e6) as address:
        found = judged(tmp_path / "net", "download", address=address)
    assert (found["verdict"], found["rule"]) == ("network-bound", "network"), found
