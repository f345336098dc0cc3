"""The window features, slow and obvious: a scan of all rows, and the same key by key in numpy.

It shares no code and no name with the kernel that it judges. A row is (key, second, value); rows
are in the order of time, those of one second in row order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DAY = 24 * 60 * 60
Row = tuple[int, int, int]
Answer = tuple[int, int, int, float, float, float]


def customer_scan(rows: Sequence[Row]) -> list[Answer]:
    """Look at every earlier row, one by one."""
    answers = []
    for number, (key, second, _) in enumerate(rows):
        counts, means = [], []
        for days in (1, 7, 30):
            window = [
                cents
                for other, then, cents in rows[: number + 1]
                if other == key and second - days * DAY < then <= second
            ]
            counts.append(len(window))
            means.append(sum(window) / (100 * len(window)))
        answers.append((*counts, *means))
    return answers


def terminal_scan(rows: Sequence[Row]) -> list[Answer]:
    """Look at every row, one by one."""
    answers = []
    for key, second, _ in rows:
        counts, shares = [], []
        for days in (1, 7, 30):
            window = [
                fraud
                for other, then, fraud in rows
                if other == key and second - (7 + days) * DAY < then <= second - 7 * DAY
            ]
            counts.append(len(window))
            shares.append(sum(window) / len(window) if window else 0.0)
        answers.append((*counts, *shares))
    return answers


def customer_by_key(rows: np.ndarray) -> np.ndarray:
    """As ``customer_scan``, key by key in numpy: fast enough for the published table.

    ``rows`` is int64 [n, 3]; the answer float64 [n, 6].
    """
    answers = np.empty((len(rows), 6))
    for own in _rows_of_each_key(rows):
        second, cents = rows[own, 1], rows[own, 2]
        totals = np.concatenate([[0], np.cumsum(cents)])
        end = np.arange(1, len(own) + 1)
        for place, days in enumerate((1, 7, 30)):
            start = np.searchsorted(second, second - days * DAY, side="right")
            answers[own, place] = end - start
            answers[own, 3 + place] = (totals[end] - totals[start]) / (100 * (end - start))
    return answers


def terminal_by_key(rows: np.ndarray) -> np.ndarray:
    """As ``terminal_scan``, key by key in numpy; shapes as in ``customer_by_key``."""
    answers = np.empty((len(rows), 6))
    for own in _rows_of_each_key(rows):
        second, fraud = rows[own, 1], rows[own, 2]
        totals = np.concatenate([[0], np.cumsum(fraud)])
        end = np.searchsorted(second, second - 7 * DAY, side="right")
        for place, days in enumerate((1, 7, 30)):
            start = np.searchsorted(second, second - (7 + days) * DAY, side="right")
            answers[own, place] = end - start
            answers[own, 3 + place] = (totals[end] - totals[start]) / np.maximum(end - start, 1)
    return answers


def _rows_of_each_key(rows: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(rows[:, 0], kind="stable")
    _, first = np.unique(rows[order, 0], return_index=True)
    return np.split(order, first[1:]) if len(rows) else []
