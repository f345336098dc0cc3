"""The commands: what people and scripts see of a run that goes on, and of a replay."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace as with_changes
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from pipeline.artifact import STORE, Store
from pipeline.cli import main
from pipeline.cli_options import FAILED, INTERRUPTED, USAGE
from pipeline.cli_watch import _going, _looks
from pipeline.show_watch import WatchView, clock, line, page, shown, sparkline
from telemetry.archive import EXAMPLE, unpack
from telemetry.replay import DERIVED, replay
from telemetry.runfolder import LOCK, REPLAYED, RUN_SCHEMA, RunFolder
from telemetry.watch import Live, Snapshot
from tests.telemetry.test_finish import START_NS, stage
from tests.telemetry.test_watch import NS, Script

ROOT = Path(__file__).parents[2]
MAIN = [sys.executable, "-m", "pipeline.cli"]


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return unpack(EXAMPLE, tmp_path_factory.mktemp("example") / "run")[0]


def at(example: RunFolder, into: Path, seconds: float) -> Snapshot:
    """The example as somebody sees it after so many seconds."""
    found: list[Snapshot] = []

    def look(done_s: float, _: float) -> None:
        if done_s >= seconds and not found:
            live = Live(RunFolder(into / example.read()["run_id"]))
            live.update()
            found.append(live.snapshot())

    replay(example, into, speed=1.0, sleep=lambda _: None, progress=look)
    return found[0]


def test_the_example_is_replayed_and_compared(tmp_path: Path) -> None:
    done = invoke("replay", "example", "--into", tmp_path / "replays")
    assert done.exit_code == 0, done.output
    assert done.output.count("the same bytes") == len(DERIVED)
    (folder,) = (tmp_path / "replays").iterdir()
    assert (folder / "report.html").is_file()
    told = json.loads(invoke("replay", folder, "--into", tmp_path / "again", "--json").output)
    assert told["same"] is True
    assert [one["verdict"] for one in told["files"]] == ["same"] * len(DERIVED)


def test_a_replay_that_differs_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telemetry.replay.derived_anew", lambda source: {})
    monkeypatch.setattr("telemetry.archive.members_of", _other_digests(EXAMPLE))
    done = invoke("replay", "example", "--into", tmp_path)
    assert done.exit_code == FAILED
    assert "NOT the same bytes" in done.output


def _other_digests(path: Path) -> Any:
    from telemetry.archive_reading import ABOUT, members

    found = members(path)
    about = json.loads(found[ABOUT])
    about["digests"] = dict.fromkeys(about["digests"], "0" * 64)
    return lambda _: {**found, ABOUT: json.dumps(about).encode()}


def test_a_run_is_packed_and_its_archive_replayed(example: RunFolder, tmp_path: Path) -> None:
    archive = tmp_path / "mine.tar.xz"
    packed = invoke("replay", example.path, "--pack", archive)
    assert packed.exit_code == 0
    assert "KiB" in packed.output
    assert invoke("replay", archive, "--into", tmp_path / "replays").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("replay", "nothing.tar.xz"), "no archive nothing.tar.xz"),
        (("replay", "nothing"), "no run 'nothing'"),
        (("replay", "example", "--speed", "0"), "0"),
        (("watch",), "no run goes on"),
        (("watch", "nothing"), "no run 'nothing'"),
    ],
)
def test_wrong_usage_is_said_in_a_sentence(
    arguments: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke(*arguments)
    assert done.exit_code == USAGE
    assert told in done.output


def test_a_bad_address_is_said_before_anything_is_watched(example: RunFolder) -> None:
    done = invoke("watch", example.path, "--prometheus", "9464")
    assert done.exit_code == USAGE
    assert "give one like 127.0.0.1:9464" in done.output


def test_without_a_terminal_there_are_plain_lines(example: RunFolder) -> None:
    done = invoke("watch", example.path)
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert "\x1b" not in done.output
    assert lines[0].startswith("ingest: finished in ")
    record = example.read()
    seconds = (record["ended_ns"] - record["started_ns"]) / 1e9
    found = re.search(r"finished · (\d+):(\d\d)$", lines[-1])
    assert found
    assert abs(60 * int(found[1]) + int(found[2]) - seconds) <= 1


def test_for_scripts_each_look_is_a_line_of_json(example: RunFolder) -> None:
    told = json.loads(invoke("watch", example.path, "--json").output.splitlines()[-1])
    assert (told["status"], told["stage"]) == ("finished", None)
    assert {"name", "value"} <= told["series"][0].keys()


def test_the_page_shows_stages_guest_gpus_and_hypervisor(
    example: RunFolder, tmp_path: Path
) -> None:
    snapshot = at(example, tmp_path, 75.0)
    console = Console(width=110, force_terminal=True, color_system=None, record=True)
    with WatchView(console) as view:
        view.show(snapshot)
    console.print(page(snapshot))
    text = console.export_text()
    for one in ("stage serving (6)", "a replay, 1 times as fast", "✓ training", "▶ serving", "CPU",
                "of 2 cores", "memory", "disk written", "GPU 0 busy", "GPU 1 power", "vm-1 ready",
                "esxi-1.example power"):  # fmt: skip
        assert one in text, one


def test_a_line_for_each_change_and_one_in_ten_seconds(tmp_path: Path) -> None:
    script = Script(tmp_path, [stage("fit", "running", START_NS, None)])
    console = Console(width=160, record=True)
    with WatchView(console) as view:
        for at_s in (1.0, 2.0, 3.0):
            script.write(at_s, mem_used_bytes=("machine", "gauge", 5 * 2.0**30))
            script.live.update()
            view.show(script.live.snapshot())
        record = script.folder.read()
        record["stages"][0] |= {"status": "failed", "end_ns": START_NS + 4 * NS, "reason": "no"}
        script.folder.write({**record, "status": "failed", "ended_ns": START_NS + 5 * NS})
        script.live.update()
        view.show(script.live.snapshot())
    assert console.export_text().splitlines() == [
        "fit: started",
        "0:01 fit, memory 5.0 GiB",
        "fit: failed in 4.0 s: no",
        "run 20261124-020000-3fa9c1 · default · failed · 0:05",
    ]


def test_a_run_whose_process_was_killed_does_not_go_on(tmp_path: Path) -> None:
    recorded, made = (RunFolder(tmp_path / f"20261125-00000{n}-abcdef") for n in range(2))
    for folder, more in ((recorded, {}), (made, {"recipe": {"seed": 7}})):
        folder.samples.mkdir(parents=True)
        folder.write({"schema": RUN_SCHEMA, "run_id": folder.path.name, "name": "x", "stages": [],
                      "status": "running", "started_ns": START_NS, "ended_ns": None, **more,
                      "clock": {"offset_start_ns": 0, "offset_end_ns": None}})  # fmt: skip
    (recorded.path / LOCK).touch()
    store = Store(tmp_path / STORE)
    with store.locked(f"run-{made.path.name}"):
        assert _going(tmp_path, {}) == [made]
    assert _going(tmp_path, {}) == []


def test_records_that_ended_or_are_none_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real_read = RunFolder.read

    def noted(folder: RunFolder) -> dict[str, Any]:
        read.append(folder.path.name)
        return real_read(folder)

    monkeypatch.setattr(RunFolder, "read", noted)
    ended, broken, goes_on = (RunFolder(tmp_path / f"20261125-00000{n}-abcdef") for n in range(3))
    for folder, status in ((ended, "finished"), (broken, "running"), (goes_on, "running")):
        folder.path.mkdir()
        folder.write({"schema": RUN_SCHEMA, "status": status})
    broken.run_json.write_text('{"schema": 1, "sta')
    over: dict[str, Any] = {}
    assert _going(tmp_path, over) == [goes_on]
    assert read == [one.path.name for one in (ended, broken, goes_on)]
    assert _going(tmp_path, over) == [goes_on]
    assert read[3:] == [goes_on.path.name]
    broken.write({"schema": RUN_SCHEMA, "status": "running"})  # somebody has mended it
    assert _going(tmp_path, over) == [broken, goes_on]


@pytest.mark.parametrize("height", [12, 24, 60])
def test_a_page_fits_its_terminal_and_shows_what_goes_on(
    example: RunFolder, tmp_path: Path, height: int
) -> None:
    snapshot = at(example, tmp_path, 75.0)
    ended = [stage(f"span-{n}", "finished", START_NS, START_NS + NS) for n in range(40)]
    (going,) = (one for one in snapshot.record["stages"] if one["status"] == "running")
    record = {**snapshot.record, "stages": [*ended[:3], going, *ended[3:]]}
    console = Console(
        width=80, height=height, force_terminal=True, color_system=None, file=io.StringIO()
    )
    shown_page = page(with_changes(snapshot, record=record), console)
    lines = console.render_lines(shown_page, pad=False)
    text = ["".join(one.text for one in each) for each in lines]
    assert len(text) < height
    assert any(one.startswith("▶ serving") for one in text)
    if height < 60:
        assert any(re.match(r"… \d+ more +$", one) for one in text), text
        assert any(re.match(r"… \d+ more in a taller window", one) for one in text), text


@pytest.mark.parametrize(
    ("how", "code", "status"),
    [(signal.SIGINT, INTERRUPTED, "interrupted"), (signal.SIGKILL, -signal.SIGKILL, "running")],
)
def test_a_replay_that_was_stopped_does_not_go_on(
    example: RunFolder, tmp_path: Path, how: signal.Signals, code: int, status: str
) -> None:
    folder = RunFolder(tmp_path / example.read()["run_id"])
    command = [*MAIN, "replay", "example", "--speed", "1", "--into", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as replaying:
        _until(folder.run_json.is_file, lambda: str(replaying.poll()))
        assert _going(tmp_path, {}) == [folder]
        replaying.send_signal(how)
        assert replaying.wait(30) == code
    assert folder.read()["status"] == status
    assert _going(tmp_path, {}) == []


@contextlib.contextmanager
def following(out: Path) -> Iterator[Callable[[], str]]:
    """A watcher of whatever goes on in a folder, and how to get what its endpoint tells."""
    command = [*MAIN, "watch", "--out", str(out), "--follow", "--every", "0.2", "--prometheus",
               "127.0.0.1:0"]  # fmt: skip
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stderr is not None
        found = re.search(r"http://\S+", watching.stderr.readline())
        assert found

        def scraped() -> str:
            with urllib.request.urlopen(found[0], timeout=10) as answer:
                return str(answer.read().decode())

        try:
            yield scraped
        finally:
            watching.terminate()


def _until(holds: Callable[[], bool], told: Callable[[], str]) -> None:
    deadline_s = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline_s, told()
        time.sleep(0.1)


def _ended(text: str) -> set[str]:
    """The runs whose end is told."""
    return set(re.findall(r'^stagescope_run_info\{.*run="([^"]+)".*"finished"', text, re.MULTILINE))


def test_of_runs_without_a_pause_each_is_told(example: RunFolder, tmp_path: Path) -> None:
    """Real parts: a watcher that waits, two replays, and scrapes when both are over."""
    runs = [f"20261125-00000{number}-abcdef" for number in range(2)]
    with following(tmp_path) as scraped:
        for number, run_id in enumerate(runs):
            source = RunFolder(tmp_path / f"source-{number}" / "run")
            source.path.mkdir(parents=True)
            source.write({**example.read(), "run_id": run_id})
            source.samples.symlink_to(example.samples)
            replay(source, tmp_path, speed=30.0)
        _until(lambda: _ended(scraped()) == set(runs), scraped)
        counted = re.findall(r"^stagescope_stage_cpu_seconds_total\{.+", scraped(), re.MULTILINE)
    assert len(counted) == 2 * len(example.read()["stages"])


def test_each_replay_of_a_recording_is_followed(example: RunFolder, tmp_path: Path) -> None:
    """Every one has the id and the folder of the one before."""
    with following(tmp_path) as scraped:
        for _ in range(2):
            thread = threading.Thread(
                target=replay, args=(example, tmp_path), kwargs={"speed": 30.0}
            )
            thread.start()
            _until(lambda: 'status="running"' in scraped(), scraped)
            thread.join()
            _until(lambda: bool(_ended(scraped())), scraped)


def test_a_replay_is_not_mixed_with_the_one_that_takes_its_folder(tmp_path: Path) -> None:
    script = Script(tmp_path / "run", [stage("fit", "running", START_NS, None)])
    mark = script.folder.path / REPLAYED
    mark.write_text("{}")
    looks = _looks(script.folder, 0.1, None)
    assert next(looks).stage == "fit"
    os.utime(mark, ns=(0, 0))
    script.write(1.0, mem_used_bytes=("machine", "gauge", 1.0))
    with pytest.raises(FileNotFoundError, match="the next replay of it has taken it"):
        next(looks)
    looks = _looks(script.folder, 0.1, None)
    assert next(looks).stage == "fit"
    shutil.rmtree(script.folder.path)
    with pytest.raises(FileNotFoundError, match="the folder of this run was deleted"):
        next(looks)


def test_disks_are_added_up_and_a_vm_on_two_hosts_is_not(tmp_path: Path) -> None:
    script = Script(tmp_path, [stage("fit", "running", START_NS, None)])
    for at_s in (1.0, 2.0):
        script.write(at_s, disk_read_bytes=("disk:a", "counter", 1024.0 * at_s))
        script.write(at_s, disk_read_bytes=("disk:b", "counter", 2048.0 * at_s))
    script.write(2.0, vm_cpu_ready_percent=("vm:a@old", "window", 60.0))
    script.live.update()
    before = script.live.snapshot()
    assert "disk read 3.0 KiB/s, a ready 60 %" in line(before)
    (ready,) = before.of("vm_cpu_ready_ratio")
    other = with_changes(ready, labels={"vm": "a", "host": "new"}, value=0.5)
    both = with_changes(before, values=(*before.values, other))
    assert "a ready 60 %, a ready 50 %" in line(both)


def test_figures_are_short_and_have_their_unit() -> None:
    assert [shown(*one) for one in (
        (None, "bytes"), (0.0, "bytes"), (1536.0, "bytes_per_second"), (2.0**40, "bytes"),
        (0.256, "ratio"), (0.015, "seconds"), (61.23, "seconds"), (150.4, "watts"),
        (1.234, "cores"), (3.0, ""),
    )] == ["–", "0 B", "1.5 KiB/s", "1.0 TiB", "26 %", "15 ms", "61.2 s", "150 W",
           "1.23 cores", "3"]  # fmt: skip
    assert [clock(one) for one in (0, 59.9, 61, 3723)] == ["0:00", "0:59", "1:01", "1:02:03"]


def test_a_sparkline_begins_at_nothing() -> None:
    assert sparkline([0.0, 0.5, 1.0], 1.0) == "▁▅█"
    assert sparkline([0.0, 0.0]) == "▁▁"
    assert sparkline([]) == ""
    assert sparkline([3.0], 1.0) == "█"
