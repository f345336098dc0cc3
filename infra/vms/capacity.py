"""What of a host is free for a VM: GPUs, frame buffer, slices, cores and memory, counted.

Where a vGPU may lie within a GPU (placement ids, the start of a MIG slice) the API does not tell,
so free capacity is an upper bound: what is refused here cannot be, what fits here may still not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from infra.vms.facts import (
    CONSOLIDATION,
    MIXED,
    SHARED_DIRECT,
    HostFacts,
    HostGpu,
    VmFacts,
    VmGpu,
)
from infra.vms.spec import profile_is_mig, profile_memory_gib

MIG_COMPUTE_SLICES, MIG_MEMORY_SLICES = 7, 8
"""Of a GPU, by NVIDIA's MIG user guide (supported profiles of A100, H100 and H200)."""
A30_SLICES = 4
"""The A30 has four of each, by the same guide."""

_SLICES = re.compile(r"-(\d+)-\d+[a-z]+\d*$")


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Why a host cannot take a VM."""

    what: str
    """``GPU``, ``cores`` or ``memory``."""
    value: str
    """What there is."""
    wanted: str
    """What the VM needs."""
    why: str


@dataclass(frozen=True, kw_only=True)
class Left:
    """What is left of a host when no further VM of the wanted kinds fits."""

    further: int
    """VMs that still fit; the rest is counted after them."""
    gpus: int
    """GPUs that nothing is on."""
    frame_buffer_gib: float
    cores: int
    memory_mib: int
    limits: tuple[str, ...]
    """What runs out, ``GPU``, ``cores``, ``memory``: one for each kind of VM."""


def compute_slices(profile: str) -> int:
    """Compute slices of a MIG-backed profile: 3 for grid_a100-3-20c; 0 for a time-sliced one."""
    found = _SLICES.search(profile)
    return int(found[1]) if found else 0


def room(gpu: HostGpu, profile: str) -> int:
    """How many further vGPUs of this profile the GPU can take."""
    size = profile_memory_gib(profile)
    if not size or why_not(gpu, profile):
        return 0
    if gpu.size_gib is None:
        return 1
    by_memory = int(gpu.free_gib // size)
    if not profile_is_mig(profile):
        return by_memory
    total, memory_slices = _slices(gpu)
    taken = sum(compute_slices(one) for one in gpu.profiles)
    taken_memory = sum(_memory_slices(one, gpu, memory_slices) for one in gpu.profiles)
    need = _memory_slices(profile, gpu, memory_slices)
    return min(
        (total - taken) // compute_slices(profile), max(0, memory_slices - taken_memory) // need
    )


def _slices(gpu: HostGpu) -> tuple[int, int]:
    a30 = "a30" in gpu.name.lower()
    return (A30_SLICES, A30_SLICES) if a30 else (MIG_COMPUTE_SLICES, MIG_MEMORY_SLICES)


def _memory_slices(profile: str, gpu: HostGpu, slices: int) -> int:
    """Memory slices of a profile: its share of the frame buffer, rounded to whole ones."""
    share = (profile_memory_gib(profile) or 0.0) / (gpu.size_gib or 1.0)
    return max(1, min(slices, round(share * slices)))


def why_not(gpu: HostGpu, profile: str) -> str:
    """Why a GPU can take no vGPU of this profile, whatever is free; empty: it can."""
    if gpu.mode not in {None, SHARED_DIRECT}:
        return f"{gpu.address} is in mode {gpu.mode}"
    if gpu.passed_to is not None:
        return f"{gpu.address} is passed through to {gpu.passed_to}"
    mig = profile_is_mig(profile)
    if gpu.is_mig is not None and gpu.is_mig != mig:
        return f"{gpu.address} is {'split by MIG' if gpu.is_mig else 'time-sliced'}"
    size = profile_memory_gib(profile)
    if not mig and gpu.vgpu_mode != MIXED:
        others = {profile_memory_gib(one) for one in gpu.profiles} - {size}
        if others:
            return f"{gpu.address} is taken by vGPUs of {', '.join(sorted(set(gpu.profiles)))}"
    return ""


def claim_gpus(host: HostFacts, vm: VmFacts) -> HostFacts | Refused:
    """The host with the VM's GPUs taken, or what is missing."""
    for gpu in vm.gpus:
        taken = _claim_vgpu(host, gpu) if gpu.kind == "vgpu" else _claim_device(host, gpu, vm)
        if isinstance(taken, Refused):
            return taken
        host = taken
    return host


def _claim_vgpu(host: HostFacts, gpu: VmGpu) -> HostFacts | Refused:
    able = [one for one in host.gpus_for(gpu.profile) if room(one, gpu.profile)]
    if not able:
        return _no_room(host, gpu)
    fullest = host.assignment_policy == CONSOLIDATION
    chosen = min(able, key=lambda one: (-one.used_gib if fullest else one.used_gib, one.address))
    return host.with_gpu(replace(chosen, profiles=(*chosen.profiles, gpu.profile)))


def _no_room(host: HostFacts, gpu: VmGpu) -> Refused:
    able = host.gpus_for(gpu.profile)
    if not able:
        value = f"{len(host.gpus)} GPUs, none of this profile's model and size"
        return Refused(
            what="GPU", value=value, wanted=gpu.profile, why=f"{host.name} has no GPU for it"
        )
    states = [
        why_not(one, gpu.profile) or f"{one.address} has {one.free_gib:g} GiB free" for one in able
    ]
    return Refused(
        what="GPU",
        value="; ".join(states),
        wanted=f"room for one more {gpu.profile}",
        why=f"no GPU of {host.name} can take another {gpu.profile}",
    )


def _claim_device(host: HostFacts, gpu: VmGpu, vm: VmFacts) -> HostFacts | Refused:
    able = [one for one in host.gpus if matches(one, gpu)]
    free = [one for one in able if one.passthrough and one.passed_to is None and not one.profiles]
    if free:
        return host.with_gpu(replace(free[0], passed_to=vm.name))
    if not able:
        value, why = "no such device", f"{host.name} has no device {gpu.what}"
    else:
        value = "; ".join(_device_state(one) for one in able)
        why = f"no free device {gpu.what} on {host.name}"
    return Refused(what="GPU", value=value, wanted=f"a free {gpu.what}", why=why)


def matches(device: HostGpu, gpu: VmGpu) -> bool:
    """Whether a host's GPU is one that a passthrough or dynamic GPU of a VM may be."""
    if gpu.address:
        return device.address == gpu.address
    return device.device_id in gpu.ids and (not gpu.label or device.label == gpu.label)


def _device_state(device: HostGpu) -> str:
    if device.passed_to is not None:
        return f"{device.address} is passed through to {device.passed_to}"
    if not device.passthrough:
        return f"{device.address} is not active for passthrough"
    return f"{device.address} has vGPUs on it" if device.profiles else f"{device.address} is free"


def claim(host: HostFacts, vm: VmFacts) -> HostFacts | Refused:
    """The host with the whole VM on it, or what is missing first: GPUs, memory, cores."""
    taken = claim_gpus(host, vm)
    if isinstance(taken, Refused):
        return taken
    if vm.admitted_mib > host.free_memory_mib:
        return Refused(
            what="memory",
            value=f"{max(0, host.free_memory_mib) // 1024} GiB unreserved",
            wanted=f"{vm.admitted_mib // 1024} GiB",
            why=f"{host.name} cannot reserve the VM's memory and does not power it on",
        )
    if vm.cores > host.free_cores:
        return Refused(
            what="cores",
            value=f"{max(0, host.free_cores)} of {host.cores}",
            wanted=str(vm.cores),
            why=f"{host.name} has not that many cores left without another VM's vCPU on them: the "
            "VMs would wait for each other",
        )
    return replace(taken, vms=(*taken.vms, vm))


def fill(host: HostFacts, kinds: Sequence[VmFacts]) -> Left:
    """Put VMs of these kinds on the host, the largest first, until none fits; what is left."""
    further = 0
    for vm in sorted(kinds, key=lambda one: -_weight(host, one)):
        while isinstance(taken := claim(host, vm), HostFacts):
            host, further = taken, further + 1
    refused = [taken for taken in (claim(host, vm) for vm in kinds) if isinstance(taken, Refused)]
    return Left(
        further=further,
        gpus=sum(_untouched(gpu) for gpu in _wanted_gpus(host, kinds)),
        frame_buffer_gib=sum(gpu.free_gib for gpu in _wanted_gpus(host, kinds)),
        cores=max(0, host.free_cores),
        memory_mib=max(0, host.free_memory_mib),
        limits=tuple(dict.fromkeys(one.what for one in refused)),
    )


def _weight(host: HostFacts, vm: VmFacts) -> float:
    return sum(
        (profile_memory_gib(gpu.profile) if gpu.kind == "vgpu" else host.device_memory_gib(gpu))
        or 0.0
        for gpu in vm.gpus
    )


def _wanted_gpus(host: HostFacts, kinds: Sequence[VmFacts]) -> Iterator[HostGpu]:
    """The GPUs that a VM of these kinds could be on at all."""
    wanted = [gpu for vm in kinds for gpu in vm.gpus]
    for device in host.gpus:
        if any(
            device in host.gpus_for(gpu.profile) if gpu.kind == "vgpu" else matches(device, gpu)
            for gpu in wanted
        ):
            yield device


def _untouched(gpu: HostGpu) -> bool:
    return gpu.passed_to is None and not gpu.profiles
