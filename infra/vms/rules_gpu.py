"""Rules about the host's GPUs: their mode, the profiles on them, and what is free or stranded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from infra.vms.capacity import Left, Refused, claim, fill, why_not
from infra.vms.facts import MIXED, SHARED_DIRECT, HostFacts, VmFacts
from infra.vms.finding import Said
from infra.vms.spec import profile_memory_gib


def graphics_mode(vm: VmFacts, host: HostFacts) -> Iterator[Said]:
    """vGPUs need GPUs in mode shared direct."""
    profiles = {gpu.profile for gpu in vm.gpus if gpu.kind == "vgpu"}
    devices = {one for profile in profiles for one in host.gpus_for(profile)}
    modes = {one.address: one.mode or host.default_graphics for one in devices}
    wrong = {address: mode for address, mode in modes.items() if mode not in {None, SHARED_DIRECT}}
    where = f"host {host.name}, Configure > Hardware > Graphics: Shared Direct, then restart Xorg"
    if wrong and len(wrong) == len(modes):
        yield Said(
            setting="graphicsInfo.graphicsType",
            value=", ".join(f"{address}: {mode}" for address, mode in sorted(wrong.items())),
            wanted=SHARED_DIRECT,
            why="in this mode the host's GPUs carry no vGPU; it is a setting of the host, which "
            "apply leaves alone",
            severity="error",
            fix=where,
        )
    elif profiles and host.default_graphics not in {None, SHARED_DIRECT}:
        yield Said(
            setting="graphicsConfig.hostDefaultGraphicsType",
            value=host.default_graphics,
            wanted=SHARED_DIRECT,
            why="a GPU that is added or reset gets the default and carries no vGPU any more",
            severity="note",
            fix=where,
        )


def profile_offered(vm: VmFacts, host: HostFacts) -> Iterator[Said]:
    """The host's vGPU manager must know the profile."""
    for profile in sorted({gpu.profile for gpu in vm.gpus if gpu.kind == "vgpu"}):
        if profile not in host.profiles:
            yield Said(
                setting="sharedPassthruGpuTypes",
                value=", ".join(host.profiles) or "none",
                wanted=profile,
                why=f"{host.name} does not offer this vGPU profile: it has another GPU, its vGPU "
                "manager (VIB) is missing or older, or MIG is off (on) for a profile with (without)"
                " slices",
                severity="error",
                fix=f"name one of the offered profiles, or prepare {host.name} for {profile}",
            )


def profile_mix(vm: VmFacts, host: HostFacts) -> Iterator[Said]:
    """Time-sliced vGPUs of one GPU have one size, unless it is in mode mixed size."""
    mine = {gpu.profile for gpu in vm.gpus if gpu.kind == "vgpu"}
    for device in host.gpus:
        sizes = {profile_memory_gib(one) for one in device.profiles}
        if device.vgpu_mode == MIXED or device.is_mig or len(sizes) < 2:
            continue
        if mine & set(device.profiles):
            yield Said(
                setting=f"vGPU profiles of {device.address}",
                value=", ".join(sorted(device.profiles)),
                wanted="one size, or vgpuMode mixedSize",
                why="a GPU in mode same size is locked to the size of its first vGPU: the others "
                "do not power on again",
                severity="error",
                fix="give the VMs of this GPU profiles of one size, or set the GPU to mixed size",
            )


def capacity(vm: VmFacts, host: HostFacts) -> Iterator[Said]:
    """The host has room for the VM: cores, memory to reserve, GPUs in the right mode."""
    if any(one.name == vm.name for one in host.vms):
        return  # it runs there
    taken = claim(host, vm)
    if isinstance(taken, Refused):
        yield Said(
            setting=f"free {taken.what} of {host.name}",
            value=taken.value,
            wanted=taken.wanted,
            why=taken.why + _mig_words(vm, host),
            severity="warning" if taken.what == "cores" else "error",
            fix="plan it on another host or smaller, or free the host",
        )


def _mig_words(vm: VmFacts, host: HostFacts) -> str:
    modes = [
        why_not(device, gpu.profile)
        for gpu in vm.gpus
        if gpu.kind == "vgpu"
        for device in host.gpus_for(gpu.profile)
    ]
    if any("MIG" in one for one in modes):
        return "; a time-sliced profile needs a GPU without MIG (nvidia-smi -mig 0 on the host)"
    if any("time-sliced" in one for one in modes):
        return "; a profile with slices needs a GPU with MIG (nvidia-smi -mig 1 on the host)"
    return ""


def stranded(host: HostFacts, kinds: Sequence[VmFacts]) -> Iterator[Said]:
    """What no further VM of these kinds can use of a host: frame buffer, or cores and memory."""
    left = fill(host, kinds)
    least = min(kinds, key=lambda vm: (vm.cores, vm.memory_mib))
    spare = left.cores >= least.cores and left.memory_mib >= least.admitted_mib
    if left.frame_buffer_gib:
        yield _stranded(
            host,
            left,
            what="frame buffer",
            wanted="0 GiB of frame buffer left over",
            fix="choose profile, cpus and memory_gib that divide the host without remainder",
        )
    elif spare:
        yield _stranded(
            host,
            left,
            what="cores and memory",
            wanted="GPUs for all cores and memory",
            fix="use the rest for VMs without GPUs, or plan larger VMs",
        )


def _stranded(host: HostFacts, left: Left, *, what: str, wanted: str, fix: str) -> Said:
    counted = (
        f"{left.frame_buffer_gib:g} GiB of frame buffer ({left.gpus} whole GPUs), {left.cores} "
        f"cores, {left.memory_mib // 1024} GiB of memory"
    )
    after = f"after {left.further} further VMs" if left.further else "as it is"
    return Said(
        setting=f"stranded {what} of {host.name}",
        value=counted,
        wanted=wanted,
        why=f"{after} no VM of this kind fits any more: "
        + ", ".join(_LIMITS[one] for one in left.limits),
        severity="warning" if left.gpus else "note",
        fix=fix,
    )


_LIMITS = {"GPU": "no GPU takes one", "cores": "cores run out", "memory": "memory runs out"}
