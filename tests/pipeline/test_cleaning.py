"""Processing: every dirty case by itself, and conservation of rows against a slow reference."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.cluster import Cluster, open_cluster
from pipeline.data.cleaning import CleanReport, clean
from pipeline.data.handbook import import_published
from pipeline.data.repeats import overlapping
from pipeline.data.schema import TRANSACTIONS, day_files

HERE = Cluster(workers=0)
DAY = "2018-04-01"
COLUMNS = TRANSACTIONS.names


def rows(count: int = 6, day: str = DAY, first_id: int = 0) -> pd.DataFrame:
    """Sound raw rows of a day, two of them in one second."""
    seconds = pd.to_timedelta([10, 20, 20, *range(30, 30 + count - 3)], unit="s")
    return pd.DataFrame(
        {
            "transaction_id": np.arange(first_id, first_id + count),
            "event_time": (pd.Timestamp(day) + seconds).astype("datetime64[us]"),
            "customer_id": np.arange(count) % 3,
            "terminal_id": np.arange(count) % 4,
            "amount": np.arange(count) + 0.25,
            "is_fraud": np.zeros(count, np.int8),
            "fraud_scenario": np.zeros(count, np.int8),
        }
    )


class Folder:
    """Raw files to clean, and what came of them."""

    def __init__(self, path: Path) -> None:
        self.source, self.out, self.quarantine = path / "raw", path / "clean", path / "bad"
        self.source.mkdir()

    def add(self, frame: pd.DataFrame | pa.Table, name: str = f"{DAY}.parquet") -> Path:
        path = self.source / name
        if isinstance(frame, pa.Table):
            pq.write_table(frame, path)
        elif path.suffix == ".csv":
            frame.to_csv(path, index=False)
        else:
            frame.to_parquet(path)
        return path

    def clean(self, cluster: Cluster = HERE, **settings: Any) -> CleanReport:
        report = clean(self.source, self.out, self.quarantine, cluster, **settings)
        assert report.rows_in == report.rows_out + report.rows_quarantined
        assert report.rows_out == len(self.cleaned())
        assert report.rows_quarantined == len(self.quarantined())
        assert self.quarantined()["reason"].value_counts().to_dict() == report.reasons
        assert report.files == len(day_files(self.out))
        assert report.bytes_out == sum(path.stat().st_size for path in self.out.iterdir())
        assert report.bytes_in == sum(
            path.stat().st_size
            for path in self.source.iterdir()
            if path.suffix in {".parquet", ".csv"}
        )
        return report

    def cleaned(self) -> pd.DataFrame:
        tables = [pq.read_table(path) for path in day_files(self.out)]
        assert all(table.schema.equals(TRANSACTIONS) for table in tables)
        for path, table in zip(day_files(self.out), tables, strict=True):
            days = table["event_time"].to_numpy().astype("datetime64[D]")
            assert (days == np.datetime64(path.stem)).all()
        whole = pa.concat_tables(tables).to_pandas()
        assert whole.event_time.is_monotonic_increasing
        assert whole.event_time.is_unique
        return whole

    def quarantined(self) -> pd.DataFrame:
        tables = [pq.read_table(path).to_pandas() for path in sorted(self.quarantine.iterdir())]
        empty = pd.DataFrame(columns=["source_file", "row_number", "reason"])
        whole = pd.concat(tables) if tables else empty
        return whole.sort_values(["source_file", "row_number"], ignore_index=True)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with open_cluster(workers=2, local_directory=tmp_path_factory.mktemp("dask")) as cluster:
        yield cluster


def assert_same_rows(cleaned: pd.DataFrame, raw: pd.DataFrame) -> None:
    """The same rows but for the ordinal within the second."""
    cleaned = cleaned.assign(event_time=cleaned.event_time.dt.floor("s"))
    pd.testing.assert_frame_equal(
        cleaned[COLUMNS].reset_index(drop=True),
        raw[COLUMNS].reset_index(drop=True),
        check_dtype=False,
    )


# Sound data


@pytest.mark.parametrize("name", [f"{DAY}.parquet", f"{DAY}.csv"])
def test_sound_rows_come_through_with_ordinals(folder: Folder, name: str) -> None:
    folder.add(rows(), name)
    told: list[tuple[int, int]] = []
    report = folder.clean(progress=lambda *done: told.append(done))
    assert report == CleanReport(
        rows_in=6,
        rows_out=6,
        rows_quarantined=0,
        reasons={},
        unreadable={},
        notes={},
        files=1,
        bytes_in=report.bytes_in,
        bytes_out=report.bytes_out,
    )
    assert told == [(1, 1)]
    cleaned = folder.cleaned()
    assert_same_rows(cleaned, rows())
    assert cleaned.event_time.dt.microsecond.tolist() == [0, 0, 1, 0, 0, 0]
    assert not list(folder.out.glob(".*"))


def test_workers_give_the_same_files(folder: Folder, two: Cluster, tmp_path: Path) -> None:
    for day in range(1, 6):
        frame = rows(20, f"2018-04-0{day}", day * 15)
        frame.loc[3, "event_time"] += pd.Timedelta(days=1)
        frame.loc[5, "amount"] = -1
        folder.add(frame, f"2018-04-0{day}.parquet")
    report = folder.clean(two)
    assert report.rows_quarantined > 5
    here = clean(folder.source, tmp_path / "here", tmp_path / "here-bad", HERE)
    assert here == report
    for mine, other in ((folder.out, "here"), (folder.quarantine, "here-bad")):
        names = sorted(path.name for path in mine.iterdir())
        assert names == sorted(path.name for path in (tmp_path / other).iterdir())
        for name in names:
            assert (mine / name).read_bytes() == (tmp_path / other / name).read_bytes()


# Columns


@pytest.mark.parametrize("name", [f"{DAY}.parquet", f"{DAY}.csv"])
def test_a_missing_column(folder: Folder, name: str) -> None:
    folder.add(rows(day="2018-04-02", first_id=10), "2018-04-02.parquet")
    folder.add(rows().drop(columns=["amount", "terminal_id"]), name)
    report = folder.clean()
    assert report.reasons == {"column terminal_id, amount is missing": 6}
    assert (report.rows_in, report.rows_out) == (12, 6)
    assert set(folder.quarantined()["source_file"]) == {name}
    assert folder.quarantined()["row_number"].tolist() == list(range(6))


def test_a_column_too_many_is_a_note(folder: Folder) -> None:
    folder.add(rows().assign(comment="x", TX_TIME_DAYS=3))
    report = folder.clean()
    assert report.rows_out == 6
    assert report.notes == {"column comment is not used": 1, "column TX_TIME_DAYS is not used": 1}


def test_a_column_twice_is_unreadable(folder: Folder) -> None:
    folder.add(rows(day="2018-04-02", first_id=10), "2018-04-02.parquet")
    text = rows().to_csv(index=False).replace("customer_id", "amount", 1)
    (folder.source / f"{DAY}.csv").write_text(text)
    report = folder.clean()
    assert report.unreadable == {f"{DAY}.csv": "column amount is there more than once"}


def test_numbers_may_be_text(folder: Folder) -> None:
    frame = rows().astype(str).astype(object)
    frame.loc[1, "customer_id"] = "one"
    frame.loc[2, "amount"] = "12,50"
    frame.loc[3, "is_fraud"] = "yes"
    frame.loc[4, "event_time"] = "yesterday"
    frame.loc[5, "transaction_id"] = "99999999999999999999"
    folder.add(frame)
    report = folder.clean()
    assert report.reasons == {
        "customer_id is not a whole number": 1,
        "amount is not a number": 1,
        "is_fraud is not 0 to 1": 1,
        "event_time is not a time": 1,
        "transaction_id is not a whole number": 1,
    }
    assert_same_rows(folder.cleaned(), rows().iloc[:1])
    bad = folder.quarantined()
    assert bad["row_number"].tolist() == [1, 2, 3, 4, 5]
    assert bad["customer_id"].tolist()[0] == "one"
    assert bad["transaction_id"].tolist()[-1] == "99999999999999999999"


@pytest.mark.parametrize(
    ("column", "values", "bad"),
    [
        ("customer_id", pa.array([0.0, 1.0, 2.5, 3.0, float("nan"), 1e300]), [2, 4, 5]),
        ("customer_id", pa.array([0, 1, 2, 3, 4, 2**64 - 1], pa.uint64()), [5]),
        ("customer_id", pa.array(["7"] * 6).dictionary_encode(), []),
        ("customer_id", pa.array([[1]] * 6), range(6)),
        ("customer_id", pa.array([1, 2, 3, -4, 5, 6]), [3]),
        ("transaction_id", pa.array([str(2**63 - 1), "1", "2", "3.0", "4e2", "5"]), []),
        ("terminal_id", pa.array([None] * 6, pa.null()), range(6)),
        ("is_fraud", pa.array([True, False] * 3), []),
        ("is_fraud", pa.array([0, 1, 2, -1, None, 1]), [2, 3, 4]),
        ("fraud_scenario", pa.array([0, 1, 127, 128, 300, -1]), [3, 4, 5]),
        ("amount", pa.array([1, 2, 3, 4, 5, 6]), []),
        ("amount", pa.array([1, 2, 3, 4, 5, 6]).cast(pa.decimal128(21, 2)), []),
        ("amount", pa.array([1e12, 1e13, 0.0, -0.0, 1.5, 2.0]), [1]),
        ("amount", pa.array([True] * 6), range(6)),
        ("amount", pa.array([b"1"] * 6), range(6)),
        ("event_time", pa.array([1, 2, 3, 4, 5, 6]), range(6)),
        ("event_time", pa.array([17_000] * 6, pa.date32()), range(6)),
        ("event_time", pa.array([0, 10**9, 10**15, -(10**15), 1, 10**9], pa.timestamp("s")), None),
    ],
)
def test_a_column_of_another_type(folder: Folder, column: str, values: pa.Array, bad: Any) -> None:
    table = pa.Table.from_pandas(rows(), preserve_index=False)
    folder.add(table.set_column(COLUMNS.index(column), column, values))
    folder.add(rows(day="2018-04-02", first_id=10), "2018-04-02.parquet")
    report = folder.clean()
    quarantined = folder.quarantined()
    expected = [0, 2, 3, 4] if bad is None else list(bad)
    assert quarantined["row_number"].tolist() == expected
    assert all(reason.startswith(f"{column} ") for reason in report.reasons)


# Values


def test_null_keys(folder: Folder) -> None:
    frame = rows().astype({"transaction_id": "Int64", "customer_id": "Int64"})
    frame.loc[0, "transaction_id"] = pd.NA
    frame.loc[1, "customer_id"] = pd.NA
    frame.loc[2, "event_time"] = pd.NaT
    folder.add(frame)
    folder.add(
        frame.assign(event_time=frame.event_time + pd.Timedelta(days=1)).assign(
            transaction_id=frame.transaction_id + 10
        ),
        "2018-04-02.csv",
    )
    report = folder.clean()
    assert report.reasons == {
        "transaction_id is empty": 2,
        "customer_id is empty": 2,
        "event_time is empty": 2,
    }
    assert report.rows_out == 6


@pytest.mark.parametrize("name", [f"{DAY}.parquet", f"{DAY}.csv"])
def test_amounts_that_cannot_be(folder: Folder, name: str) -> None:
    frame = rows()
    frame["amount"] = [1.0, -0.01, np.nan, np.inf, -np.inf, 2.0]
    if name.endswith("csv"):
        frame = frame.astype({"amount": str})
        folder.add(frame, name)
    else:
        values = pa.array(frame["amount"].to_numpy())  # NaN stays NaN, and does not become null
        table = pa.Table.from_pandas(frame, preserve_index=False)
        folder.add(table.set_column(4, "amount", values), name)
    report = folder.clean()
    assert report.reasons == {
        "amount is below 0": 1,
        "amount is not a number": 1,
        "amount is infinite": 2,
    }


def test_dates_out_of_range(folder: Folder) -> None:
    frame = rows()
    frame.loc[0, "event_time"] = pd.Timestamp("1970-01-01")
    frame.loc[5, "event_time"] = pd.Timestamp("2100-01-01")
    folder.add(frame)
    assert folder.clean().reasons == {"event_time is not in 1990 to 2099": 2}


def test_a_time_zone_becomes_utc(folder: Folder) -> None:
    frame = rows()
    frame["event_time"] = frame.event_time.dt.tz_localize("UTC").dt.tz_convert("Asia/Kolkata")
    folder.add(frame)
    later = rows(day="2018-04-02", first_id=10)
    text = later.astype({"event_time": str})
    text["event_time"] = [
        "2018-04-02T00:00:10Z",
        "2018-04-02 02:00:20+02:00",
        "2018-04-01T19:00:20-0500",
        "2018-04-02 00:00:30",
        "2018-04-02T00:00:31+00:00",
        " 2018-04-02 00:00:32.000 ",
    ]
    folder.add(text, "2018-04-02.csv")
    report = folder.clean()
    assert report.notes == {"event_time was in another time zone, now UTC": 2}
    assert_same_rows(folder.cleaned(), pd.concat([rows(), later]))


def test_fractions_of_a_second_are_cut_and_noted(folder: Folder) -> None:
    frame = rows()
    frame.loc[1, "event_time"] += pd.Timedelta(milliseconds=900)
    folder.add(frame)
    report = folder.clean()
    assert report.notes == {"event_time had fractions of a second, now cut": 1}
    assert_same_rows(folder.cleaned(), rows())


# Duplicates and order


def test_of_duplicate_ids_the_first_sound_row_stays(folder: Folder) -> None:
    frame = rows()
    frame["transaction_id"] = [0, 1, 1, 3, 1, 0]
    frame.loc[0, "amount"] = -1
    folder.add(frame)
    report = folder.clean()
    assert report.reasons == {"amount is below 0": 1, "transaction_id was seen before": 2}
    assert folder.cleaned()["transaction_id"].tolist() == [1, 3, 0]
    assert folder.quarantined()["row_number"].tolist() == [0, 2, 4]


@pytest.mark.parametrize("ids_per_bucket", [1, 3, 1000])
def test_duplicates_are_found_across_files(folder: Folder, ids_per_bucket: int) -> None:
    folder.add(rows(), "2018-04-01.parquet")
    folder.add(rows(day="2018-04-02", first_id=4), "2018-04-02.csv")
    folder.add(rows(day="2018-04-03", first_id=100), "2018-04-03.parquet")
    folder.add(rows(), "copy.csv")
    report = folder.clean(ids_per_bucket=ids_per_bucket)
    assert report.reasons == {"transaction_id was seen before": 8}
    bad = folder.quarantined()
    assert bad["source_file"].tolist() == ["2018-04-02.csv"] * 2 + ["copy.csv"] * 6
    assert bad["row_number"].tolist() == [0, 1, *range(6)]
    assert bad["amount"].astype(float).tolist() == [0.25, 1.25, *rows().amount]
    assert folder.cleaned()["transaction_id"].tolist() == [*range(10), *range(100, 106)]


def test_days_out_of_order_and_rows_in_the_wrong_file(folder: Folder) -> None:
    first, second = rows(), rows(day="2018-04-02", first_id=10)
    mixed = pd.concat([second.iloc[::2], first.iloc[::-2]])
    rest = pd.concat([first.iloc[::-2].iloc[0:0], second.iloc[1::2], first.iloc[-2::-2]])
    folder.add(mixed, "2018-04-02.parquet")
    folder.add(rest, "2018-04-01.parquet")
    report = folder.clean()
    assert report.reasons == {}
    assert [path.stem for path in day_files(folder.out)] == ["2018-04-01", "2018-04-02"]
    cleaned = folder.cleaned()
    assert sorted(cleaned["transaction_id"]) == [*range(6), *range(10, 16)]
    # Rows 1 and 2 share a second: row 2 lies in the file that comes first by name.
    assert cleaned["transaction_id"].tolist()[:3] == [0, 2, 1]


def test_rows_of_a_second_keep_the_order_of_the_raw_data(folder: Folder) -> None:
    frame = rows(40)
    frame["event_time"] = pd.Timestamp(DAY) + pd.to_timedelta([7, 3] * 20, unit="s")
    frame["transaction_id"] = np.random.default_rng(1).permutation(40)
    folder.add(frame.astype({"event_time": "datetime64[us]"}))
    folder.clean()
    expected = [*frame.transaction_id[1::2], *frame.transaction_id[::2]]
    cleaned = folder.cleaned()
    assert cleaned["transaction_id"].tolist() == expected
    assert cleaned.event_time.dt.microsecond.tolist() == [*range(20)] * 2


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(-2, 8)).map(lambda p: (p[0], p[0] + p[1])),
        max_size=8,
    )
)
def test_overlapping_ranges_are_those_of_all_pairs(ranges: list[tuple[int, int]]) -> None:
    slow = {
        one
        for one, (first, last) in enumerate(ranges)
        for other, (start, end) in enumerate(ranges)
        if one != other and set(range(first, last + 1)) & set(range(start, end + 1))
    }
    assert overlapping(ranges) == sorted(slow)


# Files


def test_a_truncated_file_is_named_and_the_others_go_on(folder: Folder) -> None:
    folder.add(rows())
    whole = folder.add(rows(day="2018-04-02", first_id=10), "2018-04-02.parquet")
    whole.write_bytes(whole.read_bytes()[:-30])
    report = folder.clean()
    assert (report.rows_in, report.rows_out) == (6, 6)
    assert list(report.unreadable) == ["2018-04-02.parquet"]
    assert report.unreadable["2018-04-02.parquet"].startswith("not a whole parquet file: ")


def test_damage_inside_a_file_is_found(folder: Folder) -> None:
    folder.add(rows())
    path = folder.add(rows(2000, day="2018-04-02", first_id=10), "2018-04-02.parquet")
    content = bytearray(path.read_bytes())
    content[100:1500] = bytes(1400)
    path.write_bytes(content)
    report = folder.clean()
    assert list(report.unreadable) == ["2018-04-02.parquet"]
    assert report.rows_in == 6


def test_empty_files(folder: Folder) -> None:
    folder.add(rows())
    (folder.source / "2018-04-02.parquet").touch()
    (folder.source / "2018-04-03.csv").touch()
    folder.add(rows().iloc[:0], "2018-04-04.parquet")
    folder.add(rows().iloc[:0], "2018-04-05.csv")
    report = folder.clean()
    empty = "the file is empty (0 bytes)"
    assert report.unreadable == {"2018-04-02.parquet": empty, "2018-04-03.csv": empty}
    assert (report.rows_in, report.rows_out, report.files) == (6, 6, 1)


def test_an_empty_or_absent_folder_is_an_error(folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no raw files \(\.parquet, \.csv\) in the folder"):
        folder.clean()
    with pytest.raises(FileNotFoundError, match="is not there"):
        clean(tmp_path / "nowhere", folder.out, folder.quarantine, HERE)


def test_other_files_are_notes(folder: Folder) -> None:
    folder.add(rows())
    (folder.source / "README.txt").write_text("x")
    (folder.source / ".hidden").write_text("x")
    (folder.source / "more").mkdir()
    report = folder.clean()
    assert report.notes == {"README.txt is not a raw file": 1, "more is not a raw file": 1}


def test_input_without_one_sound_row_ends_with_an_error(folder: Folder) -> None:
    folder.add(rows().assign(amount=-1.0))
    (folder.source / "2018-04-02.csv").touch()
    with pytest.raises(ValueError, match="no transaction is left") as caught:
        folder.clean()
    for part in ("amount is below 0: 6 rows", "2018-04-02.csv: the file is empty", "6 rows"):
        assert part in str(caught.value)
    assert len(folder.quarantined()) == 6


def test_lines_of_a_csv_file_with_other_fields(folder: Folder) -> None:
    lines = rows(5_000).to_csv(index=False).splitlines()
    lines.insert(3, "1,2,3")
    lines.insert(4_000, lines[2] + ",more")
    lines.insert(10, "")
    (folder.source / f"{DAY}.csv").write_text("\n".join(lines) + "\n")
    report = folder.clean()
    assert report.reasons == {"line has too many or too few fields": 2}
    bad = folder.quarantined()
    assert bad["line"].tolist() == ["1,2,3", lines[2] + ",more"]
    # Numbers count the rows below the header from 0; a blank line is none.
    assert bad["row_number"].tolist() == [2, 3_999]
    assert_same_rows(folder.cleaned(), rows(5_000))


def test_row_numbers_hold_beyond_the_reader_s_blocks(folder: Folder) -> None:
    frame = rows(40_000).assign(comment="x" * 60)
    lines = frame.to_csv(index=False).splitlines()
    lines.insert(30_001, "short")
    lines[35_002] = lines[35_002].replace(",0,0,x", ",2,0,x")
    (folder.source / f"{DAY}.csv").write_text("\n".join(lines))
    folder.clean()
    assert folder.quarantined()["row_number"].tolist() == [30_000, 35_001]


def test_a_csv_file_of_other_separators_lacks_its_columns(folder: Folder) -> None:
    folder.add(rows())
    rows(day="2018-04-02", first_id=9).to_csv(folder.source / "2018-04-02.csv", sep=";")
    report = folder.clean()
    (reason,) = report.reasons
    assert reason.startswith("column transaction_id, event_time")


def test_names_of_our_own_do_not_clash(folder: Folder) -> None:
    folder.add(rows().assign(reason="theirs", row_number=5, amount=[1, 2, 3, 4, 5, -1]))
    folder.clean()
    (bad,) = folder.quarantined().to_dict("records")
    assert (bad["raw_reason"], bad["reason"]) == ("theirs", "amount is below 0")
    assert (bad["raw_row_number"], bad["row_number"]) == (5, 5)


# All of it at once, against a slow reference

BAD_IDS = ["", "x", "1.5", "-3"]
CELLS = {
    "transaction_id": st.one_of(st.integers(0, 25).map(str), st.sampled_from(BAD_IDS)),
    "event_time": st.one_of(
        st.tuples(st.integers(1, 3), st.integers(0, 4)).map(
            lambda at: f"2018-04-0{at[0]} 00:00:0{at[1]}"
        ),
        st.sampled_from(["", "soon", "1970-01-01 00:00:00", "2018-04-02T01:00:02+01:00"]),
    ),
    "customer_id": st.one_of(st.integers(0, 3).map(str), st.sampled_from(BAD_IDS)),
    "terminal_id": st.integers(0, 3).map(str),
    "amount": st.one_of(
        st.integers(0, 900).map(lambda cents: f"{cents / 100}"),
        st.sampled_from(["", "nan", "inf", "-1", "much"]),
    ),
    "is_fraud": st.sampled_from(["0", "0", "0", "1", "1", "2", ""]),
    "fraud_scenario": st.sampled_from(["0", "1", "2"]),
}
# Most cells are sound, so that some rows are.
ROW = st.fixed_dictionaries(CELLS)
FILES = st.lists(st.lists(ROW, max_size=12), min_size=1, max_size=4)


def reference(
    files: list[list[dict[str, str]]],
) -> tuple[list[tuple[Any, ...]], set[tuple[int, int]]]:
    """Clean rows in order with their ordinals, and (file, row) of the rows that fail."""
    sound, failed, seen = [], set(), set()
    for file, content in enumerate(files):
        for number, row in enumerate(content):
            values = reference_row(row)
            if values is None or values[0] in seen:
                failed.add((file, number))
            else:
                seen.add(values[0])
                sound.append(values)
    sound.sort(key=lambda values: values[1])
    ordered: list[tuple[Any, ...]] = []
    for values in sound:
        ordinal = sum(1 for other in ordered if other[1].replace(microsecond=0) == values[1])
        ordered.append((values[0], values[1].replace(microsecond=ordinal), *values[2:]))
    return ordered, failed


def reference_row(row: dict[str, str]) -> tuple[Any, ...] | None:
    try:
        time = datetime.fromisoformat(row["event_time"])
        time = (time.astimezone(UTC) if time.tzinfo else time).replace(tzinfo=None)
        keys = [int(row[name]) for name in ("transaction_id", "customer_id", "terminal_id")]
        amount, fraud = float(row["amount"]), int(row["is_fraud"])
    except ValueError:
        return None
    if time.year < 1990 or min(keys) < 0 or fraud > 1 or not 0 <= amount < float("inf"):
        return None
    return keys[0], time, keys[1], keys[2], amount, fraud, int(row["fraud_scenario"])


@given(FILES, st.sampled_from(["csv", "parquet"]), st.integers(1, 20))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_row_is_out_or_in_quarantine(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[list[dict[str, str]]],
    kind: str,
    ids_per_bucket: int,
) -> None:
    folder = Folder(tmp_path_factory.mktemp("dirty"))
    for number, content in enumerate(files):
        frame = pd.DataFrame(content, columns=COLUMNS).astype(object)
        if kind == "parquet":
            frame = frame.replace("", None)
        folder.add(frame.astype("string") if kind == "parquet" else frame, f"{number}.{kind}")
    expected, failed = reference(files)
    if not expected:
        with pytest.raises(ValueError, match="no transaction is left"):
            folder.clean()
    else:
        report = folder.clean(ids_per_bucket=ids_per_bucket)
        assert report.rows_in == sum(len(content) for content in files)
        got = [tuple(row) for row in folder.cleaned()[COLUMNS].itertuples(index=False)]
        assert got == expected
        bad = folder.quarantined()
        assert {
            (int(str(name).split(".")[0]), int(row))
            for name, row in zip(bad["source_file"], bad["row_number"], strict=True)
        } == failed
        assert len(bad) == len(failed)
    shutil.rmtree(folder.source.parent)


@pytest.mark.needs("handbook")
def test_the_published_table_is_clean(handbook: Path, folder: Folder, two: Cluster) -> None:
    import_published(handbook, folder.source)
    report = folder.clean(two)
    assert (report.rows_in, report.rows_out, report.files) == (1_754_155, 1_754_155, 183)
    cleaned = folder.cleaned()
    assert (cleaned.transaction_id.to_numpy() == np.arange(1_754_155)).all()
    second = cleaned.event_time.dt.floor("s")
    assert (second == pq.read_table(handbook)["TX_DATETIME"].to_pandas()).all()
    ordinal = cleaned.groupby(second).cumcount()
    assert (cleaned.event_time.dt.microsecond.to_numpy() == ordinal.to_numpy()).all()
