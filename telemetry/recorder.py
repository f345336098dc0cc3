"""The recorder: a process of its own beside what it measures, ``python -m telemetry.recorder``.

One thread per collector samples at absolute times, so that delays do not add up; ticks that were
missed are left out. One writer thread flushes, so that no sample waits for a disk. Orders come as
JSON lines on stdin, each answered by a line on stdout; the end of stdin means that whoever started
it is gone, and ends it. It calls no tracking server and imports nothing of the pipeline.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from telemetry.clock import Clock
from telemetry.collectors import COLLECTORS
from telemetry.samples import Collector, Metric, Sample, Samples, Series
from telemetry.segments import SegmentWriter
from telemetry.settings import TelemetrySettings

SEGMENT_S = 600.0
BACK_OFF_S = 5.0
"""A collector that fails is asked again at this pace until it answers."""
_MAX_WAITING = 200_000
"""Samples that wait for a disk that does not answer, before the oldest are given up."""

UP = Metric(
    name="collector_up",
    unit="1",
    kind="gauge",
    meaning="1 where the collector's last sample succeeded, 0 where it failed",
    source="the recorder",
)
SAMPLE_SECONDS = Metric(
    name="collector_sample_seconds",
    unit="s",
    kind="counter",
    meaning="time spent in sampling",
    source="the recorder",
)
FAILURES = Metric(
    name="collector_failures",
    unit="1",
    kind="counter",
    meaning="samples that failed",
    source="the recorder",
)
MISSED = Metric(
    name="collector_missed",
    unit="1",
    kind="counter",
    meaning="samples left out because the one before took too long",
    source="the recorder",
)
HEALTH = (UP, SAMPLE_SECONDS, FAILURES, MISSED)


@dataclass
class _Worker:
    """One collector with its thread, its health and its samples that are not on disk yet."""

    collector: Collector
    writer: SegmentWriter
    clock: Clock
    losses: list[str] = field(default_factory=list)
    waiting: list[Sample] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    seconds: float = 0.0
    failures: int = 0
    missed: int = 0
    up: bool = True
    told_at_s: float = 0.0

    def __post_init__(self) -> None:
        entity = f"collector:{self.collector.name}"
        self._health = [Series(entity=entity, metric=metric) for metric in HEALTH]

    def run(self, stop: threading.Event) -> None:
        """Sample until ``stop``, at multiples of the period from the first sample on."""
        period_s = self.collector.period_s
        due_s = time.monotonic()
        while not stop.wait(max(0.0, due_s - time.monotonic())):
            pace_s = period_s if self.once() else max(period_s, BACK_OFF_S)
            due_s += pace_s
            late = int((time.monotonic() - due_s) / period_s)
            if late > 0:
                self.missed += late
                due_s += late * period_s

    def once(self) -> bool:
        """Take one sample; whatever goes wrong becomes data."""
        begin = time.perf_counter()
        try:
            rows: Samples = self.collector.sample()
            self.up = True
        except Exception as error:  # noqa: BLE001 - the one boundary of all collectors
            rows, self.up = [], False
            self.failures += 1
            self.lose(f"{self.collector.name}: {type(error).__name__}: {error}")
        self.seconds += time.perf_counter() - begin
        for loss in getattr(self.collector, "losses", ()):
            self.lose(loss)
        self.put(rows)
        return self.up

    def put(self, rows: Samples) -> None:
        with self.lock:
            self.waiting += rows
            if len(self.waiting) > _MAX_WAITING:
                del self.waiting[: len(self.waiting) - _MAX_WAITING]
                self.lose(f"{self.collector.name}: samples given up, the disk does not answer")

    def lose(self, sentence: str) -> None:
        """Note a loss once."""
        if sentence not in self.losses:
            self.losses.append(sentence)

    def flush(self) -> None:
        """Write what waits, and once a second how the collector does."""
        with self.lock:
            rows, self.waiting = self.waiting, []
        now_s = time.monotonic()
        if now_s - self.told_at_s >= 1.0:
            self.told_at_s = now_s
            figures = (float(self.up), self.seconds, float(self.failures), float(self.missed))
            now_ns = self.clock.now_ns()
            rows += [
                Sample(now_ns, one, value) for one, value in zip(self._health, figures, strict=True)
            ]
        try:
            self.writer.write(rows)
        except OSError as error:
            self.writer.abandon()
            self.lose(f"{self.collector.name}: samples not written: {error.strerror}")


class Recorder:
    """All collectors of one run, the writer, and the orders that it takes."""

    def __init__(self, folder: Path, clock: Clock, settings: TelemetrySettings) -> None:
        self._folder, self._clock, self._settings = folder, clock, settings
        self._workers: dict[str, _Worker] = {}
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        self.losses: list[str] = []

    def open(self) -> None:
        """Open each collector; one that cannot be opened is a loss, not an end."""
        for name in self._settings.collectors:
            period_s = self._settings.period_s(name)
            try:
                collector = COLLECTORS[name](self._clock, period_s, self._folder)
                series = collector.open()
            except Exception as error:  # noqa: BLE001 - the same boundary, at the beginning
                self.losses.append(f"{name}: not opened: {type(error).__name__}: {error}")
                continue
            entity = f"collector:{name}"
            health = [Series(entity=entity, metric=metric) for metric in HEALTH]
            writer = SegmentWriter(
                self._folder,
                name,
                [*series, *health],
                host=platform.node(),
                period_s=period_s,
                slow={metric.name: 1.0 for metric in HEALTH}
                | getattr(collector, "slow_periods", {}),
            )
            self._workers[name] = _Worker(collector=collector, writer=writer, clock=self._clock)
            if all(one.reason is not None for one in series):
                self._workers[name].flush()  # nothing to sample here: its reasons are the data
                continue
            self._start(self._workers[name].run)
        self._start(self._write)

    def _start(self, work: Any) -> None:
        thread = threading.Thread(target=work, args=(self._stop,), daemon=True)
        thread.start()
        self._threads.append(thread)

    def _write(self, stop: threading.Event) -> None:
        begun_s = time.monotonic()
        while not stop.wait(self._settings.flush_s):
            self.flush()
            if time.monotonic() - begun_s > SEGMENT_S:
                begun_s = time.monotonic()
                for worker in self._workers.values():
                    worker.writer.close()

    def flush(self) -> None:
        for worker in self._workers.values():
            worker.flush()

    def watch(self, entity: str, pid: int) -> None:
        guest = self._workers.get("guest")
        if guest is not None:
            guest.put(guest.collector.watch(entity, pid))  # type: ignore[attr-defined]

    def unwatch(self, entity: str) -> None:
        guest = self._workers.get("guest")
        if guest is not None:
            guest.put(guest.collector.unwatch(entity))  # type: ignore[attr-defined]

    def close(self) -> None:
        """Take a last sample of everything, write it and release the collectors."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=5)
        for worker in self._workers.values():
            worker.once()
            worker.told_at_s = 0.0
            worker.flush()
            worker.writer.close()
            worker.collector.close()

    def all_losses(self) -> list[str]:
        return [*self.losses, *(loss for one in self._workers.values() for loss in one.losses)]


def answer(recorder: Recorder, order: dict[str, Any]) -> dict[str, Any]:
    """Carry out one order; a failure is an answer."""
    try:
        match order["do"]:
            case "watch":
                recorder.watch(order["entity"], order["pid"])
            case "unwatch":
                recorder.unwatch(order["entity"])
            case "flush":
                recorder.flush()
            case "close":
                recorder.close()
            case unknown:
                return {"error": f"unknown order {unknown!r}"}
    except OSError as error:
        return {"error": f"{order['do']} {order.get('entity', '')}: {error}"}
    return {"losses": recorder.all_losses()}


def serve(recorder: Recorder, orders: TextIO, answers: TextIO) -> None:
    """Take orders until ``close`` or until nobody is left to give them."""
    recorder.open()
    recorder.watch("recorder", os.getpid())
    _say(answers, {"ready": True, "losses": recorder.all_losses()})
    for line in orders:
        order = json.loads(line)
        _say(answers, answer(recorder, order))
        if order["do"] == "close":
            return
    recorder.close()


def _say(answers: TextIO, fields: dict[str, Any]) -> None:
    try:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()
    except BrokenPipeError:
        pass  # the end of stdin is the next thing to be seen


def main() -> None:
    # Ctrl-C goes to the whole terminal; the runner ends the recorder when it is through.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    given = json.loads(sys.argv[1])
    settings = TelemetrySettings.from_json(given["settings"])
    recorder = Recorder(Path(given["folder"]), Clock(offset_ns=given["offset_ns"]), settings)
    serve(recorder, sys.stdin, sys.stdout)


if __name__ == "__main__":
    main()
