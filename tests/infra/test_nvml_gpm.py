"""GPM through the real binding: who has it, what a pair of samples says, what is invalid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.nvml.build import build, environment, run_with

pytestmark = pytest.mark.needs("gcc")

Ask = Callable[..., Any]

PROLOGUE = """
import json, time
from infra import nvml
from infra.nvml_gpm import *
from infra import nvml_gpm

assert nvml.start() is None
gpus = nvml.list_gpus()
ALL = [SM_UTIL, SM_OCCUPANCY, TENSOR_UTIL, DRAM_BW_UTIL, PCIE_RX, PCIE_TX, NVLINK_RX, NVLINK_TX]

def plain(answer):
    if isinstance(answer, nvml.Absent):
        return {"reason": answer.reason, "lost": answer.lost}
    return [plain(value) for value in answer] if isinstance(answer, tuple) else answer

def tell(answer):
    print(json.dumps(answer, default=plain))

def pair(gpu, counters=ALL, pause_s=0.12):
    gpm = Gpm(gpu=gpu)
    failure = gpm.open()
    if failure: return failure
    t = [time.monotonic()]
    time.sleep(pause_s)
    failure = gpm.take()
    t.append(time.monotonic())
    values = failure or gpm.values(counters)
    gpm.close(); gpm.close()
    return [t, values]
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def ask(library: Path) -> Ask:
    def run(code: str, scenario: str = "gpus=1", folder: Path = library) -> Any:
        return run_with(environment(folder, scenario), PROLOGUE + code)

    return run


def _sm_percent(start: float, end: float, base: float = 50) -> float:
    """The mean of what the library's SMs do: base + 25 sin(2πt/4)."""
    swung = 25 * 4 / (2 * math.pi)
    cosines = math.cos(math.pi * start / 2) - math.cos(math.pi * end / 2)
    return base + swung * cosines / (end - start)


def test_a_pair_gives_the_mean_over_its_time_in_units_of_the_names(ask: Ask) -> None:
    (start, end), values = ask("tell(pair(gpus[0]))")
    sm, occupancy, tensor, dram, rx, tx, nvlink_rx, nvlink_tx = values
    assert sm == pytest.approx(_sm_percent(start, end), abs=1.5)
    assert occupancy == pytest.approx(sm / 2)
    assert tensor == pytest.approx(sm / 4)
    assert dram == pytest.approx(sm / 2)
    assert (rx, tx) == (1000 * 2**20, 500 * 2**20)
    assert nvlink_rx == nvlink_tx == 2000 * 2**20


def test_samples_too_close_together_have_no_valid_value(ask: Ask) -> None:
    _, values = ask("tell(pair(gpus[0], pause_s=0.01))")
    assert all("not valid" in value["reason"] for value in values)


@pytest.mark.parametrize("value", ["gpm_sm=-20;gpm_swing=0", "gpm_sm=140;gpm_swing=0", "gpm_nan=2"])
def test_a_success_that_cannot_be_is_absent(ask: Ask, value: str) -> None:
    _, (sm, rx) = ask("tell(pair(gpus[0], [SM_UTIL, PCIE_RX]))", f"gpus=1;{value}")
    assert "not valid" in sm["reason"]
    assert rx == 1000 * 2**20


def test_a_metric_fails_alone(ask: Ask) -> None:
    _, (nvlink, sm) = ask("tell(pair(gpus[0], [NVLINK_RX, SM_UTIL]))", "gpus=1;fail=gpm60:3")
    assert nvlink["reason"] == "not supported by this GPU"
    assert sm > 0


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ("architecture=7", "from Hopper on; this GPU is Ampere"),
        ("architecture=8", "this GPU is Ada"),
        ("gpm=0", "not supported by this GPU"),
        ("virtualization=2", "MIG-backed vGPU profile that has the whole frame buffer"),
        ("fail=nvmlGpmSampleGet:19", "DCGM, Nsight"),
        ("fail=nvmlGpmSampleGet:4", "no permission"),
        ("fail=nvmlGpmSampleAlloc:20", "NVML error 20"),
        ("fail=nvmlDeviceGetArchitecture:15", "lost"),
    ],
)
def test_a_gpu_without_gpm_says_why(ask: Ask, scenario: str, words: str) -> None:
    assert words in ask("tell(pair(gpus[0]))", f"gpus=1;{scenario}")["reason"]


def test_a_pair_can_fail_as_a_whole(ask: Ask) -> None:
    _, values = ask("tell(pair(gpus[0]))", "gpus=1;fail=nvmlGpmMetricsGet:19")
    assert "another program" in values["reason"]


def test_after_a_first_sample_that_failed_it_can_be_opened_again(ask: Ask) -> None:
    code = """
gpm = Gpm(gpu=gpus[0])
failure = gpm.open()
again = gpm.open()
time.sleep(0.12)
tell([failure, again, gpm.take(), gpm.values([SM_UTIL])])
"""
    for failing in ("nvmlGpmSampleGet:19", "nvmlDeviceGetArchitecture:10"):
        failure, again, taken, (sm,) = ask(code, f"gpus=1;gpm_swing=0;once={failing}")
        assert failure["reason"]
        assert again is taken is None
        assert sm == pytest.approx(50)


def test_a_vgpu_guest_that_has_its_instance_alone_has_gpm(ask: Ask) -> None:
    _, (sm,) = ask("tell(pair(gpus[0], [SM_UTIL]))", "gpus=1;virtualization=2;gpm_vgpu=1")
    assert sm > 0


def test_an_older_driver_has_no_such_function(ask: Ask, tmp_path: Path) -> None:
    folder = build(tmp_path, without=["nvmlGpmQueryDeviceSupport"])
    assert "older driver" in ask("tell(pair(gpus[0]))", folder=folder)["reason"]


def test_each_mig_instance_has_its_own_and_its_card_says_why_not(ask: Ask) -> None:
    card, one, two = ask("tell([pair(gpu, [SM_UTIL]) for gpu in gpus])", "gpus=1;mig=1;gpm_sm=30")
    assert card["reason"] == "not supported by this GPU while MIG is enabled"
    for base, ((start, end), (sm,)) in ((40, one), (50, two)):
        assert sm == pytest.approx(_sm_percent(start, end, base), abs=1.5)


def test_an_instance_whose_id_is_not_told_says_so(ask: Ask) -> None:
    scenario = "gpus=1;mig=1;fail=nvmlDeviceGetGpuInstanceId:3"
    assert "GPU instance" in ask("tell(pair(gpus[1]))", scenario)["reason"]


def test_samples_touch_one_another(ask: Ask) -> None:
    """Each sample is the end of one pair and the beginning of the next: nothing is left out."""
    times, values, whole = ask(
        """
gpm, other = Gpm(gpu=gpus[0]), Gpm(gpu=gpus[0])
gpm.open(), other.open()
t, values = [time.monotonic()], []
for _ in range(3):
    time.sleep(0.12)
    gpm.take()
    t.append(time.monotonic())
    values.append(gpm.values([SM_UTIL])[0])
other.take()
tell([t, values, other.values([SM_UTIL])[0]])
""",
        "gpus=1",
    )
    lengths = [b - a for a, b in itertools.pairwise(times)]
    mean = sum(v * s for v, s in zip(values, lengths, strict=True)) / sum(lengths)
    assert mean == pytest.approx(whole, abs=1.0)
