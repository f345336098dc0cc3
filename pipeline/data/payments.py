"""One day of the generated world, made from its random streams alone.

Distributions are those published by the Handbook (Le Borgne et al., 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.fraud import Attacks, Chosen, attacks_on, commit, to_cents
from pipeline.data.population import (
    Customers,
    Ints,
    Terminals,
    make_customers,
    make_terminals,
    pick_terminals,
    usual_radius,
)
from pipeline.data.streams import Floats, Kind, Streams
from pipeline.data.world import GeneratorSpec

DAY_SECONDS = 86_400
SECOND_MEAN, SECOND_SD = 43_200.0, 20_000.0
SD_PER_MEAN_AMOUNT = 0.5
KNOWN_LABEL_DELAY_DAYS = 7
IDS_PER_DAY = 10**9
"""A transaction's id is its day times this plus its rank in the day: unique, in order of time, and
known without the other days."""
CUSTOMERS_PER_BLOCK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Payments:
    """Payments of one day, arrays [n] of small types, by customer and draw."""

    second: NDArray[np.int32]
    customer: NDArray[np.uint32]
    terminal: NDArray[np.uint32]
    amount: Floats
    scenario: NDArray[np.int8]
    label_delay_s: NDArray[np.int32]
    """Empty without random label delays."""


def make_day(
    spec: GeneratorSpec,
    day: int,
    *,
    customers: range | None = None,
    customers_per_block: int = CUSTOMERS_PER_BLOCK,
) -> pa.Table:
    """Return the payments of one day (from 0) in order of time, then customer, then draw.

    With ``customers`` only those of a stretch of customers: the same payments as in the whole
    day, but for ``transaction_id``, which ranks the rows that are there.
    """
    streams = Streams(seed=spec.seed)
    radius = usual_radius(spec.terminals) * spec.drift.radius_factor(day)
    terminals = _terminals(spec.seed, spec.terminals, radius)
    attacks = attacks_on(spec, streams, day)
    who = customers if customers is not None else range(spec.customers)
    blocks = []
    for first in range(who.start, who.stop, customers_per_block):
        payers = make_customers(streams, first, min(first + customers_per_block, who.stop))
        blocks.append(_pay(spec, streams, payers, terminals, attacks=attacks, day=day))
    return _table(spec, day, blocks)


@lru_cache(maxsize=1)
def _terminals(seed: int, terminals: int, radius: float) -> Terminals:
    """The terminals on their grid: kept from day to day, as they need a sort."""
    return make_terminals(Streams(seed=seed), terminals, radius)


def _pay(
    spec: GeneratorSpec,
    streams: Streams,
    customers: Customers,
    terminals: Terminals,
    *,
    attacks: Attacks,
    day: int,
) -> Payments:
    chance = streams.uniforms(Kind.DAY_COUNT, customers.ids, day=day)[0]
    counts = poisson(customers.rate_per_day, chance)
    of = np.repeat(np.arange(len(counts)), counts)
    index = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)

    for_second, for_amount = streams.normals(Kind.PAYMENT, customers.ids[of], day=day, index=index)
    second = np.floor(SECOND_MEAN + SECOND_SD * for_second)
    kept = (second >= 0) & (second < DAY_SECONDS)
    of, index, second = of[kept], index[kept], second[kept].astype(np.int32)

    mean = customers.mean_amount[of] * spec.drift.amount_factor(day)
    amount = mean + SD_PER_MEAN_AMOUNT * mean * for_amount[kept]
    negative = np.flatnonzero(amount < 0)
    again = streams.uniforms(
        Kind.PAYMENT, customers.ids[of[negative]], day=day, index=index[negative], block=1
    )[0]
    amount[negative] = again * 2.0 * mean[negative]

    place = pick_terminals(terminals, streams, customers, of=of, index=index, day=day)
    reached = np.flatnonzero(place >= 0)
    honest = Chosen(
        customer=customers.ids[of[reached]],
        index=index[reached],
        terminal=place[reached],
        amount=to_cents(amount[reached]),
    )
    terminal, paid, scenario = commit(spec, streams, attacks, day, honest)
    return Payments(
        second=second[reached],
        customer=honest.customer.astype(np.uint32),
        terminal=terminal.astype(np.uint32),
        amount=paid,
        scenario=scenario,
        label_delay_s=_label_delays(spec, streams, day, honest),
    )


def poisson(rate: Floats, chance: Floats) -> Ints:
    """Return Poisson numbers of these rates by inversion of uniforms in [0, 1), int64 [n]."""
    counts = np.zeros(len(rate), np.int64)
    open_ = np.arange(len(rate))
    term = np.exp(-rate)
    below = term.copy()
    number = 0
    while len(open_ := open_[chance[open_] >= below[open_]]):
        number += 1
        counts[open_] = number
        term[open_] *= rate[open_] / number
        grown = below[open_] + term[open_]
        # Where rounding stops the sum from growing, nothing more can come.
        open_, grown = open_[grown > below[open_]], grown[grown > below[open_]]
        below[open_] = grown
    return counts


def _label_delays(
    spec: GeneratorSpec, streams: Streams, day: int, honest: Chosen
) -> NDArray[np.int32]:
    if spec.drift.label_delay_day is None:
        return np.empty(0, np.int32)
    days = np.full(len(honest.amount), float(KNOWN_LABEL_DELAY_DAYS))
    if spec.drift.has_random_labels(day):
        chance = streams.uniforms(Kind.LABEL_DELAY, honest.customer, day=day, index=honest.index)[0]
        days = -np.log1p(-chance) * spec.drift.label_delay_mean_days
    return (days * DAY_SECONDS).astype(np.int32)


def _table(spec: GeneratorSpec, day: int, blocks: list[Payments]) -> pa.Table:
    """Put a day's payments in order. ``blocks`` is emptied, so that memory is not held twice."""

    def column(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(block, name) for block in blocks])

    second = column("second").astype(np.int64)
    order = _stable_order(second)
    midnight = np.datetime64(spec.start + timedelta(days=day), "us")
    second = second[order]
    event_time = midnight + second.astype("timedelta64[s]")
    scenario = column("scenario")[order]
    columns = {
        "transaction_id": np.arange(len(order)) + day * IDS_PER_DAY,
        "event_time": event_time,
        "customer_id": column("customer")[order].astype(np.int64),
        "terminal_id": column("terminal")[order].astype(np.int64),
        "amount": column("amount")[order],
        "is_fraud": (scenario > 0).astype(np.int8),
        "fraud_scenario": scenario,
    }
    if spec.drift.label_delay_day is not None:
        columns["label_time"] = event_time + column("label_delay_s")[order].astype("timedelta64[s]")
    return pa.table(columns, schema=spec.schema)


def _stable_order(second: Ints) -> Ints:
    """Return the stable order of seconds of the day: two radix passes, low bits first."""
    order = np.argsort((second & 0xFF).astype(np.uint8), kind="stable")
    return order[np.argsort((second >> 8).astype(np.uint16)[order], kind="stable")]
