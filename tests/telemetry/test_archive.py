"""A run in one small file: what is in it, what is not, and that it is the same run."""

from __future__ import annotations

import io
import json
import lzma
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from telemetry.archive import EXAMPLE, SCHEMA, pack, unpack
from telemetry.archive_names import Pseudonyms, of_run
from telemetry.archive_reading import ABOUT
from telemetry.replay import DERIVED, replay
from telemetry.runfolder import RunFolder
from telemetry.samples import Metric, Sample, Series
from telemetry.segments import SegmentWriter, read_samples
from tests.telemetry.test_finish import START_NS, stage, write_run

HOST, VM, ESXI = "ml-7.corp.example", "ML Train 7", "esx03.corp.example"
UUID, ADDRESS = "4220f5a4-5c3e-4b1a-9d0e-0a1b2c3d4e5f", "10.20.30.41"
MACHINE_ID = "3f2b8c1d9e7a4b56a0c1d2e3f4a5b6c7"
SECRETS = (
    *(HOST, VM, ESXI, UUID, ADDRESS, MACHINE_ID, "ClusterX", "jane", "jane@corp.example"),
    *("scratch/joe", "mlflow.corp", "2001:db8:77::5", "s3cret", "db.corp", "pass/word"),
)
LEVEL = Metric(name="level", unit="1", kind="gauge", meaning="a level", source="a test")
READY = Metric(name="vm_cpu_ready_percent", unit="%", kind="window", meaning="m", source="s")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    ended = stage("a", "finished", START_NS, START_NS + 4 * 10**9)
    ended |= {"outputs": {"raw": {"path": "/home/jane/runs/raw", "digest": "d" * 64},
                          "big": {"path": "/scratch/joe/big", "digest": "e" * 64}}}  # fmt: skip
    ended |= {"command": ["python", "fit.py", "--out", "/home/jane", "--at", "[2001:db8:77::5]:80",
                          "http://jane:pass/word@mlflow.corp:5000"]}  # fmt: skip
    place = {"vm": VM, "uuid": UUID, "esxi_host": ESXI, "cluster": "ClusterX", "vcpus": 2,
             "vcenter_version": "8.0.2.0", "datastores": ["fast-1"]}  # fmt: skip
    write_run(
        folder, [ended], host=HOST, vcenter={"host": ADDRESS, "clock_limit_s": 2.0},
        placement={"host": HOST, "vms": [place], "machine_id": MACHINE_ID},
        recipe={"tracking": {"uri": "postgresql://mlflow:s3cret@db.corp/mlflow"}},
        losses=[f"vcenter: vm:{VM}@{ESXI}: late; {ADDRESS}:443 did not answer"],
    )  # fmt: skip
    folder.samples.mkdir()
    series = [Series(entity=name, metric=LEVEL) for name in ("machine", "b", "a")]
    writer = SegmentWriter(folder.samples, "guest", series, host=HOST, period_s=0.1)
    for tick in range(40):
        at_ns = START_NS + tick * 10**8
        writer.write([Sample(at_ns, one, tick + place) for place, one in enumerate(series)])
    writer.close()
    window = Series(entity=f"vm:{VM}@{ESXI}", metric=READY)
    late = SegmentWriter(folder.samples, "vcenter", [window], host=HOST, period_s=300.0)
    late.write([Sample(START_NS + 10**9, window, 5.0, START_NS - 19 * 10**9)])
    late.close()
    events: list[dict[str, Any]] = [
        {"at_ns": START_NS, "event": "connected", "server": f"{ADDRESS}:443",
         "user": "jane@corp.example"},
        {"at_ns": START_NS, "event": "placement", "when": "start", **place},
        {"at_ns": START_NS, "event": "gap", "entity": f"vm:{VM}@{ESXI}", "from_ns": START_NS,
         "to_ns": START_NS + 1},
    ]  # fmt: skip
    text = "".join(json.dumps(one) + "\n" for one in events) + '{"torn": '
    (folder.samples / "vcenter.jsonl").write_text(text)
    return folder


def _content(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes())


def test_an_archive_says_nothing_of_whose_machine_it_was(run: RunFolder, tmp_path: Path) -> None:
    data = _content(pack(run, tmp_path / "run.tar.xz"))
    assert not [one for one in SECRETS if one.encode() in data]
    assert b"8.0.2.0" in data, "a version is no address"
    assert b"d" * 64 in data
    source, _ = unpack(tmp_path / "run.tar.xz", tmp_path / "out")
    entities = set(read_samples(source.samples).table.column("entity").to_pylist())
    assert entities == {"machine", "a", "b", "vm:vm-1@esxi-1.example"}
    record = source.read()
    assert record["placement"]["vms"][0]["vm"] == "vm-1"
    assert record["host"] == record["placement"]["host"] == "guest-1"
    assert record["losses"] == [
        "vcenter: vm:vm-1@esxi-1.example: late; 192.0.2.1:443 did not answer"
    ]
    assert record["stages"][0]["outputs"]["raw"]["path"] == "/…/raw"
    events = (source.samples / "vcenter.jsonl").read_text().splitlines()
    assert json.loads(events[2])["entity"] == "vm:vm-1@esxi-1.example"


def test_names_are_kept_where_that_is_asked_for(run: RunFolder, tmp_path: Path) -> None:
    data = _content(pack(run, tmp_path / "run.tar.xz", pseudonyms=False))
    assert all(one.encode() in data for one in SECRETS)


def test_the_example_holds_no_name_of_where_it_was_made() -> None:
    data = _content(EXAMPLE)
    for one in (b"/tmp/", b"/work", b"/root", b"/home", b"DC0_", b"4220f5a4", b"vcsim"):
        assert one not in data, one


@pytest.mark.parametrize("pseudonyms", [True, False])
def test_what_comes_out_is_the_run_that_went_in(
    run: RunFolder, tmp_path: Path, pseudonyms: bool
) -> None:
    path = pack(run, tmp_path / "run.tar.xz", pseudonyms=pseudonyms)
    first = path.read_bytes()
    assert pack(run, path, pseudonyms=pseudonyms).read_bytes() == first
    source, recorded = unpack(path, tmp_path / "out")
    assert set(recorded) == set(DERIVED)
    before, after = (read_samples(one.samples) for one in (run, source))
    assert len(after.table) == len(before.table)
    assert pc.sum(after.table["value"]) == pc.sum(before.table["value"])
    assert (after.metrics, after.periods) == (before.metrics, before.periods)
    for speed in (None, 100.0):
        done = replay(source, tmp_path / "replays", speed=speed, recorded=recorded)
        assert [one.verdict for one in done.files] == ["same"] * len(DERIVED)
    again = pack(source, tmp_path / "again.tar.xz", pseudonyms=False)
    assert unpack(again, tmp_path / "out2")[1] == recorded
    if not pseudonyms:
        plain = replay(run, tmp_path / "plain")
        assert {one.name: one.digest for one in plain.files} == recorded


def test_a_segment_without_rows_says_in_an_archive_too_what_is_absent(
    run: RunFolder, tmp_path: Path
) -> None:
    series = [Series(entity="vm", metric=READY, reason="it could not be asked")]
    writer = SegmentWriter(run.samples, "vcenter-absent", series, host=HOST, period_s=300.0)
    writer.begin()
    writer.close()
    source, _ = unpack(pack(run, tmp_path / "run.tar.xz"), tmp_path / "out")
    assert read_samples(source.samples).absent == series


def test_what_is_no_archive_of_a_run_is_refused(tmp_path: Path) -> None:
    def tar(**members: bytes) -> Path:
        path, plain = tmp_path / "bad.tar.xz", io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w") as made:
            for name, data in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                made.addfile(entry, io.BytesIO(data))
        path.write_bytes(lzma.compress(plain.getvalue()))
        return path

    about = json.dumps({"schema": SCHEMA, "by_series": [], "digests": {}}).encode()
    other = json.dumps({"schema": "stagescope.archive/9"}).encode()
    for members, told in (
        ({"../run.json": b"{}"}, "'../run.json' is in it"),
        ({"samples/../../x.arrows": b""}, "is in it"),
        ({ABOUT: other, "run.json": b"{}"}, "schema 'stagescope.archive/9', wanted"),
        ({ABOUT: about}, "is no archive of a run"),
        ({}, "is no archive of a run"),
    ):
        with pytest.raises(ValueError, match=told):
            unpack(tar(**members), tmp_path / "out")
        assert not (tmp_path / "out").exists()
    (tmp_path / "text.tar.xz").write_text("no archive")
    with pytest.raises(ValueError, match="is no archive of a run"):
        unpack(tmp_path / "text.tar.xz", tmp_path / "out")


def test_what_cannot_be_packed_is_refused(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in .tar.xz"):
        pack(run, tmp_path / "run.zip")
    run.write({**run.read(), "status": "running"})
    with pytest.raises(ValueError, match="still running"):
        pack(run, tmp_path / "run.tar.xz")


def test_a_machine_that_is_called_like_a_key_renames_nothing_else() -> None:
    names = of_run({"host": "vm", "environment": {"host": "vm"}, "placement": {"vm": "vm"}})
    said = {"host": "vm", "vm": "vm", "why": "on offer for vm:other", "kind": "vm"}
    assert names.value(said) == {
        "host": "guest-1", "vm": "vm-1", "why": "on offer for vm:other", "kind": "vm"
    }  # fmt: skip


def test_a_run_whose_vcenter_refused_it_names_nobody(run: RunFolder, tmp_path: Path) -> None:
    said = "vCenter vc.lab refuses LAB\\kim: locked; did you mean prod-acme-7?"
    settings = {"host": "vc.lab", "vm": "typed-1", "other_vms": ["typed-2", UUID]}
    run.write({**run.read(), "recipe": {"vcenter": settings}, "losses": [f"vcenter: {said}"]})
    events: list[dict[str, Any]] = [
        {"at_ns": START_NS, "event": "named", "user": "LAB\\kim", "vm": ["prod-acme-7"]},
        {"at_ns": START_NS, "event": "lost", "reason": said},
        {"at_ns": START_NS, "event": "backfill", "failure": said},
    ]
    (run.samples / "vcenter.jsonl").write_text("".join(json.dumps(one) + "\n" for one in events))
    series = [Series(entity="vm", metric=READY, reason=f"not asked: {said}")]
    writer = SegmentWriter(run.samples, "vcenter-absent", series, host=HOST, period_s=300.0)
    writer.begin()
    writer.close()
    data = _content(pack(run, tmp_path / "run.tar.xz"))
    names = ("kim", "prod-acme", "vc.lab", "typed")
    assert not [one for one in names if one.encode() in data]
    record = unpack(tmp_path / "run.tar.xz", tmp_path / "out")[0].read()
    told = record["recipe"]["vcenter"]
    assert told["vm"].startswith("vm-")
    assert told["other_vms"][1].startswith("00000000-0000-4000-8000-")
    assert record["losses"][0].endswith(" refuses user-1: locked; did you mean vm-2?")


def test_a_name_within_a_longer_word_stays() -> None:
    names = Pseudonyms(words={"ml-7": "guest-1", "db": "vm-1"})
    assert names.text("ml-7 ml-70 xml-7 db.ml-7 ml-7: adb") == (
        "guest-1 ml-70 xml-7 vm-1.ml-7 guest-1: adb"
    )
    assert names.text("10.0.0.1 10.0.0.2 10.0.0.1 127.0.0.1 0.0.0.0 1.2.3.4.5") == (
        "192.0.2.1 192.0.2.2 192.0.2.1 127.0.0.1 0.0.0.0 1.2.3.4.5"
    )
    assert names.text("fe80::1ff:fe23:4567:890a ::1 12:34:56 2001:db8:0:0:0:0:0:9 std::pair") == (
        "2001:db8::1 ::1 12:34:56 2001:db8::2 std::pair"
    )
    store = names.text(f"ds:///vmfs/volumes/{UUID}/ ::ffff:10.0.0.1 /nfs/10.0.0.2/x /dev-7/jane/y")
    assert store == ("ds:///…/00000000-0000-4000-8000-000000000001/ ::ffff:192.0.2.1 /…/x /…/y")
    assert names.text("http://ml.corp:80/v2 s3://bucket/x.csv http://localhost:5000") == (
        "http://server-1.example:80/v2 s3://server-2.example/x.csv http://localhost:5000"
    )
    logins = "postgresql://u:s3cret@ml.corp/m http://ml-7:x@10.0.0.1:80 http://***@ml.corp"
    assert names.text(f"{logins} x://u:p@[2001:db8::5]:80") == (
        "postgresql://server-1.example/m http://192.0.2.1:80 http://server-1.example "
        "x://[2001:db8::3]:80"
    )
    assert names.text("to /home/jane, ~/x/y and sqlite:////home/jane/a.db") == (
        "to /…/user-1, /…/y and sqlite:////…/a.db"
    )
    assert names.text("read /proc/stat and /home/jane/x.csv") == "read /proc/stat and /…/x.csv"
