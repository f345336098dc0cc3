"""What makes a raw row a transaction: one rule per column, and a reason for each row that fails.

A rule turns a column as read, of whatever type, into the type it should have. Rows are judged on
their own here; whether an id was seen before is asked later, of the rows that are sound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.data.schema import TRANSACTIONS

Flags = NDArray[np.bool_]

EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)
END = datetime(2100, 1, 1, tzinfo=UTC)
"""Payments lie between these: times such as 0 or a year 9999 stand for "unknown"."""
AMOUNT_LIMIT = 1e12
"""Above it the sum of a month in int64 cents could overflow."""
EXACT_FLOAT = 2.0**53
DUPLICATE = "transaction_id was seen before"
MALFORMED = "line has too many or too few fields"

TIME = r"^\s*(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(\.\d+)?\s*(Z|[+-]\d\d:?\d\d)?\s*$"
UNITS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column after its rule: ``values`` [n], flags for each fault [n], and remarks.

    Where a fault's flag is set, or the value is missing, ``values`` holds anything.
    """

    values: NDArray[Any]
    empty: Flags
    faults: list[tuple[str, Flags]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A raw table's rows after all rules: sound where ``reason`` is 0, else ``reasons[reason]``.

    ``columns`` [n] each, in the types of ``TRANSACTIONS``; event_time is in whole seconds since
    1970, UTC.
    """

    columns: dict[str, NDArray[Any]]
    reason: NDArray[np.int16]
    reasons: list[str]
    notes: tuple[str, ...]

    @property
    def sound(self) -> Flags:
        return np.asarray(self.reason == 0)


def judge(table: pa.Table) -> Judged:
    """Apply the rules to a table as read. A row's reason is the first, in the order of columns.

    A missing column is every row's reason; a column that is not a transaction's is a note.
    """
    reason = np.zeros(table.num_rows, np.int16)
    reasons, notes = [""], []
    columns: dict[str, NDArray[Any]] = {}
    missing = [name for name in TRANSACTIONS.names if name not in table.column_names]
    if missing:
        return Judged(
            columns={},
            reason=np.ones(table.num_rows, np.int16),
            reasons=["", f"column {', '.join(missing)} is missing"],
            notes=(),
        )
    for name in table.column_names:
        if name not in RULES:
            notes.append(f"column {name} is not used")
    for name, rule in RULES.items():
        column = rule(_one_array(table[name]))
        faults = [("is empty", column.empty), *column.faults]
        for text, flags in faults:
            reason[(reason == 0) & flags] = len(reasons)
            reasons.append(f"{name} {text}")
        columns[name] = column.values
        notes += [f"{name} {note}" for note in column.notes]
    return Judged(columns=columns, reason=reason, reasons=reasons, notes=tuple(notes))


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _empty(array: pa.Array) -> Flags:
    return np.asarray(pc.is_null(array).to_numpy(zero_copy_only=False))


def _is_text(array: pa.Array) -> bool:
    return bool(
        pa.types.is_string(array.type)
        or pa.types.is_large_string(array.type)
        or pa.types.is_string_view(array.type)
    )


def _text(array: pa.Array) -> pl.Series:
    return pl.Series(pl.from_arrow(array), dtype=pl.String).str.strip_chars()


def _floats(array: pa.Array) -> tuple[NDArray[np.float64], Flags]:
    """Return numbers and where there is one."""
    kind = array.type
    if _is_text(array):
        parsed = _text(array).cast(pl.Float64, strict=False)
        return parsed.fill_null(0.0).to_numpy(), parsed.is_not_null().to_numpy()
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        values = pc.fill_null(array.cast(pa.float64(), safe=False), 0.0)
        return values.to_numpy(zero_copy_only=False), ~_empty(array)
    return np.zeros(len(array)), np.zeros(len(array), np.bool_)


def _wholes(array: pa.Array) -> tuple[NDArray[np.int64], Flags]:
    """Return whole numbers and where there is one that int64 can hold."""
    kind = array.type
    if pa.types.is_boolean(kind) or (pa.types.is_integer(kind) and kind != pa.uint64()):
        values = pc.fill_null(array.cast(pa.int64()), 0)
        return values.to_numpy(zero_copy_only=False), ~_empty(array)
    floats, there = _floats(array)
    with np.errstate(invalid="ignore"):
        there &= (np.abs(floats) <= EXACT_FLOAT) & (floats == np.floor(floats))
    wholes = np.where(there, floats, 0.0).astype(np.int64)
    if _is_text(array) or kind == pa.uint64():
        # Numbers past 2^53 are exact in text, and no longer as a float.
        exact = pl.Series(_text(array) if _is_text(array) else pl.from_arrow(array)).cast(
            pl.Int64, strict=False
        )
        whole = exact.is_not_null().to_numpy()
        wholes = np.where(whole, exact.fill_null(0).to_numpy(), wholes)
        there |= whole
    return wholes, there


def _key(array: pa.Array) -> Column:
    values, there = _wholes(array)
    empty = _empty(array)
    return Column(
        values=values,
        empty=empty,
        faults=[("is not a whole number", ~there & ~empty), ("is below 0", there & (values < 0))],
    )


def _within(first: int, last: int) -> Callable[[pa.Array], Column]:
    def rule(array: pa.Array) -> Column:
        values, there = _wholes(array)
        outside = ~there | (values < first) | (values > last)
        empty = _empty(array)
        return Column(
            values=np.where(outside, 0, values).astype(np.int8),
            empty=empty,
            faults=[(f"is not {first} to {last}", outside & ~empty)],
        )

    return rule


def _amount(array: pa.Array) -> Column:
    values, there = _floats(array)
    empty = _empty(array)
    return Column(
        values=values,
        empty=empty,
        faults=[
            ("is not a number", (~there & ~empty) | np.isnan(values)),
            ("is infinite", np.isinf(values)),
            ("is below 0", values < 0),
            (f"is above {AMOUNT_LIMIT:g}", values > AMOUNT_LIMIT),
        ],
    )


def _event_time(array: pa.Array) -> Column:
    """Times with a zone become UTC, those without are UTC; fractions of a second are cut."""
    empty = _empty(array)
    if _is_text(array):
        seconds, there, fractions, zones = _parse_times(array)
    elif pa.types.is_timestamp(array.type):
        per_second = UNITS_PER_SECOND[array.type.unit]
        ticks = pc.fill_null(array.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
        seconds, there = ticks // per_second, ~empty
        fractions = bool(np.any(ticks % per_second))
        zones = array.type.tz not in {None, "UTC"}
    else:
        seconds, there = np.zeros(len(array), np.int64), np.zeros(len(array), np.bool_)
        fractions = zones = False
    outside = (seconds < int(EARLIEST.timestamp())) | (seconds >= int(END.timestamp()))
    return Column(
        values=seconds,
        empty=empty,
        faults=[
            ("is not a time", ~there & ~empty),
            (f"is not in {EARLIEST.year} to {END.year - 1}", there & outside),
        ],
        notes=tuple(
            note
            for seen, note in (
                (zones, "was in another time zone, now UTC"),
                (fractions, "had fractions of a second, now cut"),
            )
            if seen
        ),
    )


def _parse_times(array: pa.Array) -> tuple[NDArray[np.int64], Flags, bool, bool]:
    """Return seconds since 1970 UTC, where there is a time, and if any has fractions or a zone."""
    parts = pl.DataFrame({"text": pl.Series(pl.from_arrow(array), dtype=pl.String)}).select(
        time=pl.concat_str(
            [pl.col("text").str.extract(TIME, 1), pl.col("text").str.extract(TIME, 2)],
            separator=" ",
        ).str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us", strict=False),
        fraction=pl.col("text").str.extract(TIME, 3),
        zone=pl.col("text").str.extract(TIME, 4).str.replace(":", "", literal=True),
    )
    zone = pl.col("zone")
    ahead = (zone.str.slice(1, 2).cast(pl.Int64, strict=False) * 3600).fill_null(0) + (
        zone.str.slice(3, 2).cast(pl.Int64, strict=False) * 60
    ).fill_null(0)
    signed = pl.when(zone.str.starts_with("-")).then(-ahead).otherwise(ahead)
    done = parts.select(
        seconds=(pl.col("time").dt.epoch("s") - signed).fill_null(0),
        there=pl.col("time").is_not_null(),
    )
    fractions = parts["fraction"].str.contains("[1-9]").fill_null(value=False).any()
    zones = (~parts["zone"].is_in(["Z", "+0000", "-0000"])).fill_null(value=False).any()
    return done["seconds"].to_numpy(), done["there"].to_numpy(), bool(fractions), bool(zones)


RULES: dict[str, Callable[[pa.Array], Column]] = {
    "transaction_id": _key,
    "event_time": _event_time,
    "customer_id": _key,
    "terminal_id": _key,
    "amount": _amount,
    "is_fraud": _within(0, 1),
    "fraud_scenario": _within(0, 127),
}
