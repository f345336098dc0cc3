"""Noise or change, from three to five runs a side: pure functions over whole arrays at once.

The last axis of an array holds runs (``welch``) or the members of a family (``holm``); all other
axes are independent of each other, so that a study can put a million comparisons into one call.
``docs/compare.md`` says why these tests and no others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.float64]

POWER = 0.9
"""How often a difference must be found that is called one that could have been found."""
MOST_RUNS = 500
"""Beyond so many runs a side nothing is asked for."""
LEAST_SITTINGS = 3
"""With fewer, how much sittings differ is anybody's guess: two are alike or not by chance."""


def t_tail(t: npt.ArrayLike, df: npt.ArrayLike) -> Floats:
    """Probability that |T| of Student's distribution with ``df`` > 0 exceeds |t|; NaN stays NaN."""
    return np.asarray(2 * special.stdtr(df, -np.abs(t)))


def t_quantile(tail: npt.ArrayLike, df: npt.ArrayLike) -> Floats:
    """The t >= 0 that |T| exceeds with probability ``tail``, 0 < tail <= 1."""
    return np.asarray(np.abs(special.stdtrit(df, np.asarray(tail, float) / 2)))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean of B less mean of A, its standard error, degrees of freedom, and spread of one run.

    NaN error and degrees: a single run a side says nothing of its own spread. ``between``: the part
    of the spread that all runs of a sitting have in common, ``by_sittings``: the share that it has
    in the variance of ``value``; NaN where they are not known.
    """

    value: Floats
    error: Floats
    df: Floats
    spread: Floats
    between: Floats | float = math.nan
    by_sittings: Floats | float = math.nan


def welch(a: Floats, b: Floats, floor: npt.ArrayLike = 0.0) -> Difference:
    """Compare runs along the last axis without supposing that both sides vary alike.

    ``floor``: least standard deviation of a run that is believed: of a few runs that happen to lie
    together, or of readings in coarse steps, the spread seen is too small. With one run on a side
    the other side's spread stands for both.
    """
    many_a, many_b = a.shape[-1], b.shape[-1]
    value = np.asarray(b.mean(-1) - a.mean(-1))
    if many_a == 1 and many_b == 1:
        nothing = np.full(value.shape, np.nan)
        return Difference(value=value, error=nothing, df=nothing, spread=nothing)
    least = np.square(np.asarray(floor, float))
    of_a, of_b = (
        np.maximum(one.var(-1, ddof=1), least) if one.shape[-1] > 1 else None for one in (a, b)
    )
    if of_a is None or of_b is None:
        alone = np.asarray(of_a if of_b is None else of_b)
        df = np.full(value.shape, float(max(many_a, many_b) - 1))
        return Difference(
            value=value,
            error=np.sqrt(alone * (1 / many_a + 1 / many_b)),
            df=df,
            spread=np.sqrt(alone),
        )
    part_a, part_b = of_a / many_a, of_b / many_b
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.square(part_a + part_b) / (
            np.square(part_a) / (many_a - 1) + np.square(part_b) / (many_b - 1)
        )
    return Difference(
        value=value,
        error=np.sqrt(part_a + part_b),
        df=np.where(np.isfinite(df), df, many_a + many_b - 2.0),
        spread=np.sqrt((of_a + of_b) / 2),
    )


def over_sittings(
    a: Floats, b: Floats, of_a: Sequence[int], of_b: Sequence[int], floor: npt.ArrayLike = 0.0
) -> Difference:
    """Compare runs along the last axis that were made in sittings: ``of_a``, ``of_b`` say in which.

    A machine differs from one hour to the next, and runs in a row share that: they are no news of
    it, however many there are. So the spread has two parts (a one-way layout of random effects):
    within a sitting, of each side by itself where it has two runs in one, and between those of one
    side, which both sides have. The degrees are combined as Satterthwaite does, of these parts as
    if each were a mean square. As ``welch`` where the parts cannot be told apart.
    """
    parts = _sittings(a, of_a), _sittings(b, of_b)
    degrees = [sum(one.shape[-1] - 1 for one in side) for side in parts]
    apart = sum(len(side) - 1 for side in parts)
    plain = welch(a, b, floor)
    if apart < LEAST_SITTINGS - 1 or not sum(degrees):
        return plain
    squares = [sum((_squares(one) for one in side), np.zeros(plain.value.shape)) for side in parts]
    least = np.square(np.asarray(floor, float))
    together = sum(squares) / sum(degrees)
    within = [
        np.maximum(own / many if many else together, least)
        for own, many in zip(squares, degrees, strict=True)
    ]
    beyond, size, weight = np.zeros(plain.value.shape), 0.0, 0.0
    for whole, side, own in zip((a, b), parts, within, strict=True):
        many, middle = whole.shape[-1], whole.mean(-1)
        lengths = [one.shape[-1] for one in side]
        beyond += sum(one.shape[-1] * np.square(one.mean(-1) - middle) for one in side)
        beyond -= (len(side) - 1) * own
        size += many - sum(length**2 for length in lengths) / many
        weight += sum((length / many) ** 2 for length in lengths)
    between = np.maximum(beyond, 0.0) / size
    terms = [own / whole.shape[-1] for own, whole in zip(within, (a, b), strict=True)]
    free = list(degrees)
    if not all(degrees):  # one spread stands for both, and counts once
        terms, free = [terms[0] + terms[1]], [sum(degrees)]
    terms, free = [*terms, between * weight], [*free, apart]
    error = np.asarray(sum(terms))
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.square(error) / sum(
            np.square(term) / many for term, many in zip(terms, free, strict=True)
        )
    return Difference(
        value=plain.value,
        error=np.sqrt(error),
        df=np.where(np.isfinite(df), df, float(sum(degrees))),
        spread=np.sqrt((within[0] + within[1]) / 2 + between),
        between=np.sqrt(between),
        by_sittings=between * weight / np.where(error > 0, error, 1.0),
    )


def _sittings(runs: Floats, of: Sequence[int]) -> list[Floats]:
    return [runs[..., [place == one for place in of]] for one in dict.fromkeys(of)]


def _squares(runs: Floats) -> Floats:
    """Sum of squares about the mean of a sitting."""
    return np.asarray(np.square(runs - runs.mean(-1, keepdims=True)).sum(-1))


def chance(difference: Difference, margin: npt.ArrayLike = 0.0) -> Floats:
    """How likely so large a difference is where the true one is at most ``margin`` either way."""
    beyond = np.maximum(np.abs(difference.value) - margin, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(beyond > 0, beyond / difference.error, np.where(beyond == 0, 0.0, np.nan))
    return np.where(np.isnan(difference.error), np.nan, t_tail(t, difference.df))


def holm(chances: npt.ArrayLike) -> Floats:
    """Chances corrected for their family, the last axis; NaN was not tested and does not count.

    What is at most alpha afterwards is found, and the chance that anything is found among what does
    not differ is at most alpha, however the members depend on each other (Holm 1979).
    """
    chances = np.asarray(chances, float)
    order = np.argsort(chances, axis=-1)  # NaN last
    ranked = np.take_along_axis(chances, order, -1)
    many = np.sum(~np.isnan(chances), -1, keepdims=True)
    left = np.maximum(many - np.arange(chances.shape[-1]), 1)
    grown = np.minimum(np.maximum.accumulate(ranked * left, -1), 1.0)
    adjusted = np.empty_like(grown)
    np.put_along_axis(adjusted, order, grown, -1)
    return adjusted


def half_width(difference: Difference, alpha: float) -> Floats:
    """Half of the interval that misses the true difference with probability ``alpha``."""
    known = ~np.isnan(difference.error)
    t = t_quantile(alpha, np.where(known, difference.df, 1.0))
    return np.asarray(np.where(known, t * difference.error, np.nan))


def smallest(difference: Difference, alpha: float, margin: npt.ArrayLike = 0.0) -> Floats:
    """The least true difference that is found in ``POWER`` of cases with a spread as it was seen.

    The spread of a few runs is more often too small than too large: it is taken for its median.
    """
    known = ~np.isnan(difference.error)
    df = np.where(known, difference.df, 1.0)
    seen = np.sqrt(np.maximum(1 - 2 / (9 * df), 0.1) ** 3)  # Wilson and Hilferty's median
    least = np.asarray(margin) + _needed(alpha, df, POWER) * difference.error / seen
    return np.asarray(np.where(known, least, np.nan))


def _needed(alpha: float, df: Floats, power: float) -> Floats:
    """True difference in standard errors that passes the test of ``alpha`` in ``power`` of cases.

    Difference less t times the error seen is nearly normal, with the mean and variance of both.
    """
    t = t_quantile(alpha, df)
    mean = np.sqrt(2 / df) * np.exp(special.gammaln((df + 1) / 2) - special.gammaln(df / 2))
    return np.asarray(t * mean + NormalDist().inv_cdf(power) * np.sqrt(1 + t * t * (1 - mean**2)))


def runs_needed(spread: float, wanted: float, alpha: float, margin: float = 0.0) -> int | None:
    """Runs a side with which a difference ``wanted`` is found in ``POWER`` of cases, at least 2.

    None where it would take more than ``MOST_RUNS``.
    """
    return _fewest(2, spread, wanted - margin, alpha, POWER)


def runs_for_same(spread: float, within: float, alpha: float) -> int | None:
    """Runs a side, at least 3, with which what does not differ is found to be off by less than
    ``within`` in ``POWER`` of cases, by two one-sided tests of ``alpha`` each.

    Two runs a side say too little of their own spread for this to hold. None where it would take
    more than ``MOST_RUNS``.
    """
    each = (1 + POWER) / 2  # of the two: what lies beyond one end does not lie beyond the other
    return _fewest(3, spread, within, 2 * alpha, each)


def _fewest(least: int, spread: float, wanted: float, alpha: float, power: float) -> int | None:
    runs: Floats = np.arange(float(least), MOST_RUNS + 1)
    found = _needed(alpha, 2.0 * (runs - 1), power) * spread * np.sqrt(2 / runs)
    enough = np.flatnonzero(found <= wanted)
    return int(runs[enough[0]]) if len(enough) else None


def digits(value: Any, many: int = 9) -> float:
    """A number with so many significant digits, for files that people read."""
    return float(f"{float(value):.{many}g}")
