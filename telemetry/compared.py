"""One figure on both sides: how it is tested, and whether its difference is noise or change.

All figures of a family are corrected for each other. ``docs/compare.md`` says why, and with what
power.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from telemetry.reference import DURATION, Entry
from telemetry.statistics import (
    Difference,
    chance,
    digits,
    half_width,
    holm,
    over_sittings,
    runs_for_same,
    runs_needed,
    smallest,
    welch,
)

ALPHA_SAME = 0.05
"""Chance that a stage just as far off is called the same: two one-sided tests. That all stages are
the same is said where each is, so no correction for their number is due (Berger 1982)."""
FAR_OFF = "medians say otherwise: some runs lie far off"
"""What is told of a figure whose medians differ the other way than its means, which are tested."""
WANTED = 0.05
"""The slowdown for which the needed runs are told, and the spread above which they are (1 %)."""
QUIET = 0.01
BY_SITTINGS = 0.5
"""Above this share of the variance of a difference more sittings are asked for, not more runs."""
_MOST = math.log(1000)
"""Of two runs the ends of an interval can lie beyond all sense: they are cut there."""
Verdict = Literal["slower", "faster", "more", "less", "same", "unsure"]
CHANGES: frozenset[str] = frozenset({"slower", "faster", "more", "less"})


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How values of one kind are told apart.

    ``grain``: amounts below it are too small to matter. Values are compared as asinh(x / 2 grain),
    which is the logarithm where x is far above the grain and straight where it is not, so that zero
    is a value like others. ``floor``: least spread of a run that is believed, and ``margin``: least
    difference that is called one; both relative, above the grain.
    """

    grain: float
    floor: float
    margin: float

    def scaled(self, values: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.arcsinh(np.asarray(values, float) / (2 * self.grain))

    def back(self, level: float, step: float) -> float:
        """By how much a value grows whose scaled level grows by ``step``, at most thousandfold."""
        step = min(max(step, -_MOST), _MOST)
        return 2 * self.grain * (math.sinh(level + step) - math.sinh(level))

    def within(self, level: float, share: float) -> tuple[float, float]:
        """The steps from a scaled level to a value that is smaller, or larger, by 1 + ``share``."""
        value = 2 * self.grain * math.sinh(level)
        ends = self.scaled([value / (1 + share), value * (1 + share)]) - level
        return float(ends.min()), float(ends.max())


TIME = Rule(grain=0.01, floor=0.002, margin=0.01)
"""10 ms: a tick of the kernel. 0.2 %: what two clocks and a process's start leave open. 1 %: as a
machine that others share drifts; more, and 5 % would not be found in 9 of 10 cases any more."""
_SAID = Rule(grain=1.0, floor=0.002, margin=0.005)
"""What a stage says of its data hardly varies."""
_GRAINS = {
    "s": 0.5,
    "B": 4 * 2.0**20,
    "B/s": 2.0**20,
    "%": 1.0,
    "W": 1.0,
    "J": 10.0,
    "1": 100.0,
    "cores": 0.05,
    "share": 0.01,
    "ratio": 0.01,
    "ms": 1.0,
    "µs": 1.0,
    "MHz": 10.0,
    "°C": 1.0,
}
"""Amounts of a stage that nobody would look at, by unit: fifty clock ticks, a thousand pages …"""
_OWN = re.compile(
    r"(stage|app|data) .+"
    r"|gpu:[^ ]+ (?!gpu_(temperature|clock|throttle|processes|process_mem|mem_reserved|mem_free)"
    r"|power_idle|energy_(difference|low|high)).+"
)
"""Entities and metrics that can make the outcome "differs": what others share, or the room, the
driver and the specimen make, is evidence only."""


def can_decide(entity: str, metric: str) -> bool:
    """Whether a figure besides the time can make the outcome "differs"."""
    return _OWN.fullmatch(f"{entity} {metric}") is not None


def rule_of(entry: Entry) -> Rule:
    if entry.key == DURATION:
        return TIME
    if entry.entity == "data":
        return replace(_SAID, grain=_GRAINS["ratio"] if entry.unit == "ratio" else 1.0)
    return Rule(grain=_GRAINS.get(entry.unit, 1.0), floor=0.01, margin=0.02)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One figure on both sides.

    ``a``, ``b``: medians of the runs. ``difference``, ``low``, ``high``: B less A in ``unit``, of
    the means on the scale of the test, and the interval that holds for all figures of the family
    at once (null with one run a side). ``change``, ``change_low``,
    ``change_high``: the same as shares of A, null where A is below its grain. ``chance`` is of so
    large a difference among equals, ``adjusted`` after correction for the family. ``spread``: of a
    run, relative. ``drift``: the part of it that the runs of one sitting share, ``by_sittings``:
    what share of the variance of the difference that is; null where too few sittings tell it.
    ``smallest``: the least change that would have been found in 9 of 10 cases.
    """

    stage: str
    entity: str
    metric: str
    figure: str
    unit: str
    a: float
    b: float
    runs_a: int
    runs_b: int
    difference: float
    low: float | None
    high: float | None
    change: float | None
    change_low: float | None
    change_high: float | None
    chance: float
    adjusted: float
    spread: float | None
    drift: float | None
    by_sittings: float | None
    smallest: float | None
    runs_for_5_percent: int | None
    verdict: Verdict

    @property
    def is_time(self) -> bool:
        return (self.entity, self.metric, self.figure) == DURATION

    @property
    def is_found(self) -> bool:
        return self.verdict in CHANGES

    @property
    def needs_sittings(self) -> bool:
        """Whether more runs in the same sittings would help little to find 5 %."""
        varies = self.is_time and self.spread is not None and self.spread > QUIET
        return varies and (self.by_sittings or 0.0) > BY_SITTINGS

    def way_out(self, tolerance: float) -> str:
        """What it would take to call a stage the same if it is, as the end of a sentence."""
        if self.needs_sittings:
            return "; it takes runs of more sittings"
        within = -TIME.within(float(TIME.scaled([self.a])[0]), tolerance)[0]
        runs = None if self.spread is None else runs_for_same(self.spread, within, ALPHA_SAME)
        if runs is None:
            return "; it varies too much for any number of runs to tell"
        if runs <= min(self.runs_a, self.runs_b):
            return ""
        return f"; where nothing differs, {runs} runs on each side say so in 9 of 10 cases"

    @property
    def medians_disagree(self) -> bool:
        """Whether a difference was found, and that of the medians has the other sign."""
        return self.is_found and (self.b - self.a) * self.difference < 0

    @property
    def decides(self) -> bool:
        return self.is_time or can_decide(self.entity, self.metric)

    def to_json(self) -> dict[str, Any]:
        fields = asdict(self)
        for name in ("chance", "adjusted"):
            if math.isnan(fields[name]):
                fields[name] = None
        return {
            name: digits(value, 6) if isinstance(value, float) else value
            for name, value in fields.items()
        }

    def short(self) -> str:
        """The difference in words: ``training is 5.2 % slower (3.9 % to 6.5 %)``."""
        if self.is_time:
            size = "" if self.change is None else f"{percent(abs(self.change))} "
            word = "slower" if self.difference > 0 else "faster"
            return f"{self.stage} is {size}{word}{self._interval()}"
        return f"{self.entity} {self.metric} {self.a:,.4g} → {self.b:,.4g} {self.unit}"

    def interval(self) -> str:
        """Of a stage's time, in words: as shares, of one below 10 ms in ms."""
        if self.low is None or self.high is None:
            return "one run a side"
        if self.change_low is None:
            return f"{1e3 * self.low:+.1f} to {1e3 * self.high:+.1f} ms"
        return (
            f"{percent(self.change_low, signed=True)} to {percent(self.change_high, signed=True)}"
        )

    def _interval(self) -> str:
        if self.change_low is None or self.change_high is None:
            return ""
        ends = [self.change_low, self.change_high]
        if ends[0] * ends[1] < 0:
            return f" ({percent(ends[0], signed=True)} to {percent(ends[1], signed=True)})"
        small, large = sorted(map(abs, ends))
        return f" ({percent(small)} to {percent(large)})"


def percent(share: float | None, *, signed: bool = False) -> str:
    """A share as per cent in two digits, beyond tenfold in words."""
    if share is None:
        return ""
    if abs(share) >= 10:
        return "over 1,000 %"
    value = 100 * share
    text = f"{value:+.1f}" if signed else f"{value:.1f}"
    return f"{text} %" if abs(value) < 10 else f"{value:+.0f} %" if signed else f"{value:.0f} %"


def family(
    pairs: Sequence[tuple[str, Entry, Entry]],
    alpha: float,
    tolerance: float,
    sittings: tuple[Sequence[int], Sequence[int]] = ((), ()),
) -> tuple[Compared, ...]:
    """All figures of one family, corrected for each other.

    ``sittings``: in which each run of A and of B was made; empty where that says nothing.
    """
    if not pairs:
        return ()
    rules = [rule_of(a) for _, a, _ in pairs]
    each = [_difference(rule, a, b, sittings) for rule, (_, a, b) in zip(rules, pairs, strict=True)]
    together = Difference(
        value=np.array([one.value for one in each]),
        error=np.array([one.error for one in each]),
        df=np.array([one.df for one in each]),
        spread=np.array([one.spread for one in each]),
        between=np.array([one.between for one in each]),
        by_sittings=np.array([one.by_sittings for one in each]),
    )
    margins = np.array([rule.margin for rule in rules])
    chances = chance(together, margins)
    adjusted = holm(chances)
    share = alpha / max(1, int(np.sum(~np.isnan(chances))))
    widths, least = half_width(together, share), smallest(together, share, margins)
    alone = half_width(together, 2 * ALPHA_SAME)
    return tuple(
        _compared(
            stage,
            a,
            b,
            _Tested(
                rule=rules[i],
                step=float(together.value[i]),
                width=_known(widths[i]),
                alone=_known(alone[i]),
                least=_known(least[i]),
                spread=_known(together.spread[i]),
                drift=_known(np.asarray(together.between)[i]),
                by_sittings=_known(np.asarray(together.by_sittings)[i]),
                chance=float(chances[i]),
                adjusted=float(adjusted[i]),
                alpha=alpha,
                share=share,
            ),
            tolerance,
        )
        for i, (stage, a, b) in enumerate(pairs)
    )


def _difference(
    rule: Rule, a: Entry, b: Entry, sittings: tuple[Sequence[int], Sequence[int]]
) -> Difference:
    of_a, of_b = (
        [place for place, value in zip(of, one.values, strict=False) if value is not None]
        for one, of in zip((a, b), sittings, strict=True)
    )
    sides = rule.scaled(a.known), rule.scaled(b.known)
    if not of_a or not of_b:
        return welch(*sides, rule.floor)
    return over_sittings(*sides, of_a, of_b, rule.floor)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


@dataclass(frozen=True, kw_only=True)
class _Tested:
    """What the test says of one figure, on the scale of its rule.

    ``width``: half of the interval that holds for the whole family; ``alone``: of that which says
    whether the figure is the same.
    """

    rule: Rule
    step: float
    width: float | None
    alone: float | None
    least: float | None
    spread: float | None
    drift: float | None
    by_sittings: float | None
    chance: float
    adjusted: float
    alpha: float
    share: float


def _compared(stage: str, a: Entry, b: Entry, told: _Tested, tolerance: float) -> Compared:
    rule = told.rule
    level = float(rule.scaled(a.known).mean())
    base = 2 * rule.grain * math.sinh(level)
    is_time = a.key == DURATION

    positive = min(*a.known, *b.known, 0.0) == 0.0

    def amount(step: float | None) -> float | None:
        if step is None:
            return None
        grown = rule.back(level, step)
        return max(grown, -base) if positive else grown

    def share(step: float | None) -> float | None:
        value = amount(step)
        return value / abs(base) if value is not None and abs(base) >= rule.grain else None

    ends = (None, None) if told.width is None else (told.step - told.width, told.step + told.width)
    verdict: Verdict = "unsure"
    if told.adjusted <= told.alpha:
        grown = told.step > 0
        verdict = ("slower" if grown else "faster") if is_time else ("more" if grown else "less")
    elif told.alone is not None:
        least, most = rule.within(level, tolerance)
        if least <= told.step - told.alone and told.step + told.alone <= most:
            verdict = "same"
    needed = None
    few = (told.by_sittings or 0.0) <= BY_SITTINGS
    if is_time and few and told.spread is not None and told.spread > QUIET:
        wanted = rule.within(level, WANTED)[1]
        needed = runs_needed(told.spread, wanted, told.share, rule.margin)
    return Compared(
        stage=stage,
        entity=a.entity,
        metric=a.metric,
        figure=a.figure,
        unit=a.unit,
        a=a.median,
        b=b.median,
        runs_a=len(a.known),
        runs_b=len(b.known),
        difference=rule.back(level, told.step),
        low=amount(ends[0]),
        high=amount(ends[1]),
        change=share(told.step),
        change_low=share(ends[0]),
        change_high=share(ends[1]),
        chance=told.chance,
        adjusted=told.adjusted,
        spread=told.spread,
        drift=told.drift,
        by_sittings=told.by_sittings,
        smallest=share(told.least),
        runs_for_5_percent=needed,
        verdict=verdict,
    )
