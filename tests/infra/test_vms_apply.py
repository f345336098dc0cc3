"""Apply on a real vCenter API: idempotent, with consent, finished by the next if killed."""

from __future__ import annotations

import base64
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pyVmomi import vim

from infra.vms.apply import Applied, apply
from infra.vms.destroy import destroy, find_doomed
from infra.vms.diff import plan_changes
from infra.vms.spec import MARK_INSTANCE, MARK_PLAN, MARK_VM, PlanError
from infra.vsphere.session import VCenter
from tests.infra.vms_on import (
    FOREIGN,
    TEMPLATE,
    every_vm,
    logged_in,
    make_template,
    picture,
    plan_of,
    the_vm,
    wait,
)

pytestmark = pytest.mark.needs("go")

TEXT = """
[vms.trainer]
host = "DC0_C0_H1"
cpus = 2
memory_reservation_gib = "full"
disks = [{ gib = 2 }, { gib = 1, datastore = "LocalDS_1" }]
networks = ["VM Network", "DC0_DVPG0"]
[vms.spare]
power = "off"
disks = [{ gib = 1 }]
"""


class Killed(BaseException):
    """Ends an apply where the test wants it to, as nothing that it handles."""


class KillAt:
    """Counts the steps of an apply and raises at one of them."""

    def __init__(self, step: int = 0) -> None:
        self.step, self.seen = step, list[str]()

    def __call__(self, name: str) -> None:
        self.seen.append(name)
        if len(self.seen) == self.step:
            raise Killed(name)


def test_apply_makes_what_is_planned_and_then_nothing_more(own_vcsim, tmp_path):
    said: list[str] = []
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        before = picture(vcenter)
        plan = plan_of(tmp_path, TEXT)
        applied = apply(vcenter, plan, say=said.append)
        assert applied.complete
        assert plan_changes(vcenter, plan).empty
        made = the_vm(vcenter, "trainer")
        after = picture(vcenter)
        own_vcsim.control(reset_counts=True)
        assert apply(vcenter, plan) == Applied(done=(), refused=(), failed=())
        tasks = [name for name in own_vcsim.counts if name.endswith("_Task")]
        assert tasks == []
        assert picture(vcenter) == after
    assert {name: after[name] for name in before} == before
    assert (made.host, made.cpus, made.power) == ("DC0_C0_H1", 2, "on")
    assert (made.memory_locked, made.memory_reservation_mib, made.firmware) == (True, 1024, "efi")
    assert made.extra[MARK_PLAN] == "stagescope"
    assert made.extra[MARK_VM] == "trainer"
    assert made.extra[MARK_INSTANCE] == made.instance_uuid
    assert after["spare"]["power"] == "off"
    assert "trainer: clone: done" in said
    assert {change.attribute for change in applied.done} >= {"vm", "cpus", "disk 2", "power"}
    assert own_vcsim.counts["sessions"] == 0


def test_without_template_an_empty_vm_is_made(own_vcsim, tmp_path):
    with logged_in(own_vcsim) as vcenter:
        plan = plan_of(tmp_path, TEXT, "defaults.template=", "defaults.guest_id=debian11_64Guest")
        assert apply(vcenter, plan).complete
        assert plan_changes(vcenter, plan).empty
        made = the_vm(vcenter, "trainer")
    assert made.config is not None
    assert len([one for one in made.devices if type(one).__name__.endswith("VirtualDisk")]) == 2


def test_power_off_edits_need_consent_and_the_rest_is_done(own_vcsim, tmp_path):
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        apply(vcenter, plan_of(tmp_path, TEXT))
        plan = plan_of(
            tmp_path, TEXT, "vms.trainer.cpus=1", "vms.trainer.disks=[{gib = 3}, {gib = 1}]"
        )
        applied = apply(vcenter, plan)
        assert applied.refused == (
            "trainer: cpus 2 → 1 needs the VM powered off; allow it with --power-off",
        )
        assert [change.attribute for change in applied.done] == ["disk 1"]
        assert the_vm(vcenter, "trainer").power == "on"
        assert [one.attribute for one in plan_changes(vcenter, plan).changes] == ["cpus"]
        applied = apply(vcenter, plan, consent_power_off=True)
        assert applied.complete
        assert [change.attribute for change in applied.done] == ["cpus"]
        assert plan_changes(vcenter, plan).empty
        assert the_vm(vcenter, "trainer").power == "on"
        stopped = plan.model_copy(
            update={"vms": {"trainer": plan.vms["trainer"].model_copy(update={"power": "off"})}}
        )
        assert "power on → off" in apply(vcenter, stopped).refused[0]
        assert apply(vcenter, stopped, consent_power_off=True).complete
        assert the_vm(vcenter, "trainer").power == "off"


def test_a_reservation_waits_for_the_memory_that_it_is_of(own_vcsim, tmp_path):
    text = '[vms.trainer]\nmemory_reservation_gib = "full"\n'
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        apply(vcenter, plan_of(tmp_path, text))
        plan = plan_of(tmp_path, text, "vms.trainer.memory_gib=2")
        applied = apply(vcenter, plan)
        assert [said.split(" needs")[0] for said in applied.refused] == [
            "trainer: memory_gib 1 → 2",
            "trainer: memory_reservation_gib 1 (full, locked) → 2 (full, locked)",
        ]
        assert applied.done == ()
        assert apply(vcenter, plan, consent_power_off=True).complete
        assert plan_changes(vcenter, plan).empty


def test_two_at_once_do_not_give_a_vm_its_devices_twice(own_vcsim, tmp_path):
    text = """
        [vms.trainer]
        disks = [{ gib = 1 }, { gib = 1 }]
        networks = ["VM Network", "DC0_DVPG0"]
    """
    with logged_in(own_vcsim) as vcenter, logged_in(own_vcsim) as other:
        make_template(vcenter)
        plan = plan_of(tmp_path, text)
        first = list[Applied]()

        def overtake(step: str) -> None:
            if step == "reconfigure trainer" and not first:
                first.append(apply(other, plan))

        late = apply(vcenter, plan, hook=overtake)
        assert first[0].complete
        assert late.failed == (
            "trainer: reconfigure: somebody else changed the VM meanwhile; apply again",
        )
        assert plan_changes(vcenter, plan).empty
        assert apply(vcenter, plan).complete


def test_a_vm_is_moved_and_renamed_back(own_vcsim, tmp_path):
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        apply(vcenter, plan_of(tmp_path, TEXT))
        wait(the_vm(vcenter, "trainer").ref.Rename_Task("somebody"))
        center = next(iter(vcenter.content.rootFolder.childEntity))
        center.vmFolder.CreateFolder("gpu")
        plan = plan_of(tmp_path, TEXT, "vms.trainer.host=DC0_C0_H0", "defaults.folder=gpu")
        changes = {one.attribute for one in plan_changes(vcenter, plan).changes}
        assert changes == {"host", "folder", "name"}
        assert apply(vcenter, plan).complete
        moved = the_vm(vcenter, "trainer")
        assert (moved.host, moved.folder) == ("DC0_C0_H0", "gpu")
        assert plan_changes(vcenter, plan).empty


def test_a_bad_plan_changes_nothing(own_vcsim, tmp_path):
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        before = picture(vcenter)
        with pytest.raises(PlanError, match="datastore 'none': there is none"):
            apply(vcenter, plan_of(tmp_path, TEXT, "vms.spare.datastore=none"))
        assert picture(vcenter) == before


def test_killed_at_each_step_and_repeated_it_ends_in_the_same_state(own_vcsim, tmp_path):
    plan = plan_of(tmp_path, TEXT)
    edited = plan_of(tmp_path, TEXT, "vms.trainer.cpus=1", "vms.trainer.host=DC0_C0_H0")
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        making, editing = KillAt(), KillAt()
        apply(vcenter, plan, hook=making)
        made = picture(vcenter)
        apply(vcenter, edited, consent_power_off=True, hook=editing)
        done = picture(vcenter)
        for step in range(1, len(making.seen) + 1):
            destroy(vcenter, find_doomed(vcenter, plan))
            with pytest.raises(Killed):
                apply(vcenter, plan, hook=KillAt(step))
            assert apply(vcenter, plan).complete
            assert picture(vcenter) == made, making.seen[step - 1]
        for step in range(1, len(editing.seen) + 1):
            with pytest.raises(Killed):
                apply(vcenter, edited, consent_power_off=True, hook=KillAt(step))
            assert apply(vcenter, edited, consent_power_off=True).complete
            assert picture(vcenter) == done, editing.seen[step - 1]
            assert apply(vcenter, plan, consent_power_off=True).complete
    assert [one for one in making.seen if not one.endswith("done")] == [
        "clone trainer",
        "clone spare",
        "reconfigure trainer",
        "reconfigure spare",
        "power on trainer",
    ]
    assert [one for one in editing.seen if not one.endswith("done")] == [
        "power off trainer",
        "relocate trainer",
        "reconfigure trainer",
        "power on trainer",
    ]


def test_an_apply_killed_in_mid_clone_is_finished_by_the_next_while_the_clone_goes_on(
    own_vcsim, tmp_path
):
    def kill(what: str, percent: int | None) -> None:
        raise Killed(what)

    plan = plan_of(tmp_path, TEXT)
    seen: list[str] = []
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        own_vcsim.control(task_s=3.0)
        with pytest.raises(Killed, match="clone"):
            apply(vcenter, plan, progress=kill)
        own_vcsim.control(task_s=0.0)
        assert "trainer" not in picture(vcenter)
        assert apply(vcenter, plan, progress=lambda what, _: seen.append(what)).complete
        assert plan_changes(vcenter, plan).empty
        names = sorted(vm.name for vm in every_vm(vcenter))
    assert "waiting for tasks that still run" in seen
    assert names == sorted([TEMPLATE, FOREIGN, "trainer", "spare"])


def test_tasks_are_waited_for_with_progress(own_vcsim, tmp_path):
    seen: dict[str, set[int | None]] = {}
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        own_vcsim.control(task_s=0.3)
        plan = plan_of(tmp_path, TEXT)
        apply(vcenter, plan, progress=lambda what, now: seen.setdefault(what, set()).add(now))
        assert plan_changes(vcenter, plan).empty
    assert {"clone trainer", "clone spare", "reconfigure trainer", "power on trainer"} <= set(seen)
    assert len(seen["clone trainer"]) > 1


def test_a_task_that_fails_is_said_and_stops_no_other_vm(own_vcsim, tmp_path):
    fail = {"method": "ReconfigVM_Task", "fault": "InsufficientMemoryResourcesFault", "times": 1}
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        own_vcsim.control(fail_tasks=[fail])
        plan = plan_of(tmp_path, TEXT)
        applied = apply(vcenter, plan)
        (said,) = applied.failed
        assert said.startswith("trainer: reconfigure: ")
        assert "InsufficientMemoryResourcesFault" in said
        assert the_vm(vcenter, "trainer").power == "off"
        assert {change.vm for change in plan_changes(vcenter, plan).changes} == {"trainer"}
        assert apply(vcenter, plan).complete
        assert plan_changes(vcenter, plan).empty


def test_a_session_that_is_lost_meanwhile_is_renewed(own_vcsim, tmp_path):
    def lose(step: str) -> None:
        if step in {"clone spare", "reconfigure trainer", "power on trainer"}:
            own_vcsim.control(expire_sessions=True)

    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        plan = plan_of(tmp_path, TEXT)
        assert apply(vcenter, plan, hook=lose).complete
        assert plan_changes(vcenter, plan).empty
    assert own_vcsim.counts["logins"] == 4


def test_an_account_that_may_only_read_is_told_what_it_lacks(own_vcsim, tmp_path):
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
    reader = VCenter(own_vcsim.settings(), environ=own_vcsim.environ(reader=True))
    with reader as vcenter:
        applied = apply(vcenter, plan_of(tmp_path, TEXT))
    assert len(applied.failed) == 2
    assert all("the account lacks" in said for said in applied.failed)


def test_a_guest_with_tools_is_shut_down_and_not_cut_off(own_vcsim, tmp_path):
    steps = KillAt()
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        apply(vcenter, plan_of(tmp_path, TEXT))
        tools = vim.option.OptionValue(
            key="SET.guest.toolsRunningStatus", value="guestToolsRunning"
        )
        wait(the_vm(vcenter, "trainer").ref.ReconfigVM_Task(vim.vm.ConfigSpec(extraConfig=[tools])))
        plan = plan_of(tmp_path, TEXT, "vms.trainer.cpus=1")
        assert apply(vcenter, plan, consent_power_off=True, hook=steps).complete
        assert the_vm(vcenter, "trainer").power == "on"
        assert plan_changes(vcenter, plan).empty
    assert "shut down trainer" in steps.seen
    assert "power off trainer" not in steps.seen


def test_a_planned_guest_is_told_to_cloud_init(own_vcsim, tmp_path):
    text = "[vms.a]\n[vms.a.guest]\nuser = 'me'\nrole = 'runner'\n[vms.b]"
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        plan = plan_of(tmp_path, text)
        assert apply(vcenter, plan).complete
        assert plan_changes(vcenter, plan).empty
        told, untold = the_vm(vcenter, "a").extra, the_vm(vcenter, "b").extra
        changed = plan_of(tmp_path, text, "vms.a.guest.user=you")
        (change,) = plan_changes(vcenter, changed).changes
        assert (change.attribute, change.power_off) == ("extra_config.guestinfo.userdata", False)
        assert "characters, SHA-256" in str(change.wanted)
        bad = plan_of(tmp_path, text, "vms.a.guest.user=root", "vms.b.guest.user=x")
        doubled = plan_of(tmp_path, text, "vms.a.extra_config={ 'guestinfo.userdata' = 'x' }")
        assert "a: guest.user 'root'" in plan_changes(vcenter, bad).problems[0]
        assert "is written from guest" in plan_changes(vcenter, doubled).problems[0]
    text = base64.b64decode(told["guestinfo.userdata"]).decode()
    assert text.startswith("#cloud-config")
    assert "me" in text
    assert not any(key.startswith("guestinfo.") for key in untold)


CHILD = """
import os, signal, sys
from infra.vms.apply import apply
from infra.vms.spec import read_plan
from infra.vsphere.session import VCenter

def hook(step):
    if step == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)

plan = read_plan(sys.argv[1])
with VCenter(plan.settings) as vcenter:
    apply(vcenter, plan, hook=hook)
"""


@pytest.mark.parametrize("step", ["clone trainer: done", "power on trainer"])
def test_a_process_killed_with_9_is_finished_by_the_next(own_vcsim, tmp_path, step):
    settings = own_vcsim.settings()
    overrides = (f"vcenter.port={settings.port}", f"vcenter.ca_file={settings.ca_file}")
    path = tmp_path / "vms.toml"
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        plan = plan_of(tmp_path, TEXT, *overrides)
        text = path.read_text().replace(
            'host = "127.0.0.1"',
            f'host = "127.0.0.1"\nport = {settings.port}\nca_file = "{settings.ca_file}"',
        )
        path.write_text(text)
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(path), step],
            env={**own_vcsim.environ(), "PYTHONPATH": str(Path.cwd())},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not plan_changes(vcenter, plan).empty
        assert apply(vcenter, plan).complete
        assert plan_changes(vcenter, plan).empty
        names = sorted(vm.name for vm in every_vm(vcenter))
    assert names == sorted([TEMPLATE, FOREIGN, "trainer", "spare"])
