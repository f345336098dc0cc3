"""Which rights StageScope needs on a vCenter, for what, and whether an account has them.

One table, for the probe and for the documentation. Reading needs the three privileges of vCenter's
own role Read-only and no other; making VMs needs those of the second table beside it.
Source: vSphere Web Services API reference, "Required Privileges" of each method named here, and of
ReconfigVM_Task for what each change to a VM needs; for OVFs of content libraries vSphere Automation
API reference, "Vcenter Ovf LibraryItem deploy", and ImportVApp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pyVmomi import vmodl

from infra.vsphere.errors import sentence
from infra.vsphere.session import VCenter

Use = Literal["read", "apply"]
Where = Literal["root", "vm", "host", "pool", "datastore", "folder", "network", "template"]
PLACES: Mapping[Where, str] = {
    "root": "the vCenter itself, the top of the inventory",
    "vm": "the VM, or the folder it is in",
    "host": "the ESXi host, or its cluster",
    "pool": "the resource pool, or its cluster or host",
    "datastore": "the datastore, or its folder",
    "folder": "the VM folder, or the datacenter",
    "network": "the network or port group, or its folder",
    "template": "the template or source VM, or its folder",
}
READ_ONLY = "Read-only"
"""vCenter's own role: System.Anonymous, System.View, System.Read. Every role has those three."""


@dataclass(frozen=True, kw_only=True)
class Privilege:
    """One right at one kind of place: ``purpose`` it serves, and what is ``lost`` without it."""

    id: str
    label: str
    """As the vSphere Client shows it when a role is edited."""
    where: Where
    use: Use
    purpose: str
    lost: str

    def grant(self, name: str) -> str:
        """What an administrator does to grant it on the object ``name``."""
        role = (
            f"the role {READ_ONLY}"
            if self.id.startswith("System.")
            else f"a role with {self.label} ({self.id})"
        )
        return (
            f"vSphere Client, {name}, Permissions, Add: the account with {role} and Propagate to "
            f"children; may also be granted on {PLACES[self.where].rpartition(', or ')[2]}"
            if self.where != "root"
            else f"vSphere Client, {name} at the top, Permissions, Add: the account with {role}"
        )


def _read(
    where: Where, purpose: str, lost: str, id_: str = "System.Read", label: str = "System, Read"
) -> Privilege:
    return Privilege(id=id_, label=label, where=where, use="read", purpose=purpose, lost=lost)


def _apply(id_: str, label: str, where: Where, purpose: str) -> Privilege:
    lost = f"apply and destroy cannot {purpose}"
    return Privilege(id=id_, label=label, where=where, use="apply", purpose=purpose, lost=lost)


# fmt: off
READ = (
    _read("root", "find VMs by UUID or name", "no VM can be found", "System.View", "System, View"),
    _read("root", "read the counter table, maxQueryMetrics and events",
          "questions are cut to 256 series, whatever the server would allow, and a move of a VM is "
          "seen at the next query round instead of exactly"),
    _read("vm", "read the VM's placement, size and samples",
          "no hypervisor row of this VM in any profile"),
    _read("host", "read the host's samples, GPUs, power policy and date",
          "no host power, no host GPU, and the host's clock only by correlation"),
    _read("pool", "name the resource pool", "the placement names no resource pool"),
    _read("datastore", "name the datastores", "the placement has ids for the datastores' names"),
)
_CHANGE = "Virtual machine, Change Configuration, "
_INVENTORY = "Virtual machine, Edit Inventory, "
APPLY = (
    _apply("VirtualMachine.Inventory.Create", f"{_INVENTORY}Create new", "folder",
           "make a VM without a template"),
    _apply("VirtualMachine.Inventory.CreateFromExisting", f"{_INVENTORY}Create from existing",
           "folder", "clone a template"),
    _apply("VirtualMachine.Inventory.Delete", f"{_INVENTORY}Remove", "folder",
           "remove its own VMs"),
    _apply("VirtualMachine.Inventory.Move", f"{_INVENTORY}Move", "folder",
           "move a VM to another folder"),
    _apply("VirtualMachine.Provisioning.DeployTemplate",
           "Virtual machine, Provisioning, Deploy template", "template", "clone from a template"),
    _apply("VirtualMachine.Provisioning.Clone", "Virtual machine, Provisioning, Clone virtual "
           "machine", "template", "clone from a VM that is no template"),
    _apply("VApp.Import", "vApp, Import", "pool", "deploy an OVF of a content library"),
    _apply("VApp.Import", "vApp, Import", "folder", "deploy an OVF of a content library"),
    _apply("VirtualMachine.Config.AddNewDisk", f"{_CHANGE}Add new disk", "folder", "add a disk"),
    _apply("VirtualMachine.Config.DiskExtend", f"{_CHANGE}Extend virtual disk", "folder",
           "grow a disk"),
    _apply("VirtualMachine.Config.AddRemoveDevice", f"{_CHANGE}Add or remove device", "folder",
           "add or remove a network card or a GPU (vGPU, DirectPath, Dynamic DirectPath)"),
    _apply("VirtualMachine.Config.EditDevice", f"{_CHANGE}Modify device settings", "folder",
           "change a device"),
    _apply("VirtualMachine.Config.CPUCount", f"{_CHANGE}Change CPU count", "folder",
           "set virtual CPUs and their topology"),
    _apply("VirtualMachine.Config.Memory", f"{_CHANGE}Change Memory", "folder", "set the memory"),
    _apply("VirtualMachine.Config.Resource", f"{_CHANGE}Change resource", "folder",
           "set reservations and latency sensitivity"),
    _apply("VirtualMachine.Config.Settings", f"{_CHANGE}Change Settings", "folder",
           "set the firmware and other basic settings"),
    _apply("VirtualMachine.Config.AdvancedConfig", f"{_CHANGE}Advanced configuration", "folder",
           "write extraConfig: the plan's mark, pciPassthru settings, cloud-init"),
    _apply("VirtualMachine.Config.Annotation", f"{_CHANGE}Set annotation", "folder",
           "write the note of a VM from a content library"),
    _apply("VirtualMachine.Interact.PowerOn", "Virtual machine, Interaction, Power on", "folder",
           "power a VM on"),
    _apply("VirtualMachine.Interact.PowerOff", "Virtual machine, Interaction, Power off", "folder",
           "power a VM off, or shut its guest down"),
    _apply("Resource.AssignVMToPool", "Resource, Assign virtual machine to resource pool", "pool",
           "place a VM"),
    _apply("Resource.ColdMigrate", "Resource, Migrate powered off virtual machine", "folder",
           "move a VM that is off to another host or pool"),
    _apply("Resource.HotMigrate", "Resource, Migrate powered on virtual machine", "folder",
           "move a running VM to another host or pool"),
    _apply("Datastore.AllocateSpace", "Datastore, Allocate space", "datastore", "store a disk"),
    _apply("Network.Assign", "Network, Assign network", "network", "connect a network card"),
)
# fmt: on
TABLE = (*READ, *APPLY)


def as_markdown(use: Use) -> str:
    """The table of one use, as the documentation prints it."""
    lines = ["| privilege | in the vSphere Client | on | to |", "|---|---|---|---|"]
    lines += [
        f"| `{one.id}` | {one.label} | {PLACES[one.where]} | {one.purpose} |"
        for one in TABLE
        if one.use == use
    ]
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Right:
    """Whether the account has a privilege on an object; None: the server does not say."""

    privilege: Privilege
    entity: str
    granted: bool | None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        one = self.privilege
        return {
            "privilege": one.id,
            "label": one.label,
            "where": one.where,
            "entity": self.entity,
            "use": one.use,
            "granted": self.granted,
            "reason": self.reason,
            "lost": None if self.granted else one.lost,
            "grant": None if self.granted else one.grant(self.entity),
        }

    def problem(self) -> str | None:
        """What is missing, what it costs and how to grant it; None where nothing is."""
        if self.granted:
            return None
        one = self.privilege
        state = "is missing" if self.granted is False else f"could not be checked ({self.reason})"
        return f"{one.id} {state} on {self.entity}: {one.lost}. Grant it: {one.grant(self.entity)}"


Targets = Mapping[Where, Sequence[tuple[Any, str]]]
"""By kind of place, the objects there are, each with the name that people know it by."""


def check_rights(vcenter: VCenter, use: Use, targets: Targets) -> list[Right]:
    """Ask for each privilege of ``use`` on each of the ``targets``; what has no target is left out.

    One question for all; one for each object only where that fails.
    """
    wanted = [one for one in TABLE if one.use == use]
    asked = [(one, entity, name) for one in wanted for entity, name in targets.get(one.where, ())]
    held = _held(vcenter, asked)
    rights = []
    for one, entity, name in asked:
        answer = held.get((entity._GetMoId(), one.id), "the server does not answer for it")
        if isinstance(answer, str):
            rights.append(Right(privilege=one, entity=name, granted=None, reason=answer))
        else:
            rights.append(Right(privilege=one, entity=name, granted=answer))
    return rights


def _held(
    vcenter: VCenter, asked: Sequence[tuple[Privilege, Any, str]]
) -> dict[tuple[str, str], bool | str]:
    """By object id and privilege: granted or not, or why the server does not say."""
    entities = {entity._GetMoId(): entity for _, entity, _ in asked}
    ids = list(dict.fromkeys(one.id for one, _, _ in asked))
    if not entities:
        return {}
    try:
        return _ask(vcenter, list(entities.values()), ids)
    except vmodl.MethodFault:
        pass
    held: dict[tuple[str, str], bool | str] = {}
    for moid, entity in entities.items():
        try:
            held |= _ask(vcenter, [entity], ids)
        except vmodl.MethodFault as fault:
            held |= {(moid, id_): sentence(fault) for id_ in ids}
    return held


def _ask(
    vcenter: VCenter, entities: Sequence[Any], ids: Sequence[str]
) -> dict[tuple[str, str], bool | str]:
    content = vcenter.content

    def ask() -> Any:
        key = content.sessionManager.currentSession.key
        return content.authorizationManager.HasPrivilegeOnEntities(list(entities), key, list(ids))

    return {
        (answer.entity._GetMoId(), one.privId): bool(one.isGranted)
        for answer in vcenter.call(ask, read_only=True)
        for one in answer.privAvailability
    }
