"""The vCenter collector against a simulated vCenter: what it finds, asks for, and takes once."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from telemetry.attribution import correlate
from telemetry.clock import Clock, measure_offset_ns
from telemetry.collectors.vcenter import VCenterCollector
from telemetry.collectors.vcenter_journal import Journal, read_events
from telemetry.collectors.vcenter_metrics import METRICS, rows_of
from telemetry.contention import flags
from telemetry.recording import Recording
from telemetry.runfolder import Span
from telemetry.segments import read_samples
from telemetry.series import SeriesIndex
from telemetry.settings import TelemetrySettings
from tests.telemetry.vcenter_past import NS, VM, Past
from tests.vcsim_server import Vcsim

pytestmark = pytest.mark.needs("go")
MINUTE = 60.0


@pytest.fixture(autouse=True)
def leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever happens, no session and no view stay open, and no query asks for a year."""
    names = {"vcsim", "own_vcsim"} & set(request.fixturenames)
    servers: list[Vcsim] = [request.getfixturevalue(name) for name in names]
    yield
    for server in servers:
        counts = server.counts
        assert counts["sessions"] == counts["views"] == counts.get("views_left", 0) == 0
        assert counts.get("queries_without_start", 0) == 0
        assert counts.get("queries_too_large", 0) == 0


def host_of(past: Past) -> str:
    host: str = past.events("placement")[0]["esxi_host"]
    return host


def test_a_run_without_trouble(vcsim: Vcsim, tmp_path: Path) -> None:
    past = Past(vcsim, tmp_path, ago_s=40 * MINUTE, seconds=20 * MINUTE)
    truth = [
        {"entity": VM, "counter": "cpu.used.summation",
         "steps": [[0, past.unix_s(600), 500.0], [past.unix_s(600), 4e9, 250.0]]},
        {"entity": VM, "counter": "cpu.ready.summation", "steps": [[0, 4e9, 100.0]]},
        {"entity": VM, "counter": "mem.vmmemctl.average", "steps": [[0, 4e9, 2048.0]]},
    ]  # fmt: skip
    vcsim.control(truth=truth)
    began_s = time.monotonic()
    past.put(0)
    vcsim.control(reset_counts=True)
    with past.collector() as one:
        for minute in (0, 5, 10, 15, 20.5):
            assert past.sample(one, minute * MINUTE)
        assert vcsim.counts["queries"] == 5
        assert one.losses == []
    assert past.backfill(20.5 * MINUTE) == []
    took_s = time.monotonic() - began_s  # the run's clock stands meanwhile, the server's goes on
    host = host_of(past)
    disks = {one for one in past.whole("vm:") if "/" in one}
    assert past.whole("vm:") - disks == {f"vm:{VM}@{host}"}
    assert disks
    assert past.whole("esxi:") == {f"esxi:{host}"}
    index = past.index()
    used = index.points(f"vm:{VM}@{host}", "vm_cpu_used_cores")
    assert set((used.ts_ns - used.start_ns).tolist()) == {20 * NS}
    inside = used.start_ns >= past.start_ns + 600 * NS
    before = (used.ts_ns <= past.start_ns + 600 * NS) & (used.ts_ns > past.start_ns)
    assert set(used.values[inside]) == {0.25}
    assert set(used.values[before]) == {0.5}
    ready = index.points(f"vm:{VM}@{host}", "vm_cpu_ready_percent").values
    assert set(ready) == {10.0}  # 0.1 cores of the VM's one
    ballooned = index.points(f"vm:{VM}@{host}", "vm_mem_ballooned_bytes").values
    assert set(ballooned) == {2048.0 * 1024}
    for clock in ("vcenter", f"esxi:{host}"):
        readings = index.points(clock, "clock_offset_seconds").values
        assert (readings > -0.01).all()
        assert (readings < took_s).all()
        assert index.points(clock, "clock_bound_seconds").values.min() >= 0
    assert past.events("gap") == []
    assert past.events("lost") == []
    (connected,) = [e for e in past.events("connected") if e["at_ns"] == past.start_ns]
    assert connected["user"] == vcsim.user
    assert connected["tls"] == "verified by ca_file"
    assert {one["when"] for one in past.events("placement")} == {"start", "end"}
    assert [one["counter"][:3] for one in past.events("unresolved")] == ["id ", "id "]


def test_a_disks_latency_in_a_stage_is_that_of_its_requests(vcsim: Vcsim, tmp_path: Path) -> None:
    past = Past(vcsim, tmp_path, ago_s=40 * MINUTE, seconds=12 * MINUTE)
    until_s = past.amid_window_s(40.0) + 10.0  # a window's end
    vcsim.control(
        truth=[
            {"entity": VM, "counter": counter, "steps": [[0, past.unix_s(until_s), level]]}
            for counter, level in (
                ("virtualDisk.totalReadLatency.average", 100.0),
                ("virtualDisk.numberReadAveraged.average", 200.0),
                ("virtualDisk.totalWriteLatency.average", 0.0),
                ("virtualDisk.numberWriteAveraged.average", 0.0),
                ("disk.maxTotalLatency.latest", 150.0),
            )
        ]
    )
    assert past.backfill(12.5 * MINUTE) == []
    span = Span(stage="features", start_ns=past.start_ns, end_ns=past.end_ns)
    profile = correlate(read_samples(past.folder.samples), [span])
    vm = f"vm:{VM}@{host_of(past)}"
    found = {
        name: profile.find("features", entity, name)
        for entity, name in (
            (f"{vm}/scsi0:0", "vm_disk_read_latency_ms"),
            (f"{vm}/scsi0:0", "vm_disk_write_latency_ms"),
            (vm, "vm_disk_latency_max_ms"),
        )
    }
    reads, writes, largest = found.values()
    assert reads is not None
    assert writes is not None
    assert largest is not None
    assert (reads.mean, largest.mean) == pytest.approx((100.0, 150.0))
    assert (writes.mean, writes.reason) == (None, "there were no requests")
    assert {flag["metric"] for flag in flags(profile)} >= {reads.metric, largest.metric}


def test_every_metric_is_there_or_says_why_not(vcsim: Vcsim, tmp_path: Path) -> None:
    vcsim.control(
        missing_counters=["cpu.readiness.average"], hidden_counters=["mem.latency.average"]
    )
    past = Past(vcsim, tmp_path, ago_s=20 * MINUTE, seconds=5 * MINUTE)
    past.put(0)
    with past.collector() as one:
        past.sample(one, 6 * MINUTE)
    samples = read_samples(past.folder.samples)
    there = {metric for _, metric in SeriesIndex(samples).names()}
    reasons = {one.metric.name: one.reason for one in samples.absent}
    assert there | reasons.keys() == {metric.name for metric in METRICS}
    assert there & reasons.keys() == set()
    assert reasons.pop("vm_cpu_readiness_percent") == (
        "this vCenter knows no counter cpu.readiness.average"
    )
    assert reasons.pop("vm_mem_latency_percent") == (
        "vCenter offers no realtime mem.latency.average of it"
    )
    assert reasons.keys() == {row.metric.name for row in rows_of("HostSystem") if row.of == "gpu"}
    assert [e["counter"] for e in past.events("unresolved")][:1] == ["cpu.readiness.average"]
    assert samples.period_s("", "vm_cpu_used_cores") == 20
    assert samples.period_s("", "clock_offset_seconds") == 300


def test_late_repeated_newest_first_and_negative_samples(vcsim: Vcsim, tmp_path: Path) -> None:
    past = Past(vcsim, tmp_path, ago_s=50 * MINUTE, seconds=30 * MINUTE)
    negatives = {"entity": VM, "counter": "cpu.used.summation"}
    vcsim.control(
        order="newest",
        repeat_every=3,
        negatives=[{**negatives, "from_s": past.unix_s(300), "to_s": past.unix_s(400)}],
    )
    hole = {"from_s": past.unix_s(600), "to_s": past.unix_s(900)}
    vcsim.control(late=[{**hole, "entity": VM, "lag_s": 15 * MINUTE}])  # newer ones come before
    past.put(0)
    with past.collector() as one:
        for minute in (0, 5, 10, 15, 20, 25):
            assert past.sample(one, minute * MINUTE)
    assert past.backfill(30.5 * MINUTE) != []
    host = host_of(past)
    entity = f"vm:{VM}@{host}"
    assert set(past.expected_s()) <= set(past.stamps_s(entity, "vm_cpu_usage_percent"))
    missing = set(past.expected_s()) - set(past.stamps_s(entity, "vm_cpu_used_cores"))
    assert len(missing) == 5
    assert all(300 < one <= 400 for one in missing)
    (gap,) = past.events("gap")
    assert gap["entity"] == entity
    assert gap["metrics"] == ["vm_cpu_used_cores"]
    assert (gap["to_ns"] - gap["from_ns"]) // NS == 100
    rounds = past.events("round")
    assert sum(one["repeated"] for one in rounds) > 0
    assert sum(one["negative"] for one in rounds) >= 5


def test_a_vm_that_moves_splits_its_series_where_the_server_says(
    own_vcsim: Vcsim, tmp_path: Path
) -> None:
    past = Past(own_vcsim, tmp_path, ago_s=30 * MINUTE, seconds=15 * MINUTE)
    past.put(0)
    with past.collector() as one:
        past.sample(one, 5 * MINUTE)
        first = host_of(past)
        other = next(f"DC0_C0_H{n}" for n in range(2) if first != f"DC0_C0_H{n}")
        moved_s = past.amid_window_s(7 * MINUTE)
        own_vcsim.control(move=[{"vm": VM, "to": other, "at_s": past.unix_s(moved_s)}])
        past.sample(one, 10 * MINUTE)
    assert past.backfill(15.5 * MINUTE) == []
    (move,) = past.events("moved")
    assert (move["vm"], move["from_host"], move["to_host"]) == (VM, first, other)
    assert move["exact"]
    assert abs(move["at_ns"] - past.start_ns - moved_s * NS) < NS
    before = past.stamps_s(f"vm:{VM}@{first}", "vm_cpu_used_cores")
    after = past.stamps_s(f"vm:{VM}@{other}", "vm_cpu_used_cores")
    assert max(before) <= (move["at_ns"] - past.start_ns) / NS < min(after)
    assert set(past.expected_s()) <= {*before, *after}
    assert past.whole("esxi:") == {f"esxi:{first}", f"esxi:{other}"}
    assert past.events("gap") == []


def test_a_vm_that_was_away_between_two_looks_was_away(own_vcsim: Vcsim, tmp_path: Path) -> None:
    past = Past(own_vcsim, tmp_path, ago_s=30 * MINUTE, seconds=15 * MINUTE)
    past.put(0)
    with past.collector() as one:
        past.sample(one, 5 * MINUTE)
        home = host_of(past)
        away = next(f"DC0_C0_H{n}" for n in range(2) if home != f"DC0_C0_H{n}")
        away_s, home_s = past.amid_window_s(6 * MINUTE), past.amid_window_s(8 * MINUTE)
        for to, at_s in ((away, away_s), (home, home_s)):
            own_vcsim.control(move=[{"vm": VM, "to": to, "at_s": past.unix_s(at_s)}])
        past.sample(one, 10 * MINUTE)
        past.sample(one, 11 * MINUTE)
    assert past.backfill(15.5 * MINUTE) == []
    moves = past.events("moved")
    assert [(move["from_host"], move["to_host"]) for move in moves] == [(home, away), (away, home)]
    stamps_s = past.stamps_s(f"vm:{VM}@{away}", "vm_cpu_used_cores")
    assert away_s < min(stamps_s) <= max(stamps_s) < home_s
    assert len(stamps_s) == 6


def test_a_vcenter_that_came_back_with_other_ids_is_asked_by_those(
    own_vcsim: Vcsim, tmp_path: Path
) -> None:
    past = Past(own_vcsim, tmp_path, ago_s=30 * MINUTE, seconds=15 * MINUTE)
    truth = [{"entity": VM, "counter": "cpu.used.summation", "steps": [[0, 4e9, 500.0]]}]
    own_vcsim.control(truth=truth)
    past.put(0)
    with past.collector() as one:
        past.sample(one, 5 * MINUTE)
        own_vcsim.restart(seed=7)
        past.sample(one, 10 * MINUTE)
    before, after = past.events("round")
    assert before["series"] == after["series"] == after["asked"] > 0
    used = past.index().points(f"vm:{VM}@{host_of(past)}", "vm_cpu_used_cores")
    assert set(used.values) == {0.5}


def test_a_vm_that_is_not_this_vcenters_is_no_failure(vcsim: Vcsim, tmp_path: Path) -> None:
    one = VCenterCollector(
        clock=Clock(offset_ns=measure_offset_ns()),
        settings=vcsim.settings(vm="somewhere-else"),
        folder=tmp_path,
        environ=vcsim.environ(),
    )
    series = one.open()
    assert one.open() == series
    one.close()
    (named,) = (event for event in read_events(tmp_path) if event["event"] == "named")
    assert named["user"] == vcsim.user
    assert {row.metric.name for row in series} == {metric.name for metric in METRICS}
    assert {row.entity for row in series} == {"vm", "esxi"}
    assert all("no VM named somewhere-else" in (row.reason or "") for row in series)


def test_this_machine_is_found_by_its_uuid_and_an_unfinished_round_takes_nothing(
    vcsim: Vcsim, tmp_path: Path
) -> None:
    past = Past(vcsim, tmp_path, ago_s=30 * MINUTE, seconds=10 * MINUTE)
    vcsim.control(max_query_metrics="16")  # so that a round takes several requests
    past.put(0)
    with past.collector():
        uuid = past.events("placement")[0]["uuid"]
    past.put(5 * MINUTE)
    one = VCenterCollector(
        clock=past.clock,
        settings=vcsim.settings(),
        folder=past.folder.samples,
        environ=vcsim.environ(),
        product_uuid=uuid.upper(),
    )
    one.open()
    before = vcsim.counts.get("interrupted", 0)
    vcsim.control(outages=[{"mode": "perf_503"}])
    with pytest.raises(OSError, match="503"):
        one.sample()
    assert vcsim.counts["interrupted"] > before
    vcsim.control(outages=[])
    rows = one.sample()
    assert {row.series.entity.partition("@")[0] for row in rows} >= {f"vm:{VM}"}
    one.halt()
    assert [row for row in one.sample() if row.start_ns is not None] == []
    one.close()


def test_windows_that_a_full_disk_did_not_take_are_asked_for_again(
    vcsim: Vcsim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    past = Past(vcsim, tmp_path, ago_s=60 * MINUTE, seconds=30 * MINUTE)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    write = Journal.write

    def no_room(journal: Journal, event: str, **fields: Any) -> None:
        if event == "round":
            raise full
        write(journal, event, **fields)

    past.put(0)
    with past.collector() as one:
        assert past.sample(one, 5 * MINUTE)
        with monkeypatch.context() as patched:
            patched.setattr(Journal, "write", no_room)
            assert not past.sample(one, 10 * MINUTE)
        past.put(15 * MINUTE)
        rows = [row for row in one.sample() if row.start_ns is not None]
        one.take_back(rows)  # as the recorder does with what it could not write
        assert past.sample(one, 20 * MINUTE)
    assert min(row.ts_ns for row in rows) < past.start_ns + 6 * 60 * NS
    assert past.backfill(30.5 * MINUTE) == []
    (last,) = [e for e in past.events("round") if e["at_ns"] == past.start_ns + 1200 * NS]
    assert last["windows"] > len(rows)
    host = host_of(past)
    assert past.whole() >= {f"vm:{VM}@{host}", f"esxi:{host}"}


def test_several_vms_a_name_twice_and_one_renamed(own_vcsim: Vcsim, tmp_path: Path) -> None:
    other = "DC0_C0_RP0_VM1"
    own_vcsim.control(vms=[{"name": other, "cpus": 4}])
    past = Past(own_vcsim, tmp_path, ago_s=30 * MINUTE, seconds=10 * MINUTE)
    past.put(0)
    own_vcsim.control(
        truth=[{"entity": other, "counter": "cpu.ready.summation", "steps": [[0, 4e9, 400.0]]}]
    )
    with past.collector(other_vms=(other, VM)) as one:
        past.sample(one, 5 * MINUTE)
        own_vcsim.control(vms=[{"name": VM, "rename": "renamed"}])
        past.sample(one, 10.5 * MINUTE)
    hosts = {event["vm"]: event["esxi_host"] for event in past.events("placement")}
    assert hosts.keys() == {VM, other}
    whole = past.whole("vm:")
    assert {f"vm:{VM}@{hosts[VM]}", f"vm:{other}@{hosts[other]}"} <= whole
    ready = past.index().points(f"vm:{other}@{hosts[other]}", "vm_cpu_ready_percent")
    assert set(ready.values) == {10.0}  # 0.4 cores of 4
    assert not [entity for entity, _ in past.index().names() if "renamed" in entity]


def test_in_the_recorder_it_neither_delays_nor_disturbs(
    vcsim: Vcsim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in vcsim.environ().items():
        monkeypatch.setenv(name, value)
    vcenter = vcsim.settings(vm=VM, query_period_s=0.4)
    settings = TelemetrySettings(collectors=("guest",), flush_s=0.5, vcenter=vcenter)
    folder = tmp_path / "samples"
    clock = Clock(offset_ns=measure_offset_ns())
    with Recording(folder, clock, settings) as recording:
        (pid,) = recording.pids()
        time.sleep(2.5)
        status = Path(f"/proc/{pid}/status").read_text()
        begin_s = time.monotonic()
    assert time.monotonic() - begin_s < 2.5
    assert recording.losses == []
    assert int(status.partition("VmHWM:")[2].split()[0]) < 130_000
    index = SeriesIndex(read_samples(folder))
    assert index.points("collector:guest", "collector_missed").values[-1] <= 2
    assert index.points("collector:vcenter", "collector_up").values[-1] == 1
    assert index.points("collector:vcenter", "collector_failures").values[-1] == 0
    assert len(index.points("vcenter", "clock_offset_seconds").ts_ns) >= 3
    assert any(entity.startswith(f"vm:{VM}@") for entity, _ in index.names())
    held = "\n".join(
        one.read_text(errors="replace") for one in folder.iterdir() if one.suffix != ".arrows"
    )
    assert vcsim.password not in held
    assert vcsim.password not in json.dumps(settings.to_json())


def test_a_vcenter_that_hangs_keeps_no_run_from_ending(
    own_vcsim: Vcsim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in own_vcsim.environ().items():
        monkeypatch.setenv(name, value)
    vcenter = own_vcsim.settings(vm=VM, query_period_s=0.3, timeout_s=30.0)
    settings = TelemetrySettings(collectors=("guest",), flush_s=0.5, vcenter=vcenter)
    clock = Clock(offset_ns=measure_offset_ns())
    with Recording(tmp_path / "samples", clock, settings) as recording:
        time.sleep(1.2)
        own_vcsim.control(outages=[{"mode": "hang"}])
        time.sleep(0.5)
        (pid,) = recording.pids()
        begin_s = time.monotonic()
    assert time.monotonic() - begin_s < 5.0
    assert not [loss for loss in recording.losses if "did not answer" in loss]
    assert not Path(f"/proc/{pid}").exists()
    index = SeriesIndex(read_samples(tmp_path / "samples"))
    assert index.points("collector:guest", "collector_missed").values[-1] <= 2
    own_vcsim.control(outages=[], expire_sessions=True)  # it could not be told of the logout


def test_settings_carry_a_vcenter_to_the_recorder(vcsim: Vcsim) -> None:
    settings = TelemetrySettings(vcenter=vcsim.settings(other_vms=("a", "b")))
    assert settings.collectors == ("guest", "gpu", "vcenter")
    assert settings.period_s("vcenter") == 300.0
    told = json.loads(json.dumps(settings.to_json()))
    assert TelemetrySettings.from_json(told) == settings
    without = TelemetrySettings()
    assert TelemetrySettings.from_json(json.loads(json.dumps(without.to_json()))) == without
    with pytest.raises(ValueError, match="no vCenter is given"):
        TelemetrySettings(collectors=("vcenter",))
    assert os.environ.get("STAGESCOPE_VCENTER_PASSWORD") is None
