"""Why a stage takes another time: the resource that moved with it, and the environment's keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from telemetry.compare import compare
from telemetry.explain import cpu_speeds
from telemetry.profile import Row
from telemetry.publish import reference_of
from telemetry.reference import DURATION, Entry, Reference
from tests.telemetry.reference_runs import ENVIRONMENT, QUIET, made_run, row, side


@pytest.mark.parametrize(
    ("witness", "environment", "resource", "told"),
    [
        (
            row("training", "cgroup", "cgroup_cpu_throttled_seconds", "s", 6.0),
            {"cgroup": {"cpu_quota_cores": 1.0}},
            "CPU quota",
            "cgroup.cpu_quota_cores: none in A, 1.0 in B",
        ),
        (
            row("training", "machine", "psi_cpu_some_seconds", "s", 6.0),
            {"cpu_usable": 2},
            "waiting for a CPU",
            "cpu_usable: 8 in A, 2 in B",
        ),
        (
            row("training", "machine", "psi_io_full_seconds", "s", 6.0),
            {},
            "disk",
            "nothing known of the environments explains it",
        ),
    ],
)
def test_a_difference_is_explained_by_resource_and_environment(
    tmp_path: Path, witness: Row, environment: dict[str, Any], resource: str, told: str
) -> None:
    calm = row(witness.stage, witness.entity, witness.metric, witness.unit, 0.0)
    a = side(tmp_path, "a", rows=[calm])
    b = side(tmp_path, "b", training=16, rows=[witness], environment={**ENVIRONMENT, **environment})
    (explained,) = compare(a, b).explanations
    assert explained.stage == "training"
    assert resource in explained.resources
    assert told.lower() in explained.sentence.lower()


def of_kernels(out: Path, name: str, training: float, kernels: Sequence[str | None]) -> Reference:
    """A run on each of these kernels; none that told none."""
    rows = [waited("io", training - 9.9)]
    folders = [
        made_run(out / name, i, {"training": training * noise}, rows=rows,
                 environment={**ENVIRONMENT, **({} if kernel is None else {"kernel": kernel})})
        for i, (noise, kernel) in enumerate(zip(QUIET, kernels, strict=True), 1)
    ]  # fmt: skip
    return reference_of(name, folders)


ONE_OF_FIVE = ("K1", "K2", "K2", "K2", "K2")


@pytest.mark.parametrize(
    ("of_a", "of_b", "told"),
    [
        (("K2",) * 5, ("K2",) * 5, None),
        (("K1",) * 5, ("K2",) * 5, "kernel: K1 in A, K2 in B"),
        (ONE_OF_FIVE, ("K2",) * 5, "kernel: K2 (4 runs) and K1 (1 run) in A, K2 in B"),
        (("K1",) * 5, ONE_OF_FIVE, "kernel: K1 in A, K2 (4 runs) and K1 (1 run) in B"),
        (ONE_OF_FIVE, ONE_OF_FIVE, "kernel: K2 (4 runs) and K1 (1 run) in A, K2 (4 runs) and K1"),
        (
            (None, "K1", "K2", "K3", "K3"),
            (None,) * 5,
            "kernel: K3 (2 runs) and none (1 run) and K1 (1 run) and 1 more in A, none in B",
        ),
    ],
)
def test_what_the_runs_of_a_side_were_not_alike_in_is_told_with_their_number(
    tmp_path: Path, of_a: Sequence[str], of_b: Sequence[str], told: str | None
) -> None:
    a, b = of_kernels(tmp_path, "a", 10.0, of_a), of_kernels(tmp_path, "b", 16.0, of_b)
    (explained,) = compare(a, b).explanations
    assert "disk" in explained.resources
    assert (told or "Nothing known of the environments explains it") in explained.sentence


def throttled(seconds: float) -> Row:
    return row("training", "cgroup", "cgroup_cpu_throttled_seconds", "s", seconds)


def waited(what: str, seconds: float) -> Row:
    return row("training", "machine", f"psi_{what}_some_seconds", "s", seconds)


def test_a_quota_is_named_and_the_waiting_that_it_makes_is_not(tmp_path: Path) -> None:
    calm, held = ([throttled(s), waited("cpu", s)] for s in (0.0, 5.0))
    a, b = side(tmp_path, "a", rows=calm), side(tmp_path, "b", training=15, rows=held)
    (explained,) = compare(a, b).explanations
    assert explained.resources == ("CPU quota",)


@pytest.mark.parametrize("entity", ["cgroup", "stage"])
def test_a_group_without_a_quota_keeps_no_account_of_one(tmp_path: Path, entity: str) -> None:
    held = replace(throttled(5.0), entity=entity)
    a, b = side(tmp_path, "a"), side(tmp_path, "b", training=15, rows=[held])
    (explained,) = compare(a, b).explanations
    assert explained.resources == ("CPU quota",)


def test_a_short_stage_has_witnesses_as_well(tmp_path: Path) -> None:
    """A quarter of a second is too little to be compared by itself, and most of what is missing."""
    calm, held = ([waited("io", s)] for s in (0.01, 0.26))
    a = side(tmp_path, "a", training=0.5, rows=calm)
    b = side(tmp_path, "b", training=0.75, rows=held)
    got = compare(a, b)
    assert got.too_small > 0
    assert [one.resources for one in got.explanations] == [("disk",)]


def test_what_accounts_for_little_of_the_difference_is_no_reason(tmp_path: Path) -> None:
    rows = [[waited("io", s), waited("cpu", c)] for s, c in ((0.0, 0.0), (0.6, 9.0))]
    a, b = side(tmp_path, "a", rows=rows[0]), side(tmp_path, "b", training=20, rows=rows[1])
    got = compare(a, b)
    assert {one.metric for one in got.found} >= {"psi_io_some_seconds", "psi_cpu_some_seconds"}
    assert [one.resources for one in got.explanations] == [("waiting for a CPU",)]


def times_alone(one: Reference) -> Reference:
    """A side of which no figure but the stages' times is known."""
    stages = [
        replace(stage, metrics=tuple(entry for entry in stage.metrics if entry.key == DURATION))
        for stage in one.stages
    ]
    return replace(one, stages=tuple(stages))


@pytest.mark.parametrize(("training", "told"), [(16.0, "60 % slower"), (5.0, "50 % faster")])
def test_where_nothing_stands_out_that_is_all_that_is_said(
    tmp_path: Path, training: float, told: str
) -> None:
    a, b = (
        times_alone(side(tmp_path, name, training=s)) for name, s in (("a", 10), ("b", training))
    )
    (explained,) = compare(a, b).explanations
    assert explained.resources == ()
    assert f"Training is {told}" in explained.sentence
    assert "None of the figures that were asked stands out." in explained.sentence
    assert "waited" not in explained.sentence


def looped(loop_us: float, cpu_s: float) -> list[Row]:
    """The stage's CPU time, and that of the loop which is always the same."""
    level = replace(row("training", "machine", "cpu_loop_us", "µs", loop_us), kind="gauge")
    return [
        replace(level, total=None),
        row("training", "stage", "cpu_user_seconds", "s", cpu_s),
    ]


@pytest.mark.parametrize("share", [0.92, 1.1])
def test_a_cpu_that_changed_its_speed_is_named_alone(tmp_path: Path, share: float) -> None:
    """All of the stage's CPU time moves with it, and says nothing more."""
    a = side(tmp_path, "a", rows=looped(45.0, 9.0))
    model = {**ENVIRONMENT, "cpu": {"model": "Xeon", "count": 8}}
    rows = looped(45.0 * share, 9.0 * share)
    b = side(tmp_path, "b", training=10 * share, rows=rows, environment=model)
    (explained,) = compare(a, b).explanations
    assert explained.resources == ("CPU speed",)
    told = f"machine cpu_loop_us in the whole runs 45 → {45 * share:.4g} µs"
    assert told in explained.sentence
    assert "cpu.model: EPYC in A, Xeon in B" in explained.sentence


@pytest.mark.parametrize("loop_us", [45.2, 47.0, 42.0])
def test_a_cpu_that_is_hardly_slower_is_not_why_a_stage_takes_half_as_long_again(
    tmp_path: Path, loop_us: float
) -> None:
    """A tenth of the difference would be 4 %: less is what more work by itself makes of it."""
    a = side(tmp_path, "a", rows=looped(45.0, 9.0))
    b = side(tmp_path, "b", training=15.0, rows=looped(loop_us, 13.5))
    (explained,) = compare(a, b).explanations
    assert explained.resources == ("CPU speed or work per CPU",)
    assert f"while a fixed loop took 45 → {loop_us:.4g} µs" in explained.sentence


def test_of_older_runs_nothing_is_said_of_the_loop(tmp_path: Path) -> None:
    work = [looped(45.0, cpu_s)[1] for cpu_s in (9.0, 13.5)]
    a = side(tmp_path, "a", rows=work[:1])
    b = side(tmp_path, "b", training=15.0, rows=[*looped(45.0, 0.0)[:1], work[1]])
    (explained,) = compare(a, b).explanations
    assert explained.resources == ("CPU speed or work per CPU",)
    assert "loop" not in explained.sentence


def test_more_work_is_named_beside_a_slower_cpu(tmp_path: Path) -> None:
    """The loop took 11 % longer, and the stage half as much CPU time again."""
    a = side(tmp_path, "a", rows=looped(45.0, 9.0))
    b = side(tmp_path, "b", training=15.0, rows=looped(50.0, 13.5))
    (explained,) = compare(a, b).explanations
    assert explained.resources == ("CPU speed", "CPU speed or work per CPU")
    assert "stage cpu_user_seconds 9 → 13.5 s" in explained.sentence


def with_loops(one: Reference, **loops: tuple[float | None, ...]) -> Reference:
    stages = [
        stage.with_entry(
            Entry(entity="machine", metric="cpu_loop_us", unit="µs", kind="gauge", figure="mean",
                  values=loops[stage.name], coverage=1.0)
        )
        if stage.name in loops else stage
        for stage in one.stages
    ]  # fmt: skip
    return replace(one, stages=tuple(stages))


def test_the_cpus_speed_is_that_of_whole_runs_by_the_lengths_of_one_side(tmp_path: Path) -> None:
    """A stage that grew by itself, where the loop is slower anyway, is no slower CPU."""
    a = side(tmp_path, "a", training=10.0, runs=3)
    b = side(tmp_path, "b", training=20.0, runs=3)
    loops = {"processing": (50.0,) * 3, "training": (90.0, 91.0, 92.0)}
    one, two = cpu_speeds(with_loops(a, **loops), with_loops(b, **loops))
    assert one is not None
    assert two is not None
    first, second = (stage.duration.median for stage in a.stages)
    wanted = [(50 * first + loop * second) / (first + second) for loop in loops["training"]]
    assert one.values == two.values == pytest.approx(wanted)


def test_what_a_run_lacks_is_left_out_on_both_sides(tmp_path: Path) -> None:
    a = side(tmp_path, "a", runs=3)
    whole = with_loops(a, processing=(50.0,) * 3, training=(40.0,) * 3)
    short = with_loops(a, processing=(60.0,) * 3, training=(40.0, None, 40.0))
    one, two = cpu_speeds(whole, short)
    assert one is not None
    assert two is not None
    assert one.values == pytest.approx([50.0] * 3)
    assert two.values == pytest.approx([60.0] * 3)
    assert cpu_speeds(whole, a) == cpu_speeds(a, a) == (None, None)
