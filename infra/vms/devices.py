"""Virtual devices of a VM beside those that a plan wants: disks, network adapters and GPUs.

Each function compares and returns edits; an edit knows the device specifications that make it so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, zip_longest
from typing import Any

from pyVmomi import vim

from infra.vms.estate import KIB_PER_GIB, EsxiHost, Net, Store, VmState
from infra.vms.place import Place
from infra.vms.resources import pci_ids
from infra.vms.spec import Disk, Gpu, VmSpec

DeviceSpec = Any
MakeSpecs = Callable[["NewKeys"], list[DeviceSpec]]
Passthrough = vim.vm.device.VirtualPCIPassthrough

_ADD = vim.vm.device.VirtualDeviceSpec.Operation.add
_EDIT = vim.vm.device.VirtualDeviceSpec.Operation.edit
_REMOVE = vim.vm.device.VirtualDeviceSpec.Operation.remove
_SCSI_UNITS = [unit for unit in range(16) if unit != 7]
"""Unit 7 is the controller itself."""


class NewKeys:
    """Keys of devices that are not there yet: negative, unlike in one change."""

    def __init__(self) -> None:
        self._keys = count(-101, -1)
        self.controllers: list[Any] = []
        self.units: dict[int, set[int]] = {}

    def take(self) -> int:
        return next(self._keys)


@dataclass(frozen=True, kw_only=True)
class DeviceEdit:
    """One device that is not as planned."""

    attribute: str
    now: str | None
    wanted: str | None
    power_off: bool
    make: MakeSpecs = field(repr=False, compare=False)


def disks_of(vm: VmState) -> list[Any]:
    """A VM's disks in the order in which a plan counts them."""
    return sorted(
        (one for one in vm.devices if isinstance(one, vim.vm.device.VirtualDisk)),
        key=lambda disk: (disk.controllerKey or 0, disk.unitNumber or 0),
    )


def disk_edits(
    spec: VmSpec, vm: VmState, place: Place, problems: list[str]
) -> Iterator[DeviceEdit]:
    """New and grown disks; a smaller one is a problem, further ones of the VM are left alone."""
    there = disks_of(vm)
    for index, wanted in enumerate(spec.disks):
        name = f"disk {index + 1}"
        if index >= len(there):
            store = place.disk_stores[index]
            yield DeviceEdit(
                attribute=name,
                now=None,
                wanted=f"{wanted.gib} GiB on {store.name}{', thin' if wanted.thin else ''}",
                power_off=False,
                make=_new_disk(vm, wanted, store, name),
            )
            continue
        now_kib = int(there[index].capacityInKB)
        if now_kib > wanted.gib * KIB_PER_GIB:
            problems.append(
                f"{name}: it has {_gib(now_kib)} GiB and the plan wants {wanted.gib}; a disk "
                "cannot shrink"
            )
        elif now_kib < wanted.gib * KIB_PER_GIB:
            yield DeviceEdit(
                attribute=name,
                now=f"{_gib(now_kib)} GiB",
                wanted=f"{wanted.gib} GiB",
                power_off=False,
                make=_grown_disk(there[index], wanted),
            )
        store_now = getattr(there[index].backing, "fileName", "").partition("]")[0].lstrip("[")
        if wanted.datastore and store_now and store_now != wanted.datastore:
            problems.append(
                f"{name}: it lies on {store_now} and the plan wants {wanted.datastore}; apply "
                "moves no disk: use Storage vMotion, or name its store in the plan"
            )


def _gib(kib: int) -> str:
    return f"{kib / KIB_PER_GIB:g}"


def _grown_disk(disk: Any, wanted: Disk) -> MakeSpecs:
    def make(_: NewKeys) -> list[DeviceSpec]:
        disk.capacityInKB = wanted.gib * KIB_PER_GIB
        disk.capacityInBytes = disk.capacityInKB * 1024
        return [vim.vm.device.VirtualDeviceSpec(operation=_EDIT, device=disk)]

    return make


def _new_disk(vm: VmState, wanted: Disk, store: Store, name: str) -> MakeSpecs:
    def make(keys: NewKeys) -> list[DeviceSpec]:
        controller, unit, added = _free_slot(vm, keys)
        backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName=f"[{store.name}]",
            diskMode="persistent",
            thinProvisioned=wanted.thin,
            datastore=store.ref,
        )
        disk = vim.vm.device.VirtualDisk(
            key=keys.take(),
            backing=backing,
            controllerKey=controller,
            unitNumber=unit,
            capacityInKB=wanted.gib * KIB_PER_GIB,
        )
        spec = vim.vm.device.VirtualDeviceSpec(operation=_ADD, device=disk)
        spec.fileOperation = vim.vm.device.VirtualDeviceSpec.FileOperation.create
        return [*added, spec]

    return make


def _free_slot(vm: VmState, keys: NewKeys) -> tuple[int, int, list[DeviceSpec]]:
    """Controller, unit, and the controller's own specification where there was none."""
    controllers = [
        one for one in vm.devices if isinstance(one, vim.vm.device.VirtualSCSIController)
    ]
    for controller in [*controllers, *keys.controllers]:
        used = {one.unitNumber for one in vm.devices if one.controllerKey == controller.key}
        used |= keys.units.setdefault(controller.key, set())
        for unit in _SCSI_UNITS:
            if unit not in used:
                keys.units[controller.key].add(unit)
                return controller.key, unit, []
    added = vim.vm.device.ParaVirtualSCSIController(
        key=keys.take(),
        busNumber=len(controllers) + len(keys.controllers),
        sharedBus=vim.vm.device.VirtualSCSIController.Sharing.noSharing,
    )
    keys.controllers.append(added)
    keys.units[added.key] = {0}
    return added.key, 0, [vim.vm.device.VirtualDeviceSpec(operation=_ADD, device=added)]


def network_edits(vm: VmState, place: Place, names: Mapping[str, str]) -> Iterator[DeviceEdit]:
    """Adapters one by one. ``names``: port group keys of distributed switches to names."""
    there = [one for one in vm.devices if isinstance(one, vim.vm.device.VirtualEthernetCard)]
    for index, (card, net) in enumerate(zip_longest(there, place.networks), start=1):
        now = None if card is None else _card_says(card, names)
        wanted = None if net is None else f"{net.name} (vmxnet3)"
        if now != wanted:
            yield DeviceEdit(
                attribute=f"network {index}",
                now=now,
                wanted=wanted,
                power_off=False,
                make=_card_specs(card, net),
            )


def _card_says(card: Any, names: Mapping[str, str]) -> str:
    kind = type(card).__name__.rpartition(".")[2].removeprefix("Virtual").lower()
    port = getattr(card.backing, "port", None)
    name = names.get(port.portgroupKey, port.portgroupKey) if port else None
    return f"{name or getattr(card.backing, 'deviceName', None) or 'no network'} ({kind})"


def _card_specs(card: Any, net: Net | None) -> MakeSpecs:
    def make(keys: NewKeys) -> list[DeviceSpec]:
        spec = vim.vm.device.VirtualDeviceSpec
        if net is not None and isinstance(card, vim.vm.device.VirtualVmxnet3):
            card.backing = _net_backing(net)
            return [spec(operation=_EDIT, device=card)]
        gone = [] if card is None else [spec(operation=_REMOVE, device=card)]
        if net is None:
            return gone
        fresh = vim.vm.device.VirtualVmxnet3(
            key=keys.take(), backing=_net_backing(net), addressType="generated"
        )
        fresh.connectable = vim.vm.device.VirtualDevice.ConnectInfo(
            startConnected=True, connected=True, allowGuestControl=True
        )
        return [*gone, spec(operation=_ADD, device=fresh)]

    return make


def _net_backing(net: Net) -> Any:
    card = vim.vm.device.VirtualEthernetCard
    if net.portgroup:
        port = vim.dvs.PortConnection(portgroupKey=net.portgroup, switchUuid=net.switch_uuid)
        return card.DistributedVirtualPortBackingInfo(port=port)
    if net.opaque_id:
        return card.OpaqueNetworkBackingInfo(
            opaqueNetworkId=net.opaque_id, opaqueNetworkType=net.opaque_type
        )
    return card.NetworkBackingInfo(deviceName=net.name, network=net.ref)


def gpu_says(device: Any) -> str:
    """A VM's PCI device as a plan would write it."""
    backing = device.backing
    if isinstance(backing, Passthrough.VmiopBackingInfo):
        return f"vGPU {backing.vgpu}"
    if isinstance(backing, Passthrough.DynamicBackingInfo):
        label = f" labelled {backing.customLabel!r}" if backing.customLabel else ""
        return f"dynamic passthrough {', '.join(_allowed(backing))}{label}"
    if isinstance(backing, Passthrough.DeviceBackingInfo):
        return f"passthrough {address_of(backing)}"
    return f"PCI device {getattr(backing, 'deviceName', '') or device.key}"


def _allowed(backing: Any) -> list[str]:
    return [pci_ids(one.vendorId, one.deviceId) for one in backing.allowedDevice or ()]


def address_of(backing: Any) -> str:
    """PCI address of a passed-through device as hosts write it; some servers give decimals."""
    domain, _, rest = str(backing.id).partition(":")
    if len(domain) != 5 or not rest:
        return str(backing.id)
    bus, slot = rest.split(":")
    return f"{int(domain):04x}:{int(bus):02x}:{int(slot.partition('.')[0]):02x}.{slot[-1]}"


def gpu_matches(gpu: Gpu, device: Any) -> bool:
    """Whether a VM's device is one that the plan wants."""
    backing = device.backing
    if gpu.kind == "vgpu":
        return isinstance(backing, Passthrough.VmiopBackingInfo) and backing.vgpu == gpu.profile
    if isinstance(backing, Passthrough.DynamicBackingInfo):
        same = set(_allowed(backing)) == set(gpu.devices)
        return gpu.kind == "dynamic" and same and (backing.customLabel or "") == gpu.label
    if gpu.kind != "passthrough" or not isinstance(backing, Passthrough.DeviceBackingInfo):
        return False
    if gpu.by_address:
        return address_of(backing) == gpu.device
    return pci_ids(backing.vendorId, int(backing.deviceId or "0", 16)) == gpu.device


class FreeDevices:
    """Passed-through devices that are still to be had, host by host."""

    def __init__(self, system_id: Callable[[EsxiHost], str]) -> None:
        self._taken: set[tuple[str, str]] = set()
        self.system_id = system_id

    def take(self, host: str, address: str) -> None:
        self._taken.add((host, address))

    def find(self, host: EsxiHost, gpu: Gpu) -> str | None:
        """Address of a free device for ``gpu``, now taken; None: there is none."""
        for one in host.gpus:
            fits = gpu.device in {one.address, one.device}
            if fits and one.passthrough and (host.name, one.address) not in self._taken:
                self.take(host.name, one.address)
                return one.address
        return None


def gpu_edits(spec: VmSpec, vm: VmState, place: Place, free: FreeDevices) -> Iterator[DeviceEdit]:
    """GPUs to add and remove, in pairs. A device that no host can give is a problem elsewhere."""
    left = list(vm.gpus)
    missing: list[tuple[str, Any]] = []
    for gpu in (one for one in spec.gpus for _ in range(one.count)):
        kept = next((one for one in left if gpu_matches(gpu, one)), None)
        if kept is not None:
            left.remove(kept)
        else:
            missing += _backings(gpu, place, free)
    for index, (gone, fresh) in enumerate(zip_longest(left, missing), start=1):
        yield DeviceEdit(
            attribute=f"gpu {index}",
            now=None if gone is None else gpu_says(gone),
            wanted=None if fresh is None else fresh[0],
            power_off=True,
            make=_gpu_specs(gone, None if fresh is None else fresh[1]),
        )


def _gpu_specs(gone: Any, backing: Any) -> MakeSpecs:
    def make(keys: NewKeys) -> list[DeviceSpec]:
        spec = vim.vm.device.VirtualDeviceSpec
        specs = [] if gone is None else [spec(operation=_REMOVE, device=gone)]
        if backing is not None:
            device = Passthrough(key=keys.take(), backing=backing())
            specs.append(spec(operation=_ADD, device=device))
        return specs

    return make


def _backings(gpu: Gpu, place: Place, free: FreeDevices) -> Iterable[tuple[str, Callable[[], Any]]]:
    if gpu.kind == "vgpu":
        return [(gpu.what, lambda: Passthrough.VmiopBackingInfo(vgpu=gpu.profile))]
    if gpu.kind == "dynamic":
        return [(gpu.what, lambda: _dynamic(gpu))]
    host = place.pinned
    address = None if host is None else free.find(host, gpu)
    if host is None or address is None:
        return []  # said where capacity is looked at
    return [(f"passthrough {address}", lambda: _fixed(host, address, free.system_id(host)))]


def _dynamic(gpu: Gpu) -> Any:
    pairs = [device.split(":") for device in gpu.devices]
    return Passthrough.DynamicBackingInfo(
        deviceName="",
        allowedDevice=[
            Passthrough.AllowedDevice(vendorId=int(vendor, 16), deviceId=int(device, 16))
            for vendor, device in pairs
        ],
        customLabel=gpu.label or None,
    )


def _fixed(host: EsxiHost, address: str, system_id: str) -> Any:
    gpu = next(one for one in host.gpus if one.address == address)
    vendor, device = gpu.device.split(":")
    signed = int(vendor, 16)
    return Passthrough.DeviceBackingInfo(
        deviceName=gpu.name,
        id=address,
        deviceId=device,
        systemId=system_id,
        vendorId=signed - 0x10000 if signed > 0x7FFF else signed,  # the API has a signed short
    )


def device_specs(edits: Sequence[MakeSpecs]) -> list[DeviceSpec]:
    """The specifications of several edits for one reconfiguration."""
    keys = NewKeys()
    return [spec for make in edits for spec in make(keys)]
