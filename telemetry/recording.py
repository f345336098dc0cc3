"""The recorder as its starter sees it: started, told what to watch, ended, replaced if lost."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from telemetry.clock import Clock
from telemetry.settings import TelemetrySettings

OPEN_S = 30.0
ANSWER_S = 5.0
RESTARTS = 3


class Recording:
    """A recorder beside this process. No call raises for it: a lost one is a line in ``losses``."""

    def __init__(self, folder: Path, clock: Clock, settings: TelemetrySettings) -> None:
        self._folder, self._clock, self._settings = folder, clock, settings
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._watched: dict[str, int] = {}
        self._restarts = 0
        self._said: list[str] = []

    @property
    def losses(self) -> list[str]:
        """What was lost so far, a sentence each."""
        return list(self._said)

    def pids(self) -> list[int]:
        """The recorder's process, if it lives."""
        return [] if self._process is None else [self._process.pid]

    def open(self) -> None:
        """Start the recorder and wait until it samples."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._start()

    def watch(self, name: str, pid: int) -> None:
        """Sample the tree of ``pid`` as ``stage:<name>``; ``runner`` is an entity of its own."""
        entity = name if name == "runner" else f"stage:{name}"
        self._watched[entity] = pid
        self._order({"do": "watch", "entity": entity, "pid": pid})

    def unwatch(self, name: str) -> None:
        """Take a last sample of the tree; its root may be a zombie that was not waited for yet."""
        entity = name if name == "runner" else f"stage:{name}"
        self._watched.pop(entity, None)
        self._order({"do": "unwatch", "entity": entity})

    def flush(self) -> None:
        """Have everything on disk that was sampled until now."""
        self._order({"do": "flush"})

    def close(self) -> None:
        """End the recorder after a last sample of everything."""
        if self._process is None:
            return
        self._order({"do": "close"}, restart=False)
        self._end()

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

    def _start(self) -> None:
        self._buffer = b""
        given = {
            "folder": str(self._folder),
            "offset_ns": self._clock.offset_ns,
            "settings": asdict(self._settings),
        }
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "telemetry.recorder",
                    json.dumps(given),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
                env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1"},
            )
        except OSError as error:
            self._lose(f"recorder not started: {error}")
            return
        answer = self._read(OPEN_S)
        if answer is None:
            self._lose("recorder did not answer when it was started")
            self._end()

    def _order(self, order: dict[str, Any], *, restart: bool = True) -> None:
        if self._process is None and not (restart and self._replace()):
            return
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            answer = self._read(ANSWER_S)
        except OSError:
            answer = None
        if answer is not None:
            if "error" in answer:
                self._lose(f"recorder: {answer['error']}")
            for loss in answer.get("losses", ()):
                self._lose(loss)
            return
        code = self._process.poll()
        how = "did not answer" if code is None else f"ended with {code}"
        self._lose(f"recorder {how} at {order['do']} {order.get('entity', '')}".rstrip())
        self._end()
        if restart and self._replace() and order["do"] == "unwatch":
            return  # the new one never knew it

    def _replace(self) -> bool:
        """Start another recorder that goes on with what is watched; a few times, then never."""
        if self._restarts >= RESTARTS:
            return False
        self._restarts += 1
        self._start()
        if self._process is None:
            return False
        self._lose(f"recorder replaced, samples are missing in between ({self._restarts})")
        for entity, pid in list(self._watched.items()):
            self._order({"do": "watch", "entity": entity, "pid": pid}, restart=False)
        return self._process is not None

    def revive(self) -> None:
        """Replace the recorder if it has ended unasked. To be called now and then."""
        if self._process is not None and self._process.poll() is not None:
            self._lose(f"recorder ended with {self._process.returncode}")
            self._end()
            self._replace()

    def _read(self, timeout_s: float) -> dict[str, Any] | None:
        """One answer, or None if it does not come in time or never will."""
        assert self._process is not None
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([handle], [], [], left)[0]:
                return None
            chunk = os.read(handle, 1 << 16)
            if not chunk:
                return None
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return dict(json.loads(line))

    def _end(self) -> None:
        """See the process out: closing its stdin ends it, a kill does if that does not."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was still to be written has no reader
                    pipe.close()
        try:
            process.wait(ANSWER_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _lose(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.append(sentence)
