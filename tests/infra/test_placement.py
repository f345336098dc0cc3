"""Where a run happens, on made-up and real machines."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from infra.placement import NO_VCENTER, find_placement
from tests.nvml.build import build, environment, run_with

MACHINE = {
    "etc/machine-id": "0123456789abcdef0123456789abcdef",
    "proc/sys/kernel/random/boot_id": "11111111-2222-3333-4444-555555555555",
    "sys/class/dmi/id/sys_vendor": "VMware, Inc.",
    "sys/class/dmi/id/product_uuid": "564d1234-aaaa-bbbb-cccc-0123456789ab",
}


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


@pytest.mark.needs("gcc")
def test_gpu_uuids_are_those_of_the_run(tmp_path: Path) -> None:
    env = environment(build(tmp_path)) | {"CUDA_VISIBLE_DEVICES": "1,0"}
    code = "import json; from infra.placement import find_placement as f; "
    placed = run_with(env, code + "print(json.dumps([f().gpu_uuids, f().absent]))")
    assert placed[0] == [f"GPU-000000a{i}-0000-4000-8000-00000000000{i}" for i in (1, 0)]
    assert "gpu_uuids" not in placed[1]
