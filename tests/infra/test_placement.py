"""Where a run happens, on made-up and real machines."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from infra.placement import (
    NEVER_SEEN,
    NO_VCENTER,
    Move,
    VmPlace,
    boot_id,
    find_placement,
    product_uuid,
    uuid_forms,
    with_vcenter,
)
from tests.nvml.build import build, environment, run_with

MACHINE = {
    "etc/machine-id": "0123456789abcdef0123456789abcdef",
    "proc/sys/kernel/random/boot_id": "11111111-2222-3333-4444-555555555555",
    "sys/class/dmi/id/sys_vendor": "VMware, Inc.",
    "sys/class/dmi/id/product_uuid": "564d1234-aaaa-bbbb-cccc-0123456789ab",
}

PLACE = VmPlace(
    vm="trainer",
    moid="vm-7",
    uuid="34124d56-aaaa-bbbb-cccc-0123456789ab",
    instance_uuid="5001",
    esxi_host="esx1",
    host_moid="host-1",
    cluster="C0",
    datacenter="DC0",
    resource_pool=None,
    datastores=("ds1", "ds2"),
    vcpus=16,
    memory_bytes=1 << 36,
    host_cpu_mhz=2600,
    host_cores=64,
    host_power_policy=None,
    gpus=("vGPU grid_a100-40c",),
    esxi_version="8.0.3",
    vcenter_version="8.0.3",
)


def placed(place: VmPlace, when: str = "start") -> dict[str, Any]:
    return {"at_ns": 1, "event": "placement", "when": when, **place.to_json()}


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    for name, text in MACHINE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return tmp_path


def test_reads_the_machine(machine: Path) -> None:
    placement = find_placement(machine)
    assert placement.machine_id == MACHINE["etc/machine-id"]
    assert placement.boot_id == MACHINE["proc/sys/kernel/random/boot_id"]
    assert placement.product_uuid == MACHINE["sys/class/dmi/id/product_uuid"]
    assert placement.system == "VMware, Inc."
    assert placement.host
    assert {"machine_id", "boot_id", "product_uuid", "system"}.isdisjoint(placement.absent)


def test_what_is_none_has_a_reason_and_what_has_a_reason_is_none(machine: Path) -> None:
    (machine / "etc/machine-id").write_text("\n")
    (machine / "sys/class/dmi/id/sys_vendor").unlink()
    placement = find_placement(machine)
    fields = {name: value for name, value in asdict(placement).items() if name != "absent"}
    assert {name for name, value in fields.items() if value in (None, ())} == set(placement.absent)
    assert placement.absent["machine_id"].endswith("machine-id is empty")
    assert placement.absent["system"].endswith("sys_vendor is not there")


def test_the_vcenter_side_is_empty_and_says_so(machine: Path) -> None:
    placement = find_placement(machine)
    assert (placement.vm, placement.esxi_host, placement.datastores) == (None, None, None)
    assert {placement.absent[name] for name in ("vm", "esxi_host", "datastores")} == {NO_VCENTER}


def test_a_uuid_for_root_alone_names_the_way_out(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_text = Path.read_text

    def guarded(path: Path) -> str:
        if path.name == "product_uuid":
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path)

    monkeypatch.setattr(Path, "read_text", guarded)
    placement = find_placement(machine)
    assert placement.product_uuid is None
    reason = placement.absent["product_uuid"]
    assert f"chmod a+r {machine}/sys/class/dmi/id/product_uuid" in reason


def test_a_file_that_cannot_be_read_at_all(machine: Path) -> None:
    path = machine / "sys/class/dmi/id/product_uuid"
    path.unlink()
    path.mkdir()
    assert "Is a directory" in find_placement(machine).absent["product_uuid"]


def test_this_machine_can_be_placed_and_recorded() -> None:
    assert json.loads(json.dumps(asdict(find_placement())))["boot_id"]


def test_the_vcenter_fills_its_side(machine: Path) -> None:
    other = replace(PLACE, vm="other", uuid="00000000-0000-0000-0000-000000000001")
    this = replace(PLACE, uuid="34124d56-AAAA-BBBB-cccc-0123456789ab")  # the other byte order
    moved = {"event": "moved", "vm": "trainer", "at_ns": 5, "from_host": "esx1", "to_host": "esx2"}
    events = [
        {"event": "connected", "server": "vc"},
        placed(other),
        placed(this),
        {**moved, "exact": True},
        placed(replace(this, esxi_host="esx2"), "end"),
    ]
    found = with_vcenter(find_placement(machine), events)
    assert (found.vm, found.esxi_host, found.datastores) == ("trainer", "esx1", ("ds1", "ds2"))
    assert [place.vm for place in found.vms] == ["trainer", "other"]
    assert found.moves == (Move(vm="trainer", at_ns=5, from_host="esx1", to_host="esx2"),)
    assert {"vm", "esxi_host", "datastores", "vms", "moves"}.isdisjoint(found.absent)
    assert json.loads(json.dumps(asdict(found)))["vms"][0]["gpus"] == ["vGPU grid_a100-40c"]


def test_a_vcenter_that_was_never_reached_leaves_its_reason(machine: Path) -> None:
    found = with_vcenter(find_placement(machine), [{"event": "lost"}])
    assert found.vm is None
    assert {found.absent[name] for name in ("vm", "vms", "moves")} == {NEVER_SEEN}


def test_no_move_is_said_to_be_none(machine: Path) -> None:
    found = with_vcenter(find_placement(machine), [placed(PLACE)])
    assert found.moves == ()
    assert "no VM of the run changed" in found.absent["moves"]


def test_uuids_have_two_byte_orders() -> None:
    forms = uuid_forms("564D1234-aaaa-bbcc-ddee-0123456789ab")
    assert forms == (
        "564d1234-aaaa-bbcc-ddee-0123456789ab",
        "34124d56-aaaa-ccbb-ddee-0123456789ab",
    )
    assert uuid_forms("Not Settable") == ()


def test_the_boot_and_the_machine_are_known_alone(machine: Path) -> None:
    assert boot_id(machine) == MACHINE["proc/sys/kernel/random/boot_id"]
    assert boot_id(machine / "nowhere") is None
    assert product_uuid(machine) == MACHINE["sys/class/dmi/id/product_uuid"]
    assert product_uuid(machine / "nowhere") is None


@pytest.mark.needs("gcc")
def test_gpu_uuids_are_those_of_the_run(tmp_path: Path) -> None:
    env = environment(build(tmp_path)) | {"CUDA_VISIBLE_DEVICES": "1,0"}
    code = "import json; from infra.placement import find_placement as f; "
    placed = run_with(env, code + "print(json.dumps([f().gpu_uuids, f().absent]))")
    assert placed[0] == [f"GPU-000000a{i}-0000-4000-8000-00000000000{i}" for i in (1, 0)]
    assert "gpu_uuids" not in placed[1]
