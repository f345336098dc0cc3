"""The adapter, through the real binding, against a library with NVML's symbols."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra import nvml
from tests.nvml.build import VGPU, build, environment, run_with

pytestmark = pytest.mark.needs("gcc")

Ask = Callable[..., Any]

PROLOGUE = """
import json, time
from infra import nvml, nvml_fields

failure = nvml.start()
gpus = [] if failure else nvml.list_gpus()

def plain(answer):
    if isinstance(answer, nvml.Absent):
        return {"reason": answer.reason, "lost": answer.lost}
    return [plain(value) for value in answer] if isinstance(answer, tuple) else answer

def tell(answer):
    print(json.dumps(answer))
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def ask(library: Path) -> Ask:
    def run(code: str, scenario: str = "", folder: Path = library) -> Any:
        return run_with(environment(folder, scenario), PROLOGUE + code)

    return run


LISTED = "tell([[g.entity, g.uuid, g.name, g.virtualization, g.mig_enabled] for g in gpus])"


def test_lists_gpus_with_identity_and_versions(ask: Ask) -> None:
    name = "NVIDIA H100 80GB HBM3"
    assert ask(LISTED) == [
        ["gpu:0", "GPU-000000a0-0000-4000-8000-000000000000", name, "bare metal", False],
        ["gpu:1", "GPU-000000a1-0000-4000-8000-000000000001", name, "bare metal", False],
    ]
    assert ask("tell([nvml.driver_version(), nvml.cuda_driver_version()])") == ["580.65.06", "13.0"]


@pytest.mark.parametrize(("mode", "name"), [(1, "passthrough"), (2, "vGPU guest")])
def test_virtualization_tells_passthrough_from_vgpu(ask: Ask, mode: int, name: str) -> None:
    assert {row[3] for row in ask(LISTED, f"virtualization={mode}")} == {name}


def test_mig_instances_follow_their_gpu_and_only_they_are_listed(ask: Ask) -> None:
    rows = ask(LISTED, "mig=1")
    assert [row[0] for row in rows] == [
        f"gpu:{gpu}{part}" for gpu in range(2) for part in ("", "/mig:0", "/mig:1")
    ]
    assert len({row[1] for row in rows}) == 6
    assert all(row[1].startswith("MIG-") == ("/mig:" in row[0]) for row in rows)


REASONS = "tell({g.entity: g.reason for g in gpus})"


def test_an_instance_that_cannot_be_opened_stays_in_the_list(ask: Ask) -> None:
    """Only a slot that NVML does not find is empty."""
    listed = ask(REASONS, "gpus=1;mig=1;fail=mig0:4")
    assert list(listed) == ["gpu:0", "gpu:0/mig:0", "gpu:0/mig:1"]
    assert "no permission" in listed["gpu:0/mig:0"]
    assert listed["gpu:0/mig:1"] is None
    every = ask(REASONS, "gpus=1;mig=1;fail=nvmlDeviceGetMigDeviceHandleByIndex:999")
    assert list(every) == ["gpu:0", *(f"gpu:0/mig:{slot}" for slot in range(7))]
    assert all("unknown error" in why for entity, why in every.items() if "mig" in entity)


def test_instances_that_cannot_be_counted_are_told_as_one(ask: Ask) -> None:
    listed = ask(REASONS, "gpus=1;mig=1;fail=nvmlDeviceGetMaxMigDeviceCount:10")
    assert list(listed) == ["gpu:0", "gpu:0/mig:0"]
    assert "did not answer in time" in listed["gpu:0/mig:0"]
    none = ask(REASONS, "gpus=1;mig=1;fail=nvmlDeviceGetMaxMigDeviceCount:3")
    assert list(none) == ["gpu:0"]


def test_a_gpu_that_is_lost_before_listing_stays_in_the_list(ask: Ask) -> None:
    first, second = ask("tell([[g.entity, g.reason] for g in gpus])", "lost=1:0")
    assert first == ["gpu:0", None]
    assert second[0] == "gpu:1"
    assert "lost" in second[1]


def test_values_have_the_units_of_their_names(ask: Ask) -> None:
    values = ask(
        """
g = gpus[1]
before = time.monotonic()
answer = {"t": before, "power": plain(nvml_fields.POWER_INSTANT_W(g))[0]}
answer["energy"] = plain(nvml.energy_j(g))[0]
answer["t_energy"] = time.monotonic()
ask = lambda *readers: [plain(reader(g)) for reader in readers]
answer["memory"] = ask(nvml.memory_used_bytes, nvml.memory_sizes_bytes)
answer["rest"] = ask(nvml.temperature_c, nvml.utilization_percent)
answer["pcie"] = ask(nvml.pcie_rx_bytes_per_s, nvml.pcie_tx_bytes_per_s)
answer["limit"] = plain(nvml.power_limit_w(g))
answer["average"] = plain(nvml_fields.POWER_AVERAGE_W(g))[0]
answer["clocks"] = ask(nvml.clock_sm_mhz, nvml.clock_mem_mhz, nvml.clock_graphics_mhz)
tell(answer)
""",
        "pcie_rx_kb=1500;pcie_tx_kb=250;util=40",
    )

    def power(t: float) -> float:
        return 250 + 100 * math.sin(2 * math.pi * t / 4)

    def energy(t: float) -> float:
        return 1e6 + 250 * t + 100 * 4 / (2 * math.pi) * (1 - math.cos(2 * math.pi * t / 4))

    assert values["power"] == pytest.approx(power(values["t"]), abs=15)
    # The counter stands still for up to 100 ms at no more than 350 W; a busy machine adds to it.
    assert energy(values["t_energy"]) - 70 < values["energy"] <= energy(values["t_energy"]) + 0.01
    assert 150 <= values["average"] <= 350
    gib = 1 << 30
    (used,), (free, reserved, total) = values["memory"]
    assert (used, reserved, total) == (4 * gib, gib / 2, 80 * gib)
    assert used + free + reserved == total
    assert values["rest"] == [[56.0], [40.0, 20.0]]
    assert values["pcie"] == [[1.5e6], [2.5e5]]
    assert values["limit"] == [700.0]
    sm, mem, graphics = (clock[0] for clock in values["clocks"])
    assert 1700 < sm <= 1755
    assert 1700 < graphics <= 1755
    assert mem == 2619


@pytest.mark.parametrize(
    ("code", "words", "lost"),
    [
        (3, "not supported by this GPU", False),
        (4, "no permission", False),
        (13, "no such function", False),
        (15, "lost", True),
        (16, "reset", True),
        (999, "unknown error", False),
        (29, "NVML error 29 (error 29 of the library)", False),
    ],
)
def test_each_error_code_becomes_a_reason(ask: Ask, code: int, words: str, lost: bool) -> None:
    answer = ask(
        "tell(plain(nvml.temperature_c(gpus[0])))", f"fail=nvmlDeviceGetTemperature:{code}"
    )
    assert words in answer["reason"]
    assert answer["lost"] is lost


def test_not_supported_says_what_the_gpu_is_part_of(ask: Ask) -> None:
    util = "tell(plain(nvml.utilization_percent(gpus[0]))['reason'])"
    assert ask(util, "mig=1") == "not supported by this GPU while MIG is enabled"
    energy = "tell(plain(nvml.energy_j(gpus[0]))['reason'])"
    assert ask(energy, VGPU) == "not supported by this GPU inside a vGPU guest"


def test_a_field_value_fails_alone(ask: Ask) -> None:
    power, heat = ask("tell(plain(nvml_fields.THROTTLED_SECONDS(gpus[0])))", "fail=field75:3")
    assert power > 0
    assert heat["reason"] == "not supported by this GPU"


def test_fields_that_are_asked_together_keep_their_order_units_and_reasons(ask: Ask) -> None:
    code = """
readers = (nvml_fields.THROTTLED_SECONDS, nvml_fields.POWER_AVERAGE_W, nvml_fields.POWER_INSTANT_W)
tell(plain(nvml_fields.together(readers)(gpus[1])))
"""
    power, heat, average, instant = ask(code, "fail=field75:3")
    assert power > 0
    assert heat["reason"] == "not supported by this GPU"
    assert 150 <= average <= 350
    assert 150 <= instant <= 350
    assert ask(code, "fail=nvmlDeviceGetFieldValues:15")["lost"]


def test_a_symbol_that_the_driver_lacks_is_an_older_driver(ask: Ask, tmp_path: Path) -> None:
    folder = build(tmp_path, without=["nvmlDeviceGetTotalEnergyConsumption"])
    answer = ask(
        "tell([plain(nvml.energy_j(gpus[0])), plain(nvml.temperature_c(gpus[0]))])", folder=folder
    )
    assert "older driver" in answer[0]["reason"]
    assert answer[1] == [55.0]


@pytest.mark.parametrize(
    ("architecture", "device_id", "average"),
    [
        (5, 0x1DB1, False),
        (7, 0x20B0, False),
        (7, 0x2235, True),
        (8, 0x26B5, True),
        (9, 0x2330, True),
    ],
    ids=["V100", "A100", "A40", "L40", "H100"],
)
def test_power_usage_is_an_average_or_not_by_the_chip(
    ask: Ask, architecture: int, device_id: int, average: bool
) -> None:
    mean, instant = ask(
        "readers = nvml.power_usage_average_w, nvml.power_usage_instant_w\n"
        "tell([plain(reader(gpus[0]))[0] for reader in readers])",
        f"architecture={architecture};device_id={device_id:#x}",
    )
    answered, refused = (mean, instant) if average else (instant, mean)
    assert 100 <= answered <= 300
    assert "average" in refused["reason"]


THROTTLE = "tell(plain(nvml.throttle_reasons(gpus[0])))"


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (0x000, []),
        (0x004, ["power_cap"]),
        (0x020, ["thermal"]),
        (0x040, ["thermal"]),
        (0x088, ["hw_slowdown"]),
        (0x013, ["sync_boost", "application_clocks", "idle"]),
    ],
)
def test_throttle_reasons_are_split_into_bits(ask: Ask, mask: int, expected: list[str]) -> None:
    answer = dict(zip(nvml.THROTTLE_BITS, ask(THROTTLE, f"throttle={mask:#x}"), strict=True))
    assert [name for name, value in answer.items() if value] == expected


def test_a_throttle_reason_that_the_gpu_does_not_tell_is_absent_not_zero(ask: Ask) -> None:
    scenario = "throttle=0x4;known_throttle=0x5"
    answer = dict(zip(nvml.THROTTLE_BITS, ask(THROTTLE, scenario), strict=True))
    assert answer["power_cap"] == 1.0
    assert answer["idle"] == 0.0
    assert {name for name, value in answer.items() if isinstance(value, dict)} == {
        "thermal",
        "hw_slowdown",
        "sync_boost",
        "application_clocks",
    }


def test_throttle_reasons_under_their_older_names(ask: Ask, tmp_path: Path) -> None:
    folder = build(
        tmp_path,
        without=[
            "nvmlDeviceGetCurrentClocksEventReasons",
            "nvmlDeviceGetSupportedClocksEventReasons",
        ],
    )
    assert ask(THROTTLE, "throttle=0x4", folder=folder)[0] == 1.0


def test_asked_again_the_bits_are_the_same_and_what_is_untold_is_0(ask: Ask) -> None:
    both = "tell([plain(nvml.throttle_reasons(gpus[0])), plain(nvml.throttle_bits(gpus[0]))])"
    told, again = ask(both, "throttle=0x24")
    assert again == told
    told, again = ask(both, "throttle=0x4;known_throttle=0x5")
    assert [value for value in told if not isinstance(value, dict)] == [1.0, 0.0]
    assert sum(again) == 1.0


PROCESSES = "tell(plain(nvml.process_memory_bytes(gpus[0])))"


def test_each_process_has_its_memory_or_the_driver_does_not_tell(ask: Ask) -> None:
    assert ask(PROCESSES) == {}
    assert ask(PROCESSES, "processes=11:1000,12:24") == {"11": 1000.0, "12": 24.0}
    assert ask(PROCESSES, "processes=11:1000,12:-1") == {"11": 1000.0, "12": None}
    assert ask(PROCESSES, "processes=11:0,12:24") == {"11": None, "12": 24.0}
    assert ask(PROCESSES, "processes=11:1000,11:1000,12:24") == {"11": 1000.0, "12": 24.0}
    refused = ask(PROCESSES, "fail=nvmlDeviceGetComputeRunningProcesses_v3:4")
    assert "no permission" in refused["reason"]


@pytest.mark.parametrize(
    ("code", "words"), [(9, "modprobe"), (18, "different versions"), (999, "")]
)
def test_a_driver_that_does_not_start_says_why(ask: Ask, code: int, words: str) -> None:
    assert words in ask("tell(failure.reason)", f"init={code}")


def test_without_the_library_there_is_no_driver(tmp_path: Path) -> None:
    reason = run_with(environment(tmp_path), PROLOGUE + "tell(failure.reason)")
    assert reason.startswith("no NVIDIA driver: libnvidia-ml.so.1 not found")


def test_stop_without_start_and_twice_is_quiet(ask: Ask) -> None:
    assert ask("nvml.stop(); nvml.stop(); tell(plain(nvml.driver_version()))")["reason"]
