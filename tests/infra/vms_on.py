"""A simulated vCenter with a template on it, and plans for it: what the tests of VMs share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyVmomi import vim

from infra.vms.resources import VmState, read_estate, with_hardware
from infra.vms.spec import MARK_INSTANCE, VmPlan, read_plan
from infra.vsphere.session import VCenter
from tests.vcsim_server import Vcsim

TEMPLATE = "DC0_C0_RP0_VM0"
FOREIGN = "DC0_C0_RP0_VM1"
HEAD = f"""
name = "stagescope"
[vcenter]
host = "127.0.0.1"
[defaults]
cluster = "DC0_C0"
datastore = "LocalDS_0"
template = "{TEMPLATE}"
cpus = 1
memory_gib = 1
networks = ["VM Network"]
"""


@contextmanager
def logged_in(vcsim: Vcsim, *, reader: bool = False, **settings: Any) -> Iterator[VCenter]:
    with VCenter(vcsim.settings(**settings), environ=vcsim.environ(reader=reader)) as vcenter:
        yield vcenter


def plan_of(folder: Path, text: str, *overrides: str, head: str = HEAD) -> VmPlan:
    path = folder / "vms.toml"
    path.write_text(head + text)
    return read_plan(path, overrides)


def wait(task: Any) -> Any:
    """The result of a task; its fault is raised."""
    while task.info.state in {"queued", "running"}:
        pass
    if task.info.state == "error":
        raise task.info.error
    return task.info.result


def make_template(vcenter: VCenter) -> None:
    vm = the_vm(vcenter, TEMPLATE)
    if not vm.template:
        wait(vm.ref.PowerOffVM_Task())
        vm.ref.MarkAsTemplate()


def every_vm(vcenter: VCenter) -> Sequence[VmState]:
    return with_hardware(vcenter, read_estate(vcenter).vms)


def the_vm(vcenter: VCenter, name: str) -> VmState:
    (vm,) = (vm for vm in every_vm(vcenter) if vm.name == name)
    return vm


def picture(vcenter: VCenter) -> dict[str, Any]:
    """What there is, without what is another at each making: ids, times, addresses."""
    return {vm.name: _picture(vm) for vm in every_vm(vcenter)}


def _picture(vm: VmState) -> dict[str, Any]:
    extra = {key: value for key, value in vm.extra.items() if key != MARK_INSTANCE}
    return {
        "host": vm.host,
        "folder": vm.folder,
        "power": vm.power,
        "template": vm.template,
        "cpus": vm.cpus,
        "memory": (vm.memory_mib, vm.memory_locked, vm.memory_reservation_mib),
        "cpu_reservation_mhz": vm.cpu_reservation_mhz,
        "latency": vm.latency_sensitivity,
        "firmware": vm.firmware,
        "extra": extra,
        "devices": sorted(_device(one) for one in vm.devices),
    }


def _device(device: Any) -> str:
    said = type(device).__name__
    if isinstance(device, vim.vm.device.VirtualDisk):
        return f"{said} {device.capacityInKB} {device.controllerKey} {device.unitNumber}"
    backing = getattr(device, "backing", None)
    return f"{said} {getattr(backing, 'deviceName', '')} {getattr(backing, 'vgpu', '')}"
