"""What a plan would change on a real vCenter API, and everything that is in its way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyVmomi import vim

from infra.vms.apply import apply
from infra.vms.diff import plan_changes
from infra.vms.spec import STEAL_CLOCK
from infra.vsphere.session import VCenter
from tests.infra.vms_on import FOREIGN, TEMPLATE, logged_in, make_template, plan_of, the_vm, wait
from tests.vcsim_server import Vcsim

pytestmark = pytest.mark.needs("go")


@pytest.fixture(scope="module")
def server() -> Iterator[Vcsim]:
    """One server for the tests that change nothing of what others of them see."""
    with Vcsim() as vcsim:
        with logged_in(vcsim) as vcenter:
            make_template(vcenter)
        yield vcsim


@pytest.fixture
def vcenter(server: Vcsim) -> Iterator[VCenter]:
    with logged_in(server) as vcenter:
        yield vcenter


def attributes(changes) -> dict[str, tuple[str | None, str | None]]:
    return {change.attribute: (change.now, change.wanted) for change in changes.changes}


def test_a_new_vm_is_shown_with_all_that_it_would_have(vcenter, tmp_path):
    plan = plan_of(
        tmp_path,
        "[vms.fresh]\ncpus = 2\ncores_per_socket = 1\ndisks = [{ gib = 4 }]\n"
        'memory_reservation_gib = "full"\ncpu_reservation_mhz = "full"\n'
        'extra_config = { "guestinfo.role" = "x" }',
    )
    changes = plan_changes(vcenter, plan)
    assert changes.problems == ()
    found = attributes(changes)
    mhz = 2 * 2294  # of the simulator's hosts
    assert found["vm"] == (None, f"clone of {TEMPLATE}, on DC0_C0, stored on LocalDS_0")
    assert found["cpus"] == (None, "2")
    assert found["memory_reservation_gib"] == (None, "1 (full, locked)")
    assert found["cpu_reservation_mhz"] == (None, str(mhz))
    assert found["disk 1"] == (None, "4 GiB on LocalDS_0, thin")
    assert found["network 1"] == (None, "VM Network (vmxnet3)")
    assert found["extra_config.guestinfo.role"] == (None, "x")
    assert found[f"extra_config.{STEAL_CLOCK}"] == (None, "TRUE")
    assert found["power"] == (None, "on")
    assert not any(change.power_off for change in changes.changes)
    assert changes.to_json()["changes"][0]["attribute"] == "vm"


def test_all_that_is_wrong_is_said_at_once(vcenter, tmp_path):
    plan = plan_of(
        tmp_path,
        """
[vms.a]
datastore = "LocalDS_7"
networks = ["VM Netwrk"]
template = "debian"
folder = "nowhere"
resource_pool = "none"
cpus = 64
memory_gib = 100
numa = { nodes = 8 }
gpus = [{ kind = "vgpu", profile = "grid_a100-40c" }]
[vms.b]
cluster = "DC0_C9"
[vms.c]
host = "DC0_C0_H9"
[vms.d]
datacenter = "DC9"
[vms.e]
template = "DC0_C0_RP0_VM1"
""",
    )
    said = plan_changes(vcenter, plan).problems
    for start, hint in (
        ("a: datastore 'LocalDS_7': there is none", "known here: LocalDS_0, LocalDS_1"),
        ("a: network 'VM Netwrk': there is none", "did you mean 'VM Network'?"),
        ("a: template 'debian': there is none", TEMPLATE),
        ("a: folder 'nowhere': there is none", ""),
        ("a: resource_pool 'none': there is none", ""),
        ("a: cpus = 64: more than any host of DC0_C0 has", "2 cores"),
        ("a: memory_gib = 100: more than any host", "GiB"),
        ("a: numa.nodes = 8: more than any host", ""),
        ("a: vGPU profile 'grid_a100-40c': not on any host of DC0_C0", ""),
        ("b: cluster 'DC0_C9': there is none", "did you mean 'DC0_C0'?"),
        ("c: host 'DC0_C0_H9': there is none in cluster DC0_C0", "did you mean 'DC0_C0_H"),
        ("d: datacenter 'DC9': there is none", "did you mean 'DC0'?"),
        ("e: template 'DC0_C0_RP0_VM1': this is a VM, not a template", ""),
    ):
        assert any(one.startswith(start) and hint in one for one in said), (start, said)


def test_a_foreign_vm_with_a_planned_name_is_a_problem(vcenter, tmp_path):
    changes = plan_changes(
        vcenter, plan_of(tmp_path, f"[vms.x]\n[vms.{TEMPLATE}]".replace("_", "-"))
    )
    assert changes.problems == ()
    foreign = the_vm(vcenter, FOREIGN)
    plan = plan_of(tmp_path, "[vms.x]")
    named = plan.model_copy(update={"vms": {FOREIGN: plan.vms["x"]}})
    (said,) = plan_changes(vcenter, named).problems
    assert said.startswith(f"{FOREIGN}: a VM of this name is there that this plan did not make")
    assert foreign.moid in said


def test_a_host_in_maintenance_takes_no_vm(own_vcsim, tmp_path):
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        for ref, _ in vcenter.retrieve(vim.HostSystem, ("name",)):
            ref.EnterMaintenanceMode_Task(timeout=0)
        (said,) = plan_changes(vcenter, plan_of(tmp_path, "[vms.a]")).problems
    assert said.startswith("a: no host of DC0_C0 can take a VM (")
    assert "DC0_C0_H0: it is in maintenance mode" in said


def test_edits_of_a_running_vm(own_vcsim, tmp_path):
    text = '[vms.a]\ndisks = [{ gib = 2 }]\nextra_config = { "guestinfo.x" = "1", "y" = "1" }'
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        plan = plan_of(tmp_path, text)
        apply(vcenter, plan)
        assert plan_changes(vcenter, plan).empty
        changed = plan_of(
            tmp_path,
            text,
            "vms.a.cpus=2",
            "vms.a.memory_reservation_gib=1",
            "vms.a.networks=['VM Network', 'DC0_DVPG0']",
            "vms.a.disks=[{ gib = 3 }, { gib = 1 }]",
            "vms.a.extra_config={ 'guestinfo.x' = '2', 'y' = '2' }",
        )
        changes = plan_changes(vcenter, changed)
        smaller = plan_of(tmp_path, text, "vms.a.disks=[{ gib = 1 }]")
        (shrunk,) = plan_changes(vcenter, smaller).problems
        elsewhere = plan_of(tmp_path, text, "vms.a.datastore=LocalDS_1")
        (moved,) = plan_changes(vcenter, elsewhere).problems
    assert attributes(changes) == {
        "cpus": ("1", "2"),
        "memory_reservation_gib": ("0", "1"),
        "disk 1": ("2 GiB", "3 GiB"),
        "disk 2": (None, "1 GiB on LocalDS_0, thin"),
        "network 2": (None, "DC0_DVPG0 (vmxnet3)"),
        "extra_config.guestinfo.x": ("1", "2"),
        "extra_config.y": ("1", "2"),
    }
    needing = {change.attribute for change in changes.changes if change.power_off}
    assert needing == {"cpus", "extra_config.y"}
    assert shrunk == "a: disk 1: it has 2 GiB and the plan wants 1; a disk cannot shrink"
    assert moved.startswith("a: datastore: it lies on LocalDS_0 and the plan wants LocalDS_1")


def test_a_new_vm_counts_what_was_stolen_and_no_running_one_is_stopped_for_it(own_vcsim, tmp_path):
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        plan = plan_of(tmp_path, "[vms.a]")
        apply(vcenter, plan)
        made = the_vm(vcenter, "a")
        off = vim.option.OptionValue(key=STEAL_CLOCK, value="")
        wait(made.ref.ReconfigVM_Task(vim.vm.ConfigSpec(extraConfig=[off])))
        unasked = plan_changes(vcenter, plan)
        said = plan_of(tmp_path, f'[vms.a]\nextra_config = {{ "{STEAL_CLOCK}" = "TRUE" }}')
        asked = plan_changes(vcenter, said)
        wait(made.ref.PowerOffVM_Task())
        stopped = plan_changes(vcenter, plan)
        no = plan_of(tmp_path, f'[vms.a]\nextra_config = {{ "{STEAL_CLOCK}" = "FALSE" }}')
        refused = plan_changes(vcenter, no)
    assert made.extra[STEAL_CLOCK] == "TRUE"
    assert unasked.changes == []
    (change,) = asked.changes
    assert (change.attribute, change.power_off) == (f"extra_config.{STEAL_CLOCK}", True)
    assert attributes(stopped)[change.attribute] == (None, "TRUE")
    assert attributes(refused)[change.attribute] == (None, "FALSE")


def test_a_vm_that_the_plan_no_longer_has_is_a_note(own_vcsim, tmp_path):
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
        apply(vcenter, plan_of(tmp_path, "[vms.a]\ncount = 2"))
        changes = plan_changes(vcenter, plan_of(tmp_path, "[vms.a]\ncount = 2\n", "vms.a.count=3"))
        assert {change.vm for change in changes.changes} == {"a-3"}
        changes = plan_changes(vcenter, plan_of(tmp_path, "[vms.a-1]"))
        assert changes.changes == []
        assert changes.notes == (
            "a-2: made by this plan, which has it no longer; left alone until destroy",
        )


def test_a_reader_leaves_no_view_and_one_question_for_all_vms(server, tmp_path):
    with logged_in(server) as vcenter:
        server.control(reset_counts=True)
        plan = plan_of(tmp_path, "[vms.a]\ncount = 3")
        plan_changes(vcenter, plan)
        counts = server.counts
    assert counts["calls.RetrievePropertiesEx"] <= 20
    assert server.counts.get("views", 0) == 0
    assert server.counts.get("sessions", 0) == 0


def test_a_plan_with_problems_has_changes_too(vcenter, tmp_path):
    plan = plan_of(tmp_path, "[vms.good]\n[vms.bad]\ndatastore = 'none'")
    changes = plan_changes(vcenter, plan)
    assert {change.vm for change in changes.changes} == {"good"}
    assert not changes.empty
