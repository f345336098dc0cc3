"""The recorder: a process of its own beside what it measures, ``python -m telemetry.recorder``.

One thread per collector samples at absolute times, so that delays do not add up; ticks that were
missed are left out. One writer thread flushes, so that no sample waits for a disk. Orders come as
JSON lines on stdin, each answered by a line on stdout; the end of stdin means that whoever started
it is gone, and ends it. It calls no tracking server and imports nothing of the pipeline.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import platform
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from telemetry.clock import Clock
from telemetry.collectors import COLLECTORS
from telemetry.health import HEALTH, Stop, Worker, next_moment
from telemetry.samples import Collector, Sample, Series
from telemetry.segments import SegmentWriter
from telemetry.settings import TelemetrySettings

JOIN_S = 2.0
"""Collectors that hang (a driver that does not answer) are left behind after this."""
READY_S = 5.0
"""So long a collector may take to open (a driver to load) before orders are taken without it."""
ORPHANED_S = 1.0
"""How often it is asked whether the parent lives: a fork of it can hold stdin open."""
GC_ROWS = 50_000
"""New objects until the next collection; the usual 700 are made every second."""
PHASE_S = 0.002
"""Collectors sample so long one after another, and the writer follows: their values are of nearly
one moment, none waits for another's interpreter lock, and all but the first find warm caches."""

Factory = Callable[[Clock, TelemetrySettings, Path | None], Collector]


@runtime_checkable
class Watcher(Protocol):
    """A collector that samples process trees."""

    def watch(
        self, entity: str, pid: int, *, from_start: bool = True, orphans: bool = False
    ) -> list[Sample]: ...
    def unwatch(self, entity: str) -> list[Sample]: ...
    def series_of(self, entity: str) -> Sequence[Series]: ...


class Recorder:
    """All collectors of one run, the writer, and the orders that it takes."""

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        settings: TelemetrySettings,
        collectors: dict[str, Factory] | None = None,
    ) -> None:
        self._folder, self._clock, self._settings = folder, clock, settings
        self._collectors = COLLECTORS if collectors is None else collectors
        self._workers: dict[str, Worker] = {}
        self._threads: list[threading.Thread] = []
        self._stop = Stop()
        self._losses: list[str] = []

    def open(self) -> None:
        """Start each collector; one that cannot be opened is a loss, and tried again."""
        for place, name in enumerate(self._settings.collectors):
            worker = Worker(
                collector=self._collectors[name](self._clock, self._settings, self._folder),
                writer=SegmentWriter(
                    self._folder,
                    name,
                    [Series(entity=f"collector:{name}", metric=metric) for metric in HEALTH],
                    host=platform.node(),
                    period_s=self._settings.period_s(name),
                    slow={metric.name: 1.0 for metric in HEALTH},
                    offset_ns=self._clock.offset_ns,
                ),
                clock=self._clock,
                phase_s=place * PHASE_S,
            )
            self._workers[name] = worker
            self._start(worker.run)
        deadline_s = time.monotonic() + READY_S
        for worker in self._workers.values():
            if not worker.remote:
                worker.ready.wait(max(0.0, deadline_s - time.monotonic()))
        self._start(self._write)

    def _start(self, work: Callable[[Stop], None]) -> None:
        # Daemons: the process has to end even if a driver keeps one of them.
        thread = threading.Thread(target=work, args=(self._stop,), daemon=True)
        thread.start()
        self._threads.append(thread)

    def _write(self, stop: Stop) -> None:
        period_s, phase_s = self._settings.flush_s, len(self._workers) * PHASE_S
        now_s = time.monotonic()
        while not stop.wait(next_moment(now_s, period_s, phase_s) - now_s):
            self.flush()
            now_s = time.monotonic()

    def flush(self) -> None:
        """Have everything on disk that was sampled until now."""
        for worker in self._workers.values():
            worker.flush()

    def watch(
        self, entity: str, pid: int, *, from_start: bool = True, orphans: bool = False
    ) -> None:
        """Sample a process tree. Raises ProcessLookupError if there is no such process."""
        for worker, watcher in self._watchers():
            worker.put(watcher.watch(entity, pid, from_start=from_start, orphans=orphans))
            worker.declare(watcher.series_of(entity))

    def unwatch(self, entity: str) -> None:
        """Take a last sample of a tree and forget it."""
        for worker, watcher in self._watchers():
            worker.put(watcher.unwatch(entity))

    def _watchers(self) -> Iterator[tuple[Worker, Watcher]]:
        for worker in self._workers.values():
            if worker.opened and isinstance(worker.collector, Watcher):
                yield worker, worker.collector

    def close(self) -> None:
        """Take a last sample of everything, write it and release the collectors."""
        self._stop.set()
        for worker in self._workers.values():
            worker.halt()
        deadline_s = time.monotonic() + JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        for name, worker in self._workers.items():
            try:
                worker.close()
            except OSError as error:  # some file systems tell only now that they kept not all
                worker.lose(f"{name}: its last samples may be missing: {error.strerror}")

    def losses(self) -> list[str]:
        """What was lost so far, a sentence each."""
        return [loss for worker in self._workers.values() for loss in worker.losses()]


def answer(recorder: Recorder, line: bytes) -> dict[str, Any]:
    """Carry out one order; a failure is an answer."""
    try:
        order = json.loads(line)
        match order.pop("do"):
            case "watch":
                recorder.watch(**order)
            case "unwatch":
                recorder.unwatch(**order)
            case "flush":
                recorder.flush()
            case "close":
                recorder.close()
                return {"closed": True, "losses": recorder.losses()}
            case unknown:
                return {"error": f"unknown order {unknown!r}"}
    except Exception as error:  # noqa: BLE001 - the boundary of all orders
        return {"error": f"{type(error).__name__}: {error} (at {line.decode().strip()})"}
    return {"losses": recorder.losses()}


def serve(recorder: Recorder, terminated: int) -> None:
    """Take orders until ``close``, until nobody is left to give them, or ``terminated``.

    ``terminated``: a descriptor that has something to read once the end is asked for.
    """
    parent = os.getppid()
    recorder.open()
    with contextlib.suppress(OSError):  # its own end would be its smallest trouble
        recorder.watch("recorder", os.getpid())
    gc.freeze()  # what is here now stays: collections need not look through it
    gc.set_threshold(GC_ROWS)  # rows are in no cycles, and live until they are written
    _say({"ready": os.getpid(), "losses": recorder.losses()})
    for line in _orders(sys.stdin.fileno(), terminated, parent):
        said = answer(recorder, line)
        _say(said)
        if said.get("closed"):
            return
    recorder.close()


def _orders(stdin: int, terminated: int, parent: int) -> Iterator[bytes]:
    buffer = b""
    while os.getppid() == parent:
        ready, _, _ = select.select([stdin, terminated], [], [], ORPHANED_S)
        if terminated in ready:
            return
        if not ready:
            continue
        chunk = os.read(stdin, 1 << 16)
        if not chunk:
            return
        *lines, buffer = (buffer + chunk).split(b"\n")
        yield from lines


def _say(fields: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # the end of stdin is the next thing to be seen
        os.write(sys.stdout.fileno(), json.dumps(fields).encode() + b"\n")


def main() -> None:
    # Ctrl-C goes to the whole terminal; whoever started the recorder ends it when through.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A number in a pipe interrupts nothing halfway: an order is carried out, then it ends.
    terminated, tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    # Who started it may wait for signals with all of them blocked: a mask is inherited.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two files per process stay open
    given = json.loads(sys.argv[1])
    settings = TelemetrySettings.from_json(given["settings"])
    recorder = Recorder(Path(given["folder"]), Clock(offset_ns=given["offset_ns"]), settings)
    serve(recorder, terminated)


if __name__ == "__main__":
    main()
