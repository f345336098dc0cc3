"""What the report draws of a series: its pieces, its gaps, and a counter's growth by bucket."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.report_series import GAP_PERIODS, MAX_GAPS, MAX_POINTS, bucket_growth, pieces
from telemetry.series import Points

MS = 10**6
PERIOD_MS = 100


@st.composite
def counters(draw: st.DrawFn) -> tuple[list[int], list[float]]:
    """Times (ms, whole) and values of a counter that may be reset and may have gaps."""
    waits = draw(st.lists(st.sampled_from([90, 100, 110, 200, 600, 2500]), min_size=3, max_size=40))
    grows = draw(st.lists(st.floats(0, 50), min_size=len(waits) + 1, max_size=len(waits) + 1))
    resets = draw(st.sets(st.integers(1, len(waits)), max_size=3))
    times, values = [0], [grows[0]]
    for place, wait in enumerate(waits, 1):
        times.append(times[-1] + wait)
        values.append(0.0 if place in resets else values[-1] + grows[place])
    return times, values


def slow_growth(times: list[int], values: list[float], low: int, high: int) -> float | None:
    """The same by walking over milliseconds, each of which is of one step between two samples."""
    grown, lost, unseen = 0.0, 0, 0
    for at in range(low, high):
        step = next((n for n in range(len(times) - 1) if times[n] <= at < times[n + 1]), None)
        if step is None:
            lost += 1
            continue
        long, more = times[step + 1] - times[step], values[step + 1] - values[step]
        if more < 0:
            lost += 1
        else:
            grown += more / long
            unseen += long > GAP_PERIODS * PERIOD_MS
    if 2 * (lost + unseen) > high - low:
        return None
    return grown * (high - low) / (high - low - lost)


@given(counters(), st.integers(1, 12), st.integers(-150, 150), st.integers(40, 900))
def test_growth_by_bucket_is_that_of_a_slow_reference(
    counter: tuple[list[int], list[float]], many: int, first: int, width: int
) -> None:
    times, values = counter
    edges = [first + width * place for place in range(many + 1)]
    points = Points(
        np.array(times) * MS, np.zeros(len(times), np.int64), np.array(values, dtype=np.float64)
    )
    found = bucket_growth(points, np.array(edges, dtype=np.float64) * MS, PERIOD_MS * MS)
    for place, growth in enumerate(found):
        expected = slow_growth(times, values, edges[place], edges[place + 1])
        if expected is None:
            assert np.isnan(growth)
        else:
            assert growth == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_a_hole_of_a_second_leaves_a_bucket_of_a_day_as_it_is() -> None:
    at = np.arange(0, 86_400_000, 100, dtype=np.int64)
    at = at[(at <= 40_000_000) | (at >= 40_001_000)]
    values = at / 1000 * 1.7
    back = np.searchsorted(at, 60_000_000)
    values[back:] -= 0.01 + (values[back] - values[back - 1])  # as I/O wait does
    edges = np.linspace(at[0], at[-1], MAX_POINTS + 1) * MS
    points = Points(at * MS, np.zeros(len(at), np.int64), values)
    rates = bucket_growth(points, edges, PERIOD_MS * MS) / (np.diff(edges) / 1e9)
    assert rates == pytest.approx(1.7, rel=1e-6)


def test_of_very_many_gaps_the_longest_stay_open() -> None:
    waits = np.tile([1.0, 1.0, 4.0], 3 * MAX_GAPS)
    waits[2::300] = 600.0
    at = np.concatenate([[0.0], np.cumsum(waits)])
    gaps = np.flatnonzero(waits > GAP_PERIODS) + 1
    trace = pieces(
        np.insert(at, gaps, at[gaps - 1] + 0.1), np.insert(np.ones(len(at)), gaps, np.nan)
    )
    assert len(trace.values) <= MAX_POINTS
    assert np.isnan(trace.values).sum() == MAX_GAPS
    spans = np.stack([trace.times[:-1], trace.times[1:]], axis=1)
    across = spans[np.isfinite(trace.values[:-1]) & np.isfinite(trace.values[1:])]
    assert np.diff(across, axis=1).max() < 100.0
