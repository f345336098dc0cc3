"""The recorder as its starter sees it: started, told what to watch, ended, replaced if lost."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from telemetry.clock import Clock
from telemetry.settings import TelemetrySettings

OPEN_S = 30.0
"""Starting Python and importing Arrow on a machine that is busy."""
ANSWER_S = 5.0
REAP_S = 5.0
"""A killed recorder is waited for so long: one that a driver or a disk holds does not end."""
REVIVE_S = 1.0
RESTARTS = 3
LOG = "recorder.log"
WHOLE_NAMES = frozenset({"runner", "recorder"})
_ROOM = Path(__file__).resolve().parents[1]


class Recording:
    """A recorder beside this process. No call raises for it: a lost one is a line in ``losses``.

    Safe for several threads. ``open`` and ``close``, or a ``with``. In a fork of the process that
    opened it the calls do nothing: the recorder is not the fork's.
    """

    def __init__(self, folder: Path, clock: Clock, settings: TelemetrySettings) -> None:
        self._folder, self._clock, self._settings = folder, clock, settings
        self._process: subprocess.Popen[bytes] | None = None
        self._left: list[subprocess.Popen[bytes]] = []
        self._opened_by: int | None = None
        self._buffer = b""
        self._watched: dict[str, dict[str, Any]] = {}
        self._restarts = 0
        self._said: dict[str, None] = {}
        self._of_recorder: list[str] = []
        self._lock = threading.RLock()

    @property
    def losses(self) -> list[str]:
        """What was lost so far, a sentence each."""
        return [*self._said, *self._of_recorder]

    def pids(self) -> list[int]:
        """The recorder's process, if it lives, and those before it that would not end."""
        process = self._process
        left = [one.pid for one in self._left if one.poll() is None]
        return left if process is None else [process.pid, *left]

    def open(self) -> None:
        """Start the recorder and wait until it samples."""
        with self._lock:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._opened_by = os.getpid()
            self._start()

    def watch(self, name: str, pid: int, *, from_start: bool = True, orphans: bool = False) -> None:
        """Sample the tree of ``pid`` as ``stage:<name>``; ``runner`` is an entity of its own.

        Returns when its first sample is taken. With ``from_start`` its counters begin with 0 at
        the start of the process, else with what it has used by now. ``orphans``: its parent is a
        subreaper and starts nothing else, so that what it adopts from now on is of this tree.
        """
        tree = {"entity": _entity(name), "pid": pid, "orphans": orphans}
        with self._turn() as is_open:
            if is_open:
                self._watched[_entity(name)] = tree
                self._order({"do": "watch", **tree, "from_start": from_start})

    def unwatch(self, name: str) -> None:
        """Take a last sample of the tree; its root may be a zombie that was not waited for yet.

        If the recorder is lost by now, the next one takes that sample.
        """
        with self._turn() as is_open:
            if is_open:
                self._order({"do": "unwatch", "entity": _entity(name)})
                self._watched.pop(_entity(name), None)

    def flush(self) -> None:
        """Have everything on disk that was sampled until now."""
        with self._turn() as is_open:
            if is_open:
                self._order({"do": "flush"})

    def revive(self) -> None:
        """Replace the recorder if it is lost. To be called about every second."""
        with self._turn() as is_open:
            process = self._process
            if not is_open or (process is not None and process.poll() is None):
                return
            if process is not None:
                self._lost("idle")
            self._replace()

    def close(self) -> None:
        """End the recorder after a last sample of everything.

        Returns in a bounded time: a recorder that cannot be ended is left behind.
        """
        with self._turn() as is_open:
            if not is_open:
                return
            self._watched.clear()
            if self._process is not None and self._tell({"do": "close"}):
                self._end()
            self._opened_by = None
            log = self._folder / LOG
            with contextlib.suppress(OSError):
                if log.stat().st_size == 0:
                    log.unlink()

    def __enter__(self) -> Recording:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[bool]:
        """Take the lock; yields whether the recording is open.

        Not in a fork: there the lock may be one that nobody lets go of any more.
        """
        if self._opened_by != os.getpid():
            yield False
            return
        with self._lock:
            yield self._opened_by is not None

    def _start(self) -> None:
        self._buffer = b""
        given = {
            "folder": str(self._folder.resolve()),
            "offset_ns": self._clock.offset_ns,
            "settings": self._settings.to_json(),
        }
        try:
            with (self._folder / LOG).open("ab") as log:
                self._process = subprocess.Popen(
                    # -P: a folder of the user's that is called telemetry must not be in its way.
                    [sys.executable, "-P", "-m", "telemetry.recorder", json.dumps(given)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                    env=_environment(),
                )
        except OSError as error:
            self._lose(f"recorder not started: {error}")
            return
        if self._answer(OPEN_S) is None:
            self._lost("start")

    def _order(self, order: dict[str, Any]) -> None:
        """Have an order carried out, by another recorder if this one is lost on the way."""
        if self._process is not None and self._tell(order):
            return
        if self._replace() and order["do"] != "watch":  # it watches what is to be watched
            self._tell(order)

    def _tell(self, order: dict[str, Any]) -> bool:
        """Send one order; False if the recorder is lost."""
        assert self._process is not None
        assert self._process.stdin is not None
        said = None
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            said = self._answer(ANSWER_S)
        if said is None:
            self._lost(f"{order['do']} {order.get('entity', '')}".rstrip())
            return False
        if "error" in said:
            self._lose(f"recorder: {said['error']}")
        return True

    def _replace(self) -> bool:
        """Start another recorder that goes on with what is watched; a few times, then never."""
        if self._restarts >= RESTARTS:
            return False
        self._restarts += 1
        self._start()
        if self._process is None:
            return False
        of_times = f"({self._restarts}) at {self._now()}"
        self._lose(f"recorder replaced {of_times}; samples are missing in between")
        return all(
            self._tell({"do": "watch", **tree, "from_start": False})
            for tree in self._watched.values()
        )

    def _answer(self, timeout_s: float) -> dict[str, Any] | None:
        """One answer, or None if it does not come in time or never will."""
        assert self._process is not None
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        deadline_s = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not _has_something(handle, left_s):
                return None
            chunk = os.read(handle, 1 << 16)
            if not chunk:
                return None
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        self._of_recorder = said.get("losses", self._of_recorder)
        return said

    def _lost(self, when: str) -> None:
        """Note how the recorder was lost, and see to it that nothing is left of it."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.1)  # a pipe that broke comes a little before the end
        code = self._process.poll()
        how = "did not answer" if code is None else f"ended with {code}"
        self._lose(f"recorder {how}, seen at {self._now()} ({when}){self._last_words()}")
        # Its losses will not be told again: the next one has its own.
        self._said |= dict.fromkeys(self._of_recorder)
        self._of_recorder = []
        if code is None:
            self._process.kill()
        self._end()

    def _now(self) -> str:
        moment = datetime.fromtimestamp(self._clock.now_ns() / 1e9, UTC)
        return moment.isoformat(timespec="seconds")

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self._folder / LOG).read_text(errors="replace").strip().splitlines()
            if lines:
                return f": {lines[-1]}"
        return ""

    def _end(self) -> None:
        """See the process out: closing its stdin ends it, a kill does if that does not."""
        process, self._process = self._process, None
        assert process is not None
        pipes: tuple[IO[bytes] | None, ...] = (process.stdin, process.stdout)
        for pipe in pipes:
            with contextlib.suppress(OSError):  # what was to be written has no reader any more
                if pipe is not None:
                    pipe.close()
        try:
            process.wait(ANSWER_S)
        except subprocess.TimeoutExpired:
            process.kill()
            self._reap(process)

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for a killed recorder, but not for ever: a call into a driver can keep it."""
        try:
            process.wait(REAP_S)
        except subprocess.TimeoutExpired:
            self._left.append(process)
            self._lose(
                f"recorder {process.pid} does not end, seen at {self._now()}: a driver or disk "
                "holds it; it is left behind"
            )

    def _lose(self, sentence: str) -> None:
        self._said[sentence] = None


class Keeper:
    """A thread that replaces a lost recorder within about a second, while other work goes on.

    It sleeps on an event, and takes no signals: those are for the program's own threads.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="recorder-keeper", daemon=True)

    def start(self) -> None:
        """Begin, once, after the recording was opened."""
        # A thread begins with the signals blocked that its starter has blocked.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def stop(self) -> None:
        """See the thread out: from then on it starts no recorder. Twice is no trouble."""
        self._stop.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._stop.wait(REVIVE_S):
            self._recording.revive()


def _entity(name: str) -> str:
    return name if name in WHOLE_NAMES else f"stage:{name}"


def _environment() -> dict[str, str]:
    """The recorder's environment: small, of one thread, and with this very package."""
    paths = [str(_ROOM), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _has_something(handle: int, timeout_s: float) -> bool:
    """Whether there is something to read, or the end, in time. ``select`` knows 1024 handles."""
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(1e3 * timeout_s))
