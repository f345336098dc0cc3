"""GPU VMs on a real vCenter API: all kinds of GPU, what they need set, and what hosts can give."""

from __future__ import annotations

from typing import Any

import pytest

from infra.vms.apply import apply
from infra.vms.check import check
from infra.vms.diff import plan_changes
from infra.vms.spec import MMIO_SIZE_GIB, USE_64BIT_MMIO
from tests.infra.vms_on import logged_in, make_template, plan_of, the_vm
from tests.vcsim_server import Vcsim

pytestmark = pytest.mark.needs("go")

PROFILES = ["grid_a100d-20c", "grid_a100d-40c", "grid_a100d-80c", "grid_a100d-3-40c"]
SIZE = {
    "sockets": 2,
    "cores": 64,
    "threads": 128,
    "mhz": 2600,
    "memory_gib": 512,
    "numa_nodes": 2,
}


def a100(pci: str, **more: Any) -> dict[str, Any]:
    return {
        "pci": pci,
        "name": "NVIDIA A100 80GB PCIe",
        "vendor_id": 0x10DE,
        "device_id": 0x20B5,
        "memory_gib": 80,
        **more,
    }


def shared(pci: str) -> dict[str, Any]:
    return a100(pci, graphics="sharedDirect", profiles=PROFILES)


def passed(pci: str, label: str = "") -> dict[str, Any]:
    return a100(pci, graphics="direct", passthrough=True, label=label)


@pytest.fixture
def lab(own_vcsim: Vcsim) -> Vcsim:
    """Host 0 shares two GPUs, host 1 passes two through."""
    gpus = {
        "DC0_C0_H0": [shared("0000:3b:00.0"), shared("0000:d8:00.0")],
        "DC0_C0_H1": [passed("0000:3b:00.0", "train"), passed("0000:d8:00.0")],
        "DC0_C0_H2": [],
    }
    own_vcsim.control(
        hosts=[
            {"name": name, **SIZE, "gpus": gpus.get(name, [])}
            for name in ("DC0_C0_H0", "DC0_C0_H1")
        ]
    )
    with logged_in(own_vcsim) as vcenter:
        make_template(vcenter)
    return own_vcsim


def gpus_of(vm) -> list[str]:
    from infra.vms.devices import gpu_says

    return sorted(gpu_says(device) for device in vm.gpus)


def test_vgpus_with_all_that_they_need(lab, tmp_path):
    text = """
[vms.trainer]
count = 2
memory_gib = 16
cpus = 8
gpus = [{ kind = "vgpu", profile = "grid_a100d-40c", count = 2 }]
"""
    plan = plan_of(tmp_path, text)
    with logged_in(lab) as vcenter:
        assert plan_changes(vcenter, plan).problems == ()
        assert apply(vcenter, plan).complete
        assert plan_changes(vcenter, plan).empty
        made = the_vm(vcenter, "trainer-1")
        grave = [one for one in check(vcenter, plan) if one.severity == "error"]
    assert gpus_of(made) == ["vGPU grid_a100d-40c"] * 2
    assert (made.firmware, made.memory_locked, made.memory_reservation_mib) == ("efi", True, 16384)
    assert made.extra[USE_64BIT_MMIO] == "TRUE"
    assert made.extra[MMIO_SIZE_GIB] == "512"
    assert grave == []


def test_mig_backed_profiles(lab, tmp_path):
    text = '[vms.a]\ngpus = [{ kind = "vgpu", profile = "grid_a100d-3-40c" }]'
    with logged_in(lab) as vcenter:
        plan = plan_of(tmp_path, text)
        assert apply(vcenter, plan).complete
        assert gpus_of(the_vm(vcenter, "a")) == ["vGPU grid_a100d-3-40c"]
        assert plan_changes(vcenter, plan).empty


def test_passthrough_by_address_and_by_model(lab, tmp_path):
    text = """
[defaults.guest]
[vms.one]
host = "DC0_C0_H1"
gpus = [{ kind = "passthrough", device = "0000:d8:00.0" }]
[vms.any]
host = "DC0_C0_H1"
gpus = [{ kind = "passthrough", device = "10de:20b5" }]
"""
    plan = plan_of(tmp_path, text)
    with logged_in(lab) as vcenter:
        changes = plan_changes(vcenter, plan)
        assert changes.problems == ()
        assert apply(vcenter, plan).complete
        assert plan_changes(vcenter, plan).empty
        one, other = the_vm(vcenter, "one"), the_vm(vcenter, "any")
    assert gpus_of(one) == ["passthrough 0000:d8:00.0"]
    assert gpus_of(other) == ["passthrough 0000:3b:00.0"]
    backing = other.gpus[0].backing
    assert (backing.systemId, backing.deviceId, backing.vendorId) == ("simulated", "20b5", 0x10DE)
    assert one.extra[MMIO_SIZE_GIB] == other.extra[MMIO_SIZE_GIB] == "256"


def test_dynamic_directpath_with_a_label(lab, tmp_path):
    text = '[vms.a]\ngpus = [{ kind = "dynamic", devices = ["10de:20b5"], label = "train" }]'
    with logged_in(lab) as vcenter:
        plan = plan_of(tmp_path, text)
        assert apply(vcenter, plan).complete
        made = the_vm(vcenter, "a")
        assert plan_changes(vcenter, plan).empty
        wrong = plan_of(tmp_path, text.replace('"train"', '"trian"'))
        (said,) = plan_changes(vcenter, wrong).problems
    assert gpus_of(made) == ["dynamic passthrough 10de:20b5 labelled 'train'"]
    assert said.startswith("a: label 'trian': no GPU of any host of DC0_C0 has it; did you mean")


def test_all_that_hosts_cannot_give_is_said_at_once(lab, tmp_path):
    text = """
[vms.profile]
gpus = [{ kind = "vgpu", profile = "grid_a100-40c" }]
[vms.device]
gpus = [{ kind = "dynamic", devices = ["10de:2330"] }]
[vms.address]
host = "DC0_C0_H0"
gpus = [{ kind = "passthrough", device = "0000:3b:00.0" }]
[vms.many]
count = 3
gpus = [{ kind = "vgpu", profile = "grid_a100d-80c" }]
[vms.large]
memory_gib = 600
cpus = 200
numa = { nodes = 4 }
[vms.latency]
cpus = 100
latency_sensitivity = "high"
"""
    with logged_in(lab) as vcenter:
        said = plan_changes(vcenter, plan_of(tmp_path, text)).problems
    for start, hint in (
        ("profile: vGPU profile 'grid_a100-40c': not on any host", "did you mean 'grid_a100d-40c'"),
        ("device: dynamic passthrough 10de:2330: there is no such GPU", "10de:20b5, NVIDIA A100"),
        ("address: ", "not active for passthrough"),
        ("many-3: no host has room", "DC0_C0_H0"),
        ("large: memory_gib = 600", "512 GiB"),
        ("large: cpus = 200", "64 cores, 128 threads"),
        ("large: numa.nodes = 4", "(2)"),
        ("latency: cpus = 100: all reserved", "64"),
    ):
        assert any(one.startswith(start) and hint in one for one in said), (start, said)


def test_a_device_that_another_vm_has_is_not_free(lab, tmp_path):
    text = '[vms.a]\nhost = "DC0_C0_H1"\ngpus = [{ kind = "passthrough", device = "10de:20b5" }]'
    with logged_in(lab) as vcenter:
        apply(vcenter, plan_of(tmp_path, text, "name=other", "vms.a.count=2"))
        (said,) = plan_changes(vcenter, plan_of(tmp_path, text.replace("vms.a", "vms.b"))).problems
    assert said.startswith("b: ")
    assert "a-1" in said
    assert "a-2" in said


def test_gpus_of_a_running_vm_change_with_consent(lab, tmp_path):
    text = '[vms.a]\ngpus = [{ kind = "vgpu", profile = "grid_a100d-40c" }]'
    with logged_in(lab) as vcenter:
        apply(vcenter, plan_of(tmp_path, text))
        plan = plan_of(tmp_path, text.replace("40c", "20c"))
        (change,) = plan_changes(vcenter, plan).changes
        assert (change.attribute, change.now, change.wanted, change.power_off) == (
            "gpu 1",
            "vGPU grid_a100d-40c",
            "vGPU grid_a100d-20c",
            True,
        )
        assert "gpu 1 vGPU grid_a100d-40c → vGPU grid_a100d-20c" in apply(vcenter, plan).refused[0]
        assert apply(vcenter, plan, consent_power_off=True).complete
        assert plan_changes(vcenter, plan).empty
        assert the_vm(vcenter, "a").power == "on"
        without = plan_of(tmp_path, "[vms.a]\nmemory_reservation_gib = 'full'")
        assert apply(vcenter, without, consent_power_off=True).complete
        bare = the_vm(vcenter, "a")
    assert bare.gpus == []
    assert MMIO_SIZE_GIB not in bare.extra


def test_latency_sensitivity_reserves_all_of_cpu_and_memory(lab, tmp_path):
    text = '[vms.a]\ncpus = 4\nlatency_sensitivity = "high"'
    with logged_in(lab) as vcenter:
        plan = plan_of(tmp_path, text)
        assert apply(vcenter, plan).complete
        made = the_vm(vcenter, "a")
        assert plan_changes(vcenter, plan).empty
    assert (made.latency_sensitivity, made.cpu_reservation_mhz) == ("high", 4 * 2600)
    assert (made.memory_locked, made.memory_reservation_mib) == (True, 1024)


@pytest.mark.parametrize("api", ["8.0.2.0", "7.0.3.0"])
def test_numa_nodes_on_new_and_old_servers(tmp_path, api):
    text = "[vms.a]\ncpus = 4\nnuma = { nodes = 2 }"
    with Vcsim(api=api) as vcsim, logged_in(vcsim) as vcenter:
        make_template(vcenter)
        vcsim.control(hosts=[{"name": f"DC0_C0_H{n}", **SIZE} for n in range(2)])
        plan = plan_of(tmp_path, text)
        assert apply(vcenter, plan).complete
        made = the_vm(vcenter, "a")
        assert plan_changes(vcenter, plan).empty
        assert apply(
            vcenter, plan_of(tmp_path, "[vms.a]\ncpus = 4"), consent_power_off=True
        ).complete
        assert the_vm(vcenter, "a").cores_per_numa_node == 0
    assert made.cores_per_numa_node == 2
    assert made.numa_setting is (api == "8.0.2.0")


def test_dynamic_directpath_needs_a_new_server(tmp_path):
    text = '[vms.a]\ngpus = [{ kind = "dynamic", devices = ["10de:20b5"] }]'
    with Vcsim(api="6.7.3") as vcsim, logged_in(vcsim) as vcenter:
        make_template(vcenter)
        said = plan_changes(vcenter, plan_of(tmp_path, text)).problems
    assert "a: Dynamic DirectPath needs a vCenter with API 7.0 or newer, this one has 6.7.3" in said
