"""A collector at work: its thread, its health and its samples on their way to the disk.

A collector whose ``remote`` is true asks another machine. Nobody waits for that one: not for its
opening at the start, nor at the end, where it is told to ``halt`` and takes no last sample. One
that can be asked again for what could not be written has a ``take_back``.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from telemetry.clock import Clock
from telemetry.samples import Collector, Metric, Sample, Samples, Series
from telemetry.segments import SegmentWriter

MOST_BACK_OFF_S = 30.0
"""A collector that fails is asked again after twice the time each time, and at least so often."""
MOST_WAITING = 200_000
"""Rows that wait for a disk that hangs; ten minutes of an ordinary machine."""
HUNG_S = 5.0
"""A sample that takes longer than this means that its collector is down."""


def _metric(name: str, unit: str, meaning: str, *, counter: bool = True) -> Metric:
    return Metric(
        name=name,
        unit=unit,
        kind="counter" if counter else "gauge",
        meaning=meaning,
        source="the recorder, 1 Hz",
    )


UP = _metric("collector_up", "1", "1 while the collector's samples succeed, else 0", counter=False)
SAMPLE_SECONDS = _metric("collector_sample_seconds", "s", "time spent in sampling")
FAILURES = _metric("collector_failures", "1", "samples that failed")
MISSED = _metric("collector_missed", "1", "samples left out because one before took too long")
ROWS_LOST = _metric("collector_rows_lost", "rows", "rows that could not be written")
HEALTH = (UP, SAMPLE_SECONDS, FAILURES, MISSED, ROWS_LOST)


class Stop:
    """An order to end that threads sleep on. Every tick begins with such a sleep, which
    ``threading.Event`` makes dearer."""

    def __init__(self) -> None:
        self._ordered = False
        self._shut = threading.Lock()
        self._shut.acquire()

    def set(self) -> None:
        """Wake all that wait, and let nobody wait any more."""
        if not self._ordered:
            self._ordered = True
            self._shut.release()

    def wait(self, timeout_s: float) -> bool:
        """Sleep for so long or until the order; whether it was given."""
        if not self._ordered and self._shut.acquire(timeout=max(0.0, timeout_s)):
            self._shut.release()
        return self._ordered


def next_moment(after_s: float, period_s: float, phase_s: float) -> float:
    """The first moment after ``after_s`` that is ``phase_s`` past a multiple of ``period_s``."""
    return (math.floor((after_s - phase_s) / period_s) + 1) * period_s + phase_s


@dataclass(kw_only=True)
class Worker:
    """One collector. ``run`` samples in a thread of its own; ``flush`` writes in another."""

    collector: Collector
    writer: SegmentWriter
    clock: Clock
    phase_s: float = 0.0
    """So long after the multiples of its period it samples, unless it asks another machine."""
    opened: bool = False
    ready: threading.Event = field(default_factory=threading.Event)
    """Set when it has been opened, or could not be the first time."""
    up: bool = False
    seconds: float = 0.0
    failures: int = 0
    missed: int = 0
    rows_lost: int = 0
    _waiting: list[Sample] = field(default_factory=list)
    _undeclared: list[Series] = field(default_factory=list)
    _lost: dict[str, None] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _writing: threading.Lock = field(default_factory=threading.Lock)
    _began_s: float | None = None
    _told_at_s: float = float("-inf")
    _row_loss: str | None = None
    _running: bool = False
    _idle: bool = False
    """All of its series are absent: there is nothing to sample."""

    def __post_init__(self) -> None:
        entity = f"collector:{self.collector.name}"
        self._health = [Series(entity=entity, metric=metric) for metric in HEALTH]

    @property
    def remote(self) -> bool:
        """Whether the collector asks another machine."""
        return getattr(self.collector, "remote", False)

    def halt(self) -> None:
        """Tell a collector that asks another machine to ask no more."""
        if self.remote:
            self.collector.halt()  # type: ignore[attr-defined]

    def open(self) -> bool:
        """Open the collector; whether it could be."""
        try:
            series = self.collector.open()
        except Exception as error:  # noqa: BLE001 - the boundary of all collectors, at the beginning
            self.failures += 1
            self.lose(f"{self.collector.name}: not opened: {type(error).__name__}: {error}")
            self.up = False
            if not self.remote:
                with contextlib.suppress(Exception):  # what it had opened before it failed
                    self.collector.close()
            return False
        self.opened = self.up = True
        self.writer.slow |= getattr(self.collector, "slow_periods", {})
        self.declare(series)
        self._idle = all(one.reason is not None for one in series)
        return True

    def run(self, stop: Stop) -> None:
        """Open and sample, then once in each period of the monotonic clock until ``stop``."""
        self._running = True
        period_s, back_off_s = self.collector.period_s, 0.0
        self._began_s = time.monotonic()
        if not self.open():
            back_off_s = min(MOST_BACK_OFF_S, 2 * period_s)
        self._began_s = None
        self.ready.set()
        due_s = time.monotonic() + back_off_s
        while not stop.wait(max(0.0, due_s - time.monotonic())):
            if self._once():
                back_off_s = 0.0
                due_s = self._moment(due_s)
                late = int((time.monotonic() - due_s) / period_s)
                if late > 0:
                    self.missed += late
                    due_s += late * period_s
            else:
                back_off_s = min(MOST_BACK_OFF_S, 2 * max(back_off_s, period_s))
                due_s = time.monotonic() + back_off_s
            if self.opened and self._idle:
                break  # nothing to sample here: the reasons are the data
        self._running = False

    def _moment(self, due_s: float) -> float:
        """When the sample after the one that was due at ``due_s`` is."""
        if self.remote:
            return due_s + self.collector.period_s
        period_s = self.collector.period_s
        # A moment is a rounded number, and must not be taken for the one after itself.
        return next_moment(due_s + period_s / 4, period_s, self.phase_s)

    def _once(self, *, last: bool = False) -> bool:
        """Take one sample, having opened the collector; whatever goes wrong becomes data.

        ``last``: no other comes; a collector that keeps something back has a ``last_sample``.
        """
        if not self.opened and not self.open():
            return False
        if self._idle:
            return True
        begin = self._began_s = time.monotonic()
        try:
            name = "last_sample" if last else "look"
            self.put(getattr(self.collector, name, self.collector.sample)())
            self.up = True
        except Exception as error:  # noqa: BLE001 - the one boundary of all collectors
            self.failures += 1
            self.up = False
            self.lose(f"{self.collector.name}: {type(error).__name__}: {error}")
        with self._lock:
            self.seconds += time.monotonic() - begin
        self._began_s = None
        return self.up

    def put(self, rows: Samples) -> None:
        """Take rows in; never waits for the disk."""
        with self._lock:
            self._waiting += rows
            surplus = len(self._waiting) - MOST_WAITING
            if surplus > 0:
                lost, self._waiting = self._waiting[:surplus], self._waiting[surplus:]
                self._lose_rows(lost, "the disk does not answer")

    def declare(self, series: Sequence[Series]) -> None:
        """Make series known to whoever reads the samples."""
        with self._lock:
            self._undeclared += series

    def lose(self, sentence: str) -> None:
        """Note a loss, once."""
        self._lost[sentence] = None

    def losses(self) -> list[str]:
        """What was lost so far, a sentence each."""
        own = getattr(self.collector, "losses", ())
        return [*self._lost, *own, *([self._row_loss] if self._row_loss else [])]

    def flush(self) -> None:
        """Write what waits, and once a second how the collector does."""
        with self._writing:
            self._settle()
            with self._lock:
                rows, self._waiting = self._waiting, []
                fresh, self._undeclared = self._undeclared, []
            fresh += self._ended()
            rows += self._told()
            try:
                self.writer.declare(fresh)
                self.writer.write(rows)
            except OSError as error:
                self._lose_rows(rows, error.strerror or str(error))

    def _settle(self) -> None:
        """Have the rows of looks that were only read so far."""
        settle = getattr(self.collector, "settle", None)
        if settle is None or not self.opened:
            return
        begin_s = time.thread_time()  # to wait for another thread's look is not to sample
        try:
            self.put(settle())
            with self._lock:
                self.seconds += time.thread_time() - begin_s
        except Exception as error:  # noqa: BLE001 - the same boundary as of a sample
            self.failures += 1
            self.up = False
            self.lose(f"{self.collector.name}: {type(error).__name__}: {error}")

    def _ended(self) -> list[Series]:
        """Series of which the collector has learnt that no sample will come any more, and why."""
        ended: deque[Series] = getattr(self.collector, "ended", deque())
        return [ended.popleft() for _ in range(len(ended))]

    def _told(self) -> list[Sample]:
        now_s = time.monotonic()
        if now_s - self._told_at_s < 1.0:
            return []
        self._told_at_s = now_s
        began_s = self._began_s
        hangs = began_s is not None and now_s - began_s > HUNG_S
        figures = (
            float(self.up and not hangs),
            self.seconds,
            self.failures,
            self.missed,
            self.rows_lost,
        )
        now_ns = self.clock.now_ns()
        return [
            Sample(now_ns, one, value) for one, value in zip(self._health, figures, strict=True)
        ]

    def _lose_rows(self, rows: list[Sample], why: str) -> None:
        self.rows_lost += len(rows)
        self._row_loss = f"{self.collector.name}: {self.rows_lost} rows not written: {why}"
        take_back = getattr(self.collector, "take_back", None)
        if take_back is not None:
            take_back(rows)

    def close(self) -> None:
        """Take a last sample if the thread has ended, write all, and release the collector."""
        if self._running and not self.remote:
            self.lose(f"{self.collector.name}: hangs, and was left behind")
        elif self.opened and not self.remote:
            self._once(last=True)
        self._told_at_s = float("-inf")
        self.flush()
        with self._writing:
            self.writer.close()
        if self.remote or (self.opened and not self._running):
            try:
                self.collector.close()
            except Exception as error:  # noqa: BLE001 - the same boundary, at the end
                self.lose(f"{self.collector.name}: not closed: {type(error).__name__}: {error}")
