"""A recorder that dies or cannot be ended while somebody else's work goes on."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import numpy as np
import pytest

import telemetry
from infra.process import children
from telemetry import record
from telemetry.clock import Clock, measure_offset_ns
from telemetry.recording import Keeper, Recording
from telemetry.runfolder import find_run
from telemetry.segments import read_samples
from telemetry.series import SeriesIndex
from telemetry.settings import TelemetrySettings

ROOT = Path(__file__).resolve().parents[2]
LIGHT = TelemetrySettings(collectors=("guest",), flush_s=0.5)
FAULTS = "page_faults_minor"


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def clock() -> Clock:
    return Clock(offset_ns=measure_offset_ns())


def recorders_of(parent: int) -> list[int]:
    """Living recorders among the children of a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
                mine = int(fields[1]) == parent and fields[0] != b"Z"
                if mine and b"telemetry.recorder" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: state_of(pid) in {"Z", "gone"})


def another(parent: int, lost: int) -> int:
    """The recorder that stands in for one that was lost, once it is there."""
    until(lambda: any(pid != lost for pid in recorders_of(parent)))
    return next(pid for pid in recorders_of(parent) if pid != lost)


def noticed(losses: list[str], what: str) -> float:
    """When that loss was noticed, in s UTC."""
    (loss,) = [one for one in losses if what in one]
    said = re.search(r" at (\S+\+00:00)", loss)
    assert said is not None, loss
    return datetime.fromisoformat(said.group(1)).astimezone(UTC).timestamp()


def sampled_ns(samples: Path, entity: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    index = SeriesIndex(read_samples(samples))
    if (entity, FAULTS) not in index:
        return np.zeros(0, np.int64)
    return index.points(entity, FAULTS).ts_ns


RECORD = """
import sys
from pathlib import Path
from telemetry.record import record_command
from telemetry.settings import TelemetrySettings
settings = TelemetrySettings(collectors=("guest",), flush_s=0.5)
folder, code = record_command("theirs", sys.argv[2:], Path(sys.argv[1]), settings)
sys.exit(code)
"""
UNTIL = 'while [ ! -e "$0" ]; do sleep 0.05; done; exit 3'
"""A command that goes on until there is a file."""


@contextlib.contextmanager
def command_of(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``stagescope record`` of a command that goes on until ``enough`` is there."""
    enough = tmp_path / "enough"
    command = [sys.executable, "-c", RECORD, str(tmp_path / "runs"), "sh", "-c", UNTIL, str(enough)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        yield process
    finally:
        enough.touch()
        process.wait(60)


def test_a_command_is_sampled_on_by_another_recorder(tmp_path: Path) -> None:
    with command_of(tmp_path) as process:
        until(lambda: bool(list(tmp_path.glob("runs/*/samples/guest-0000.arrows"))))
        (first,) = recorders_of(process.pid)
        time.sleep(1.0)
        killed_ns = clock().now_ns()
        end(first)
        second = Path(f"/proc/{another(process.pid, first)}/status")
        # It is started with every signal blocked, and yet SIGTERM is to end it.
        until(lambda: "SigBlk:\t0000000000000000" in second.read_text())
        samples = find_run("latest", tmp_path / "runs").samples
        until(lambda: bool((sampled_ns(samples, "stage:theirs") > killed_ns).sum() >= 3))
        on_ns = clock().now_ns()
    assert process.returncode == 3
    run = find_run("latest", tmp_path / "runs").read()
    (stage,) = run["stages"]
    ts_ns = sampled_ns(samples, "stage:theirs")
    assert ts_ns[-1] >= stage["end_ns"], "it has its last counters"
    assert not any("left processes" in loss for loss in run["losses"])
    killed_s = killed_ns / 1e9
    seen_s, replaced_s = (noticed(run["losses"], one) for one in ("ended with -9", "replaced (1)"))
    assert killed_s - 1 <= seen_s <= replaced_s <= on_ns / 1e9
    assert seen_s < killed_s + 5


def test_a_span_is_sampled_on_by_another_recorder(tmp_path: Path) -> None:
    before = threading.active_count()
    with telemetry.span("train", tmp_path, LIGHT):
        time.sleep(1.0)
        (first,) = recorders_of(os.getpid())
        killed_ns = clock().now_ns()
        end(first)
        another(os.getpid(), first)
        samples = find_run("latest", tmp_path).samples
        until(lambda: bool((sampled_ns(samples, "stage:train") > killed_ns).sum() >= 3))
        on_ns = clock().now_ns()
    assert threading.active_count() == before
    assert recorders_of(os.getpid()) == []
    losses = find_run("latest", tmp_path).read()["losses"]
    seen_s, replaced_s = (noticed(losses, one) for one in ("ended with -9", "replaced (1)"))
    assert killed_ns / 1e9 - 1 <= seen_s <= replaced_s <= on_ns / 1e9


def test_one_that_died_before_the_end_is_replaced_for_the_last_counters(tmp_path: Path) -> None:
    """Nobody has looked at it in between: only the end of the stage shows that it is gone."""
    code = "x = []\nfor i in range(300): x.append(bytes(100_000))\ninput()\n"
    code += "for i in range(300): x.append(bytes(100_000))"
    with Recording(tmp_path, clock(), LIGHT) as recording:
        stage = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
        recording.watch("train", stage.pid)
        time.sleep(0.7)
        end(recording.pids()[0])
        assert stage.stdin is not None
        stage.stdin.write(b"\n")
        stage.stdin.flush()
        os.waitid(os.P_PID, stage.pid, os.WEXITED | os.WNOWAIT)
        recording.unwatch("train")
        recording.flush()
        stage.stdin.close()
        _, _, usage = os.wait4(stage.pid, 0)
        stage.returncode = 0
        kept = SeriesIndex(read_samples(tmp_path)).points("stage:train", FAULTS)
        assert kept.values[-1] == usage.ru_minflt
        after = len(kept.values)
        time.sleep(0.7)
        recording.flush()
        again = SeriesIndex(read_samples(tmp_path)).points("stage:train", FAULTS)
        assert len(again.values) == after, "it is watched no more"
    assert any("ended with -9" in loss and "(unwatch stage:train)" in loss
               for loss in recording.losses)  # fmt: skip


def test_one_that_is_replaced_in_vain_is_tried_again(tmp_path: Path) -> None:
    """The first that is to stand in cannot start: its folder is a file for a while."""
    samples, aside = tmp_path / "samples", tmp_path / "aside"
    with Recording(samples, clock(), LIGHT) as recording:
        recording.watch("train", os.getpid(), from_start=False)
        (pid,) = recording.pids()
        samples.rename(aside)
        samples.touch()
        end(pid)

        def tried() -> bool:
            recording.revive()
            return any("recorder not started" in loss for loss in recording.losses)

        until(tried)
        assert recording.pids() == []
        samples.unlink()
        aside.rename(samples)
        revived_ns = clock().now_ns()
        recording.revive()
        assert len(recording.pids()) == 1
        time.sleep(0.5)
    assert (sampled_ns(samples, "stage:train") > revived_ns).sum() >= 2
    recording.revive()
    recording.flush()
    assert recording.pids() == [], "after the end none is started"


FORK = """
import os, signal, sys, threading, time
import telemetry
from telemetry.settings import TelemetrySettings
with telemetry.Session("mine", sys.argv[1], TelemetrySettings(collectors=("guest",))) as run:
    (pid,) = run.recording.pids()
    os.kill(pid, signal.SIGSTOP)
    waits = threading.Thread(target=run.recording.flush)  # for the answer of one that is stopped
    waits.start()
    time.sleep(0.5)
    child = os.fork()
    if child == 0:
        with telemetry.span("theirs"):
            pass
        sys.exit(3)  # leaves the session's block, in the child
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    print(waits.is_alive(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    waits.join()
"""


def test_a_fork_while_an_order_is_under_way_waits_for_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(tmp_path)],
        cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "True 3\n"


AWAITS = """
import os, resource, signal, sys
import telemetry
from telemetry.settings import TelemetrySettings
files = [open("/dev/null") for _ in range(1100)] if sys.argv[2] == "files" else []
with telemetry.span("train", sys.argv[1], TelemetrySettings(collectors=("guest",))):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    os.kill(os.getpid(), signal.SIGUSR1)  # ends the process if any thread would take it
    print(signal.sigwait({signal.SIGUSR1}) == signal.SIGUSR1)
"""


@pytest.mark.parametrize("what", ["none", "files"])
def test_a_program_that_awaits_signals_or_has_many_files_open(tmp_path: Path, what: str) -> None:
    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 2048; exec "$@"', "sh",
         sys.executable, "-c", AWAITS, str(tmp_path), what],
        cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "True\n"
    losses = find_run("latest", tmp_path).read()["losses"]
    assert [loss for loss in losses if loss.startswith("recorder")] == []


def test_a_keeper_that_is_stopped_starts_nothing(tmp_path: Path) -> None:
    before = threading.active_count()
    with Recording(tmp_path, clock(), LIGHT) as recording:
        keeper = Keeper(recording)
        keeper.start()
        keeper.stop()
        keeper.stop()
        (pid,) = recording.pids()
        end(pid)
        time.sleep(1.5)
        assert recorders_of(os.getpid()) == []
    assert threading.active_count() == before


TRACER = """
import ctypes, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
print(libc.ptrace(0x4206, int(sys.argv[1]), None, None), flush=True)  # PTRACE_SEIZE
time.sleep(600)  # and asks for no news of it
"""


@contextlib.contextmanager
def kept_from_its_parent(pid: int) -> Iterator[None]:
    """Until the end of the block the process is dead to none but its tracer, which never asks.

    A parent that waits for it waits as for one that a driver holds.
    """
    tracer = subprocess.Popen([sys.executable, "-c", TRACER, str(pid)], stdout=subprocess.PIPE)
    pipe: IO[bytes] | None = tracer.stdout
    assert pipe is not None
    try:
        if pipe.readline() != b"0\n":
            pytest.skip("this kernel does not let one process trace another")
        yield
    finally:
        tracer.kill()
        tracer.wait()
        pipe.close()


def test_one_that_cannot_be_ended_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("telemetry.recording.ANSWER_S", 2.0)
    monkeypatch.setattr("telemetry.recording.REAP_S", 0.5)
    recording = Recording(tmp_path, clock(), LIGHT)
    recording.open()
    recording.watch("train", os.getpid(), from_start=False)
    (pid,) = recording.pids()
    with kept_from_its_parent(pid):
        closer = threading.Thread(target=recording.close, daemon=True)
        closer.start()
        closer.join(20)
        assert not closer.is_alive()
        assert recording.pids() == [pid], "who ends what was left running has to pass over it"
        (loss,) = [one for one in recording.losses if one.startswith("recorder")]
        assert loss.startswith(f"recorder {pid} does not end, seen at ")
        assert "it is left behind" in loss
        assert sampled_ns(tmp_path, "stage:train").size
    until(lambda: recording.pids() == [])


def test_another_goes_on_beside_one_that_cannot_be_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the kernel's part, for where no process may trace another."""

    def wait(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        assert timeout is not None, "a wait that may never end"
        if process.pid == first:
            raise subprocess.TimeoutExpired("recorder", timeout)
        return real(process, timeout)

    real, first = subprocess.Popen.wait, -1
    monkeypatch.setattr("telemetry.recording.ANSWER_S", 2.0)
    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    with Recording(tmp_path, clock(), LIGHT) as recording:
        (first,) = recording.pids()
        os.kill(first, signal.SIGSTOP)
        recording.watch("train", os.getpid(), from_start=False)
        assert len(recording.pids()) >= 1
    assert any("did not answer" in loss for loss in recording.losses)
    assert any(f"recorder {first} does not end" in loss for loss in recording.losses)
    assert sampled_ns(tmp_path, "stage:train").size


def test_what_a_command_left_and_cannot_be_ended_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(record, "REAP_S", 0.5)
    held, usual = (subprocess.Popen(["sleep", "600"]) for _ in range(2))
    try:
        with kept_from_its_parent(held.pid):
            left = {held.pid, usual.pid}
            before = {one for one in children() if one.pid not in left}
            begin_s = time.monotonic()
            ended, kept = record._end_orphans(before, [])
            assert time.monotonic() - begin_s < 10
            assert (len(ended), kept) == (1, {held.pid})
    finally:
        for one in (held, usual):
            one.kill()
            one.wait(20)
