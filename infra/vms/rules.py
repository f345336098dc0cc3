"""The linter's rules: what a GPU VM needs, one small pure function each, and one table of them.

A rule gets the facts of a VM and, where it asks for one, of a host that it is on or may be placed
on. Each carries the public source that it stands on; docs/vms.md says them in words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from infra.vms.facts import HostFacts, VmFacts
from infra.vms.finding import Finding, Said
from infra.vms.rules_gpu import capacity, graphics_mode, profile_mix, profile_offered, stranded
from infra.vms.rules_numa import numa_fit, numa_gpu
from infra.vms.spec import MMIO_SIZE_GIB, STEAL_CLOCK, USE_64BIT_MMIO, mmio_size_gib

DEFAULT_MMIO_GIB = 32
"""What a VM has without the setting (frankdenneman.nl, 2023-05-30, on MMIO)."""
LARGE_BAR_GIB = 16
"""Above it a GPU's memory does not map below 4 GB (VMware KB 2142307)."""

KB_PLATFORM = "https://knowledge.broadcom.com/external/article?legacyId=2142307"
KB_PASSTHROUGH = "https://knowledge.broadcom.com/external/article/309986"
NVIDIA_MMIO = "https://docs.nvidia.com/ai-enterprise/latest/release-notes/index.html"
NVIDIA_MIG = "https://docs.nvidia.com/datacenter/tesla/mig-user-guide/supported-mig-profiles.html"
VMWARE = "https://docs.vmware.com/en/VMware-vSphere/8.0/vsphere-resource-management/"
LATENCY = VMWARE + "GUID-2B67DC91-1196-4368-A390-44F74149E28C.html"
HOME_NODE = VMWARE + "GUID-3846A67A-5C21-48D1-9760-A606F534B85A.html"
AFFINITY = VMWARE + "GUID-68817061-CAA9-4997-8384-3C1A0DF7F3E9.html"
API = "https://developer.broadcom.com/xapis/virtual-infrastructure-json-api/latest/data-structures/"
GRAPHICS = API + "HostGraphicsInfo"
OFFERED = API + "HostSharedGpuCapabilities"
STEAL = "https://git.kernel.org/tip/ab02bb3f55f58e7608a88188000c3353398ebe3b"
SAME_SIZE = "https://frankdenneman.nl/concepts/same-size-vgpu-mode"


VmRule = Callable[[VmFacts], Iterator[Said]]
HostRule = Callable[[VmFacts, HostFacts], Iterator[Said]]


def firmware(vm: VmFacts) -> Iterator[Said]:
    """GPUs need EFI."""
    if vm.gpus and vm.firmware != "efi":
        yield Said(
            setting="firmware",
            value=vm.firmware,
            wanted="efi",
            why="BIOS cannot map a GPU's memory above 4 GB; the guest must have been installed "
            "under EFI, so a change here needs a guest made anew",
            severity="error",
            change="firmware = efi",
        )


def memory_reservation(vm: VmFacts) -> Iterator[Said]:
    """A device that writes into the guest's memory needs all of it in place."""
    if not vm.gpus or vm.memory_locked:
        return
    full = vm.memory_reserved_mib >= vm.memory_mib
    yield Said(
        setting="memoryReservationLockedToMax",
        value="false, all reserved" if full else f"false, {vm.memory_reserved_mib} MB reserved",
        wanted=f"true ({vm.memory_mib} MB)",
        why="the reservation is whole by chance: after a change of size the VM would not power on"
        if full
        else "a GPU reads and writes the guest's memory by itself, so none of it may be swapped or "
        "ballooned: without a full reservation the VM does not power on",
        severity="warning" if full else "error",
        change=_all_memory(vm),
        power_off=False,
    )


def _all_memory(vm: VmFacts) -> str:
    return f"memory_reservation_gib = {vm.memory_mib / 1024:g} (full, locked)"


def use_64bit_mmio(vm: VmFacts) -> Iterator[Said]:
    """GPUs with much memory are mapped above 4 GB."""
    value = vm.extra_config.get(USE_64BIT_MMIO)
    if not vm.gpus or vm.planned or (value or "").upper() == "TRUE":
        return
    small = all(0 < (gpu.memory_gib or 0) <= LARGE_BAR_GIB for gpu in vm.gpus)
    yield Said(
        setting=USE_64BIT_MMIO,
        value=value or "not set",
        wanted="TRUE",
        why="the GPU's memory does not fit below 4 GB, and the VM stops with 'Module "
        "DevicePowerOn power on failed'"
        if not small
        else f"GPUs of up to {LARGE_BAR_GIB} GiB may start without it; larger ones do not",
        severity="warning" if small else "error",
        change=f"extra_config.{USE_64BIT_MMIO} = TRUE",
    )


def mmio_size(vm: VmFacts, host: HostFacts) -> Iterator[Said]:
    """64bitMMIOSizeGB: frame buffer of a GPU to a power of two, doubled, for each GPU."""
    sizes = [host.device_memory_gib(gpu) for gpu in vm.gpus]
    known = [size for size in sizes if size is not None]
    if not vm.gpus or vm.planned or len(known) < len(sizes):
        return
    need = mmio_size_gib(known)
    said = vm.extra_config.get(MMIO_SIZE_GIB)
    has = int(said) if said is not None and said.strip().isdigit() else DEFAULT_MMIO_GIB
    if said is not None and has >= need:
        return
    yield Said(
        setting=MMIO_SIZE_GIB,
        value=said or f"not set ({DEFAULT_MMIO_GIB} by default)",
        wanted=need,
        why=f"{len(known)} x GPU of {max(known):g} GiB: each is mapped in whole, whatever the "
        "vGPU's own share, and takes twice the next power of two",
        severity="error" if has < need else "note",
        change=f"extra_config.{MMIO_SIZE_GIB} = {need}",
    )


def latency_memory(vm: VmFacts) -> Iterator[Said]:
    """Latency sensitivity high needs all memory reserved."""
    if vm.latency != "high" or vm.gpus or vm.admitted_mib >= vm.memory_mib:
        return
    yield Said(
        setting="memoryAllocation.reservation",
        value=f"{vm.memory_reserved_mib} MB",
        wanted=f"{vm.memory_mib} MB (memoryReservationLockedToMax)",
        why="latency sensitivity high needs all memory reserved, or the VM does not power on",
        severity="error",
        change=_all_memory(vm),
        power_off=False,
    )


def latency_cpu(vm: VmFacts, host: HostFacts) -> Iterator[Said]:
    """Latency sensitivity high needs all CPU reserved: a core of its own for each vCPU."""
    need = vm.cores * host.mhz
    if vm.latency != "high" or vm.cpu_reserved_mhz is None or vm.cpu_reserved_mhz >= need:
        return
    yield Said(
        setting="cpuAllocation.reservation",
        value=f"{vm.cpu_reserved_mhz} MHz",
        wanted=f"{need} MHz ({vm.cores} x {host.mhz})",
        why="without all CPU reserved the vCPUs get no cores of their own, and latency sensitivity "
        "high does nothing",
        severity="error",
        change=f"cpu_reservation_mhz = {need}",
        power_off=False,
    )


def steal_clock(vm: VmFacts) -> Iterator[Said]:
    """The guest sees what was stolen from it, so that contention shows without a vCenter."""
    value = vm.extra_config.get(STEAL_CLOCK)
    if (value or "").upper() == "TRUE":
        return
    yield Said(
        setting=STEAL_CLOCK,
        value=value or "not set",
        wanted="TRUE",
        why="a Linux guest (5.8 or newer, hardware version 13 or newer) counts the CPU time that "
        "other VMs took from it only with this; without it steal is absent from its profiles",
        severity="note",
        fix=f'in the plan: extra_config = {{ "{STEAL_CLOCK}" = "TRUE" }}, then apply --power-off; '
        "else by hand (Edit Settings > Advanced Parameters). The VM has to be powered off and on "
        "for it: a restart of its guest is not enough",
    )


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row of the table."""

    name: str
    source: str
    vm: VmRule | None = None
    """Asks the VM alone."""
    host: HostRule | None = None
    """Asks the VM on a host."""


RULES: tuple[Rule, ...] = (
    Rule(name="firmware", source=NVIDIA_MMIO, vm=firmware),
    Rule(name="memory-reservation", source=KB_PASSTHROUGH, vm=memory_reservation),
    Rule(name="mmio-64bit", source=KB_PLATFORM, vm=use_64bit_mmio),
    Rule(name="mmio-size", source=NVIDIA_MMIO, host=mmio_size),
    Rule(name="latency-memory", source=LATENCY, vm=latency_memory),
    Rule(name="latency-cpu", source=LATENCY, host=latency_cpu),
    Rule(name="steal-clock", source=STEAL, vm=steal_clock),
    Rule(name="numa-fit", source=HOME_NODE, host=numa_fit),
    Rule(name="numa-gpu", source=AFFINITY, host=numa_gpu),
    Rule(name="graphics-mode", source=GRAPHICS, host=graphics_mode),
    Rule(name="profile-offered", source=OFFERED, host=profile_offered),
    Rule(name="profile-mix", source=SAME_SIZE, host=profile_mix),
    Rule(name="capacity", source=NVIDIA_MIG, host=capacity),
)
STRANDED = Rule(name="stranded", source=SAME_SIZE)
RULE_NAMES = (*(rule.name for rule in RULES), STRANDED.name)


def vm_findings(vm: VmFacts) -> list[Finding]:
    """What the VM's own settings say, whatever its host."""
    return [_finding(rule, said, vm, None) for rule in RULES if rule.vm for said in rule.vm(vm)]


def host_findings(vm: VmFacts, host: HostFacts) -> list[Finding]:
    """What the VM on this host says. Room is asked for only where the GPUs are right."""
    found: list[Finding] = []
    for rule in RULES:
        blocked = any(one.severity == "error" and one.rule in GPU_RULES for one in found)
        if rule.host is None or (rule.name == "capacity" and blocked):
            continue
        found += [_finding(rule, said, vm, host) for said in rule.host(vm, host)]
    return found


GPU_RULES = frozenset({"graphics-mode", "profile-offered"})


def _finding(rule: Rule, said: Said, vm: VmFacts, host: HostFacts | None) -> Finding:
    return Finding(
        vm=vm.name,
        host=host.name if host is not None else vm.host,
        rule=rule.name,
        setting=said.setting,
        value=str(said.value),
        wanted=str(said.wanted),
        why=said.why,
        fix=_fix(said, vm),
        severity=said.severity,
        source=rule.source,
    )


def _fix(said: Said, vm: VmFacts) -> str:
    if not said.change:
        return said.fix
    off = ", with the VM off" if said.power_off else ""
    if vm.kind:
        return f"apply sets {said.change}{off}"
    return f"{said.change}: apply does it in a plan that has the VM; else by hand{off}"


def stranded_findings(host: HostFacts, kinds: Sequence[VmFacts]) -> list[Finding]:
    """What no further VM of these kinds can use of a host with GPUs."""
    with_gpus = {vm.kind or vm.name: vm for vm in kinds if vm.gpus}
    if not with_gpus or not host.gpus:
        return []
    names = ", ".join(with_gpus)
    whose = VmFacts(name=names, cpus=0, memory_mib=0)
    said = stranded(host, list(with_gpus.values()))
    return [_finding(STRANDED, one, whose, host) for one in said]
