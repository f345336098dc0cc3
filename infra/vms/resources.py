"""What a vCenter has: its hosts with their GPUs, stores, networks and VMs, read in a few sweeps.

Nothing is asked object by object: one PropertyCollector call for each kind of object, and the dear
properties (PCI devices, virtual hardware) only of the hosts and VMs that matter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pyVmomi import vim, vmodl

from infra.vms.estate import (
    KIB_PER_GIB,
    Cluster,
    Estate,
    EsxiHost,
    HostGpu,
    Net,
    Ref,
    Store,
    VmState,
)
from infra.vms.spec import GPU_MEMORY_GIB, MARK_INSTANCE, MARK_PLAN, MARK_VM

if TYPE_CHECKING:
    from infra.vsphere.session import VCenter

__all__ = [
    "Estate",
    "EsxiHost",
    "VmState",
    "api_version",
    "pci_ids",
    "read_estate",
    "with_hardware",
    "with_memory",
]

_DISPLAY, _ACCELERATOR = 0x03, 0x12
"""PCI base classes of GPUs."""

_OWNER = ("name", "resourcePool", "environmentBrowser", "host", "configurationEx")
_HOST = (
    "name",
    "parent",
    "runtime.connectionState",
    "runtime.inMaintenanceMode",
    "summary.hardware.numCpuCores",
    "summary.hardware.numCpuThreads",
    "summary.hardware.cpuMhz",
    "summary.hardware.memorySize",
    "datastore",
    "network",
)
_HOST_DEVICES = (
    "hardware.numaInfo",
    "hardware.pciDevice",
    "config.pciPassthruInfo",
    "config.graphicsInfo",
    "config.sharedPassthruGpuTypes",
)
_PORTGROUP = ("name", "parent", "key", "config.distributedVirtualSwitch", "tag")
_VM = ("name", "parent", "runtime.host", "runtime.powerState", "resourcePool", "config.template")
_VM_HARDWARE = (
    "config.instanceUuid",
    "config.changeVersion",
    "config.annotation",
    "config.firmware",
    "config.hardware.numCPU",
    "config.hardware.numCoresPerSocket",
    "config.hardware.memoryMB",
    "config.hardware.device",
    "config.cpuAllocation",
    "config.memoryAllocation",
    "config.memoryReservationLockedToMax",
    "config.latencySensitivity",
    "config.extraConfig",
    "config.files.vmPathName",
)
_VM_MEMORY = (
    "config.hardware.numCPU",
    "config.hardware.memoryMB",
    "config.memoryAllocation",
    "config.memoryReservationLockedToMax",
)
_VIRTUAL_NUMA, _VIRTUAL_NUMA_SINCE = "config.numaInfo", (8, 0)

_PROBED = 10
"""VMs among which one with an extraConfig is looked for."""


def read_estate(vcenter: VCenter, *, clusters: Collection[str] = ()) -> Estate:
    """Read the estate; GPUs and NUMA nodes of the hosts in these clusters (or of these hosts)."""
    tree = _Tree(vcenter)
    hosts = vcenter.retrieve(vim.HostSystem, _HOST)
    owners = vcenter.retrieve(
        vim.ComputeResource,
        ("name", "resourcePool", "environmentBrowser", "host", "configurationEx"),
    )
    named = {_key(ref): row["name"] for ref, row in owners}
    near = [
        ref
        for ref, row in hosts
        if named.get(_key(row.get("parent"))) in clusters or row["name"] in clusters
    ]
    devices = {_key(ref): row for ref, row in vcenter.read(near, _HOST_DEVICES)}
    rows = {_key(ref): {**row, **devices.get(_key(ref), {})} for ref, row in hosts}
    return Estate(
        api=api_version(vcenter),
        datacenters={tree.names[key]: ref for key, ref in tree.vm_folders.items()},
        clusters=tuple(_cluster(ref, row, rows, tree) for ref, row in owners),
        datastores=tree.stores,
        networks=tree.networks,
        folders=tree.folders,
        pools=_pools(vcenter, named),
        vms=_vms(vcenter, tree, {_key(ref): row for ref, row in hosts}, named),
    )


def api_version(vcenter: VCenter) -> tuple[int, ...]:
    """The server's API version, (8, 0, 1, 0)."""
    return tuple(
        int(part) for part in vcenter.content.about.apiVersion.split(".") if part.isdigit()
    )


def with_hardware(vcenter: VCenter, vms: Sequence[VmState]) -> list[VmState]:
    """These VMs with their configuration, read in one sweep."""
    new = api_version(vcenter) >= _VIRTUAL_NUMA_SINCE
    paths = (*_VM_HARDWARE, _VIRTUAL_NUMA) if new else _VM_HARDWARE
    rows = vcenter.read([vm.ref for vm in vms], paths)
    found = {_key(ref): row for ref, row in rows}
    return [
        replace(
            vm,
            config=found[_key(vm.ref)],
            extra=_extra(found[_key(vm.ref)].get("config.extraConfig")),
        )
        for vm in vms
        if _key(vm.ref) in found
    ]


def with_memory(vcenter: VCenter, vms: Sequence[VmState]) -> list[VmState]:
    """These VMs with what they reserve, and no more: of many it is a small part of the rest."""
    found = {_key(ref): row for ref, row in vcenter.read([vm.ref for vm in vms], _VM_MEMORY)}
    return [replace(vm, config=found[_key(vm.ref)]) for vm in vms if _key(vm.ref) in found]


def _extra(options: Iterable[Any] | None) -> dict[str, str]:
    # A key without a value is one that was taken out: the server forgets it when it likes.
    said = {one.key: str(one.value) for one in options or ()}
    return {key: value for key, value in said.items() if value}


def _key(ref: Ref) -> str:
    return "" if ref is None else str(ref._GetMoId())


class _Tree:
    """Datacenters, folders, stores and networks: what has a place by the chain of its parents."""

    def __init__(self, vcenter: VCenter) -> None:
        self.names: dict[str, str] = {}
        self.parents: dict[str, str] = {}
        self.vm_folders: dict[str, Ref] = {}
        for ref, row in vcenter.retrieve(vim.Datacenter, ("name", "parent", "vmFolder")):
            self._put(ref, row)
            self.vm_folders[_key(ref)] = row["vmFolder"]
        folders = vcenter.retrieve(vim.Folder, ("name", "parent"))
        for ref, row in folders:
            self._put(ref, row)
        for ref, row in vcenter.retrieve(vim.ComputeResource, ("name", "parent")):
            self._put(ref, row)
        self._tops = {_key(ref): center for center, ref in self.vm_folders.items()}
        self.folders = {
            (self.datacenter(ref), self.folder(ref)): ref
            for ref, _ in folders
            if self._top(_key(ref)) is not None
        }
        self.stores = tuple(self._store(*found) for found in _stores(vcenter))
        self.networks = self._networks(vcenter)

    def _put(self, ref: Ref, row: Mapping[str, Any]) -> None:
        self.names[_key(ref)] = row["name"]
        self.parents[_key(ref)] = _key(row.get("parent"))

    def datacenter(self, ref: Ref) -> str:
        """Name of the datacenter that an object lies in; empty: none."""
        key = _key(ref)
        while key and key not in self.vm_folders:
            key = self.parents.get(key, "")
        return self.names.get(key, "")

    def folder(self, ref: Ref) -> str:
        """Path of a folder below its datacenter's VM folder."""
        key, path = _key(ref), list[str]()
        while key and key not in self._tops:
            path.insert(0, self.names.get(key, ""))
            key = self.parents.get(key, "")
        return "/".join(path)

    def _top(self, key: str) -> str | None:
        while key and key not in self._tops:
            key = self.parents.get(key, "")
        return self._tops.get(key)

    def _store(self, ref: Ref, row: Mapping[str, Any]) -> Store:
        self._put(ref, row)
        summary = row["summary"]
        return Store(
            name=row["name"],
            datacenter=self.datacenter(ref),
            ref=ref,
            free_bytes=int(summary.freeSpace or 0),
            accessible=bool(summary.accessible),
        )

    def _net(self, ref: Ref, row: Mapping[str, Any], **more: str) -> Net:
        self._put(ref, row)
        return Net(name=row["name"], datacenter=self.datacenter(ref), ref=ref, **more)

    def _networks(self, vcenter: VCenter) -> tuple[Net, ...]:
        switches = vcenter.retrieve(vim.DistributedVirtualSwitch, ("uuid",))
        uuids = {_key(ref): row["uuid"] for ref, row in switches}
        found, known = list[Net](), set[str]()
        for ref, row in vcenter.retrieve(vim.dvs.DistributedVirtualPortgroup, _PORTGROUP):
            known.add(_key(ref))
            if not _uplink(row):
                uuid = uuids.get(_key(row.get("config.distributedVirtualSwitch")), "")
                found.append(self._net(ref, row, portgroup=row["key"], switch_uuid=uuid))
        for ref, row in vcenter.retrieve(vim.OpaqueNetwork, ("name", "parent", "summary")):
            known.add(_key(ref))
            ids = {"opaque_id": row["summary"].opaqueNetworkId}
            found.append(self._net(ref, row, **ids, opaque_type=row["summary"].opaqueNetworkType))
        plain = vcenter.retrieve(vim.Network, ("name", "parent"))
        return (*(self._net(*one) for one in plain if _key(one[0]) not in known), *found)


def _stores(vcenter: VCenter) -> list[tuple[Ref, dict[str, Any]]]:
    return vcenter.retrieve(vim.Datastore, ("name", "parent", "summary"))


def _uplink(row: Mapping[str, Any]) -> bool:
    """Port groups of a switch's uplinks bear this tag on every server."""
    return any(tag.key == "SYSTEM/DVS.UPLINKPG" for tag in row.get("tag") or ())


def _pools(vcenter: VCenter, owners: Mapping[str, str]) -> dict[tuple[str, str], Ref]:
    rows = {
        _key(ref): (ref, row)
        for ref, row in vcenter.retrieve(vim.ResourcePool, ("name", "parent", "owner"))
    }
    pools = {}
    for ref, row in rows.values():
        path, parent = [row["name"]], _key(row.get("parent"))
        if parent not in rows:
            continue  # a cluster's own pool, which needs no name
        while parent in rows and _key(rows[parent][1].get("parent")) in rows:
            path.insert(0, rows[parent][1]["name"])
            parent = _key(rows[parent][1].get("parent"))
        pools[owners.get(_key(row.get("owner")), ""), "/".join(path)] = ref
    return pools


def _cluster(
    ref: Ref, row: Mapping[str, Any], hosts: Mapping[str, Mapping[str, Any]], tree: _Tree
) -> Cluster:
    datacenter = tree.datacenter(ref)
    return Cluster(
        name=row["name"],
        datacenter=datacenter,
        ref=ref,
        pool=row["resourcePool"],
        browser=row.get("environmentBrowser"),
        drs=_drs(row.get("configurationEx")),
        hosts=tuple(
            _host(one, hosts[_key(one)], row["name"], datacenter, tree)
            for one in row.get("host", ())
            if _key(one) in hosts
        ),
    )


def _drs(configuration: Any) -> bool:
    said = getattr(configuration, "drsConfig", None)
    return bool(said is not None and said.enabled)


def _host(ref: Ref, row: Mapping[str, Any], cluster: str, datacenter: str, tree: _Tree) -> EsxiHost:
    refuses = ""
    if str(row.get("runtime.connectionState")) != "connected":
        refuses = f"it is {row.get('runtime.connectionState')}"
    elif row.get("runtime.inMaintenanceMode"):
        refuses = "it is in maintenance mode"
    numa = row.get("hardware.numaInfo")
    return EsxiHost(
        name=row["name"],
        ref=ref,
        cluster=cluster,
        datacenter=datacenter,
        refuses=refuses,
        cores=int(row.get("summary.hardware.numCpuCores", 0)),
        threads=int(row.get("summary.hardware.numCpuThreads", 0)),
        mhz=int(row.get("summary.hardware.cpuMhz", 0)),
        memory_bytes=int(row.get("summary.hardware.memorySize", 0)),
        datastores=tuple(tree.names.get(_key(one), "") for one in row.get("datastore", ())),
        networks=tuple(tree.names.get(_key(one), "") for one in row.get("network", ())),
        numa_nodes=int(numa.numNodes) if numa is not None and numa.numNodes else None,
        gpus=_gpus(row),
        profiles=tuple(row.get("config.sharedPassthruGpuTypes") or ()),
    )


def _gpus(row: Mapping[str, Any]) -> tuple[HostGpu, ...]:
    passed = {one.id: one for one in row.get("config.pciPassthruInfo") or ()}
    graphics = {one.pciId: one for one in row.get("config.graphicsInfo") or ()}
    return tuple(
        _gpu(device, passed.get(device.id), graphics.get(device.id))
        for device in row.get("hardware.pciDevice") or ()
        if (int(device.classId) & 0xFFFF) >> 8 in {_DISPLAY, _ACCELERATOR}
        and (device.id in graphics or getattr(passed.get(device.id), "passthruCapable", False))
    )


def _gpu(device: Any, passed: Any, graphics: Any) -> HostGpu:
    ids = pci_ids(device.vendorId, device.deviceId)
    said_kib = getattr(graphics, "memorySizeInKB", None)
    return HostGpu(
        address=device.id,
        device=ids,
        name=str(device.deviceName or getattr(graphics, "deviceName", "") or ids),
        passthrough=bool(getattr(passed, "passthruActive", False)),
        label=str(getattr(passed, "hardwareLabel", None) or ""),
        mode=str(getattr(graphics, "graphicsType", None) or ""),
        vgpu_mode=str(getattr(graphics, "vgpuMode", None) or ""),
        memory_gib=said_kib / KIB_PER_GIB if said_kib else GPU_MEMORY_GIB.get(ids),
    )


def pci_ids(vendor: int, device: int) -> str:
    """vendor:device in hex, of numbers that the API gives as signed shorts."""
    return f"{int(vendor) & 0xFFFF:04x}:{int(device) & 0xFFFF:04x}"


def _vms(
    vcenter: VCenter,
    tree: _Tree,
    hosts: Mapping[str, Mapping[str, Any]],
    owners: Mapping[str, str],
) -> tuple[VmState, ...]:
    found = []
    for ref, row in _marked(vcenter):
        host = hosts.get(_key(row.get("runtime.host")), {})
        found.append(
            VmState(
                name=row.get("name", ""),
                ref=ref,
                host=host.get("name", ""),
                cluster=owners.get(_key(host.get("parent")), ""),
                datacenter=tree.datacenter(row.get("parent"))
                or tree.datacenter(host.get("parent")),
                folder=tree.folder(row.get("parent")),
                pool=row.get("resourcePool"),
                power=str(row.get("runtime.powerState", "poweredOff"))
                .removeprefix("powered")
                .lower(),
                template=bool(row.get("config.template", False)),
                extra=row["marks"],
            )
        )
    return tuple(found)


def _marked(vcenter: VCenter) -> list[tuple[Ref, dict[str, Any]]]:
    """All VMs with their marks alone: a whole extraConfig of 2,000 VMs would be 15 MB."""
    paths = {_entry(key): key for key in (MARK_PLAN, MARK_VM, MARK_INSTANCE)}
    try:
        rows = vcenter.retrieve(vim.VirtualMachine, (*_VM, *paths))
        single = any(path in row for _, row in rows for path in paths) or _gives_entries(
            vcenter, rows
        )
    except vmodl.query.InvalidProperty:
        single = False
    if not single:
        rows = vcenter.retrieve(vim.VirtualMachine, (*_VM, "config.extraConfig"))
    for _, row in rows:
        options = [row[path] for path in paths if path in row] or row.get("config.extraConfig")
        row["marks"] = {
            key: value for key, value in _extra(options).items() if key in paths.values()
        }
    return rows


def _entry(key: str) -> str:
    return f'config.extraConfig["{key}"]'


def _gives_entries(vcenter: VCenter, rows: Sequence[tuple[Ref, Mapping[str, Any]]]) -> bool:
    """Whether the server selects single entries of an extraConfig: tried on one VM's own."""
    some = [ref for ref, _ in rows[:_PROBED]]
    for ref, row in vcenter.read(some, ("config.extraConfig",)):
        options = row.get("config.extraConfig")
        if options:
            path = _entry(options[0].key)
            return any(path in found for _, found in vcenter.read([ref], (path,)))
    return True
