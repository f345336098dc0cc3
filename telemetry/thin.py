"""Fewer points of a series for a chart or a tracking server, with its extremes kept."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

FEWEST = 4
"""First, last, smallest and largest: fewer points cannot keep what is promised."""


def thin(ts: npt.ArrayLike, values: npt.ArrayLike, max_points: int = 1000) -> tuple[Ints, Floats]:
    """Return at most ``max_points`` of the points, each as it was, in their order.

    ``ts``: [n] int64 ns, ascending; ``values``: [n] float64. Points that are not finite are left
    out. The first and the last are kept, and of each of equally long buckets between them the
    smallest and the largest value, so the series' minimum and maximum are among them.
    Raises ValueError for fewer than four points or for lengths that differ.
    """
    times, levels = np.asarray(ts, dtype=np.int64), np.asarray(values, dtype=np.float64)
    if max_points < FEWEST:
        raise ValueError(f"max_points is {max_points}: ask for {FEWEST} points or more")
    if times.shape != levels.shape or times.ndim != 1:
        raise ValueError(f"times are {times.shape} and values {levels.shape}: give one of each")
    finite = np.isfinite(levels)
    times, levels = times[finite], levels[finite]
    if len(times) <= max_points:
        return times, levels
    kept = _kept(levels, (max_points - 2) // 2)
    return times[kept], levels[kept]


def _kept(levels: Floats, buckets: int) -> Ints:
    """Indices, ascending, of the first, the last, and each bucket's smallest and largest value."""
    inner = levels[1:-1]
    size = -(-len(inner) // buckets)
    rows = -(-len(inner) // size)
    # The last bucket is filled up with its own last value, which adds no extreme.
    padded = np.pad(inner, (0, rows * size - len(inner)), mode="edge").reshape(rows, size)
    starts = 1 + size * np.arange(rows)
    picked = np.concatenate(
        ([0, len(levels) - 1], starts + padded.argmin(axis=1), starts + padded.argmax(axis=1))
    )
    return np.unique(picked).astype(np.int64)
