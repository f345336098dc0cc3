"""Somebody else's command as a stage: its own output and exit code, and a profile of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from infra.process import adopt_orphans
from telemetry.runfolder import RunFolder
from telemetry.session import Session
from telemetry.settings import TelemetrySettings

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def record_command(
    name: str, command: list[str], out: Path, settings: TelemetrySettings | None = None
) -> tuple[RunFolder, int]:
    """Run ``command`` under a recorder; returns the run's folder and the command's exit code.

    A command that a signal ended has 128 + its number, as in a shell. Raises FileNotFoundError if
    there is no such command, before anything is made.
    """
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(
            f"no command {command[0]!r}: not on PATH, and not an executable file"
        )
    adopt_orphans()
    session = Session(name, out, settings)
    session.open()
    status = "failed"
    try:
        code = _run(session, name, command)
        status = "finished" if code == 0 else "failed"
    finally:
        session.close(status)
    return session.folder, code


def _run(session: Session, name: str, command: list[str]) -> int:
    process = subprocess.Popen(command)
    with _forwarding(process):
        entry = session.begin(name, process.pid)
        # The process stays a zombie, its counters readable, until the last sample has been taken.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    session.end(entry)
    _, status, usage = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    process.returncode = code
    rusage = {
        "user_s": usage.ru_utime,
        "system_s": usage.ru_stime,
        "max_rss_bytes": usage.ru_maxrss * 1024,
    }
    ended_well = code == 0
    reason = None if ended_well else f"exit code {code}" if code > 0 else signal.Signals(-code).name
    entry |= {
        "status": "finished" if ended_well else "failed",
        "reason": reason,
        "rusage": rusage,
        "exit_code": code,
        "command": command,
    }
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def _forwarding(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Pass signals on to the command, whose end then is the end of the recording."""

    def forward(number: int, frame: object) -> None:
        if number != signal.SIGINT:  # Ctrl-C has reached the whole terminal already
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
