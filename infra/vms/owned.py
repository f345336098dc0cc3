"""Which VMs a plan made: known by the marks in their extraConfig, and by nothing else.

A VM copied by hand inherits the marks of its original; the third mark, the original's own instance
UUID, gives it away. A VM that is being deployed from a library cannot be given extraConfig: its
note is its mark, until the first reconfiguration puts the marks in the note's place.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from infra.vms.estate import Estate, VmState
from infra.vms.resources import with_hardware
from infra.vms.spec import MARK_INSTANCE, MARK_PLAN, MARK_VM

if TYPE_CHECKING:
    from infra.vsphere.session import VCenter


@dataclass(frozen=True, kw_only=True)
class Owned:
    """The VMs with a plan's mark, their hardware read."""

    vms: tuple[VmState, ...]
    """Made by the plan."""
    copies: tuple[VmState, ...]
    """Bear its mark, but are another VM than the one it was put on."""
    others: tuple[VmState, ...]
    """Further VMs whose hardware was asked for."""

    def named(self, name: str) -> list[VmState]:
        """Those that are this VM of the plan; more than one is a mistake of somebody."""
        return [vm for vm in self.vms if vm.extra[MARK_VM] == name]


def read_owned(
    vcenter: VCenter,
    estate: Estate,
    plan: str,
    further: Sequence[VmState] = (),
    names: Collection[str] = (),
) -> Owned:
    """Read the hardware of the plan's VMs, and of ``further`` ones, in one sweep.

    Under ``names``, those of the plan, one may be found that is deployed and has no marks yet.
    """
    marked = [
        vm
        for vm in estate.vms
        if vm.extra.get(MARK_PLAN) == plan or (vm.name in names and not vm.template)
    ]
    refs = {vm.moid for vm in marked}
    read = with_hardware(vcenter, [*marked, *(vm for vm in further if vm.moid not in refs)])
    known = [_noted(vm, plan) if is_noted(vm, plan) else vm for vm in read]
    bearing = [vm for vm in known if vm.extra.get(MARK_PLAN) == plan]
    wanted = {vm.moid for vm in further}
    return Owned(
        vms=tuple(vm for vm in bearing if is_made(vm) or is_unfinished(vm)),
        copies=tuple(vm for vm in bearing if not is_made(vm) and not is_unfinished(vm)),
        others=tuple(vm for vm in known if vm.extra.get(MARK_PLAN) != plan and vm.moid in wanted),
    )


def is_made(vm: VmState) -> bool:
    """Whether a VM with the mark is the one that the mark was put on."""
    same = vm.extra.get(MARK_INSTANCE, "").lower() == vm.instance_uuid.lower()
    return bool(vm.extra.get(MARK_VM)) and same and not vm.template


def note(plan: str, vm: str) -> str:
    """The note that a VM has while it is deployed for a plan."""
    return "being deployed by StageScope: " + json.dumps({MARK_PLAN: plan, MARK_VM: vm})


def is_noted(vm: VmState, plan: str) -> bool:
    """Whether a VM has the note of a deployment for the plan, under the name that it tells."""
    return not vm.template and note(plan, vm.name) in str(vm.get("annotation", ""))


def _noted(vm: VmState, plan: str) -> VmState:
    """With the marks that its note stands for; those that it may have from its item are not its."""
    kept = {key: value for key, value in vm.extra.items() if key != MARK_INSTANCE}
    return replace(vm, extra={**kept, MARK_PLAN: plan, MARK_VM: vm.name})


def is_unfinished(vm: VmState) -> bool:
    """Whether a VM of a plan was deployed and has not got its marks yet."""
    return MARK_INSTANCE not in vm.extra and is_noted(vm, vm.extra.get(MARK_PLAN, ""))
