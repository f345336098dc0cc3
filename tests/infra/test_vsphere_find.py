"""Which VM this is, found in the simulated vCenter by UUID in both byte orders, or by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from pyVmomi import vim

from infra.vsphere.errors import NoSuchVm
from infra.vsphere.find import VmPlace, _gpus, find_this_vm, find_vms
from infra.vsphere.session import VCenter
from tests.infra.between import Between, fault
from tests.vcsim_server import Vcsim

passthrough = vim.vm.device.VirtualPCIPassthrough


@pytest.fixture
def vcenter(vcsim: Vcsim) -> Iterator[VCenter]:
    with VCenter(vcsim.settings(), environ=vcsim.environ()) as opened:
        yield opened


@pytest.fixture
def own(own_vcsim: Vcsim) -> Iterator[VCenter]:
    with VCenter(own_vcsim.settings(), environ=own_vcsim.environ()) as opened:
        yield opened


def machines(vcenter: VCenter) -> list[tuple[Any, dict[str, Any]]]:
    read = vcenter.retrieve(vim.VirtualMachine, ["name", "config.uuid", "config.instanceUuid"])
    return sorted(read, key=lambda one: str(one[1]["name"]))


def finished(vcenter: VCenter, task: Any) -> None:
    for _ in range(100):
        if task.info.state in {"success", "error"}:
            break
    assert task.info.state == "success", task.info.error


@pytest.mark.needs("go")
def test_finds_itself_in_both_byte_orders(vcenter: VCenter) -> None:
    vm, known = machines(vcenter)[1]
    uuid = UUID(known["config.uuid"])
    swapped = UUID(bytes_le=uuid.bytes)
    assert swapped != uuid
    for form in (str(uuid), str(uuid).upper(), str(swapped)):
        place = find_this_vm(vcenter, form)
        assert (place.vm, place.moid) == (known["name"], vm._GetMoId())
    assert find_vms(vcenter, [known["config.instanceUuid"]]) == [place]


@pytest.mark.needs("go")
def test_says_what_the_vm_stands_on(vcenter: VCenter) -> None:
    names = [known["name"] for _, known in machines(vcenter)][:2]
    places = find_vms(vcenter, names[::-1])
    assert [place.vm for place in places] == names[::-1]
    for place in places:
        assert place.esxi_host.startswith("DC0_")
        assert place.datacenter == "DC0"
        assert place.resource_pool
        assert place.datastores == ("LocalDS_0",)
        assert place.vcpus >= 1
        assert place.memory_bytes >= 1 << 20
        assert place.host_cpu_mhz is not None
        assert place.host_cores is not None
        assert place.host_power_policy == "balanced"
        assert place.vcenter_version.startswith("8.0.2")
        assert VmPlace.from_json(json.loads(json.dumps(place.to_json()))) == place
    assert {place.cluster for place in find_vms(vcenter, ["DC0_C0_RP0_VM0"])} == {"DC0_C0"}


@pytest.mark.needs("go")
def test_an_override_goes_before_the_uuid(vcenter: VCenter) -> None:
    (_, first), (_, second) = machines(vcenter)[:2]
    assert find_this_vm(vcenter, first["config.uuid"], second["name"]).vm == second["name"]
    assert find_this_vm(vcenter, None, second["config.uuid"]).vm == second["name"]


@pytest.mark.needs("go")
@pytest.mark.parametrize(
    ("uuid", "override", "said"),
    [
        (None, "", "chmod a[+]r /sys/class/dmi/id/product_uuid"),
        ("Not Settable", "", "vcenter.vm"),
        ("564d1234-aaaa-bbbb-cccc-0123456789ab", "", "no VM with the UUID .*Read-only"),
        (None, "DC0_C0_RP0_VM", "did you mean DC0_C0_RP0_VM"),
    ],
)
def test_a_vm_that_cannot_be_found_is_said_with_the_way_out(
    vcenter: VCenter, uuid: str | None, override: str, said: str
) -> None:
    with pytest.raises(LookupError, match=said):
        find_this_vm(vcenter, uuid, override)


@pytest.mark.needs("go")
def test_all_that_cannot_be_found_is_said_at_once(vcenter: VCenter) -> None:
    near = "DC0_C0_RP0_VM0"
    with pytest.raises(
        NoSuchVm, match=rf"named a1 .*named {near}x .*did you mean {near}"
    ) as raised:
        find_vms(vcenter, ["a1", near, f"{near}x"])
    assert raised.value.vms == (near,)


@pytest.mark.needs("go")
def test_copies_that_kept_the_uuid_are_told_apart_by_instance(own: VCenter) -> None:
    (_, first), (copy, second) = machines(own)[:2]
    finished(own, copy.ReconfigVM_Task(vim.vm.ConfigSpec(uuid=first["config.uuid"])))
    with pytest.raises(NoSuchVm, match="2 VMs have the UUID") as raised:
        find_this_vm(own, first["config.uuid"])
    assert second["config.instanceUuid"] in str(raised.value)
    assert set(raised.value.vms) == {first["name"], second["name"]}
    assert find_this_vm(own, None, second["config.instanceUuid"]).moid == copy._GetMoId()


@pytest.mark.needs("go")
def test_a_name_with_a_slash_is_found_as_people_write_it(own: VCenter) -> None:
    vm = machines(own)[0][0]
    finished(own, vm.Rename_Task("train%2fnode 1"))
    assert find_vms(own, ["train/node 1"])[0].vm == "train/node 1"


@pytest.mark.needs("go")
def test_one_question_per_kind_and_not_per_vm(vcsim: Vcsim, vcenter: VCenter) -> None:
    names = [known["name"] for _, known in machines(vcenter)]
    find_vms(vcenter, names[:1])
    before = vcsim.counts["calls"]
    find_vms(vcenter, names[:1])
    one = vcsim.counts["calls"] - before
    find_vms(vcenter, names)
    assert vcsim.counts["calls"] - before - one <= one + 2  # DC0's hosts may lie deeper than one's


@pytest.mark.needs("go")
def test_what_may_not_be_read_is_unknown_and_not_zero(vcsim: Vcsim) -> None:
    with (
        Between(vcsim) as between,
        VCenter(vcsim.settings(port=between.port), environ=vcsim.environ()) as vcenter,
    ):
        name = machines(vcenter)[0][1]["name"]
        refuse = fault("NoPermissionFault")
        between.spoil["RetrievePropertiesEx"] = lambda handler, body: (
            b"HostSystem</type>" in body and refuse(handler, body)
        )
        place = find_vms(vcenter, [name])[0]
        assert place.esxi_host == place.host_moid
        assert (place.host_cores, place.host_cpu_mhz, place.cluster) == (None, None, None)
        assert (place.host_power_policy, place.esxi_version) == (None, None)


def test_gpus_are_named_by_how_they_are_given() -> None:
    dynamic = passthrough.DynamicBackingInfo(
        allowedDevice=[passthrough.AllowedDevice(vendorId=0x10DE, deviceId=0x20B5)],
        customLabel="big",
    )
    backings = [
        passthrough.VmiopBackingInfo(vgpu="grid_a100-40c"),
        dynamic,
        passthrough.DeviceBackingInfo(id="0000:3b:00.0", vendorId=0x10DE),
        passthrough.DeviceBackingInfo(id="0000:5e:00.0", vendorId=0x8086 - 0x10000),
    ]
    devices = [vim.vm.device.VirtualE1000(), *(passthrough(backing=one) for one in backings)]
    assert list(_gpus(devices)) == [
        "vGPU grid_a100-40c",
        "dynamic passthrough 10de:20b5 (big)",
        "passthrough 0000:3b:00.0",
    ]
