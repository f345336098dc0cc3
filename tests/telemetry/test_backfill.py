"""What a run gets from its vCenter in the end: lag, outages, kills, and what is told of gaps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyVmomi import vim

from infra.vsphere.errors import VCenterRefused
from infra.vsphere.session import VCenter
from telemetry.backfill import backfill
from telemetry.collectors.vcenter_journal import read_events
from telemetry.collectors.vcenter_metrics import METRICS
from telemetry.segments import read_samples
from tests.telemetry.vcenter_past import NS, VM, Past
from tests.vcsim_server import Vcsim

pytestmark = pytest.mark.needs("go")
MINUTE = 60.0
OTHER = "DC0_C0_RP0_VM1"


@pytest.fixture(autouse=True)
def leaves_nothing(vcsim: Vcsim) -> Iterator[None]:
    """Whatever happens, no session and no view stay open, and no query asks for a year."""
    yield
    vcsim.control(outages=[])
    counts = vcsim.counts
    assert counts["sessions"] == counts["views"] == counts.get("views_left", 0) == 0
    assert counts.get("queries_without_start", 0) == 0


def entities(past: Past) -> set[str]:
    """What has samples of vCenter's, but its clocks."""
    return {entity for entity, metric in past.index().names() if not metric.startswith("clock_")}


def test_lag_and_an_outage_lose_nothing_that_was_posted(vcsim: Vcsim, tmp_path: Path) -> None:
    """15 minutes late, and 10 minutes without an answer in the middle."""
    past = Past(vcsim, tmp_path, ago_s=75 * MINUTE, seconds=40 * MINUTE)
    vcsim.control(
        lag_s=15 * MINUTE,
        outages=[
            {"mode": "503", "from_s": past.unix_s(14 * MINUTE), "to_s": past.unix_s(24 * MINUTE)}
        ],
    )
    past.put(0)
    with past.collector() as one:
        answered = [past.sample(one, minute * MINUTE) for minute in range(0, 41, 5)]
    assert answered == [True, True, True, False, False, True, True, True, True]
    (lost,) = past.events("lost")
    assert "503" in lost["reason"]
    assert [one["at_ns"] for one in past.events("back")] == [past.start_ns + 25 * 60 * NS]
    assert len(past.whole()) < len(entities(past))  # the last 15 minutes are on their way
    assert past.backfill(40 * MINUTE, deadline_s=20 * MINUTE) == []
    assert past.whole() == entities(past)
    assert past.events("gap") == []
    (told,) = past.events("backfill")
    assert 15 * MINUTE <= told["seconds"] <= 16 * MINUTE
    assert told["failure"] is None


def test_a_deadline_that_passes_leaves_gaps_that_are_listed_and_filled_later(
    vcsim: Vcsim, tmp_path: Path
) -> None:
    past = Past(vcsim, tmp_path, ago_s=60 * MINUTE, seconds=20 * MINUTE)
    vcsim.control(lag_s=5 * MINUTE)
    past.put(0)
    with past.collector() as one:
        past.sample(one, 10 * MINUTE)
    losses = past.backfill(20 * MINUTE, deadline_s=2 * MINUTE)
    assert losses
    assert all(loss.startswith("vcenter: no sample of anything of ") for loss in losses)
    gaps = past.events("gap")
    assert {gap["entity"].partition(":")[0] for gap in gaps} == {"vm", "esxi"}
    for gap in gaps:
        assert abs(gap["to_ns"] - past.end_ns) < NS  # by the clock that stamps them
        assert 2.6 * MINUTE <= (gap["to_ns"] - gap["from_ns"]) / NS <= 3.4 * MINUTE
    assert past.backfill(26 * MINUTE) == []  # asked again later
    assert past.whole() == entities(past)
    assert past.events("gap") == []
    rows = read_samples(past.folder.samples).table.num_rows
    assert past.backfill(27 * MINUTE) == []  # and again: only clocks are new
    again = read_samples(past.folder.samples).table.num_rows
    assert 0 < again - rows <= 8


@pytest.mark.parametrize("skew_s", [90.0, -75.0])
def test_a_host_whose_clock_is_wrong_stamps_windows_of_the_whole_run(
    vcsim: Vcsim, tmp_path: Path, skew_s: float
) -> None:
    past = Past(vcsim, tmp_path, ago_s=60 * MINUTE, seconds=20 * MINUTE)
    vcsim.control(host_skew_s={"*": skew_s}, vcenter_skew_s=-7.0)
    began_s = time.monotonic()
    past.put(0)
    with past.collector() as one:
        past.sample(one, 10 * MINUTE)
    assert past.backfill(20 * MINUTE, deadline_s=60) == []
    took_s = time.monotonic() - began_s  # the run's clock stands meanwhile, the server's goes on
    index = past.index()
    host = past.events("placement")[0]["esxi_host"]
    for clock, offset_s in ((f"esxi:{host}", skew_s), ("vcenter", -7.0)):
        readings = index.points(clock, "clock_offset_seconds").values
        assert (readings - offset_s + 0.01 >= 0).all()
        assert (readings - offset_s < took_s).all()
    used = index.points(f"vm:{VM}@{host}", "vm_cpu_used_cores")
    assert used.start_ns.min() / NS - skew_s <= past.start_ns / NS
    assert used.ts_ns.max() / NS - skew_s >= past.end_ns / NS
    assert set((used.ts_ns[1:] - used.ts_ns[:-1]).tolist()) == {20 * NS}
    assert set((used.ts_ns % (20 * NS)).tolist()) == {0}  # as the server gave them


def test_killed_recorders_leave_nothing_out_and_nothing_twice(vcsim: Vcsim, tmp_path: Path) -> None:
    past = Past(vcsim, tmp_path, ago_s=60 * MINUTE, seconds=30 * MINUTE)
    past.put(0)
    for minute in (4, 9, 21):
        with past.collector() as one:
            assert past.sample(one, minute * MINUTE)
    newest = max(past.folder.samples.glob("vcenter-*.arrows"))
    newest.write_bytes(newest.read_bytes()[:-200])  # what a kill tears off
    assert past.backfill(30.5 * MINUTE) == []
    assert past.whole() == entities(past)


def test_a_hole_before_later_windows_is_not_waited_for(vcsim: Vcsim, tmp_path: Path) -> None:
    past = Past(vcsim, tmp_path, ago_s=60 * MINUTE, seconds=20 * MINUTE)
    hole_s = past.amid_window_s(8 * MINUTE)
    vcsim.control(
        gaps=[{"entity": VM, "from_s": past.unix_s(hole_s - 60), "to_s": past.unix_s(hole_s)}]
    )
    past.put(20.5 * MINUTE)

    def sleep(seconds: float) -> None:
        raise AssertionError("there is nothing to wait for")

    losses = backfill(
        past.folder,
        past.settings(),
        past.clock,
        deadline_s=2 * MINUTE,
        sleep=sleep,
        environ=vcsim.environ(),
    )
    (gap,) = past.events("gap")
    assert (gap["to_ns"] - gap["from_ns"]) // NS == 60
    assert len(losses) == 1


def test_a_run_longer_than_the_server_remembers(vcsim: Vcsim, tmp_path: Path) -> None:
    past = Past(vcsim, tmp_path, ago_s=240 * MINUTE, seconds=180 * MINUTE)
    past.put(0)
    with past.collector() as one:
        for minute in range(0, 181, 30):
            assert past.sample(one, minute * MINUTE)
    assert past.backfill(180.5 * MINUTE) == []
    assert past.whole() == entities(past)


def test_windows_that_were_forgotten_are_a_gap(vcsim: Vcsim, tmp_path: Path) -> None:
    past = Past(vcsim, tmp_path, ago_s=240 * MINUTE, seconds=180 * MINUTE)
    past.put(0)
    with past.collector() as one:
        for minute in (30, 120, 179):
            assert past.sample(one, minute * MINUTE)
    losses = past.backfill(180.5 * MINUTE)
    assert len(losses) == len(past.events("gap")) == 2  # the VM's and the host's
    for gap in past.events("gap"):
        low, high = ((gap[name] - past.start_ns) / NS for name in ("from_ns", "to_ns"))
        assert 29 * MINUTE < low <= 30 * MINUTE
        assert 59.5 * MINUTE < high <= 60.5 * MINUTE
        assert "metrics" not in gap


def test_without_an_answer_all_run_long_it_is_absent_with_the_reason_until_it_is_there(
    vcsim: Vcsim, tmp_path: Path
) -> None:
    past = Past(vcsim, tmp_path, ago_s=40 * MINUTE, seconds=10 * MINUTE)
    vcsim.control(outages=[{"mode": "503"}])
    (loss,) = past.backfill(10 * MINUTE, deadline_s=30)
    assert loss.startswith("vcenter: vCenter 127.0.0.1:")
    samples = read_samples(past.folder.samples)
    assert samples.table.num_rows == 0
    assert {one.metric.name for one in samples.absent} == {metric.name for metric in METRICS}
    assert all("could not be asked: vCenter 127" in (one.reason or "") for one in samples.absent)
    assert past.events("gap") == []
    past.backfill(10 * MINUTE)
    assert len(list(past.folder.samples.glob("vcenter-absent-*"))) == 1
    vcsim.control(outages=[])
    assert past.backfill(15 * MINUTE) == []
    assert past.whole() == entities(past)
    reasons = {one.reason for one in read_samples(past.folder.samples).absent}
    assert not [reason for reason in reasons if "could not be asked" in (reason or "")]


def test_gone_at_the_end_what_was_got_is_kept_and_the_rest_is_a_gap(
    vcsim: Vcsim, tmp_path: Path
) -> None:
    past = Past(vcsim, tmp_path, ago_s=40 * MINUTE, seconds=20 * MINUTE)
    past.put(0)
    with past.collector() as one:
        past.sample(one, 10 * MINUTE)
        host = past.events("placement")[0]["esxi_host"]
    vcsim.control(outages=[{"mode": "503"}])
    losses = past.backfill(20 * MINUTE, deadline_s=30)
    assert "503" in losses[0]
    assert {one["entity"] for one in past.events("gap")} == {f"vm:{VM}@{host}", f"esxi:{host}"}
    assert len(past.stamps_s(f"vm:{VM}@{host}", "vm_cpu_used_cores")) >= 29
    assert not list(past.folder.samples.glob("vcenter-absent-*"))


@pytest.mark.parametrize("trouble", ["password", "vm"])
def test_a_refusal_is_not_waited_out(vcsim: Vcsim, tmp_path: Path, trouble: str) -> None:
    past = Past(vcsim, tmp_path, ago_s=40 * MINUTE, seconds=10 * MINUTE)
    past.put(10 * MINUTE)
    environ = vcsim.environ()
    if trouble == "password":
        environ["STAGESCOPE_VCENTER_PASSWORD"] = "guessed wrong"

    def sleep(seconds: float) -> None:
        raise AssertionError("there is nothing to wait for")

    vm = "nobody" if trouble == "vm" else VM
    (loss,) = backfill(past.folder, past.settings(vm=vm), past.clock, sleep=sleep, environ=environ)
    assert {"password": "refuses", "vm": "no VM named nobody"}[trouble] in loss
    assert "guessed wrong" not in loss
    assert {one.entity for one in read_samples(past.folder.samples).absent} == {"vm", "esxi"}
    (named,) = past.events("named")
    assert (named["user"], named["vm"]) == (vcsim.user, [])


def test_an_interrupted_wait_ends_the_wait_alone(vcsim: Vcsim, tmp_path: Path) -> None:
    past = Past(vcsim, tmp_path, ago_s=40 * MINUTE, seconds=10 * MINUTE)
    vcsim.control(lag_s=5 * MINUTE)
    past.put(10 * MINUTE)
    said: list[str] = []

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    losses = backfill(
        past.folder,
        past.settings(),
        past.clock,
        say=said.append,
        sleep=interrupt,
        environ=vcsim.environ(),
    )
    assert "vcenter: the wait for its last windows was interrupted" in losses
    assert said == ["vCenter: waiting up to 120 s for the last windows of the run"]
    assert len(past.events("gap")) == 2
    assert entities(past)


def test_nothing_of_a_backfill_raises(vcsim: Vcsim, tmp_path: Path) -> None:
    past = Past(vcsim, tmp_path, ago_s=40 * MINUTE, seconds=10 * MINUTE)
    past.put(10 * MINUTE)
    past.folder.run_json.write_text("{")
    (loss,) = past.backfill(10 * MINUTE)
    assert loss.startswith("vcenter: its windows were not fetched: ValueError")


def test_a_move_that_the_server_does_not_tell_of_lies_between_two_looks(
    own_vcsim: Vcsim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise VCenterRefused("the account may not read events")

    monkeypatch.setattr("telemetry.collectors.vcenter_round.migrations", forbidden)
    past = Past(own_vcsim, tmp_path, ago_s=40 * MINUTE, seconds=15 * MINUTE)
    past.put(0)
    with past.collector() as one:
        past.sample(one, 5 * MINUTE)
        first = past.events("placement")[0]["esxi_host"]
        other = next(f"DC0_C0_H{n}" for n in range(2) if first != f"DC0_C0_H{n}")
        own_vcsim.control(
            move=[{"vm": VM, "to": other, "at_s": past.unix_s(7 * MINUTE), "forget": True}]
        )
    losses = past.backfill(15.5 * MINUTE)
    (move,) = past.events("moved")
    assert not move["exact"]
    assert past.start_ns <= move["at_ns"] <= past.start_ns + 5 * 60 * NS
    before = past.stamps_s(f"vm:{VM}@{first}", "vm_cpu_used_cores")
    after = past.stamps_s(f"vm:{VM}@{other}", "vm_cpu_used_cores")
    assert max(before) <= 5 * MINUTE < 7 * MINUTE <= min(after)
    assert any(f"vm:{VM}@" in loss for loss in losses)  # what the old host took along


def test_another_vm_that_is_gone_costs_this_one_nothing(own_vcsim: Vcsim, tmp_path: Path) -> None:
    past = Past(own_vcsim, tmp_path, ago_s=30 * MINUTE, seconds=10 * MINUTE)
    past.put(0)
    with past.collector(other_vms=(OTHER, "misspelt", f"{VM}x")) as one:
        assert [loss for loss in one.losses if "misspelt" in loss]
        (near,) = (loss for loss in one.losses if f"did you mean {VM}?" in loss)
        assert f"{VM}x" in near
        assert [named["vm"] for named in past.events("named")] == [[VM]]
        past.sample(one, 5 * MINUTE)
        destroy(own_vcsim, OTHER)
        past.sample(one, 10 * MINUTE)
    losses = past.backfill(10.5 * MINUTE, other_vms=(OTHER,))
    (host,) = {one["esxi_host"] for one in past.events("placement") if one["vm"] == VM}
    assert f"vm:{VM}@{host}" in past.whole()
    assert f"no VM named {OTHER}" in losses[0]
    (gap,) = past.events("gap")
    assert gap["entity"].startswith(f"vm:{OTHER}@")
    assert 4 * MINUTE < (gap["to_ns"] - gap["from_ns"]) / NS < 6 * MINUTE


def test_another_vm_that_is_inaccessible_for_a_time_costs_this_one_nothing(
    own_vcsim: Vcsim, tmp_path: Path
) -> None:
    past = Past(own_vcsim, tmp_path, ago_s=40 * MINUTE, seconds=20 * MINUTE)
    past.put(0)
    with past.collector(other_vms=(OTHER,)) as one:
        past.sample(one, 5 * MINUTE)
        own_vcsim.control(vms=[{"name": OTHER, "inaccessible": True}])
        past.sample(one, 10 * MINUTE)
        (loss,) = one.losses
        assert loss.startswith(f"vcenter: VM {OTHER}: the vCenter does not tell its config.")
        own_vcsim.control(vms=[{"name": OTHER, "inaccessible": False}])
        past.sample(one, 15 * MINUTE)
    assert past.backfill(20.5 * MINUTE, other_vms=(OTHER,)) == []
    assert {one.partition("@")[0] for one in past.whole("vm:")} >= {f"vm:{VM}", f"vm:{OTHER}"}


def test_another_vm_that_became_inaccessible_is_a_loss_of_its_own(
    own_vcsim: Vcsim, tmp_path: Path
) -> None:
    past = Past(own_vcsim, tmp_path, ago_s=40 * MINUTE, seconds=10 * MINUTE)
    past.put(0)
    with past.collector(other_vms=(OTHER,)) as one:
        past.sample(one, 5 * MINUTE)
    own_vcsim.control(vms=[{"name": OTHER, "inaccessible": True}])
    losses = past.backfill(10.5 * MINUTE, other_vms=(OTHER,))
    assert losses[0].startswith(f"vcenter: VM {OTHER}: the vCenter does not tell its config.")
    assert {one.partition("@")[0] for one in past.whole("vm:")} >= {f"vm:{VM}"}
    assert {one["entity"].partition("@")[0] for one in past.events("gap")} == {f"vm:{OTHER}"}


def test_this_vm_that_became_inaccessible_is_said(own_vcsim: Vcsim, tmp_path: Path) -> None:
    past = Past(own_vcsim, tmp_path, ago_s=40 * MINUTE, seconds=10 * MINUTE)
    past.put(0)
    with past.collector(other_vms=(OTHER,)) as one:
        past.sample(one, 5 * MINUTE)
    own_vcsim.control(vms=[{"name": VM, "inaccessible": True}])
    losses = past.backfill(10.5 * MINUTE, other_vms=(OTHER,))
    assert losses[0].startswith(f"vcenter: VM {VM}: the vCenter does not tell its config.")


def test_a_vm_that_was_renamed_is_known_by_its_id(own_vcsim: Vcsim, tmp_path: Path) -> None:
    past = Past(own_vcsim, tmp_path, ago_s=30 * MINUTE, seconds=10 * MINUTE)
    past.put(0)
    with past.collector(other_vms=(OTHER,)) as one:
        past.sample(one, 5 * MINUTE)
        names = {VM: "renamed", OTHER: "renamed-too"}
        own_vcsim.control(vms=[{"name": old, "rename": new} for old, new in names.items()])
    assert past.backfill(10.5 * MINUTE, other_vms=(OTHER,)) == []
    assert {one.partition("@")[0] for one in past.whole("vm:")} == {f"vm:{VM}", f"vm:{OTHER}"}


def test_a_host_hours_ahead_is_asked_for_its_last_windows(vcsim: Vcsim, tmp_path: Path) -> None:
    past = Past(vcsim, tmp_path, ago_s=60 * MINUTE, seconds=10 * MINUTE)
    vcsim.control(host_skew_s={"*": 3 * 3600.0})
    past.put(0)
    with past.collector() as one:
        past.sample(one, 5 * MINUTE)
    assert past.backfill(11 * MINUTE) == []


def destroy(vcsim: Vcsim, name: str) -> None:
    with VCenter(vcsim.settings(), environ=vcsim.environ()) as vcenter:
        named = {one["name"]: vm for vm, one in vcenter.retrieve(vim.VirtualMachine, ["name"])}
        vm = named[name]
        for task in (vm.PowerOffVM_Task, vm.Destroy_Task):
            running = task()
            while running.info.state not in {"success", "error"}:
                time.sleep(0.02)


def test_a_torn_line_of_the_journal_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "vcenter.jsonl").write_text('{"at_ns": 1, "event": "lost"}\n{"at_ns": 2, "ev')
    assert read_events(tmp_path) == [{"at_ns": 1, "event": "lost"}]
    assert read_events(tmp_path / "none") == []
