"""Proportional Denton against a dense solution of its optimality conditions, and its laws."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.denton import denton

Floats = npt.NDArray[np.float64]


def dense(signal: Floats, counts: npt.NDArray[np.int64], totals: Floats) -> Floats:
    """The slow and obvious way: all ratios and multipliers at once, from the conditions."""
    cells, windows = len(signal), len(counts)
    steps = np.diff(np.eye(cells), axis=0)
    sums = np.zeros((windows, cells))
    sums[np.repeat(np.arange(windows), counts), np.arange(cells)] = signal
    matrix = np.block([[steps.T @ steps, sums.T], [sums, np.zeros((windows, windows))]])
    right = np.concatenate((np.zeros(cells), totals))
    return np.asarray(signal * np.linalg.solve(matrix, right)[:cells], dtype=np.float64)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Floats, npt.NDArray[np.int64], Floats]:
    counts = np.array(draw(st.lists(st.integers(1, 9), min_size=1, max_size=7)))
    cells = int(counts.sum())
    signal = draw(st.lists(st.floats(0.05, 5.0), min_size=cells, max_size=cells))
    totals = draw(st.lists(st.floats(0.0, 30.0), min_size=len(counts), max_size=len(counts)))
    return np.array(signal), counts, np.array(totals)


@settings(deadline=None, max_examples=300)
@given(problem=problems())
def test_it_is_the_optimum_and_keeps_every_total(
    problem: tuple[Floats, npt.NDArray[np.int64], Floats],
) -> None:
    signal, counts, totals = problem
    found = denton(signal, counts, totals)
    assert found == pytest.approx(dense(signal, counts, totals), rel=1e-6, abs=1e-6)
    sums = np.add.reduceat(found, np.concatenate(([0], np.cumsum(counts)[:-1])))
    assert sums == pytest.approx(totals, rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(problem=problems(), factor=st.floats(0.1, 10.0))
def test_a_signal_that_tells_all_is_kept_as_it_is(
    problem: tuple[Floats, npt.NDArray[np.int64], Floats], factor: float
) -> None:
    signal, counts, _ = problem
    totals = factor * np.add.reduceat(signal, np.concatenate(([0], np.cumsum(counts)[:-1])))
    assert denton(signal, counts, totals) == pytest.approx(factor * signal, rel=1e-9)


def test_a_known_example() -> None:
    """By hand: 1 - d, 1 + d, 2 - d, 2 + d, where 8 d**2 + (1 - 2 d)**2 is least: d is 1/6."""
    found = denton(np.ones(4), np.array([2, 2]), np.array([2.0, 4.0]))
    assert found == pytest.approx([5 / 6, 7 / 6, 11 / 6, 13 / 6])
