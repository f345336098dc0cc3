"""Somebody else's command as a stage: its own output and exit code, and a profile of it."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from infra.process import REAP_S, Child, adopt_orphans, children, terminated_as_interrupted
from telemetry.runfolder import RunFolder
from telemetry.session import Session
from telemetry.settings import TelemetrySettings

FORWARDED = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})
_AWAITED = FORWARDED | {signal.SIGCHLD}
STDOUT = 1
_CHECK_S = 1.0
_LOOK_S = 0.01
_SI_KERNEL = 0x80
"""si_code of a signal that the terminal sent, to every process in it (asm-generic/siginfo.h)."""


def record_command(
    name: str,
    command: list[str],
    out: Path,
    settings: TelemetrySettings | None = None,
    *,
    say: Callable[[str], None] = lambda sentence: None,
    stdout: int = STDOUT,
) -> tuple[RunFolder, int]:
    """Run ``command`` under a recorder; returns the run's folder and the command's exit code.

    A command that a signal ended has 128 + its number, as in a shell; where this process was told
    by one to end, or the terminal told both, the run is ``interrupted``, whatever the command made
    of it. ``stdout``: the descriptor that the command writes its output to. What it leaves running
    is killed. A disk that fills up costs the profile, not the command's exit code. ``say`` is told
    what the end waits for, and what is lost. To be called in the main thread. Raises
    FileNotFoundError if there is no such command, before anything is made.
    """
    if not command or shutil.which(command[0]) is None:
        named = repr(command[0]) if command else "given"
        raise FileNotFoundError(f"no command {named}: not on PATH, and not an executable file")
    adopt_orphans()
    session = Session(name, out, settings, say=say)
    session.open()
    status = "failed"
    try:
        code, is_cut = _run(session, name, command, stdout)
        status = "interrupted" if is_cut else "finished" if code == 0 else "failed"
    finally:
        with terminated_as_interrupted():
            session.close(status)
    return session.folder, code


def _run(session: Session, name: str, command: list[str], stdout: int) -> tuple[int, bool]:
    """The command's exit code, and whether it was told to end before it did."""
    before = children()
    with _blocked() as mask:
        start_ns = session.clock.now_ns()
        # Not by subprocess: its signals must be as ours were before, and it stays a zombie.
        pid = os.posix_spawnp(
            command[0],
            command,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, stdout, STDOUT)] if stdout != STDOUT else [],
            setsigmask=mask,
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
        entry = session.begin(name, pid, start_ns)
        is_cut = _follow(pid)
    session.end(entry)
    _, status, usage = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    reason = None if code == 0 else f"exit code {code}" if code > 0 else signal.Signals(-code).name
    session.keeper.stop()  # a recorder that it starts would pass for one of what was left
    left, kept = _end_orphans(before, session.recording.pids())
    session.record["losses"] += _told(name, left, kept)
    entry |= {
        "status": "finished" if code == 0 else "failed",
        "reason": reason,
        "rusage": _together([usage, *left]),
        "exit_code": code,
        "command": command,
    }
    return code if code >= 0 else 128 - code, is_cut


def _told(name: str, ended: list[resource.struct_rusage], kept: set[int]) -> Iterator[str]:
    """What is to be said of the processes that a command left."""
    if ended:
        yield f"{name} left processes running: {len(ended)}, now ended"
    if kept:
        numbers = ", ".join(map(str, sorted(kept)))
        yield (
            f"{name} left processes that do not end when killed, as a driver or disk holds them: "
            f"{numbers}; they are left behind, and not in its account"
        )


@contextlib.contextmanager
def _blocked() -> Iterator[set[int]]:
    """Let signals wait until they are asked for; yields what was blocked before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    try:
        yield {int(number) for number in before}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow(pid: int) -> bool:
    """Pass signals on until the command has ended; it stays a zombie with readable counters.

    Returns whether there were any: the terminal sends its own to the command as well.
    """
    is_cut = False
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        told = signal.sigtimedwait(_AWAITED, _CHECK_S)
        if told is None or told.si_signo == signal.SIGCHLD:
            continue
        is_cut = True
        if told.si_code != _SI_KERNEL:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, told.si_signo)
    # The Ctrl-C that ended the command was meant for it, and is not to end the report.
    while (told := signal.sigtimedwait(_AWAITED, 0)) is not None:
        is_cut |= told.si_signo != signal.SIGCHLD
    return is_cut


def _end_orphans(
    before: set[Child], spare: Iterable[int]
) -> tuple[list[resource.struct_rusage], set[int]]:
    """Kill the children that came to this process since ``before``.

    Returns the kernel's account of each, and those that did not end in time.
    """
    spared = set(spare)
    usages: list[resource.struct_rusage] = []
    kept: set[int] = set()
    while left := {one.pid for one in children() - before} - spared - kept:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline_s = time.monotonic() + REAP_S
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                usage = _reaped(pid, deadline_s)
                if usage is None:
                    kept.add(pid)
                else:
                    usages.append(usage)
    return usages, kept


def _reaped(pid: int, deadline_s: float) -> resource.struct_rusage | None:
    """The kernel's account of a child once it has ended; None if it does not in time.

    Raises ChildProcessError where there is no such child.
    """
    while True:
        ended, _, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            return usage
        if time.monotonic() > deadline_s:
            return None
        time.sleep(_LOOK_S)


def _together(usages: list[resource.struct_rusage]) -> dict[str, Any]:
    """The kernel's account of the command and of what it left behind."""
    return {
        "user_s": sum(one.ru_utime for one in usages),
        "system_s": sum(one.ru_stime for one in usages),
        "max_rss_bytes": max(one.ru_maxrss for one in usages) * 1024,
        "read_bytes": sum(one.ru_inblock for one in usages) * 512,
        "write_bytes": sum(one.ru_oublock for one in usages) * 512,
    }
