"""Plain facts of VMs and hosts that the rules look at: no vCenter object, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from infra.vms.boards import belongs_to, board_memory_gib, nominal_gib
from infra.vms.spec import Machine, profile_is_mig, profile_memory_gib

MIG = "multiInstanceGpu"
MIXED = "mixedSize"
SAME = "sameSize"
SHARED_DIRECT = "sharedDirect"
CONSOLIDATION = "consolidation"


@dataclass(frozen=True, kw_only=True)
class VmGpu:
    """One GPU, or one share of a GPU, of a VM."""

    kind: Literal["vgpu", "passthrough", "dynamic"]
    profile: str = ""
    """vGPU: its profile."""
    address: str = ""
    """PCI address on the host where it is known: a passed-through device, or the assigned one."""
    ids: tuple[str, ...] = ()
    """vendor:device ids that would do."""
    label: str = ""
    memory_gib: float | None = None
    """Frame buffer of the whole GPU where the plan or its PCI id tells it."""

    @property
    def what(self) -> str:
        if self.kind == "vgpu":
            return f"vGPU {self.profile}"
        return f"{self.kind} {self.address or ', '.join(self.ids)}".strip()


@dataclass(frozen=True, kw_only=True)
class VmFacts:
    """One VM, as it is or (``planned``) as ``apply`` would make it."""

    name: str
    kind: str = ""
    """Its table in the plan; empty where it belongs to none."""
    host: str | None = None
    """ESXi host that it is on or pinned to."""
    planned: bool = False
    powered_on: bool = False
    firmware: str = "efi"
    cpus: int
    threads_per_core: int = 1
    """Virtual hyperthreads: vCPUs that share one physical core."""
    cpu_reserved_mhz: int | None = 0
    """None: in full, whatever that is on its host."""
    cores_per_numa_node: int | None = None
    """vCPUs of one virtual NUMA node; None: the hypervisor decides."""
    memory_mib: int
    memory_reserved_mib: int = 0
    memory_locked: bool = False
    """The reservation follows the size: ``memoryReservationLockedToMax``."""
    latency: str = "normal"
    extra_config: Mapping[str, str] = field(default_factory=dict)
    gpus: tuple[VmGpu, ...] = ()

    @property
    def cores(self) -> int:
        """Physical cores that it needs if none is shared."""
        return -(-self.cpus // self.threads_per_core)

    @property
    def admitted_mib(self) -> int:
        """Memory that its host must have free to power it on."""
        return self.memory_mib if self.memory_locked else self.memory_reserved_mib


@dataclass(frozen=True, kw_only=True)
class NumaNode:
    """One NUMA node of a host."""

    node: int
    cores: int
    memory_mib: int


@dataclass(frozen=True, kw_only=True)
class HostGpu:
    """One physical GPU and what is taken of it."""

    address: str
    name: str = ""
    device_id: str = ""
    """vendor:device, small hex."""
    label: str = ""
    memory_gib: float | None = None
    mode: str | None = None
    """``sharedDirect`` (vGPU), ``direct`` (passthrough), ``shared`` (vSGA) or ``basic``."""
    vgpu_mode: str | None = None
    """``sameSize``, ``mixedSize``, ``multiInstanceGpu``; None where the host does not tell."""
    passthrough: bool = False
    """Passthrough is active for it."""
    numa_node: int | None = None
    profiles: tuple[str, ...] = ()
    """vGPUs on it, by profile."""
    passed_to: str | None = None
    """VM that has the whole device."""

    @property
    def size_gib(self) -> float | None:
        """Frame buffer as vGPU profiles count it."""
        return None if self.memory_gib is None else nominal_gib(self.memory_gib)

    @property
    def used_gib(self) -> float:
        if self.passed_to is not None:
            return self.size_gib or 0.0
        return sum(profile_memory_gib(one) or 0.0 for one in self.profiles)

    @property
    def free_gib(self) -> float:
        return max(0.0, (self.size_gib or 0.0) - self.used_gib)

    @property
    def is_mig(self) -> bool | None:
        """Whether it is split by MIG; None: not told, and no vGPU on it tells."""
        if self.vgpu_mode in {MIG, SAME, MIXED}:
            return self.vgpu_mode == MIG
        return any(map(profile_is_mig, self.profiles)) if self.profiles else None


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """One ESXi host. ``vms`` are those powered on, and those that a check has put there."""

    name: str
    cluster: str | None = None
    cores: int
    mhz: int
    memory_mib: int
    nodes: tuple[NumaNode, ...] = ()
    default_graphics: str | None = None
    assignment_policy: str | None = None
    profiles: tuple[str, ...] = ()
    """vGPU profiles that it offers."""
    gpus: tuple[HostGpu, ...] = ()
    vms: tuple[VmFacts, ...] = ()

    @property
    def free_cores(self) -> int:
        """Cores that no vCPU stands on, each vCPU counted as a core of its own."""
        return self.cores - sum(vm.cores for vm in self.vms)

    @property
    def free_memory_mib(self) -> int:
        """Memory that no VM has reserved."""
        return self.memory_mib - sum(vm.admitted_mib for vm in self.vms)

    def gpus_for(self, profile: str) -> tuple[HostGpu, ...]:
        """GPUs of the model that a vGPU profile belongs to, by their names and sizes."""
        size = profile_memory_gib(profile) or 0.0
        able = tuple(
            gpu
            for gpu in self.gpus
            if belongs_to(profile, gpu.name) is not False
            and (gpu.size_gib is None or gpu.size_gib >= size)
        )
        board = board_memory_gib(profile)
        return tuple(gpu for gpu in able if gpu.size_gib == board) or able

    def device_memory_gib(self, gpu: VmGpu) -> float | None:
        """Frame buffer of the whole GPU behind one of a VM's; the largest that it may be."""
        if gpu.kind == "vgpu":
            here = [one.size_gib for one in self.gpus_for(gpu.profile) if one.size_gib]
        else:
            here = [
                one.size_gib
                for one in self.gpus
                if one.size_gib and (one.address == gpu.address or one.device_id in gpu.ids)
            ]
        return max(here, default=None) or told_memory_gib(gpu)

    def with_gpu(self, gpu: HostGpu) -> HostFacts:
        """The same host with one of its GPUs changed."""
        changed = tuple(gpu if one.address == gpu.address else one for one in self.gpus)
        return replace(self, gpus=changed)


def told_memory_gib(gpu: VmGpu) -> float | None:
    """Frame buffer of the whole GPU by what the plan, the id or the profile's name tells."""
    if gpu.memory_gib is not None or gpu.kind != "vgpu":
        return gpu.memory_gib
    return board_memory_gib(gpu.profile) or profile_memory_gib(gpu.profile)


def planned_vm(machine: Machine) -> VmFacts:
    """A VM of a plan as ``apply`` would make it."""
    spec = machine.spec
    reserved = spec.memory_reservation_gib
    return VmFacts(
        name=machine.name,
        kind=machine.key,
        host=spec.host or None,
        planned=True,
        powered_on=spec.power == "on",
        firmware=spec.firmware,
        cpus=spec.cpus,
        cpu_reserved_mhz=_cpu_reserved(machine),
        cores_per_numa_node=spec.cpus // spec.numa.nodes if spec.numa.nodes else None,
        memory_mib=spec.memory_gib * 1024,
        memory_reserved_mib=0 if reserved == "full" else reserved * 1024,
        memory_locked=spec.memory_locked,
        latency=spec.latency_sensitivity,
        extra_config=spec.further_config,
        gpus=planned_gpus(machine),
    )


def _cpu_reserved(machine: Machine) -> int | None:
    spec = machine.spec
    if spec.cpu_reserved_in_full or spec.cpu_reservation_mhz == "full":
        return None
    return spec.cpu_reservation_mhz


def planned_gpus(machine: Machine) -> tuple[VmGpu, ...]:
    """The GPUs that a plan gives to a VM, one by one."""
    gpus = []
    for gpu in machine.spec.gpus:
        by_address = gpu.kind == "passthrough" and gpu.by_address
        ids = gpu.devices or ((gpu.device,) if gpu.device and not by_address else ())
        told = gpu.memory_gib if gpu.kind == "vgpu" else gpu.frame_buffer_gib
        one = VmGpu(
            kind=gpu.kind,
            profile=gpu.profile,
            address=gpu.device if by_address else "",
            ids=ids,
            label=gpu.label,
            memory_gib=told,
        )
        gpus += [one] * gpu.count
    return tuple(gpus)
