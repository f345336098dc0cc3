"""Destroy on a real vCenter API: only what the plan made."""

from __future__ import annotations

import pytest
from pyVmomi import vim

from infra.vms.apply import apply
from infra.vms.destroy import destroy, find_doomed
from infra.vms.diff import plan_changes
from infra.vms.spec import MARK_INSTANCE, MARK_PLAN, MARK_VM
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

TEXT = "[vms.a]\ncount = 2\n[vms.b]\npower = 'off'\ndisks = [{ gib = 1 }]"


def names(vcenter) -> set[str]:
    return {vm.name for vm in every_vm(vcenter)}


def test_it_removes_what_apply_made(own_vcsim, tmp_path):
    plan = plan_of(tmp_path, TEXT)
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        before = picture(vcenter)
        apply(vcenter, plan)
        doomed = find_doomed(vcenter, plan)
        assert {one["vm"] for one in doomed.to_json()["vms"]} == {"a-1", "a-2", "b"}
        gone = destroy(vcenter, doomed)
        assert (set(gone.removed), gone.left, gone.failed) == ({"a-1", "a-2", "b"}, (), ())
        assert picture(vcenter) == before
        again = destroy(vcenter, find_doomed(vcenter, plan))
        assert again.removed == ()
    assert own_vcsim.counts["sessions"] == 0


def test_killed_at_each_step_it_is_finished_by_the_next(own_vcsim, tmp_path):
    class Killed(BaseException):
        pass

    seen: list[str] = []
    plan = plan_of(tmp_path, TEXT)
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        before = picture(vcenter)
        apply(vcenter, plan)
        destroy(vcenter, find_doomed(vcenter, plan), hook=seen.append)
        assert seen[:3] == ["power off a-1", "power off a-2", "power off a-1: done"]
        for step in seen:

            def kill(name: str, step: str = step) -> None:
                if name == step:
                    raise Killed

            apply(vcenter, plan)
            with pytest.raises(Killed):
                destroy(vcenter, find_doomed(vcenter, plan), hook=kill)
            destroy(vcenter, find_doomed(vcenter, plan))
            assert picture(vcenter) == before


def test_what_the_plan_no_longer_has_goes_too(own_vcsim, tmp_path):
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        apply(vcenter, plan_of(tmp_path, TEXT))
        gone = destroy(vcenter, find_doomed(vcenter, plan_of(tmp_path, "[vms.other]")))
    assert set(gone.removed) == {"a-1", "a-2", "b"}


def test_a_foreign_vm_of_the_same_name_is_named_and_left(own_vcsim, tmp_path):
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        plan = plan_of(tmp_path, TEXT)
        wait(the_vm(vcenter, FOREIGN).ref.Rename_Task("b"))
        doomed = find_doomed(vcenter, plan)
        assert doomed.vms == ()
        (left,) = doomed.left
        assert left.startswith("b (vm-")
        assert "not made by this plan" in left
        destroy(vcenter, doomed)
        assert names(vcenter) == {TEMPLATE, "b"}


def test_a_copy_made_by_hand_is_left(own_vcsim, tmp_path):
    plan = plan_of(tmp_path, "[vms.b]\npower = 'off'")
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        apply(vcenter, plan)
        made = the_vm(vcenter, "b")
        marks = [
            vim.option.OptionValue(key=key, value=made.extra[key])
            for key in (MARK_PLAN, MARK_VM, MARK_INSTANCE)
        ]
        spec = vim.vm.CloneSpec(
            location=vim.vm.RelocateSpec(pool=made.pool),
            config=vim.vm.ConfigSpec(extraConfig=marks),
            powerOn=False,
            template=False,
        )
        folder = next(iter(vcenter.content.rootFolder.childEntity)).vmFolder
        wait(made.ref.CloneVM_Task(folder, "copy", spec))
        assert plan_changes(vcenter, plan).notes == (
            "copy: a copy of one of this plan's VMs, not made by it; left alone",
        )
        gone = destroy(vcenter, find_doomed(vcenter, plan))
        assert gone.removed == ("b",)
        assert any(one.startswith("copy (vm-") for one in gone.left)
        assert "copy" in names(vcenter)


def test_another_plan_is_another_maker(own_vcsim, tmp_path):
    mine = plan_of(tmp_path, "[vms.b]")
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        apply(vcenter, mine)
        other = plan_of(tmp_path, "[vms.b]", "name=other")
        (problem,) = plan_changes(vcenter, other).problems
        assert "did not make" in problem
        doomed = find_doomed(vcenter, other)
        assert (doomed.vms, len(doomed.left)) == ((), 1)


def test_a_disk_attached_by_hand_is_not_deleted_with_the_vm(own_vcsim, tmp_path):
    plan = plan_of(tmp_path, "[vms.b]\npower = 'off'", "defaults.template=")
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        apply(vcenter, plan)
        foreign = the_vm(vcenter, FOREIGN)
        disk = next(one for one in foreign.devices if isinstance(one, vim.vm.device.VirtualDisk))
        controller = vim.vm.device.ParaVirtualSCSIController(
            key=-7, busNumber=0, sharedBus="noSharing"
        )
        disk.key, disk.controllerKey, disk.unitNumber = -8, -7, 0
        change = [
            vim.vm.device.VirtualDeviceSpec(operation="add", device=one)
            for one in (controller, disk)
        ]
        spec = vim.vm.ConfigSpec(deviceChange=change)
        wait(the_vm(vcenter, "b").ref.ReconfigVM_Task(spec))
        doomed = find_doomed(vcenter, plan)
        assert doomed.vms == ()
        assert "which was not made with it" in doomed.left[0]
        assert FOREIGN in doomed.left[0]
        destroy(vcenter, doomed)
        assert "b" in names(vcenter)
