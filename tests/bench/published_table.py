"""The published transactions as a training table: daily files, features by the project's kernel."""

from __future__ import annotations

from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from features import windows
from features.contracts import TRAINING_SCHEMA

FIRST_DAY = date(2018, 4, 1)
COLUMNS = {
    "transaction_id": "TRANSACTION_ID",
    "customer_id": "CUSTOMER_ID",
    "terminal_id": "TERMINAL_ID",
    "is_fraud": "TX_FRAUD",
    "fraud_scenario": "TX_FRAUD_SCENARIO",
    "amount": "TX_AMOUNT",
}


def write_published_days(published: Path, folder: Path) -> Path:
    """Write ``<folder>/<YYYY-MM-DD>.parquet`` for every day of the published file."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = pq.read_table(published)
    table = training_table(whole)
    days = whole["TX_TIME_DAYS"].to_numpy()
    cuts = np.searchsorted(days, np.arange(days[-1] + 2))
    for day, (start, end) in enumerate(pairwise(cuts)):
        path = folder / f"{FIRST_DAY + timedelta(days=day)}.parquet"
        pq.write_table(table.slice(start, end - start), path)
    return folder


def training_table(published: pa.Table) -> pa.Table:
    """Return the published rows with their fifteen features, as ``TRAINING_SCHEMA``."""
    second = published["TX_TIME_SECONDS"].to_numpy() + np.datetime64(FIRST_DAY, "s").astype(int)
    columns = {name: published[source] for name, source in COLUMNS.items()}
    columns["event_time"] = (second * 1_000_000 + _ordinal(second)).astype("datetime64[us]")
    customer, terminal = _tensor(published, "CUSTOMER_ID"), _tensor(published, "TERMINAL_ID")
    cents = windows.to_cents(torch.tensor(published["TX_AMOUNT"].to_numpy()))
    fraud, when = _tensor(published, "TX_FRAUD"), torch.from_numpy(second)
    for features in (
        windows.calendar(when),
        windows.customer_windows(customer, when, cents),
        windows.terminal_windows(terminal, when, fraud),
    ):
        columns.update({name: value.numpy() for name, value in features.items()})
    return pa.table({name: columns[name] for name in TRAINING_SCHEMA.names}).cast(TRAINING_SCHEMA)


def _tensor(published: pa.Table, name: str) -> torch.Tensor:
    return torch.from_numpy(published[name].to_numpy().astype(np.int64))


def _ordinal(second: np.ndarray) -> np.ndarray:
    """Place of each row among the rows of its second."""
    index = np.arange(len(second))
    begins = np.r_[True, second[1:] != second[:-1]]
    return index - np.maximum.accumulate(np.where(begins, index, 0))
