"""What a plan's VMs bring along from their templates, and whether its stores have room for more.

A clone can grow its disks and cannot shrink them: what would only be refused once the clone is
there is said before it is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from infra.vms.devices import disks_of
from infra.vms.estate import KIB_PER_GIB, Store, VmState
from infra.vms.resources import with_hardware
from infra.vms.room import Placed
from infra.vms.spec import VmSpec

if TYPE_CHECKING:
    from infra.vsphere.session import VCenter

GIB = 1 << 30


def read_templates(vcenter: VCenter, placed: Sequence[Placed]) -> dict[str, VmState]:
    """The templates of VMs that are not there yet, their hardware read, by their id."""
    wanted = {
        place.template.moid: place.template
        for _, place, vm in placed
        if vm is None and place.template is not None
    }
    if not wanted:
        return {}
    return {one.moid: one for one in with_hardware(vcenter, list(wanted.values()))}


def source_problems(placed: Sequence[Placed], templates: Mapping[str, VmState]) -> list[str]:
    """What the templates and the stores do not give, one sentence each."""
    problems = [
        f"{machine.name}: {said}"
        for machine, place, vm in placed
        if vm is None and place.template is not None and place.template.moid in templates
        for said in _disk_problems(machine.spec, templates[place.template.moid])
    ]
    return problems + list(_too_full(placed, templates))


def source_notes(placed: Sequence[Placed], templates: Mapping[str, VmState]) -> Iterator[str]:
    """What is worth to be known of the templates, once for each."""
    unlike: dict[str, list[str]] = {}
    for machine, place, vm in placed:
        template = None if place.template is None else templates.get(place.template.moid)
        if vm is None and template is not None and template.firmware != machine.spec.firmware:
            unlike.setdefault(template.moid, []).append(machine.key)
    for moid, keys in unlike.items():
        template = templates[moid]
        wanted = "bios" if template.firmware == "efi" else "efi"
        yield (
            f"{', '.join(dict.fromkeys(keys))}: template {template.name} has firmware "
            f"{template.firmware} and the VM gets {wanted}: a guest that was installed under "
            f"{template.firmware} does not boot then"
        )


def _disk_problems(spec: VmSpec, template: VmState) -> Iterator[str]:
    for index, (disk, wanted) in enumerate(zip(disks_of(template), spec.disks, strict=False), 1):
        has_gib = int(disk.capacityInKB) / KIB_PER_GIB
        if has_gib > wanted.gib:
            yield (
                f"disk {index}: template {template.name} has {has_gib:g} GiB and the plan wants "
                f"{wanted.gib}; a disk cannot shrink"
            )
        if wanted.datastore and wanted.datastore != spec.datastore:
            yield (
                f"disk {index}: it is the template's own and comes to {spec.datastore} with it, "
                f"the plan wants {wanted.datastore}; take its datastore out"
            )


def _too_full(placed: Sequence[Placed], templates: Mapping[str, VmState]) -> Iterator[str]:
    """Thick disks take their room at once; thin ones may together be more than the store has."""
    wanted_gib: dict[str, int] = {}
    stores: dict[str, Store] = {}
    for machine, place, vm in placed:
        template = templates.get(place.template.moid) if place.template is not None else None
        there = _many_disks(vm if vm is not None else template)
        for disk, store in list(zip(machine.spec.disks, place.disk_stores, strict=True))[there:]:
            if not disk.thin:
                stores[store.name] = store
                wanted_gib[store.name] = wanted_gib.get(store.name, 0) + disk.gib
    for name, gib in wanted_gib.items():
        if gib * GIB > stores[name].free_bytes:
            yield (
                f"datastore {name!r}: {gib} GiB of thick disks are wanted and "
                f"{stores[name].free_bytes // GIB} are free; free some, or set thin = true"
            )


def _many_disks(vm: VmState | None) -> int:
    disks: Sequence[Any] = () if vm is None else disks_of(vm)
    return len(disks)
