"""The point-in-time join: for each entity row, each history's row that was current at its time.

Current is, of the rows with the same keys that are no later than the entity row and no older than
the history's time to live (both ends included), the latest; of several at that time the one created
last, and after that the one that stands last. Where there is none the features are null.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import polars as pl

ROW, NOW, TIME, CREATED, RANK = "__row", "__now", "__time", "__created", "__rank"
TICK = timedelta(microseconds=1)
"""Python's shortest time; a column may hold nanoseconds, so bounds are widened by it."""


@dataclass(frozen=True, kw_only=True)
class History:
    """The rows of one feature view, and what is what among their columns."""

    rows: pl.LazyFrame
    entity_keys: tuple[str, ...]
    """The keys' names in the entity rows, in the order of ``keys``; none for a global history."""
    keys: tuple[str, ...]
    time: str
    created: str | None
    features: dict[str, str]
    """Each column that is wanted, and its name in the answer."""
    ttl: timedelta | None


def check_names(entities: pl.DataFrame, histories: Sequence[History]) -> None:
    """Raise ValueError for a missing key, or for a name that would be in the answer twice."""
    taken = set(entities.columns)
    for history in histories:
        missing = [name for name in history.entity_keys if name not in entities.columns]
        if missing:
            raise ValueError(f"entity rows lack the key {missing}: they have {entities.columns}")
        twice = sorted(taken & set(history.features.values()))
        if twice:
            raise ValueError(
                f"{twice} would be in the answer twice: leave it out of the entity rows, or ask "
                "for full feature names"
            )
        taken |= set(history.features.values())


def as_utc(name: str, schema: pl.Schema) -> pl.Expr:
    """The column of times ``name`` in UTC; one without a zone is taken for UTC."""
    kind = schema[name]
    if not isinstance(kind, pl.Datetime):
        raise ValueError(f"the column {name} is {kind}, and should be a time stamp")
    times = pl.col(name).dt
    return times.convert_time_zone("UTC") if kind.time_zone else times.replace_time_zone("UTC")


def join_asof(
    entities: pl.DataFrame, time: str, histories: Sequence[History], *, known_then: bool = False
) -> pl.DataFrame:
    """Entity rows, in their order, with the features of each history; ``time`` comes back in UTC.

    ``known_then`` also leaves out rows that were created after the entity row's time.
    """
    rows = (
        entities.with_columns(as_utc(time, entities.schema))
        .with_columns(_nanoseconds(pl.col(time), NOW))
        .with_row_index(ROW)
        .sort(NOW, maintain_order=True)
    )
    for history in histories:
        rows = _join_one(rows, history, known_then=known_then and history.created is not None)
    return rows.sort(ROW).drop(ROW, NOW)


def _nanoseconds(times: pl.Expr, name: str) -> pl.Expr:
    return times.dt.cast_time_unit("ns").alias(name)


def _join_one(rows: pl.DataFrame, history: History, *, known_then: bool) -> pl.DataFrame:
    past = _past(rows, history)
    schema = past.collect_schema()
    keys = _keys(history)
    left = rows.lazy().with_columns(
        # An id that does not fit the history's type cannot be in it: null, which meets nothing.
        pl.col(name).cast(schema[key], strict=False).alias(key)
        for name, key in zip(history.entity_keys, keys, strict=True)
    )
    joined = (_join_known if known_then else _join_latest)(left, past, keys)
    names = list(history.features.values())
    if history.ttl is not None:
        alive = pl.col(TIME) >= pl.col(NOW) - pl.lit(history.ttl, dtype=pl.Duration("us"))
        joined = joined.with_columns(pl.when(alive).then(pl.col(names)))
    return joined.select(*rows.columns, *names).collect()


def _keys(history: History) -> list[str]:
    return [f"__key_{number}" for number in range(len(history.keys))]


def _past(rows: pl.DataFrame, history: History) -> pl.LazyFrame:
    """The rows that any entity row could need, oldest first, under names of our own."""
    schema = history.rows.collect_schema()
    columns = [
        *(pl.col(name).alias(key) for name, key in zip(history.keys, _keys(history), strict=True)),
        _nanoseconds(as_utc(history.time, schema), TIME),
        *([_nanoseconds(as_utc(history.created, schema), CREATED)] if history.created else []),
        *(pl.col(name).alias(as_name) for name, as_name in history.features.items()),
    ]
    order = [TIME, CREATED] if history.created else [TIME]
    return (
        history.rows.filter(_near(rows, history, schema))
        .select(columns)
        .drop_nulls([*_keys(history), TIME])
        .sort(order, nulls_last=False, maintain_order=True)
    )


def _near(rows: pl.DataFrame, history: History, schema: pl.Schema) -> pl.Expr:
    """Rows of about the right time, said so that Parquet's row groups can be skipped by it."""
    first, last = rows[NOW].min(), rows[NOW].max()
    if not isinstance(first, datetime) or not isinstance(last, datetime):
        return pl.lit(False)
    near = pl.col(history.time) <= _literal(last + TICK, schema[history.time])
    reach = (history.ttl or timedelta.max - TICK) + TICK
    if reach < first - datetime.min.replace(tzinfo=UTC):
        near &= pl.col(history.time) >= _literal(first - reach, schema[history.time])
    return near


def _literal(moment: datetime, kind: pl.DataType) -> pl.Expr:
    zone = kind.time_zone if isinstance(kind, pl.Datetime) else None
    literal = pl.lit(moment.replace(tzinfo=None), dtype=pl.Datetime("us")).dt
    return (
        literal.replace_time_zone("UTC").dt.convert_time_zone(zone)
        if zone
        else (literal.replace_time_zone(None))
    )


def _join_latest(left: pl.LazyFrame, past: pl.LazyFrame, keys: list[str]) -> pl.LazyFrame:
    return _asof(left, past, TIME, keys)


def _join_known(left: pl.LazyFrame, past: pl.LazyFrame, keys: list[str]) -> pl.LazyFrame:
    """As ``_join_latest``, over what had been created: rows count from the time they were known.

    Ranked by time and creation, the current row is the highest rank among those known so far.
    """
    ranked = past.drop_nulls(CREATED).with_row_index(RANK).collect().lazy()
    highest = pl.col(RANK).cum_max()
    known = (
        ranked.select(*keys, RANK, pl.max_horizontal(TIME, CREATED).alias("__known"))
        .sort("__known", maintain_order=True)
        .with_columns(highest.over(keys) if keys else highest)
    )
    found = _asof(left, known, "__known", keys)
    return found.join(ranked.drop(keys), on=RANK, how="left", maintain_order="left")


def _asof(left: pl.LazyFrame, right: pl.LazyFrame, on: str, keys: list[str]) -> pl.LazyFrame:
    return left.join_asof(
        right,
        left_on=NOW,
        right_on=on,
        by=keys or None,
        strategy="backward",
        coalesce=False,
        check_sortedness=False,
    )
