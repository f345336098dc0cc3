"""Where this run happens: what joins the guest, its GPUs and, once there is one, the vCenter."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from infra.gpus import gpu_environment

NO_VCENTER = "no vCenter is configured"
NEVER_SEEN = "the vCenter was not reached, or did not know this VM"
OF_VCENTER = ("vm", "esxi_host", "datastores", "vms", "moves")
DMI = Path("sys/class/dmi/id")
BOOT_ID = Path("proc/sys/kernel/random/boot_id")
TUPLES = ("datastores", "gpus")


@dataclass(frozen=True, kw_only=True)
class VmPlace:
    """A VM and what it stands on, as the vCenter has it; None: it says nothing of that."""

    vm: str
    moid: str
    uuid: str
    """config.uuid: the DMI product UUID of the guest, perhaps in the other byte order."""
    instance_uuid: str
    """Unique within a vCenter, where ``uuid`` can be a clone's."""
    esxi_host: str
    host_moid: str
    cluster: str | None
    datacenter: str | None
    resource_pool: str | None
    datastores: tuple[str, ...]
    vcpus: int
    memory_bytes: int
    host_cpu_mhz: int | None
    host_cores: int | None
    host_power_policy: str | None
    gpus: tuple[str, ...]
    """``vGPU grid_a100-40c``, ``passthrough 0000:3b:00.0`` or ``dynamic passthrough 10de:20b5``."""
    esxi_version: str | None
    vcenter_version: str

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), **{name: list(getattr(self, name)) for name in TUPLES}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> VmPlace:
        """Read what ``to_json`` wrote, within a record that may have more keys."""
        known = {one.name: data[one.name] for one in fields(cls)}
        return cls(**{**known, **{name: tuple(data[name]) for name in TUPLES}})


@dataclass(frozen=True, kw_only=True)
class Move:
    """A VM that changed its host (vMotion, or powered on elsewhere) during the run."""

    vm: str
    at_ns: int
    from_host: str
    to_host: str


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One machine of a run in its three worlds; what is None has its reason in ``absent``."""

    host: str
    """The guest's own host name."""
    machine_id: str | None
    """/etc/machine-id: one installation of an operating system."""
    boot_id: str | None
    """Changes at each boot: tells whether two runs saw the same one."""
    product_uuid: str | None
    """DMI product UUID as the kernel prints it; in a vSphere VM it is the VM's config.uuid."""
    system: str | None
    """DMI vendor of the machine, ``VMware, Inc.`` in a vSphere VM."""
    gpu_uuids: tuple[str, ...]
    vm: str | None = None
    esxi_host: str | None = None
    datastores: tuple[str, ...] | None = None
    vms: tuple[VmPlace, ...] = ()
    """This VM first, then the others of the run, each as it was at the start."""
    moves: tuple[Move, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)


def find_placement(root: Path = Path("/")) -> Placement:
    """Return where this process runs. ``root``: the folder below which etc, proc and sys lie."""
    absent = dict.fromkeys(OF_VCENTER, NO_VCENTER)
    gpus = gpu_environment()
    if gpus["reason"] is not None:
        absent["gpu_uuids"] = gpus["reason"]
    system = _read(root / DMI / "sys_vendor", "system", absent)
    return Placement(
        host=platform.node(),
        machine_id=_read(root / "etc/machine-id", "machine_id", absent),
        boot_id=_read(root / BOOT_ID, "boot_id", absent),
        product_uuid=_read(root / DMI / "product_uuid", "product_uuid", absent),
        system=system,
        gpu_uuids=tuple(gpu["uuid"] for gpu in gpus["gpus"] if gpu["uuid"] is not None),
        absent=absent,
    )


def boot_id(root: Path = Path("/")) -> str | None:
    """``Placement.boot_id`` alone."""
    return _read(root / BOOT_ID, "boot_id", {})


def product_uuid(root: Path = Path("/")) -> str | None:
    """``Placement.product_uuid`` alone."""
    return _read(root / DMI / "product_uuid", "product_uuid", {})


def with_vcenter(placement: Placement, events: Iterable[Mapping[str, Any]]) -> Placement:
    """``placement`` with what the vCenter collector noted in a run's ``vcenter.jsonl``."""
    vms: dict[str, VmPlace] = {}
    moves = []
    for event in events:
        if event["event"] == "placement":
            vms.setdefault(event["vm"], VmPlace.from_json(event))
        elif event["event"] == "moved":
            moves.append(Move(**{one.name: event[one.name] for one in fields(Move)}))
    rest = {name: why for name, why in placement.absent.items() if name not in OF_VCENTER}
    if not vms:
        return replace(placement, absent={**rest, **dict.fromkeys(OF_VCENTER, NEVER_SEEN)})
    own = uuid_forms(placement.product_uuid or "")
    this_first = sorted(vms.values(), key=lambda one: one.uuid.lower() not in own)
    this = this_first[0]
    if not moves:
        rest["moves"] = "no VM of the run changed its host"
    return replace(
        placement,
        vm=this.vm,
        esxi_host=this.esxi_host,
        datastores=this.datastores,
        vms=tuple(this_first),
        moves=tuple(moves),
        absent=rest,
    )


def uuid_forms(text: str) -> tuple[str, ...]:
    """A UUID in both byte orders of its first three groups; empty for what is none.

    SMBIOS 2.6 stores them little-endian; older firmware, and kernels that read it, do not.
    """
    try:
        one = UUID(text)
    except ValueError:
        return ()
    return tuple(dict.fromkeys((str(one), str(UUID(bytes_le=one.bytes)))))


def _read(path: Path, name: str, absent: dict[str, str]) -> str | None:
    """Return a file's one line, or None with the reason noted."""
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        absent[name] = f"{path} is not there"
    except PermissionError:
        absent[name] = f"{path} is for root alone: run as root, or let root do chmod a+r {path}"
    except OSError as error:
        absent[name] = f"{path} cannot be read: {error.strerror}"
    else:
        if text:
            return text
        absent[name] = f"{path} is empty"
    return None
