"""The simulated vCenter's hosts, GPUs, virtual machines and tasks, asked by real pyVmomi."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from pyVmomi import vim

from tests.vcsim_client import HOST, VM, at, connected, find, grid, series
from tests.vcsim_server import Vcsim

pytestmark = pytest.mark.needs("go")

A100 = {
    "pci": "0000:3b:00.0",
    "name": "NVIDIA A100-PCIE-40GB",
    "device_id": 0x20F1,
    "memory_gib": 40,
    "graphics": "sharedDirect",
    "profiles": ["grid_a100-10c", "grid_a100-40c"],
    "numa_node": 1,
}
L40S = {
    "pci": "0000:af:00.0",
    "name": "NVIDIA L40S",
    "device_id": 0x26B9,
    "memory_gib": 48,
    "graphics": "basic",
    "passthrough": True,
    "label": "gpu-l40s",
}


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


class TestHosts:
    def test_a_vm_gets_the_uuid_of_this_machine(self, server: Vcsim, service: Any) -> None:
        ours = str(uuid.uuid4())
        server.control(vms=[{"name": VM, "uuid": ours, "cpus": 8, "memory_mb": 4096}])
        vm = service.content.searchIndex.FindByUuid(None, ours, True)
        assert vm.name == VM
        index = service.content.searchIndex
        assert [one.name for one in index.FindAllByUuid(None, ours.upper(), True)] == [VM]
        assert index.FindAllByUuid(None, vm.config.instanceUuid, True, True) == [vm]
        assert list(index.FindAllByUuid(None, str(uuid.uuid4()), True)) == []
        server.control(vms=[{"name": "DC0_C0_RP0_VM1", "uuid": ours}])
        assert len(index.FindAllByUuid(None, ours, True)) == 2
        assert (vm.config.hardware.numCPU, vm.summary.config.memorySizeMB) == (8, 4096)

    def test_size_numa_and_power_policy_of_a_host(self, server: Vcsim, service: Any) -> None:
        wanted = {"cores": 64, "sockets": 2, "mhz": 2900, "memory_gib": 1024, "numa_nodes": 2}
        change = {"name": HOST, **wanted, "power_policy": "High Performance", "version": "8.0.3"}
        server.control(hosts=[{**change, "gpus": [A100]}])
        host = find(service, vim.HostSystem, HOST)
        assert host.summary.hardware.numCpuCores == 64
        assert host.hardware.memorySize == 1024 << 30
        assert [list(node.pciId) for node in host.hardware.numaInfo.numaNode] == [[], [A100["pci"]]]
        assert len(host.hardware.numaInfo.numaNode[1].cpuID) == 64
        assert host.config.powerSystemInfo.currentPolicy.shortName == "High Performance"
        assert host.config.product.version == "8.0.3"

    def test_two_hosts_have_different_gpus(self, server: Vcsim, service: Any) -> None:
        server.control(
            hosts=[{"name": HOST, "gpus": [A100]}, {"name": "DC0_C0_H1", "gpus": [L40S]}]
        )
        first = find(service, vim.HostSystem, HOST)
        second = find(service, vim.HostSystem, "DC0_C0_H1")
        assert list(first.config.sharedPassthruGpuTypes) == A100["profiles"]
        assert first.config.graphicsInfo[0].graphicsType == "sharedDirect"
        assert first.config.graphicsInfo[0].memorySizeInKB == 40 << 20
        assert first.config.sharedGpuCapabilities[1].vgpu == "grid_a100-40c"
        assert second.config.pciPassthruInfo[0].passthruActive
        assert second.config.pciPassthruInfo[0].hardwareLabel == "gpu-l40s"
        (device,) = [d for d in second.hardware.pciDevice if d.id == L40S["pci"]]
        assert (device.vendorId, device.deviceId) == (0x10DE, 0x26B9)

    def test_the_config_target_offers_what_the_hosts_have(
        self, server: Vcsim, service: Any
    ) -> None:
        server.control(
            hosts=[{"name": HOST, "gpus": [A100]}, {"name": "DC0_C0_H1", "gpus": [L40S]}]
        )
        cluster = find(service, vim.ClusterComputeResource, "DC0_C0")
        target = cluster.environmentBrowser.QueryConfigTarget(None)
        assert [one.vgpu for one in target.sharedGpuPassthroughTypes] == A100["profiles"]
        assert [one.pciDevice.id for one in target.pciPassthrough] == [L40S["pci"]]
        (dynamic,) = target.dynamicPassthrough
        assert (dynamic.deviceId, dynamic.customLabel) == (0x26B9, "gpu-l40s")
        assert len(target.datastore) == 2
        only = cluster.environmentBrowser.QueryConfigTarget(find(service, vim.HostSystem, HOST))
        assert list(only.pciPassthrough) == []

    def test_gpu_counters_have_an_instance_for_each_gpu(self, server: Vcsim, service: Any) -> None:
        host, end = find(service, vim.HostSystem, HOST), grid(time.time()) - 60
        steps = [[0, end, 9000]]
        server.control(
            hosts=[{"name": HOST, "gpus": [A100]}],
            truth=[{"entity": HOST, "counter": "gpu.utilization.average", "steps": steps}],
        )
        found = series(
            service, host, "gpu.utilization.average", "*", start=end - 20, endTime=at(end)
        )
        assert found == [(end, 9000)]

    def test_a_datastore_has_the_room_that_it_is_told(self, server: Vcsim, service: Any) -> None:
        server.control(datastores=[{"name": "LocalDS_1", "capacity_gib": 100, "free_gib": 7}])
        store = find(service, vim.Datastore, "LocalDS_1")
        assert (store.summary.capacity, store.summary.freeSpace) == (100 << 30, 7 << 30)
        store.RefreshDatastore()
        assert store.summary.freeSpace == 7 << 30


class TestMoves:
    def test_a_vm_moves_and_its_samples_go_on_by_the_new_hosts_clock(
        self, server: Vcsim, service: Any
    ) -> None:
        vm, end = machine(service, 1), grid(time.time()) - 60
        before = vm.runtime.host.name
        other = {"DC0_C0_H0": "DC0_C0_H1", "DC0_C0_H1": "DC0_C0_H0"}[before]
        server.control(
            stamp_skew_s={other: 7}, move=[{"vm": vm.name, "to": other, "at_s": end - 30}]
        )
        assert vm.runtime.host.name == vm.summary.runtime.host.name == other
        assert vm in vm.runtime.host.vm
        found = series(service, vm, "cpu.usage.average", start=end - 80, endTime=at(end))
        assert [stamp for stamp, _ in found] == [end - 60, end - 40, end - 20, end]
        server.control(move=[{"vm": vm.name, "to": before, "at_s": end - 10, "forget": True}])
        found = series(service, vm, "cpu.usage.average", start=end - 80, endTime=at(end))
        assert [stamp for stamp, _ in found] == [end]

    def test_a_move_leaves_an_event_at_its_time(self, server: Vcsim, service: Any) -> None:
        vm, when = machine(service, 2), time.time() - 100
        before = vm.runtime.host.name
        other = {"DC0_C0_H0": "DC0_C0_H1", "DC0_C0_H1": "DC0_C0_H0"}[before]
        server.control(move=[{"vm": vm.name, "to": other, "at_s": when}])
        spec = vim.event.EventFilterSpec
        by_vm = spec.ByEntity(entity=vm, recursion=spec.RecursionOption.self)

        def events(since: float) -> list[Any]:
            by_time = spec.ByTime(beginTime=at(since))
            return list(
                service.content.eventManager.QueryEvents(
                    spec(entity=by_vm, time=by_time, eventTypeId=["DrsVmMigratedEvent"])
                )
            )

        (event,) = events(when - 5)
        assert event.createdTime.timestamp() == pytest.approx(when, abs=0.01)
        assert (event.sourceHost.name, event.host.name) == (before, other)
        assert events(when + 5) == []

    def test_a_lost_host_posts_nothing(self, server: Vcsim, service: Any) -> None:
        host, since = find(service, vim.HostSystem, "DC0_C0_H1"), grid(time.time()) - 100
        lost = {"name": host.name, "connection": "notResponding", "at_s": since}
        server.control(hosts=[lost])
        assert host.runtime.connectionState == "notResponding"
        found = series(service, host, "cpu.usage.average", start=since - 40)
        assert [stamp for stamp, _ in found] == [since - 20, since]
        server.control(hosts=[{"name": host.name, "connection": "connected"}])
        assert len(series(service, host, "cpu.usage.average", start=since - 40)) > 2


def test_an_older_server_speaks_an_older_api() -> None:
    with Vcsim(api="7.0.3.0", machines=1) as old, connected(old) as service:
        assert service.content.about.apiVersion == "7.0.3.0"
        assert service.content.about.version == "7.0.3"


def test_light_vms_are_found_and_have_samples_of_their_own() -> None:
    with Vcsim(light=300, machines=1) as many, connected(many) as service:
        vm = service.content.searchIndex.FindByUuid(
            None, "4217a1b2-0000-4000-8000-00000000012b", True
        )
        assert vm.name == "light-00299"
        end = grid(time.time()) - 60
        mine = series(service, vm, "cpu.used.summation", start=end - 60, endTime=at(end))
        other = find(service, vim.VirtualMachine, "light-00000")
        assert mine != series(service, other, "cpu.used.summation", start=end - 60, endTime=at(end))
        assert len(vm.runtime.host.vm) >= 300
