"""Who pays where: customers, terminals, and the terminals within a customer's reach.

Nothing here grows with customers times terminals. Terminals lie sorted by the cells of a grid
whose cells are at least one radius wide, so all that a customer reaches is in nine cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.streams import HALF, Floats, Kind, Streams, Words

Ints = NDArray[np.int64]

MAP_SIDE = 100.0
MEAN_AMOUNT = (5.0, 100.0)
RATE_PER_DAY = (0.0, 4.0)
RADIUS_AT_10_000 = 5.0
"""Distributions as the Handbook publishes them; see docs for the source."""

TRY_BLOCKS = 4
"""Blocks of four blind picks (a third of which hit) before a reach is listed in full."""
PAIRS_AT_ONCE = 1 << 22


def usual_radius(terminals: int) -> float:
    """The radius that gives a customer about 75 terminals at any number of terminals."""
    return RADIUS_AT_10_000 * float(np.sqrt(1e4 / terminals))


@dataclass(frozen=True, kw_only=True)
class Customers:
    """Some customers' properties, arrays [n]."""

    ids: Ints
    x: Floats
    y: Floats
    mean_amount: Floats
    rate_per_day: Floats


def make_customers(streams: Streams, first: int, stop: int) -> Customers:
    """Return customers ``first`` to ``stop - 1``."""
    ids = np.arange(first, stop, dtype=np.int64)
    x, y = streams.uniforms(Kind.CUSTOMER, ids, block=0)
    mean, rate = streams.uniforms(Kind.CUSTOMER, ids, block=1)
    return Customers(
        ids=ids,
        x=x * MAP_SIDE,
        y=y * MAP_SIDE,
        mean_amount=MEAN_AMOUNT[0] + mean * (MEAN_AMOUNT[1] - MEAN_AMOUNT[0]),
        rate_per_day=RATE_PER_DAY[0] + rate * (RATE_PER_DAY[1] - RATE_PER_DAY[0]),
    )


@dataclass(frozen=True, kw_only=True)
class Terminals:
    """All terminals, sorted by grid cell: ``ids``, ``x``, ``y`` [terminals].

    Cell (column, row) has number ``column * cells + row`` and holds the terminals from
    ``starts[number]`` to ``starts[number + 1] - 1``.
    """

    ids: Ints
    x: Floats
    y: Floats
    starts: Ints
    cells: int
    radius: float

    def bands(self, x: Floats, y: Floats) -> tuple[Ints, Ints]:
        """Return first position and length of the three stretches of candidates, [3, n] each.

        A stretch is up to three neighbouring cells of one column, which lie in one piece.
        """
        column, row = cell(x, self.cells), cell(y, self.cells)
        low, high = np.maximum(row - 1, 0), np.minimum(row + 1, self.cells - 1)
        first, length = np.zeros((3, len(x)), np.int64), np.zeros((3, len(x)), np.int64)
        for band, shift in enumerate((-1, 0, 1)):
            near = column + shift
            inside = (near >= 0) & (near < self.cells)
            base = np.where(inside, near, 0) * self.cells
            first[band] = self.starts[base + low]
            length[band] = np.where(inside, self.starts[base + high + 1] - first[band], 0)
        return first, length

    def within(self, position: Ints, x: Floats, y: Floats) -> NDArray[np.bool_]:
        """Whether the terminals at ``position`` lie within the radius of (x, y), [n]."""
        dx, dy = self.x[position] - x, self.y[position] - y
        return np.asarray(dx * dx + dy * dy <= self.radius * self.radius)


def cell(coordinate: Floats, cells: int) -> Ints:
    """Return the grid column (or row) of coordinates, int64 [n]."""
    scaled = (coordinate * (cells / MAP_SIDE)).astype(np.int64)
    return np.minimum(scaled, cells - 1)


def make_terminals(streams: Streams, terminals: int, radius: float) -> Terminals:
    """Return all terminals, on a grid for this radius."""
    ids = np.arange(terminals, dtype=np.int64)
    x, y = streams.uniforms(Kind.TERMINAL, ids)
    x, y = x * MAP_SIDE, y * MAP_SIDE
    # A grid much finer than the terminals would only be a larger table of empty cells.
    cells = max(1, min(int(MAP_SIDE / radius), int(np.sqrt(terminals))))
    number = cell(x, cells) * cells + cell(y, cells)
    order = np.argsort(number, kind="stable")
    starts = np.zeros(cells * cells + 1, np.int64)
    np.cumsum(np.bincount(number, minlength=cells * cells), out=starts[1:])
    return Terminals(
        ids=ids[order], x=x[order], y=y[order], starts=starts, cells=cells, radius=radius
    )


def pick_terminals(
    terminals: Terminals,
    streams: Streams,
    customers: Customers,
    *,
    of: Ints,
    index: Ints,
    day: int,
) -> Ints:
    """Return a terminal id per payment, uniform among those in reach; -1 where there is none.

    ``of`` [n] says which of ``customers`` pays, ``index`` [n] which payment of the day it is.
    Picks are blind among the candidates of nine cells and kept if within the radius; the few
    payments without a hit in 16 picks choose from the full list of their customer's reach. Both
    ways give each terminal in reach the same chance.
    """
    first, length = terminals.bands(customers.x, customers.y)
    picked = np.full(len(of), -1, np.int64)
    unsettled = np.flatnonzero(length.sum(axis=0)[of] > 0)
    for block in range(TRY_BLOCKS):
        words = streams.words(
            Kind.PLACE, customers.ids[of[unsettled]], day=day, index=index[unsettled], block=block
        )
        left = np.arange(len(unsettled))
        for word in words:
            rows = unsettled[left]
            who = of[rows]
            position = _candidate(word[left], first, length, who)
            hit = terminals.within(position, customers.x[who], customers.y[who])
            picked[rows[hit]] = terminals.ids[position[hit]]
            left = left[~hit]
        unsettled = unsettled[left]
    if len(unsettled):
        who, row_of = np.unique(of[unsettled], return_inverse=True)
        offsets, reach = list_reach(terminals, customers.x[who], customers.y[who])
        word = streams.words(
            Kind.PLACE,
            customers.ids[who][row_of],
            day=day,
            index=index[unsettled],
            block=TRY_BLOCKS,
        )[0]
        count = np.diff(offsets)[row_of]
        some = count > 0
        position = reach[(offsets[row_of] + _scale(word, count))[some]]
        picked[unsettled[some]] = terminals.ids[position]
    return picked


def list_reach(terminals: Terminals, x: Floats, y: Floats) -> tuple[Ints, Ints]:
    """Return all terminals within reach of points [n]: offsets [n + 1] and positions.

    Point i reaches ``positions[offsets[i]:offsets[i + 1]]``. Points are taken in groups, so that
    no more than some four million candidates are looked at together.
    """
    first, length = terminals.bands(x, y)
    candidates = length.sum(axis=0)
    group = np.cumsum(candidates) // PAIRS_AT_ONCE
    counts, found = np.zeros(len(x) + 1, np.int64), []
    for number in np.unique(group):
        points = np.flatnonzero(group == number)
        bands, sizes = first[:, points].T.ravel(), length[:, points].T.ravel()
        point = np.repeat(np.repeat(points, 3), sizes)
        within_band = np.arange(len(point)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        position = np.repeat(bands, sizes) + within_band
        hit = terminals.within(position, x[point], y[point])
        found.append(position[hit])
        counts[1:] += np.bincount(point[hit], minlength=len(x))
    return np.cumsum(counts), np.concatenate(found) if found else np.empty(0, np.int64)


def _candidate(word: Words, first: Ints, length: Ints, who: Ints) -> Ints:
    """Return a position uniform among the candidates of customers ``who``, by a 32-bit word."""
    in_first, in_second = length[0][who], length[1][who]
    pick = _scale(word, in_first + in_second + length[2][who])
    past_first = pick - in_first
    past_second = past_first - in_second
    later = np.where(past_second < 0, first[1][who] + past_first, first[2][who] + past_second)
    return np.asarray(np.where(past_first < 0, first[0][who] + pick, later))


def _scale(word: Words, count: Ints) -> Ints:
    """Return a whole number from 0 to ``count - 1``; off from uniform by count / 2^32 at most."""
    scaled = (word * count.astype(np.uint64)) >> HALF
    return np.asarray(scaled, dtype=np.int64)
