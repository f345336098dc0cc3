"""Segments: what was written comes back, whatever is missing at the end of the file."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from telemetry import segments
from telemetry.samples import Metric, Sample, Series
from telemetry.segments import SampleSet, SegmentWriter, read_samples

CPU = Metric(name="cpu_s", unit="s", kind="counter", meaning="CPU time", source="a test")
WATTS = Metric(
    name="power_w", unit="W", kind="window", meaning="power", source="a test", integral_unit="J"
)


def writer(folder: Path, *series: Series, collector: str = "guest") -> SegmentWriter:
    given = series or (Series(entity="machine", metric=CPU), Series(entity="gpu", metric=WATTS))
    return SegmentWriter(folder, collector, given, host="here", period_s=0.1, offset_ns=5)


def rows_of(samples: SampleSet) -> set[tuple[object, ...]]:
    return {
        (row["ts_ns"], row["start_ns"], row["entity"], row["metric"], row["value"])
        for row in samples.table.to_pylist()
    }


def expected(rows: list[Sample]) -> set[tuple[object, ...]]:
    return {
        (row.ts_ns, row.start_ns, row.series.entity, row.series.metric.name, row.value)
        for row in rows
    }


SAMPLES = st.lists(
    st.builds(
        Sample,
        st.integers(0, 2**62),
        st.builds(
            Series, entity=st.sampled_from(["machine", "stage:ü", "net:eth0"]),
            metric=st.sampled_from([CPU, WATTS]),
        ),
        st.floats(allow_nan=False),
        st.none() | st.integers(0, 2**62),
    ),
    max_size=20,
)  # fmt: skip


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batches=st.lists(SAMPLES, max_size=5))
def test_everything_comes_back(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[Sample]]
) -> None:
    folder = tmp_path_factory.mktemp("samples")
    one = writer(folder)
    for batch in batches:
        one.write(batch)
    one.close()
    assert rows_of(read_samples(folder)) == expected([row for batch in batches for row in batch])


def test_a_tail_cut_anywhere_costs_only_what_was_cut(tmp_path: Path) -> None:
    one, ends, rows = writer(tmp_path), [], []
    for number in range(4):
        batch = [
            Sample(10 * number + i, Series(entity=f"e{number}", metric=CPU), float(i))
            for i in range(3)
        ]
        one.write(batch)
        rows += batch
        ends.append((tmp_path / "guest-0000.arrows").stat().st_size)
    one.close()
    path = tmp_path / "guest-0000.arrows"
    whole = path.read_bytes()
    near = {end + step for end in ends for step in range(-40, 40) if end + step <= len(whole)}
    for cut in sorted({*range(0, len(whole), 7), *near, len(whole)}):
        path.write_bytes(whole[:cut])
        kept = 3 * sum(end <= cut for end in ends)
        assert rows_of(read_samples(tmp_path)) == expected(rows[:kept]), cut
    path.write_bytes(whole[: ends[2]] + bytes(4096))  # what a power cut leaves on some systems
    assert rows_of(read_samples(tmp_path)) == expected(rows[:9])


def test_metadata_come_back_and_grow(tmp_path: Path) -> None:
    one = writer(tmp_path, Series(entity="machine", metric=CPU))
    one.slow["cpu_s"] = 1.0
    one.slow["machine cpu_s"] = 2.0
    one.write([Sample(1, Series(entity="machine", metric=CPU), 1.0)])
    one.declare([Series(entity="machine", metric=CPU)])  # known already
    one.write([Sample(2, Series(entity="machine", metric=CPU), 2.0)])
    one.declare([Series(entity="gpu", metric=WATTS, reason="no GPU")])
    one.write([Sample(3, Series(entity="machine", metric=CPU), 3.0)])
    one.close()
    found = read_samples(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "guest-0000.arrows",
        "guest-0001.arrows",
    ]
    assert found.metrics == {"cpu_s": CPU, "power_w": WATTS}
    assert found.absent == [Series(entity="gpu", metric=WATTS, reason="no GPU")]
    assert found.period_s("machine", "cpu_s") == 2.0
    assert found.period_s("other", "cpu_s") == 1.0
    assert found.period_s("gpu", "power_w") == 0.1
    assert found.table.num_rows == 3


def test_reasons_alone_are_a_segment(tmp_path: Path) -> None:
    one = writer(tmp_path, Series(entity="gpu", metric=WATTS, reason="no GPU"))
    one.begin()
    assert read_samples(tmp_path).absent[0].reason == "no GPU"
    assert read_samples(tmp_path).table.num_rows == 0
    one.close()


def test_no_folder_is_no_samples(tmp_path: Path) -> None:
    assert read_samples(tmp_path / "nowhere") == SampleSet.empty()


def test_a_restart_takes_the_next_number(tmp_path: Path) -> None:
    for number in range(3):
        one = writer(tmp_path)
        one.write([Sample(number, Series(entity="machine", metric=CPU), 0.0)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"guest-000{number}.arrows" for number in range(3)
    ]
    assert read_samples(tmp_path).table.num_rows == 3


def test_a_long_segment_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "ROTATE_S", -1.0)
    one = writer(tmp_path)
    for number in range(3):
        one.write([Sample(number, Series(entity="machine", metric=CPU), 0.0)])
    one.close()
    assert len(list(tmp_path.iterdir())) == 3
    assert read_samples(tmp_path).table.num_rows == 3


FULL = """
    import resource, signal, sys
    from pathlib import Path
    from telemetry.samples import Metric, Sample, Series
    from telemetry.segments import SegmentWriter

    cpu = Series(entity="machine", metric=Metric(
        name="cpu_s", unit="s", kind="counter", meaning="", source=""))
    one = SegmentWriter(Path(sys.argv[1]), "guest", [cpu], host="here", period_s=0.1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
    lost = 0
    for number in range(40):
        try:
            one.write([Sample(100 * number + i, cpu, hash((number, i)) / 7) for i in range(50)])
        except OSError:
            lost += 50
    one.close()
    print(lost)
"""


def test_a_full_disk_costswhole_batches_and_says_so(tmp_path: Path) -> None:
    """The limit on a file's size stands for the disk: writes fail in the middle of a batch."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(segments.__file__).parents[1],
    )
    lost = int(done.stdout)
    assert 0 < lost < 2000
    assert read_samples(tmp_path).table.num_rows == 2000 - lost
    assert all(path.stat().st_size <= 8192 for path in tmp_path.iterdir())


def test_no_space_for_the_first_batch_leaves_no_file(tmp_path: Path) -> None:
    code = textwrap.dedent(FULL).replace("8192, 8192", "100, 100")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(segments.__file__).parents[1],
    )
    assert int(done.stdout) == 2000
    assert list(tmp_path.iterdir()) == []


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    one = writer(tmp_path)
    one.write([Sample(1, Series(entity="machine", metric=CPU), 1.0)])
    one.close()
    one.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


MACHINE_CPU = Series(entity="machine", metric=CPU)


def close_behind_its_back(folder: Path) -> int:
    """Close the file of the only segment in a folder; returns the number that it had."""
    (path,) = folder.glob("*.arrows")
    for link in Path("/proc/self/fd").iterdir():
        if link.exists() and link.samefile(path):
            os.close(int(link.name))
            return int(link.name)
    raise AssertionError(f"{path} is not open")


def test_a_close_that_fails_is_told_and_its_number_is_no_longer_ours(tmp_path: Path) -> None:
    one = writer(tmp_path / "samples", MACHINE_CPU)
    (tmp_path / "samples").mkdir()
    one.write([Sample(1, MACHINE_CPU, 1.0)])
    number = close_behind_its_back(tmp_path / "samples")
    with pytest.raises(OSError, match="Bad file descriptor"):
        one.close()
    with (tmp_path / "another").open("wb") as file:
        assert file.fileno() == number
        one.close()
        one.write([Sample(2, MACHINE_CPU, 2.0)])
        one.close()
        assert os.fstat(number).st_size == 0
    assert read_samples(tmp_path / "samples").table.num_rows == 2


def test_series_that_are_declared_while_a_close_fails_are_known(tmp_path: Path) -> None:
    one, watts = writer(tmp_path, MACHINE_CPU), Series(entity="gpu", metric=WATTS)
    one.write([Sample(1, MACHINE_CPU, 1.0)])
    close_behind_its_back(tmp_path)
    with pytest.raises(OSError, match="Bad file descriptor"):
        one.declare([watts])
    one.write([Sample(2, watts, 2.0, 1)])
    one.close()
    assert read_samples(tmp_path).metrics == {"cpu_s": CPU, "power_w": WATTS}


def test_a_batch_that_fails_with_its_file_is_told_as_it_failed(tmp_path: Path) -> None:
    one = writer(tmp_path, MACHINE_CPU)
    one.write([Sample(1, MACHINE_CPU, 1.0)])
    number = close_behind_its_back(tmp_path)
    with pytest.raises(OSError, match="Bad file descriptor"):
        one.write([Sample(2, MACHINE_CPU, 2.0)])
    with (tmp_path / "another").open("wb") as file:
        assert file.fileno() == number
        one.write([Sample(3, MACHINE_CPU, 3.0)])
        one.close()
        assert os.fstat(number).st_size == 0
    assert sorted(read_samples(tmp_path).table["ts_ns"].to_pylist()) == [1, 3]
