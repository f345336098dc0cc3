"""How good a model is: the three metrics in whole, on slices, and how sure each figure is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from features.contracts import FEATURES
from training.batches import BoolArray, Rows, Scores
from training.metrics import CardDays, Ranking
from training.protocol import AssessedRows

METRICS = ("auc_roc", "average_precision", "card_precision_100")
AMOUNT_EDGES = (0.0, 25.0, 50.0, 100.0, 220.0, float("inf"))
"""The published world calls every amount above 220 a fraud (scenario 1)."""
AMOUNT = FEATURES.index("amount")

Values = dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One part of the assessed rows. Null where the part lacks frauds or lacks others."""

    name: str
    rows: int
    frauds: int
    auc_roc: float | None
    average_precision: float | None

    def as_json(self) -> dict[str, Any]:
        """Return the slice as JSON types."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The rankings behind the three metrics of one model: sorted once, asked many times."""

    ranking: Ranking
    card_days: CardDays
    card_of_row: npt.NDArray[np.int64]

    @classmethod
    def of(cls, scores: Scores, rows: Rows) -> Scored:
        """Rank ``rows`` by ``scores`` [n]."""
        card_days = CardDays.of(scores, rows.is_fraud, rows.customer_id, rows.day)
        return cls(
            ranking=Ranking.of(scores, rows.is_fraud),
            card_days=card_days,
            card_of_row=np.searchsorted(card_days.cards, rows.customer_id),
        )

    def metrics(self, card_weights: npt.NDArray[np.float64] | None = None) -> tuple[float, ...]:
        """Return ``METRICS`` where each card counts ``card_weights`` times; NaN where undefined."""
        weights = None if card_weights is None else card_weights[self.card_of_row]
        return (
            self.ranking.auc_roc(weights),
            self.ranking.average_precision(weights),
            self.card_days.precision(card_weights=card_weights),
        )


def evaluate(scores: Scores, rows: Rows) -> Values:
    """Return ``METRICS`` by name; None where the rows cannot give one (a class is missing)."""
    return dict(zip(METRICS, map(_or_none, Scored.of(scores, rows).metrics()), strict=True))


def slices(scores: Scores, assessed: AssessedRows) -> tuple[Slice, ...]:
    """Return AUC and average precision by scenario, amount and newness of the card.

    A scenario's slice holds its frauds and every row that is none. Card precision has no slice:
    who looks into a hundred cards a day takes them from all.
    """
    return tuple(_slice(name, scores, assessed.rows, keep) for name, keep in _parts(assessed))


def bootstrap(
    models: Sequence[Scores], rows: Rows, *, samples: int, seed: int
) -> npt.NDArray[np.float64]:
    """Return ``METRICS`` of each model on resampled cards: [samples, models, 3].

    Whole cards are drawn with replacement, because the rows of a card share its fate. All models
    see the same draws, so that their differences are paired.
    """
    scored = [Scored.of(scores, rows) for scores in models]
    cards = len(scored[0].card_days.cards)
    generator = np.random.default_rng(seed)
    drawn = np.empty((samples, len(models), len(METRICS)))
    for sample in range(samples):
        times = np.bincount(generator.integers(0, cards, size=cards), minlength=cards)
        drawn[sample] = [each.metrics(times.astype(np.float64)) for each in scored]
    return drawn


def intervals(
    scores: Scores, rows: Rows, *, samples: int, seed: int, level: float = 0.95
) -> Mapping[str, tuple[float, float] | None]:
    """Return the bootstrap interval of each metric: the middle ``level`` of its resampled values.

    None where no resample gives a value.
    """
    drawn = bootstrap([scores], rows, samples=samples, seed=seed)[:, 0]
    return {name: middle(drawn[:, column], level) for column, name in enumerate(METRICS)}


def middle(values: npt.NDArray[np.float64], level: float = 0.95) -> tuple[float, float] | None:
    """Return the two quantiles that enclose the middle ``level`` of ``values``, NaN left out."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _parts(assessed: AssessedRows) -> Iterator[tuple[str, BoolArray]]:
    rows = assessed.rows
    for scenario in np.unique(rows.fraud_scenario[rows.is_fraud]):
        yield f"scenario {scenario}", ~rows.is_fraud | (rows.fraud_scenario == scenario)
    amount = rows.features[:, AMOUNT]
    for low, high in pairwise(AMOUNT_EDGES):
        name = f"amount {low:g} to {high:g}" if np.isfinite(high) else f"amount above {low:g}"
        above = amount >= low if low == AMOUNT_EDGES[0] else amount > low
        yield name, above & (amount <= high)
    yield "new cards", assessed.is_new_card
    yield "known cards", ~assessed.is_new_card


def _slice(name: str, scores: Scores, rows: Rows, keep: BoolArray) -> Slice:
    is_fraud = rows.is_fraud[keep]
    ranking = Ranking.of(scores[keep], is_fraud)
    return Slice(
        name=name,
        rows=len(is_fraud),
        frauds=int(is_fraud.sum()),
        auc_roc=_or_none(ranking.auc_roc()),
        average_precision=_or_none(ranking.average_precision()),
    )


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value
