"""The point-in-time join against a scan of the whole history for each row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.asof import History, check_names, join_asof

START = datetime(2026, 1, 1)
Past = list[tuple[int | None, int | None, int | None, int]]


def moment(second: int | None) -> datetime | None:
    return None if second is None else START + timedelta(seconds=second)


def scan(
    entities: list[tuple[int | None, int]], past: Past, ttl: int | None, known_then: bool
) -> list[int | None]:
    """Per entity row, the value of the current row of the past: (key, time, created, value)."""
    answer: list[int | None] = []
    for key, now in entities:
        current = [
            (time, -1 if created is None else created, place, value)
            for place, (other, time, created, value) in enumerate(past)
            if other is not None
            and other == key
            and time is not None
            and time <= now
            and (ttl is None or time >= now - ttl)
            and not (known_then and (created is None or created > now))
        ]
        answer.append(max(current)[3] if current else None)
    return answer


def history(past: Past, ttl: int | None, unit: str, zone: str | None) -> History:
    kind = pl.Datetime(unit, zone)  # type: ignore[arg-type]
    rows = pl.DataFrame(
        {
            "id": pl.Series([row[0] for row in past], dtype=pl.Int32),
            "at": pl.Series([moment(row[1]) for row in past], dtype=pl.Datetime(unit)),  # type: ignore[arg-type]
            "made": pl.Series([moment(row[2]) for row in past], dtype=pl.Datetime(unit)),  # type: ignore[arg-type]
            "value": pl.Series([row[3] for row in past], dtype=pl.Int64),
        }
    )
    if zone:
        rows = rows.with_columns(pl.col("at", "made").dt.replace_time_zone("UTC").cast(kind))
    return History(
        rows=rows.lazy(),
        entity_keys=("key",),
        keys=("id",),
        time="at",
        created="made",
        features={"value": "view__value"},
        ttl=None if ttl is None else timedelta(seconds=ttl),
    )


seconds = st.integers(0, 12)
pasts = st.lists(
    st.tuples(
        st.none() | st.integers(0, 2),
        st.none() | seconds,
        st.none() | seconds,
        st.integers(0, 1000),
    ),
    max_size=25,
)
wanted = st.lists(st.tuples(st.none() | st.integers(0, 3), seconds), max_size=15)


@given(
    entities=wanted,
    past=pasts,
    ttl=st.none() | st.integers(1, 8),
    known_then=st.booleans(),
    unit=st.sampled_from(["ms", "us", "ns"]),
    zone=st.sampled_from([None, "UTC", "Asia/Tokyo"]),
)
@settings(max_examples=250, deadline=None)
def test_the_join_equals_the_scan(
    entities: list[tuple[int | None, int]],
    past: Past,
    ttl: int | None,
    known_then: bool,
    unit: str,
    zone: str | None,
) -> None:
    frame = pl.DataFrame(
        {
            "key": pl.Series([key for key, _ in entities], dtype=pl.Int64),
            "now": pl.Series([moment(now) for _, now in entities], dtype=pl.Datetime("us")),
            "kept": list(range(len(entities))),
        }
    )
    got = join_asof(frame, "now", [history(past, ttl, unit, zone)], known_then=known_then)
    assert got.columns == ["key", "now", "kept", "view__value"]
    assert got["kept"].to_list() == list(range(len(entities)))
    assert got["view__value"].to_list() == scan(entities, past, ttl, known_then)


def test_a_history_without_keys_is_everybodys() -> None:
    past = history([(1, 2, 2, 20), (2, 5, 5, 50)], None, "us", None)
    everybody = History(**{**vars(past), "keys": (), "entity_keys": ()})
    frame = pl.DataFrame({"now": [moment(1), moment(4), moment(9)]})
    for known_then in (False, True):
        got = join_asof(frame, "now", [everybody], known_then=known_then)
        assert got["view__value"].to_list() == [None, 20, 50]


def test_times_come_back_in_utc() -> None:
    frame = pl.DataFrame({"key": [1], "now": [moment(3)]})
    got = join_asof(frame, "now", [history([(1, 3, 3, 7)], 1, "ns", None)])
    assert got.row(0) == (1, START.replace(second=3, tzinfo=UTC), 7)


def test_an_id_too_large_for_the_history_meets_nothing() -> None:
    frame = pl.DataFrame({"key": [2**40 + 1, 1], "now": [moment(3)] * 2})
    got = join_asof(frame, "now", [history([(1, 3, 3, 7)], None, "us", None)])
    assert got["view__value"].to_list() == [None, 7]


@pytest.mark.parametrize(
    ("columns", "said"),
    [({"now": [START]}, "lack the key"), ({"key": [1], "view__value": [1]}, "answer twice")],
)
def test_names_that_cannot_be(columns: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_names(pl.DataFrame(columns), [history([], None, "us", None)])


def test_a_time_that_is_none() -> None:
    frame = pl.DataFrame({"key": [1], "now": [3]})
    with pytest.raises(ValueError, match="now is Int64"):
        join_asof(frame, "now", [history([], None, "us", None)])
