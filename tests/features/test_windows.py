"""The kernel against the slow and obvious reference, bit for bit."""

from __future__ import annotations

import datetime as dt
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.contracts import CUSTOMER_FEATURES, FEATURES, TERMINAL_FEATURES
from features.windows import (
    assemble,
    calendar,
    customer_windows,
    terminal_windows,
    to_cents,
)

_spec = importlib.util.spec_from_file_location(
    "feature_reference", Path(__file__).with_name("reference.py")
)
assert _spec is not None
assert _spec.loader is not None
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

DAY = 86_400
START = 1_522_540_800
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

# Seconds cluster around whole days apart, so that window edges and ties are met often.
moments = st.builds(
    lambda days, off: START + days * DAY + off,
    st.integers(0, 45),
    st.sampled_from([-1, 0, 0, 0, 1, 40_000]),
)
rows_in_order = st.lists(
    st.tuples(st.integers(-2, 3), moments, st.integers(0, 99_999)), max_size=60
).map(lambda rows: sorted(rows, key=lambda row: row[1]))


def columns(rows: Sequence[tuple[int, int, int]], device: str = "cpu") -> list[torch.Tensor]:
    table = torch.tensor(rows, dtype=torch.int64, device=device).reshape(-1, 3)
    return list(table.unbind(1))


def by_key(
    slow: Callable[[np.ndarray], np.ndarray], rows: Sequence[tuple[int, int, int]]
) -> list[tuple[float, ...]]:
    answers = slow(np.array(rows, dtype=np.int64).reshape(-1, 3))
    return [tuple(answer) for answer in answers.tolist()]


def as_rows(features: dict[str, torch.Tensor]) -> list[tuple[float, ...]]:
    return list(zip(*(value.tolist() for value in features.values()), strict=True))


@pytest.mark.parametrize("device", DEVICES)
@given(rows=rows_in_order)
@settings(max_examples=150, deadline=None)
def test_customer_windows_equal_the_scan(rows: list[tuple[int, int, int]], device: str) -> None:
    got = customer_windows(*columns(rows, device))
    assert tuple(got) == CUSTOMER_FEATURES
    wanted = reference.customer_scan(rows)
    assert as_rows(got) == wanted
    assert by_key(reference.customer_by_key, rows) == wanted


@pytest.mark.parametrize("device", DEVICES)
@given(rows=rows_in_order)
@settings(max_examples=150, deadline=None)
def test_terminal_windows_equal_the_scan(rows: list[tuple[int, int, int]], device: str) -> None:
    labelled = [(key, second, value % 2) for key, second, value in rows]
    got = terminal_windows(*columns(labelled, device))
    assert tuple(got) == TERMINAL_FEATURES
    wanted = reference.terminal_scan(labelled)
    assert as_rows(got) == wanted
    assert by_key(reference.terminal_by_key, labelled) == wanted


@given(rows=rows_in_order.filter(bool), data=st.data())
@settings(max_examples=100, deadline=None)
def test_labels_not_yet_known_move_no_terminal_feature(
    rows: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    key, second, value = columns(rows)
    asked = data.draw(st.integers(0, len(rows) - 1))
    unknown = second > second[asked] - 7 * DAY
    changed = torch.where(unknown, 1 - value % 2, value % 2)
    before, after = (terminal_windows(key, second, label) for label in (value % 2, changed))
    for name in TERMINAL_FEATURES:
        assert before[name][asked] == after[name][asked], name


def test_a_label_counts_from_the_second_that_it_is_seven_days_old() -> None:
    second = torch.tensor([START, START + 7 * DAY - 1, START + 7 * DAY, START + 7 * DAY])
    key = torch.zeros(4, dtype=torch.int64)
    for fraud in (0, 1):
        label = torch.tensor([fraud, 0, 0, 0])
        share = terminal_windows(key, second, label)["terminal_fraud_rate_1d"]
        assert share.tolist() == [0.0, 0.0, fraud, fraud]


def test_rows_of_one_second_see_the_rows_before_them() -> None:
    key = torch.zeros(3, dtype=torch.int64)
    got = customer_windows(key, torch.full((3,), START), torch.tensor([100, 300, 500]))
    assert got["customer_count_1d"].tolist() == [1, 2, 3]
    assert got["customer_mean_amount_1d"].tolist() == [1.0, 2.0, 3.0]


@given(
    seconds=st.lists(st.integers(-(10**9), 4 * 10**9), min_size=1),
)
def test_calendar_equals_datetime(seconds: list[int]) -> None:
    got = calendar(torch.tensor(seconds))
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    times = [epoch + dt.timedelta(seconds=second) for second in seconds]
    assert got["is_weekend"].tolist() == [int(time.weekday() in (5, 6)) for time in times]
    assert got["is_night"].tolist() == [int(time.hour <= 6) for time in times]


def test_cents_of_amounts_that_are_a_little_off() -> None:
    amount = torch.tensor([0.29, 57.16 + 1e-13, 57.16 - 1e-13, 1e9 + 0.01], dtype=torch.float64)
    assert to_cents(amount).tolist() == [29, 5716, 5716, 100_000_000_001]


def test_assemble_keeps_the_order_of_the_features() -> None:
    n = 2
    customer = {name: torch.full((n,), 10 + i) for i, name in enumerate(CUSTOMER_FEATURES)}
    terminal = {name: torch.full((n,), 20 + i) for i, name in enumerate(TERMINAL_FEATURES)}
    saturday_2_am = torch.tensor([1_533_348_000, 1_533_348_000])
    table = assemble(
        torch.tensor([1.5, 2.5], dtype=torch.float64), saturday_2_am, customer, terminal
    )
    assert table.shape == (n, len(FEATURES))
    assert table.dtype == torch.float64
    assert table[1].tolist() == [2.5, 1, 1, *range(10, 16), *range(20, 26)]


@pytest.mark.needs("handbook")
def test_the_published_table_exactly(handbook: Path) -> None:
    table = pq.read_table(handbook)
    second = table["TX_TIME_SECONDS"].to_numpy() + START
    cents = np.rint(table["TX_AMOUNT"].to_numpy() * 100).astype(np.int64)
    assert (to_cents(torch.from_numpy(table["TX_AMOUNT"].to_numpy().copy())).numpy() == cents).all()
    for kernel, slow, key_name, value in (
        (customer_windows, reference.customer_by_key, "CUSTOMER_ID", cents),
        (terminal_windows, reference.terminal_by_key, "TERMINAL_ID", table["TX_FRAUD"].to_numpy()),
    ):
        key = table[key_name].to_numpy()
        tensors = [torch.from_numpy(np.array(column)) for column in (key, second, value)]
        got = kernel(*tensors)
        wanted = slow(np.stack([key, second, value], axis=1).astype(np.int64))
        for name, expected in zip(got, wanted.T, strict=True):
            assert (got[name].numpy() == expected).all(), name
        if kernel is customer_windows:
            assert got["customer_count_30d"].max() == 157
