"""The three metrics against slow and obvious versions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from training.metrics import CardDays, Ranking, auc_roc, average_precision, card_precision

ROW = st.tuples(
    st.integers(0, 6).map(lambda step: step / 6),  # scores with many ties
    st.booleans(),
    st.integers(10, 18),  # card
    st.integers(17_700, 17_703),  # day
)
ROWS = st.lists(ROW, min_size=1, max_size=60)


def columns(rows: list[tuple[float, bool, int, int]]) -> tuple[np.ndarray, ...]:
    scores, frauds, cards, days = zip(*rows, strict=True)
    return np.array(scores), np.array(frauds), np.array(cards), np.array(days)


def slow_card_precision(rows: list[tuple[float, bool, int, int]], top: int) -> float:
    """Day by day with dictionaries, as one would explain it."""
    caught: set[int] = set()
    shares = []
    for today in sorted({day for *_, day in rows}):
        highest: dict[int, float] = {}
        compromised: dict[int, bool] = {}
        for score, fraud, card, day in rows:
            if day == today and card not in caught:
                highest[card] = max(score, highest.get(card, score))
                compromised[card] = fraud or compromised.get(card, False)
        first = sorted(highest, key=lambda card: (-highest[card], card))[:top]
        found = {card for card in first if compromised[card]}
        caught |= found
        shares.append(len(found) / top)
    return sum(shares) / len(shares)


@given(ROWS, st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_card_precision_is_the_obvious_one(
    rows: list[tuple[float, bool, int, int]], top: int
) -> None:
    assert card_precision(*columns(rows), top=top) == pytest.approx(slow_card_precision(rows, top))


@given(ROWS)
@settings(max_examples=100, deadline=None)
def test_auc_and_average_precision_are_scikit_learns(
    rows: list[tuple[float, bool, int, int]],
) -> None:
    scores, frauds, *_ = columns(rows)
    if frauds.any():
        assert average_precision(scores, frauds) == pytest.approx(
            average_precision_score(frauds, scores)
        )
    else:
        assert np.isnan(average_precision(scores, frauds))
    if frauds.any() and not frauds.all():
        assert auc_roc(scores, frauds) == pytest.approx(roc_auc_score(frauds, scores))
    else:
        assert np.isnan(auc_roc(scores, frauds))


@given(ROWS, st.lists(st.integers(0, 3), min_size=9, max_size=9), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_weights_count_a_card_as_often_as_it_was_drawn(
    rows: list[tuple[float, bool, int, int]], times: list[int], top: int
) -> None:
    repeated = [
        (score, fraud, 100 * card + copy, day)
        for score, fraud, card, day in rows
        for copy in range(times[card - 10])
    ]
    scores, frauds, cards, days = columns(rows)
    card_days = CardDays.of(scores, frauds, cards, days)
    by_card = np.array([times[card - 10] for card in card_days.cards], dtype=np.float64)
    by_row = np.array([times[card - 10] for card in cards], dtype=np.float64)
    ranking = Ranking.of(scores, frauds)
    if not repeated:
        assert np.isnan(ranking.auc_roc(by_row))
        return
    drawn = columns(repeated)
    assert ranking.auc_roc(by_row) == pytest.approx(auc_roc(*drawn[:2]), nan_ok=True)
    assert ranking.average_precision(by_row) == pytest.approx(
        average_precision(*drawn[:2]), nan_ok=True
    )
    if set(drawn[3]) == set(days):
        assert card_days.precision(top, by_card) == pytest.approx(card_precision(*drawn, top=top))


def test_a_caught_card_leaves_the_later_days_and_a_missed_one_stays() -> None:
    scores = np.array([0.9, 0.1, 0.9, 0.8])
    frauds = np.array([True, True, True, False])
    cards, days = np.array([1, 2, 1, 3]), np.array([5, 5, 6, 6])
    # Day 5: card 1 of two is found. Day 6: card 1 is gone, so only card 3 can be looked into.
    assert card_precision(scores, frauds, cards, days, top=1) == 0.5


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        auc_roc(np.array([0.5, np.nan]), np.array([True, False]))
    with pytest.raises(ValueError, match="one shape"):
        auc_roc(np.array([0.5]), np.array([True, False]))
    with pytest.raises(ValueError, match="at least 1, not 0"):
        card_precision(*columns([(0.5, True, 10, 17_700)]), top=0)
