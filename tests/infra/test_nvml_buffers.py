"""The driver's own buffers through the real binding: all that is new, and nothing twice."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.nvml_buffers import Kept, step_us
from tests.nvml.build import build, environment, run_with

Ask = Callable[..., Any]

PROLOGUE = """
import json, time
from infra import nvml
from infra.nvml_buffers import *

assert nvml.start() is None
gpus = nvml.list_gpus()

def tell(answer):
    print(json.dumps(answer, default=lambda absent: {"reason": absent.reason}))
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def ask(library: Path) -> Ask:
    def run(code: str, scenario: str = "gpus=1") -> Any:
        return run_with(environment(library, scenario), PROLOGUE + code)

    return run


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("scenario", ["gpus=1", "gpus=1;buffer_repeat=1"])
def test_power_comes_whole_in_order_and_no_sample_twice(ask: Ask, scenario: str) -> None:
    wall_s, mono_s, rounds = ask(
        """
rounds, seen = [], 0
for _ in range(4):
    found = kept(gpus[0], POWER_W, seen)
    seen = found[-1].stamp_us
    rounds.append(found)
    time.sleep(0.1)
tell([time.time(), time.monotonic(), rounds])
""",
        scenario,
    )
    assert len(rounds[0]) == 120
    samples = [one for found in rounds for one in found]
    stamps = [stamp for stamp, _ in samples]
    assert stamps == sorted(set(stamps))
    assert {round((b - a) / 1e3) for a, b in itertools.pairwise(stamps)} == {20}
    for stamp, power_w in samples:
        t = stamp / 1e6 - wall_s + mono_s
        assert power_w == pytest.approx(200 + 100 * math.sin(2 * math.pi * t / 4), abs=2)


@pytest.mark.needs("gcc")
def test_nothing_new_is_no_failure(ask: Ask) -> None:
    code = (
        "seen = kept(gpus[0], POWER_W, 0)[-1].stamp_us + 10**9\ntell(kept(gpus[0], POWER_W, seen))"
    )
    assert ask(code) == []
    assert ask("tell(used(gpus[0], 0))") == []


@pytest.mark.needs("gcc")
@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ("gpus=1;fail=samples0:3;virtualization=2", "inside a vGPU guest"),
        ("gpus=1;fail=nvmlDeviceGetSamples:4", "no permission"),
    ],
)
def test_a_buffer_that_cannot_be_read_says_why(ask: Ask, scenario: str, words: str) -> None:
    assert words in ask("tell(kept(gpus[0], POWER_W, 0))", scenario)["reason"]


@pytest.mark.needs("gcc")
def test_processes_are_told_since_the_last_stamp_seen(ask: Ask) -> None:
    first, again, later = ask(
        """
first = used(gpus[0], 0)
again = used(gpus[0], first[0].stamp_us)
time.sleep(0.2)
tell([first, again, used(gpus[0], first[0].stamp_us)])
""",
        "gpus=1;process_util=11:30:10,12:40:5",
    )
    assert [row[1:] for row in first] == [[11, 30, 10], [12, 40, 5]]
    assert [row for row in again if row[0] <= first[0][0]] == []
    assert len(later) == 2
    assert later[0][0] > first[0][0]


@pytest.mark.needs("gcc")
def test_a_torn_record_of_a_process_is_left_out(ask: Ask) -> None:
    rows = ask("tell(used(gpus[0], 0))", "gpus=1;process_util=11:4000000000:10,12:40:5")
    assert [row[1] for row in rows] == [12]


@pytest.mark.needs("gcc")
def test_under_mig_processes_are_not_told(ask: Ask) -> None:
    assert "MIG" in ask("tell(used(gpus[0], 0))", "gpus=1;mig=1")["reason"]


def test_the_step_is_the_median_distance() -> None:
    assert step_us([]) is None
    assert step_us([Kept(0, 0.0), Kept(20, 0.0)]) is None
    assert step_us([Kept(at, 0.0) for at in (0, 20, 40, 900)]) == 20
