"""What a vCenter has, as plain values: hosts with their GPUs, stores, networks and VMs.

``infra.vms.resources`` reads them. References to managed objects are kept beside, for ``apply``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyVmomi import vim

KIB_PER_GIB = 1 << 20
MIB_PER_GIB = 1 << 10

Ref = Any
"""A managed object of pyVmomi."""


@dataclass(frozen=True, kw_only=True)
class HostGpu:
    """A GPU of an ESXi host."""

    address: str
    device: str
    """PCI vendor:device, ``10de:20b5``."""
    name: str
    passthrough: bool
    """Active for DirectPath, fixed or dynamic."""
    label: str
    """Hardware label of Dynamic DirectPath."""
    mode: str
    """Graphics type: ``sharedDirect`` serves vGPUs; empty where the host does not say."""
    vgpu_mode: str
    """How it is shared: ``sameSize``, ``mixedSize`` or ``multiInstanceGpu``; empty: not told."""
    memory_gib: float | None
    """Frame buffer; None: neither the host nor the table of known GPUs has it."""


@dataclass(frozen=True, kw_only=True)
class EsxiHost:
    """An ESXi host, and what its cluster and it can give to a VM."""

    name: str
    ref: Ref = field(repr=False, compare=False)
    cluster: str
    datacenter: str
    refuses: str
    """Why it can take no VM now; empty: it can."""
    cores: int
    threads: int
    mhz: int
    memory_bytes: int
    datastores: tuple[str, ...]
    networks: tuple[str, ...]
    numa_nodes: int | None = None
    """None: not read, or the host does not say."""
    gpus: tuple[HostGpu, ...] = ()
    profiles: tuple[str, ...] = ()
    """vGPU profiles that it offers."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster or a stand-alone host: what a VM is placed into."""

    name: str
    datacenter: str
    ref: Ref = field(repr=False, compare=False)
    pool: Ref = field(repr=False, compare=False)
    browser: Ref = field(repr=False, compare=False)
    drs: bool
    """vCenter chooses the hosts of VMs itself."""
    hosts: tuple[EsxiHost, ...]


@dataclass(frozen=True, kw_only=True)
class VmState:
    """A VM as the server has it. Its hardware is read for the VMs that matter alone."""

    name: str
    ref: Ref = field(repr=False, compare=False)
    host: str
    cluster: str
    datacenter: str
    folder: str
    """Folder below the datacenter's own, a/b; empty: the datacenter's own."""
    pool: Ref = field(repr=False, compare=False)
    power: str
    """``on``, ``off`` or ``suspended``."""
    template: bool
    config: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)
    """Properties below ``config``, by path; None: not read."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """extraConfig, entries without a value left out; with ``config`` None the marks alone."""

    def get(self, path: str, default: Any = None) -> Any:
        """A property below ``config``."""
        found = (self.config or {}).get(f"config.{path}")
        return default if found is None else found

    @property
    def moid(self) -> str:
        return str(self.ref._GetMoId())

    @property
    def devices(self) -> Sequence[Any]:
        return tuple(self.get("hardware.device", ()))

    @property
    def cpus(self) -> int:
        return int(self.get("hardware.numCPU", 0))

    @property
    def cores_per_socket(self) -> int:
        return int(self.get("hardware.numCoresPerSocket", 1))

    @property
    def memory_mib(self) -> int:
        return int(self.get("hardware.memoryMB", 0))

    @property
    def memory_reservation_mib(self) -> int:
        return int(getattr(self.get("memoryAllocation"), "reservation", None) or 0)

    @property
    def memory_locked(self) -> bool:
        return bool(self.get("memoryReservationLockedToMax", False))

    @property
    def cpu_reservation_mhz(self) -> int:
        return int(getattr(self.get("cpuAllocation"), "reservation", None) or 0)

    @property
    def latency_sensitivity(self) -> str:
        return str(getattr(self.get("latencySensitivity"), "level", None) or "normal")

    @property
    def firmware(self) -> str:
        return str(self.get("firmware", "bios"))

    @property
    def instance_uuid(self) -> str:
        return str(self.get("instanceUuid", ""))

    @property
    def datastore(self) -> str:
        """Name of the datastore with the VM's own files."""
        path = str(self.get("files.vmPathName", ""))
        return path[1 : path.index("]")] if path.startswith("[") and "]" in path else ""

    @property
    def numa_setting(self) -> bool:
        """It has a setting of its own for virtual NUMA nodes, as VMs since API 8.0 have."""
        return self.get("numaInfo") is not None

    @property
    def cores_per_numa_node(self) -> int:
        """vCPUs of a virtual NUMA node; 0: the hypervisor decides."""
        numa = self.get("numaInfo")
        if numa is not None:
            return 0 if numa.autoCoresPerNumaNode else int(numa.coresPerNumaNode or 0)
        said = self.extra.get(NUMA_KEY, "0")
        return int(said) if said.isdigit() else 0

    @property
    def gpus(self) -> list[Any]:
        """Its PCI passthrough devices, vGPUs included."""
        return [one for one in self.devices if isinstance(one, vim.vm.device.VirtualPCIPassthrough)]


NUMA_KEY = "numa.vcpu.maxPerVirtualNode"
"""How servers before API 8.0 are told the vCPUs of a virtual NUMA node."""


@dataclass(frozen=True, kw_only=True)
class LibraryItem:
    """An item of a content library that a VM can be made of."""

    name: str
    """library/item."""
    id: str
    template: str = ""
    """Managed object id of the VM template that it is; empty: it is an OVF."""


@dataclass(frozen=True, kw_only=True)
class Store:
    """A datastore."""

    name: str
    datacenter: str
    ref: Ref = field(repr=False, compare=False)
    free_bytes: int
    accessible: bool


@dataclass(frozen=True, kw_only=True)
class Net:
    """A network that an adapter can be put on."""

    name: str
    datacenter: str
    ref: Ref = field(repr=False, compare=False)
    portgroup: str = ""
    """Key of a distributed port group; empty: another kind of network."""
    switch_uuid: str = ""
    """... and of its switch."""
    opaque_id: str = ""
    """Of a network that NSX manages; empty: another kind."""
    opaque_type: str = ""


@dataclass(frozen=True, kw_only=True)
class Estate:
    """All that a plan can refer to."""

    api: tuple[int, ...]
    datacenters: Mapping[str, Ref]
    """VM folder of each."""
    clusters: tuple[Cluster, ...]
    datastores: tuple[Store, ...]
    networks: tuple[Net, ...]
    folders: Mapping[tuple[str, str], Ref]
    """VM folders by datacenter and path."""
    pools: Mapping[tuple[str, str], Ref]
    """Resource pools by cluster and path below its own."""
    vms: tuple[VmState, ...]

    @property
    def hosts(self) -> tuple[EsxiHost, ...]:
        return tuple(host for cluster in self.clusters for host in cluster.hosts)

    def host(self, name: str) -> EsxiHost | None:
        return next((host for host in self.hosts if host.name == name), None)

    def vms_on(self, hosts: Iterable[EsxiHost]) -> list[VmState]:
        names = {host.name for host in hosts}
        return [vm for vm in self.vms if vm.host in names]
