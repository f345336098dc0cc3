"""Comparing: the same, what differs and by how much, why, and what could not be told."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from telemetry.compare import TOLERANCE, Comparison, compare
from telemetry.compare_page import render
from telemetry.compare_timeline import _LABEL, LEFT, WIDTH, _label, in_turn
from telemetry.compared import ALPHA_SAME, TIME, Rule
from telemetry.profile import Row
from telemetry.publish import reference_of
from telemetry.reference import Reference
from tests.browser import Browser
from tests.study.detection import called_same, normal
from tests.telemetry.reference_runs import ENVIRONMENT, QUIET, RECIPE, made_run, row, side


def test_the_same_is_the_same(tmp_path: Path) -> None:
    got = compare(side(tmp_path, "a"), side(tmp_path, "b", training=10.01))
    assert got.outcome == "same"
    assert {row.verdict for row in got.times} == {"same"}
    assert not got.found


def test_a_slower_stage_is_found_with_its_interval(tmp_path: Path) -> None:
    got = compare(side(tmp_path, "a"), side(tmp_path, "b", training=10.5))
    assert got.outcome == "differs"
    training = got.times[1]
    assert training.verdict == "slower"
    assert training.change == pytest.approx(0.05, abs=1e-3)
    assert training.change_low
    assert training.change_high
    assert 0.03 < training.change_low < 0.05 < training.change_high < 0.07
    assert got.times[0].verdict == "same"
    assert "training is 5.0 % slower" in got.explanations[0].sentence.lower()


def test_a_stage_that_is_short_on_one_side_alone_is_not_passed_over(tmp_path: Path) -> None:
    def one(name: str, *seconds: float) -> Reference:
        folders = [
            made_run(tmp_path / name, number, {"validation": took, "training": 30 * noise})
            for number, (took, noise) in enumerate(zip(seconds, QUIET, strict=True), 1)
        ]
        return reference_of(name, folders)

    usual, stalls = one("a", 0.3, 0.31, 0.3, 0.3, 0.3), one("b", 0.3, 0.3, 6.0, 0.3, 8.0)
    for got in (compare(usual, stalls), compare(stalls, usual)):
        assert got.outcome == "unsure"
        (point,) = got.open_points()
        assert point.startswith("validation varies by")
    assert compare(usual, one("c", 0.3, 0.6, 0.3, 0.9, 0.3)).outcome == "same", "little either way"


def test_a_figure_that_b_has_lost_leaves_it_open_and_one_that_it_gained_does_not(
    tmp_path: Path,
) -> None:
    had = of_gpu("power_instant_w", "W", 300.0)
    lost = Row(stage="training", entity="gpu:0", metric=had.metric, unit="W", kind="gauge",
               reason="the driver is gone")  # fmt: skip
    whole, poor = side(tmp_path, "a", rows=[had]), side(tmp_path, "b", rows=[lost])
    got = compare(whole, poor)
    assert got.outcome == "unsure"
    assert got.open_points() == [
        "power_instant_w of gpu:0 in training: measured in A alone (B: the driver is gone)"
    ]
    assert got.to_json()["only_figures"] == {"a": ["training gpu:0 power_instant_w mean"], "b": []}
    assert "Measured on one side only" in render(got)
    assert compare(poor, whole).outcome == "same"
    shared = side(tmp_path, "c", rows=[of_gpu("gpu_temperature_c", "°C", 60.0)])
    assert compare(shared, poor).outcome == "same", "a figure that could not have decided"
    nothing = side(tmp_path, "d", rows=[of_gpu("power_instant_w", "W", 0.0)])
    assert compare(nothing, poor).outcome == "same", "an amount that nobody would look at"


def test_without_any_gpu_its_reason_stands_beside_what_is_lost(tmp_path: Path) -> None:
    had = of_gpu("power_instant_w", "W", 300.0)
    none = Row(stage="training", entity="gpu", metric=had.metric, unit="W", kind="gauge",
               reason="no NVIDIA driver")  # fmt: skip
    got = compare(side(tmp_path, "a", rows=[had]), side(tmp_path, "b", rows=[none]))
    (point,) = got.open_points()
    assert point.endswith("measured in A alone (B: no NVIDIA driver)")


def test_the_lines_of_a_vm_that_moved_are_one() -> None:
    before, after = np.array([2.0, 2.0, np.nan, np.nan]), np.array([np.nan, 1.0, 3.0, np.nan])
    np.testing.assert_array_equal(in_turn(before, after), [2.0, 3.0, 3.0, np.nan])


def test_another_verdict_is_told_and_decides_nothing(tmp_path: Path) -> None:
    sides = side(tmp_path, "a", verdict="CPU-bound"), side(tmp_path, "b", verdict="disk-bound")
    got = compare(*sides)
    assert got.outcome == "same"
    assert got.to_json()["held_back_by"] == {
        "processing": {"a": None, "b": None},
        "training": {"a": "CPU-bound", "b": "disk-bound"},
    }
    title = "What held each stage back"
    assert title in render(got)
    assert title not in render(compare(side(tmp_path, "c"), side(tmp_path, "d")))


def of_gpu(metric: str, unit: str, mean: float, stage: str = "training") -> Row:
    return Row(stage=stage, entity="gpu:0", metric=metric, unit=unit, kind="gauge", mean=mean,
               p50=mean, p95=mean, max=mean, coverage=1.0)  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "unit", "values", "outcome"),
    [
        ("gpu_temperature_c", "°C", (45.0, 52.0), "same"),
        ("gpu_clock_sm_mhz", "MHz", (1755.0, 1400.0), "same"),
        ("gpu_mem_reserved_bytes", "B", (5e8, 9e8), "same"),
        ("power_instant_w", "W", (300.0, 360.0), "differs"),
        ("gpu_run_sm_percent", "%", (90.0, 60.0), "differs"),
        ("power_idle_least_w", "W", (60.0, 72.0), "same"),
        ("energy_difference_percent", "%", (1.0, 9.0), "same"),
    ],
)
def test_what_the_room_or_the_driver_make_of_a_gpu_is_evidence_only(
    tmp_path: Path, metric: str, unit: str, values: tuple[float, float], outcome: str
) -> None:
    sides = [
        side(tmp_path, name, rows=[of_gpu(metric, unit, value)])
        for name, value in zip("ab", values, strict=True)
    ]
    got = compare(*sides)
    assert {row.metric for row in got.found} == {metric}
    assert got.outcome == outcome


def test_what_others_do_on_a_card_in_mig_mode_decides_nothing(tmp_path: Path) -> None:
    def one(name: str, watts: float, percent: float) -> Reference:
        part = replace(of_gpu("gpm_sm_util_percent", "%", percent), entity="gpu:0/mig:0")
        return side(tmp_path, name, rows=[of_gpu("power_instant_w", "W", watts), part])

    got = compare(one("a", 200.0, 60.0), one("b", 400.0, 60.0))
    assert [row.metric for row in got.found] == ["power_instant_w"]
    assert got.outcome == "same"
    assert compare(one("c", 200.0, 60.0), one("d", 200.0, 90.0)).outcome == "differs"


@pytest.mark.parametrize(
    ("held", "outcome"),
    [
        ((0.0, 0.0), "same"),
        ((0.0, 2.0**30), "differs"),
        ((0.0, None), "differs"),
        ((None, None), "differs"),
    ],
    ids=["by nobody's run", "by one run", "one driver does not tell", "no driver tells"],
)
def test_a_card_of_which_no_run_held_memory_decides_nothing(
    tmp_path: Path, held: tuple[float | None, ...], outcome: str
) -> None:
    sides = []
    for name, watts, of_run in zip("ab", (200.0, 400.0), held, strict=True):
        rows = [of_gpu("power_instant_w", "W", watts)]
        if of_run is not None:
            rows.append(of_gpu("gpu_run_mem_bytes", "B", of_run))
        sides.append(side(tmp_path, name, rows=rows))
    got = compare(*sides)
    assert "power_instant_w" in {row.metric for row in got.found}
    assert got.outcome == outcome


def test_a_card_that_one_stage_may_have_used_decides(tmp_path: Path) -> None:
    """The driver told that nothing was held, and then, of a process that it saw, no more."""
    got = compare(
        *(
            side(tmp_path, name, rows=[
                of_gpu("gpu_run_mem_bytes", "B", 0.0, "processing"),
                of_gpu("power_instant_w", "W", watts),
            ])
            for name, watts in (("a", 200.0), ("b", 400.0))
        )
    )  # fmt: skip
    assert got.outcome == "differs"


def test_a_card_that_was_not_used_may_be_missing(tmp_path: Path) -> None:
    power = of_gpu("power_instant_w", "W", 200.0)
    idle = side(tmp_path, "a", rows=[power, of_gpu("gpu_run_mem_bytes", "B", 0.0)])
    used = side(tmp_path, "b", rows=[power, of_gpu("gpu_run_mem_bytes", "B", 2.0**30)])
    without = side(tmp_path, "c")
    assert compare(idle, without).outcome == "same"
    assert compare(used, without).outcome == "unsure"


def sat(out: Path, name: str, times: Sequence[tuple[float, float]]) -> Reference:
    """Runs that began at such minutes and whose training took so many seconds."""
    folders = [
        made_run(out / name, number, {"processing": 4.0 + number / 1000, "training": took})
        for number, (_, took) in enumerate(times, 1)
    ]
    start = datetime(2026, 12, 1, tzinfo=UTC)
    at = [f"{start + timedelta(minutes=minute):%Y-%m-%dT%H:%M:%SZ}" for minute, _ in times]
    made = reference_of(name, folders)
    return replace(made, measured={**made.measured, "began": at})


def test_a_machine_that_differs_from_hour_to_hour_is_the_same(tmp_path: Path) -> None:
    """Published over five hours, in two of which it was slow; run again in a slow one."""
    hours = [(0, 10.0), (1, 10.1), (60, 10.9), (120, 10.1), (180, 10.0), (240, 11.0), (241, 10.9)]
    slow = [(600, 10.8), (600.5, 10.9), (601, 10.85), (601.5, 10.95)]
    got = compare(sat(tmp_path, "a", hours), sat(tmp_path, "b", slow))
    assert got.outcome == "same"
    training = got.times[1]
    assert training.drift == pytest.approx(0.045, abs=0.01)
    assert training.needs_sittings
    assert training.runs_for_5_percent is None
    assert "by the sitting" in render(got)
    assert "more sittings" in render(got)
    at_once = [(place / 2, took) for place, (_, took) in enumerate(hours)]
    assert compare(sat(tmp_path, "c", at_once), sat(tmp_path, "d", slow)).times[1].drift is None
    still = [(60.0 * (place // 2), took) for place, took in enumerate((10, 10.6, 10.1, 10.5) * 2)]
    noise = compare(sat(tmp_path, "g", still), sat(tmp_path, "h", [(600, 10.3), (600.5, 10.0)]))
    told = noise.times[1]
    assert told.by_sittings is not None
    assert told.runs_for_5_percent is not None
    assert not told.needs_sittings
    far = [(minute, 1.4 * took) for minute, took in slow]
    assert compare(sat(tmp_path, "e", hours), sat(tmp_path, "f", far)).outcome == "differs"


def test_gpus_are_compared_by_their_place_in_the_run(tmp_path: Path) -> None:
    """A scheduler gives one run gpu:5, the other gpu:2, and of a MIG card another slot."""

    def one(name: str, card: int, slot: int, percent: float) -> Reference:
        entities = (f"gpu:{card}", f"gpu:{card}/mig:{slot}")
        rows = [replace(of_gpu("gpu_run_sm_percent", "%", percent), entity=e) for e in entities]
        gpus = [{"entity": entity, "index": card, "name": "H100"} for entity in entities]
        environment = {**ENVIRONMENT, "gpu": {"gpus": gpus, "reason": None}}
        return side(tmp_path, name, rows=rows, environment=environment)

    got = compare(one("a", 5, 3, 90.0), one("b", 2, 0, 60.0))
    assert [row.entity for row in got.found] == ["gpu:0", "gpu:0/mig:0"]
    assert got.environment == ()


def test_a_faster_one_is_the_same_turned_round(tmp_path: Path) -> None:
    got = compare(side(tmp_path, "b", training=10.5), side(tmp_path, "a"))
    assert got.times[1].verdict == "faster"


def test_noise_is_not_called_the_same_and_says_what_it_could_have_found(tmp_path: Path) -> None:
    got = compare(side(tmp_path, "a", spread=60), side(tmp_path, "b", spread=60, training=10.5))
    assert got.outcome == "unsure"
    training = got.times[1]
    assert training.verdict == "unsure"
    assert (training.smallest or 0) > 0.2
    assert (training.runs_for_5_percent or 0) > 20
    (told,) = (one for one in got.open_points() if one.startswith("training varies by"))
    runs = re.search(r"where nothing differs, (\d+) runs on each side say so in 9 of 10", told)
    assert runs
    assert int(runs[1]) > 5


def test_what_varies_is_the_same_where_it_is_within_what_was_asked_for(tmp_path: Path) -> None:
    a, b = side(tmp_path, "a", spread=20), side(tmp_path, "b", spread=20, training=10.2)
    assert compare(a, b).outcome == "same"
    got = compare(a, b, tolerance=0.05)
    assert got.outcome == "unsure"
    assert any("within the 5 % asked for" in one for one in got.open_points())


def test_the_same_is_seldom_said_of_what_is_as_far_off_as_was_asked_for() -> None:
    """One in twenty, at whatever spread: Schuirmann's two tests (1987)."""
    for spread in (0.02, 0.05, 0.1):
        assert called_same(normal, spread, 5, off=TOLERANCE, stages=1) <= ALPHA_SAME + 0.01
    assert called_same(normal, 0.05, 5, off=0.0) > 0.95


def test_a_quiet_stage_needs_no_word_on_runs(tmp_path: Path) -> None:
    got = compare(side(tmp_path, "a"), side(tmp_path, "b"))
    assert all(one.runs_for_5_percent is None for one in got.times)


def test_one_run_a_side_says_nothing_of_noise(tmp_path: Path) -> None:
    got = compare(side(tmp_path, "a", runs=1), side(tmp_path, "b", runs=1, training=20))
    assert got.outcome == "unsure"
    assert got.times[1].low is None
    assert got.times[1].change == pytest.approx(1.0, abs=0.01)
    json.dumps(got.to_json(), allow_nan=False)


def test_one_run_is_held_against_a_published_profile(tmp_path: Path) -> None:
    got = compare(side(tmp_path, "a"), side(tmp_path, "b", runs=1, training=15))
    assert got.times[1].verdict == "slower"


def test_other_recipes_are_refused(tmp_path: Path) -> None:
    other = side(tmp_path, "b", recipe={**RECIPE, "seed": 8})
    with pytest.raises(ValueError, match=r"different recipes .* seed is 7 and 8"):
        compare(side(tmp_path, "a"), other)


def test_a_stage_of_one_side_leaves_it_open(tmp_path: Path) -> None:
    more = [made_run(tmp_path / "b", i, {"processing": 4.0}) for i in (1, 2, 3)]
    got = compare(side(tmp_path, "a"), reference_of("b", more))
    assert got.only == {"a": ["training"], "b": []}
    assert got.outcome == "unsure"


def some_ended(out: Path, name: str, *ended: str) -> Reference:
    """A run for each way in which its training ended."""
    noise = zip(QUIET, ended, strict=False)
    folders = [
        made_run(out / name, i, {"processing": 4 * one, "training": 10 * one},
                 ended={"training": how})
        for i, (one, how) in enumerate(noise, 1)
    ]  # fmt: skip
    return reference_of(name, folders)


ALL = ("finished",) * 3


@pytest.mark.parametrize(
    ("of_a", "of_b", "points"),
    [
        (ALL, ALL, []),
        (ALL, ("finished", "finished", "failed"), ["in 2 of 3 runs of B"]),
        (ALL, ("finished", "reused", "finished"), ["in 2 of 3 runs of B"]),
        (ALL, ("reused",) * 3, ["on one side only"]),
        (ALL, ("failed",) * 3, ["in no run of B"]),
        (ALL, ("killed",), ["in no run of B"]),
        (
            ("failed", "finished", "finished"),
            ("skipped", "finished", "reused"),
            ["in 2 of 3 runs of A", "in 1 of 3 runs of B"],
        ),
        (("failed",) * 3, ("failed",) * 3, ["in no run of A", "in no run of B"]),
        (("reused",) * 3, ("reused",) * 3, []),
        (("skipped",) * 3, ("reused", "skipped", "reused"), []),
    ],
)
def test_a_stage_that_some_runs_did_not_measure_leaves_it_open(
    tmp_path: Path, of_a: Sequence[str], of_b: Sequence[str], points: Sequence[str]
) -> None:
    got = compare(some_ended(tmp_path, "a", *of_a), some_ended(tmp_path, "b", *of_b))
    of_training = [one for one in got.open_points() if one.startswith("training")]
    assert of_training == [f"training was measured {point}" for point in points]
    assert got.outcome == ("unsure" if points else "same")


def test_what_was_measured_in_some_runs_is_on_neither_side_alone(tmp_path: Path) -> None:
    a, b = some_ended(tmp_path, "a", *ALL), some_ended(tmp_path, "b", *ALL[1:], "failed")
    told = compare(a, b).to_json()
    assert told["only"] == {"a": [], "b": []}
    assert told["incomplete"] == {"a": {}, "b": {"training": 2}}


def test_runs_that_did_not_finish_leave_it_open_though_every_stage_did(tmp_path: Path) -> None:
    whole = side(tmp_path, "a", runs=3)
    for runs, told in ((1, "the run of B"), (3, "3 of 3 runs of B")):
        cut = side(tmp_path, f"b{runs}", runs=runs, status="failed")
        got = compare(whole, cut)
        assert got.outcome == "unsure"
        assert f"{told} did not finish" in got.open_points()


def test_what_others_share_is_evidence_and_decides_nothing(tmp_path: Path) -> None:
    rows = [[row("training", "machine", "psi_cpu_some_seconds", "s", s)] for s in (1.0, 9.0)]
    got = compare(side(tmp_path, "a", rows=rows[0]), side(tmp_path, "b", rows=rows[1]))
    assert [one.metric for one in got.found] == ["psi_cpu_some_seconds"]
    assert got.outcome == "same"


LEVELS = st.floats(-1e12, 1e12)


@given(LEVELS, st.floats(-5, 5), st.sampled_from([TIME, Rule(grain=4e6, floor=0.01, margin=0.02)]))
def test_the_scale_is_monotone_and_goes_back(value: float, step: float, rule: Rule) -> None:
    level = float(rule.scaled([value])[0])
    there = value + rule.back(level, step)
    assert rule.scaled([there])[0] == pytest.approx(level + step, abs=1e-6)
    assert rule.back(level, step) * step >= 0


@pytest.mark.parametrize("seconds", [0.002, 0.02, 0.05, 20.0])
def test_the_tolerance_is_of_the_time_however_short(seconds: float) -> None:
    level = float(TIME.scaled([seconds])[0])
    least, most = TIME.within(level, 0.2)
    assert seconds + TIME.back(level, most) == pytest.approx(1.2 * seconds)
    assert seconds + TIME.back(level, least) == pytest.approx(seconds / 1.2)
    if seconds > 1:
        assert (-least, most) == pytest.approx((np.log(1.2), np.log(1.2)), abs=1e-6)


@pytest.mark.parametrize("seconds", [0.02, 20.0])
def test_what_varies_too_much_is_the_same_at_no_length(tmp_path: Path, seconds: float) -> None:
    sides = (side(tmp_path, name, training=seconds, spread=70) for name in "ab")
    got = compare(*sides)
    training = got.times[1]
    assert training.verdict == "unsure"
    assert re.search(r"where nothing differs, 2\d runs", training.way_out(TOLERANCE))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.floats(0.5, 50), min_size=2, max_size=6), st.integers(0, 2**32 - 1))
def test_swapping_the_sides_swaps_the_verdicts(
    tmp_path_factory: pytest.TempPathFactory, times: list[float], seed: int
) -> None:
    random = np.random.default_rng(seed)
    out = tmp_path_factory.mktemp("runs")
    sides = []
    for name in "ab":
        folders = [
            made_run(out / name, i, {"training": t * float(random.lognormal(0, 0.1))})
            for i, t in enumerate(times)
        ]
        sides.append(reference_of(name, folders))
    one, two = compare(*sides), compare(*reversed(sides))
    turned = {"slower": "faster", "faster": "slower", "more": "less", "less": "more"}
    # A chance exactly at the level may round to either side: none of these is.
    for left, right in zip((*one.times, *one.rest), (*two.times, *two.rest), strict=True):
        if left.is_found:
            assert right.verdict == turned[left.verdict]
        assert left.adjusted == pytest.approx(right.adjusted, abs=1e-9)


def page(tmp_path: Path, hostile: str = "b") -> tuple[Comparison, str]:
    b = side(tmp_path, "b", training=16, environment={**ENVIRONMENT, "kernel": hostile})
    got = compare(side(tmp_path, "a"), b)
    return got, render(got)


def one_by_one(out: Path, name: str, times_s: Sequence[float]) -> Reference:
    runs = [made_run(out / name, i, {"training": took}) for i, took in enumerate(times_s, 1)]
    return reference_of(name, runs)


def test_medians_that_differ_the_other_way_are_told_in_the_row(tmp_path: Path) -> None:
    a = one_by_one(tmp_path, "a", [10.0] * 15)
    b = one_by_one(tmp_path, "b", [10.2] * 8 + [6.0] * 7)
    got = compare(a, b)
    (time,) = got.times
    assert (time.a, time.b, time.verdict) == (10.0, 10.2, "faster")
    assert time.difference < 0
    row = render(got).split('scope="row">training')[1].split("</tr>")[0]
    assert "medians say otherwise: some runs lie far off" in row
    still = compare(a, one_by_one(tmp_path, "still", [9.0] * 15))
    assert still.times[0].verdict == "faster"
    assert "medians say otherwise" not in render(still)


def test_the_page_names_both_statistics(tmp_path: Path) -> None:
    _, html = page(tmp_path)
    for table in ("Stage times", "Metrics that differ"):
        head = html.split(f"<caption>{table}</caption>")[1].split("</thead>")[0]
        assert head.count('<span class="unit">median</span>') == 2
        assert '<span class="unit">difference of means</span>' in head
    footer = html.split("<footer>")[1]
    assert "A and B are medians" in footer
    assert "of the means" in footer


def test_a_stage_of_a_few_milliseconds_has_its_interval_in_them(tmp_path: Path) -> None:
    a = side(tmp_path, "a", training=0.005)
    row = compare(a, side(tmp_path, "b", training=0.005)).times[1]
    assert row.runs_b == 5
    assert re.fullmatch(r"-\d\.\d to \+\d\.\d ms", row.interval())
    alone = compare(side(tmp_path, "c", runs=1), side(tmp_path, "d", runs=1)).times[1]
    assert alone.interval() == "one run a side"


@pytest.mark.parametrize(
    ("x", "end", "anchor", "place"),
    [
        (LEFT, 500.0, "start", 505),
        (400.0, WIDTH - 20, "end", 395),
        (LEFT, WIDTH - 20, "end", WIDTH - 25),
    ],
    ids=["behind", "before", "on it"],
)
def test_a_label_is_never_where_the_name_of_the_stage_is(
    x: float, end: float, anchor: str, place: float
) -> None:
    label = str(_label(x, end, 20.0, "A 3.21 s"))
    assert f'x="{place:.1f}"' in label
    assert f'text-anchor="{anchor}"' in label
    assert place - (_LABEL if anchor == "end" else 0) >= LEFT
    assert place + (_LABEL if anchor == "start" else 0) <= WIDTH


def test_the_page_is_alone_and_inert(tmp_path: Path) -> None:
    _, html = page(tmp_path, "</style><script>alert(1)</script>")
    assert "<script" not in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "training is 60 % slower" in html


@pytest.mark.needs("chromium")
@pytest.mark.parametrize("width", [1400, 390])
def test_the_page_is_drawn_in_a_browser(tmp_path: Path, width: int) -> None:
    file = tmp_path / "compare.html"
    file.write_text(page(tmp_path)[1])
    seen = Browser(width=width).open(file.as_uri())
    assert seen.console == []
    assert seen.dom.count('class="bar-a"') == 2
    assert seen.dom.count('class="bar-b"') == 2
