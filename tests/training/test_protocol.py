"""Windows, folds, and which test rows count: against sets and loops, and the published counts."""

from __future__ import annotations

from datetime import date, timedelta

import pyarrow.parquet as pq
import pytest

from training.batches import DayTable
from training.protocol import Window, assessed_rows, folds, train_rows


def slow_kept(table: DayTable, window: Window) -> list[int]:
    """Transaction ids that count, from plain sets, row by row."""
    rows = []
    for day in table.days():
        names = ["transaction_id", "customer_id", "is_fraud"]
        file = pq.read_table(table.folder / f"{day}.parquet", columns=names)
        rows += [(day, *row.values()) for row in file.to_pylist()]
    kept = []
    for offset in range(window.test_days):
        today = window.test_start + timedelta(days=offset)
        known_until = today - timedelta(days=window.delay_days + 1)
        known = {
            customer
            for day, _, customer, is_fraud in rows
            if is_fraud and window.train_start <= day <= known_until
        }
        kept += [row_id for day, row_id, card, _ in rows if day == today and card not in known]
    return kept


@pytest.mark.parametrize(
    ("train_days", "delay_days", "test_days"), [(7, 7, 7), (3, 0, 2), (5, 2, 9)]
)
def test_known_compromised_cards_are_left_out_day_by_day(
    generated: DayTable, handle, train_days: int, delay_days: int, test_days: int
) -> None:
    window = Window(
        train_start=generated.days()[0],
        train_days=train_days,
        delay_days=delay_days,
        test_days=test_days,
    )
    assessed = assessed_rows(generated, window, handle)
    assert assessed.rows.transaction_id.tolist() == slow_kept(generated, window)
    assert 0 < len(assessed) < 600 * test_days


def test_a_new_card_has_no_row_before_the_test(generated: DayTable, handle) -> None:
    window = Window(train_start=generated.days()[0], train_days=1, delay_days=1, test_days=1)
    before = set(generated.read(window.train_start, 2, handle).customer_id.tolist())
    assessed = assessed_rows(generated, window, handle)
    expected = [card not in before for card in assessed.rows.customer_id.tolist()]
    assert assessed.is_new_card.tolist() == expected
    assert any(expected)
    assert not all(expected)


def test_the_four_folds_and_their_test_days() -> None:
    last = Window(train_start=date(2018, 8, 15))
    starts = [str(window.train_start) for window in folds(last)]
    assert starts == ["2018-08-15", "2018-08-08", "2018-08-01", "2018-07-25"]
    assert (str(last.test_start), str(last.test_end)) == ("2018-08-29", "2018-09-04")


def test_a_window_without_days_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one training"):
        Window(train_start=date(2018, 8, 15), train_days=0)


@pytest.mark.needs("handbook")
def test_the_published_window_has_the_published_rows(published: DayTable, handle) -> None:
    window = Window(train_start=date(2018, 7, 25))
    train = train_rows(published, window, handle)
    test = assessed_rows(published, window, handle)
    assert (len(train), train.is_fraud.sum()) == (67_240, 598)
    assert (len(test), test.rows.is_fraud.sum()) == (58_264, 385)
