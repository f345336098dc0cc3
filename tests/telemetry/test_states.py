"""What the processes of a tree were doing when they were looked at."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.clock import Clock
from telemetry.collectors.forest import SLOW_SHARE, Forest, TreeState
from telemetry.collectors.guest import GuestCollector
from telemetry.collectors.proctree import USAGE
from telemetry.samples import Sample

STAT = (
    "{pid} (a) b) {state} {ppid} 1 1 0 -1 {flags} 9 {reaped_faults} 0 0 {ticks} 5 {reaped_ticks} 0 "
    "20 0 1 0 {start} 8192 3 0 0\n"
)


USER, KERNEL = 0x00400000, 0x00200040
"""Flags of a process with a memory of its own, and of a thread of the kernel."""


def put(
    proc: Path,
    pid: int,
    ppid: int,
    state: str,
    *,
    flags: int = USER,
    ticks: int = 5,
    reaped: tuple[int, int] = (0, 0),
    read_bytes: int = 0,
) -> None:
    """``reaped``: faults and ticks of children that it has waited for."""
    folder = proc / str(pid)
    folder.mkdir(parents=True, exist_ok=True)
    told = {"pid": pid, "ppid": ppid, "state": state, "flags": flags, "ticks": ticks}
    told |= {"reaped_faults": reaped[0], "reaped_ticks": reaped[1]}
    (folder / "stat").write_text(STAT.format(**told, start=100 + pid))
    (folder / "io").write_text(f"rchar: {ticks}\nwchar: 0\nsyscr: 0\nsyscw: 0\n"
                               f"read_bytes: {read_bytes}\nwrite_bytes: 0\n"
                               "cancelled_write_bytes: 0\n")  # fmt: skip
    (folder / "status").write_text("Name:\ta\n")


def test_states_are_counted_over_the_tree(tmp_path: Path) -> None:
    put(tmp_path, 10, 1, "S")
    for pid, state in enumerate("RRDSZ", 11):
        put(tmp_path, pid, 10, state)
    put(tmp_path, 30, 1, "D")  # of nobody's tree
    forest = Forest(str(tmp_path))
    forest.watch("stage:x", 10)
    states, _ = forest.scan()
    assert (states["stage:x"].ready, states["stage:x"].disk_waits) == (2, 1)
    put(tmp_path, 11, 10, "D")
    state = forest.sample()["stage:x"]
    assert (state.ready, state.disk_waits, state.processes) == (1, 2, 6)
    forest.close()


def test_kernel_threads_are_asked_in_turn_and_all_of_them_when_it_counts(tmp_path: Path) -> None:
    pids, in_turn = range(10, 30), 20 // SLOW_SHARE
    for pid in pids:
        put(tmp_path, pid, 2, "S", flags=KERNEL)
    put(tmp_path, 40, 1, "S")
    forest = Forest(str(tmp_path))
    forest.watch("stage:x", 40)
    _, first = forest.scan(whole=True)
    used = []
    for ticks in range(6, 6 + SLOW_SHARE):
        for pid in (*pids, 40):
            put(tmp_path, pid, 2, "S", flags=USER if pid == 40 else KERNEL, ticks=ticks)
        for _ in range(9):  # as in a second at 10 Hz: turns are counted by scan
            forest.sample()
        used.append(forest.scan()[1].usage[0] - first.usage[0])
    assert used[0] == in_turn + 1, "a share of the kernel's, and the process"
    assert used[-1] == sum(range(1, SLOW_SHARE + 1)) * in_turn + SLOW_SHARE
    assert forest.scan(whole=True)[1].usage[0] - first.usage[0] == 21 * SLOW_SHARE
    shutil.rmtree(tmp_path / "10")
    assert forest.scan()[1].processes == 20
    forest.close()


def growth_bytes(proc: Path, states: str) -> list[int]:
    """What a stage reads by each look, where it reads 500 kB in between and uses no CPU time."""
    read_bytes = USAGE.index("read_bytes")
    put(proc, 40, 1, states[0])
    forest = Forest(str(proc))
    forest.watch("stage:x", 40)
    totals = [forest.scan()[0]["stage:x"].usage[read_bytes]]
    for look, state in enumerate(states[1:], 1):
        put(proc, 40, 1, state, read_bytes=500_000 * look)
        totals.append(forest.sample()["stage:x"].usage[read_bytes])
    forest.close()
    return [after - before for before, after in itertools.pairwise(totals)]


def test_what_waits_for_a_disk_is_seen_to_read_at_every_look(tmp_path: Path) -> None:
    assert growth_bytes(tmp_path / "waits", 21 * "D") == 20 * [500_000]
    turns = growth_bytes(tmp_path / "then", 11 * "D" + 10 * "S")
    assert turns[:11] == 11 * [500_000], "at the look after the last wait, too"


def test_the_io_of_what_sleeps_is_read_in_turn(tmp_path: Path) -> None:
    grown = growth_bytes(tmp_path, 21 * "S")
    assert sorted(grown) == 16 * [0] + 4 * [SLOW_SHARE * 500_000]


def test_a_recorder_below_a_stage_is_not_taken_for_dead_between_two_looks_at_all(
    tmp_path: Path,
) -> None:
    put(tmp_path, 40, 1, "S")
    put(tmp_path, 41, 40, "S", ticks=1000)
    put(tmp_path, 42, 40, "S", ticks=70)
    forest = Forest(str(tmp_path))
    forest.watch("stage:x", 40)
    forest.watch("recorder", 41)
    states, _ = forest.scan()
    assert states["stage:x"].usage[0] == 5 + 70
    assert states["recorder"].usage[0] == 1000
    forest.sample()
    put(tmp_path, 42, 40, "X", ticks=70)  # as many faults as the recorder had: it could be either
    for own in (6, 7, 8):
        put(tmp_path, 40, 1, "S", ticks=own, reaped=(9, 70))
        put(tmp_path, 41, 40, "S", ticks=1000 + own)
        assert forest.sample()["stage:x"].usage[0] == own + 70
    forest.close()


def test_a_number_that_was_given_to_another_process_is_watched_as_that_one(tmp_path: Path) -> None:
    dead, alive = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
    link = tmp_path / "7"  # the second gets the number of the first
    link.symlink_to(f"/proc/{dead.pid}")
    forest = Forest(str(tmp_path))
    forest.scan()
    dead.kill()
    dead.wait()
    link.unlink()
    link.symlink_to(f"/proc/{alive.pid}")
    assert forest.watch("stage:x", 7).stat.ppid == os.getpid()
    alive.kill()
    alive.wait()
    forest.close()


@pytest.mark.parametrize(("code", "ready"), [("while True: pass", 1.0), ("time.sleep(60)", 0.0)])
def test_one_that_works_is_ready_and_one_that_sleeps_is_not(code: str, ready: float) -> None:
    guest = GuestCollector(clock=Clock(offset_ns=0), period_s=0.1)
    guest.open()
    command = [sys.executable, "-c", f"import time\nprint(flush=True)\n{code}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.3)  # it has come to what it does
        guest.watch("stage:x", process.pid)
        rows = [guest.sample() for _ in range(20)]
    finally:
        process.kill()
        process.communicate()
        guest.close()
    counts = [
        row.value
        for sample in rows
        for row in sample
        if row.series.metric.name == "process_ready_count" and row.series.entity == "stage:x"
    ]
    assert counts == [ready] * 20


def test_a_stage_has_its_quotas_account_or_the_reason() -> None:
    guest = GuestCollector(clock=Clock(offset_ns=0), period_s=0.1)
    guest.open()
    guest.watch("stage:x", os.getpid(), from_start=False)
    series = {one.metric.name: one for one in guest.series_of("stage:x")}
    sampled = {row.series.metric.name for row in guest.unwatch("stage:x")
               if row.series.entity == "stage:x"}  # fmt: skip
    for name in ("throttled_seconds", "throttled_periods", "periods"):
        one = series[f"cgroup_cpu_{name}"]
        assert (one.metric.name in sampled) == (one.reason is None)
        assert one.reason in {None, "its control groups have no account of a CPU quota"}
    guest.close()


PIDS = range(11, 16)
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(PIDS), st.sampled_from("RSDX"), st.integers(0, 9)),
        st.sampled_from(["tick", "settle", "scan"]),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(steps=steps)
def test_looks_that_are_settled_later_say_what_samples_at_once_say(steps: list[Any]) -> None:
    """The forest that accounts at each look is the oracle of the one that only reads."""
    with tempfile.TemporaryDirectory() as name:
        proc = Path(name)
        put(proc, 10, 1, "S")
        for pid in PIDS:
            put(proc, pid, 10 if pid < 14 else 12, "S")
        at_once, later = Forest(name), Forest(name)
        for forest in (at_once, later):
            forest.watch("stage:x", 10)
            forest.watch("recorder", 13)
            forest.scan()
        looks: list[Any] = []
        expected: list[dict[str, TreeState]] = []
        got: list[dict[str, TreeState]] = []
        used = dict.fromkeys(PIDS, 5)
        for step in [*steps, "settle"]:
            if isinstance(step, tuple):
                pid, state, ticks = step
                used[pid] += ticks
                put(proc, pid, 10 if pid < 14 else 12, state, ticks=used[pid])
            elif step == "tick":
                expected.append(at_once.sample())
                looks.append(later.read())
            else:
                got += map(later.settle, looks)
                looks.clear()
                if step == "scan":
                    expected.append(at_once.scan()[0])
                    got.append(later.scan()[0])
        assert got == expected
        at_once.close()
        later.close()


def told(rows: Iterable[Sample]) -> list[tuple[str, str]]:
    return sorted((row.series.entity, row.series.metric.name) for row in rows)


@pytest.fixture
def one_slow_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all looks, the first alone is at all processes."""
    monkeypatch.setattr("telemetry.collectors.guest.SLOW_S", 1e9)


@pytest.mark.usefixtures("one_slow_look")
def test_a_look_is_told_once_and_by_whoever_asks_first(sleeper: int) -> None:
    guest = GuestCollector(clock=Clock(offset_ns=0), period_s=0.1)
    guest.open()
    guest.watch("stage:x", sleeper)
    assert guest.look(), "the first has all processes"
    begin_ns = time.monotonic_ns()
    assert [guest.look() for _ in range(3)] == [[], [], []]
    end_ns = time.monotonic_ns()
    rows = guest.settle()
    assert told(rows) == sorted(3 * told(guest.sample()))
    assert all(begin_ns <= row.ts_ns <= end_ns for row in rows)
    assert guest.settle() == []
    guest.look()
    before = told(guest.watch("runner", os.getpid()))
    assert ("stage:x", "cpu_user_seconds") in before
    assert before.count(("machine", "mem_used_bytes")) == 1
    assert guest.settle() == []
    guest.look()
    assert told(guest.unwatch("stage:x")).count(("machine", "mem_used_bytes")) == 1
    guest.close()


@pytest.mark.usefixtures("one_slow_look")
def test_nobody_waits_for_a_look_that_hangs() -> None:
    guest = GuestCollector(clock=Clock(offset_ns=0), period_s=0.1)
    guest.open()
    guest.sample()
    guest.look()
    with ThreadPoolExecutor() as other, guest._lock:  # as of a thread that hangs in a file
        assert other.submit(guest.settle).result(5) == []
    assert guest.settle()
    guest.close()


def test_a_look_at_all_processes_that_hangs_keeps_none_of_the_looks_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hangs, goes_on, scan = threading.Event(), threading.Event(), Forest.scan

    def hanging(forest: Forest, **how: bool) -> object:
        hangs.set()
        assert goes_on.wait(20)
        return scan(forest, **how)

    guest = GuestCollector(clock=Clock(offset_ns=0), period_s=0.1)
    guest.open()
    with monkeypatch.context() as patch:
        patch.setattr("telemetry.collectors.guest.SLOW_S", 1e9)
        guest.sample()
        usual = told(guest.look() or guest.settle())
        guest.look()
    monkeypatch.setattr(Forest, "scan", hanging)
    with ThreadPoolExecutor() as other:
        watched = other.submit(guest.watch, "runner", os.getpid())
        assert hangs.wait(20)
        assert told(guest.settle()) == usual
        goes_on.set()
        assert watched.result(20)
    guest.close()


@pytest.mark.usefixtures("one_slow_look")
def test_who_asks_for_a_process_that_is_gone_takes_no_samples_with_it() -> None:
    guest = GuestCollector(clock=Clock(offset_ns=0), period_s=0.1)
    guest.open()
    guest.sample()
    guest.look()
    with pytest.raises(ProcessLookupError):
        guest.watch("stage:x", 2**22 + 1)
    assert ("machine", "mem_used_bytes") in told(guest.settle())
    guest.close()


def test_a_file_system_that_does_not_answer_takes_nothing_else_with_it(tmp_path: Path) -> None:
    guest = GuestCollector(clock=Clock(offset_ns=0), period_s=0.1, folder=tmp_path / "gone")
    guest.open()
    names = {name for _, name in told(guest.sample())}
    assert {"cpu_count", "mem_used_bytes"} <= names
    assert "fs_free_bytes" not in names
    assert guest.losses == [f"{tmp_path}/gone: No such file or directory"]
    guest.close()


@pytest.fixture
def sleeper() -> Iterator[int]:
    process = subprocess.Popen(["sleep", "600"])
    yield process.pid
    process.kill()
    process.wait()
