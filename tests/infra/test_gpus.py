"""Which GPUs belong to a run: CUDA_VISIBLE_DEVICES, and the record of what they are."""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.gpus import choose, gpu_environment
from infra.nvml import Gpu
from tests.nvml.build import VGPU, build, environment, run_with


def _gpu(index: int, mig_index: int | None = None, name: str = "H100") -> Gpu:
    uuid = f"GPU-{index}abc-0{index}" if mig_index is None else f"MIG-{index}{mig_index}ff-9"
    return Gpu(index=index, uuid=uuid, name=name, handle=None, mig_index=mig_index)


FOUR = [_gpu(index) for index in range(4)]
WITH_MIG = [_gpu(0), _gpu(0, 0), _gpu(0, 1), _gpu(1)]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, ["gpu:0", "gpu:1", "gpu:2", "gpu:3"]),
        ("", []),
        ("-1", []),
        ("none", []),
        ("2,1", ["gpu:2", "gpu:1"]),
        (" 3 , 0 ", ["gpu:3", "gpu:0"]),
        ("0,2,-1,1", ["gpu:0", "gpu:2"]),
        ("0,9,1", ["gpu:0"]),
        ("1,1", []),
        ("0,1,0", []),
        ("0,9,0", []),
        ("0,-1,0", ["gpu:0"]),
        ("1,1gpu", []),
        ("1gpu2,2ampere", ["gpu:1", "gpu:2"]),
        ("+1", ["gpu:1"]),
        ("-", []),
        ("0,GPU-1", ["gpu:0"]),
        ("GPU-2abc-02,0", ["gpu:2"]),
        ("GPU-2,GPU-1", ["gpu:2", "gpu:1"]),
        ("GPU-2,GPU-1,GPU-2", []),
        ("GPU-2,GPU-nowhere,GPU-2", []),
        ("GPU-2,GPU-2abc", []),
        ("GPU-2, GPU-1", ["gpu:2"]),
        ("GPU-2,MIG-1,GPU-1", ["gpu:2"]),
        ("GPU-3", ["gpu:3"]),
        ("GPU-", []),
        ("GPU-nowhere,1", []),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(
    setting: str | None, expected: list[str]
) -> None:
    environ = {} if setting is None else {"CUDA_VISIBLE_DEVICES": setting}
    assert [gpu.entity for gpu in choose(FOUR, environ).gpus] == expected


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, ["gpu:0", "gpu:0/mig:0"]),
        ("MIG-01ff-9", ["gpu:0", "gpu:0/mig:1"]),
        ("MIG-00,MIG-01", ["gpu:0", "gpu:0/mig:0", "gpu:0/mig:1"]),
        ("0", ["gpu:0", "gpu:0/mig:0"]),
        ("1,0", ["gpu:0", "gpu:0/mig:0"]),
        ("0,MIG-01", ["gpu:0", "gpu:0/mig:0"]),
        ("1", ["gpu:1"]),
        ("MIG-0", []),
        ("1,MIG-00", ["gpu:1"]),
        ("MIG-01,GPU-1", ["gpu:0", "gpu:0/mig:1"]),
        ("MIG-01,MIG-01", []),
        ("MIG-01,MIG-01ff", []),
        ("MIG-GPU-0abc-00/1/0", []),
    ],
)
def test_a_mig_instance_brings_its_gpu(setting: str | None, expected: list[str]) -> None:
    environ = {} if setting is None else {"CUDA_VISIBLE_DEVICES": setting}
    assert [gpu.entity for gpu in choose(WITH_MIG, environ).gpus] == expected


@given(st.lists(st.sampled_from([0, 1, 2, 3, 4, 7, -1]), min_size=1, max_size=6))
def test_the_first_entry_that_names_nothing_ends_the_list(indices: list[int]) -> None:
    read = list(takewhile(lambda index: index >= 0, indices))
    repeated = len(set(read)) < len(read)
    expected = [] if repeated else list(takewhile(lambda index: index < 4, read))
    setting = ",".join(str(index) for index in indices)
    selection = choose(FOUR, {"CUDA_VISIBLE_DEVICES": setting})
    assert [gpu.index for gpu in selection.gpus] == expected
    assert (selection.note is None) == (expected == indices)


def test_notes_say_what_was_not_understood_or_is_doubtful() -> None:
    assert "'x' names no GPU" in (choose(FOUR, {"CUDA_VISIBLE_DEVICES": "0,x"}).note or "")
    assert "hides all 4 GPUs" in (choose(FOUR, {"CUDA_VISIBLE_DEVICES": ""}).note or "")
    for setting, entry in (("1,01", "01"), ("GPU-1,GPU-1", "GPU-1"), ("GPU-1,GPU-1a", "GPU-1a")):
        why = choose(FOUR, {"CUDA_VISIBLE_DEVICES": setting}).note or ""
        assert f"{setting}: '{entry}' is named a second time, and CUDA then uses no GPU" in why
    mixed = [_gpu(0, name="T4"), _gpu(1, name="H100")]
    by_index = {"CUDA_VISIBLE_DEVICES": "0"}
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in (choose(mixed, by_index).note or "")
    assert choose(mixed, by_index | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}).note is None
    assert choose(mixed, {"CUDA_VISIBLE_DEVICES": "GPU-1"}).note is None
    assert "of 2 MIG instances CUDA uses one" in (choose(WITH_MIG, {}).note or "")
    assert choose(WITH_MIG, {"CUDA_VISIBLE_DEVICES": "MIG-00,MIG-01"}).note is None
    assert choose([_gpu(0), _gpu(0, 0)], {}).note is None


def test_of_instances_the_first_that_can_be_opened_is_watched_and_the_others_say_why() -> None:
    shut = [replace(_gpu(0, mig_index), uuid="", reason="no permission") for mig_index in range(2)]
    selection = choose([_gpu(0), *shut, _gpu(0, 2)], {})
    assert [gpu.entity for gpu in selection.gpus] == ["gpu:0", "gpu:0/mig:2"]
    why = "gpu:0/mig:0, gpu:0/mig:1 cannot be opened: no permission"
    assert (selection.note or "").endswith(why)
    unnamed = choose([_gpu(0), *shut], {"CUDA_VISIBLE_DEVICES": "MIG-01"})
    assert unnamed.gpus == ()
    assert "'MIG-01' names no GPU here" in (unnamed.note or "")
    assert (unnamed.note or "").endswith(why)
    assert [gpu.entity for gpu in choose([_gpu(0), *shut], {}).gpus] == ["gpu:0", "gpu:0/mig:0"]


ENVIRONMENT = (
    "import json; from infra.gpus import gpu_environment; print(json.dumps(gpu_environment()))"
)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.mark.needs("gcc")
def test_environment_describes_the_gpus_of_the_run(library: Path) -> None:
    env = environment(library) | {"CUDA_VISIBLE_DEVICES": "1"}
    found = run_with(env, ENVIRONMENT)
    assert found["reason"] is None
    assert (found["driver_version"], found["cuda_driver_version"]) == ("580.65.06", "13.0")
    assert found["gpus"] == [
        {
            "entity": "gpu:1",
            "index": 1,
            "uuid": "GPU-000000a1-0000-4000-8000-000000000001",
            "name": "NVIDIA H100 80GB HBM3",
            "virtualization": "bare metal",
            "mig_enabled": False,
            "memory_total_bytes": 80.0 * (1 << 30),
            "power_limit_w": 700.0,
            "absent": {},
        }
    ]


@pytest.mark.needs("gcc")
@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("1,0", ["gpu:1", "gpu:0"]),
        ("GPU-000000a1", ["gpu:1"]),
        ("GPU-000000a1-0000-4000-8000-000000000001", ["gpu:1"]),
        ("GPU-000000a", []),
        ("2", []),
    ],
)
def test_environment_has_only_the_gpus_of_the_run(
    library: Path, setting: str, expected: list[str]
) -> None:
    found = run_with(environment(library) | {"CUDA_VISIBLE_DEVICES": setting}, ENVIRONMENT)
    assert [gpu["entity"] for gpu in found["gpus"]] == expected
    assert (found["reason"] is None) == bool(expected)


@pytest.mark.needs("gcc")
def test_environment_names_a_mig_instance_by_its_uuid(library: Path) -> None:
    env = environment(library, "mig=1") | {"CUDA_VISIBLE_DEVICES": "MIG-000000b1"}
    card, instance = run_with(env, ENVIRONMENT)["gpus"]
    assert (card["entity"], instance["entity"]) == ("gpu:0", "gpu:0/mig:1")
    assert instance["uuid"] == "MIG-000000b1-0000-4000-8000-000000000001"
    assert instance["memory_total_bytes"] == 40 * (1 << 30)


@pytest.mark.needs("gcc")
def test_environment_gives_reasons_for_what_a_gpu_does_not_tell(library: Path) -> None:
    scenario = f"{VGPU},nvmlDeviceGetEnforcedPowerLimit:3"
    (gpu,) = run_with(environment(library, scenario), ENVIRONMENT)["gpus"]
    assert gpu["power_limit_w"] is None
    assert gpu["absent"] == {"power_limit_w": "not supported by this GPU inside a vGPU guest"}
    lost = run_with(environment(library, "lost=1:0"), ENVIRONMENT)["gpus"][1]
    assert (lost["uuid"], lost["memory_total_bytes"]) == (None, None)
    assert "lost" in lost["absent"]["memory_total_bytes"]


@pytest.mark.needs("gcc")
def test_environment_says_why_there_is_no_gpu(library: Path, tmp_path: Path) -> None:
    assert "no NVIDIA driver" in run_with(environment(tmp_path), ENVIRONMENT)["reason"]
    assert "lists no GPU" in run_with(environment(library, "gpus=0"), ENVIRONMENT)["reason"]
    hidden = environment(library) | {"CUDA_VISIBLE_DEVICES": ""}
    assert "hides all 2 GPUs" in run_with(hidden, ENVIRONMENT)["reason"]
    refused = environment(library, "fail=nvmlDeviceGetCount_v2:4")
    assert "no permission" in run_with(refused, ENVIRONMENT)["reason"]


def test_environment_of_this_process_is_a_list_or_a_reason() -> None:
    found = gpu_environment()
    assert bool(found["gpus"]) == (found["reason"] is None)
