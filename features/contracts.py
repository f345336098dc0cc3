"""What the feature tables are: names, order, types, and the times and rules behind them."""

from __future__ import annotations

import pyarrow as pa

DAY_S = 86_400
WINDOW_DAYS = (1, 7, 30)
LABEL_DELAY_DAYS = 7
"""A transaction's label is known seven days after it: no terminal window reaches any later."""

CUSTOMER_FEATURES = (
    *(f"customer_count_{days}d" for days in WINDOW_DAYS),
    *(f"customer_mean_amount_{days}d" for days in WINDOW_DAYS),
)
TERMINAL_FEATURES = (
    *(f"terminal_count_{days}d" for days in WINDOW_DAYS),
    *(f"terminal_fraud_rate_{days}d" for days in WINDOW_DAYS),
)
CALENDAR_FEATURES = ("is_weekend", "is_night")
FEATURES = ("amount", *CALENDAR_FEATURES, *CUSTOMER_FEATURES, *TERMINAL_FEATURES)
"""The fifteen, in the order of a model's input columns."""

EVENT_TIME = pa.timestamp("us")
"""UTC without a zone. The microseconds are the row's ordinal within its second, not a time."""

TRANSACTION_SCHEMA = pa.schema(
    {
        "transaction_id": pa.int64(),
        "event_time": EVENT_TIME,
        "customer_id": pa.int64(),
        "terminal_id": pa.int64(),
        "amount": pa.float64(),
        "is_fraud": pa.int8(),
        "fraud_scenario": pa.int8(),
    }
)
"""A clean daily file, in order of ``event_time``."""


def _window_fields(names: tuple[str, ...]) -> list[pa.Field]:
    return [pa.field(name, pa.int32() if "_count_" in name else pa.float64()) for name in names]


CUSTOMER_SCHEMA = pa.schema(
    [
        pa.field("customer_id", pa.int64()),
        pa.field("event_time", EVENT_TIME),
        *_window_fields(CUSTOMER_FEATURES),
    ]
)
TERMINAL_SCHEMA = pa.schema(
    [
        pa.field("terminal_id", pa.int64()),
        pa.field("event_time", EVENT_TIME),
        *_window_fields(TERMINAL_FEATURES),
    ]
)
TRAINING_SCHEMA = pa.schema(
    [
        *(TRANSACTION_SCHEMA.field(name) for name in ("transaction_id", "event_time")),
        *(TRANSACTION_SCHEMA.field(name) for name in ("customer_id", "terminal_id")),
        *(TRANSACTION_SCHEMA.field(name) for name in ("is_fraud", "fraud_scenario")),
        pa.field("amount", pa.float64()),
        *(pa.field(name, pa.int8()) for name in CALENDAR_FEATURES),
        *_window_fields((*CUSTOMER_FEATURES, *TERMINAL_FEATURES)),
    ]
)
"""A row of the training table: ids, label, and the fifteen features. No column has nulls."""
