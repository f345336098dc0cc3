"""Daily files into arrays: the values, the order, and what is said when days are missing."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from features.contracts import FEATURES
from training.batches import DayTable, day_number


def test_every_value_of_every_column_arrives_in_its_place(generated: DayTable, handle) -> None:
    start = generated.days()[3]
    rows = generated.read(start, 3, handle)
    files = [generated.folder / f"{start + timedelta(days=offset)}.parquet" for offset in range(3)]
    whole = pa.concat_tables([pq.read_table(file) for file in files])
    assert rows.features.dtype == np.float32
    assert rows.features.shape == (1800, 15)
    for index, name in enumerate(FEATURES):
        expected = whole[name].to_numpy().astype(np.float32)
        np.testing.assert_array_equal(rows.features[:, index], expected, err_msg=name)
    for name in ("transaction_id", "customer_id", "fraud_scenario", "is_fraud"):
        np.testing.assert_array_equal(getattr(rows, name), whole[name].to_numpy(), err_msg=name)
    assert rows.day.tolist() == [
        day_number(start) + offset for offset in range(3) for _ in range(600)
    ]
    assert handle.phases == ["data_wait"]


def test_the_matrix_becomes_a_tensor_without_a_copy(generated: DayTable, handle) -> None:
    rows = generated.read(generated.days()[0], 1, handle)
    tensor = torch.from_numpy(rows.features)
    assert tensor.data_ptr() == rows.features.ctypes.data


def test_ids_and_labels_can_be_read_alone(generated: DayTable, handle) -> None:
    rows = generated.read(generated.days()[0], 2, handle, features=False)
    assert rows.features.shape == (1200, 0)
    assert rows.is_fraud.any()


def test_where_keeps_all_columns_together(generated: DayTable, handle) -> None:
    rows = generated.read(generated.days()[0], 1, handle)
    frauds = rows.where(rows.is_fraud)
    assert len(frauds) == rows.is_fraud.sum() > 0
    assert frauds.is_fraud.all()
    np.testing.assert_array_equal(frauds.features, rows.features[rows.is_fraud])


def test_missing_days_are_named(generated: DayTable, handle, tmp_path: Path) -> None:
    last = generated.days()[-1]
    with pytest.raises(
        ValueError, match=f"lacks 2 of the 3 days .* first {last + timedelta(days=1)}"
    ):
        generated.read(last, 3, handle)
    with pytest.raises(ValueError, match="it is empty"):
        DayTable(folder=tmp_path).read(date(2018, 1, 1), 1, handle)


def test_a_null_is_refused_and_not_taken_for_a_number(
    generated: DayTable, handle, tmp_path: Path
) -> None:
    day = generated.days()[0]
    table = pq.read_table(generated.folder / f"{day}.parquet")
    column = pa.array([None, *table["amount"].to_pylist()[1:]], pa.float64())
    index = table.schema.get_field_index("amount")
    pq.write_table(table.set_column(index, "amount", column), tmp_path / f"{day}.parquet")
    with pytest.raises(ValueError, match=r"amount .* no nulls, not 1"):
        DayTable(folder=tmp_path).read(day, 1, handle)
