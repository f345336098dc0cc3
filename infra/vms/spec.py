"""A plan of VMs: one TOML file that says which VMs a pipeline needs, typed and checked in whole.

``read_plan`` says all that is wrong with the file at once; what only a vCenter can know (is there
such a datastore?) is the matter of ``infra.vms.diff``. Figures have their unit in their name.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from infra.toml_model import Count, Section, override, sentence, without
from infra.vms.gpu import (
    GPU_MEMORY_GIB,
    Gpu,
    mmio_size_gib,
    one_gpu_problems,
    profile_is_mig,
    profile_memory_gib,
)
from infra.vsphere.settings import VCenterSettings

__all__ = [
    "GPU_MEMORY_GIB",
    "MARK_INSTANCE",
    "MARK_PLAN",
    "MARK_VM",
    "MMIO_SIZE_GIB",
    "RESERVED_KEYS",
    "STEAL_CLOCK",
    "USE_64BIT_MMIO",
    "Disk",
    "Gpu",
    "Guest",
    "Machine",
    "Numa",
    "PlanError",
    "VmPlan",
    "VmSpec",
    "mmio_size_gib",
    "plan_problems",
    "profile_is_mig",
    "profile_memory_gib",
    "read_plan",
    "split_item",
]

MARK_PLAN = "stagescope.plan"
"""Key of the extraConfig entry that says which plan made a VM."""
MARK_VM = "stagescope.vm"
"""... and which VM of it this is."""
MARK_INSTANCE = "stagescope.instance"
"""... and its own instance UUID: a copy made by hand inherits the marks, but has another one."""

USE_64BIT_MMIO = "pciPassthru.use64bitMMIO"
MMIO_SIZE_GIB = "pciPassthru.64bitMMIOSizeGB"
RESERVED_KEYS = (MARK_PLAN, MARK_VM, MARK_INSTANCE, USE_64BIT_MMIO, MMIO_SIZE_GIB)
"""extraConfig entries that a plan does not set itself: ``apply`` does."""
STEAL_CLOCK = "stealclock.enable"
"""Lets a Linux guest count the CPU time that was stolen from it; not set, it counts 0."""

_ROUNDS = 4
"""Checks of a file, each without what was wrong before: one error can hide another."""
_NAME = r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$"
"""A VM's name is its guest's host name as well."""


class PlanError(ValueError):
    """Everything that is wrong with a plan; ``problems`` has one sentence for each.

    ``rest`` is what can still be checked against a vCenter, None where nothing can.
    """

    def __init__(self, source: str, problems: Sequence[str], rest: VmPlan | None = None) -> None:
        self.source, self.problems, self.rest = source, list(problems), rest
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"the plan {source} cannot be applied:\n{lines}")


class Disk(Section):
    """A virtual disk; the first ones are the template's own, grown to this size."""

    gib: Count = Field(description="size, GiB")
    datastore: str = Field("", description="datastore of a new disk; empty: the VM's own")
    thin: bool = Field(True, description="a new disk is thin-provisioned")


class Numa(Section):
    """The virtual NUMA nodes of a VM."""

    nodes: int = Field(0, ge=0, description="virtual NUMA nodes; 0: the hypervisor decides")


class Guest(Section):
    """What cloud-init makes of the VM, and what it does in the pipeline."""

    role: Literal["", "runner", "dask-worker", "torchrun"] = Field(
        "", description="runner: runs the pipeline; dask-worker, torchrun: one of its workers"
    )
    user: str = Field("stagescope", min_length=1, description="login that is made")
    ssh_keys: tuple[str, ...] = Field((), description="public keys that may log in")
    addresses: tuple[str, ...] = Field(
        (), description="address/prefix, one for each VM of the count; empty: DHCP"
    )
    gateway: str = Field("", description="default gateway of these addresses")
    nameservers: tuple[str, ...] = Field((), description="name servers")
    search: tuple[str, ...] = Field((), description="search domains of the resolver")
    interface: str = Field("ens*", description="network interface, by name or pattern")
    ntp: tuple[str, ...] = Field((), description="time servers: profiles need a right clock")
    packages: tuple[str, ...] = Field((), description="Debian packages, the GPU driver included")
    source: str = Field(
        "", description="where the VM gets StageScope from: a git address or the URL of a wheel"
    )
    timezone: str = Field("Etc/UTC", description="time zone of the guest")


class VmSpec(Section):
    """One VM, or ``count`` equal ones. Every key may stand in [defaults] as well."""

    count: Count = Field(1, description="how many; with more than one the names end in -1, -2 ...")
    power: Literal["on", "off"] = Field("on", description="state after apply")
    datacenter: str = Field("", description="datacenter; empty: the only one")
    cluster: str = Field("", description="cluster (or stand-alone host) that holds the VM")
    host: str = Field("", description="ESXi host that it is pinned to; empty: DRS places it")
    resource_pool: str = Field("", description="resource pool; empty: the cluster's own")
    folder: str = Field("", description="VM folder, a/b; empty: the datacenter's own")
    datastore: str = Field("", description="datastore of the VM and its disks")
    template: str = Field("", description="template to clone; empty: an empty VM is made")
    content_library: str = Field(
        "", description="library/item to deploy in its place: an OVF or a VM template"
    )
    guest_id: str = Field("otherLinux64Guest", description="guest of a VM made without template")
    cpus: Count = Field(4, description="vCPUs")
    cores_per_socket: Count | None = Field(None, description="cores of a virtual socket")
    cpu_reservation_mhz: Annotated[int, Field(ge=0)] | Literal["full"] = Field(
        0, description="CPU reserved, MHz; full: all vCPUs at the host's nominal frequency"
    )
    memory_gib: Count = Field(8, description="memory, GiB")
    memory_reservation_gib: Annotated[int, Field(ge=0)] | Literal["full"] = Field(
        0, description="memory reserved, GiB; full: all of it, locked (always so with GPUs)"
    )
    numa: Numa = Numa()
    latency_sensitivity: Literal["normal", "high"] = Field(
        "normal", description="high: needs all of CPU and memory reserved, which apply does"
    )
    firmware: Literal["efi", "bios"] = Field("efi", description="GPUs need efi")
    disks: tuple[Disk, ...] = Field((), description="disks in their order; empty: as they are")
    networks: tuple[str, ...] = Field((), description="a vmxnet3 adapter on each; empty: none")
    gpus: tuple[Gpu, ...] = Field((), description="GPUs, all of one kind")
    extra_config: dict[str, str] = Field(
        default_factory=dict, description="further advanced settings of the VM"
    )
    guest: Guest = Guest()

    @property
    def further_config(self) -> dict[str, str]:
        """``extra_config``, and what a new VM gets where that does not say otherwise."""
        return {STEAL_CLOCK: "TRUE", **self.extra_config}

    @property
    def gpu_count(self) -> int:
        return sum(gpu.count for gpu in self.gpus)

    @property
    def memory_locked(self) -> bool:
        """All memory is reserved: asked for, or needed by a GPU or by latency sensitivity."""
        needed = bool(self.gpus) or self.latency_sensitivity == "high"
        return needed or self.memory_reservation_gib == "full"

    @property
    def cpu_reserved_in_full(self) -> bool:
        return self.latency_sensitivity == "high" or self.cpu_reservation_mhz == "full"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One VM of a plan, its defaults filled in."""

    name: str
    key: str
    """Of the plan's table: ``trainer`` for ``trainer-2``."""
    index: int
    """0 for the first of its key."""
    spec: VmSpec

    @property
    def address(self) -> str:
        """The guest's address/prefix; empty: DHCP."""
        addresses = self.spec.guest.addresses
        return addresses[self.index] if self.index < len(addresses) else ""


_Settings = checked_dataclass(
    VCenterSettings, frozen=True, kw_only=True, config=ConfigDict(extra="forbid")
)


class VmPlan(Section):
    """A whole plan."""

    name: str = Field(
        min_length=1, max_length=80, description="name of the plan, in the mark of all its VMs"
    )
    vcenter: _Settings | None = Field(None, description="which vCenter")  # type: ignore[valid-type]
    defaults: VmSpec = VmSpec()
    vms: dict[Annotated[str, Field(pattern=_NAME)], VmSpec] = Field(
        default_factory=dict, description="the VMs by name"
    )

    @property
    def settings(self) -> VCenterSettings:
        """The vCenter's settings. Raises ValueError where the plan names none."""
        if self.vcenter is None:
            raise ValueError(
                f"plan {self.name}: it names no vCenter; add\n[vcenter]\nhost = 'vcenter.example'"
            )
        return self.vcenter

    def machines(self) -> tuple[Machine, ...]:
        """All VMs of the plan, in its order."""
        return tuple(
            Machine(
                name=key if spec.count == 1 else f"{key}-{index + 1}",
                key=key,
                index=index,
                spec=spec,
            )
            for key, spec in ((key, self._filled(vm)) for key, vm in self.vms.items())
            for index in range(spec.count)
        )

    def _filled(self, vm: VmSpec) -> VmSpec:
        said = {key: getattr(vm, key) for key in vm.model_fields_set}
        for key in ("guest", "numa"):
            if key in said:
                own = said[key]
                update = {name: getattr(own, name) for name in own.model_fields_set}
                said[key] = getattr(self.defaults, key).model_copy(update=update)
        if "extra_config" in said:
            said["extra_config"] = {**self.defaults.extra_config, **said["extra_config"]}
        return self.defaults.model_copy(update=said)


def read_plan(path: str | Path, overrides: Sequence[str] = ()) -> VmPlan:
    """Read a plan and apply ``a.b=value`` overrides.

    Raises PlanError with everything that is wrong, unknown keys with the nearest known one.
    """
    source = str(path)
    if not Path(path).is_file():
        raise PlanError(source, ["no such file"])
    try:
        fields = tomllib.loads(Path(path).read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(source, [f"not valid TOML: {error}"]) from error
    problems = list(override(fields, overrides, "defaults.cpus=8"))
    plan = None
    for _ in range(_ROUNDS):
        try:
            plan = VmPlan.model_validate(fields)
            break
        except ValidationError as error:
            errors = error.errors(include_url=False)
            problems += [sentence(one, VmPlan) for one in errors]
            without(fields, errors)
    problems += plan_problems(plan) if plan is not None else []
    if problems or plan is None:
        raise PlanError(source, list(dict.fromkeys(problems)), plan)
    return plan


def plan_problems(plan: VmPlan) -> list[str]:
    """What is wrong with a plan whatever vCenter it is for, one sentence each."""
    problems = [] if plan.vms else ["vms: no VM is planned; add a table [vms.NAME]"]
    machines = plan.machines()
    doubled = [name for name, many in Counter(one.name for one in machines).items() if many > 1]
    problems += [f"two VMs would be named {name}: rename one of their tables" for name in doubled]
    problems += _doubled_devices(machines)
    for machine in machines:
        if machine.index == 0:
            problems += [f"{machine.key}: {said}" for said in _vm_problems(machine.spec)]
    return problems


def _doubled_devices(machines: Sequence[Machine]) -> Iterator[str]:
    devices: dict[tuple[str, str], list[str]] = {}
    for machine in machines:
        for gpu in machine.spec.gpus:
            if gpu.by_address:
                devices.setdefault((machine.spec.host, gpu.device), []).append(machine.name)
    for (_, device), names in devices.items():
        if len(names) > 1:
            yield f"device {device} is given to {' and '.join(names)}: one VM can have it"


def _vm_problems(spec: VmSpec) -> Iterator[str]:
    yield from _placement_problems(spec)
    if spec.cores_per_socket and spec.cpus % spec.cores_per_socket:
        yield f"{spec.cpus} cpus cannot be made of sockets with {spec.cores_per_socket} cores"
    if spec.numa.nodes and spec.cpus % spec.numa.nodes:
        yield f"{spec.cpus} cpus cannot be shared out evenly to {spec.numa.nodes} NUMA nodes"
    reserved = spec.memory_reservation_gib
    if isinstance(reserved, int) and reserved > spec.memory_gib:
        yield f"memory_reservation_gib {reserved} is more than memory_gib {spec.memory_gib}"
    for key in sorted(set(spec.extra_config) & set(RESERVED_KEYS)):
        yield f"extra_config: {key} is set by apply itself; take it out"
    many = len(spec.guest.addresses)
    if many not in {0, spec.count}:
        yield f"guest.addresses has {many} for {spec.count} VMs; give one each, or none for DHCP"
    yield from _gpu_problems(spec)


def _placement_problems(spec: VmSpec) -> Iterator[str]:
    if not spec.cluster and not spec.host:
        yield "where is it to run? set cluster (or host), in its table or in [defaults]"
    if not spec.datastore:
        yield "where is it to be stored? set datastore, in its table or in [defaults]"
    if spec.content_library and spec.template:
        yield "template and content_library: a VM is made of one of the two; take the other out"
    if spec.content_library and split_item(spec.content_library) is None:
        yield f"content_library {spec.content_library!r}: give it as library/item"


def split_item(name: str) -> tuple[str, str] | None:
    """Library and item of ``library/item``; None where it is not of that form."""
    library, _, item = name.partition("/")
    return (library, item) if library.strip() and item.strip() else None


def _gpu_problems(spec: VmSpec) -> Iterator[str]:
    for gpu in spec.gpus:
        yield from one_gpu_problems(gpu, pinned=bool(spec.host))
    if len({gpu.model for gpu in spec.gpus}) > 1:
        kinds = ", ".join(dict.fromkeys(gpu.what for gpu in spec.gpus))
        yield f"two kinds of GPU in one VM ({kinds}): keep one, or make two VMs"
    if spec.gpus and spec.firmware != "efi":
        yield f"firmware {spec.firmware!r} with GPUs: their memory is only mapped under 'efi'"
    if spec.gpus and spec.memory_reservation_gib not in {0, "full"}:
        yield (
            f"memory_reservation_gib {spec.memory_reservation_gib} with GPUs: all memory has to "
            "be reserved; leave it out"
        )
