"""Import of published data, and a reader of pickles that runs no stranger's code."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.handbook import import_published, write_single
from pipeline.data.schema import TRANSACTIONS, day_files
from pipeline.data.tablepickle import ADMITTED, read_table_pickle

ROWS = 50


def published_day(day: int, rows: int = ROWS) -> pd.DataFrame:
    """A day in the columns and types of the published pickles: ids are Python objects there."""
    random = np.random.default_rng(day)
    seconds = np.sort(random.integers(0, 86_400, rows)) + day * 86_400
    return pd.DataFrame(
        {
            "TRANSACTION_ID": np.arange(rows) + day * rows,
            "TX_DATETIME": pd.Timestamp("2018-04-01") + pd.to_timedelta(seconds, unit="s"),
            "CUSTOMER_ID": pd.Series(random.integers(0, 99, rows).tolist(), dtype=object),
            "TERMINAL_ID": pd.Series(list(random.integers(0, 99, rows)), dtype=object),
            "TX_AMOUNT": random.random(rows) * 100,
            "TX_TIME_SECONDS": pd.Series(seconds.tolist(), dtype=object),
            "TX_TIME_DAYS": pd.Series([day] * rows, dtype=object),
            "TX_FRAUD": (random.random(rows) < 0.1).astype(np.int64),
            "TX_FRAUD_SCENARIO": np.zeros(rows, np.int64),
        }
    )


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_daily_pickles_of_any_protocol_are_imported(protocol: int, tmp_path: Path) -> None:
    source = tmp_path / "pickles"
    source.mkdir()
    days = [published_day(day) for day in range(3)]
    for number, frame in enumerate(days, 1):
        frame.to_pickle(source / f"2018-04-0{number}.pkl", protocol=protocol)
    told: list[tuple[int, int]] = []
    report = import_published(source, tmp_path / "raw", lambda *done: told.append(done))
    files = day_files(tmp_path / "raw")
    assert [path.name for path in files] == [f"2018-04-0{day}.parquet" for day in (1, 2, 3)]
    assert told == [(1, 3), (2, 3), (3, 3)]
    table = pa.concat_tables([pq.read_table(path) for path in files])
    assert table.schema.equals(TRANSACTIONS)
    whole = pd.concat(days, ignore_index=True)
    assert table["transaction_id"].to_pylist() == whole.TRANSACTION_ID.tolist()
    assert table["event_time"].to_pylist() == whole.TX_DATETIME.tolist()
    assert table["customer_id"].to_pylist() == whole.CUSTOMER_ID.tolist()
    assert table["terminal_id"].to_pylist() == whole.TERMINAL_ID.tolist()
    assert table["amount"].to_pylist() == whole.TX_AMOUNT.tolist()
    assert (report.rows, report.files) == (3 * ROWS, 3)
    assert report.frauds == whole.TX_FRAUD.sum() > 0
    assert report.bytes == sum(path.stat().st_size for path in files)
    assert report.bytes_in == sum(path.stat().st_size for path in source.iterdir())


@pytest.mark.parametrize("index", ["range", "int", "datetime"])
def test_a_table_of_old_names_is_read(index: str, tmp_path: Path) -> None:
    frame = published_day(0)
    if index == "int":
        frame.index = pd.Index(np.arange(ROWS) * 2 + 7)
    if index == "datetime":
        frame.index = pd.DatetimeIndex(frame.TX_DATETIME.to_numpy())
    buffer = io.BytesIO()
    pickle.Pickler(buffer, protocol=2).dump(frame)
    new = buffer.getvalue()
    assert b"numpy._core." in new
    old = new.replace(b"numpy._core.", b"numpy.core.")
    if index == "int":
        old = old.replace(
            b"cpandas.core.indexes.base\nIndex\n", b"cpandas.core.indexes.numeric\nInt64Index\n"
        )
        assert b"Int64Index" in old
    path = tmp_path / "day.pkl"
    path.write_bytes(old)
    pd.testing.assert_frame_equal(read_table_pickle(path), frame)


def old_state_pickle(frame: pd.DataFrame) -> bytes:
    """The same table as pandas 1.0 wrote it: a BlockManager made empty, then given its state."""
    manager = frame._mgr
    axes = list(manager.axes)
    blocks = [
        {
            "values": block.values.view("M8[ns]") if block.dtype.kind == "M" else block.values,
            "mgr_locs": block.mgr_locs.indexer,
        }
        for block in manager.blocks
    ]
    for block in blocks:
        block["values"] = np.asarray(block["values"])
    state = (axes, [b["values"] for b in blocks], [], {"0.14.1": {"axes": axes, "blocks": blocks}})
    inside = pickle.dumps(state, protocol=2)[2:-1]
    # Opcodes: a DataFrame made by NEWOBJ, its state {"_data": manager}; protocol 2's memo numbers
    # of the inner pickle stay valid, because nothing else here uses the memo.
    return (
        b"\x80\x02cpandas.core.frame\nDataFrame\n)\x81}X\x05\x00\x00\x00_data"
        + b"cpandas.core.internals.managers\nBlockManager\n)\x81"
        + inside.replace(b"numpy._core.", b"numpy.core.")
        + b"bsX\x04\x00\x00\x00_typX\x09\x00\x00\x00dataframesb."
    )


def test_a_table_of_pandas_1_0_is_read(tmp_path: Path) -> None:
    frame = published_day(4)
    path = tmp_path / "2018-04-05.pkl"
    path.write_bytes(old_state_pickle(frame))
    pd.testing.assert_frame_equal(read_table_pickle(path), frame)
    assert import_published(tmp_path, tmp_path / "raw").rows == ROWS


# Hostile pickles


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


class CallsOnState(Calls):
    """Pickles as a call whose result gets a state."""

    def __reduce__(self) -> Any:
        return self.function, self.arguments, {"x": 1}


def hostile(mark: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that would make the file ``mark``, and the name each must fail at."""
    write = f"open({str(mark)!r}, 'w').close()"
    touch = f"touch {mark}"
    frame = published_day(0, 3)
    frame.loc[0, "CUSTOMER_ID"] = Calls(os.system, touch)
    inner = np.array([Calls(os.system, touch), 2], dtype=object)
    raw_global = b"\x80\x02c%s\n%s\nX\x04\x00\x00\x00true\x85R."
    dotted = b"\x80\x04\x8c\x11pandas.core.frame\x8c\x0eDataFrame.eval\x93."
    return {
        "os.system": (pickle.dumps(Calls(os.system, touch)), "posix.system"),
        "eval": (pickle.dumps(Calls(eval, write)), "builtins.eval"),
        "exec": (pickle.dumps(Calls(exec, write)), "builtins.exec"),
        "getattr": (pickle.dumps(Calls(getattr, frame, "eval")), "builtins.getattr"),
        "open": (pickle.dumps(Calls(open, str(mark), "w")), "io.open"),
        "with state": (pickle.dumps(CallsOnState(os.system, touch)), "posix.system"),
        "in a table's cell": (pickle.dumps(frame, protocol=4), "posix.system"),
        "in an array": (pickle.dumps(inner, protocol=2), "posix.system"),
        "numpy.load": (pickle.dumps(Calls(np.load, "x.npy")), "numpy.load"),
        "pandas.read_pickle": (
            pickle.dumps(Calls(pd.read_pickle, "x.pkl")),
            "pandas.io.pickle.read_pickle",
        ),
        "pickle.loads": (pickle.dumps(Calls(pickle.loads, b"")), "_pickle.loads"),
        "subprocess": (raw_global % (b"subprocess", b"getoutput"), "subprocess.getoutput"),
        "importlib": (raw_global % (b"importlib", b"import_module"), "importlib.import_module"),
        "dotted name": (dotted, "pandas.core.frame.DataFrame.eval"),
        "module of an admitted one": (raw_global % (b"numpy", b"os.system"), "numpy.os.system"),
        "codecs": (raw_global % (b"codecs", b"decode"), "codecs.decode"),
    }


NAMES = list(hostile(Path("unused")))


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_pickle_does_not_run(name: str, tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    content, forbidden = hostile(mark)[name]
    path = tmp_path / "2018-04-01.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"2018-04-01\.pkl was not loaded: it names") as caught:
        import_published(tmp_path, tmp_path / "raw")
    assert forbidden in str(caught.value)
    assert not mark.exists()


def test_the_hostile_pickles_are_hostile(tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    for name in ("os.system", "eval", "exec", "in an array"):
        pickle.loads(hostile(mark)[name][0])
        assert mark.exists(), name
        mark.unlink()


def test_bytes_are_spelled_in_latin1_alone(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pkl"
    path.write_bytes(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.")
    with pytest.raises(ValueError, match="only latin1"):
        read_table_pickle(path)


def test_objects_kept_elsewhere_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.pkl"
    path.write_bytes(b"\x80\x02X\x01\x00\x00\x00aQ.")
    with pytest.raises(ValueError, match="outside of it"):
        read_table_pickle(path)


def test_no_admitted_name_can_run_code() -> None:
    """What is admitted makes arrays, tables and indexes; a new name must be looked at here."""
    assert {name for _, name in ADMITTED} == {
        "dtype",
        "ndarray",
        "_reconstruct",
        "scalar",
        "_frombuffer",
        "encode",
        "slice",
        "DataFrame",
        "_unpickle_block",
        "new_block",
        "BlockManager",
        "DatetimeArray",
        "__pyx_unpickle_NDArrayBacked",
        "_new_DatetimeIndex",
        "DatetimeIndex",
        "_new_Index",
        "Index",
        "Int64Index",
        "RangeIndex",
    }


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not a whole pickled table"),
        (b"not a pickle", "not loaded|not a whole"),
        (pickle.dumps(published_day(0))[:-200], "not loaded|not a whole"),
        (pickle.dumps([1, 2]), "holds a list, not a pandas DataFrame"),
        (pickle.dumps(published_day(0).drop(columns="TX_AMOUNT")), "lacks TX_AMOUNT"),
        (
            pickle.dumps(published_day(0).assign(CUSTOMER_ID=["x"] * ROWS)),
            "CUSTOMER_ID is not int64",
        ),
        (
            pickle.dumps(published_day(0).assign(CUSTOMER_ID=[1, "x"] * (ROWS // 2))),
            "CUSTOMER_ID is of mixed types",
        ),
    ],
)
def test_what_is_no_published_table_is_named(content: bytes, match: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=match) as caught:
        import_published(tmp_path, tmp_path / "raw")
    assert "bad.pkl" in str(caught.value)


def test_nothing_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no pickles"):
        import_published(tmp_path, tmp_path / "raw")
    with pytest.raises(FileNotFoundError, match="is not there"):
        import_published(tmp_path / "nowhere", tmp_path / "raw")


# One Parquet file


def test_one_parquet_file_is_imported(tmp_path: Path) -> None:
    whole = pd.concat([published_day(day) for day in range(3)], ignore_index=True)
    numbers = dict.fromkeys(("CUSTOMER_ID", "TERMINAL_ID", "TX_TIME_DAYS"), np.int32)
    whole = whole.astype({**numbers, "TX_TIME_SECONDS": np.int64, "TX_FRAUD": np.int8})
    source = tmp_path / "transactions.parquet"
    whole.to_parquet(source)
    report = import_published(source, tmp_path / "raw")
    assert (report.rows, report.files) == (3 * ROWS, 3)
    assert report.bytes_in == source.stat().st_size

    assert write_single(tmp_path / "raw", tmp_path / "again.parquet") == 3 * ROWS
    again = pd.read_parquet(tmp_path / "again.parquet")
    pd.testing.assert_frame_equal(again[whole.columns], whole, check_dtype=False)


def test_a_parquet_file_that_is_not_the_table_is_named(tmp_path: Path) -> None:
    source = tmp_path / "t.parquet"
    source.write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"t\.parquet is not a readable Parquet file"):
        import_published(source, tmp_path / "raw")
    published_day(0).astype(
        dict.fromkeys(("CUSTOMER_ID", "TERMINAL_ID", "TX_TIME_SECONDS"), np.int64)
    ).rename(columns={"TX_FRAUD": "FRAUD"}).to_parquet(source)
    with pytest.raises(ValueError, match=r"t\.parquet lacks TX_FRAUD"):
        import_published(source, tmp_path / "raw")
    days = pd.concat([published_day(1), published_day(0)], ignore_index=True)
    days.astype(dict.fromkeys(("CUSTOMER_ID", "TERMINAL_ID"), np.int64)).to_parquet(source)
    with pytest.raises(ValueError, match=r"days are not in order; sort the table by TX_DATETIME"):
        import_published(source, tmp_path / "raw")


def test_a_day_twice_is_refused(tmp_path: Path) -> None:
    published_day(0).to_pickle(tmp_path / "a.pkl")
    published_day(0).to_pickle(tmp_path / "b.pkl")
    with pytest.raises(ValueError, match="2018-04-01 twice"):
        import_published(tmp_path, tmp_path / "raw")


@pytest.mark.needs("handbook")
def test_the_published_table_comes_over_whole(handbook: Path, tmp_path: Path) -> None:
    report = import_published(handbook, tmp_path)
    assert (report.rows, report.frauds, report.files) == (1_754_155, 14_681, 183)
    files = day_files(tmp_path)
    assert (files[0].stem, files[-1].stem) == ("2018-04-01", "2018-09-30")
    published = pq.read_table(handbook)
    ours = pa.concat_tables([pq.read_table(path) for path in files])
    for theirs, name in (
        ("TRANSACTION_ID", "transaction_id"),
        ("CUSTOMER_ID", "customer_id"),
        ("TERMINAL_ID", "terminal_id"),
        ("TX_AMOUNT", "amount"),
        ("TX_FRAUD_SCENARIO", "fraud_scenario"),
    ):
        np.testing.assert_array_equal(published[theirs].to_numpy(), ours[name].to_numpy())
    assert (published["TX_DATETIME"].to_numpy() == ours["event_time"].to_numpy()).all()
