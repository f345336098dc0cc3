"""Outputs are published whole or not at all, found by their key, and never deleted in use."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from pipeline.artifact import Store, digest_of, digest_tree, drop_from_page_cache


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def make(store: Store, run_id: str, text: str) -> Path:
    made = store.scratch(run_id, "ingest")
    (made / "raw").mkdir()
    (made / "raw" / "a.txt").write_text(text)
    return made


def publish(store: Store, run_id: str, key: str, text: str = "hello") -> None:
    store.publish(
        stage="ingest",
        key=key,
        run_id=run_id,
        made=make(store, run_id, text),
        result={"rows": {"raw": 1}, "summary": {"x": 2}},
    )


def test_publish_and_find(store: Store) -> None:
    assert store.find("ingest", "k") is None
    publish(store, "run1", "k")
    found = store.find("ingest", "k")
    assert found is not None
    raw = found.artifacts["raw"]
    assert (raw.path / "a.txt").read_text() == "hello"
    assert (raw.rows, raw.bytes, raw.producer) == (1, 5, "run1")
    assert raw.digest == digest_tree(raw.path)[0]
    assert found.result["summary"] == {"x": 2}


def test_a_scratch_folder_is_no_output(store: Store) -> None:
    make(store, "run1", "half")
    assert store.find("ingest", "k") is None
    store.drop_scratch("run1")
    assert not (store.root / "tmp" / "run1").exists()


def test_an_output_whose_files_are_gone_is_made_again(store: Store) -> None:
    publish(store, "run1", "k")
    found = store.find("ingest", "k")
    assert found is not None
    (found.artifacts["raw"].path / "a.txt").unlink()
    found.artifacts["raw"].path.rmdir()
    assert store.find("ingest", "k") is None


def test_measuring_again_leaves_the_earlier_files_to_their_readers(store: Store) -> None:
    publish(store, "run1", "k", "one")
    before = store.find("ingest", "k")
    publish(store, "run2", "k", "two")
    after = store.find("ingest", "k")
    assert before is not None
    assert after is not None
    assert (before.artifacts["raw"].path / "a.txt").read_text() == "one"
    assert (after.artifacts["raw"].path / "a.txt").read_text() == "two"


def test_prune_keeps_what_kept_runs_made(store: Store) -> None:
    publish(store, "run1", "a", "x" * 100)
    publish(store, "run2", "b", "y" * 50)
    assert store.prune({"run2"}) == 100
    assert store.find("ingest", "a") is None
    assert store.find("ingest", "b") is not None


def test_digest_tells_names_and_contents_apart(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text(text)
    digests = {digest_tree(tmp_path / name)[0] for name in "abc"}
    assert len(digests) == 3
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def _hold(root: Path, entered: multiprocessing.synchronize.Event) -> None:
    with Store(root).locked("key"):
        entered.set()
        time.sleep(60)


def test_a_lock_is_held_until_its_holder_is_gone_however_it_goes(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    entered = context.Event()
    holder = context.Process(target=_hold, args=(store.root, entered))
    holder.start()
    assert entered.wait(30)
    with store.locked("key", wait=False) as got:
        assert not got
    holder.kill()
    holder.join()
    with store.locked("key", wait=False) as got:
        assert got


def test_dropped_files_are_no_longer_in_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(os.urandom(1 << 22))
    with path.open("rb") as file:
        os.fsync(file.fileno())

    def read_from_device() -> int:
        before = _read_bytes()
        path.read_bytes()
        return _read_bytes() - before

    assert read_from_device() == 0
    drop_from_page_cache(tmp_path)
    if read_from_device() == 0:
        pytest.skip("this file system reads without a block device (tmpfs, overlay in memory)")
    assert read_from_device() == 0


def _read_bytes() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])
