"""Thinning keeps what a reader of a chart must not miss."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.thin import FEWEST, thin

FLOATS = st.floats(allow_nan=True, allow_infinity=True, width=32)


@settings(deadline=None)
@given(values=st.lists(FLOATS, max_size=300), max_points=st.integers(FEWEST, 60))
def test_keeps_ends_and_extremes_and_invents_nothing(values: list[float], max_points: int) -> None:
    ts = np.arange(len(values), dtype=np.int64) * 3 + 1_795_485_600_000_000_000
    kept_ts, kept = thin(ts, values, max_points)
    whole = [(int(t), v) for t, v in zip(ts, values, strict=True) if np.isfinite(v)]
    pairs = list(zip(kept_ts.tolist(), kept.tolist(), strict=True))
    assert len(pairs) <= max_points
    assert set(pairs) <= set(whole)
    assert kept_ts.tolist() == sorted(set(kept_ts.tolist()))
    if whole:
        assert pairs[0] == whole[0]
        assert pairs[-1] == whole[-1]
        assert min(kept) == min(v for _, v in whole)
        assert max(kept) == max(v for _, v in whole)
    if len(whole) <= max_points:
        assert pairs == whole


@settings(deadline=None)
@given(
    values=st.lists(st.integers(-50, 50), min_size=1, max_size=300),
    max_points=st.integers(FEWEST, 60),
)
def test_thinning_what_is_thin_changes_nothing(values: list[int], max_points: int) -> None:
    once = thin(range(len(values)), values, max_points)
    twice = thin(*once, max_points)
    assert [part.tolist() for part in once] == [part.tolist() for part in twice]


def test_every_spike_of_one_point_survives() -> None:
    values = np.zeros(36_000)
    spikes = [17, 9_000, 9_500, 20_001, 35_998]
    values[spikes] = [5, -7, 9, 3, 1]
    kept_ts, _ = thin(np.arange(36_000), values)
    assert set(spikes) <= set(kept_ts.tolist())
    assert len(kept_ts) <= 1_000


@pytest.mark.parametrize("max_points", [-1, 0, 3])
def test_too_few_points_are_refused_with_the_way_out(max_points: int) -> None:
    with pytest.raises(ValueError, match=f"max_points is {max_points}: ask for 4 points or more"):
        thin([1], [1.0], max_points)


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"times are \(2,\) and values \(1,\)"):
        thin([1, 2], [1.0])


def test_a_day_at_10_hz_takes_moments() -> None:
    started = time.perf_counter()
    kept_ts, _ = thin(np.arange(864_000), np.random.default_rng(1).random(864_000))
    assert 500 < len(kept_ts) <= 1_000
    assert time.perf_counter() - started < 1.0
