"""Where known VMs are now, and when they changed their host: vMotion, DRS, or a restart by HA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pyVmomi import vim, vmodl

from infra.placement import VmPlace
from infra.vsphere.counters import faults_as_refusals
from infra.vsphere.errors import NoSuchVm
from infra.vsphere.find import places
from infra.vsphere.perf_xml import datetime_ns
from infra.vsphere.session import VCenter

KINDS = (
    "VmMigratedEvent",
    "DrsVmMigratedEvent",
    "VmRelocatedEvent",
    "VmRestartedOnAlternateHostEvent",
)


@dataclass(frozen=True, kw_only=True)
class Migration:
    """A VM is on ``to_host`` from ``at_ns`` on, on the server's clock."""

    at_ns: int
    from_host: str
    from_moid: str
    to_host: str
    to_moid: str


def where_now(vcenter: VCenter, moids: Sequence[str]) -> tuple[list[VmPlace], dict[str, NoSuchVm]]:
    """Where these VMs are and, by id, why that of the others is not told (orphaned, inaccessible).

    One that was deleted is in neither. Raises VCenterError, and NoSuchVm where it is the first
    of which nothing is told.
    """
    vms = [vim.VirtualMachine(moid, vcenter.stub) for moid in moids]
    try:
        with faults_as_refusals(vmodl.fault.ManagedObjectNotFound):
            return places(vcenter, vms), {}
    except vmodl.fault.ManagedObjectNotFound:
        if len(moids) == 1:
            return [], {}
    except NoSuchVm:
        if len(moids) == 1:
            raise
    return _one_by_one(vcenter, moids)


def _one_by_one(
    vcenter: VCenter, moids: Sequence[str]
) -> tuple[list[VmPlace], dict[str, NoSuchVm]]:
    found: list[VmPlace] = []
    untold: dict[str, NoSuchVm] = {}
    for moid in moids:
        try:
            found += where_now(vcenter, [moid])[0]
        except NoSuchVm as error:
            if moid == moids[0]:
                raise
            untold[moid] = error
    return found, untold


def migrations(vcenter: VCenter, moid: str, since_ns: int) -> list[Migration]:
    """The changes of host since then, oldest first. Raises VCenterError."""
    specs = vim.event.EventFilterSpec
    vm = vim.VirtualMachine(moid, vcenter.stub)
    begin = datetime.fromtimestamp(since_ns / 1e9, UTC)
    spec = specs(
        entity=specs.ByEntity(entity=vm, recursion=specs.RecursionOption.self),
        time=specs.ByTime(beginTime=begin),
        eventTypeId=list(KINDS),
    )
    manager = vcenter.content.eventManager
    with faults_as_refusals():
        events = vcenter.call(lambda: manager.QueryEvents(spec), read_only=True)
    found = [one for event in events or () for one in _migration(event)]
    return sorted(found, key=lambda one: one.at_ns)


def _migration(event: Any) -> list[Migration]:
    before, after = getattr(event, "sourceHost", None), event.host
    if before is None or after is None or before.host == after.host:
        return []  # its disks moved, not the VM
    return [
        Migration(
            at_ns=datetime_ns(event.createdTime),
            from_host=before.name,
            from_moid=before.host._GetMoId(),
            to_host=after.name,
            to_moid=after.host._GetMoId(),
        )
    ]
