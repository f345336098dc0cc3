"""What a killed run leaves behind, and how the next one puts it in order."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from infra.process import REAP_S, Child, children
from pipeline.artifact import STORE, Store
from pipeline.hypervisor import fetch_windows
from telemetry.finish import finish
from telemetry.runfolder import REPLAYED, RunFolder, is_abandoned, killed, list_runs

_LOOK_S = 0.002


def recover_dead_runs(out: Path, store: Store, note: Callable[[str], None]) -> None:
    """End the record of every run whose runner is gone, and delete its half-made outputs.

    A run is alive as long as its runner holds its lock; the kernel drops it at any death. A replay
    is nobody's run: it holds its own folder, and the next one takes its place.
    """
    for folder in list_runs(out):
        record, name = folder.read(), folder.path.name
        is_ours = "recipe" in record and not (folder.path / REPLAYED).is_file()
        if record["status"] != "running" or not is_ours:
            continue
        with store.locked(f"run-{name}", wait=False) as dead:
            if dead and folder.read()["status"] == "running":
                _end(folder, store, note)
                note(f"run {name} was killed: its finished stages are used again")


def is_dead(folder: RunFolder, out: Path) -> bool:
    """Whether nobody holds a run or a replay any more; False where nobody ever held it."""
    store, name = Store(out.resolve() / STORE), f"run-{folder.path.name}"
    if not store.has_lock(name):
        return is_abandoned(folder)
    with store.locked(name, wait=False) as free:
        return free


def _end(folder: RunFolder, store: Store, note: Callable[[str], None]) -> None:
    record = folder.read()
    store.drop_scratch(folder.path.name)
    folder.write(killed(record, folder.samples))
    fetch_windows(folder, note, wait=False)
    finish(folder)


def kill_children(spare: Iterable[int], before: Collection[Child] = ()) -> list[int]:
    """Kill and reap what a stage left running: it has become a child of this process.

    ``before``: the children that were there before any stage, which are none of a stage's.
    Returns those that do not end within ``REAP_S``: a call into a driver or a disk that hangs
    holds them, and nobody can end them until it returns.
    """
    spared = set(spare)
    deadline_s = time.monotonic() + REAP_S
    while left := [one.pid for one in children().difference(before) if one.pid not in spared]:
        if time.monotonic() > deadline_s:
            return left
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(_LOOK_S)
    return []
