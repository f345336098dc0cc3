"""The fifteen features at the moment of a payment, from an online store of recent events.

Windows move with the clock, so a finished count is stale a second after it was stored. The store
therefore holds each card's and each terminal's recent payments (``events.py``), and the kernel
that made the training table (``windows.py``) runs over them at the payment's own time.

Rules, the same as offline:

- Payments of one whole second stand in order of ``time_ns``, and of arrival where that is equal.
- A payment that comes late is put in its place in time and answered as of its own time, exactly
  while it is no more than ``SLACK_DAYS`` older than the newest of its card and its terminal.
- A payment is the same as another if card, terminal, time and cents are equal: a retry gets the
  answer of the first and is stored once.
- A label that has not arrived is stored as unknown. The windows see payments of at least seven
  days ago only; one whose label is still unknown by then counts as not fraud, as offline.
  ``OnlineFeatures.never_labelled`` counts the payments that left the horizon without a label.
- A terminal or card with very many payments is kept in part as hour buckets: see ``events.py``.

One process may write to a store: a list is read, changed and written back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from features import events, windows
from features.contracts import DAY_S, LABEL_DELAY_DAYS, WINDOW_DAYS
from features.event_table import EventTable, Lists, make_quick

SLACK_DAYS = 1
CARD_HORIZON_NS = (WINDOW_DAYS[-1] + SLACK_DAYS) * DAY_S * 10**9
TERMINAL_HORIZON_NS = (WINDOW_DAYS[-1] + LABEL_DELAY_DAYS + SLACK_DAYS) * DAY_S * 10**9
LOAD_ENTITIES = 2_000
"""Entities per write while a state is loaded."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Payments:
    """Card payments in order of arrival, each array [n]: ids of 0 or more, ns since 1970 UTC."""

    customer_id: Ints
    terminal_id: Ints
    amount: Floats
    time_ns: Ints

    def __len__(self) -> int:
        return len(self.time_ns)

    def cents(self) -> Ints:
        return _cents(self.amount)

    def __getitem__(self, rows: slice) -> Payments:
        return Payments(
            customer_id=self.customer_id[rows],
            terminal_id=self.terminal_id[rows],
            amount=self.amount[rows],
            time_ns=self.time_ns[rows],
        )

    @staticmethod
    def join(parts: Sequence[Payments]) -> Payments:
        if len(parts) == 1:
            return parts[0]
        return Payments(
            customer_id=np.concatenate([part.customer_id for part in parts]),
            terminal_id=np.concatenate([part.terminal_id for part in parts]),
            amount=np.concatenate([part.amount for part in parts]),
            time_ns=np.concatenate([part.time_ns for part in parts]),
        )


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Late labels, each array [n]. A payment is named by card, terminal, time and amount."""

    customer_id: Ints
    terminal_id: Ints
    amount: Floats
    time_ns: Ints
    is_fraud: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.time_ns)


@dataclass(frozen=True)
class _Side:
    """A kernel function, the field of the records that it sums, and what its ratio divides by."""

    kernel: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], windows.Features]
    value: str
    unit: int


_CUSTOMER = _Side(windows.grouped_customer_windows, "cents", 100)
_TERMINAL = _Side(windows.grouped_terminal_windows, "frauds", 1)


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """The features of some payments, float64 [n, 15], and the lists with these payments in them."""

    features: Floats
    cards: Lists = field(repr=False)
    terminals: Lists = field(repr=False)


class OnlineFeatures:
    """Features of payments from a Feast ``store`` that has the views of ``online_views.py``."""

    def __init__(self, store: Any, *, max_events: int = events.MAX_EVENTS) -> None:
        self.never_labelled = 0
        self._max_events = max_events
        make_quick(store)
        self._cards = EventTable(store, "card_events", "customer_id")
        self._terminals = EventTable(store, "terminal_events", "terminal_id")

    def features(self, payments: Payments) -> Floats:
        """The fifteen features of each payment, float64 [n, 15]; nothing is stored."""
        return self.look_up(payments).features

    def look_up(self, payments: Payments) -> Lookup:
        """As ``features``, with what ``append`` needs. Payments of one batch see each other.

        Raises StoreUnavailableError.
        """
        cards = self._cards.read(payments.customer_id.tolist())
        terminals = self._terminals.read(payments.terminal_id.tolist())
        with torch.inference_mode():
            parts = [self._answer(part, cards, terminals) for part in _runs_in_time(payments)]
        return Lookup(
            features=np.concatenate(parts) if parts else np.empty((0, 15)),
            cards=cards,
            terminals=terminals,
        )

    def append(self, payments: Payments, lookup: Lookup | None = None) -> None:
        """Store the payments; ``lookup`` is their own, and nothing was stored since it was made.

        Safe to repeat. Raises StoreUnavailableError, after which some may be stored.
        """
        if lookup is None:
            cards = self._cards.read(payments.customer_id.tolist())
            terminals = self._terminals.read(payments.terminal_id.tolist())
            _insert(cards, payments.customer_id, payments, payments.terminal_id)
            _insert(terminals, payments.terminal_id, payments, payments.customer_id)
        else:
            cards, terminals = lookup.cards, lookup.terminals
        self._cards.write(self._trimmed(cards, CARD_HORIZON_NS))
        kept = self._trimmed(terminals, TERMINAL_HORIZON_NS, count_unlabelled=True)
        self._terminals.write(kept)

    def label(self, labels: Labels) -> NDArray[np.bool_]:
        """Store late labels; returns which payments were found, bool [n]. Safe to repeat.

        Raises StoreUnavailableError.
        """
        lists = self._terminals.read(labels.terminal_id.tolist())
        found = np.zeros(len(labels.time_ns), dtype=np.bool_)
        changed: Lists = {}
        columns = (labels.terminal_id, labels.time_ns, _cents(labels.amount), labels.customer_id)
        rows = zip(*(column.tolist() for column in columns), labels.is_fraud.tolist(), strict=True)
        for row, (terminal, time_ns, cents, customer, is_fraud) in enumerate(rows):
            packed, found[row] = events.set_label(
                lists[terminal], time_ns, cents, customer, is_fraud
            )
            if found[row]:
                lists[terminal] = changed[terminal] = packed
        self._terminals.write(changed)
        return found

    def load_state(
        self,
        transactions: pa.Table,
        *,
        known_until_ns: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Put the recent ones of past transactions into the (empty) store.

        ``transactions`` has customer_id, terminal_id, event_time, amount and is_fraud. Labels of
        payments after ``known_until_ns`` are stored as unknown (None: all are known). Raises
        StoreUnavailableError, and ValueError where the store refused a write.
        """
        names = ("customer_id", "terminal_id", "is_fraud")
        customer, terminal, label = (
            transactions[name].to_numpy().astype(np.int64) for name in names
        )
        time_ns = transactions["event_time"].cast(pa.timestamp("ns")).to_numpy().astype(np.int64)
        cents = _cents(transactions["amount"].to_numpy().astype(np.float64))
        if known_until_ns is not None:
            label = np.where(time_ns <= known_until_ns, label, events.UNKNOWN)
        newest = int(time_ns.max(initial=0))
        card_rows = np.flatnonzero(time_ns >= newest - CARD_HORIZON_NS)
        terminal_rows = np.flatnonzero(time_ns >= newest - TERMINAL_HORIZON_NS)
        total = len(np.unique(customer[card_rows])) + len(np.unique(terminal[terminal_rows]))
        done = 0
        for table, key, other, rows, horizon_ns in (
            (self._cards, customer, terminal, card_rows, CARD_HORIZON_NS),
            (self._terminals, terminal, customer, terminal_rows, TERMINAL_HORIZON_NS),
        ):
            order = rows[np.lexsort((time_ns[rows], key[rows]))]
            packed = events.pack(time_ns[order], cents[order], other[order], label[order])
            for part in _chunks(_split(key[order], packed), LOAD_ENTITIES):
                kept = self._trimmed(part, horizon_ns)
                table.write(kept)
                table.confirm(kept)
                done += len(part)
                if progress is not None:
                    progress(done, total)

    def check(self) -> None:
        """Raise StoreUnavailableError if the store does not answer."""
        self._cards.read([0])

    def _answer(self, payments: Payments, cards: Lists, terminals: Lists) -> Floats:
        at_card = _insert(cards, payments.customer_id, payments, payments.terminal_id)
        at_terminal = _insert(terminals, payments.terminal_id, payments, payments.customer_id)
        customer = _windows(_CUSTOMER, cards, payments.customer_id, at_card)
        terminal = _windows(_TERMINAL, terminals, payments.terminal_id, at_terminal)
        second = torch.from_numpy(payments.time_ns // 10**9)
        amount = torch.from_numpy(np.array(payments.amount))
        return windows.assemble(amount, second, customer, terminal).numpy()

    def _trimmed(self, lists: Lists, horizon_ns: int, count_unlabelled: bool = False) -> Lists:
        trimmed: Lists = {}
        for entity, packed in lists.items():
            trimmed[entity], unlabelled = events.trim(packed, horizon_ns, self._max_events)
            if count_unlabelled:
                self.never_labelled += unlabelled
        return trimmed


def _cents(amount: Floats) -> Ints:
    return windows.to_cents(torch.from_numpy(np.array(amount, dtype=np.float64))).numpy()


def _runs_in_time(payments: Payments) -> Iterator[Payments]:
    """Cut a batch where a payment is older than an earlier one of its card or terminal.

    Within a run each insertion comes after those before it, so rows that were given out stay, and
    an answer does not depend on which later arrivals shared its batch.
    """
    newest: dict[tuple[str, int], int] = {}
    start = 0
    columns = (payments.customer_id, payments.terminal_id, payments.time_ns)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for row, (customer, terminal, time_ns) in enumerate(rows):
        names = (("card", customer), ("terminal", terminal))
        if any(newest.get(name, time_ns) > time_ns for name in names):
            yield payments[start:row]
            start, newest = row, {}
        newest.update(dict.fromkeys(names, time_ns))
    if len(payments):
        yield payments[start:]


def _insert(lists: Lists, key: Ints, payments: Payments, other: Ints) -> Ints:
    """Insert each payment into the list of its key, in order; return its row in that list, [n]."""
    rows = np.empty(len(payments), dtype=np.int64)
    columns = (key, payments.time_ns, payments.cents(), other)
    for at, (entity, time_ns, cents, party) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True)
    ):
        lists[entity], rows[at] = events.insert(lists[entity], time_ns, cents, party)
    return rows


def _windows(side: _Side, lists: Lists, key: Ints, at: Ints) -> windows.Features:
    """Run the kernel over the lists of these keys and take the rows ``at``, one per key given."""
    place: dict[int, int] = {}
    group = np.array([place.setdefault(entity, len(place)) for entity in key.tolist()])
    packed = [lists[entity] for entity in place]
    lengths = np.array([len(part) for part in packed]) // events.EVENT_BYTES
    records = events.unpack(b"".join(packed))
    keys = torch.from_numpy(np.repeat(np.arange(len(packed)), lengths))
    second = torch.from_numpy(records["time_ns"] // 10**9)
    values = torch.from_numpy(np.maximum(records[side.value], 0).astype(np.int64))
    if (records["other"] == events.BUCKET).any():
        count = torch.from_numpy(records["count"].astype(np.int64))
        answer = _weighted(side, keys, second, values, count)
    else:
        answer = side.kernel(keys, second, values)
    rows = torch.from_numpy((np.cumsum(lengths) - lengths)[group] + at)
    return {name: column[rows] for name, column in answer.items()}


def _weighted(
    side: _Side,
    key: torch.Tensor,
    second: torch.Tensor,
    value: torch.Tensor,
    count: torch.Tensor,
) -> windows.Features:
    """The kernel's answer where a row may stand for many: windowed counts come as sums of counts.

    The kernel gives sum / (rows x unit); times rows x unit that is the integer sum again.
    """

    def sums(answer: windows.Features) -> list[torch.Tensor]:
        columns = list(answer.values())
        pairs = zip(columns[:3], columns[3:], strict=True)
        return [torch.round(ratio * (rows * side.unit)).to(torch.int64) for rows, ratio in pairs]

    weighed = side.kernel(key, second, count)
    counts, totals = sums(weighed), sums(side.kernel(key, second, value))
    ratios = [
        total.to(torch.float64) / (rows.clamp(min=1) * side.unit)
        for rows, total in zip(counts, totals, strict=True)
    ]
    return dict(zip(weighed, [*counts, *ratios], strict=True))


def _split(key: Ints, packed: bytes) -> Iterator[tuple[int, bytes]]:
    """Cut bytes whose records stand together by key."""
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else key
    bounds = (np.append(starts, len(key)) * events.EVENT_BYTES).tolist()
    for entity, start, end in zip(key[starts].tolist(), bounds, bounds[1:], strict=False):
        yield entity, packed[start:end]


def _chunks(pairs: Iterator[tuple[int, bytes]], size: int) -> Iterator[Lists]:
    chunk: Lists = {}
    for entity, packed in pairs:
        chunk[entity] = packed
        if len(chunk) == size:
            yield chunk
            chunk = {}
    if chunk:
        yield chunk
