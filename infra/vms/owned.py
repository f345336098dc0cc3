"""Which VMs a plan made: known by the marks in their extraConfig, and by nothing else.

A VM copied by hand inherits the marks of its original; the third mark, the original's own instance
UUID, gives it away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    vcenter: VCenter, estate: Estate, plan: str, further: Sequence[VmState] = ()
) -> Owned:
    """Read the hardware of the plan's VMs, and of ``further`` ones, in one sweep."""
    marked = [vm for vm in estate.vms if vm.extra.get(MARK_PLAN) == plan]
    refs = {vm.moid for vm in marked}
    read = with_hardware(vcenter, [*marked, *(vm for vm in further if vm.moid not in refs)])
    bearing = [vm for vm in read if vm.moid in refs]
    return Owned(
        vms=tuple(vm for vm in bearing if is_made(vm)),
        copies=tuple(vm for vm in bearing if not is_made(vm)),
        others=tuple(vm for vm in read if vm.moid not in refs),
    )


def is_made(vm: VmState) -> bool:
    """Whether a VM with the mark is the one that the mark was put on."""
    same = vm.extra.get(MARK_INSTANCE, "").lower() == vm.instance_uuid.lower()
    return bool(vm.extra.get(MARK_VM)) and same and not vm.template
