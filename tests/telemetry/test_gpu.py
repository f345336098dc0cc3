"""The GPU collector, through the real binding, on GPUs that a scenario describes."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from infra.nvml import Gpu
from infra.nvml_buffers import POWER_W, Buffer, Kept, Used
from telemetry.clock import Clock
from telemetry.collectors.gpu import (
    METRICS,
    MOVES_S,
    OF_THE_CARD,
    QUESTIONS,
    UP,
    GpuCollector,
)
from telemetry.collectors.gpu_buffers import LevelSource, placed
from telemetry.collectors.gpu_losses import MOST_TOLD, Losses
from telemetry.collectors.gpu_metrics import (
    COVERED_BY_GPM,
    GPM_METRICS,
    OF_INSTANCES,
    POWER_BUFFER,
    PROCESS_MEMORY,
    PROCESS_USES,
)
from telemetry.collectors.gpu_processes import descends, means, namespace_why
from tests.nvml.build import VGPU, build, environment, run_with

INSTANCE = {metric.name for metric in OF_INSTANCES} | {UP.name}
GPM = {metric.name for metric in GPM_METRICS}
PROCESSES = {metric.name for metric in PROCESS_USES}
HELD = {metric.name for metric in PROCESS_MEMORY}
PCIE = {metric.name for metric in COVERED_BY_GPM}
SLOW = {metric.name for question in QUESTIONS if question.slow for metric in question.metrics}
AMPERE = "architecture=7"
"""A GPU without GPM."""

PROGRAM = """
import json, os, sys, time
from pathlib import Path
from telemetry.clock import Clock, measure_offset_ns
from telemetry.collectors.gpu import GpuCollector

steps, edits = json.loads(os.environ["STEPS"]), json.loads(os.environ["EDITS"])
collector = GpuCollector(clock=Clock(offset_ns=0), root=os.getpid())
opened = [[s.entity, s.metric.name, s.reason] for s in collector.open()]
samples = []
begin = time.monotonic()
for step in range(steps):
    if str(step) in edits:
        Path(os.environ["STAGESCOPE_NVML_CONTROL"]).write_text(edits[str(step)])
        time.sleep(0.02)
    found = collector.last_sample() if step == steps - 1 else collector.sample()
    samples.append([[s.ts_ns, s.series.entity, s.series.metric.name, s.value, s.start_ns]
                    for s in found])
    time.sleep(max(0.0, begin + (step + 1) * collector.period_s - time.monotonic()))
periods = dict(collector.slow_periods)
collector.close()
ended = [[s.entity, s.metric.name, s.reason] for s in collector.ended]
print(json.dumps({"opened": opened, "samples": samples, "losses": collector.losses,
                  "periods": periods, "ended": ended}))
"""


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What a collector said in a process of its own; ``values[entity, metric]`` = [(s, value)]."""

    reasons: Mapping[tuple[str, str], str | None]
    rounds: list[list[Any]]
    losses: list[str]
    periods: Mapping[str, float]
    ended: list[list[str]]

    @property
    def values(self) -> Mapping[tuple[str, str], list[tuple[float, float]]]:
        found = defaultdict(list)
        for row in (row for rows in self.rounds for row in rows):
            found[row[1], row[2]].append((row[0] / 1e9, row[3]))
        return found

    def last(self, entity: str, metric: str) -> list[tuple[float, float]]:
        """What the last sample had of one series."""
        rows = self.rounds[-1]
        return [(row[0] / 1e9, row[3]) for row in rows if row[1:3] == [entity, metric]]

    def present(self, entity: str) -> set[str]:
        return {m for (e, m), reason in self.reasons.items() if e == entity and reason is None}


Watch = Callable[..., Watched]
BOTH_INSTANCES = "MIG-000000b0,MIG-000000b1"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def watch(library: Path, tmp_path: Path) -> Watch:
    def run(
        scenario: str = "",
        steps: int = 4,
        edits: Mapping[int, str] = {},
        folder: Path = library,
        visible: str | None = None,
    ) -> Watched:
        env = environment(folder, scenario, tmp_path / "control")
        env |= {"STEPS": str(steps), "EDITS": json.dumps(edits)}
        env |= {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
        said = run_with(env, PROGRAM)
        reasons = {(entity, metric): reason for entity, metric, reason in said["opened"]}
        assert len(reasons) == len(said["opened"])
        return Watched(
            reasons=reasons,
            rounds=said["samples"],
            losses=said["losses"],
            periods=said["periods"],
            ended=said["ended"],
        )

    return run


def test_metrics_are_named_once_and_explained() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert all(metric.meaning and metric.source and metric.unit for metric in METRICS)


def _power(index: int, t: float) -> float:
    return 200 + 50 * index + 100 * math.sin(2 * math.pi * t / 4)


def _energy(index: int, t: float) -> float:
    return (200 + 50 * index) * t - 100 * 4 / (2 * math.pi) * math.cos(2 * math.pi * t / 4)


@pytest.mark.needs("gcc")
def test_two_healthy_gpus_tell_everything_and_agree_with_the_truth(watch: Watch) -> None:
    seen = watch(steps=20)
    absent = {metric for (_, metric), reason in seen.reasons.items() if reason is not None}
    assert absent == PCIE
    assert set(seen.values) == {key for key, reason in seen.reasons.items() if reason is None}
    assert set(seen.reasons) == {(f"gpu:{i}", m.name) for i in range(2) for m in METRICS}
    assert seen.losses == []
    for index in range(2):
        power = seen.values[f"gpu:{index}", "power_instant_w"]
        assert len(power) == 20
        assert all(value == pytest.approx(_power(index, t), abs=15) for t, value in power)
        energy = seen.values[f"gpu:{index}", "energy_j"]
        (first, before), (last, after) = energy[0], energy[-1]
        truth = _energy(index, last) - _energy(index, first)
        assert after - before == pytest.approx(truth, abs=0.15 * 350)
        assert all(value == 1.0 for _, value in seen.values[f"gpu:{index}", "gpu_up"])


@pytest.mark.needs("gcc")
def test_a_sample_asks_one_blocking_question_and_all_get_their_turn(watch: Watch) -> None:
    seen = watch(f"{AMPERE};pcie_rx_kb=3000;pcie_tx_kb=70;process_util=self:30:10", steps=8)
    asked = [[row for row in rows if row[2].startswith("pcie_")] for rows in seen.rounds]
    assert [len(rows) for rows in asked] == [1] * 8
    turns = [(rows[0][1], rows[0][2]) for rows in asked]
    assert len(set(turns)) == 4
    assert turns[:4] == turns[4:]
    for (ts_ns, _, metric, value, start_ns), *_ in asked:
        assert ts_ns - start_ns == 20_000_000
        assert value == (3e6 if "rx" in metric else 7e4)
    windows = PROCESSES | PCIE
    assert {row[2] for rows in seen.rounds for row in rows if row[4] is not None} == windows


@pytest.mark.needs("gcc")
def test_what_gpm_tells_without_gaps_is_not_asked_in_gaps(watch: Watch) -> None:
    seen = watch("gpus=1;pcie_rx_kb=3000", steps=4)
    why = seen.reasons["gpu:0", "pcie_rx_bytes_per_s"]
    assert why == "GPM tells it without gaps, as gpm_pcie_rx_bytes_per_s"
    assert {metric for _, metric in seen.values} & PCIE == set()
    half = watch("gpus=1;fail=gpm20:3", steps=4)
    assert half.reasons["gpu:0", "gpm_pcie_tx_bytes_per_s"] is not None
    assert {metric for _, metric in half.values} & PCIE == {"pcie_tx_bytes_per_s"}


def test_what_a_stage_is_judged_by_is_asked_at_every_tick() -> None:
    fast = {"energy_j", "power_instant_w", "gpu_util_percent", "gpu_mem_used_bytes"}
    assert not (fast | {"gpu_clock_sm_mhz", "gpu_throttle_power_cap"}) & SLOW


@pytest.mark.needs("gcc")
def test_what_moves_slowly_is_asked_once_a_second_and_at_the_end(watch: Watch) -> None:
    seen = watch("gpus=1", steps=23)
    assert {seen.periods[name] for name in SLOW} == {1.0}
    for name in SLOW:
        times = [t for t, _ in seen.values["gpu:0", name]]
        assert len(times) == 4, name
        assert [after - before for before, after in pairwise(times)][:2] == [
            pytest.approx(1, abs=0.09)
        ] * 2
    assert len(seen.values["gpu:0", "gpu_mem_used_bytes"]) == 23


@pytest.mark.needs("gcc")
def test_a_vgpu_guest_says_which_fields_are_missing_and_why(watch: Watch) -> None:
    seen = watch(f"{VGPU};process_util=self:30:10")
    missing = {metric for (_, metric), reason in seen.reasons.items() if reason is not None}
    assert missing == {
        "power_instant_w",
        "power_average_w",
        "energy_j",
        "gpu_temperature_c",
        "gpu_throttled_power_seconds",
        "gpu_throttled_thermal_seconds",
        "pcie_rx_bytes_per_s",
        "pcie_tx_bytes_per_s",
        "power_buffer_w",
        *GPM,
    }
    assert "whole frame buffer" in (seen.reasons["gpu:0", "gpm_sm_util_percent"] or "")
    assert "vGPU guest" in (seen.reasons["gpu:0", "energy_j"] or "")
    assert {metric for _, metric in seen.values} == seen.present("gpu:0")
    assert len(seen.values["gpu:0", "gpu_util_percent"]) == 4
    assert seen.losses == []


@pytest.mark.needs("gcc")
def test_power_falls_back_to_what_an_older_driver_has(watch: Watch) -> None:
    seen = watch("architecture=5;fail=field185:3,field186:3")
    assert seen.reasons["gpu:0", "power_instant_w"] is None
    assert "averages no power" in (seen.reasons["gpu:0", "power_average_w"] or "")
    for t, value in seen.values["gpu:0", "power_instant_w"]:
        assert value == pytest.approx(_power(0, t), abs=15)


@pytest.mark.needs("gcc")
def test_a_function_that_the_driver_lacks_costs_only_its_own_metric(
    watch: Watch, tmp_path: Path
) -> None:
    folder = build(tmp_path / "old", without=["nvmlDeviceGetTotalEnergyConsumption"])
    seen = watch(folder=folder)
    absent = {metric for (_, metric), reason in seen.reasons.items() if reason}
    assert absent == {"energy_j", *PCIE}
    assert "older driver" in (seen.reasons["gpu:0", "energy_j"] or "")


@pytest.mark.needs("gcc")
def test_a_driver_without_the_newest_list_of_processes_is_asked_for_the_one_before(
    watch: Watch, tmp_path: Path
) -> None:
    newest = "nvmlDeviceGetComputeRunningProcesses_v3"
    folder = build(tmp_path / "r535", without=[newest])
    seen = watch("gpus=1;processes=self:3000000", folder=folder)
    assert seen.values["gpu:0", "gpu_process_mem_bytes"][0][1] == 3_000_000
    folder = build(tmp_path / "r450", without=[newest, newest.replace("_v3", "_v2")])
    seen = watch("gpus=1;processes=self:3000000", folder=folder)
    absent = {metric for (_, metric), reason in seen.reasons.items() if reason}
    assert absent == {*HELD, *PCIE}
    assert "older driver" in (seen.reasons["gpu:0", "gpu_processes"] or "")


@pytest.mark.needs("gcc")
def test_a_gpu_lost_mid_run_stops_alone_and_comes_back(watch: Watch) -> None:
    seen = watch(steps=12, edits={4: "lost=1:0", 8: "lost="})
    up = [value for _, value in seen.values["gpu:1", "gpu_up"]]
    assert up == [1.0] * 4 + [0.0] * 4 + [1.0] * 4
    for step, rows in enumerate(seen.rounds):
        metrics = {row[2] for row in rows if row[1] == "gpu:1" and "pcie_" not in row[2][:5]}
        assert (metrics == {"gpu_up"}) == (4 <= step < 8)
        assert not (4 <= step < 8 and any("pcie" in r[2] and r[1] == "gpu:1" for r in rows))
    assert [value for _, value in seen.values["gpu:0", "gpu_up"]] == [1.0] * 12
    assert len(seen.values["gpu:0", "energy_j"]) == 11 + len(seen.last("gpu:0", "energy_j"))
    assert len(seen.losses) == 1
    assert seen.losses[0].startswith("gpu:1 (GPU-000000a1-0000-4000-8000-000000000001) at 19")
    assert {entity for entity, _, _ in seen.ended} == {"gpu:1"}
    assert {metric for _, metric, _ in seen.ended} == seen.present("gpu:1") - {"gpu_up"}
    assert all("since 19" in reason and "lost" in reason for _, _, reason in seen.ended)
    assert "lost" in seen.losses[0]


@pytest.mark.needs("gcc")
def test_a_gpu_that_is_lost_before_the_run_is_absent_with_its_reason(watch: Watch) -> None:
    seen = watch("lost=1:0")
    assert seen.present("gpu:1") == {"gpu_up"}
    assert "lost" in (seen.reasons["gpu:1", "energy_j"] or "")
    assert [value for _, value in seen.values["gpu:1", "gpu_up"]] == [0.0] * 4
    assert {metric for entity, metric in seen.values if entity == "gpu:1"} == {"gpu_up"}
    assert seen.present("gpu:0") == {metric.name for metric in METRICS} - PCIE


@pytest.mark.needs("gcc")
def test_a_gpu_that_answers_nothing_is_down_and_told_once(watch: Watch) -> None:
    seen = watch("gpus=2", steps=12, edits={4: "fail_all=999", 8: "fail_all="})
    for entity in ("gpu:0", "gpu:1"):
        up = [value for _, value in seen.values[entity, "gpu_up"]]
        assert up == [1.0] * 4 + [0.0] * 4 + [1.0] * 4
        ended = [metric for gpu, metric, _ in seen.ended if gpu == entity]
        assert sorted(ended) == sorted(seen.present(entity) - {"gpu_up"})
    assert {row[2] for rows in seen.rounds[4:8] for row in rows} == {"gpu_up"}
    assert [loss.split(" at ")[0].split(" (")[0] for loss in seen.losses] == ["gpu:0", "gpu:1"]
    assert all("unknown error" in loss for loss in seen.losses)


@pytest.mark.needs("gcc")
def test_an_instance_that_still_lists_its_processes_is_not_down(watch: Watch) -> None:
    edits = {4: "fail=nvmlDeviceGetMemoryInfo_v2:999"}
    seen = watch("gpus=1;mig=1", steps=12, edits=edits, visible="MIG-000000b0")
    assert {value for _, value in seen.values["gpu:0/mig:0", "gpu_up"]} == {1.0}
    later = {row[2] for rows in seen.rounds[8:] for row in rows if row[1] == "gpu:0/mig:0"}
    assert {"gpm_sm_util_percent", "gpu_processes"} <= later


@pytest.mark.needs("gcc")
def test_an_instance_of_which_nothing_is_asked_at_ticks_is_up_while_its_card_is(
    watch: Watch, tmp_path: Path
) -> None:
    folder = build(tmp_path / "old", without=["nvmlDeviceGetMemoryInfo_v2"])
    seen = watch("gpus=1;mig=1", steps=12, edits={8: "lost=0:0"}, folder=folder)
    assert "older driver" in (seen.reasons["gpu:0/mig:0", "gpu_mem_used_bytes"] or "")
    up = [value for _, value in seen.values["gpu:0/mig:0", "gpu_up"]]
    assert up == [1.0] * 8 + [0.0] * 4
    assert seen.values["gpu:0/mig:0", "gpm_sm_util_percent"]
    assert seen.values["gpu:0/mig:0", "gpu_processes"]
    (loss,) = (one for one in seen.losses if "the GPU is lost" in one)
    assert loss.startswith("gpu:0 (")


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("code", [10, 19, 21, 999])
def test_what_fails_once_on_opening_is_asked_again(watch: Watch, code: int) -> None:
    failing = ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetMemoryInfo_v2", "field186")
    seen = watch("gpus=1;once=" + ",".join(f"{name}:{code}" for name in failing), steps=2)
    assert seen.present("gpu:0") == {metric.name for metric in METRICS} - PCIE
    assert {"energy_j", "gpu_mem_used_bytes", "power_instant_w"} <= {m for _, m in seen.values}


@pytest.mark.needs("gcc")
def test_what_fails_for_good_is_absent_at_once(watch: Watch) -> None:
    seen = watch("gpus=1;once=nvmlDeviceGetTotalEnergyConsumption:3", steps=2)
    assert "not supported" in (seen.reasons["gpu:0", "energy_j"] or "")
    still = watch("gpus=1;fail=nvmlDeviceGetTotalEnergyConsumption:10", steps=2)
    assert "in time" in (still.reasons["gpu:0", "energy_j"] or "")


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("code", [10, 999])
def test_a_gpu_that_answers_nothing_on_opening_is_not_up(watch: Watch, code: int) -> None:
    seen = watch(f"gpus=1;fail_all={code}", steps=4)
    assert seen.present("gpu:0") == {"gpu_up"}
    assert [value for _, value in seen.values["gpu:0", "gpu_up"]] == [0.0] * 4


@pytest.mark.needs("gcc")
def test_a_gpu_of_which_one_source_alone_answers_is_up_while_it_is_there(watch: Watch) -> None:
    plain = (
        *("GetUtilizationRates", "GetMemoryInfo_v2", "GetPowerUsage", "GetTotalEnergyConsumption"),
        *("GetClockInfo", "GetTemperature", "GetCurrentClocksEventReasons", "GetPcieThroughput"),
        *("GetEnforcedPowerLimit", "GetArchitecture", "GetSamples"),
    )
    failing = [f"nvmlDevice{name}:10" for name in plain]
    failing += [f"field{number}:10" for number in (74, 75, 185, 186)]
    seen = watch(f"gpus=1;fail={','.join(failing)}", steps=8, edits={4: "lost=0:0"})
    assert "gpu_run_mem_bytes" in seen.present("gpu:0")
    asked_at_ticks = {metric.name for question in QUESTIONS for metric in question.metrics}
    assert not seen.present("gpu:0") & asked_at_ticks
    assert seen.values["gpu:0", "gpu_run_mem_bytes"]
    up = [value for _, value in seen.values["gpu:0", "gpu_up"]]
    assert (up[:4], up[5:]) == ([1.0] * 4, [0.0] * 3)  # the library reads its orders every 10 ms


@pytest.mark.needs("gcc")
def test_a_counter_that_goes_backwards_is_passed_on_as_it_is(watch: Watch) -> None:
    seen = watch(steps=8, edits={4: "energy_back=0:0:100000"})
    energy = [value for _, value in seen.values["gpu:0", "energy_j"]]
    growth = [after - before for before, after in pairwise(energy)]
    assert growth[3] < -90_000
    assert all(step >= 0 for at, step in enumerate(growth) if at != 3)
    other = [value for _, value in seen.values["gpu:1", "energy_j"]]
    assert other == sorted(other)


@pytest.mark.needs("gcc")
def test_a_call_that_fails_mid_run_fails_alone_and_is_told_once(watch: Watch) -> None:
    edits = {3: "fail=nvmlDeviceGetTotalEnergyConsumption:999", 6: "fail="}
    seen = watch("gpus=1", steps=8, edits=edits)
    assert len(seen.values["gpu:0", "energy_j"]) == 4 + len(seen.last("gpu:0", "energy_j"))
    assert len(seen.values["gpu:0", "gpu_clock_sm_mhz"]) == 8
    assert {value for _, value in seen.values["gpu:0", "gpu_up"]} == {1.0}
    assert len(seen.losses) == 1
    assert "gpu:0 energy_j" in seen.losses[0]
    ((*what, why),) = seen.ended
    assert what == ["gpu:0", "energy_j"]
    assert "unknown error" in why


@pytest.mark.needs("gcc")
def test_a_gpu_that_is_lost_again_is_told_again(watch: Watch) -> None:
    seen = watch(steps=12, edits={2: "lost=1:0", 4: "lost=", 6: "lost=1:0", 9: "lost="})
    up = [value for _, value in seen.values["gpu:1", "gpu_up"]]
    assert up == [1.0] * 2 + [0.0] * 2 + [1.0] * 2 + [0.0] * 3 + [1.0] * 3
    assert len(seen.losses) == 2
    assert all(loss.startswith("gpu:1 (GPU-") for loss in seen.losses)
    lost = [metric for _, metric, _ in seen.ended]
    assert sorted(lost) == sorted(2 * list(seen.present("gpu:1") - {"gpu_up"}))


@pytest.mark.needs("gcc")
def test_a_series_that_comes_and_goes_is_told_a_few_times(watch: Watch) -> None:
    gone = "fail=nvmlDeviceGetTotalEnergyConsumption:999"
    seen = watch("gpus=1", steps=7, edits={1: gone, 3: "fail=", 4: gone, 6: "fail="})
    assert len(seen.losses) == 2
    assert [metric for _, metric, _ in seen.ended] == ["energy_j"] * 2
    edits = {step: gone if step % 2 else "fail=" for step in range(1, 2 * MOST_TOLD + 4)}
    seen = watch("gpus=1", steps=2 * MOST_TOLD + 4, edits=edits)
    assert len(seen.losses) == len(seen.ended) == MOST_TOLD


@pytest.mark.needs("gcc")
def test_the_last_sample_goes_on_until_each_energy_counter_has_moved(watch: Watch) -> None:
    seen = watch(steps=3)
    for entity in ("gpu:0", "gpu:1"):
        (first, at_first), *_, (last, at_last) = seen.last(entity, "energy_j")
        assert at_last > at_first
        values = [value for _, value in seen.last(entity, "energy_j")]
        assert len(values) > 2, "it moved after a reading that was begun after the last sample"
        assert values[-2] == values[1] < at_last
        assert [value for _, value in seen.last(entity, "energy_j")].count(at_last) == 1
        assert last - first < MOVES_S
        assert len(seen.last(entity, "power_instant_w")) == 1


@pytest.mark.needs("gcc")
def test_an_energy_counter_that_stands_still_is_not_waited_for_for_long(watch: Watch) -> None:
    seen = watch("gpus=1;power_w=0;power_swing_w=0", steps=3)
    energy = seen.last("gpu:0", "energy_j")
    assert len({value for _, value in energy}) == 1
    assert 2 < len(energy) < 17
    assert seen.losses == []


ENDS = """
import json, os, threading
from pathlib import Path
from telemetry.clock import Clock
from telemetry.collectors.gpu import GpuCollector

collector = GpuCollector(clock=Clock(offset_ns=0))
collector.open()
collector.sample()
control = Path(os.environ["STAGESCOPE_NVML_CONTROL"])
threading.Timer(0.15, control.write_text, [os.environ["THEN"]]).start()
energy = [s for s in collector.last_sample() if s.series.metric.name == "energy_j"]
collector.close()
print(json.dumps([len(energy), collector.losses]))
"""


@pytest.mark.needs("gcc")
@pytest.mark.parametrize(
    ("then", "words"),
    [
        ("lost=0:0", "the GPU is lost"),
        ("fail=nvmlDeviceGetTotalEnergyConsumption:999", "unknown error"),
    ],
)
def test_an_energy_counter_that_is_lost_meanwhile_is_asked_no_more(
    library: Path, tmp_path: Path, then: str, words: str
) -> None:
    scenario = "gpus=1;power_w=0;power_swing_w=0"
    env = environment(library, scenario, tmp_path / "control") | {"THEN": then}
    asked, losses = run_with(env, ENDS)
    assert 0 < asked < 14
    assert len(losses) == 1
    assert words in losses[0]


@pytest.mark.needs("gcc")
def test_under_mig_the_card_has_power_and_each_instance_its_memory(watch: Watch) -> None:
    seen = watch("gpus=1;mig=1;processes=42:1048576", visible=BOTH_INSTANCES)
    absent_of_card = {m for (e, m), reason in seen.reasons.items() if reason and e == "gpu:0"}
    assert absent_of_card == {"gpu_util_percent", "gpu_mem_util_percent", *GPM, *PROCESSES}
    assert "MIG" in (seen.reasons["gpu:0", "gpu_util_percent"] or "")
    assert {entity for entity, _ in seen.reasons} == {"gpu:0", "gpu:0/mig:0", "gpu:0/mig:1"}
    assert seen.present("gpu:0/mig:1") == INSTANCE
    of_instance = {m: why for (e, m), why in seen.reasons.items() if e == "gpu:0/mig:1" and why}
    assert of_instance.keys() == {metric.name for metric in METRICS} - INSTANCE
    assert {of_instance[name] for name in of_instance.keys() - PCIE} == {OF_THE_CARD}
    assert "energy_j" in seen.present("gpu:0")
    assert seen.values["gpu:0/mig:0", "gpu_mem_total_bytes"][0][1] == 40 * (1 << 30)
    assert seen.values["gpu:0/mig:0", "gpu_process_mem_bytes"][0][1] == 1048576


@pytest.mark.needs("gcc")
def test_of_instances_that_nobody_named_the_first_is_this_runs(watch: Watch) -> None:
    seen = watch("gpus=2;mig=1")
    assert {entity for entity, _ in seen.reasons} == {"gpu:0", "gpu:0/mig:0"}
    (note,) = seen.losses
    assert "of 4 MIG instances CUDA uses one" in note


@pytest.mark.needs("gcc")
def test_what_is_to_be_known_about_the_selection_is_told(watch: Watch) -> None:
    seen = watch(visible="1,x")
    assert {entity for entity, _ in seen.reasons} == {"gpu:1"}
    (note,) = seen.losses
    assert "'x' names no GPU here" in note


@pytest.mark.needs("gcc")
def test_an_instance_that_cannot_be_opened_is_absent_with_its_reason(watch: Watch) -> None:
    seen = watch("gpus=1;mig=1;fail=nvmlDeviceGetMigDeviceHandleByIndex:4")
    assert seen.present("gpu:0/mig:0") == {"gpu_up"}
    assert "no permission" in (seen.reasons["gpu:0/mig:0", "gpu_mem_used_bytes"] or "")
    assert {value for _, value in seen.values["gpu:0/mig:0", "gpu_up"]} == {0.0}
    assert {value for _, value in seen.values["gpu:0", "gpu_up"]} == {1.0}


@pytest.mark.needs("gcc")
@pytest.mark.parametrize(
    ("scenario", "words"),
    [("gpus=0", "lists no GPU"), ("init=9", "modprobe"), ("init=18", "restart")],
)
def test_without_a_gpu_everything_is_absent_with_one_reason(
    watch: Watch, scenario: str, words: str
) -> None:
    seen = watch(scenario)
    assert list(seen.reasons) == [("gpu", metric.name) for metric in METRICS]
    assert all(words in (reason or "") for reason in seen.reasons.values())
    assert seen.rounds == [[]] * 4


def test_without_the_library_there_is_a_reason(tmp_path: Path) -> None:
    env = environment(tmp_path) | {"STEPS": "1", "EDITS": "{}"}
    said = run_with(env, PROGRAM)
    assert {reason.partition(" (")[0] for _, _, reason in said["opened"]} == {
        "no NVIDIA driver: libnvidia-ml.so.1 not found"
    }
    assert said["samples"] == [[]]


def test_closing_before_opening_is_quiet() -> None:
    collector = GpuCollector(clock=Clock(offset_ns=0))
    collector.close()
    assert collector.sample() == []


def _sm(t: float) -> float:
    """What the library's SMs have done until t, in percent × s, but for a constant."""
    return 50 * t - 25 * 4 / (2 * math.pi) * math.cos(2 * math.pi * t / 4)


def _gpm_rows(seen: Watched, metric: str = "gpm_sm_util_percent") -> list[list[Any]]:
    return [row for rows in seen.rounds for row in rows if row[2] == metric]


@pytest.mark.needs("gcc")
def test_gpm_windows_touch_one_another_and_hold_the_truth(watch: Watch) -> None:
    rows = _gpm_rows(watch("gpus=1", steps=21))
    assert 9 <= len(rows) <= 12
    for before, after in pairwise(rows):
        assert after[4] == before[0]
    for ts, _, _, value, start in rows:
        assert ts - start >= 100_000_000
        a, b = start / 1e9, ts / 1e9
        assert value == pytest.approx((_sm(b) - _sm(a)) / (b - a), abs=1.5)


@pytest.mark.needs("gcc")
def test_each_mig_instance_has_gpm_windows_of_its_own(watch: Watch) -> None:
    seen = watch("gpus=1;mig=1;gpm_swing=0", steps=5, visible=BOTH_INSTANCES)
    for slot, percent in ((0, 60), (1, 70)):
        values = seen.values[f"gpu:0/mig:{slot}", "gpm_sm_util_percent"]
        assert values
        assert all(value == pytest.approx(percent) for _, value in values)


@pytest.mark.needs("gcc")
def test_counters_that_another_program_takes_are_a_gap_and_one_loss(watch: Watch) -> None:
    edits = {4: "fail=nvmlGpmSampleGet:19", 8: "fail="}
    seen = watch("gpus=1", steps=14, edits=edits)
    rows = _gpm_rows(seen)
    gaps = [after[4] - before[0] for before, after in pairwise(rows)]
    assert sum(gap > 0 for gap in gaps) == 1
    assert len(seen.losses) == 1
    assert "gpu:0 gpm_graphics_util_percent and 12 more at" in seen.losses[0]
    assert "another program" in seen.losses[0]
    assert {metric for _, metric, _ in seen.ended} == GPM
    assert len(seen.ended) == len(GPM)
    assert all("another program" in why for _, _, why in seen.ended)


@pytest.mark.needs("gcc")
def test_the_drivers_power_is_finer_than_the_ticks_and_none_comes_twice(watch: Watch) -> None:
    seen = watch("gpus=1;buffer_repeat=1", steps=12)
    power = [row for rows in seen.rounds for row in rows if row[2] == "power_buffer_w"]
    times = [row[0] for row in power]
    assert len(power) > 45
    assert times == sorted(set(times))
    assert seen.periods["gpu:0 power_buffer_w"] == pytest.approx(0.02, abs=1e-5)
    assert all(value == pytest.approx(_power(0, t / 1e9), abs=5) for t, _, _, value, _ in power)
    assert len([rows for rows in seen.rounds if any(r[2] == "power_buffer_w" for r in rows)]) <= 5


@pytest.mark.needs("gcc")
def test_a_coarse_buffer_of_power_is_absent_and_says_how_coarse(watch: Watch) -> None:
    seen = watch("gpus=1;buffer_ms=250")
    why = seen.reasons["gpu:0", "power_buffer_w"] or ""
    assert "every 0.25 s" in why
    assert "every 0.1 s" in why


@pytest.mark.needs("gcc")
def test_a_buffer_with_stamps_of_another_clock_is_absent(watch: Watch) -> None:
    seen = watch("gpus=1;buffer_base_us=-3600000000")
    assert "3.6e+03 s old by the wall clock" in (seen.reasons["gpu:0", "power_buffer_w"] or "")


@pytest.mark.needs("gcc")
def test_a_buffer_with_stamps_since_the_boot_is_on_the_runs_clock_too(watch: Watch) -> None:
    base_us = (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.time_ns()) // 1000
    seen = watch(f"gpus=1;buffer_base_us={base_us}", steps=12)
    power = seen.values["gpu:0", "power_buffer_w"]
    assert len(power) > 45
    assert all(value == pytest.approx(_power(0, t), abs=5) for t, value in power)


@pytest.mark.needs("gcc")
def test_a_buffer_that_was_not_filled_of_late_is_absent_and_says_since_when(watch: Watch) -> None:
    seen = watch("gpus=1;buffer_old_s=30")
    assert "the newest is 30" in (seen.reasons["gpu:0", "power_buffer_w"] or "")


@pytest.mark.needs("gcc")
@pytest.mark.skipif(namespace_why(Path("/proc")) is not None, reason="in a container of its own")
def test_the_runs_processes_are_told_from_others(watch: Watch) -> None:
    seen = watch("gpus=1;process_util=self:30:10,1:20:5", steps=14)
    assert next(v for _, v in seen.values["gpu:0", "gpu_processes_sm_percent"]) == 50
    assert next(v for _, v in seen.values["gpu:0", "gpu_processes_mem_percent"]) == 15
    assert next(v for _, v in seen.values["gpu:0", "gpu_run_sm_percent"]) == 30
    assert next(v for _, v in seen.values["gpu:0", "gpu_run_mem_percent"]) == 10


@pytest.mark.needs("gcc")
@pytest.mark.skipif(namespace_why(Path("/proc")) is not None, reason="in a container of its own")
def test_the_runs_memory_is_told_from_that_of_others(watch: Watch) -> None:
    seen = watch("gpus=1;processes=self:3000000,1:5000000", steps=13)
    held = seen.values["gpu:0", "gpu_run_mem_bytes"]
    assert {value for _, value in held} == {3_000_000}
    assert 2 <= len(held) <= 3, "once a second, and at the end"
    assert seen.values["gpu:0", "gpu_process_mem_bytes"][0][1] == 8_000_000
    untold = watch("gpus=1;processes=self:-1")
    assert "does not tell the memory" in (untold.reasons["gpu:0", "gpu_run_mem_bytes"] or "")
    unseen = watch("gpus=1;processes=self:3000000,3999999:5", steps=3)
    assert not unseen.values["gpu:0", "gpu_run_mem_bytes"]
    ((*what, why),) = unseen.ended
    assert what == ["gpu:0", "gpu_run_mem_bytes"]
    assert "process 3999999" in why


@pytest.mark.needs("gcc")
def test_memory_that_the_driver_stops_to_tell_ends_with_its_reason(watch: Watch) -> None:
    edits = {3: "processes=self:-1"}
    seen = watch("gpus=1;processes=self:3000000", steps=14, edits=edits)
    ended = {metric: why for _, metric, why in seen.ended}
    assert "gpu_processes" not in ended
    assert "does not tell the memory" in ended["gpu_process_mem_bytes"]
    assert seen.values["gpu:0", "gpu_processes"][-1][1] == 1


@pytest.mark.needs("gcc")
def test_processes_that_are_told_no_more_end_with_all_their_series(watch: Watch) -> None:
    edits = {3: "fail=nvmlDeviceGetComputeRunningProcesses_v3:999"}
    seen = watch("gpus=1;processes=self:3000000", steps=14, edits=edits)
    assert {"gpu_processes", "gpu_process_mem_bytes"} <= {metric for _, metric, _ in seen.ended}


@pytest.mark.needs("gcc")
def test_the_use_of_processes_that_is_told_no_more_ends_with_all_its_series(watch: Watch) -> None:
    edits = {3: "fail=nvmlDeviceGetProcessUtilization:999"}
    seen = watch("gpus=1;process_util=self:30:10", steps=14, edits=edits)
    assert len(seen.losses) == 1
    ended = {metric: why for _, metric, why in seen.ended}
    assert ended.keys() == PROCESSES & seen.present("gpu:0")
    assert all("unknown error" in why for why in ended.values())


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("held", ["fail=nvmlGpmMetricsGet:19", "fail=nvmlGpmSampleGet:19"])
def test_counters_that_are_held_on_opening_are_asked_for_until_they_are_let_go(
    watch: Watch, held: str
) -> None:
    seen = watch(f"gpus=1;{held}", steps=20, edits={9: "fail="})
    assert seen.reasons["gpu:0", "gpm_sm_util_percent"] is None
    assert all("another program" in why for _, _, why in seen.ended)
    assert {metric for _, metric, _ in seen.ended} == GPM
    rows = _gpm_rows(seen)
    assert rows
    assert rows[0] in [row for rows in seen.rounds[9:] for row in rows]
    assert {metric for _, metric in seen.values} & PCIE == PCIE, "nothing told it on opening"


@pytest.mark.needs("gcc")
def test_a_value_that_is_not_valid_on_a_gpu_at_rest_comes_when_it_works(watch: Watch) -> None:
    seen = watch("gpus=1;gpm_nan=5", steps=20, edits={9: "gpm_nan=0"})
    assert seen.reasons["gpu:0", "gpm_tensor_util_percent"] is None
    tensor, sm = (_gpm_rows(seen, f"gpm_{name}_util_percent") for name in ("tensor", "sm"))
    assert 0 < len(tensor) < len(sm)
    assert [metric for _, metric, _ in seen.ended] == ["gpm_tensor_util_percent"]


@pytest.mark.needs("gcc")
@pytest.mark.parametrize(
    ("scenario", "entity", "percent"),
    [
        ("once=nvmlGpmSampleGet:19", "gpu:0", 50),
        ("once=nvmlDeviceGetArchitecture:10", "gpu:0", 50),
        ("mig=1;once=nvmlGpmMigSampleGet:10", "gpu:0/mig:0", 60),
    ],
)
def test_no_pair_begins_with_a_sample_that_failed(
    watch: Watch, scenario: str, entity: str, percent: float
) -> None:
    seen = watch(f"gpus=1;gpm_swing=0;{scenario}", steps=6)
    assert seen.reasons[entity, "gpm_sm_util_percent"] is None
    values = [value for _, value in seen.values[entity, "gpm_sm_util_percent"]]
    assert values == pytest.approx([percent] * len(values))
    assert values


@pytest.mark.needs("gcc")
def test_a_last_window_in_which_the_driver_did_not_look_is_not_idle(watch: Watch) -> None:
    seen = watch("gpus=1;process_util=1:20:5", steps=14, edits={11: "process_util="})
    assert [value for _, value in seen.values["gpu:0", "gpu_processes_sm_percent"]] == [20]
    never = watch("gpus=1", steps=4)
    assert not never.values["gpu:0", "gpu_processes_sm_percent"]
    idle = watch("gpus=1", steps=13)
    assert [value for _, value in idle.values["gpu:0", "gpu_processes_sm_percent"]] == [0]


@pytest.mark.needs("gcc")
@pytest.mark.skipif(namespace_why(Path("/proc")) is not None, reason="in a container of its own")
def test_a_process_that_cannot_be_seen_leaves_the_runs_share_unknown(watch: Watch) -> None:
    seen = watch("gpus=1;process_util=self:30:10,3999999:20:5", steps=12)
    assert seen.values["gpu:0", "gpu_processes_sm_percent"]
    assert not seen.values["gpu:0", "gpu_run_sm_percent"]
    assert len(seen.losses) == 1
    assert "process 3999999" in seen.losses[0]
    ended = {metric: why for _, metric, why in seen.ended}
    assert ended.keys() == {"gpu_run_sm_percent", "gpu_run_mem_percent"}
    assert all("process 3999999" in why for why in ended.values())


@pytest.mark.needs("gcc")
def test_only_the_gpus_of_this_run_are_watched(library: Path, tmp_path: Path) -> None:
    env = environment(library, "gpus=2;mig=1", tmp_path / "control")
    env |= {"STEPS": "3", "EDITS": "{}"}
    env["CUDA_VISIBLE_DEVICES"] = "MIG-000000c1-0000-4000-8000-000000001001"
    said = run_with(env, PROGRAM)
    assert {entity for entity, _, _ in said["opened"]} == {"gpu:1", "gpu:1/mig:1"}
    assert {row[1] for rows in said["samples"] for row in rows} == {"gpu:1", "gpu:1/mig:1"}


def test_samples_are_placed_on_the_runs_clock_and_told_once() -> None:
    wall, now = 1_000_000_000, 5_000
    samples = [Kept(999_995, 1.0), Kept(999_997, 2.0), Kept(1_000_001, 3.0)]
    assert placed(samples, wall, now, 0) == [(2000, 2.0)]  # -5 µs is before 0, +1 µs to come
    assert placed(samples, wall, now, 2000) == []
    assert placed(samples, wall, now + 10_000, -1) == [(10_000, 1.0), (12_000, 2.0)]


def test_a_clock_that_is_set_back_costs_what_was_stamped_before_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A ring of 2.4 s, read once a second; after 5 s the wall clock goes back by an hour."""
    ring: list[Kept] = []
    now_ns, hour_ns = 10_000_000_000_000, 3_600_000_000_000
    read = now_ns

    def ask(gpu: Gpu, buffer: Buffer, after_us: int) -> list[Kept]:
        return sorted(one for one in ring[-120:] if one.stamp_us > after_us)

    monkeypatch.setattr("telemetry.collectors.gpu_buffers.kept", ask)
    monkeypatch.setattr("time.clock_gettime_ns", lambda of: read)
    source = LevelSource(
        gpu=Gpu(index=0, uuid="GPU-0", name="H200", handle=None),
        metric=POWER_BUFFER,
        buffer=POWER_W,
        clock=Clock(offset_ns=0),
        lost=Losses(told=[], ended=deque()),
    )
    told = []
    for step in range(500):
        read = now_ns + step * 20_000_000 - (hour_ns if step >= 250 else 0)
        ring.append(Kept(read // 1000, 200.0))
        monkeypatch.setattr(Clock, "now_ns", lambda _, at=step: now_ns + at * 20_000_000)
        if step == 120:
            assert source.open(0.1).reason is None
        if step > 120 and step % 50 == 0:
            told += [one.ts_ns for one in source.sample()]
    assert told == sorted(set(told))
    assert len(told) > 270, "of 331, but for those around the step"
    assert told[-1] == now_ns + 450 * 20_000_000


def test_the_use_of_a_process_is_the_mean_of_its_samples() -> None:
    samples = [Used(1, 7, 10, 2), Used(2, 7, 30, 4), Used(2, 8, 5, 0)]
    assert means(samples) == {7: (20, 3), 8: (5, 0)}
    assert means([]) == {}


def _process(proc: Path, number: int, parent: int, leader: int | None = None) -> None:
    (proc / str(number)).mkdir()
    (proc / str(number) / "status").write_text(
        f"Name:\ta) R 1 (b\nTgid:\t{leader or number}\nPid:\t{number}\nPPid:\t{parent}\n"
    )


def test_descent_is_read_from_proc(tmp_path: Path) -> None:
    for number, parent in ((1, 0), (10, 1), (11, 10), (20, 1)):
        _process(tmp_path, number, parent)
    told = {number: descends(number, 10, tmp_path) for number in (10, 11, 20, 1, 99)}
    assert told == {10: True, 11: True, 20: False, 1: False, 99: None}


def test_a_process_that_is_named_by_a_thread_of_it_is_known(tmp_path: Path) -> None:
    for number, parent, leader in ((1, 0, 1), (10, 1, 10), (13, 1, 10), (14, 1, 1)):
        _process(tmp_path, number, parent, leader)
    assert descends(13, 10, tmp_path) is True
    assert descends(14, 10, tmp_path) is False


def test_a_pid_namespace_of_its_own_is_a_reason(tmp_path: Path) -> None:
    assert "cannot be read" in (namespace_why(tmp_path) or "")
    (tmp_path / "self/ns").mkdir(parents=True)
    (tmp_path / "self/ns/pid").symlink_to("pid:[4026532999]")
    assert "--pid=host" in (namespace_why(tmp_path) or "")
