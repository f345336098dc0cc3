"""cloud-init of a plan's VMs: what leaves a fresh Debian or Ubuntu guest ready for ``make run``.

The same texts serve as a NoCloud seed (three files on a disk or ISO) and as ``guestinfo.*`` entries
of the VM's extraConfig, which cloud-init's VMware datasource reads. Both can be read by whoever may
see the VM, and by every user of the guest: nothing in them is a secret, and what looks like one is
refused.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from infra.vms.spec import Guest, Machine, VmPlan

BASE_PACKAGES = ("git", "make", "python3", "python3-venv", "open-vm-tools")
"""What docs/install.md asks for, and the tools that tell vCenter the guest's address."""
APT_INSTALL = (
    *("env", "DEBIAN_FRONTEND=noninteractive"),
    *("apt-get", "-o", "DPkg::Lock::Timeout=600", "install", "--yes", "--"),
)
"""Waits for what else installs at the first boot."""
CHECKOUT = "stagescope"
"""Folder of the checkout in the user's home."""
DMI_UUID = "/sys/class/dmi/id/product_uuid"
TMPFILES = "/etc/tmpfiles.d/stagescope.conf"
WORKER_ROLES = frozenset({"dask-worker", "torchrun"})

_PUBLIC_KEY = re.compile(
    r"^(?:[a-z-]+=\S+ )?(?:ssh|ecdsa|sk-ssh|sk-ecdsa)-[\w@.-]+ [A-Za-z0-9+/=]+"
)
_USER = re.compile(r"^[a-z_][a-z0-9_-]{0,31}$")
_WHEEL = re.compile(r"\.whl(?:$|[?#])")


@dataclass(frozen=True, kw_only=True)
class CloudInit:
    """The texts for one VM. ``user_data`` begins with ``#cloud-config``."""

    vm: str
    user_data: str
    meta_data: str
    network_config: str

    def files(self) -> dict[str, str]:
        """A NoCloud seed: file name to text."""
        return {
            "user-data": self.user_data,
            "meta-data": self.meta_data,
            "network-config": self.network_config,
        }

    def guestinfo(self) -> dict[str, str]:
        """extraConfig entries for cloud-init's VMware datasource, the network in the metadata."""
        metadata = self.meta_data + yaml_text(
            {"network": _base64(self.network_config), "network.encoding": "base64"}
        )
        return {
            "guestinfo.metadata": _base64(metadata),
            "guestinfo.metadata.encoding": "base64",
            "guestinfo.userdata": _base64(self.user_data),
            "guestinfo.userdata.encoding": "base64",
        }

    def to_json(self) -> dict[str, Any]:
        return {"vm": self.vm, "files": self.files(), "guestinfo": self.guestinfo()}


def cloud_inits(plan: VmPlan) -> list[CloudInit]:
    """The cloud-init of every VM of a plan. Raises ValueError with all that is wrong."""
    machines = plan.machines()
    problems = [f"{one.name}: {said}" for one in machines for said in guest_problems(one)]
    if problems:
        raise ValueError("\n".join(problems))
    return [cloud_init(plan.name, one) for one in machines]


def plan_notes(plan: VmPlan) -> list[str]:
    """What a guest that the plan speaks of will lack, one sentence for each table of VMs."""
    notes = []
    for machine in plan.machines():
        guest = machine.spec.guest
        if machine.index or guest == Guest():
            continue
        if not guest.source:
            notes.append(
                f"{machine.key}: guest.source is not set, so StageScope is not on the VM: `make "
                "run` needs a checkout put there by hand"
            )
        if not guest.ssh_keys:
            notes.append(
                f"{machine.key}: guest.ssh_keys is not set and there is no password: nobody can "
                f"log in as {guest.user}"
            )
    return notes


def cloud_init(plan: str, machine: Machine) -> CloudInit:
    """The cloud-init of one VM; the same plan gives the same texts."""
    meta = {"instance-id": f"stagescope-{plan}-{machine.name}", "local-hostname": machine.name}
    return CloudInit(
        vm=machine.name,
        user_data="#cloud-config\n" + yaml_text(_user_data(machine)),
        meta_data=yaml_text(meta),
        network_config=yaml_text(_network(machine)),
    )


def guestinfo(plan: str, machine: Machine) -> dict[str, str]:
    """The extraConfig entries that bring a cloned VM up ready."""
    return cloud_init(plan, machine).guestinfo()


def guest_problems(machine: Machine) -> list[str]:
    """What is wrong with a VM's guest, one sentence each."""
    guest = machine.spec.guest
    problems = []
    if not _USER.match(guest.user) or guest.user == "root":
        problems.append(f"guest.user {guest.user!r}: name a user of its own in small letters")
    problems += [
        f"guest.ssh_keys: {_shown(key)} is no public key; give lines of an id_*.pub file"
        for key in guest.ssh_keys
        if not _PUBLIC_KEY.match(key)
    ]
    try:
        held = urlsplit(guest.source).password is not None
    except ValueError as error:
        problems.append(f"guest.source {guest.source!r}: {error}")
    else:
        if held:
            problems.append(
                "guest.source holds a password, which every user of the guest could read: use an "
                "address that needs none, or a deploy key put there by hand"
            )
    return problems + _address_problems(machine)


def _address_problems(machine: Machine) -> list[str]:
    guest, problems = machine.spec.guest, []
    for what, text, parse in (
        ("guest.addresses", machine.address, ipaddress.ip_interface),
        ("guest.gateway", guest.gateway, ipaddress.ip_address),
        *(("guest.nameservers", one, ipaddress.ip_address) for one in guest.nameservers),
    ):
        try:
            if text:
                parse(text)
        except ValueError as error:
            problems.append(f"{what} {text!r}: {error}")
    if machine.address and "/" not in machine.address:
        problems.append(f"guest.addresses {machine.address!r}: add the prefix, for example /24")
    if machine.address and len(machine.spec.networks) > 1 and "*" in guest.interface:
        problems.append(
            f"guest.interface {guest.interface!r} would give {machine.address} to all "
            f"{len(machine.spec.networks)} adapters; name one, for example 'ens192'"
        )
    return problems


def _shown(key: str) -> str:
    """A key as a person may see it: a private one is not repeated."""
    return "a private key" if "PRIVATE" in key else repr(key[:20] + "...")


def _user_data(machine: Machine) -> dict[str, Any]:
    guest = machine.spec.guest
    user = {
        "name": guest.user,
        "shell": "/bin/bash",
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "lock_passwd": True,
        "ssh_authorized_keys": list(guest.ssh_keys),
    }
    data: dict[str, Any] = {
        "hostname": machine.name,
        "manage_etc_hosts": True,
        "timezone": guest.timezone,
        "ssh_pwauth": False,
        "disable_root": True,
        "users": [{key: value for key, value in user.items() if value != []}],
        "package_update": True,
        "packages": list(BASE_PACKAGES),
    }
    if guest.ntp:
        data["ntp"] = {"enabled": True, "servers": list(guest.ntp)}
    # The VM finds itself in vCenter by this UUID, which the kernel shows to root alone.
    data["write_files"] = [{"path": TMPFILES, "content": f"z {DMI_UUID} 0444 root root -\n"}]
    data["runcmd"] = _commands(machine)
    return data


def _commands(machine: Machine) -> list[list[str]]:
    guest = machine.spec.guest
    commands = [["systemd-tmpfiles", "--create", TMPFILES]]
    # One by one and apart from what is needed: apt installs nothing where one name is unknown.
    commands += [[*APT_INSTALL, one] for one in guest.packages if one not in BASE_PACKAGES]
    if guest.source:
        commands.append(_as(guest.user, _get(guest)))
    if guest.source and guest.role in WORKER_ROLES and not _WHEEL.search(guest.source):
        # A worker has no one who would run the first command there.
        commands.append(_as(guest.user, f"cd {CHECKOUT} && make .venv/.ready"))
    return commands


def _get(guest: Guest) -> str:
    """The shell line that gets StageScope, once."""
    source = shlex.quote(guest.source)
    if not _WHEEL.search(guest.source):
        return f"test -d {CHECKOUT} || git clone {source} {CHECKOUT}"
    venv = f"{CHECKOUT}/.venv"
    return f"test -d {venv} || (python3 -m venv {venv} && {venv}/bin/pip install {source})"


def _as(user: str, line: str) -> list[str]:
    return ["su", "-", user, "-c", line]


def _network(machine: Machine) -> dict[str, Any]:
    """Network configuration, version 2: one static address, or DHCP."""
    guest = machine.spec.guest
    card: dict[str, Any] = {}
    name = guest.interface
    if "*" in name:
        card["match"], name = {"name": guest.interface}, "nics"
    if not machine.address:
        card["dhcp4"] = True
    else:
        card["dhcp4"] = False
        card["addresses"] = [machine.address]
        if guest.gateway:
            everywhere = "::/0" if ":" in guest.gateway else "0.0.0.0/0"
            card["routes"] = [{"to": everywhere, "via": guest.gateway}]
    resolver = {"addresses": list(guest.nameservers), "search": list(guest.search)}
    if any(resolver.values()):
        card["nameservers"] = {key: value for key, value in resolver.items() if value}
    return {"version": 2, "ethernets": {name: card}}


def yaml_text(value: Mapping[str, Any]) -> str:
    """A mapping as YAML. Strings are written as JSON writes them, which every YAML reader takes."""
    return "".join(f"{line}\n" for line in _mapping(value))


def _mapping(value: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, one in value.items():
        below = _below(one)
        lines += [f"{key}: {_scalar(one)}"] if below is None else [f"{key}:", *below]
    return lines


def _below(value: Any) -> list[str] | None:
    """The lines below a key, indented; None for a value that stands beside it."""
    if isinstance(value, Mapping) and value:
        return [f"  {line}" for line in _mapping(value)]
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        return [line for item in value for line in _item(item)]
    return None


def _item(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        first, *rest = _mapping(value)
        return [f"  - {first}", *(f"    {line}" for line in rest)]
    return [f"  - {_scalar(value)}"]


def _scalar(value: Any) -> str:
    """A plain value, or a list on one line: JSON is YAML there."""
    return json.dumps(value)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
