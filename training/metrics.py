"""AUC ROC, average precision and card precision@k, each for weighted rows or cards too.

Weights are what the bootstrap needs: a resampled card counts as often as it was drawn, and nothing
is sorted twice. Equal scores never depend on the order of rows: they share one step of a curve,
and cards of equal score are taken in order of their number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.batches import BoolArray, IntArray, Scores

TOP_CARDS = 100
"""Cards that can be looked into each day (WORKLOAD: card precision@100)."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Rows in the order of falling score, made once and then asked under any weights."""

    order: IntArray
    starts: IntArray
    """Where in ``order`` each group of equal scores starts."""
    is_fraud: BoolArray
    """Labels, in that order."""

    @classmethod
    def of(cls, scores: Scores, is_fraud: BoolArray) -> Ranking:
        """Rank ``scores`` [n] of rows labelled ``is_fraud`` [n]; a NaN score is a ValueError."""
        _check(scores, is_fraud)
        order = np.argsort(-scores, kind="stable")
        falling = scores[order]
        starts = np.flatnonzero(np.r_[True, falling[1:] != falling[:-1]][: len(falling)])
        return cls(order=order, starts=starts, is_fraud=is_fraud[order])

    def auc_roc(self, weights: Array | None = None) -> float:
        """Area under the ROC curve; NaN where a class has no weight."""
        frauds, others = self._groups(weights)
        if not frauds.sum() or not others.sum():
            return float("nan")
        below = others.sum() - np.cumsum(others) + others / 2
        return float(frauds @ below / (frauds.sum() * others.sum()))

    def average_precision(self, weights: Array | None = None) -> float:
        """Mean of the precision at each fraud's score, without interpolation; NaN without fraud."""
        frauds, others = self._groups(weights)
        if not frauds.sum():
            return float("nan")
        found, taken = np.cumsum(frauds), np.cumsum(frauds + others)
        precision = np.divide(found, taken, out=np.zeros_like(found), where=taken > 0)
        return float(frauds @ precision / found[-1])

    def _groups(self, weights: Array | None) -> tuple[Array, Array]:
        """Weight of frauds and of others at each distinct score, highest first."""
        if not len(self.order):
            return np.zeros(1), np.zeros(1)
        weight = np.ones(len(self.order)) if weights is None else weights[self.order]
        frauds = np.add.reduceat(np.where(self.is_fraud, weight, 0.0), self.starts)
        return frauds, np.add.reduceat(np.where(self.is_fraud, 0.0, weight), self.starts)


@dataclass(frozen=True, kw_only=True)
class CardDays:
    """Each card's day: its highest score, and whether any of its rows that day is a fraud."""

    days: tuple[tuple[IntArray, BoolArray], ...]
    """Per day, in order: the cards' codes by falling score, and whether each is compromised."""
    cards: IntArray
    """The cards' ids, by code."""

    @classmethod
    def of(
        cls, scores: Scores, is_fraud: BoolArray, customer_id: IntArray, day: IntArray
    ) -> CardDays:
        """Build from rows: all of shape [n]."""
        _check(scores, is_fraud, customer_id, day)
        cards, code = np.unique(customer_id, return_inverse=True)
        return cls(
            days=tuple(
                _card_day(scores[today], is_fraud[today], code[today])
                for today in (day == each for each in np.unique(day))
            ),
            cards=cards,
        )

    def precision(self, top: int = TOP_CARDS, card_weights: Array | None = None) -> float:
        """Card precision@top: the share of compromised cards among the day's ``top`` highest.

        A card that was caught leaves the later days. The share is of ``top``, even on a day with
        fewer cards; the mean over days is returned, NaN without any. ``card_weights`` says how
        often each card (by code) is there.
        """
        if top < 1:
            raise ValueError(f"card precision needs a top of at least 1, not {top}")
        present = np.ones(len(self.cards)) if card_weights is None else card_weights.copy()
        shares = []
        for code, is_compromised in self.days:
            weight = present[code]
            taken = np.clip(top - (np.cumsum(weight) - weight), 0.0, weight)
            shares.append(float(taken[is_compromised].sum()) / top)
            present[code] -= np.where(is_compromised, taken, 0.0)
        return float(np.mean(shares)) if shares else float("nan")


def auc_roc(scores: Scores, is_fraud: BoolArray) -> float:
    """Area under the ROC curve of ``scores`` [n]; NaN where one class is missing."""
    return Ranking.of(scores, is_fraud).auc_roc()


def average_precision(scores: Scores, is_fraud: BoolArray) -> float:
    """Average precision of ``scores`` [n]; NaN without a fraud."""
    return Ranking.of(scores, is_fraud).average_precision()


def card_precision(
    scores: Scores,
    is_fraud: BoolArray,
    customer_id: IntArray,
    day: IntArray,
    top: int = TOP_CARDS,
) -> float:
    """Card precision@top of the rows [n]: see ``CardDays.precision``."""
    return CardDays.of(scores, is_fraud, customer_id, day).precision(top)


def _card_day(scores: Scores, is_fraud: BoolArray, code: IntArray) -> tuple[IntArray, BoolArray]:
    order = np.lexsort((-scores, code))
    first = np.flatnonzero(np.r_[True, np.diff(code[order]) != 0])
    compromised = np.logical_or.reduceat(is_fraud[order], first)
    highest, cards = scores[order][first], code[order][first]
    ranked = np.lexsort((cards, -highest))
    return cards[ranked], compromised[ranked]


def _check(scores: Scores, *columns: npt.NDArray[Any]) -> None:
    if any(column.shape != scores.shape for column in columns) or scores.ndim != 1:
        shapes = [scores.shape, *(column.shape for column in columns)]
        raise ValueError(f"scores and columns must be of one shape [n], not {shapes}")
    if np.isnan(scores).any():
        count = int(np.isnan(scores).sum())
        raise ValueError(f"{count} of {len(scores)} scores are NaN: a model must score every row")
