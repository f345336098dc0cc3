"""Proportional Denton: windows' totals shared out in the proportions of a faster signal.

Denton (1971) looks for the series that keeps each window's total exactly and whose ratio to the
signal changes as little as possible from step to step, in the sense of least squares; with
Cholette's change (1984) nothing is assumed of the time before the first step. With ``x`` the
signal and ``r`` the ratio in each cell:

    minimise  sum (r[i+1] - r[i])**2    subject to    sum over a window of x * r = its total

Within a window the optimum's second difference is a multiple of ``x``. So a window's ratios follow
from the slope with which they enter and that with which they leave it, and what is left to solve
are the slopes at the windows' edges: a system of three diagonals, one row for each edge, like that
of a cubic spline. An hour at 10 Hz is 36,000 cells and 179 edges.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def denton(signal: Floats, counts: Ints, totals: Floats) -> Floats:
    """The amount of each cell. ``signal``: [cells] above 0; ``counts``: cells of each window.

    The amounts of a window sum up to its total. Amounts can come out negative where neighbouring
    windows differ much in how their totals relate to the signal.
    """
    first = np.concatenate(([0], np.cumsum(counts)[:-1]))
    last = first + counts - 1
    whole = np.add.reduceat(signal, first)
    # Within a window, from its first cell on: ratio = base + slope * steps - bend * curve.
    steps = np.arange(len(signal), dtype=np.float64) - np.repeat(first, counts)
    passed = np.cumsum(signal)
    sums = passed - np.repeat(passed[first] - signal[first], counts)
    summed = np.cumsum(sums) - sums
    curve = summed - np.repeat(summed[first], counts)
    mean_steps = np.add.reduceat(signal * steps, first) / whole
    mean_curve = np.add.reduceat(signal * curve, first) / whole**2
    next_steps, next_curve = counts.astype(np.float64), (curve[last] + sums[last]) / whole
    level = totals / whole
    slopes = np.zeros(len(counts) + 1)
    if len(counts) > 1:
        # base[w+1] == base[w] + slope[w] * next_steps - (slope[w] - slope[w+1]) * next_curve,
        # where base[w] = level[w] - slope[w] * mean_steps + (slope[w] - slope[w+1]) * mean_curve.
        gain = mean_curve - next_curve
        lower = next_steps[:-1] - mean_steps[:-1] + gain[:-1]
        diagonal = -gain[:-1] + mean_steps[1:] - mean_curve[1:]
        upper = mean_curve[1:]
        slopes[1:-1] = _three_diagonals(lower, diagonal, upper, level[1:] - level[:-1])
    bend = slopes[:-1] - slopes[1:]
    base = level - slopes[:-1] * mean_steps + bend * mean_curve
    ratio = np.repeat(base, counts) + np.repeat(slopes[:-1], counts) * steps
    ratio -= np.repeat(bend / whole, counts) * curve
    return np.asarray(signal * ratio, dtype=np.float64)


def _three_diagonals(lower: Floats, diagonal: Floats, upper: Floats, right: Floats) -> Floats:
    """Solve lower[i] * x[i-1] + diagonal[i] * x[i] + upper[i] * x[i+1] = right[i] (Thomas)."""
    count = len(diagonal)
    factor, value = np.zeros(count), np.zeros(count)
    for row in range(count):
        before = (factor[row - 1], value[row - 1]) if row else (0.0, 0.0)
        pivot = diagonal[row] - lower[row] * before[0]
        factor[row] = upper[row] / pivot
        value[row] = (right[row] - lower[row] * before[1]) / pivot
    for row in range(count - 2, -1, -1):
        value[row] -= factor[row] * value[row + 1]
    return value
