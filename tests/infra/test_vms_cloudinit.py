"""cloud-init: texts that PyYAML reads back, without secrets, that lead to ``make run``."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.vms.cloudinit import (
    DMI_UUID,
    cloud_init,
    cloud_inits,
    guestinfo,
    plan_notes,
    yaml_text,
)
from infra.vms.spec import VmPlan

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHk7 somebody@example"
MAKEFILE = Path(__file__).parents[2] / "Makefile"


def plan(guest: dict[str, Any] | None = None, **vm: Any) -> VmPlan:
    said = {"user": "ml", "ssh_keys": [KEY], "source": "https://git.example/stagescope.git"}
    return VmPlan.model_validate(
        {
            "name": "lab",
            "defaults": {"cluster": "C0", "datastore": "ds1"},
            "vms": {"trainer": {**vm, "guest": {**said, **(guest or {})}}},
        }
    )


def texts(wanted: VmPlan) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    one = cloud_inits(wanted)[0]
    assert one.user_data.startswith("#cloud-config\n")
    return tuple(yaml.safe_load(text) for text in one.files().values())  # type: ignore[return-value]


def test_the_guest_is_ready_for_make_run() -> None:
    user, meta, network = texts(plan({"packages": ["nvidia-driver"], "ntp": ["ntp.example"]}))
    assert {"git", "make", "python3-venv"} <= set(user["packages"])
    (login,) = user["users"]
    assert login["name"] == "ml"
    assert login["ssh_authorized_keys"] == [KEY]
    assert login["lock_passwd"] is True
    assert user["ssh_pwauth"] is False
    assert user["ntp"] == {"enabled": True, "servers": ["ntp.example"]}
    assert user["hostname"] == meta["local-hostname"] == "trainer"
    assert meta["instance-id"] == "stagescope-lab-trainer"
    assert network == {
        "version": 2,
        "ethernets": {"nics": {"match": {"name": "ens*"}, "dhcp4": True}},
    }
    clone = user["runcmd"][-1]
    assert clone[:3] == ["su", "-", "ml"]
    assert "git clone https://git.example/stagescope.git stagescope" in clone[-1]


def test_a_package_that_there_is_not_keeps_no_other_one_away() -> None:
    user, _, _ = texts(plan({"packages": ["nvidia-driver", "nfs-common", "git"]}))
    assert "nvidia-driver" not in user["packages"]
    installed = [one[-1] for one in user["runcmd"] if "apt-get" in one]
    assert installed == ["nvidia-driver", "nfs-common"]
    assert "git clone" in user["runcmd"][-1][-1]  # after them


def test_what_a_guest_will_lack_is_said() -> None:
    assert plan_notes(plan()) == []
    notes = plan_notes(plan({"source": "", "ssh_keys": []}, count=2))
    assert [note.split(" is not")[0] for note in notes] == [
        "trainer: guest.source",
        "trainer: guest.ssh_keys",
    ]
    silent = {"name": "lab", "vms": {"a": {"cluster": "C0", "datastore": "ds1"}}}
    assert plan_notes(VmPlan.model_validate(silent)) == []


def test_the_vm_may_read_the_uuid_by_which_it_finds_itself() -> None:
    user, _, _ = texts(plan())
    (written,) = user["write_files"]
    assert written["content"] == f"z {DMI_UUID} 0444 root root -\n"
    assert user["runcmd"][0] == ["systemd-tmpfiles", "--create", written["path"]]


def test_a_static_address() -> None:
    guest = {
        "addresses": ["192.0.2.10/24"],
        "gateway": "192.0.2.1",
        "nameservers": ["192.0.2.53"],
        "search": ["lab.example"],
        "interface": "ens192",
    }
    _, _, network = texts(plan(guest))
    assert network["ethernets"] == {
        "ens192": {
            "dhcp4": False,
            "addresses": ["192.0.2.10/24"],
            "routes": [{"to": "0.0.0.0/0", "via": "192.0.2.1"}],
            "nameservers": {"addresses": ["192.0.2.53"], "search": ["lab.example"]},
        }
    }


def test_each_vm_of_a_count_has_its_own_address_and_name() -> None:
    guest = {"addresses": ["192.0.2.10/24", "192.0.2.11/24"]}
    made = cloud_inits(plan(guest, count=2))
    assert [one.vm for one in made] == ["trainer-1", "trainer-2"]
    addresses = [
        yaml.safe_load(one.network_config)["ethernets"]["nics"]["addresses"] for one in made
    ]
    assert addresses == [["192.0.2.10/24"], ["192.0.2.11/24"]]


@pytest.mark.parametrize("role", ["dask-worker", "torchrun"])
def test_a_worker_installs_at_its_first_boot(role: str) -> None:
    user, _, _ = texts(plan({"role": role}))
    assert user["runcmd"][-1][-1] == "cd stagescope && make .venv/.ready"
    makefile = MAKEFILE.read_text()
    assert "READY  := $(VENV)/.ready" in makefile
    assert "VENV   ?= .venv" in makefile


def test_a_wheel_is_installed_instead_of_cloned() -> None:
    user, _, _ = texts(plan({"source": "https://files.example/stagescope-0.2-py3-none-any.whl"}))
    line = user["runcmd"][-1][-1]
    assert "git" not in line
    assert "stagescope/.venv/bin/pip install https://files.example/" in line


def test_without_a_source_nothing_is_fetched() -> None:
    user, _, _ = texts(plan({"source": ""}))
    assert [one[0] for one in user["runcmd"]] == ["systemd-tmpfiles"]


def test_an_address_cannot_break_out_of_its_command() -> None:
    user, _, _ = texts(plan({"source": "https://git.example/a'; rm -rf ~ #"}))
    line = user["runcmd"][-1][-1]
    probe = subprocess.run(
        ["sh", "-c", f"git() {{ printf '%s|' \"$@\"; }}; {line}"],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert probe.stdout == "clone|https://git.example/a'; rm -rf ~ #|stagescope|"


def test_guestinfo_holds_the_same_texts() -> None:
    wanted = plan({"addresses": ["192.0.2.10/24"]})
    (machine,) = wanted.machines()
    entries = guestinfo(wanted.name, machine)
    made = cloud_init(wanted.name, machine)
    assert set(entries) == {
        "guestinfo.metadata",
        "guestinfo.metadata.encoding",
        "guestinfo.userdata",
        "guestinfo.userdata.encoding",
    }
    assert base64.b64decode(entries["guestinfo.userdata"]).decode() == made.user_data
    meta = yaml.safe_load(base64.b64decode(entries["guestinfo.metadata"]))
    assert meta["local-hostname"] == "trainer"
    assert meta["network.encoding"] == "base64"
    network = yaml.safe_load(base64.b64decode(meta["network"]))
    assert network == yaml.safe_load(made.network_config)
    assert guestinfo(wanted.name, machine) == entries  # apply would else never be done


def test_all_that_is_wrong_is_said_at_once_and_no_secret_repeated() -> None:
    private = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk"
    guest = {
        "user": "root",
        "ssh_keys": [private],
        "source": "https://me:hunter2@git.example/x.git",
        "addresses": ["192.0.2.10"],
        "gateway": "192.0.2.256",
    }
    with pytest.raises(ValueError, match="trainer: ") as caught:
        cloud_inits(plan(guest, networks=["a", "b"]))
    text = str(caught.value)
    for part in ("guest.user 'root'", "a private key is no public key", "holds a password"):
        assert part in text
    for part in ("add the prefix", "192.0.2.256", "to all 2 adapters"):
        assert part in text
    assert "hunter2" not in text
    assert "b3BlbnNz" not in text


@pytest.mark.parametrize(
    "value",
    [
        {"a": "yes", "b": "1.10", "c": "~", "d": "x: y # z", "e": "'\"\\", "f": "ä\n\tö"},
        {"a": [], "b": {}, "c": [1, True, None, 2.5], "d": [["x", "-"], []]},
        {"a": [{"b": {"c": [{"d": "e"}]}, "f": "g"}], "h": "#!"},
    ],
)
def test_yaml_text_is_read_back_as_it_was(value: dict[str, Any]) -> None:
    assert yaml.safe_load(yaml_text(value)) == value


def test_json_holds_files_and_guestinfo() -> None:
    (one,) = cloud_inits(plan())
    back = json.loads(json.dumps(one.to_json()))
    assert set(back["files"]) == {"user-data", "meta-data", "network-config"}
    assert back["guestinfo"]["guestinfo.userdata.encoding"] == "base64"
