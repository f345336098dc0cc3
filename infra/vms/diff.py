"""What ``apply`` would change, attribute by attribute, and all that is in the way of it.

Nothing is changed here. Each change knows how it is written, so that ``apply`` only gathers them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from infra.vms.changes import Change, Changes, Step, VmChanges
from infra.vms.cloudinit import guest_problems, guestinfo
from infra.vms.devices import (
    DeviceEdit,
    FreeDevices,
    address_of,
    disk_edits,
    gpu_edits,
    network_edits,
)
from infra.vms.estate import Estate, Ref, VmState
from infra.vms.library import read_items
from infra.vms.owned import Owned, is_unfinished, read_owned
from infra.vms.place import Place, find_place
from infra.vms.resources import read_estate, with_memory
from infra.vms.room import Placed, find_room, mmio_gib, too_much
from infra.vms.settings import SETTINGS, Setting, Target, put_extra
from infra.vms.sources import read_templates, source_notes, source_problems
from infra.vms.spec import (
    MARK_INSTANCE,
    MARK_PLAN,
    MARK_VM,
    MMIO_SIZE_GIB,
    USE_64BIT_MMIO,
    Guest,
    Machine,
    VmPlan,
    plan_problems,
)

if TYPE_CHECKING:
    from infra.vsphere.session import VCenter

DYNAMIC_SINCE = (7, 0)
"""API version with Dynamic DirectPath."""
LONGEST_SHOWN = 80
LIVE_KEYS = ("guestinfo.",)
"""extraConfig that a running VM takes at once; the rest is read at power-on."""


def plan_changes(vcenter: VCenter, plan: VmPlan) -> Changes:
    """Compare a plan with what the vCenter has. Changes nothing, raises nothing of the plan's."""
    machines = plan.machines()
    named = {name for one in machines for name in (one.spec.cluster, one.spec.host) if name}
    estate = read_estate(vcenter, clusters=named)
    near, rest = _crowd(estate, named, machines)
    owned = read_owned(vcenter, estate, plan.name, near, {one.name for one in machines})
    missing = [one for one in machines if not owned.named(one.name)]
    items = read_items(vcenter, (one.spec.content_library for one in missing))
    own = {vm.moid for vm in owned.vms}
    others = [*owned.others, *with_memory(vcenter, [vm for vm in rest if vm.moid not in own])]
    problems = plan_problems(plan)
    placed: list[Placed] = []
    for machine in machines:
        vm, said = _there(machine, estate, owned)
        item = items.get(machine.spec.content_library) if vm is None else None
        found = find_place(estate, machine, item)
        place, big = found.place, [*_too_old(machine, estate), *too_much(machine, found)]
        if place is not None and not place.hosts:
            said.append(_no_host(place))
        said += _guest_problems(machine)
        problems += [f"{machine.name}: {one}" for one in (*said, *found.problems, *big)]
        if place is not None and not said and not big:
            placed.append((machine, place, vm))
    templates = read_templates(vcenter, placed)
    problems += source_problems(placed, templates)
    crowded, chosen = find_room(placed, others)
    problems += crowded
    around = _Around(
        free=_free_devices(vcenter, estate, owned),
        port_groups={net.portgroup: net.name for net in estate.networks if net.portgroup},
        guestinfo={one.name: guestinfo(plan.name, one) for one, *_ in placed if _has_guest(one)},
    )
    compare = [_compare(one, around, problems) for one in placed]
    vms = [replace(one, host=_made_on(one, chosen)) for one in compare]
    return Changes(
        plan=plan.name,
        vms=tuple(vms),
        problems=tuple(dict.fromkeys(problems)),
        notes=(*_notes(machines, owned), *source_notes(placed, templates)),
    )


def _made_on(one: VmChanges, chosen: Mapping[str, str]) -> Ref:
    """The pinned host, else one with room: for a VM with GPUs, and where there is no DRS.

    DRS may still move a VM when it is powered on, but where it is first put, it looks at no GPU.
    """
    place = one.place
    if place.pinned is not None:
        return place.pinned.ref
    named = chosen.get(one.machine.name)
    if place.cluster.drs and not one.machine.spec.gpus:
        return None
    return next((host.ref for host in place.hosts if host.name == named), None)


def _crowd(
    estate: Estate, named: set[str], machines: Sequence[Machine]
) -> tuple[list[VmState], list[VmState]]:
    """VMs that run where the plan's may: those on hosts with GPUs, and the others.

    They hold what the plan's VMs need for themselves: GPUs, and memory that is reserved.
    """
    running = [
        (vm, bool(host.gpus))
        for host in estate.hosts
        if host.cluster in named or host.name in named
        for vm in estate.vms_on([host])
        if vm.power == "on"
    ]
    gpus = any(one.spec.gpus for one in machines)
    locked = any(one.spec.memory_locked or one.spec.memory_reservation_gib for one in machines)
    near = [vm for vm, has_gpus in running if has_gpus and gpus]
    return near, [vm for vm, has_gpus in running if locked and not (has_gpus and gpus)]


def _too_old(machine: Machine, estate: Estate) -> Iterator[str]:
    dynamic = any(gpu.kind == "dynamic" for gpu in machine.spec.gpus)
    if dynamic and estate.api < DYNAMIC_SINCE:
        said = ".".join(map(str, estate.api))
        yield f"Dynamic DirectPath needs a vCenter with API 7.0 or newer, this one has {said}"


def _has_guest(machine: Machine) -> bool:
    """cloud-init comes with a template; what the plan says of the guest is then written for it."""
    spec = machine.spec
    return bool(spec.template or spec.content_library) and spec.guest != Guest()


def _guest_problems(machine: Machine) -> list[str]:
    if not _has_guest(machine):
        return []
    said = guest_problems(machine)
    doubled = set() if said else {*guestinfo("", machine)} & {*machine.spec.extra_config}
    return said + [
        f"extra_config: {key} is written from guest; take one of the two out"
        for key in sorted(doubled)
    ]


def _no_host(place: Place) -> str:
    stores = {store.name for store in (place.store, *place.disk_stores)}
    nets = {net.name for net in place.networks}
    return (
        f"no host of {place.cluster.name} sees all of its stores and networks "
        f"({', '.join(sorted(stores | nets))})"
    )


def _there(machine: Machine, estate: Estate, owned: Owned) -> tuple[VmState | None, list[str]]:
    """The plan's VM as it is, and what stands in its way."""
    found = owned.named(machine.name)
    if len(found) > 1:
        names = ", ".join(f"{vm.name} ({vm.moid})" for vm in found)
        return None, [f"{len(found)} VMs bear its mark: {names}; remove all but one"]
    if found:
        return found[0], list(_unusable(found[0], machine))
    foreign = [
        vm
        for vm in estate.vms
        if vm.name == machine.name
        and vm.datacenter in {machine.spec.datacenter, *_datacenters(estate, machine)}
    ]
    if foreign:
        where = ", ".join(f"{vm.moid} on {vm.host or 'no host'}" for vm in foreign)
        return None, [
            f"a VM of this name is there that this plan did not make ({where}); it is left alone: "
            "rename one of the two"
        ]
    return None, []


def _datacenters(estate: Estate, machine: Machine) -> set[str]:
    spec = machine.spec
    return {
        cluster.datacenter
        for cluster in estate.clusters
        if cluster.name == spec.cluster or any(host.name == spec.host for host in cluster.hosts)
    }


def _unusable(vm: VmState, machine: Machine) -> Iterator[str]:
    spec = machine.spec
    if vm.power == "suspended":
        yield "it is suspended; resume it or power it off"
    if spec.datastore and vm.datastore != spec.datastore:
        yield (
            f"datastore: it lies on {vm.datastore} and the plan wants {spec.datastore}; apply "
            "moves no files: use Storage vMotion, or name its store in the plan"
        )
    fixed = any(gpu.kind == "passthrough" for gpu in spec.gpus)
    if fixed and vm.gpus and spec.host and vm.host != spec.host:
        yield (
            f"host: it is on {vm.host} and the plan wants {spec.host}; a VM with a passed-through "
            "GPU does not move: destroy it and apply anew"
        )


def _notes(machines: Sequence[Machine], owned: Owned) -> Iterator[str]:
    names = {machine.name for machine in machines}
    for vm in owned.vms:
        if vm.extra[MARK_VM] not in names:
            yield f"{vm.name}: made by this plan, which has it no longer; left alone until destroy"
    for vm in owned.copies:
        yield f"{vm.name}: a copy of one of this plan's VMs, not made by it; left alone"


def _free_devices(vcenter: VCenter, estate: Estate, owned: Owned) -> FreeDevices:
    browsers = {cluster.name: cluster.browser for cluster in estate.clusters}

    @cache
    def system_id(name: str) -> str:
        host = estate.host(name)
        assert host is not None
        target = vcenter.call(lambda: browsers[host.cluster].QueryConfigTarget(host=host.ref))
        return next((one.systemId for one in target.pciPassthrough or ()), "")

    free = FreeDevices(lambda host: system_id(host.name))
    for vm in (*owned.vms, *(vm for vm in owned.others if vm.power == "on")):
        for device in vm.gpus:
            if isinstance(
                device.backing, vim.vm.device.VirtualPCIPassthrough.DeviceBackingInfo
            ) and not isinstance(
                device.backing, vim.vm.device.VirtualPCIPassthrough.DynamicBackingInfo
            ):
                free.take(vm.host, address_of(device.backing))
    return free


@dataclass(frozen=True, kw_only=True)
class _Around:
    """What comparing a VM needs to know of the rest."""

    free: FreeDevices
    port_groups: Mapping[str, str]
    """Names of port groups by their key."""
    guestinfo: Mapping[str, Mapping[str, str]]
    """What cloud-init reads in each VM that has a guest planned, by the VM's name."""


def _compare(one: Placed, around: _Around, problems: list[str]) -> VmChanges:
    machine, place, vm = one
    here = tuple(host for host in place.cluster.hosts if vm is not None and host.name == vm.host)
    hosts = place.hosts if place.pinned or not here else here
    target = Target(machine=machine, hosts=hosts, vm=vm)
    said: list[str] = []
    if vm is None:
        changes = list(_creation(target, place, around, said))
    else:
        changes = [
            *_marks(machine, vm),
            *_placement(machine, place, vm),
            *_settings(target, vm, around),
            *_devices(machine, vm, place, around, said),
            *_power(machine, vm),
        ]
    if machine.spec.gpus and mmio_gib(machine, hosts) is None:
        said.append("the frame buffer of its GPU is not known; say memory_gib")
    problems += [f"{machine.name}: {sentence}" for sentence in said]
    return VmChanges(machine=machine, place=place, vm=vm, changes=tuple(changes))


def _creation(
    target: Target, place: Place, around: _Around, problems: list[str]
) -> Iterator[Change]:
    """All that the plan says of a VM that is not there; of the template it has what is left."""
    machine, spec = target.machine, target.machine.spec
    what = f"clone of {spec.template}" if spec.template else "new, empty"
    if spec.content_library:
        what = f"from {spec.content_library} of the content libraries"
    where = place.pinned.name if place.pinned else place.cluster.name
    nothing = VmState(
        name=machine.name,
        ref=None,
        host="",
        cluster=place.cluster.name,
        datacenter=place.cluster.datacenter,
        folder=spec.folder,
        pool=place.pool,
        power="off",
        template=False,
        config={},
    )
    yield Change(
        vm=machine.name,
        attribute="vm",
        now=None,
        wanted=f"{what}, on {where}, stored on {place.store.name}",
        step="create",
    )
    for setting in SETTINGS[1:]:
        value = setting.wanted(target)
        if value is not None:
            said = setting.says(value)
            yield Change(
                vm=machine.name, attribute=setting.name, now=None, wanted=said, step="create"
            )
    for change in (
        *_extra_config(target, nothing, around),
        *_devices(machine, nothing, place, around, problems),
        *_power(machine, nothing),
    ):
        yield Change(
            vm=machine.name,
            attribute=change.attribute,
            now=None,
            wanted=change.wanted,
            step="create",
        )


def _marks(machine: Machine, vm: VmState) -> Iterator[Change]:
    """The marks of a VM that was deployed, in the place of the note that it had until now."""
    if not is_unfinished(vm):
        return
    marks = {key: vm.extra[key] for key in (MARK_PLAN, MARK_VM)}
    marks[MARK_INSTANCE] = vm.instance_uuid

    def write(spec: Any) -> None:
        spec.annotation = f"from {machine.spec.content_library}, by StageScope"
        for key, value in marks.items():
            put_extra(spec, key, value)

    yield Change(vm=machine.name, attribute="mark", now=None, wanted=marks[MARK_PLAN], write=write)


def _placement(machine: Machine, place: Place, vm: VmState) -> Iterator[Change]:
    """Where the VM is: moved while it runs, unless a device of its host is passed through."""
    held = vm.power == "on" and any(
        not isinstance(one.backing, vim.vm.device.VirtualPCIPassthrough.VmiopBackingInfo)
        for one in vm.gpus
    )

    def moved(attribute: str, now: str, wanted: str, step: Step, power_off: bool) -> Change:
        return Change(
            vm=machine.name,
            attribute=attribute,
            now=now,
            wanted=wanted,
            power_off=power_off,
            step=step,
        )

    if vm.cluster != place.cluster.name:
        yield moved("cluster", vm.cluster, place.cluster.name, "relocate", held)
    if place.pinned is not None and vm.host != place.pinned.name:
        yield moved("host", vm.host, place.pinned.name, "relocate", held)
    if vm.cluster == place.cluster.name and not _same(vm.pool, place.pool):
        wanted = machine.spec.resource_pool or "the cluster's own"
        yield moved("resource_pool", "another one", wanted, "relocate", False)
    folder = machine.spec.folder.strip("/")
    if vm.folder != folder:
        yield moved("folder", vm.folder or "/", folder or "/", "move", False)


def _same(one: Ref, other: Ref) -> bool:
    return one is not None and one._GetMoId() == other._GetMoId()


def _settings(target: Target, vm: VmState, around: _Around) -> Iterator[Change]:
    for setting in SETTINGS:
        now, wanted = setting.now(vm), setting.wanted(target)
        if wanted is not None and now != wanted:
            yield Change(
                vm=target.machine.name,
                attribute=setting.name,
                now=setting.says(now),
                wanted=setting.says(wanted),
                power_off=setting.needs_off(target, vm),
                write=_writes(setting, wanted, vm),
            )
    yield from _extra_config(target, vm, around)


def _writes(setting: Setting, wanted: Any, vm: VmState) -> Callable[[Any], None]:
    return lambda spec: setting.write(spec, wanted, vm)


def _extra_config(target: Target, vm: VmState, around: _Around) -> Iterator[Change]:
    """Advanced settings: the plan's, cloud-init's, and those that map the memory of GPUs."""
    spec = target.machine.spec
    size = mmio_gib(target.machine, target.hosts)
    guest = around.guestinfo.get(target.machine.name, {})
    # No running VM is to be powered off for what its plan does not name.
    said = spec.extra_config if vm.power == "on" else spec.further_config
    wanted: dict[str, str | None] = {**said, **guest}
    wanted[USE_64BIT_MMIO] = "TRUE" if spec.gpus else None
    wanted[MMIO_SIZE_GIB] = str(size) if spec.gpus and size is not None else None
    for key, value in wanted.items():
        now = vm.extra.get(key)
        same = now == value or (now or "").upper() == (value or "").upper() == "TRUE"
        if not same:
            live = key.startswith(LIVE_KEYS)
            yield Change(
                vm=target.machine.name,
                attribute=f"extra_config.{key}",
                now=_short(now),
                wanted=_short(value),
                power_off=vm.power == "on" and not live,
                write=_writes_extra(key, value or ""),
            )


def _short(value: str | None) -> str | None:
    """A value as a table can show it."""
    if value is None or len(value) <= LONGEST_SHOWN:
        return value
    digest = hashlib.sha256(value.encode()).hexdigest()[:8]
    return f"{len(value)} characters, SHA-256 {digest}…"


def _writes_extra(key: str, value: str) -> Callable[[Any], None]:
    return lambda spec: put_extra(spec, key, value)


def _devices(
    machine: Machine, vm: VmState, place: Place, around: _Around, problems: list[str]
) -> Iterator[Change]:
    spec = machine.spec
    edits: list[DeviceEdit] = [
        *disk_edits(spec, vm, place, problems),
        *network_edits(vm, place, around.port_groups),
        *gpu_edits(spec, vm, place, around.free),
    ]
    for edit in edits:
        yield Change(
            vm=machine.name,
            attribute=edit.attribute,
            now=edit.now,
            wanted=edit.wanted,
            power_off=edit.power_off and vm.power == "on",
            make=edit.make,
        )


def _power(machine: Machine, vm: VmState) -> Iterator[Change]:
    if vm.power != machine.spec.power:
        yield Change(
            vm=machine.name,
            attribute="power",
            now=vm.power,
            wanted=machine.spec.power,
            power_off=machine.spec.power == "off",
            step="power",
        )
