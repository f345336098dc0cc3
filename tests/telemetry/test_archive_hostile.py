"""An archive from somebody who means ill: nothing outside of the replay's folder, and no flood."""

from __future__ import annotations

import io
import json
import lzma
import tarfile
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from pipeline.cli import main
from telemetry.archive import EXAMPLE, unpack
from telemetry.archive_reading import members
from telemetry.replay import replay
from telemetry.runfolder import REPLAYED, RunFolder, checked_run_id, new_run_id
from telemetry.segments import SUFFIX

MIB = 1 << 20


@pytest.fixture(scope="module")
def honest() -> dict[str, bytes]:
    """The files of the recorded run that comes with StageScope."""
    return members(EXAMPLE)


def write(path: Path, files: Mapping[str, bytes]) -> Path:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    path.write_bytes(lzma.compress(plain.getvalue(), preset=0))
    return path


def with_id(files: Mapping[str, bytes], run_id: object) -> dict[str, bytes]:
    record = {**json.loads(files["run.json"]), "run_id": run_id}
    return {**files, "run.json": json.dumps(record).encode()}


def tree(folder: Path) -> set[str]:
    return {str(one.relative_to(folder)) for one in folder.rglob("*")}


BAD = ("../victim", "{victim}", "a/../../victim", ".", "..", "", "latest", ".hidden", "a b", "a\n",
       "a\\b", "a\0b", "é", 7, None, ["a"])  # fmt: skip


@pytest.mark.parametrize("given", BAD, ids=repr)
def test_a_run_id_that_leads_elsewhere_is_refused_before_anything_is_written(
    honest: dict[str, bytes], tmp_path: Path, given: object
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / REPLAYED).write_text("{}")  # what a replay would take for its own, and replace
    run_id = given.format(victim=victim) if isinstance(given, str) else given
    path = write(tmp_path / "run.tar.xz", with_id(honest, run_id))
    source, recorded = unpack(path, tmp_path / "unpacked")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match="is no name of a run's folder"):
        replay(source, tmp_path / "replays", recorded=recorded)
    assert tree(tmp_path) == before


def test_the_command_says_so_in_a_sentence(honest: dict[str, bytes], tmp_path: Path) -> None:
    path = write(tmp_path / "run.tar.xz", with_id(honest, "../victim"))
    done = CliRunner().invoke(main, ["replay", str(path), "--into", str(tmp_path / "replays")])
    assert done.exit_code == 2
    assert "run id '../victim' is no name of a run's folder" in done.output
    assert tree(tmp_path) == {"run.tar.xz"}


def test_the_ids_of_runs_are_names_of_folders(honest: dict[str, bytes], tmp_path: Path) -> None:
    for run_id in (new_run_id(), json.loads(honest["run.json"])["run_id"], "run1", "a.b_c-d"):
        assert checked_run_id(run_id) == run_id
    source = RunFolder(tmp_path / "source")
    source.path.mkdir()
    run = {**json.loads(honest["run.json"]), "stages": []}
    source.write(run)
    target = replay(source, tmp_path / "replays").folder.path
    assert target == (tmp_path / "replays" / run["run_id"]).resolve()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE,
                                  tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE])  # fmt: skip
def test_only_plain_files_are_taken(tmp_path: Path, kind: bytes) -> None:
    entry = tarfile.TarInfo(f"samples/a-0000{SUFFIX}")
    entry.type, entry.linkname = kind, "/etc/passwd"
    path = tmp_path / "run.tar.xz"
    path.write_bytes(lzma.compress(entry.tobuf(tarfile.GNU_FORMAT) + bytes(1024)))
    with pytest.raises(ValueError, match="is no archive of a run: 'samples/a-0000"):
        members(path)


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
def test_a_header_is_refused_and_not_read_however_long_it_says_it_is(
    tmp_path: Path, kind: bytes
) -> None:
    entry = tarfile.TarInfo("run.json")
    entry.type, entry.size = kind, 64 * MIB
    path = tmp_path / "run.tar.xz"
    path.write_bytes(lzma.compress(entry.tobuf(tarfile.GNU_FORMAT) + bytes(64 * MIB), preset=0))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"'run\.json' is in it"):
            members(path)
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


def test_what_is_in_it_is_bounded_in_all(tmp_path: Path) -> None:
    few = {f"samples/empty-{number:04d}{SUFFIX}": b"" for number in range(3)}
    path = write(tmp_path / "headers.tar.xz", few)
    with pytest.raises(ValueError, match=r"holds no samples"):
        members(path, most_bytes=3 * 512)
    with pytest.raises(ValueError, match=r"more than 1,535 bytes in it"):
        members(path, most_bytes=3 * 512 - 1)
    path = write(tmp_path / "long.tar.xz", {"run.json": bytes(2 * MIB)})
    with pytest.raises(ValueError, match=r"more than 1,048,576 bytes in it"):
        members(path, most_bytes=MIB)
    assert len(members(path)["run.json"]) == 2 * MIB


def test_a_file_is_there_once_and_whole(tmp_path: Path) -> None:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("run.json"))
    path = tmp_path / "run.tar.xz"
    path.write_bytes(lzma.compress(plain.getvalue()))
    with pytest.raises(ValueError, match=r"'run.json' is in it twice"):
        members(path)
    entry = tarfile.TarInfo("run.json")
    entry.size = 4096
    path.write_bytes(lzma.compress(entry.tobuf() + bytes(512)))
    with pytest.raises(ValueError, match=r"'run.json' is not whole"):
        members(path)


def segment(honest: Mapping[str, bytes]) -> tuple[str, pa.Table]:
    name = next(one for one in honest if one.endswith(SUFFIX))
    with pa.ipc.open_stream(pa.BufferReader(honest[name])) as reader:
        return name, reader.read_all()


def stream(table: pa.Table, compression: str | None = None) -> bytes:
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


def refused(honest: Mapping[str, bytes], tmp_path: Path, data: bytes, why: str) -> None:
    name, _ = segment(honest)
    path = write(tmp_path / "run.tar.xz", {**honest, name: data})
    with pytest.raises(ValueError, match=why):
        unpack(path, tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_samples_are_compressed_once(
    honest: dict[str, bytes], tmp_path: Path, compression: str
) -> None:
    """A few bytes of zstd may be any number of bytes in memory."""
    _, table = segment(honest)
    refused(honest, tmp_path, stream(table, compression), "it is compressed once more")


def test_samples_have_the_columns_and_rows_that_they_say(
    honest: dict[str, bytes], tmp_path: Path
) -> None:
    _, table = segment(honest)
    many = pa.table({name: pa.nulls(1 << 20) for name in table.column_names})
    many = many.replace_schema_metadata(table.schema.metadata)
    refused(honest, tmp_path, stream(many), "other columns than samples have")
    unknown = table.replace_schema_metadata(None)
    refused(honest, tmp_path, stream(unknown), "other columns than samples have")
    indices = pa.array([99] * len(table), pa.int32())
    wrong = pa.DictionaryArray.from_arrays(indices, pa.array(["machine"]), safe=False)
    at = table.schema.get_field_index("entity")
    outside = table.set_column(at, table.schema.field(at), wrong)
    refused(honest, tmp_path, stream(outside), "holds no samples")
    refused(honest, tmp_path, b"no Arrow at all", "holds no samples")


def test_what_is_honest_is_taken(honest: dict[str, bytes], tmp_path: Path) -> None:
    name, table = segment(honest)
    path = write(tmp_path / "run.tar.xz", {**honest, name: stream(table)})
    source, _ = unpack(path, tmp_path / "unpacked")
    assert source.read() == json.loads(honest["run.json"])
