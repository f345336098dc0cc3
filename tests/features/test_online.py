"""Online features against the kernel over the whole history, and the rules of their state."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import events
from features.event_table import StoreUnavailableError
from features.online import Labels, OnlineFeatures, Payments
from tests.online_support import (
    DAY_NS,
    START_S,
    dense_table,
    offline,
    one_torch_thread,
    payments_of,
    times_ns,
)
from tests.redis_server import free_port, redis_on

BACKENDS = ("sqlite", pytest.param("redis", marks=pytest.mark.needs("redis-server")))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


@pytest.fixture(params=BACKENDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    yield from open_store(request.param, tmp_path)


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Any]:
    yield from open_store("sqlite", tmp_path)


FRESH_IDS = itertools.count(0, 10)


def open_store(kind: str, folder: Path) -> Iterator[Any]:
    from features.online_views import open_online_store

    if kind == "sqlite":
        yield open_online_store(folder, {"type": "sqlite"})
        return
    port = free_port()
    with redis_on(port, folder):
        yield open_online_store(folder, {"type": "redis", "connection_string": f"127.0.0.1:{port}"})


def one(customer: int, terminal: int, amount: float, time_ns: int) -> Payments:
    return payments([(customer, terminal, amount, time_ns)])


def payments(rows: list[tuple[int, int, float, int]]) -> Payments:
    customer, terminal, amount, time_ns = zip(*rows, strict=True)
    return Payments(
        customer_id=np.array(customer),
        terminal_id=np.array(terminal),
        amount=np.array(amount, dtype=np.float64),
        time_ns=np.array(time_ns, dtype=np.int64),
    )


def labels_of(table: pa.Table) -> Labels:
    paid = payments_of(table)
    return Labels(
        customer_id=paid.customer_id,
        terminal_id=paid.terminal_id,
        amount=paid.amount,
        time_ns=paid.time_ns,
        is_fraud=table["is_fraud"].to_numpy().astype(bool),
    )


def rows_between(table: pa.Table, start_ns: int, end_ns: int) -> pa.Table:
    time_ns = times_ns(table)
    return table.filter(pa.array((time_ns >= start_ns) & (time_ns < end_ns)))


def replay(online: OnlineFeatures, table: pa.Table, from_day: int, batch: int) -> Any:
    """Answers of all payments from a day on, the labels of day d - 7 told at the start of day d."""
    first = START_S * 10**9 + from_day * DAY_NS
    past = rows_between(table, 0, first)
    online.load_state(past, known_until_ns=first - 7 * DAY_NS - 1)
    answers = []
    for day in range(from_day, from_day + 7):
        start = START_S * 10**9 + day * DAY_NS
        due = rows_between(table, start - 7 * DAY_NS, start - 6 * DAY_NS)
        paid = payments_of(rows_between(table, start, start + DAY_NS))
        assert online.label(labels_of(due)).all()
        for at in range(0, len(paid), batch):
            part = paid[at : at + batch]
            lookup = online.look_up(part)
            online.append(part, lookup)
            answers.append(lookup.features)
    return np.concatenate(answers)


@pytest.mark.parametrize("batch", [1, 37])
def test_a_replayed_week_equals_the_offline_table_to_the_bit(store: Any, batch: int) -> None:
    table = dense_table(days=47, per_day=60, cards=12, terminals=9, seed=3)
    online = OnlineFeatures(store)
    answers = replay(online, table, 40, batch)
    expected = offline(table)[-len(answers) :]
    assert len(answers) > 300
    assert np.array_equal(answers, expected)
    assert np.any(expected[:, 12:] > 0)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_order_of_arrival_is_answered_as_of_its_own_time(
    sqlite_store_session: Any, data: st.DataObject
) -> None:
    """Against sums over Python lists: what a payment sees is what came before, in time order."""
    online = OnlineFeatures(sqlite_store_session)
    base = next(FRESH_IDS)
    ids = st.integers(0, 1)
    hours = st.integers(0, 20)
    row = st.tuples(ids, ids, st.sampled_from([1.0, 2.5]), hours.map(lambda h: (1000 + h) * 3600))
    rows = data.draw(st.lists(row, min_size=1, max_size=12))
    cuts = data.draw(st.integers(1, len(rows)))
    arrived: list[tuple[int, int, float, int]] = []
    for at in range(0, len(rows), cuts):
        part = [(base + c, base + t, a, s * 10**9) for c, t, a, s in rows[at : at + cuts]]
        lookup = online.look_up(payments(part))
        online.append(payments(part), lookup)
        for paid, got in zip(part, lookup.features, strict=True):
            if paid not in arrived:
                arrived.append(paid)
            same_card = [other for other in arrived if other[0] == paid[0]]
            before = [other for other in same_card if other[3] < paid[3]]
            tied = [other for other in same_card if other[3] == paid[3]]
            seen = before + tied[: tied.index(paid) + 1]
            day = [other for other in seen if other[3] > paid[3] - DAY_NS]
            assert got[3] == len(day)
            assert got[6] == sum(round(100 * other[2]) for other in day) / (100 * len(day))


@pytest.fixture(scope="module")
def sqlite_store_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from open_store("sqlite", tmp_path_factory.mktemp("online"))


def test_a_retry_gets_the_first_answer_and_is_stored_once(store: Any) -> None:
    online = OnlineFeatures(store)
    first = one(1, 2, 10.0, 10**18)
    twice = Payments.join([first, first])
    answers = online.look_up(twice)
    online.append(twice, answers)
    online.append(first)
    assert np.array_equal(answers.features[0], answers.features[1])
    later = online.features(one(1, 2, 20.0, 10**18 + 10**9))
    assert later[0][3] == 2
    assert later[0][6] == 15.0


def test_labels_younger_than_seven_days_move_nothing_and_then_they_do(store: Any) -> None:
    online = OnlineFeatures(store)
    paid_ns = 10**18
    paid = one(1, 2, 10.0, paid_ns)
    online.append(paid, online.look_up(paid))
    label = Labels(
        customer_id=paid.customer_id,
        terminal_id=paid.terminal_id,
        amount=paid.amount,
        time_ns=paid.time_ns,
        is_fraud=np.array([True]),
    )
    early, late = (one(5, 2, 1.0, paid_ns + 7 * DAY_NS - step) for step in (10**9, 0))
    unlabelled = online.features(late)[0]
    assert (unlabelled[9], unlabelled[12]) == (1, 0.0)
    before = online.features(early)
    assert online.label(label).tolist() == [True]
    assert online.label(label).tolist() == [True]
    assert np.array_equal(online.features(early), before)
    assert tuple(online.features(late)[0][[9, 12]]) == (1, 1.0)


def test_a_label_of_an_unknown_payment_is_said_to_be_not_found(store: Any) -> None:
    online = OnlineFeatures(store)
    paid = one(1, 2, 10.0, 10**18)
    online.append(paid, online.look_up(paid))
    for other in (one(9, 2, 10.0, 10**18), one(1, 2, 10.01, 10**18), one(1, 3, 10.0, 10**18)):
        label = Labels(
            customer_id=other.customer_id,
            terminal_id=other.terminal_id,
            amount=other.amount,
            time_ns=other.time_ns,
            is_fraud=np.array([True]),
        )
        assert online.label(label).tolist() == [False]


def test_events_leave_after_the_horizon_and_the_unlabelled_are_counted(sqlite_store: Any) -> None:
    online = OnlineFeatures(sqlite_store)
    for day in (0, 1, 39, 40):
        paid = one(1, 2, 10.0, day * DAY_NS)
        online.append(paid, online.look_up(paid))
    assert online.never_labelled == 2
    answer = online.features(one(1, 2, 10.0, 40 * DAY_NS + 10**9))[0]
    assert answer[5] == 3


def test_a_heavy_terminal_is_off_by_no_more_than_its_buckets_at_the_edges(
    sqlite_store: Any,
) -> None:
    table = dense_table(days=45, per_day=100, cards=40, terminals=2, seed=5)
    bounded = OnlineFeatures(sqlite_store, max_events=200)
    last = START_S * 10**9 + 44 * DAY_NS
    bounded.load_state(rows_between(table, 0, last))
    paid = payments_of(rows_between(table, last, last + DAY_NS))
    answers = bounded.features(paid)
    expected = offline(table)[-len(paid) :]
    counts = slice(9, 12)
    hour = np.unique(
        np.stack([times_ns(table) // events.HOUR_NS, table["terminal_id"]]),
        axis=1,
        return_counts=True,
    )[1].max()
    off = np.abs(answers[:, counts] - expected[:, counts])
    assert 0 < off.max() <= 2 * hour
    frauds = np.abs(answers[:, 12:] * answers[:, counts] - expected[:, 12:] * expected[:, counts])
    assert frauds.max() <= 2 * hour + 1e-6
    assert np.array_equal(answers[:, :9], expected[:, :9])


def test_a_heavy_list_without_edges_in_its_buckets_is_exact(sqlite_store: Any) -> None:
    rows = [(1, 2, float(n % 5), n * 10**9) for n in range(1, 101)]
    bounded = OnlineFeatures(sqlite_store, max_events=20)
    for at in range(0, 100, 10):
        part = payments(rows[at : at + 10])
        lookup = bounded.look_up(part)
        bounded.append(part, lookup)
    assert lookup.features[-1][3] == 100
    assert lookup.features[-1][6] == sum(n % 5 for n in range(1, 101)) / 100


def test_a_write_is_not_lost_to_a_clock_that_went_back(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import datetime, timedelta

    from features import event_table

    first = one(1, 2, 10.0, 10**18)
    online = OnlineFeatures(store)
    online.append(first, online.look_up(first))

    class Behind(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) - timedelta(days=400)

    monkeypatch.setattr(event_table, "datetime", Behind)
    restarted = OnlineFeatures(store)
    second = one(1, 2, 20.0, 10**18 + 10**9)
    restarted.append(second, restarted.look_up(second))
    assert restarted.features(one(1, 2, 30.0, 10**18 + 2 * 10**9))[0][3] == 3


def test_a_store_that_is_away_says_so(
    sqlite_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = OnlineFeatures(sqlite_store)

    def fails(*_: Any) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(sqlite_store.provider, "online_read", fails)
    with pytest.raises(StoreUnavailableError, match="disk I/O error"):
        online.features(one(1, 2, 10.0, 10**18))


def test_loading_tells_its_progress_and_an_empty_table_is_nothing(sqlite_store: Any) -> None:
    table = dense_table(days=3, per_day=50, cards=10, terminals=5, seed=1)
    told: list[tuple[int, int]] = []
    online = OnlineFeatures(sqlite_store)
    online.load_state(table.slice(0, 0))
    online.load_state(table, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (15, 15)
