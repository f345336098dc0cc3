"""The guest collector: parsers on what kernels wrote, and the accounts of real process trees."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from telemetry.clock import Clock, measure_offset_ns
from telemetry.collectors import guest_metrics, procfs
from telemetry.collectors.cgroups import cgroup_folders
from telemetry.collectors.devices import counted_once
from telemetry.collectors.guest import GuestCollector
from telemetry.collectors.machine import open_machine
from telemetry.samples import Samples

STAT = b"""cpu  347990 949 31626 264867 1428 3 410 658 17 4
cpu0 171655 484 15631 135210 538 0 63 320 0 0
intr 1736393 0 0
"""
PID_STAT = (
    b"4242 (a) R 1 (x\n) S 17 4242 4242 0 -1 4194560 901 22 3 4 55 66 77 88 20 0 9 0 385003 "
    b"12341248 3000 18446744073709551615 1 1 0 0 0 0 0 0 17 1 0 0 0 0 0 0 0\n"
)
PID_IO = b"""rchar: 6976
wchar: 12
syscr: 10
syscw: 3
read_bytes: 4096
write_bytes: 8192
cancelled_write_bytes: 100
"""
MEMINFO = b"""MemTotal:       24684084 kB
MemFree:        19169024 kB
MemAvailable:   22710204 kB
Buffers:           28712 kB
Cached:          3581472 kB
SwapCached:            0 kB
SwapTotal:          2048 kB
SwapFree:           1024 kB
Dirty:               292 kB
Writeback:            16 kB
Shmem:              8872 kB
HugePages_Total:       0
"""
DISKSTATS = b"""   7       0 loop0 9 9 9 9 9 9 9 9 0 9 9 0 0 0 0 0 0
 254       0 vda 256676 23414 14979906 503669 172626 81042 28032944 162526 0 50808 678387 24201
 254       1 vda1 200000 20000 10000000 400000 100000 80000 20000000 100000 0 50000 500000
"""
NET_DEV = b"""Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo
    lo: 329530356  130432    0    0    0     0          0         0 329530356  130432    0    0    0
eth0:1:1234 56 0 0 0 0 0 0 789 10 0 0 0 0 0 0
"""
PRESSURE = b"""some avg10=0.04 avg60=1.80 avg300=1.94 total=27749239
full avg10=0.00 avg60=0.01 avg300=0.06 total=8543407
"""
STATUS = b"Name:\tVmHWM: 7 kB\nVmPeak:\t   99 kB\nVmHWM:\t   27208 kB\nVmSwap:\t      12 kB\n"
CGROUP_1 = b"4:memory:/one\n2:cpuacct,cpu:/two\n1:name=systemd:/\n0::/three\n"


def test_parsers_on_recorded_bytes() -> None:
    assert procfs.parse_cpu_ticks(STAT) == [347990, 949, 31626, 264867, 1428, 3, 410, 658]
    stat = procfs.parse_stat(4242, PID_STAT)
    assert stat == procfs.Stat(
        4242, 385003, 17, b"S", 901, 22, 3, 4, 55, 66, 77, 88, threads=9, rss_pages=3000
    )
    assert procfs.parse_io(PID_IO) == procfs.Io(6976, 12, 4096, 8192, 100)
    assert procfs.parse_meminfo(MEMINFO, ["MemTotal", "Dirty"]) == [24684084 << 10, 292 << 10]
    with pytest.raises(ValueError, match="not found"):
        procfs.parse_meminfo(MEMINFO, ["NoSuch"])
    disks = procfs.parse_diskstats(DISKSTATS)
    assert list(disks) == ["loop0", "vda", "vda1"]
    assert disks["vda"] == [
        256676, 14979906 * 512, 503.669, 172626, 28032944 * 512, 162.526, 50.808,
    ]  # fmt: skip
    assert procfs.parse_diskstats(DISKSTATS, ["vda"]) == {"vda": disks["vda"]}
    assert procfs.parse_net_dev(NET_DEV) == {
        "lo": [329530356, 130432, 329530356, 130432],
        "eth0:1": [1234, 56, 789, 10],
    }
    assert procfs.parse_pressure_us(PRESSURE) == {b"some": 27749239, b"full": 8543407}
    assert procfs.parse_status(STATUS) == (27208 << 10, 12 << 10)
    assert procfs.parse_status(b"Name:\tkthreadd\nState:\tS\n") == (0, 0)
    assert procfs.parse_cgroup_paths(CGROUP_1) == {
        "memory": "/one", "cpuacct": "/two", "cpu": "/two", "name=systemd": "/", "": "/three",
    }  # fmt: skip
    mounts = procfs.parse_mounts(rb"cgroup /sys/fs/a\040b cgroup rw,memory 0 0" + b"\n")
    assert mounts == [("/sys/fs/a b", "cgroup", frozenset({"rw", "memory"}))]


def made(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def values(samples: Samples) -> dict[tuple[str, str], float]:
    return {(one.series.entity, one.series.metric.name): one.value for one in samples}


def machine_values(proc: Path, sys: Path) -> tuple[dict[tuple[str, str], float], dict[Any, Any]]:
    machine = open_machine(proc, sys)
    found = values(
        [
            row
            for source in (*machine.fast, *machine.slow)
            for row in source.rows(*source.read(lambda: 1))
        ]
    )
    for source in (*machine.fast, *machine.slow):
        source.close()
    return found, {(one.entity, one.metric.name): one.reason for one in machine.absent}


def test_a_recorded_machine(tmp_path: Path) -> None:
    """A control group with a quota; two interfaces, one with hardware; a disk with a partition."""
    group = tmp_path / "cgroup"
    proc = made(
        tmp_path / "proc",
        {
            "stat": STAT, "meminfo": MEMINFO, "diskstats": DISKSTATS, "net/dev": NET_DEV,
            "pressure/cpu": PRESSURE, "pressure/io": PRESSURE,
            "self/cgroup": b"0::/mine\n", "self/mounts": f"c {group} cgroup2 rw 0 0\n".encode(),
        },
    )  # fmt: skip
    sys = made(tmp_path / "sys", {"block/vda/size": b"1000\n", "class/net/eth0:1/device": b""})
    stat = b"usage_usec 5000000\nnr_periods 9\nnr_throttled 4\nthrottled_usec 250000\n"
    memory = {"mine/memory.current": b"4096\n", "mine/memory.stat": b"anon 1\nfile 2\n"}
    made(group, {"mine/cpu.stat": stat, **memory})
    found, absent = machine_values(proc, sys)
    assert found["machine", "cpu_user_seconds"] == 3479.90
    assert found["machine", "cpu_steal_seconds"] == 6.58
    assert found["machine", "mem_used_bytes"] == (24684084 - 22710204) << 10
    assert found["machine", "mem_page_cache_bytes"] == (3581472 + 28712 - 8872) << 10
    assert found["machine", "mem_swap_used_bytes"] == 1 << 20
    assert found["machine", "psi_io_full_seconds"] == 8.543407
    assert found["disk:vda", "disk_write_bytes"] == 28032944 * 512
    assert not any(entity in {"disk:vda1", "disk:loop0"} for entity, _ in found)
    assert found["net:lo", "net_rx_bytes"] == 329530356
    assert found["machine", "net_rx_bytes"] == 1234
    assert found["cgroup", "cgroup_cpu_seconds"] == 5.0
    assert found["cgroup", "cgroup_cpu_throttled_seconds"] == 0.25
    assert found["cgroup", "cgroup_mem_page_cache_bytes"] == 2
    assert "No such file" in absent["machine", "psi_memory_some_seconds"]
    assert "psi=0" in absent["machine", "psi_memory_some_seconds"]
    assert ("machine", "psi_cpu_full_seconds") in absent
    assert not found.keys() & absent.keys()


NO_STEAL = STAT.replace(b" 410 658 ", b" 410 0 ", 1)
STEAL_OF = ("machine", "cpu_steal_seconds")


def steal_of(tmp_path: Path, stat: bytes, vendor: bytes | None) -> tuple[float | None, str | None]:
    """Its value and its reason on a machine with this /proc/stat and DMI vendor."""
    proc = made(tmp_path / "proc", {"stat": stat, "sys/kernel/osrelease": b"5.10.0-28-amd64\n"})
    sys = made(tmp_path / "sys", {"class/dmi/id/sys_vendor": vendor} if vendor else {})
    found, absent = machine_values(proc, sys)
    assert found["machine", "cpu_softirq_seconds"] == 4.10
    return found.get(STEAL_OF), absent.get(STEAL_OF)


def test_a_steal_of_0_on_vmware_is_not_measured(tmp_path: Path) -> None:
    value, reason = steal_of(tmp_path, NO_STEAL, b"VMware, Inc.\n")
    assert value is None
    assert reason is not None
    for named in ('stealclock.enable = "TRUE"', "5.8", "kernel 5.10.0-28-amd64", "since boot"):
        assert named in reason
    assert "with it nothing was stolen before the recording began" in reason  # true then, too


@pytest.mark.parametrize(
    ("stat", "vendor", "value_s"),
    [
        (STAT, b"VMware, Inc.\n", 6.58),  # above 0: its VM has the clock
        (NO_STEAL, b"QEMU\n", 0.0),
        (NO_STEAL, None, 0.0),  # no DMI: a container, or another architecture
        (STAT, None, 6.58),
    ],
)
def test_steal_is_measured_where_it_was_seen_and_where_no_vmware_is(
    tmp_path: Path, stat: bytes, vendor: bytes | None, value_s: float
) -> None:
    assert steal_of(tmp_path, stat, vendor) == (value_s, None)


def test_control_groups_of_version_1_and_none(tmp_path: Path) -> None:
    group = tmp_path / "cgroup"
    mounts = "".join(f"c {group}/{name} cgroup rw,{name} 0 0\n" for name in ("cpu", "memory"))
    proc = made(
        tmp_path / "proc",
        {"self/cgroup": b"2:cpu:/a\n1:memory:/elsewhere\n", "self/mounts": mounts.encode()},
    )
    made(group, {"cpu/a/cpu.stat": b"nr_periods 9\nnr_throttled 4\nthrottled_time 250000000\n",
                 "memory/memory.usage_in_bytes": b"77\n"})  # fmt: skip
    assert cgroup_folders(proc)[1] == {"cpu": group / "cpu/a", "memory": group / "memory"}
    found, absent = machine_values(proc, tmp_path)
    assert found["cgroup", "cgroup_cpu_throttled_seconds"] == 0.25
    assert found["cgroup", "cgroup_mem_used_bytes"] == 77
    assert ("cgroup", "cgroup_cpu_seconds") in absent
    assert ("machine", "cpu_user_seconds") in absent


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[GuestCollector]:
    collector = GuestCollector(
        clock=Clock(offset_ns=measure_offset_ns()), period_s=0.1, folder=tmp_path
    )
    collector.open()
    yield collector
    collector.close()


def watched(guest: GuestCollector, code: str) -> tuple[dict[str, float], Any, list[Samples]]:
    """Run Python ``code`` as a watched tree; its last values, the kernel's account, all samples."""
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    taken = [guest.watch("stage:x", process.pid)]
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        time.sleep(0.1)
        taken.append(guest.sample())
    taken.append(guest.unwatch("stage:x"))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert status == 0
    last = {
        name: value for (entity, name), value in values(taken[-1]).items() if entity == "stage:x"
    }
    return last, usage, taken


BUSY = """
    import os, subprocess, sys
    burn = "x = 0\\nfor i in range({}): x += i"
    children = [subprocess.Popen([sys.executable, "-c", burn.format(8_000_000)]) for _ in range(2)]
    for _ in range(12):
        subprocess.run([sys.executable, "-S", "-c", burn.format(500_000)], check=True)
    for child in children:
        child.wait()
"""


def test_a_busy_tree_against_the_kernels_own_account(guest: GuestCollector) -> None:
    last, usage, taken = watched(guest, BUSY)
    for name, truth_s in (("user", usage.ru_utime), ("system", usage.ru_stime)):
        sampled_s = last[f"cpu_{name}_seconds"]
        # Own and children's time are each cut to a tick of 10 ms.
        assert abs(sampled_s - truth_s) <= max(0.02 * truth_s, 0.02) + 1e-9, name
    counters = [values(one) for one in taken]
    for name in ("cpu_user_seconds", "page_faults_minor", "io_read_calls_bytes"):
        series = [one["stage:x", name] for one in counters if ("stage:x", name) in one]
        assert series == sorted(series)
    assert last["page_faults_minor"] == usage.ru_minflt
    assert last["mem_peak_rss_bytes"] <= usage.ru_maxrss * 1024
    assert max(one.get(("stage:x", "process_count"), 0) for one in counters) >= 2
    first = {one.series.metric.name: one for one in reversed(taken[0])}
    assert first["cpu_user_seconds"].value == 0.0
    assert not any(name.startswith("net_") for name in last)


def test_written_and_read_bytes(guest: GuestCollector, tmp_path: Path) -> None:
    size = 3_000_000
    code = f"""
        import os, subprocess, sys
        with open({str(tmp_path / "big")!r}, "wb") as file:
            file.write(os.urandom({size}))
            file.flush()
            os.fsync(file.fileno())
        subprocess.run(["dd", "if=/dev/zero", "of={tmp_path}/more", "bs=1000000", "count=1",
                        "conv=fsync", "status=none"], check=True)
    """
    last, usage, _ = watched(guest, code)
    assert last["io_write_calls_bytes"] >= size + 1_000_000
    assert size + 1_000_000 <= last["io_write_bytes"] <= size + 1_000_000 + 200_000
    assert last["io_write_bytes"] == usage.ru_oublock * 512


ORPHANS = """
    import ctypes, os, subprocess, sys, time
    from pathlib import Path
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # adopts orphans
    from telemetry.clock import Clock
    from telemetry.collectors.guest import GuestCollector
    guest = GuestCollector(clock=Clock(offset_ns=0), period_s=0.1)
    guest.open()
    burn = "import time\\nwhile time.process_time() < 1.5: pass"
    leave = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]])"
    stage = subprocess.Popen([sys.executable, "-c", leave, burn])
    guest.watch("stage:x", stage.pid, orphans=True)
    os.waitid(os.P_PID, stage.pid, os.WEXITED | os.WNOWAIT)
    for _ in range(100):
        time.sleep(0.1)
        rows = guest.sample()
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        (orphan,) = {int(pid) for pid in children} - {stage.pid}
        if os.waitid(os.P_PID, orphan, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            break
    last = {row.series.metric.name: row.value for row in guest.unwatch("stage:x")
            if row.series.entity == "stage:x"}
    usages = [os.wait4(pid, 0)[2] for pid in (stage.pid, orphan)]
    print(last["cpu_user_seconds"] + last["cpu_system_seconds"],
          sum(one.ru_utime + one.ru_stime for one in usages))
"""


def test_a_child_that_outlives_its_parent_stays_in_the_tree() -> None:
    """Where orphans come to whoever started the stage, none is lost."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ORPHANS)],
        check=True, stdout=subprocess.PIPE, text=True, cwd=Path(procfs.__file__).parents[2],
    )  # fmt: skip
    sampled_s, truth_s = map(float, done.stdout.split())
    assert truth_s > 1.0
    assert abs(sampled_s - truth_s) <= max(0.02 * truth_s, 0.04)


def test_the_runner_is_without_its_stages(guest: GuestCollector) -> None:
    before = values(guest.watch("runner", os.getpid()))["runner", "cpu_user_seconds"]
    last, usage, _ = watched(guest, BUSY)
    own_s, looks = time.process_time(), []
    for _ in range(15):
        time.sleep(0.1)
        found = values(guest.sample())
        looks += [found[key] for key in [("runner", "cpu_user_seconds")] if key in found]
    assert 1 <= len(looks) <= 2, "once a second"
    assert guest.slow_periods["runner cpu_user_seconds"] == 1.0
    assert last["cpu_user_seconds"] > 0.5
    assert looks[-1] - before < 0.5 * usage.ru_utime + (time.process_time() - own_s)


def test_all_processes_are_the_machine(guest: GuestCollector) -> None:
    def both() -> tuple[float, float]:
        found = values([*guest.sample(), *guest._look()])
        modes = ("user", "nice", "system")
        machine = sum(found["machine", f"cpu_{mode}_seconds"] for mode in modes)
        return (
            machine,
            found["processes", "cpu_user_seconds"] + found["processes", "cpu_system_seconds"],
        )

    machine_s, processes_s = both()
    subprocess.run([sys.executable, "-c", textwrap.dedent(BUSY)], check=True)
    machine_after_s, processes_after_s = both()
    used_s = machine_after_s - machine_s
    assert used_s > 0.5
    assert abs(processes_after_s - processes_s - used_s) < 0.1 * used_s + 0.1


def test_no_such_process_and_a_killed_one(guest: GuestCollector) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    guest.watch("stage:x", process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(ProcessLookupError, match=str(process.pid)):
        guest.watch("stage:y", process.pid)
    last = values(guest.unwatch("stage:x"))
    assert last["stage:x", "process_count"] == 0
    assert last["stage:x", "page_faults_minor"] > 0
    assert guest.unwatch("stage:x") == []


def test_more_processes_than_files_is_told_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telemetry.collectors.forest._most_processes", lambda: 2)
    guest = GuestCollector(clock=Clock(offset_ns=0), period_s=0.1)
    guest.open()
    found = values(guest.sample())
    guest.close()
    assert found["processes", "process_count"] <= 2
    assert any("ulimit -n" in loss for loss in guest.losses)


def test_a_machine_without_diskstats_and_control_groups(tmp_path: Path) -> None:
    """As in some containers: what is there is sampled, the rest has its reason."""
    proc = made(tmp_path / "proc", {"stat": STAT, "net/dev": NET_DEV})
    down = {"class/net/lo/flags": b"0x9\n", "class/net/eth0:1/flags": b"0x1002\n"}
    found, absent = machine_values(proc, made(tmp_path / "sys", down))
    assert "no whole disk" in absent["disk", "disk_read_bytes"]
    assert "no control group" in absent["cgroup", "cgroup_cpu_throttled_seconds"]
    assert "No such file" in absent["machine", "mem_used_bytes"]
    assert found["machine", "cpu_idle_seconds"] == 2648.67
    assert found["machine", "net_rx_bytes"] == 1234  # down by now, but it carried something


def test_interfaces_that_are_down_and_idle_are_left_out(tmp_path: Path) -> None:
    idle = b"  ifb0: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n  eth9: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
    proc = made(tmp_path / "proc", {"net/dev": NET_DEV + idle})
    flags = {"class/net/ifb0/flags": b"0x82\n", "class/net/eth9/flags": b"0x1003\n"}
    found, _ = machine_values(proc, made(tmp_path / "sys", flags))
    names = {entity for entity, _ in found if entity.startswith("net:")}
    assert names == {"net:lo", "net:eth0:1", "net:eth9"}


@pytest.mark.parametrize(
    ("there", "added"),
    [
        # A container that has others in it: its own end, a bridge, and the ends that are on it.
        ({"docker0/bridge/x": b"", "veth1/master/x": b"", "wlan0.7/lower_wlan0/x": b""}, ["eth0"]),
        # Bond and bridge over real cards.
        ({"eth0/device/x": b"", "eth1/device/x": b"", "bond0/bonding/x": b""}, ["eth0", "eth1"]),
        # Everything on one bridge: better twice than nothing.
        ({"eth0/master/x": b"", "docker0/bridge/x": b""}, ["docker0", "eth0"]),
    ],
)
def test_bytes_of_the_machine_are_of_interfaces_that_add_up(
    tmp_path: Path, there: dict[str, bytes], added: list[str]
) -> None:
    names = sorted({name.partition("/")[0] for name in there} | {"eth0", "lo"})
    lines = "".join(
        f"  {name}: {10**place} 1 0 0 0 0 0 0 {2 * 10**place} 1 0 0 0 0 0 0\n"
        for place, name in enumerate(names)
    )
    head = "Inter-|   Receive  |  Transmit\n face |bytes packets |bytes packets\n"
    proc = made(tmp_path / "proc", {"net/dev": (head + lines).encode()})
    sys_ = made(tmp_path / "sys", {f"class/net/{name}": data for name, data in there.items()})
    found, _ = machine_values(proc, sys_)
    expected = sum(10 ** names.index(name) for name in added)
    assert found["machine", "net_rx_bytes"] == expected
    assert found["machine", "net_tx_bytes"] == 2 * expected


def test_a_virtual_card_and_the_real_one_behind_it_are_one(tmp_path: Path) -> None:
    """Hyper-V: the function of the card passed through is a slave of the synthetic one."""
    sys_ = made(tmp_path / "sys", {f"class/net/{name}/device/x": b"" for name in ("eth0", "vf0")})
    (sys_ / "class/net/vf0/master").symlink_to(sys_ / "class/net/eth0")
    assert counted_once(["eth0", "lo", "vf0"], sys_) == ["eth0"]


def test_every_metric_is_in_the_table_once() -> None:
    names = [metric.name for metric in guest_metrics.METRICS]
    assert len(names) == len(set(names))


def test_series_are_declared_before_they_are_sampled(guest: GuestCollector) -> None:
    known = {(one.entity, one.metric.name) for one in guest.open() if one.reason is None}
    guest.watch("stage:x", os.getpid())
    known |= {
        (one.entity, one.metric.name) for one in guest.series_of("stage:x") if one.reason is None
    }
    assert values(guest.sample()).keys() <= known
    declared = {metric.name for metric in guest_metrics.METRICS}
    assert {name for _, name in known} <= declared
    absent = {one.metric.name for one in guest.series_of("stage:x") if one.reason is not None}
    assert {"net_rx_bytes", "mem_page_cache_bytes"} <= absent
