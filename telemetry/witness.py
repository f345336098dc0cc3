"""What moved with a stage's time: figures that say that it waited, held against what is missing.

Asked only where a time was found to differ, and of few figures that were chosen beforehand: so they
are a family of their own for each stage, and need not stand out from all figures of a profile. A
figure in seconds must account for a share of the stage's difference itself; so a stage of half a
second has witnesses as well, and half a second of waiting is none for a minute. Of the CPU's own
speed the same share is asked, of itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from telemetry.compared import Compared, Rule
from telemetry.reference import DURATION, Entry, StageEntries
from telemetry.statistics import Difference, chance, holm, welch

POINTS_TO = 0.05
"""Chance, corrected for a stage's witnesses, up to which one is named; a hint is not corrected."""
ACCOUNTS = 0.1
"""The least share of a stage's difference that a witness in seconds must account for."""
_SPEED = re.compile(r"machine cpu_loop_us .*")
"""Its share of itself is what it can have made of the stage's time."""
_TICK_S = 0.01
_FLOOR = 0.01
_NONE_WHERE_ABSENT = re.compile(r"(cgroup|stage) cgroup_cpu_throttled_seconds")
"""Without a quota some groups keep no such account: then nothing was held back."""


@dataclass(frozen=True, kw_only=True)
class Witness:
    """A figure that moved the way the stage's time did. ``adjusted``: for the stage's witnesses."""

    entity: str
    metric: str
    unit: str
    a: float
    b: float
    chance: float
    adjusted: float

    @property
    def key(self) -> str:
        return f"{self.entity} {self.metric}"

    def short(self) -> str:
        return f"{self.key} {self.a:,.4g} → {self.b:,.4g} {self.unit}"


def witnesses(
    time: Compared, a: StageEntries, b: StageEntries, pattern: str, rule_of: Callable[[Entry], Rule]
) -> list[Witness]:
    """Figures that match ``pattern`` ("entity metric") and moved with the stage's time."""
    pairs = [pair for pair in _pairs(a, b) if re.fullmatch(pattern, _name(pair[0]))]
    if not pairs:
        return []
    tested = [_tested(time, *pair, rule_of) for pair in pairs]
    chances = np.array([float(chance(one, margin)) for one, margin in tested])
    adjusted = holm(chances)
    return [
        Witness(
            entity=pair[0].entity,
            metric=pair[0].metric,
            unit=pair[0].unit,
            a=pair[0].median,
            b=pair[1].median,
            chance=float(chances[i]),
            adjusted=float(adjusted[i]),
        )
        for i, (pair, (one, _)) in enumerate(zip(pairs, tested, strict=True))
        if float(one.value) * time.difference > 0
    ]


def _name(entry: Entry) -> str:
    return f"{entry.entity} {entry.metric}"


def _pairs(a: StageEntries, b: StageEntries) -> Iterator[tuple[Entry, Entry]]:
    for key in dict.fromkeys([*a.by_key, *b.by_key]):
        one, two = a.by_key.get(key), b.by_key.get(key)
        present = one or two
        if key == DURATION or present is None:
            continue
        if _NONE_WHERE_ABSENT.fullmatch(_name(present)):
            one, two = one or _nothing(present, a), two or _nothing(present, b)
        if one is not None and two is not None and one.unit == two.unit:
            yield one, two


def _nothing(entry: Entry, side: StageEntries) -> Entry:
    return replace(entry, values=(0.0,) * len(side.duration.values))


def _tested(
    time: Compared, a: Entry, b: Entry, rule_of: Callable[[Entry], Rule]
) -> tuple[Difference, float]:
    """The difference, and the margin that it must exceed."""
    if a.unit == "s" and a.kind == "counter":
        floor = max(_TICK_S, _FLOOR * time.a)
        difference = welch(_array(a.known), _array(b.known), floor)
        return difference, ACCOUNTS * abs(time.difference)
    rule = rule_of(a)
    difference = welch(rule.scaled(a.known), rule.scaled(b.known), rule.floor)
    margin = rule.margin
    if _SPEED.fullmatch(_name(a)) and time.change is not None:
        margin = max(margin, ACCOUNTS * abs(math.log1p(max(time.change, -1 + _FLOOR))))
    return difference, margin


def _array(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.asarray(values, float)
