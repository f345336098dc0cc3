"""Which rows train and which rows test: windows, folds, late labels, known compromised cards.

The rules are those of the published reference protocol: a model is trained on some
days, labels come a delay later, and it is assessed on the days after the delay.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from training.batches import BoolArray, DayTable, Handle, Rows, day_number


@dataclass(frozen=True, kw_only=True)
class Window:
    """One training window and the test window that follows it after the labels' delay."""

    train_start: date
    train_days: int = 7
    delay_days: int = 7
    test_days: int = 7

    def __post_init__(self) -> None:
        if min(self.train_days, self.test_days) < 1 or self.delay_days < 0:
            raise ValueError(
                f"a window needs at least one training and one test day and no negative delay, "
                f"not {self.train_days}, {self.test_days} and {self.delay_days} days"
            )

    @property
    def test_start(self) -> date:
        """First test day."""
        return self.train_start + timedelta(days=self.train_days + self.delay_days)

    @property
    def test_end(self) -> date:
        """Last test day."""
        return self.test_start + timedelta(days=self.test_days - 1)

    def earlier(self, days: int) -> Window:
        """Return the same window, ``days`` days before."""
        return Window(
            train_start=self.train_start - timedelta(days=days),
            train_days=self.train_days,
            delay_days=self.delay_days,
            test_days=self.test_days,
        )


@dataclass(frozen=True, kw_only=True)
class AssessedRows:
    """The rows of one test window that count, and what is known of their cards."""

    window: Window
    rows: Rows
    is_new_card: BoolArray
    """bool [n]: the card has no row from the first training day to the last day before the test."""

    def __len__(self) -> int:
        return len(self.rows)


def folds(last: Window, count: int = 4) -> tuple[Window, ...]:
    """Prequential folds: ``last`` and those each one test window earlier, latest first."""
    return tuple(last.earlier(fold * last.test_days) for fold in range(count))


def train_rows(table: DayTable, window: Window, handle: Handle) -> Rows:
    """Read the training days of ``window``."""
    return table.read(window.train_start, window.train_days, handle)


def assessed_rows(table: DayTable, window: Window, handle: Handle) -> AssessedRows:
    """Read the test days of ``window`` without the cards that are known by then as compromised.

    A card is known on a test day if it has a fraud in the training days or on a later day whose
    labels have come: up to the test day minus the delay minus one.
    """
    before_days = window.train_days + window.delay_days
    before = table.read(window.train_start, before_days, handle, features=False)
    test = table.read(window.test_start, window.test_days, handle)
    keep = np.ones(len(test), dtype=np.bool_)
    for offset in range(window.test_days):
        today = day_number(window.test_start) + offset
        known = _known_compromised((before, test), today - window.delay_days)
        keep &= (test.day != today) | ~np.isin(test.customer_id, known)
    kept = test.where(keep)
    is_new = ~np.isin(kept.customer_id, before.customer_id)
    return AssessedRows(window=window, rows=kept, is_new_card=is_new)


def _known_compromised(
    tables: tuple[Rows, ...], before_day: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Cards with a fraud on a day before ``before_day`` (days since 1970)."""
    return np.concatenate(
        [rows.customer_id[rows.is_fraud & (rows.day < before_day)] for rows in tables]
    )
