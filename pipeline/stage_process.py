"""A stage's process as the runner sees it, and the signals that may come while it runs."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from infra.process import REAP_S, tied
from pipeline.artifact import Manifest

_TICK_S = 1.0
_LOOK_S = 0.02
_GRACE_S = 3.0
"""Time between asking a stage to end and ending it."""


class StageProcess:
    """The process of one stage: its reports, its end and what the kernel says it used."""

    def __init__(self, name: str, order: Path, log: Path, *, without: Iterable[str] = ()) -> None:
        """``without``: variables of the environment that are none of the stage's business."""
        self.name, self._order, self._log = name, order, log
        self._without = frozenset(without)
        self._buffer = b""
        self.started = self.is_held = False
        self._error: str | None = None
        self._exit = 0
        self.manifest: Manifest | None = None
        self.losses: list[str] = []

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        self._reports, to_runner = os.pipe()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                tied("pipeline.child", str(self._order), str(to_runner)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={key: it for key, it in os.environ.items() if key not in self._without},
                pass_fds=(to_runner,),
                start_new_session=True,
            )
        self.started = True
        os.close(to_runner)

    def follow(self, progress: Callable[[int, int], None], tick: Callable[[], None]) -> None:
        """Read reports until the process has ended (it stays a zombie, its counters readable).

        ``tick`` is called about once a second.
        """
        ended = os.pidfd_open(self.pid)
        sources = [ended, self._reports]
        ticked_s = time.monotonic()
        try:
            while ended in sources:
                ready = select.select(sources, [], [], _TICK_S)[0]
                if time.monotonic() - ticked_s >= _TICK_S:
                    ticked_s = time.monotonic()
                    tick()
                if self._reports in ready and not self._read(progress):
                    sources.remove(self._reports)
                elif ended in ready:
                    break
            while self._reports in sources and self._read(progress):
                pass
        finally:
            os.close(ended)
            os.close(self._reports)

    def _read(self, progress: Callable[[int, int], None]) -> bool:
        chunk = os.read(self._reports, 1 << 16)
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        for line in lines:
            report = json.loads(line)
            if "manifest" in report:
                self.manifest = Manifest.from_json(report["manifest"])
            elif "error" in report:
                self._error = report["error"]
            elif "loss" in report:
                self.losses.append(report["loss"])
            else:
                progress(report["done"], report["total"])
        return bool(chunk)

    def stop(self, note: Callable[[str], None]) -> None:
        """End the process and its group: politely, then not. One that is held does not end."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGTERM)
            _await_end(self.pid, _GRACE_S)
            os.killpg(self.pid, signal.SIGKILL)
        if not _await_end(self.pid, _GRACE_S):
            note(f"{self.name}: waiting up to {REAP_S:g} s: a driver or disk holds {self.pid}")
            _await_end(self.pid, REAP_S)

    def reap(self) -> dict[str, Any]:
        """Collect the process and return its exit code and the kernel's account of its tree.

        Nothing of one that has not ended: ``is_held`` by a call into a driver or a disk.
        """
        ended, status, usage = os.wait4(self.pid, os.WNOHANG)
        self.is_held = not ended
        if self.is_held:
            return {}
        self._exit = os.waitstatus_to_exitcode(status)
        self._process.returncode = self._exit
        return {
            "exit_code": self._exit,
            "rusage": {
                "user_s": usage.ru_utime,
                "system_s": usage.ru_stime,
                "max_rss_bytes": usage.ru_maxrss * 1024,
                "read_bytes": usage.ru_inblock * 512,
                "write_bytes": usage.ru_oublock * 512,
            },
        }

    def why(self) -> str:
        """A sentence on why there are no outputs."""
        if self._error:
            return self._error
        if self._exit < 0:
            name = signal.Signals(-self._exit).name
            return f"killed by {name} (log: {self._log})"
        return f"ended with exit code {self._exit} (log: {self._log})"


def _await_end(pid: int, most_s: float) -> bool:
    """Wait until a child has ended (it stays a zombie), but not for longer; whether it has."""
    deadline_s = time.monotonic() + most_s
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if time.monotonic() > deadline_s:
            return False
        time.sleep(_LOOK_S)
    return True


class Interrupts:
    """Ctrl-C and SIGTERM alike become KeyboardInterrupt, but not while they are held."""

    def __init__(self) -> None:
        self._held = self._pending = False

    def __enter__(self) -> Interrupts:
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._arrived) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, frame: object) -> None:
        if not self._held:
            raise KeyboardInterrupt
        self._pending = True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let what must not be torn apart end first."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt
