"""What a machine is: limits of control groups of both versions, and what may not be seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from telemetry.environment import cgroup_limits, environment

ROOT = Path(__file__).resolve().parents[2]
NO_LIMIT_1 = str((1 << 63) - 4096)


def groups(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    """A /proc whose control groups lie below ``root/cgroup`` ({} in ``mounts``)."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mounts").write_text(mounts.format(root / "cgroup"))
    for name, text in files.items():
        path = root / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
        (path.parent / "cgroup.procs").touch()
    return root / "proc"


NO_DISK_LIMIT = {"read_limit_bytes_per_s": None, "write_limit_bytes_per_s": None}


@pytest.mark.parametrize(
    ("files", "cores", "limit"),
    [
        ({"a/b/cpu.max": "150000 100000", "a/b/memory.max": "4096"}, 1.5, 4096),
        ({"a/b/cpu.max": "max 100000", "a/b/memory.max": "max"}, None, None),
        # The group above is the tighter one.
        (
            {"a/b/cpu.max": "400000 100000", "a/cpu.max": "50000 100000", "a/memory.max": "9",
             "a/b/memory.max": "max"},
            0.5,
            9,
        ),
        ({"a/b/cgroup.controllers": ""}, None, None),
    ],
)  # fmt: skip
def test_limits_of_version_2(
    tmp_path: Path, files: dict[str, str], cores: float | None, limit: int | None
) -> None:
    proc = groups(tmp_path, "0::/a/b\n", "cgroup2 {} cgroup2 rw 0 0\n", files)
    (tmp_path / "cgroup/cgroup.procs").touch()
    expected = {"version": 2, "cpu_quota_cores": cores, "memory_limit_bytes": limit}
    assert cgroup_limits(proc) == {**expected, **NO_DISK_LIMIT}


def test_limits_of_disks_in_version_2(tmp_path: Path) -> None:
    files = {
        "a/b/io.max": "8:0 rbps=4194304 wbps=max riops=max wiops=120\n8:16 rbps=max wbps=9\n",
        "a/io.max": "8:0 rbps=1048576 wbps=max riops=max wiops=max\n",
    }
    proc = groups(tmp_path, "0::/a/b\n", "cgroup2 {} cgroup2 rw 0 0\n", files)
    found = cgroup_limits(proc)
    assert (found["read_limit_bytes_per_s"], found["write_limit_bytes_per_s"]) == (1 << 20, 9)


def test_limits_of_version_1_beside_an_idle_version_2(tmp_path: Path) -> None:
    proc = groups(
        tmp_path,
        "4:memory:/job\n1:cpu,cpuacct:/job\n2:blkio:/job\n0::/\n",
        "c {0}/cpu cgroup rw,cpu,cpuacct 0 0\nc {0}/memory cgroup rw,memory 0 0\n"
        "c {0}/blkio cgroup rw,blkio 0 0\n"
        "c {0}/unified cgroup2 rw 0 0\n",
        {
            "cpu/job/cpu.cfs_quota_us": "25000",
            "cpu/job/cpu.cfs_period_us": "100000",
            "cpu/cpu.cfs_quota_us": "-1",
            "memory/job/memory.limit_in_bytes": NO_LIMIT_1,
            "memory/memory.limit_in_bytes": "1073741824",
            "blkio/job/blkio.throttle.read_bps_device": "254:0 2097152\n254:16 1048576\n",
            "blkio/job/blkio.throttle.write_bps_device": "",
            "unified/cgroup.controllers": "",
            "unified/cpu.stat": "usage_usec 5",
        },
    )
    expected = {"version": 1, "cpu_quota_cores": 0.25, "memory_limit_bytes": 1 << 30}
    disk = {"read_limit_bytes_per_s": 1 << 20, "write_limit_bytes_per_s": None}
    assert cgroup_limits(proc) == {**expected, **disk}


def test_no_control_groups(tmp_path: Path) -> None:
    nothing = {"version": None, "cpu_quota_cores": None, "memory_limit_bytes": None}
    nothing |= NO_DISK_LIMIT
    assert cgroup_limits(tmp_path) == nothing
    assert cgroup_limits(groups(tmp_path, "", "proc /proc proc rw 0 0\n", {})) == nothing


def test_this_machine() -> None:
    found = environment()
    assert found == json.loads(json.dumps(found))
    assert found["cpu_usable"] == len(os.sched_getaffinity(0)) <= found["cpu"]["count"]
    assert found["memory_total_bytes"] > 1 << 28
    assert found["kernel"] in Path("/proc/version").read_text()
    limits = {"cpu_quota_cores", "memory_limit_bytes", *NO_DISK_LIMIT}
    assert set(found["cgroup"]) == {"version", *limits}


SEEN = """
import ctypes, json, os, sys
from telemetry.clock import Clock
from telemetry.collectors.guest import GuestCollector
uid = int(sys.argv[1])
if uid:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # dumpable again, as any process of that user's
guest = GuestCollector(clock=Clock(offset_ns=0), period_s=0.1)
series = guest.open()
absent = {f"{one.entity} {one.metric.name}": one.reason for one in series if one.reason}
guest.watch("stage:x", os.getpid())
samples = [*guest.sample(), *guest.unwatch("stage:x")]
print(json.dumps([absent, sorted({f"{s.series.entity} {s.series.metric.name}" for s in samples})]))
"""


def seen(*before: str, uid: int = 0) -> tuple[dict[str, str], list[str]]:
    done = subprocess.run(
        [*before, sys.executable, "-c", SEEN, str(uid)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    absent, sampled = json.loads(done.stdout)
    return absent, sampled


@pytest.mark.skipif(os.getuid() != 0, reason="becoming another user takes root")
def test_a_user_who_may_not_see_others_io_gets_a_reason_and_no_wrong_sum() -> None:
    absent, sampled = seen(uid=65534)
    assert "may not be read" in absent["processes io_write_bytes"]
    assert "processes io_write_bytes" not in sampled
    assert "processes cpu_user_seconds" in sampled
    assert "stage:x io_write_bytes" in sampled  # its own it may read


def test_in_a_containers_pid_namespace_the_machines_processes_are_absent() -> None:
    unshare = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")
    tried = subprocess.run([*unshare, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"no PID namespaces here: {tried.stderr.strip()}")
    absent, sampled = seen(*unshare)
    assert "PID namespace" in absent["processes cpu_user_seconds"]
    assert not any(name.startswith("processes ") for name in sampled)
    assert "stage:x cpu_user_seconds" in sampled
    assert "machine cpu_user_seconds" in sampled
