"""What a template brings along and a store has room for: said before anything is made."""

from __future__ import annotations

import pytest
from pyVmomi import vim

from infra.vms.apply import apply
from infra.vms.diff import plan_changes
from tests.infra.vms_on import TEMPLATE, every_vm, logged_in, make_template, plan_of, wait

pytestmark = pytest.mark.needs("go")


def grown(vcenter, gib: int) -> None:
    """Let the template's disk be so large."""
    (template,) = (vm for vm in every_vm(vcenter) if vm.name == TEMPLATE)
    (disk,) = (one for one in template.devices if isinstance(one, vim.vm.device.VirtualDisk))
    disk.capacityInKB = gib << 20
    disk.capacityInBytes = gib << 30
    spec = vim.vm.device.VirtualDeviceSpec(operation="edit", device=disk)
    wait(template.ref.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[spec])))


def test_a_template_with_larger_disks_is_a_problem_before_it_is_cloned(own_vcsim, tmp_path):
    with logged_in(own_vcsim) as vcenter:
        grown(vcenter, 20)
        make_template(vcenter)
        text = '[vms.a]\ndisks = [{ gib = 10, datastore = "LocalDS_1" }]'
        assert plan_changes(vcenter, plan_of(tmp_path, text)).problems == (
            f"a: disk 1: template {TEMPLATE} has 20 GiB and the plan wants 10; a disk cannot "
            "shrink",
            "a: disk 1: it is the template's own and comes to LocalDS_0 with it, the plan wants "
            "LocalDS_1; take its datastore out",
        )
        fits = plan_of(tmp_path, "[vms.a]\ndisks = [{ gib = 20 }]")
        assert apply(vcenter, fits).complete
        assert plan_changes(vcenter, fits).empty


def test_another_firmware_than_the_templates_is_named(own_vcsim, tmp_path):
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        (note,) = plan_changes(vcenter, plan_of(tmp_path, "[vms.a]\ncount = 2")).notes
        assert note.startswith(f"a: template {TEMPLATE} has firmware bios and the VM gets efi")
        same = plan_of(tmp_path, '[vms.a]\nfirmware = "bios"')
        assert plan_changes(vcenter, same).notes == ()


def test_thick_disks_need_their_room_at_once(own_vcsim, tmp_path):
    own_vcsim.control(datastores=[{"name": "LocalDS_0", "capacity_gib": 1000, "free_gib": 100}])
    text = "[vms.a]\ncount = 2\ndisks = [{ gib = 1 }, { gib = 60, thin = false }]"
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        assert plan_changes(vcenter, plan_of(tmp_path, text)).problems == (
            "datastore 'LocalDS_0': 120 GiB of thick disks are wanted and 100 are free; free some, "
            "or set thin = true",
        )
        thin = plan_of(tmp_path, text.replace(", thin = false", ""))
        assert plan_changes(vcenter, thin).problems == ()
