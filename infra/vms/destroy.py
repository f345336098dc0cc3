"""Remove what a plan made, and nothing else.

Only VMs with the plan's marks and the instance UUID that was marked are touched. What else bears
one of its names, or a copied mark, is named and left alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from infra.vms.estate import VmState
from infra.vms.owned import Owned, is_unfinished, read_owned
from infra.vms.resources import read_estate
from infra.vms.spec import MARK_VM, VmPlan
from infra.vms.tasks import Hook, Job, Progress, Tasks, nothing

if TYPE_CHECKING:
    from infra.vsphere.session import VCenter


@dataclass(frozen=True, kw_only=True)
class Doomed:
    """What a destroy would remove, and what it would leave."""

    plan: str
    vms: tuple[VmState, ...]
    left: tuple[str, ...]
    """Sentences on VMs that one might take for the plan's."""

    def to_json(self) -> dict[str, Any]:
        names = [{"vm": vm.name, "moid": vm.moid, "power": vm.power} for vm in self.vms]
        return {"plan": self.plan, "vms": names, "left": list(self.left)}


@dataclass(frozen=True, kw_only=True)
class Destroyed:
    """What a destroy did."""

    removed: tuple[str, ...]
    left: tuple[str, ...]
    failed: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {name: list(getattr(self, name)) for name in ("removed", "left", "failed")}


def find_doomed(vcenter: VCenter, plan: VmPlan) -> Doomed:
    """Look what the plan made; VMs that it no longer has are among it."""
    estate = read_estate(vcenter)
    names = {machine.name for machine in plan.machines()}
    owned = read_owned(vcenter, estate, plan.name, names=names)
    own = {vm.moid for vm in (*owned.vms, *owned.copies)}
    left = [
        f"{vm.name} ({vm.moid}): not made by this plan, only named like one of its VMs; left alone"
        for vm in estate.vms
        if vm.name in names and vm.moid not in own
    ]
    kept = [(vm, disks) for vm in owned.vms if (disks := _guests_disks(vm))]
    left += [
        f"{vm.name} ({vm.moid}): it has {', '.join(disks)}, which was not made with it; detach "
        "that first; left alone"
        for vm, disks in kept
    ]
    held = {vm.moid for vm, _ in kept}
    return Doomed(
        plan=plan.name,
        vms=tuple(vm for vm in owned.vms if vm.moid not in held),
        left=(*left, *_copies(owned)),
    )


def _copies(owned: Owned) -> list[str]:
    return [
        f"{vm.name} ({vm.moid}): a copy of one of this plan's VMs, not made by it; left alone"
        for vm in owned.copies
    ]


def _guests_disks(vm: VmState) -> list[str]:
    """Disks that were attached by hand: destroying the VM would delete them too."""
    files = [
        getattr(disk.backing, "fileName", None)
        for disk in vm.devices
        if isinstance(disk, vim.vm.device.VirtualDisk)
    ]
    return [name for name in files if name and not _own_file(vm, name)]


def _own_file(vm: VmState, path: str) -> bool:
    """Whether a file lies in the VM's folder, or bears its name: as on another store it does."""
    home, file = _inside(str(vm.get("files.vmPathName", ""))), _inside(path)
    names = {home.parent.name, vm.extra[MARK_VM]} - {""}
    numbered = rf"({'|'.join(map(re.escape, sorted(names)))})(_\d+| \(\d+\))?"
    return file.parent == home.parent or any(
        re.fullmatch(numbered, name) for name in (file.parent.name, file.stem)
    )


def _inside(path: str) -> PurePosixPath:
    """The path within its datastore: b/c.vmdk of ``[a] b/c.vmdk``."""
    return PurePosixPath(path.partition("] ")[2])


def destroy(
    vcenter: VCenter,
    doomed: Doomed,
    *,
    progress: Progress = nothing,
    hook: Hook = nothing,
) -> Destroyed:
    """Power off and delete these VMs with their disks. One that was killed is repeated."""
    tasks = Tasks(vcenter=vcenter, progress=progress, hook=hook)
    pools = [vm.pool for vm in doomed.vms if is_unfinished(vm)]  # may still be deployed
    tasks.settle([vm.ref for vm in doomed.vms] + pools)
    running = [vm for vm in doomed.vms if vm.power != "off"]
    failed = tasks.run(
        [Job(vm=vm.name, what="power off", start=vm.ref.PowerOffVM_Task) for vm in running]
    )
    able = [vm for vm in doomed.vms if vm.name not in failed]
    failed |= tasks.run([Job(vm=vm.name, what="destroy", start=vm.ref.Destroy_Task) for vm in able])
    return Destroyed(
        removed=tuple(vm.name for vm in doomed.vms if vm.name not in failed),
        left=doomed.left,
        failed=tuple(f"{name}: {said}" for name, said in failed.items()),
    )
