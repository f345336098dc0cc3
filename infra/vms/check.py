"""The linter for GPU VMs: reads their facts and their hosts' in a few sweeps and asks the rules.

With a plan, VMs that are not there yet are checked as ``apply`` would make them: each is put on the
host that suits it best, so that what the plan's VMs take from each other counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from infra.vms.capacity import Refused, claim_gpus
from infra.vms.facts import HostFacts, NumaNode, VmFacts, planned_vm
from infra.vms.finding import SEVERITIES, Finding
from infra.vms.owned import read_owned
from infra.vms.resources import Estate, EsxiHost, VmState, read_estate
from infra.vms.room import host_facts, vm_facts
from infra.vms.rules import host_findings, stranded_findings, vm_findings
from infra.vms.spec import MARK_PLAN, Machine, VmPlan
from infra.vsphere.find import find_vms

if TYPE_CHECKING:
    from infra.vsphere.session import VCenter

_HOST_GRAPHICS = ("config.graphicsInfo", "config.graphicsConfig", "hardware.numaInfo")


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A VM with the hosts that it is on or may be placed on."""

    vm: VmFacts
    hosts: tuple[str, ...]


def check(vcenter: VCenter, plan: VmPlan | None, vms: Sequence[str] = ()) -> list[Finding]:
    """Check the VMs of a plan, and those named by ``vms`` (name or UUID).

    Raises LookupError for a name that no VM has, or that several have.
    """
    machines = plan.machines() if plan is not None else ()
    places = find_vms(vcenter, vms) if vms else []
    clusters = _clusters(machines) | {one.cluster or one.esxi_host for one in places}
    estate = read_estate(vcenter, clusters=clusters)
    strayed = {
        vm.cluster or vm.host
        for vm in estate.vms
        if plan is not None and vm.extra.get(MARK_PLAN) == plan.name
    } - {*clusters, ""}
    if strayed:  # moved by hand to where the plan does not look
        clusters |= strayed
        estate = read_estate(vcenter, clusters=clusters)
    near = [host for host in estate.hosts if {host.cluster, host.name} & clusters]
    named = {one.moid for one in places}
    further = [
        vm
        for vm in estate.vms
        if vm.moid in named or (vm.power == "on" and vm.host in {host.name for host in near})
    ]
    owned = read_owned(vcenter, estate, plan.name if plan is not None else "", further)
    states = [*owned.vms, *owned.copies, *owned.others]
    checked = [_existing(vm, estate) for vm in states if vm.moid in named]
    for machine in machines:
        there = next(iter(owned.named(machine.name)), None)
        if there is None or there.moid not in named:
            checked.append(_planned(machine, there, estate))
    return lint(_with_threads(vcenter, checked, states), _hosts(vcenter, near, states))


def _with_threads(
    vcenter: VCenter, checked: Sequence[Checked], states: Sequence[VmState]
) -> list[Checked]:
    """Virtual hyperthreads, which halve the cores of a VM, where latency sensitivity asks."""
    high = {vm.name: vm.ref for vm in states if vm.latency_sensitivity == "high"}
    names = {ref._GetMoId(): name for name, ref in high.items()}
    threads = {
        names[ref._GetMoId()]: getattr(row.get("config.hardware"), "simultaneousThreads", None)
        for ref, row in vcenter.read(list(high.values()), ["config.hardware"])
    }
    return [
        replace(one, vm=replace(one.vm, threads_per_core=threads.get(one.vm.name) or 1))
        for one in checked
    ]


def lint(checked: Sequence[Checked], hosts: Mapping[str, HostFacts]) -> list[Finding]:
    """All findings, the gravest first. ``hosts``: by name, with what runs on them."""
    state = dict(hosts)
    found: list[Finding] = []
    for one in sorted(checked, key=_certain_first):
        found += vm_findings(one.vm)
        found += _place(one, state)
    for name in sorted({name for one in checked for name in one.hosts if name in state}):
        kinds = [one.vm for one in checked if name in one.hosts]
        found += stranded_findings(state[name], kinds)
    return sorted(_merged(found), key=lambda one: SEVERITIES.index(one.severity))


def _merged(found: Sequence[Finding]) -> list[Finding]:
    """What is said of several VMs on one host in the same words, once, with all their names."""
    same: dict[Finding, list[str]] = {}
    for one in found:
        same.setdefault(replace(one, vm=""), []).append(one.vm)
    return [replace(one, vm=", ".join(dict.fromkeys(names))) for one, names in same.items()]


def _certain_first(one: Checked) -> tuple[bool, int, int]:
    return not one.vm.powered_on or one.vm.planned, len(one.hosts), -len(one.vm.gpus)


def _place(one: Checked, state: dict[str, HostFacts]) -> list[Finding]:
    """The findings on the host that suits the VM best; the VM then stands there in ``state``."""
    looked = [(host_findings(one.vm, state[name]), name) for name in one.hosts if name in state]
    if not looked:
        return []
    found, name = min(looked, key=lambda at: (_weight(at[0]), one.hosts.index(at[1])))
    if all(vm.name != one.vm.name for vm in state[name].vms):
        taken = claim_gpus(state[name], one.vm)
        if not isinstance(taken, Refused):
            state[name] = replace(taken, vms=(*taken.vms, one.vm))
    return found


def _weight(found: Sequence[Finding]) -> tuple[int, ...]:
    return tuple(sum(one.severity == severity for one in found) for severity in SEVERITIES)


def _clusters(machines: Sequence[Machine]) -> set[str]:
    specs = [one.spec for one in machines]
    return {name for spec in specs for name in (spec.cluster, spec.host) if name}


def _hosts(
    vcenter: VCenter, near: Sequence[EsxiHost], vms: Sequence[VmState]
) -> dict[str, HostFacts]:
    rows = vcenter.read([host.ref for host in near], _HOST_GRAPHICS)
    graphics = {ref._GetMoId(): row for ref, row in rows}
    names = {vm.moid: vm for vm in vms if vm.power == "on"}
    found = {}
    for host in near:
        facts = host_facts(host, vms)
        found[host.name] = with_graphics(facts, graphics.get(host.ref._GetMoId(), {}), names)
    return found


def with_graphics(host: HostFacts, row: Mapping[str, Any], vms: Mapping[str, VmState]) -> HostFacts:
    """The host with NUMA nodes and graphics settings, and its vGPUs on the GPU that has them."""
    config, numa = row.get("config.graphicsConfig"), row.get("hardware.numaInfo")
    near = _numa_of_devices(numa)
    users = {
        one.pciId: [vms[ref._GetMoId()] for ref in one.vm or () if ref._GetMoId() in vms]
        for one in row.get("config.graphicsInfo") or ()
    }
    placed = _profiles(users) if any(users.values()) else None
    return replace(
        host,
        nodes=_nodes(host, numa),
        default_graphics=getattr(config, "hostDefaultGraphicsType", None) or None,
        assignment_policy=getattr(config, "sharedPassthruAssignmentPolicy", None) or None,
        gpus=tuple(
            replace(
                gpu,
                numa_node=near.get(gpu.address),
                profiles=gpu.profiles if placed is None else placed.get(gpu.address, ()),
            )
            for gpu in host.gpus
        ),
    )


def _profiles(users: Mapping[str, Sequence[VmState]]) -> dict[str, tuple[str, ...]]:
    """The vGPUs of each GPU, of which a host tells the VMs alone: a VM on two has half on each."""
    left = {
        vm.moid: [one.profile for one in vm_facts(vm).gpus if one.kind == "vgpu"]
        for several in users.values()
        for vm in several
    }
    many = {moid: len(profiles) for moid, profiles in left.items()}
    found: dict[str, tuple[str, ...]] = {}
    for address, several in users.items():
        for vm in several:
            on = sum(vm in others for others in users.values())
            share = -(-many[vm.moid] // on)
            taken, left[vm.moid] = left[vm.moid][:share], left[vm.moid][share:]
            found[address] = (*found.get(address, ()), *taken)
    return found


def _nodes(host: HostFacts, numa: Any) -> tuple[NumaNode, ...]:
    nodes = list(getattr(numa, "numaNode", None) or ())
    threads = sum(len(node.cpuID or ()) for node in nodes)
    if not threads:
        return ()
    return tuple(
        NumaNode(
            node=int(node.typeId),
            cores=round(len(node.cpuID) * host.cores / threads),
            memory_mib=int(node.memoryRangeLength) >> 20,
        )
        for node in nodes
    )


def _numa_of_devices(numa: Any) -> dict[str, int]:
    return {
        str(address): int(node.typeId)
        for node in getattr(numa, "numaNode", None) or ()
        for address in getattr(node, "pciId", None) or ()
    }


def _existing(vm: VmState, estate: Estate, pinned: str = "", kind: str = "") -> Checked:
    """A VM as it is. While it is off, any host of its cluster may be the one that powers it on."""
    here = [vm.host] if vm.host else []
    if vm.power != "on" and not pinned:
        here += _able(estate, cluster=vm.cluster, besides=vm.host)
    return Checked(vm=replace(vm_facts(vm), kind=kind), hosts=tuple(here))


def _planned(machine: Machine, there: VmState | None, estate: Estate) -> Checked:
    """A VM of the plan: as it is where it is there, else as ``apply`` would make it."""
    spec = machine.spec
    if there is not None:
        return _existing(there, estate, pinned=spec.host, kind=machine.key)
    hosts = [spec.host] if spec.host else _able(estate, cluster=spec.cluster)
    return Checked(vm=planned_vm(machine), hosts=tuple(hosts))


def _able(estate: Estate, *, cluster: str, besides: str = "") -> list[str]:
    return [
        host.name
        for host in estate.hosts
        if host.cluster == cluster and host.name != besides and not host.refuses
    ]
