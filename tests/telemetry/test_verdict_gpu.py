"""Whose work a busy GPU did, and what is said where that, or how busy it was, is not known."""

from __future__ import annotations

from typing import Any

import pytest

from telemetry.profile import Row
from tests.telemetry.test_verdict import (
    COPIED,
    GPU,
    GPU_HELD,
    GPU_OWN,
    ONE_THREAD,
    QUIET,
    Means,
    judged,
    row,
)

BUSY_CPU = QUIET | ONE_THREAD
HELD_1 = ("gpu:1", "gpu_run_mem_bytes")
GPU_1 = ("gpu:1", "gpu_util_percent")
NO_GPM = "GPM counters exist from Hopper on; this GPU is Ampere"
NAMESPACE = "in a PID namespace of its own (a container) the driver's process numbers are others"


def absent(entity: str, metric: str, reason: str) -> Row:
    return Row(stage="s", entity=entity, metric=metric, unit="%", kind="gauge", reason=reason)


def evidence(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(one["entity"], one["metric"], one["figure"]) for one in found["evidence"]]


def test_the_use_by_all_counts_where_the_runs_memory_lies() -> None:
    found = judged(BUSY_CPU | {GPU: 93.0, GPU_HELD: 2.1e9})
    assert found["verdict"] == "GPU-bound"
    assert evidence(found) == [(*GPU, "mean"), (*GPU_HELD, "max")]
    assert found["sentence"] == (
        "gpu:0 worked for 93 % of its time, for all who used it, this run among them (memory that "
        "this run's processes held there: 2,100.0 MB)"
    )


def test_how_full_it_was_and_of_how_many_gpus_is_said() -> None:
    """A kernel can be resident all the time on one multiprocessor of many."""
    sm = ("gpu:0", "gpm_sm_util_percent")
    found = judged(BUSY_CPU | {GPU: 98.0, GPU_OWN: 97.0, GPU_1: 3.0}, more=[row(sm, 5.0)])
    assert found["sentence"] == (
        "gpu:0 worked for 97 % of its time; 5 % of its multiprocessors were busy on average; it is "
        "one of 2 GPUs, and the one that worked the most"
    )
    assert evidence(found) == [(*GPU_OWN, "mean"), (*sm, "mean")]


@pytest.mark.parametrize("metric", ["app_host_to_device_bytes", "app_device_to_host_bytes"])
def test_an_older_driver_does_where_the_stage_copied_to_or_from_a_gpu(metric: str) -> None:
    found = judged(
        BUSY_CPU | {GPU: 93.0, ("app", metric): 5e6},
        more=[absent(*GPU_OWN, NAMESPACE), absent(*GPU_HELD, NAMESPACE)],
    )
    assert (found["verdict"], found["missing"]) == ("GPU-bound", [])
    assert evidence(found) == [(*GPU, "mean"), ("app", metric, "total")]


def test_a_strangers_load_on_a_gpu_is_not_the_stages() -> None:
    found = judged(BUSY_CPU | {GPU: 99.0, GPU_HELD: 0.0})
    assert (found["rule"], found["also"], found["missing"]) == ("cpu-one", [], [])


def test_where_nobody_says_whose_work_it_was_that_is_missing() -> None:
    found = judged(BUSY_CPU | {GPU: 99.0}, more=[absent(*GPU_HELD, NAMESPACE)])
    assert (found["rule"], found["also"]) == ("cpu-one", [])
    assert found["missing"] == [
        "a GPU: gpu:0 worked for 99 % of its time, and whose work that was is not known: "
        f"{NAMESPACE}"
    ]
    assert judged(BUSY_CPU | {GPU: 70.0})["missing"] == []  # nobody was held back by it


@pytest.mark.parametrize(
    ("means", "decides"),
    [
        ({GPU: 95.0, GPU_1: 99.0, GPU_HELD: 1e9, HELD_1: 0.0}, "gpu:0"),
        ({GPU: 30.0, GPU_1: 99.0, GPU_HELD: 1e9, HELD_1: 0.0, COPIED: 1e6}, None),
        ({GPU: 30.0, GPU_1: 99.0, COPIED: 1e6}, "gpu:1"),
        ({GPU: 85.0, GPU_1: 99.0, COPIED: 1e6}, "gpu:1"),
        ({GPU: 95.0, GPU_OWN: 90.0, GPU_1: 99.0}, "gpu:0"),
    ],
)
def test_of_several_gpus_the_one_that_holds_the_runs_memory(
    means: Means, decides: str | None
) -> None:
    found = judged(BUSY_CPU | means)
    entities = {one["entity"] for one in found["evidence"] if one["entity"].startswith("gpu:")}
    assert entities == ({decides} if decides else set())
    assert (found["verdict"] == "GPU-bound") == bool(decides)
    assert found["missing"] == []


def test_an_instance_without_gpm_cannot_be_judged() -> None:
    """A MIG instance of an A100 has memory alone; what its card did may be anybody's."""
    rows = [
        row(("gpu:0", "gpu_util_percent"), 97.0),
        row(("gpu:0/mig:0", "gpu_run_mem_bytes"), 4e9),
        absent("gpu:0/mig:0", "gpm_graphics_util_percent", NO_GPM),
        absent("gpu:0/mig:0", "gpu_util_percent", "its card has it"),
    ]
    found = judged(BUSY_CPU, more=rows)
    assert found["rule"] == "cpu-one"
    assert found["missing"] == [f"a GPU: how busy gpu:0/mig:0 was is not known: {NO_GPM}"]


def test_a_gpu_that_was_lost_cannot_be_judged() -> None:
    found = judged(BUSY_CPU | {GPU: 10.0}, more=[row(GPU_1, 99.0, 0.2)])
    assert found["missing"] == [
        "a GPU: how busy gpu:1 was is not known: gpu_util_percent of gpu:1 covers 20 % of the stage"
    ]
    known = judged(BUSY_CPU | {GPU: 95.0, GPU_HELD: 1e9}, more=[row(GPU_1, 99.0, 0.2)])
    assert (known["verdict"], known["missing"]) == ("GPU-bound", [])


def test_a_gpu_that_only_its_lights_are_known_of_cannot_be_judged() -> None:
    found = judged(BUSY_CPU | {("gpu:0", "power_instant_w"): 70.0})
    assert found["missing"] == [
        "a GPU: how busy gpu:0 was is not known: gpu_util_percent of gpu:0 was not recorded"
    ]


def test_a_machine_without_a_gpu_lacks_nothing() -> None:
    found = judged(BUSY_CPU, more=[absent("gpu", "gpu_util_percent", "no NVIDIA driver")])
    assert found["missing"] == []
