"""Packed event lists against a slow and obvious list of Python tuples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features import events

HOUR = events.HOUR_NS
PAYMENT = st.tuples(st.integers(0, 6), st.integers(0, 3), st.integers(0, 2))


def grown(payments: list[tuple[int, int, int]]) -> bytes:
    packed = b""
    for time_ns, cents, other in payments:
        packed, _ = events.insert(packed, time_ns, cents, other)
    return packed


def as_tuples(packed: bytes) -> list[tuple[int, int, int]]:
    return [(int(e["time_ns"]), int(e["cents"]), int(e["other"])) for e in events.unpack(packed)]


@given(st.lists(PAYMENT, max_size=20))
def test_inserted_in_time_then_arrival_and_once(payments: list[tuple[int, int, int]]) -> None:
    expected = sorted(dict.fromkeys(payments), key=lambda payment: payment[0])
    assert as_tuples(grown(payments)) == expected


@given(st.lists(PAYMENT, min_size=1, max_size=20))
def test_insert_says_where_the_payment_stands(payments: list[tuple[int, int, int]]) -> None:
    packed = b""
    for payment in payments:
        packed, row = events.insert(packed, *payment)
        assert as_tuples(packed)[row] == payment


@given(st.lists(PAYMENT, min_size=1, max_size=20), st.data())
def test_a_label_finds_its_payment_and_no_other(
    payments: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    packed = grown(payments)
    wanted = data.draw(PAYMENT)
    labelled, found = events.set_label(packed, *wanted, is_fraud=True)
    assert found == (wanted in payments)
    frauds = events.unpack(labelled)["frauds"].tolist()
    expected = [1 if payment == wanted else events.UNKNOWN for payment in as_tuples(packed)]
    assert frauds == expected
    assert events.set_label(labelled, *wanted, is_fraud=True) == (labelled, found)


def test_trim_drops_what_lies_before_the_horizon_and_counts_the_unlabelled() -> None:
    packed = grown([(time_ns, 1, 1) for time_ns in (0, 10, 20, 30, 130)])
    packed, _ = events.set_label(packed, 10, 1, 1, is_fraud=False)
    kept, unlabelled = events.trim(packed, horizon_ns=100)
    assert [time_ns for time_ns, _, _ in as_tuples(kept)] == [30, 130]
    assert unlabelled == 2
    assert events.trim(kept, horizon_ns=100) == (kept, 0)


@given(st.integers(0, 2**32), st.integers(60, 300))
def test_folding_keeps_counts_frauds_and_the_newest_events(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    time_ns = np.sort(random.integers(0, 40 * HOUR, size=n))
    label = random.integers(-1, 2, size=n)
    cents, other = random.integers(0, 9, size=n), random.integers(0, 9, size=n)
    packed, _ = events.trim(events.pack(time_ns, cents, other, label), 1000 * HOUR, max_events=50)
    records = events.unpack(packed)
    assert records["count"].sum() == n
    assert records["cents"].sum() == cents.sum()
    assert np.maximum(records["frauds"], 0).sum() == (label == 1).sum()
    assert np.all(np.diff(records["time_ns"]) >= 0)
    assert np.array_equal(records["time_ns"][-25:], time_ns[-25:])
    buckets = records[records["other"] == events.BUCKET]
    for bucket in buckets:
        assert bucket["time_ns"] in time_ns
        assert bucket["time_ns"] // HOUR in time_ns // HOUR


def test_a_label_of_a_folded_payment_counts_in_its_hour() -> None:
    times = np.arange(100, dtype=np.int64) * (HOUR // 10)
    ones = np.ones(100, dtype=np.int64)
    packed, _ = events.trim(events.pack(times, ones, ones, -ones), 1000 * HOUR, max_events=20)
    labelled, found = events.set_label(packed, int(times[13]), 1, 1, is_fraud=True)
    assert found
    changed = events.unpack(labelled)["frauds"] != events.unpack(packed)["frauds"]
    assert np.flatnonzero(changed).tolist() == [1]


@pytest.mark.parametrize("time_ns", [-1, 5, 2**62])
def test_a_label_for_nothing_is_not_found(time_ns: int) -> None:
    assert events.set_label(grown([(1, 2, 3)]), time_ns, 2, 3, is_fraud=True)[1] is False
    assert events.set_label(b"", time_ns, 2, 3, is_fraud=True) == (b"", False)
