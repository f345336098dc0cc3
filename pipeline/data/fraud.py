"""The fraud of a generated day: who is under attack, and what that makes of the payments.

Scenarios and shares are those published by the Handbook, applied in its order; the fourth is one of
``drift``'s switches. An attack is a draw of its start day alone, so a day looks back a few weeks
of draws and needs no other day's payments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.drift import (
    CLONED_AMOUNT_FACTOR,
    CLONED_DAYS,
    CLONED_PAYMENT_SHARE,
    CLONED_SCENARIO,
    CLONED_SHARE_PER_DAY,
)
from pipeline.data.population import Ints
from pipeline.data.streams import Floats, Kind, Streams
from pipeline.data.world import GeneratorSpec

BIG_AMOUNT = 220.0
TAKEN_OVER_PER_DAY, TAKEN_OVER_DAYS = 0.0002, 28
LEAKED_PER_DAY, LEAKED_DAYS = 0.0006, 14
LEAKED_PAYMENT_SHARE, LEAKED_AMOUNT_FACTOR = 1 / 3, 5.0


@dataclass(frozen=True, kw_only=True)
class Attacks:
    """Who is under attack on one day: flags by terminal id and by customer id."""

    taken_over: NDArray[np.bool_]
    leaked: NDArray[np.bool_]
    cloned: NDArray[np.bool_]


def attacks_on(spec: GeneratorSpec, streams: Streams, day: int) -> Attacks:
    """Return the attacks that go on during a day (numbered from 0)."""
    new = spec.drift.new_fraud_scenario_day
    clones_from = day + 1 if new is None else max(new, day - CLONED_DAYS + 1)
    return Attacks(
        taken_over=_drawn(
            streams,
            Kind.TAKEOVER,
            spec.terminals,
            TAKEN_OVER_PER_DAY,
            range(max(0, day - TAKEN_OVER_DAYS + 1), day + 1),
        ),
        leaked=_drawn(
            streams,
            Kind.LEAK,
            spec.customers,
            LEAKED_PER_DAY,
            range(max(0, day - LEAKED_DAYS + 1), day + 1),
        ),
        cloned=_drawn(
            streams,
            Kind.CLONE,
            spec.customers,
            CLONED_SHARE_PER_DAY,
            range(clones_from, day + 1),
        ),
    )


def _drawn(
    streams: Streams, kind: Kind, entities: int, share: float, days: range
) -> NDArray[np.bool_]:
    """Return a flag per entity: whether it was drawn on any of some days.

    On each day ``share * entities`` of them are drawn without repetition; what is left of that
    number below one decides, by a draw of the day, whether one more is.
    """
    flags = np.zeros(entities, np.bool_)
    start = np.asarray(days, dtype=np.int64)
    extra = streams.uniforms(kind, 0, day=start, block=1)[0]
    counts = (share * entities + extra).astype(np.int64)
    # Twice as many picks leave enough after repeated ones are taken out.
    tries = 2 * int(share * entities + 1) + 16
    of_day = np.tile(np.arange(tries), len(start))
    picks = streams.uniforms(kind, of_day, day=np.repeat(start, tries))[0] * entities
    for candidates, count in zip(picks.astype(np.int64).reshape(-1, tries), counts, strict=True):
        _, at = np.unique(candidates, return_index=True)
        flags[candidates[np.sort(at)[:count]]] = True
    return flags


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Payments before fraud: ids, index within the customer's day, terminal and amount, [n]."""

    customer: Ints
    index: Ints
    terminal: Ints
    amount: Floats


def commit(
    spec: GeneratorSpec, streams: Streams, attacks: Attacks, day: int, honest: Chosen
) -> tuple[Ints, Floats, NDArray[np.int8]]:
    """Return terminal, amount and fraud scenario (0 for none) of payments after all attacks."""
    terminal, amount = honest.terminal.copy(), honest.amount.copy()
    scenario = np.zeros(len(amount), np.int8)
    scenario[amount > BIG_AMOUNT] = 1
    scenario[attacks.taken_over[terminal]] = 2

    rows = np.flatnonzero(attacks.leaked[honest.customer])
    chance = streams.uniforms(
        Kind.PAYMENT, honest.customer[rows], day=day, index=honest.index[rows], block=1
    )[1]
    rows = rows[chance < LEAKED_PAYMENT_SHARE]
    amount[rows] = to_cents(amount[rows] * LEAKED_AMOUNT_FACTOR)
    scenario[rows] = 3

    rows = np.flatnonzero(attacks.cloned[honest.customer])
    chance, place = streams.uniforms(
        Kind.CLONED_PAYMENT, honest.customer[rows], day=day, index=honest.index[rows]
    )
    cloned = chance < CLONED_PAYMENT_SHARE
    rows = rows[cloned]
    amount[rows] = to_cents(amount[rows] * CLONED_AMOUNT_FACTOR)
    terminal[rows] = (place[cloned] * spec.terminals).astype(np.int64)
    scenario[rows] = CLONED_SCENARIO
    return terminal, amount, scenario


def to_cents(amount: Floats) -> Floats:
    """Return amounts rounded to whole cents, as the nearest float64 of each."""
    return np.asarray(np.rint(amount * 100.0) / 100.0)
