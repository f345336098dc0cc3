"""The window kernel: the fifteen features from tensors, on any device, to the same bit.

Offline tables and online answers go through these functions and through nothing else. Counts and
sums are integers, and each mean or share is one float64 division of two integers, so neither the
device nor the size of a batch can move a bit.

Windows compare whole seconds and end to the right: a window of w ending at e holds the rows with
e - w < second <= e. Rows of one key that share a second stand in row order: a customer's row sees
those before it and itself. A terminal's window ends seven days back, so every row of the second
that it ends on is in it.

Online use: append each asked-for row after the past rows of its key and take those rows of the
answer. Where one request asks twice about a key, give each question a key of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from features.contracts import (
    CALENDAR_FEATURES,
    CUSTOMER_FEATURES,
    DAY_S,
    FEATURES,
    LABEL_DELAY_DAYS,
    TERMINAL_FEATURES,
    WINDOW_DAYS,
)

NIGHT_END_HOUR = 7
"""Night is hours 0 to 6."""
THURSDAY = 3
"""1970-01-01 was a Thursday; Monday is 0."""
CENTS_PER_UNIT = 100

Features = dict[str, Tensor]


def to_cents(amount: Tensor) -> Tensor:
    """Round amounts (float64, currency units) to whole cents (int64), ties to even."""
    return torch.round(amount * CENTS_PER_UNIT).to(torch.int64)


def calendar(second: Tensor) -> Features:
    """``is_weekend`` and ``is_night`` (int8, 0 or 1) of times in seconds since 1970, UTC."""
    day = torch.div(second, DAY_S, rounding_mode="floor")
    of_day = second - day * DAY_S
    weekend = torch.remainder(day + THURSDAY, 7) >= 5
    night = of_day < NIGHT_END_HOUR * 3600
    return dict(zip(CALENDAR_FEATURES, (weekend.to(torch.int8), night.to(torch.int8)), strict=True))


def customer_windows(key: Tensor, second: Tensor, cents: Tensor) -> Features:
    """Count and mean amount of each row's customer over 1, 7 and 30 days, the row included.

    ``key`` (integer), ``second`` (int64, since 1970, UTC) and ``cents`` (int64) are of shape [n].
    The rows of one key stand in the order of time; keys may be mixed in any way.
    Returns ``CUSTOMER_FEATURES`` row by row: counts int32 [n], means float64 [n] in currency units.
    """
    order = by_key(key)
    return _restore(order, grouped_customer_windows(*_grouped(order, key, second, cents)))


def terminal_windows(key: Tensor, second: Tensor, fraud: Tensor) -> Features:
    """Count and fraud share of each row's terminal over 1, 7 and 30 days that end 7 days back.

    As ``customer_windows``, with ``fraud`` (integer, 0 or 1) in place of cents; the row's own label
    is never looked at. Returns ``TERMINAL_FEATURES``: counts int32, shares float64, 0.0 where the
    window is empty.
    """
    order = by_key(key)
    return _restore(order, grouped_terminal_windows(*_grouped(order, key, second, fraud)))


def by_key(key: Tensor) -> Tensor:
    """The stable order that brings the rows of each key together (int64 [n])."""
    return torch.sort(key, stable=True).indices


def grouped_customer_windows(key: Tensor, second: Tensor, cents: Tensor) -> Features:
    """``customer_windows`` for rows that already stand together by key."""
    if len(key) == 0:
        return _nothing(CUSTOMER_FEATURES, key)
    code = _code(key, second, WINDOW_DAYS[-1])
    after_own = torch.arange(1, len(key) + 1, dtype=_index_type(code), device=key.device)
    starts = [_first_after(code, days) for days in WINDOW_DAYS]
    return _windows(CUSTOMER_FEATURES, starts, after_own, cents, CENTS_PER_UNIT)


def grouped_terminal_windows(key: Tensor, second: Tensor, fraud: Tensor) -> Features:
    """``terminal_windows`` for rows that already stand together by key."""
    if len(key) == 0:
        return _nothing(TERMINAL_FEATURES, key)
    code = _code(key, second, LABEL_DELAY_DAYS + WINDOW_DAYS[-1])
    end = _first_after(code, LABEL_DELAY_DAYS)
    starts = [_first_after(code, LABEL_DELAY_DAYS + days) for days in WINDOW_DAYS]
    return _windows(TERMINAL_FEATURES, starts, end, fraud, 1)


def assemble(amount: Tensor, second: Tensor, customer: Features, terminal: Features) -> Tensor:
    """The model's input: float64 [n, 15], columns in the order of ``FEATURES``."""
    columns = {"amount": amount, **calendar(second), **customer, **terminal}
    return torch.stack([columns[name].to(torch.float64) for name in FEATURES], dim=1)


def _grouped(order: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
    return tuple(column.index_select(0, order) for column in columns)


def _code(key: Tensor, second: Tensor, reach_days: int) -> Tensor:
    """One ascending int64 per row for (key, second); keys lie further apart than any look back."""
    rank = torch.zeros(len(key), dtype=torch.int64, device=key.device)
    torch.cumsum(key[1:] != key[:-1], dim=0, out=rank[1:])
    first, last = torch.aminmax(second)
    stride = last - first + reach_days * DAY_S + 1
    return rank.mul_(stride).add_(second).sub_(first)


def _index_type(code: Tensor) -> torch.dtype:
    return torch.int32 if len(code) < 2**31 - 1 else torch.int64


def _first_after(code: Tensor, days: int) -> Tensor:
    """For each row, the first row of its key that is later than ``days`` before it."""
    narrow = _index_type(code) == torch.int32
    return torch.searchsorted(code, code - days * DAY_S, right=True, out_int32=narrow)


def _windows(
    names: tuple[str, ...], starts: list[Tensor], end: Tensor, value: Tensor, unit: int
) -> Features:
    """Counts and means of ``value`` over the rows from each start up to, not with, ``end``."""
    prefix = torch.zeros(len(value) + 1, dtype=torch.int64, device=value.device)
    torch.cumsum(value, dim=0, out=prefix[1:])
    until_end = prefix.index_select(0, end)
    counts = [end - start for start in starts]
    sums = [until_end - prefix.index_select(0, start) for start in starts]
    # An empty window's sum is 0, and 0 over any positive number is the 0.0 that is asked for.
    means = [
        total.to(torch.float64) / (count.clamp(min=1).to(torch.float64) * unit)
        for total, count in zip(sums, counts, strict=True)
    ]
    return dict(zip(names, [*(count.to(torch.int32) for count in counts), *means], strict=True))


def _nothing(names: tuple[str, ...], like: Tensor) -> Features:
    kinds = [torch.int32] * 3 + [torch.float64] * 3
    return {
        name: torch.empty(0, dtype=kind, device=like.device)
        for name, kind in zip(names, kinds, strict=True)
    }


def _restore(order: Tensor, grouped: Features) -> Features:
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    return {name: value.index_select(0, place) for name, value in grouped.items()}
