"""A recorded run fed again gives the same bytes, wherever, whenever and however fast."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from telemetry.archive import EXAMPLE, unpack
from telemetry.finish import finish
from telemetry.record import record_command
from telemetry.replay import DERIVED, Compared, digests, replay
from telemetry.runfolder import LOCK, RunFolder, is_abandoned
from telemetry.segments import read_samples
from telemetry.settings import TelemetrySettings
from telemetry.watch import Live
from tests.telemetry.record_example import GOLDEN, golden_rows
from tests.telemetry.test_finish import START_NS, stage, write_run

ROOT = Path(__file__).parents[2]
REPLAY = """
import json, sys
from pathlib import Path
from telemetry.archive import EXAMPLE, unpack
from telemetry.replay import digests, replay
source, recorded = unpack(EXAMPLE, Path(sys.argv[1]) / "run")
print(json.dumps(digests(replay(source, Path(sys.argv[1]), recorded=recorded).folder.path)))
"""


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The recorded run that comes with StageScope, with what this version derives of it."""
    folder, _ = unpack(EXAMPLE, tmp_path_factory.mktemp("example") / "run")
    finish(folder)
    return folder


def test_the_example_is_small_and_has_every_world(example: RunFolder) -> None:
    assert EXAMPLE.stat().st_size < 400 * 1024
    entities = set(read_samples(example.samples).table.column("entity").to_pylist())
    kinds = {one.partition(":")[0] for one in entities}
    assert kinds >= {"machine", "stage", "app", "disk", "net", "vm", "esxi", "recorder"}
    assert {"gpu:0", "gpu:1"} <= entities
    record = example.read()
    assert record["status"] == "finished"
    assert len(record["stages"]) == 6
    assert record["host"] == "guest-1"


def test_the_example_has_the_figures_that_it_had(example: RunFolder) -> None:
    """Numbers that matter lie in git: a change of them is one of what is measured."""
    document = json.loads(example.profile_json.read_text())
    now = {tuple(names): figures for *names, figures in golden_rows(document)}
    kept = json.loads(GOLDEN.read_text())
    assert len(kept) > 100
    for *names, figures in kept:
        assert now[tuple(names)] == pytest.approx(figures, rel=1e-9), names


def test_a_replay_is_the_same_elsewhere_at_any_speed(example: RunFolder, tmp_path: Path) -> None:
    known, before = digests(example.path), _bytes(example.path)
    assert set(known) == set(DERIVED)
    slept: list[float] = []
    for number, speed in enumerate((None, 1.0, 1000.0)):
        done = replay(example, tmp_path / str(number), speed=speed, sleep=slept.append)
        assert [one.verdict for one in done.files] == ["same"] * len(DERIVED)
        assert digests(done.folder.path) == known
        assert done.folder.run_json.read_bytes() == example.run_json.read_bytes()
    assert slept
    assert _bytes(example.path) == before, "a replay leaves its recording as it was"
    for number, more in enumerate(({"TZ": "Asia/Kolkata", "PYTHONHASHSEED": "1", "LC_ALL": "C"},
                                   {"PYTHONHASHSEED": "2", "HOME": "/"})):  # fmt: skip
        (elsewhere := tmp_path / f"there-{number}").mkdir()
        told = subprocess.run(
            [sys.executable, "-W", "error", "-c", REPLAY, str(elsewhere)],
            cwd=elsewhere,
            env={**os.environ, **more, "PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
            text=True,
        )
        assert json.loads(told.stdout) == known


def test_a_report_asks_neither_the_time_nor_the_machine(
    example: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object) -> None:
        raise AssertionError("the clock or the machine was asked")

    known = digests(example.path)
    copy = RunFolder(tmp_path / "copy")
    copy.path.mkdir()
    copy.run_json.write_bytes(example.run_json.read_bytes())
    copy.samples.symlink_to(example.samples)
    for module, name in ((time, "time"), (time, "time_ns"), (time, "monotonic"), (os, "getcwd"),
                         (time, "monotonic_ns"), (platform, "node"), (os, "cpu_count"),
                         (os, "uname")):  # fmt: skip
        monkeypatch.setattr(module, name, asked)
    finish(copy)
    monkeypatch.undo()
    assert digests(copy.path) == known


def test_who_looks_on_sees_the_run_as_it_went(example: RunFolder, tmp_path: Path) -> None:
    """At each moment: the stages that had begun, and no sample from later."""
    record = example.read()
    started_ns, seen, where = record["started_ns"], [], 0.0
    live: list[Live] = []

    def look(done_s: float, total_s: float) -> None:
        nonlocal where
        if done_s - where < 2.0:
            return
        where = done_s
        if not live:
            live.append(Live(RunFolder(tmp_path / record["run_id"])))
        live[0].update()
        snapshot = live[0].snapshot()
        if snapshot.ended:
            return
        now_ns = started_ns + round(done_s * 1e9)
        began = [one["name"] for one in record["stages"] if (one["start_ns"] or 0) < now_ns - 10**9]
        shown = [one["name"] for one in snapshot.record["stages"]]
        assert shown[: len(began)] == began
        assert len(shown) <= len(began) + 1
        assert snapshot.now_ns <= now_ns + 10**9
        assert snapshot.record["ended_ns"] is None
        for one in snapshot.record["stages"]:
            if one["status"] == "running":
                assert (one["end_ns"], one["rusage"]) == (None, None)
                assert "summary" not in one
        seen.append((snapshot.stage, len(snapshot.values)))

    done = replay(example, tmp_path, speed=1.0, sleep=lambda _: None, progress=look)
    assert done.same
    assert len(seen) > 30
    assert len({name for name, _ in seen}) >= 6
    assert max(many for _, many in seen) > 40


def test_a_run_recorded_here_is_replayed_to_its_own_report(tmp_path: Path) -> None:
    work = "import time\nend = time.time() + 1.2\nwhile time.time() < end: sum(range(1000))"
    folder, code = record_command(
        "burn", [sys.executable, "-c", work], tmp_path / "runs", TelemetrySettings()
    )
    assert code == 0
    done = replay(folder, tmp_path / "replays", speed=3.0)
    assert [one.verdict for one in done.files] == ["same"] * len(DERIVED)
    again = replay(done.folder, tmp_path / "second")
    assert [one.verdict for one in again.files] == ["same"] * len(DERIVED)


@pytest.mark.parametrize("status", ["failed", "killed", "interrupted"])
def test_a_run_that_was_cut_short_is_replayed_too(tmp_path: Path, status: str) -> None:
    folder = RunFolder(tmp_path / "run")
    ended = stage("a", "finished", START_NS, START_NS + 10**9)
    cut = stage("b", status, START_NS + 10**9, None) | {"reason": "cut"}
    skipped = stage("c", "skipped", None, None) | {"reason": "b failed"}
    write_run(folder, [ended, cut, skipped], status=status, ended_ns=None)
    done = replay(folder, tmp_path / "replays", speed=10.0)
    assert [one.verdict for one in done.files] == ["new"] * len(DERIVED)


def test_a_torn_segment_is_replayed_up_to_its_last_whole_batch(
    example: RunFolder, tmp_path: Path
) -> None:
    source = RunFolder(tmp_path / "torn")
    source.samples.mkdir(parents=True)
    source.run_json.write_bytes(example.run_json.read_bytes())
    for path in example.samples.iterdir():
        data = path.read_bytes()
        (source.samples / path.name).write_bytes(data[: int(0.9 * len(data))])
    (source.samples / "guest-9999.arrows").write_bytes(b"no Arrow at all")
    finish(source)
    done = replay(source, tmp_path / "replays")
    assert [one.verdict for one in done.files] == ["same"] * len(DERIVED)


def test_what_cannot_be_replayed_is_refused_with_a_sentence(
    example: RunFolder, tmp_path: Path
) -> None:
    going = RunFolder(tmp_path / "going")
    write_run(going, [], status="running", ended_ns=None)
    with pytest.raises(ValueError, match="still running: a replay needs its end"):
        replay(going, tmp_path)
    for speed in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="give how many times as fast"):
            replay(example, tmp_path, speed=speed)
    own = RunFolder(tmp_path / "20261124-020000-3fa9c1")
    write_run(own, [stage("a", "finished", START_NS, START_NS + 10**9)])
    with pytest.raises(ValueError, match="is the recording itself"):
        replay(own, tmp_path)
    (tmp_path / "there" / own.path.name).mkdir(parents=True)
    with pytest.raises(ValueError, match="is there and is no replay"):
        replay(own, tmp_path / "there")
    first = replay(own, tmp_path / "twice")
    assert replay(own, tmp_path / "twice").folder == first.folder


def test_a_replay_holds_its_folder_until_its_end(example: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / example.read()["run_id"])
    refused: list[str] = []

    def look(done_s: float, total_s: float) -> None:
        if not refused:
            assert (folder.path / LOCK).is_file()
            assert not is_abandoned(folder)
            with pytest.raises(ValueError, match="is being replayed: wait for its end") as error:
                replay(example, tmp_path)
            refused.append(str(error.value))

    assert replay(example, tmp_path, speed=1.0, sleep=lambda _: None, progress=look).same
    assert str(folder.path) in refused[0]
    assert is_abandoned(folder)


def test_a_replay_that_is_cut_short_ends_its_record(example: RunFolder, tmp_path: Path) -> None:
    reached_s = 0.0

    def cut(done_s: float, total_s: float) -> None:
        nonlocal reached_s
        reached_s = done_s
        if done_s > total_s / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay(example, tmp_path, speed=1.0, sleep=lambda _: None, progress=cut)
    folder = RunFolder(tmp_path / example.read()["run_id"])
    record = folder.read()
    *ended, last = record["stages"]
    assert record["status"] == "interrupted"
    so_far_s = (record["ended_ns"] - record["started_ns"]) / 1e9
    assert so_far_s == pytest.approx(reached_s, abs=2.0)
    assert {one["status"] for one in ended} == {"finished"}
    assert (last["status"], last["reason"]) == ("interrupted", "the replay was interrupted")
    assert is_abandoned(folder)
    assert replay(example, tmp_path).same, "it can be replayed anew"


def test_each_outcome_of_the_comparison_has_its_word() -> None:
    def verdict(recorded: str | None, anew: str | None) -> str:
        return Compared(name="report.html", digest="a", recorded=recorded, anew=anew).verdict

    assert verdict("a", None) == "same"
    assert verdict(None, "a") == "new"
    assert verdict("b", "a") == "other version"
    assert verdict("b", "b") == verdict(None, "b") == verdict("b", None) == "differs"


def test_a_report_of_another_version_is_told_apart_from_a_wrong_one(
    example: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replay(example, tmp_path, recorded={**digests(example.path), "report.html": "0" * 64})
    assert [one.verdict for one in other.files] == ["same", "same", "same", "other version"]
    assert other.same

    def wrong(folder: RunFolder) -> Any:
        profile = finish(folder)
        if folder.path.parent == tmp_path:
            folder.report_html.write_text("something else")
        return profile

    monkeypatch.setattr("telemetry.replay.finish", wrong)
    assert not replay(example, tmp_path).same


def _bytes(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
