"""Which VM is this, and on what does it stand: host, cluster, pool, datastores and GPUs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import unquote

from pyVmomi import vim, vmodl

from infra.placement import VmPlace, uuid_forms
from infra.vsphere.errors import NoSuchVm, sentence
from infra.vsphere.session import VCenter

__all__ = ["VmPlace", "find_each", "find_this_vm", "find_vms", "places", "uuid_forms"]

VM = "VirtualMachine"
VM_PROPERTIES = (
    "name",
    "config.uuid",
    "config.instanceUuid",
    "config.hardware.numCPU",
    "config.hardware.memoryMB",
    "config.hardware.device",
    "runtime.host",
    "resourcePool",
    "datastore",
)
HOST_PROPERTIES = ("name", "parent", "summary.hardware", "summary.config.product")
POWER_POLICY = "config.powerSystemInfo"
"""Apart: some hosts leave their power to the BIOS and have none."""
POLICY_NAMES = {"static": "high performance", "dynamic": "balanced", "low": "low power"}
GPU_VENDORS = {0x10DE: "NVIDIA", 0x1002: "AMD"}
"""PCI vendors whose passed-through devices are GPUs; a passed-through network card is none."""
NOT_SEEN = (
    "is it another vCenter, or may the account not see it? (it needs the role Read-only on the VM "
    "or on what lies above it, with propagation)"
)
MOST_LEVELS = 32
"""Of nested folders above a host; vCenter's own limit is far below."""


def find_this_vm(vcenter: VCenter, product_uuid: str | None, override: str = "") -> VmPlace:
    """The VM in which this process runs, by its DMI UUID or by what ``override`` names.

    Raises NoSuchVm with a sentence.
    """
    if override:
        return find_vms(vcenter, [override])[0]
    if not product_uuid:
        raise NoSuchVm(
            "this machine's DMI UUID cannot be read, so it cannot find itself in the vCenter: let "
            "root do chmod a+r /sys/class/dmi/id/product_uuid, or name the VM with vcenter.vm"
        )
    if not uuid_forms(product_uuid):
        raise NoSuchVm(
            f"this machine's DMI UUID {product_uuid!r} is none; name the VM with vcenter.vm"
        )
    return find_vms(vcenter, [product_uuid])[0]


def find_vms(vcenter: VCenter, names_or_uuids: Sequence[str]) -> list[VmPlace]:
    """The VMs of these names or UUIDs, in this order. Raises NoSuchVm naming all that fail."""
    found, problems = _look_for(vcenter, names_or_uuids)
    if problems:
        told = "; ".join(map(str, problems.values()))
        raise NoSuchVm(told, [vm for one in problems.values() for vm in one.vms])
    return _stand_on(vcenter, found)


def find_each(
    vcenter: VCenter, names_or_uuids: Sequence[str]
) -> tuple[list[VmPlace], dict[str, NoSuchVm]]:
    """Those VMs that are there and, by name, why the others are not."""
    found, problems = _look_for(vcenter, names_or_uuids)
    placed: list[VmPlace] = []
    for wanted, vm in zip(
        (one for one in names_or_uuids if one not in problems), found, strict=True
    ):
        try:
            placed += _stand_on(vcenter, [vm])
        except NoSuchVm as error:
            problems[wanted] = error
    return placed, problems


def _look_for(
    vcenter: VCenter, names_or_uuids: Sequence[str]
) -> tuple[list[Any], dict[str, NoSuchVm]]:
    by_name = _Names(vcenter)
    found: list[Any] = []
    problems: dict[str, NoSuchVm] = {}
    for wanted in names_or_uuids:
        try:
            found.append(_by_uuid(vcenter, wanted) or by_name.find(wanted))
        except NoSuchVm as error:
            problems[wanted] = error
        except vmodl.MethodFault as fault:
            problems[wanted] = NoSuchVm(f"VM {wanted} cannot be looked for: {sentence(fault)}")
    return found, problems


def _stand_on(vcenter: VCenter, vms: Sequence[Any]) -> list[VmPlace]:
    try:
        return places(vcenter, vms)
    except vmodl.MethodFault as fault:
        raise NoSuchVm(f"what the VMs stand on cannot be read: {sentence(fault)}") from fault


def _by_uuid(vcenter: VCenter, wanted: str) -> Any:
    forms = uuid_forms(wanted)
    if not forms:
        return None
    index = vcenter.content.searchIndex

    def ask(uuid: str, *, instance: bool) -> list[Any]:
        return list(
            vcenter.call(lambda: index.FindAllByUuid(None, uuid, True, instance), read_only=True)
            or ()
        )

    matches = [vm for form in forms for vm in ask(form, instance=False)]
    matches = matches or ask(forms[0], instance=True)
    unique = list({vm._GetMoId(): vm for vm in matches}.values())
    if len(unique) > 1:
        copies = _instances(vcenter, unique)
        raise NoSuchVm(
            f"{len(unique)} VMs have the UUID {wanted} (copies that kept it): "
            f"{_listed(copies)}; name one by its instance UUID",
            [name for name, _ in copies],
        )
    if not unique:
        raise NoSuchVm(f"the vCenter shows no VM with the UUID {wanted}: {NOT_SEEN}")
    return unique[0]


class _Names:
    """All VMs by name, asked for once and only where a name is looked for."""

    def __init__(self, vcenter: VCenter) -> None:
        self._vcenter = vcenter
        self._vms: dict[str, list[Any]] | None = None

    def find(self, wanted: str) -> Any:
        if self._vms is None:
            self._vms = {}
            for vm, properties in self._vcenter.retrieve(vim.VirtualMachine, ["name"]):
                if "name" in properties:
                    self._vms.setdefault(_plain(properties["name"]), []).append(vm)
        matches = self._vms.get(wanted, [])
        if len(matches) > 1:
            twins = _listed(_instances(self._vcenter, matches))
            raise NoSuchVm(
                f"{len(matches)} VMs are named {wanted}: {twins}; name one by its instance UUID"
            )
        if not matches:
            near = difflib.get_close_matches(wanted, self._vms, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise NoSuchVm(
                f"no VM named {wanted} among the {len(self._vms)} that the account sees; "
                f"{hint}{NOT_SEEN}",
                near,
            )
        return matches[0]


def _instances(vcenter: VCenter, vms: Sequence[Any]) -> list[tuple[str, str]]:
    """Name and instance UUID of each."""
    read = vcenter.read(vms, ["name", "config.instanceUuid"])
    return [
        (_plain(one.get("name", vm._GetMoId())), one.get("config.instanceUuid", "no UUID"))
        for vm, one in read
    ]


def _listed(instances: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{name} ({uuid})" for name, uuid in instances)


def places(vcenter: VCenter, vms: Sequence[Any]) -> list[VmPlace]:
    """What these VMs stand on, asked for kind by kind, not VM by VM."""
    read = {
        vm._GetMoId(): properties for vm, properties in vcenter.read(_unique(vms), VM_PROPERTIES)
    }
    for moid, properties in read.items():
        for needed in ("name", "runtime.host", "config.hardware.numCPU"):
            if needed not in properties:
                name = _plain(properties.get("name", moid))
                raise NoSuchVm(
                    f"VM {name}: the vCenter does not tell its {needed}: it is orphaned or "
                    "inaccessible, or the account may not read that "
                    "(it needs System.Read, which the role Read-only has)",
                    [name],
                )
    hosts = _Hosts(vcenter, [properties["runtime.host"] for properties in read.values()])
    named = _names(
        vcenter,
        [
            one
            for properties in read.values()
            for one in [*properties.get("datastore", ()), properties.get("resourcePool")]
            if one is not None
        ],
    )
    return [_place(vcenter, vm, read[vm._GetMoId()], hosts, named) for vm in vms]


def _place(
    vcenter: VCenter, vm: Any, properties: dict[str, Any], hosts: _Hosts, named: dict[str, str]
) -> VmPlace:
    host = properties["runtime.host"]
    pool = properties.get("resourcePool")
    about = vcenter.content.about
    return VmPlace(
        vm=_plain(properties["name"]),
        moid=vm._GetMoId(),
        uuid=properties.get("config.uuid", ""),
        instance_uuid=properties.get("config.instanceUuid", ""),
        resource_pool=None if pool is None else named.get(pool._GetMoId()),
        datastores=tuple(
            sorted(
                named.get(store._GetMoId(), store._GetMoId())
                for store in properties.get("datastore", ())
            )
        ),
        vcpus=properties["config.hardware.numCPU"],
        memory_bytes=properties["config.hardware.memoryMB"] << 20,
        gpus=tuple(_gpus(properties.get("config.hardware.device", ()))),
        vcenter_version=f"{about.version} build {about.build}",
        **hosts.describe(host),
    )


class _Hosts:
    """The hosts of some VMs, and the cluster and datacenter above each."""

    def __init__(self, vcenter: VCenter, hosts: Sequence[Any]) -> None:
        self._vcenter = vcenter
        unique = _unique(hosts)
        self._read = _properties(vcenter, unique, HOST_PROPERTIES)
        self._policies = _properties(vcenter, unique, [POWER_POLICY])
        self._above = _climb(vcenter, [one.get("parent") for one in self._read.values()])

    def describe(self, host: Any) -> dict[str, Any]:
        moid = host._GetMoId()
        read = self._read.get(moid, {})
        hardware, product = read.get("summary.hardware"), read.get("summary.config.product")
        above = self._ancestors(read.get("parent"))
        return {
            "esxi_host": read.get("name", moid),
            "host_moid": moid,
            "cluster": _first(above, vim.ClusterComputeResource),
            "datacenter": _first(above, vim.Datacenter),
            "host_cpu_mhz": hardware.cpuMhz if hardware else None,
            "host_cores": hardware.numCpuCores if hardware else None,
            "host_power_policy": _policy(self._policies.get(moid, {}).get(POWER_POLICY)),
            "esxi_version": f"{product.version} build {product.build}" if product else None,
        }

    def _ancestors(self, parent: Any) -> list[tuple[Any, str]]:
        above = []
        while parent is not None and (read := self._above.get(parent._GetMoId())):
            above.append((parent, _plain(read.get("name", parent._GetMoId()))))
            parent = read.get("parent")
        return above


def _climb(vcenter: VCenter, objects: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """Name and parent of all that lies above, level by level for all at once."""
    known: dict[str, dict[str, Any]] = {}
    level = [one for one in objects if one is not None]
    for _ in range(MOST_LEVELS):
        level = [one for one in _unique(level) if one._GetMoId() not in known]
        if not level:
            break
        read = _properties(vcenter, level, ["name", "parent"])
        known |= read
        level = [one["parent"] for one in read.values() if one.get("parent") is not None]
    return known


def _first(above: Sequence[tuple[Any, str]], kind: type) -> str | None:
    return next((name for one, name in above if isinstance(one, kind)), None)


def _properties(
    vcenter: VCenter, objects: Sequence[Any], properties: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Properties by object id; of what the account may not see, nothing."""
    try:
        return {one._GetMoId(): read for one, read in vcenter.read(objects, properties)}
    except vim.fault.NoPermission:
        return {}


def _names(vcenter: VCenter, objects: Sequence[Any]) -> dict[str, str]:
    read = _properties(vcenter, _unique(objects), ["name"])
    return {moid: _plain(one["name"]) for moid, one in read.items() if "name" in one}


def _unique(objects: Iterable[Any]) -> list[Any]:
    return list({one._GetMoId(): one for one in objects}.values())


def _plain(name: str) -> str:
    return unquote(name)  # vCenter writes %2f for a slash in a name


def _policy(power: Any) -> str | None:
    policy = power.currentPolicy if power else None
    return POLICY_NAMES.get(policy.shortName, policy.name or policy.shortName) if policy else None


def _gpus(devices: Iterable[Any]) -> Iterable[str]:
    passthrough = vim.vm.device.VirtualPCIPassthrough
    for device in devices:
        if not isinstance(device, passthrough):
            continue
        backing = device.backing
        if isinstance(backing, passthrough.VmiopBackingInfo):
            yield f"vGPU {backing.vgpu}"
        elif isinstance(backing, passthrough.DynamicBackingInfo):
            allowed = " or ".join(
                f"{one.vendorId & 0xFFFF:04x}:{one.deviceId & 0xFFFF:04x}"
                for one in backing.allowedDevice
            )
            label = f" ({backing.customLabel})" if backing.customLabel else ""
            yield f"dynamic passthrough {allowed or 'any'}{label}"
        elif isinstance(backing, passthrough.DeviceBackingInfo) and _is_gpu(backing):
            yield f"passthrough {backing.id}"


def _is_gpu(backing: Any) -> bool:
    return (backing.vendorId or 0) & 0xFFFF in GPU_VENDORS  # the API gives 16 bits with a sign
