"""Virtual machines of the simulated vCenter: made, changed, cloned, removed by real pyVmomi."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.vcsim_client import connected, done, find
from tests.vcsim_server import Vcsim

pytestmark = pytest.mark.needs("go")

SPEC, DEVICE = vim.vm.ConfigSpec, vim.vm.device


@pytest.fixture(scope="module")
def server() -> Iterator[Vcsim]:
    """One for this module, whose inventory its tests change, each its own part."""
    with Vcsim(machines=8, hosts=2) as server:
        yield server


@pytest.fixture
def service(server: Vcsim) -> Iterator[Any]:
    server.control(reset=True)
    with connected(server) as service:
        yield service


def machine(service: Any, number: int) -> Any:
    return find(service, vim.VirtualMachine, f"DC0_C0_RP0_VM{number}")


def extra(vm: Any) -> dict[str, str]:
    return {one.key: one.value for one in vm.config.extraConfig if one.key != "govcsim"}


def options(**values: str) -> list[Any]:
    return [vim.option.OptionValue(key=key, value=value) for key, value in values.items()]


def passthrough(backing: Any) -> Any:
    device = DEVICE.VirtualPCIPassthrough(key=-1, backing=backing)
    return DEVICE.VirtualDeviceSpec(operation="add", device=device)


def read(service: Any, one: Any, path: str) -> Any:
    query = vmodl.query.PropertyCollector
    spec = query.FilterSpec(
        objectSet=[query.ObjectSpec(obj=one)],
        propSet=[query.PropertySpec(type=type(one), pathSet=["name", path])],
    )
    found = service.content.propertyCollector.RetrievePropertiesEx([spec], query.RetrieveOptions())
    return {read.name: read.val for read in found.objects[0].propSet}[path]


def _disks(vm: Any) -> dict[int, str]:
    return {
        device.key: device.backing.fileName
        for device in vm.config.hardware.device
        if isinstance(device, DEVICE.VirtualDisk)
    }


class TestTasks:
    def test_creates_changes_and_destroys_a_vm(self, service: Any) -> None:
        cluster = find(service, vim.ClusterComputeResource, "DC0_C0")
        folder = find(service, vim.Datacenter, "DC0").vmFolder
        spec = SPEC(
            name="made",
            numCPUs=4,
            memoryMB=2048,
            firmware="efi",
            files=vim.vm.FileInfo(vmPathName="[LocalDS_1]"),
            extraConfig=options(mark="plan"),
            cpuAllocation=vim.ResourceAllocationInfo(reservation=100),
            memoryReservationLockedToMax=True,
        )
        host = find(service, vim.HostSystem, "DC0_C0_H1")
        vm = done(folder.CreateVM_Task(spec, cluster.resourcePool, host))
        assert vm.runtime.host == host
        assert (vm.config.firmware, extra(vm)) == ("efi", {"mark": "plan"})
        assert vm.config.cpuAllocation.reservation == 100
        assert vm.config.cpuAllocation.shares.level == "normal"
        done(vm.PowerOn())
        with pytest.raises(vim.fault.InvalidPowerState):
            done(vm.Destroy())
        done(vm.PowerOff())
        done(vm.Destroy())
        assert "made" not in {one.name for one in folder.childEntity}

    def test_extra_config_is_replaced_and_removed_by_key(self, service: Any) -> None:
        vm = machine(service, 3)
        done(vm.Reconfigure(SPEC(extraConfig=options(a="1", b="2"))))
        done(vm.Reconfigure(SPEC(extraConfig=options(a="3", b="", c="4"))))
        assert extra(vm) == {"a": "3", "c": "4"}
        assert read(service, vm, 'config.extraConfig["c"]').value == "4"

    def test_an_allocation_keeps_what_is_not_named(self, service: Any) -> None:
        vm = machine(service, 3)
        share = vim.SharesInfo(level="high", shares=4000)
        done(vm.Reconfigure(SPEC(memoryAllocation=vim.ResourceAllocationInfo(shares=share))))
        done(vm.Reconfigure(SPEC(memoryAllocation=vim.ResourceAllocationInfo(reservation=16))))
        kept = vm.config.memoryAllocation
        assert (kept.reservation, kept.shares.level, kept.limit) == (16, "high", -1)

    @pytest.mark.parametrize(
        "backing",
        [
            DEVICE.VirtualPCIPassthrough.VmiopBackingInfo(vgpu="grid_a100-40c"),
            DEVICE.VirtualPCIPassthrough.DynamicBackingInfo(
                deviceName="",
                customLabel="gpu-l40s",
                allowedDevice=[
                    DEVICE.VirtualPCIPassthrough.AllowedDevice(vendorId=0x10DE, deviceId=0x26B9)
                ],
            ),
            DEVICE.VirtualPCIPassthrough.DeviceBackingInfo(
                deviceName="L40S",
                id="0000:af:00.0",
                deviceId="26b9",
                systemId="simulated",
                vendorId=0x10DE,
            ),
        ],
        ids=["vgpu", "dynamic", "passthrough"],
    )
    def test_keeps_a_gpu_and_takes_it_only_when_off(self, service: Any, backing: Any) -> None:
        vm = machine(service, 4)
        if vm.runtime.powerState == "poweredOn":
            with pytest.raises(vim.fault.InvalidPowerState):
                done(vm.Reconfigure(SPEC(deviceChange=[passthrough(backing)])))
            done(vm.PowerOff())
        done(vm.Reconfigure(SPEC(deviceChange=[passthrough(backing)])))
        found = [
            d for d in vm.config.hardware.device if isinstance(d, DEVICE.VirtualPCIPassthrough)
        ]
        assert [type(one.backing) for one in found] == [type(backing)]
        if hasattr(backing, "allowedDevice"):
            assert found[0].backing.allowedDevice[0].deviceId == 0x26B9
        remove = DEVICE.VirtualDeviceSpec(operation="remove", device=found[0])
        done(vm.Reconfigure(SPEC(deviceChange=[remove])))

    def test_a_running_vm_refuses_what_needs_it_off(self, service: Any) -> None:
        vm = machine(service, 5)
        for spec in (SPEC(numCPUs=16), SPEC(memoryMB=8192), SPEC(firmware="efi")):
            with pytest.raises(vim.fault.InvalidPowerState):
                done(vm.Reconfigure(spec))
        done(vm.Reconfigure(SPEC(annotation="may be changed")))

    def test_a_clone_has_its_templates_disks_and_settings_and_the_specs(
        self, server: Vcsim, service: Any
    ) -> None:
        server.control(
            vms=[
                {
                    "name": "DC0_C0_RP0_VM6",
                    "rename": "debian12",
                    "power": "Off",
                    "firmware": "efi",
                    "template": True,
                    "extra_config": {"kept": "yes", "changed": "no"},
                }
            ]
        )
        template = find(service, vim.VirtualMachine, "debian12")
        disks = _disks(template)
        cluster = find(service, vim.ClusterComputeResource, "DC0_C0")
        host = find(service, vim.HostSystem, "DC0_C0_H1")
        store = find(service, vim.Datastore, "LocalDS_1")
        location = vim.vm.RelocateSpec(pool=cluster.resourcePool, host=host, datastore=store)
        numa = vim.vm.VirtualNuma(coresPerNumaNode=4)
        config = SPEC(
            numCPUs=8, memoryMB=4096, extraConfig=options(changed="yes"), virtualNuma=numa
        )
        spec = vim.vm.CloneSpec(location=location, config=config, powerOn=False, template=False)
        for name in ("first", "second"):
            clone = done(template.Clone(template.parent, name, spec))
            assert (clone.name, clone.runtime.host, clone.config.template) == (name, host, False)
            assert (clone.config.hardware.numCPU, clone.config.hardware.memoryMB) == (8, 4096)
            assert (clone.config.firmware, clone.config.uuid) != ("bios", template.config.uuid)
            assert extra(clone) == {"kept": "yes", "changed": "yes"}
            assert read(service, clone, "config.numaInfo").coresPerNumaNode == 4
            (disk,) = _disks(clone).values()
            assert disk.startswith(f"[LocalDS_1] {name}/")
        assert _disks(template) == disks
        assert [one.name for one in clone.datastore] == ["LocalDS_1"]

    def test_a_disk_grows_and_another_is_added(self, service: Any) -> None:
        vm = machine(service, 7)
        (disk,) = [d for d in vm.config.hardware.device if isinstance(d, DEVICE.VirtualDisk)]
        disk.capacityInKB = 4 << 20
        disk.deviceInfo = None
        backing = DEVICE.VirtualDisk.FlatVer2BackingInfo(diskMode="persistent", fileName="")
        second = DEVICE.VirtualDisk(
            key=-2,
            backing=backing,
            controllerKey=disk.controllerKey,
            unitNumber=5,
            capacityInKB=2 << 20,
        )
        grow = DEVICE.VirtualDeviceSpec(operation="edit", device=disk)
        add = DEVICE.VirtualDeviceSpec(operation="add", fileOperation="create", device=second)
        done(vm.Reconfigure(SPEC(deviceChange=[grow, add])))
        sizes = [
            d.capacityInKB >> 20
            for d in vm.config.hardware.device
            if isinstance(d, DEVICE.VirtualDisk)
        ]
        assert sorted(sizes) == [2, 4]

    def test_what_the_simulator_stumbles_over_is_a_failed_task(self, service: Any) -> None:
        vm = machine(service, 7)
        card = DEVICE.VirtualVmxnet3(
            key=-1, backing=DEVICE.VirtualEthernetCard.NetworkBackingInfo(deviceName="no such net")
        )
        change = DEVICE.VirtualDeviceSpec(operation="add", device=card)
        with pytest.raises(vim.fault.GenericVmConfigFault):
            done(vm.Reconfigure(SPEC(deviceChange=[change])))
        done(vm.Reconfigure(SPEC(annotation="still there")))

    def test_the_task_that_shall_fail_fails(self, server: Vcsim, service: Any) -> None:
        vm = machine(service, 5)
        rule = {"method": "ReconfigVM_Task", "fault": "InsufficientMemoryResourcesFault"}
        server.control(fail_tasks=[{**rule, "skip": 1}])
        done(vm.Reconfigure(SPEC(annotation="first")))
        with pytest.raises(vim.fault.InsufficientMemoryResourcesFault):
            done(vm.Reconfigure(SPEC(annotation="second")))
        assert vm.config.annotation == "first"
        done(vm.Reconfigure(SPEC(annotation="third")))

    def test_a_slow_task_shows_progress_and_goes_on_without_its_client(
        self, server: Vcsim, service: Any
    ) -> None:
        server.control(task_s=4.0)
        with connected(server) as second:
            vm = machine(second, 5)
            task = vm.PowerOff()
            shown: Any = None
            while not shown:  # None before it runs, and 0 in its first tenth
                time.sleep(0.02)
                state, shown = task.info.state, task.info.progress
                assert state in {"queued", "running"}
            assert 0 < shown < 100
            assert vm.runtime.powerState == "poweredOn"
        vm = machine(service, 5)
        deadline_s = time.monotonic() + 20.0
        while vm.runtime.powerState != "poweredOff":
            assert time.monotonic() < deadline_s, "the task ended with its client"
            time.sleep(0.1)
        with pytest.raises(vim.fault.InvalidPowerState):
            done(vm.PowerOff())
        done(vm.PowerOn())
