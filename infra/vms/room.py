"""Whether a plan's VMs fit: what hosts have and what other VMs hold of it.

CPU may be shared out more than once, as vSphere does it; reserved memory and GPUs may not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pyVmomi import vim

from infra.vms.capacity import Refused, claim_gpus
from infra.vms.devices import Passthrough, address_of
from infra.vms.estate import MIB_PER_GIB, EsxiHost, VmState
from infra.vms.facts import HostFacts, HostGpu, VmFacts, VmGpu, planned_gpus, planned_vm
from infra.vms.place import Found, Place, nearest
from infra.vms.resources import pci_ids
from infra.vms.spec import Machine, mmio_size_gib

Placed = tuple[Machine, Place, VmState | None]
"""A VM of the plan, where it goes, and what is there of it already."""


def host_facts(host: EsxiHost, vms: Sequence[VmState]) -> HostFacts:
    """A host with those of ``vms`` on it that are powered on; their hardware must be read."""
    facts = HostFacts(
        name=host.name,
        cluster=host.cluster,
        cores=host.cores,
        mhz=host.mhz,
        memory_mib=host.memory_bytes >> 20,
        profiles=host.profiles,
        gpus=tuple(
            HostGpu(
                address=gpu.address,
                name=gpu.name,
                device_id=gpu.device,
                label=gpu.label,
                memory_gib=gpu.memory_gib,
                mode=gpu.mode or None,
                vgpu_mode=gpu.vgpu_mode or None,
                passthrough=gpu.passthrough,
            )
            for gpu in host.gpus
        ),
    )
    for vm in vms:
        if vm.host == host.name and vm.power == "on" and vm.config is not None:
            facts = _with(facts, vm_facts(vm))
    return facts


def vm_facts(vm: VmState) -> VmFacts:
    """A VM as it is."""
    return VmFacts(
        name=vm.name,
        host=vm.host or None,
        powered_on=vm.power == "on",
        firmware=vm.firmware,
        cpus=vm.cpus,
        cpu_reserved_mhz=vm.cpu_reservation_mhz,
        cores_per_numa_node=vm.cores_per_numa_node or None,
        memory_mib=vm.memory_mib,
        memory_reserved_mib=vm.memory_reservation_mib,
        memory_locked=vm.memory_locked,
        latency=vm.latency_sensitivity,
        extra_config=vm.extra,
        gpus=tuple(_vm_gpu(device.backing) for device in vm.gpus if _known(device.backing)),
    )


def _known(backing: object) -> bool:
    kinds = (
        Passthrough.VmiopBackingInfo,
        Passthrough.DynamicBackingInfo,
        Passthrough.DeviceBackingInfo,
    )
    return isinstance(backing, kinds)


def _vm_gpu(backing: vim.vm.device.VirtualDevice.BackingInfo) -> VmGpu:
    if isinstance(backing, Passthrough.VmiopBackingInfo):
        return VmGpu(kind="vgpu", profile=backing.vgpu or "")
    if isinstance(backing, Passthrough.DynamicBackingInfo):
        return VmGpu(
            kind="dynamic",
            address=backing.assignedId or "",
            ids=tuple(pci_ids(one.vendorId, one.deviceId) for one in backing.allowedDevice or ()),
            label=backing.customLabel or "",
        )
    return VmGpu(kind="passthrough", address=address_of(backing))


def _with(host: HostFacts, vm: VmFacts) -> HostFacts:
    """The host with a VM that runs there: what it holds is held, whatever our count says."""
    taken = claim_gpus(host, vm)
    held = host if isinstance(taken, Refused) else taken
    return replace(held, vms=(*held.vms, vm))


def too_much(machine: Machine, found: Found) -> list[str]:
    """What not even an empty host has, one sentence each."""
    if not found.hosts:
        return []
    return [*_too_big(machine, found), *_unknown_gpus(machine, found)]


def _too_big(machine: Machine, found: Found) -> Iterator[str]:
    spec, hosts, where = machine.spec, found.hosts, found.where
    threads, cores = max(host.threads for host in hosts), max(host.cores for host in hosts)
    if spec.cpus > threads:
        yield f"cpus = {spec.cpus}: more than {where} has ({cores} cores, {threads} threads)"
    elif spec.cpu_reserved_in_full and spec.cpus > cores:
        yield (
            f"cpus = {spec.cpus}: all reserved, so each needs a core of its own, and {where} has "
            f"{cores}"
        )
    memory_gib = max(host.memory_bytes for host in hosts) >> 30
    if spec.memory_gib > memory_gib:
        yield f"memory_gib = {spec.memory_gib}: more than {where} has ({memory_gib} GiB)"
    nodes = [host.numa_nodes for host in hosts if host.numa_nodes is not None]
    if nodes and spec.numa.nodes > max(nodes):
        yield f"numa.nodes = {spec.numa.nodes}: more than {where} has ({max(nodes)})"


def _unknown_gpus(machine: Machine, found: Found) -> Iterator[str]:
    hosts, where = found.hosts, found.where
    for gpu in machine.spec.gpus:
        if gpu.kind == "vgpu":
            known = {profile for host in hosts for profile in host.profiles}
            if gpu.profile not in known:
                yield f"vGPU profile {gpu.profile!r}: not on {where}; {nearest(gpu.profile, known)}"
            continue
        wanted = set(gpu.devices or (gpu.device,))
        devices = [one for host in hosts for one in host.gpus]
        able = [one for one in devices if {one.address, one.device} & wanted]
        if not able:
            known = {f"{one.address} ({one.device}, {one.name})" for one in devices}
            named = ", ".join(sorted(known)) or "none"
            yield f"{gpu.what}: there is no such GPU on {where}; known here: {named}"
        elif gpu.label and gpu.label not in {one.label for one in able}:
            labels = {one.label for one in able if one.label}
            yield f"label {gpu.label!r}: no GPU of {where} has it; {nearest(gpu.label, labels)}"


def find_room(
    placed: Sequence[Placed], others: Sequence[VmState]
) -> tuple[list[str], dict[str, str]]:
    """Put the VMs on hosts, those with the least choice first: a host for each that has one.

    For the others one sentence each. ``others``: VMs that are not of the plan.
    """
    hosts = {host.name: host for _, place, _ in placed for host in place.hosts}
    facts = {name: host_facts(host, others) for name, host in hosts.items()}
    problems, chosen = [], dict[str, str]()
    for machine, place, vm in sorted(placed, key=_least_choice):
        here = [host.name for host in place.hosts]
        if vm is not None and vm.host in here:
            here = [vm.host, *(name for name in here if name != vm.host)]
        refused = _put(planned_vm(machine), here, facts, chosen)
        if refused:
            many = "" if len(refused) == 1 else "no host has room: "
            problems.append(f"{machine.name}: {many}{'; '.join(refused)}")
    return problems, chosen


def _least_choice(one: Placed) -> tuple[int, int, int]:
    machine, place, vm = one
    certain = place.pinned is not None or vm is not None
    return (0 if certain else 1, len(place.hosts), -machine.spec.gpu_count)


def _put(
    vm: VmFacts, names: Sequence[str], facts: dict[str, HostFacts], chosen: dict[str, str]
) -> list[str]:
    """Take room for a VM on the first host that has it; else why each has not."""
    refused = []
    for name in names:
        taken = _claim(facts[name], vm)
        if isinstance(taken, HostFacts):
            facts[name], chosen[vm.name] = replace(taken, vms=(*taken.vms, vm)), name
            return []
        refused.append(taken)
    return refused


def _claim(host: HostFacts, vm: VmFacts) -> HostFacts | str:
    if vm.admitted_mib > host.free_memory_mib:
        free_gib = max(0, host.free_memory_mib) // MIB_PER_GIB
        return (
            f"{host.name} has {free_gib} GiB of memory that no VM has reserved, "
            f"{vm.admitted_mib // MIB_PER_GIB} are wanted"
        )
    taken = claim_gpus(host, vm)
    if isinstance(taken, Refused):
        return f"{taken.why} ({taken.value})"
    return taken


def mmio_gib(machine: Machine, hosts: Sequence[EsxiHost]) -> int | None:
    """64bitMMIOSizeGB by the rule; None without GPUs, or where a frame buffer is not known.

    The frame buffer is that of the whole GPU, for a share of it as well: its memory is mapped
    whole. Of hosts with different GPUs it is the largest.
    """
    gpus = planned_gpus(machine)
    facts = [host_facts(host, ()) for host in hosts]
    sizes = [
        max((size for host in facts if (size := host.device_memory_gib(gpu))), default=None)
        for gpu in gpus
    ]
    known = [size for size in sizes if size is not None]
    return mmio_size_gib(known) if known and len(known) == len(sizes) else None
