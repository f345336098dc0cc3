"""Where this run happens: what joins the guest, its GPUs and, once there is one, the vCenter."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra.gpus import gpu_environment

NO_VCENTER = "no vCenter is configured"
DMI = Path("sys/class/dmi/id")


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
    absent: Mapping[str, str] = field(default_factory=dict)


def find_placement(root: Path = Path("/")) -> Placement:
    """Return where this process runs. ``root``: the folder below which etc, proc and sys lie."""
    absent = dict.fromkeys(("vm", "esxi_host", "datastores"), NO_VCENTER)
    gpus = gpu_environment()
    if gpus["reason"] is not None:
        absent["gpu_uuids"] = gpus["reason"]
    system = _read(root / DMI / "sys_vendor", "system", absent)
    return Placement(
        host=platform.node(),
        machine_id=_read(root / "etc/machine-id", "machine_id", absent),
        boot_id=_read(root / "proc/sys/kernel/random/boot_id", "boot_id", absent),
        product_uuid=_read(root / DMI / "product_uuid", "product_uuid", absent),
        system=system,
        gpu_uuids=tuple(gpu["uuid"] for gpu in gpus["gpus"] if gpu["uuid"] is not None),
        absent=absent,
    )


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
