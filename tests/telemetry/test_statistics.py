"""Noise or change: the pure functions against closed forms, and what must hold for any numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from telemetry.statistics import (
    Difference,
    chance,
    half_width,
    holm,
    over_sittings,
    runs_for_same,
    runs_needed,
    smallest,
    t_quantile,
    t_tail,
    welch,
)
from tests.study.detection import in_sittings

T = st.floats(0, 1e6)
RUNS = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6)
CHANCES = hnp.arrays(float, st.integers(1, 30), elements=st.floats(0, 1))


@given(T)
def test_the_tail_is_the_closed_form_of_one_two_and_four_degrees(t: float) -> None:
    one = 1 - 2 / math.pi * math.atan(t) if t < 1e3 else 2 / math.pi * math.atan(1 / t)
    root = math.sqrt(2 + t * t)
    two = 2 / (root * (root + t))
    assert t_tail(t, 1.0) == pytest.approx(one, rel=1e-8)
    assert t_tail(t, 2.0) == pytest.approx(two, rel=1e-8)
    if t < 30:
        u = 4 + t * t
        four = 1 - t / math.sqrt(u) * (1 + 2 / u)
        assert t_tail(t, 4.0) == pytest.approx(four, abs=1e-12)


@given(st.floats(1e-9, 1.0), st.floats(1.0, 200.0))
def test_the_quantile_turns_the_tail_round(tail: float, df: float) -> None:
    assert t_tail(t_quantile(tail, df), df) == pytest.approx(tail, rel=1e-6)


def test_what_is_not_known_stays_so() -> None:
    assert np.isnan(t_tail(np.nan, 3.0))
    assert t_tail(np.inf, 3.0) == 0.0


@given(RUNS, RUNS, st.floats(1e-6, 10.0))
def test_sides_that_change_places_change_the_sign_alone(
    a: list[float], b: list[float], floor: float
) -> None:
    one, two = welch(np.array(a), np.array(b), floor), welch(np.array(b), np.array(a), floor)
    assert one.value == pytest.approx(-two.value, abs=1e-9)
    np.testing.assert_allclose(one.error, two.error)
    np.testing.assert_allclose(chance(one), chance(two), atol=1e-9)


@given(RUNS, st.floats(1e-3, 10.0))
def test_equal_sides_never_differ(a: list[float], floor: float) -> None:
    p = chance(welch(np.array(a), np.array(a), floor))
    assert math.isnan(p) if len(a) == 1 else p == pytest.approx(1.0)


@given(RUNS, RUNS, st.floats(1e-6, 10.0), st.floats(0, 10.0))
def test_a_margin_and_a_floor_only_make_it_harder_to_differ(
    a: list[float], b: list[float], floor: float, margin: float
) -> None:
    plain = chance(welch(np.array(a), np.array(b), floor))
    assert not chance(welch(np.array(a), np.array(b), floor), margin) < plain - 1e-12


def test_many_at_once_are_each_alone() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(4, 7, 5)), random.normal(size=(4, 7, 3))
    together = chance(welch(a, b, 0.1))
    alone = [[float(chance(welch(a[i, j], b[i, j], 0.1))) for j in range(7)] for i in range(4)]
    np.testing.assert_allclose(together, alone)


def test_welch_on_numbers_worked_by_hand() -> None:
    got = welch(np.array([1.0, 2.0, 3.0]), np.array([4.0, 6.0, 8.0]))
    assert got.value == 4.0
    assert got.error == pytest.approx(math.sqrt(1 / 3 + 4 / 3))
    assert got.df == pytest.approx((5 / 3) ** 2 / ((1 / 9 + 16 / 9) / 2))


def test_one_run_is_held_against_the_other_sides_spread() -> None:
    got = welch(np.array([1.0, 2.0, 3.0]), np.array([5.0]))
    assert got.df == 2
    assert got.error == pytest.approx(math.sqrt(4 / 3))


@given(CHANCES)
def test_holm_never_lowers_a_chance_nor_changes_their_order(chances: np.ndarray) -> None:
    adjusted = holm(chances)
    assert (adjusted >= chances).all()
    assert (adjusted <= 1).all()
    order = np.argsort(chances)
    assert (np.diff(adjusted[order]) >= 0).all()
    assert adjusted.min() == pytest.approx(min(1.0, chances.min() * len(chances)))


@given(CHANCES, st.randoms())
def test_holm_does_not_mind_the_order(chances: np.ndarray, random: object) -> None:
    order = np.random.default_rng(len(chances)).permutation(len(chances))
    np.testing.assert_allclose(holm(chances)[order], holm(chances[order]))


@given(CHANCES, st.integers(0, 5))
def test_holm_does_not_count_what_was_not_tested(chances: np.ndarray, untested: int) -> None:
    more = np.concatenate([np.full(untested, np.nan), chances])
    np.testing.assert_allclose(holm(more)[untested:], holm(chances))
    assert np.isnan(holm(more)[:untested]).all()


def test_holm_on_numbers_worked_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


def _like(error: float, df: float) -> Difference:
    zero = np.zeros(())
    return Difference(value=zero, error=np.array(error), df=np.array(df), spread=zero)


@given(st.floats(1e-4, 1.0), st.floats(2, 50), st.floats(1e-5, 0.2))
def test_what_could_be_found_lies_beyond_the_interval(
    error: float, df: float, alpha: float
) -> None:
    one = _like(error, df)
    assert smallest(one, alpha) > 0.9 * half_width(one, alpha)
    assert smallest(one, alpha, 0.1) == pytest.approx(smallest(one, alpha) + 0.1)


@given(st.floats(1e-3, 0.2), st.floats(0.02, 0.5), st.floats(0, 0.01))
def test_more_spread_needs_more_runs_and_more_difference_fewer(
    spread: float, wanted: float, margin: float
) -> None:
    runs = runs_needed(spread, wanted, 0.01, margin) or 501
    assert runs >= 2
    assert (runs_needed(1.2 * spread, wanted, 0.01, margin) or 501) >= runs
    assert (runs_needed(spread, 1.2 * wanted, 0.01, margin) or 501) <= runs


@pytest.mark.parametrize("runs", [3, 5, 10])
def test_what_could_have_been_found_is_found_in_nine_of_ten_cases(runs: int) -> None:
    random = np.random.default_rng(1)
    a, b = random.normal(size=(2, 4000, runs))
    least = float(np.median(smallest(welch(a, b), 0.01, 0.2)))
    hits = (chance(welch(a, b + least), 0.2) <= 0.01).mean()
    assert 0.86 <= hits <= 0.95


@pytest.mark.parametrize("spread", [0.03, 0.08, 0.15])
def test_with_the_runs_that_are_told_equals_are_called_the_same_in_nine_of_ten_cases(
    spread: float,
) -> None:
    within, alpha = math.log1p(0.2), 0.05
    runs = runs_for_same(spread, within, alpha)
    assert runs is not None
    random = np.random.default_rng(5)

    def said(many: int, off: float) -> float:
        a, b = random.normal(0.0, spread, (2, 20_000, many))
        found = welch(a, b + off)
        return float((np.abs(found.value) + half_width(found, 2 * alpha) <= within).mean())

    assert said(runs, 0.0) >= 0.88
    assert runs == 3 or said(runs - 1, 0.0) < 0.92
    assert said(runs, within) <= 0.06, "as far off as was asked for, it is seldom called the same"
    assert runs_for_same(3.0, within, alpha) is None


def test_a_margin_as_wide_as_what_is_wanted_needs_more_runs_than_there_are() -> None:
    assert runs_needed(0.01, 0.05, 0.01, 0.05) is None


def test_sittings_that_cannot_be_told_apart_are_welchs() -> None:
    random = np.random.default_rng(7)
    a, b = random.normal(size=(3, 5)), random.normal(size=(3, 4))
    plain = welch(a, b, 0.1)
    one_sitting, alone = ([0] * 5, [0] * 4), ([0, 1, 2, 3, 4], [5, 6, 7, 8])
    two = ([0, 0, 1, 1, 1], [0] * 4)
    for of_a, of_b in (one_sitting, alone, two):
        got = over_sittings(a, b, of_a, of_b, 0.1)
        np.testing.assert_array_equal(got.error, plain.error)
        assert np.isnan(got.between).all()


@given(
    st.lists(st.integers(1, 4), min_size=3, max_size=6),
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.floats(0.001, 1.0),
    st.integers(0, 10_000),
)
def test_sittings_are_those_of_a_slow_reference(
    many_a: list[int], many_b: list[int], floor: float, seed: int
) -> None:
    """One-way random effects by sums over single runs, each side with its own spread."""
    random = np.random.default_rng(seed)
    sides = [
        [random.normal(random.normal(0, 3), spread, size).tolist() for size in many]
        for many, spread in ((many_a, 1.0), (many_b, 4.0))
    ]
    flat = [[value for one in side for value in one] for side in sides]
    of = [[place for place, one in enumerate(side) for _ in one] for side in sides]
    got = over_sittings(np.array(flat[0]), np.array(flat[1]), of[0], of[1], floor)
    squares = [sum((v - np.mean(one)) ** 2 for one in side for v in one) for side in sides]
    degrees = [len(runs) - len(side) for runs, side in zip(flat, sides, strict=True)]
    if sum(degrees) == 0:
        assert got.error == pytest.approx(welch(*map(np.array, flat), floor).error)
        return
    pooled = sum(squares) / sum(degrees)
    within = [
        max(own / free if free else pooled, floor**2)
        for own, free in zip(squares, degrees, strict=True)
    ]
    beyond = size = weight = 0.0
    for side, runs, own in zip(sides, flat, within, strict=True):
        whole = np.mean(runs)
        beyond += sum((np.mean(one) - whole) ** 2 for one in side for _ in one)
        beyond -= (len(side) - 1) * own
        size += len(runs) - sum(len(one) ** 2 for one in side) / len(runs)
        weight += sum((len(one) / len(runs)) ** 2 for one in side)
    between = max(0.0, beyond / size)
    parts = [own / len(runs) for own, runs in zip(within, flat, strict=True)]
    free = degrees
    if 0 in degrees:  # one spread, known once
        parts, free = [sum(parts)], [sum(degrees)]
    parts, free = [*parts, between * weight], [*free, sum(len(side) - 1 for side in sides)]
    assert got.value == pytest.approx(np.mean(flat[1]) - np.mean(flat[0]))
    assert got.error == pytest.approx(math.sqrt(sum(parts)))
    assert got.between == pytest.approx(math.sqrt(between), abs=1e-7)
    assert got.by_sittings == pytest.approx(between * weight / sum(parts), abs=1e-7)
    assert got.spread == pytest.approx(math.sqrt(sum(within) / 2 + between))
    shares = sum(part**2 / one for part, one in zip(parts, free, strict=True))
    assert got.df == pytest.approx(sum(parts) ** 2 / shares)


@pytest.mark.parametrize(
    ("sittings", "most"), [((5, 5, 5, 5), 0.08), ((3, 3, 3, 3, 3), 0.07), ((3, 3, 3), 0.15)]
)
def test_a_machine_that_drifts_from_sitting_to_sitting_raises_few_alarms(
    sittings: tuple[int, ...], most: float
) -> None:
    for drift in (0.02, 0.05):
        plain, own = in_sittings(drift, sittings, 5, slower=0.0)
        assert plain[1] > 0.4  # what Welch's test makes of it
        assert own[1] < most
    noisy = in_sittings(0.0, sittings, 5, slower=0.0, spread_b=0.05)[1]
    assert noisy[1] < 0.05


def test_where_no_sitting_differs_a_slower_stage_is_found() -> None:
    for sittings, least in (((5, 5, 5, 5), 0.94), ((3, 3, 3, 3, 3), 0.93), ((3, 3, 3), 0.8)):
        assert in_sittings(0.0, sittings, 5, slower=0.05)[1][0] > least
