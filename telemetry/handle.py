"""What a stage says of itself: time in phases and things counted: counters of ``app:<stage>``."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from telemetry.clock import Clock
from telemetry.samples import Metric, Sample, Series

if TYPE_CHECKING:
    from telemetry.segments import SegmentWriter

FLUSH_S = 1.0


class Handle:
    """Counts in memory, and on disk every second. Safe for several threads.

    ``phase("data_wait")`` gives ``phase_data_wait_seconds``; ``count("read_bytes", n)`` gives
    ``app_read_bytes``. Counters begin at 0 when the handle is made. A phase that goes on counts as
    it goes; one that several threads are in counts for each of them. A full disk loses samples,
    never the stage: no call but ``close`` raises for it. In a process that was forked from this one
    it counts nothing and warns.
    """

    def __init__(self, folder: Path, stage: str, clock: Clock, flush_s: float = FLUSH_S) -> None:
        self._folder, self._stage, self._clock, self._flush_s = folder, stage, clock, flush_s
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._totals: dict[str, float] = {}
        self._running: dict[int, tuple[str, int]] = {}
        self._phases = 0
        self._series: dict[str, Series] = {}
        self._started_ns = clock.now_ns()
        self._writer: SegmentWriter | None = None
        self._written: set[str] = set()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._not_written: OSError | None = None

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Account the time inside to ``phase_<name>_seconds``."""
        if self._is_elsewhere():
            yield
            return
        metric = f"phase_{name}_seconds"
        with self._lock:
            self._know(metric, "s", f"time in the phase {name}")
            self._phases += 1
            number = self._phases
            self._running[number] = metric, time.monotonic_ns()
        try:
            yield
        finally:
            if os.getpid() == self._pid:  # else it was forked within the phase
                self._end_phase(metric, number)

    def _end_phase(self, metric: str, number: int) -> None:
        with self._lock:
            _, begin_ns = self._running.pop(number)
            self._totals[metric] += (time.monotonic_ns() - begin_ns) / 1e9

    def count(self, metric: str, n: float = 1) -> None:
        """Add ``n`` to the counter ``app_<metric>``; its unit is B or s where the name ends so."""
        if self._is_elsewhere():
            return
        name = f"app_{metric}"
        unit = "B" if metric.endswith("_bytes") else "s" if metric.endswith("_seconds") else "1"
        with self._lock:
            self._know(name, unit, f"{metric} that the stage counted")
            self._totals[name] += n

    def _is_elsewhere(self) -> bool:
        """Whether this is a forked process: nobody writes here, and a lock may be held for ever."""
        if os.getpid() == self._pid:
            return False
        warnings.warn(
            f"stage {self._stage}: a worker process that was forked is not counted; count in the "
            f"process that began the stage",
            RuntimeWarning,
            stacklevel=3,
        )
        return True

    def close(self) -> None:
        """Write the last values. What comes later is not recorded.

        Raises OSError where they may not all be on disk (``not_all_written`` says it in words).
        """
        if os.getpid() != self._pid:
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._flush()
        if self._writer is not None:
            self._writer.close()
        if self._not_written is not None:
            raise self._not_written

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _know(self, name: str, unit: str, meaning: str) -> None:
        if name in self._series:
            return
        metric = Metric(name=name, unit=unit, kind="counter", meaning=meaning, source="the stage")
        self._series[name] = Series(entity=f"app:{self._stage}", metric=metric)
        self._totals[name] = 0.0
        if self._thread is None and not self._stop.is_set():
            self._thread = threading.Thread(target=self._flush_often, daemon=True)
            self._thread.start()

    def _flush_often(self) -> None:
        while not self._stop.wait(self._flush_s):
            self._flush()

    def _values(self) -> tuple[int, dict[str, float]]:
        """The time (ns UTC) and all totals at that time, phases that go on included."""
        with self._lock:
            values = dict(self._totals)
            now_ns = time.monotonic_ns()
            for metric, begin_ns in self._running.values():
                values[metric] += (now_ns - begin_ns) / 1e9
            return now_ns + self._clock.offset_ns, values

    def _flush(self) -> None:
        with self._writing:  # not the lock of phase and count: they never wait for the disk
            now_ns, values = self._values()
            if not values:
                return
            fresh = values.keys() - self._written
            rows = [Sample(self._started_ns, self._series[name], 0.0) for name in sorted(fresh)]
            rows += [Sample(now_ns, self._series[name], value) for name, value in values.items()]
            try:
                self._to_write([self._series[name] for name in sorted(fresh)]).write(rows)
                self._written |= fresh
                self._not_written = None  # totals: what a batch lacked the next one has
            except OSError as error:
                self._not_written = error

    def _to_write(self, fresh: list[Series]) -> SegmentWriter:
        from telemetry.segments import SegmentWriter  # Arrow: only where something is written

        if self._writer is None:
            self._writer = SegmentWriter(
                self._folder,
                f"app-{self._stage}",
                fresh,
                host=platform.node(),
                period_s=self._flush_s,
                offset_ns=self._clock.offset_ns,
            )
        self._writer.declare(fresh)
        return self._writer


def not_all_written(stage: str, error: OSError) -> str:
    """What a run says among its losses where a handle's ``close`` raised."""
    return f"{stage}: not all that it counted is on disk: {error.strerror}"


class NullHandle:
    """The same calls for work without a recorder; nothing is kept."""

    def phase(self, name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def count(self, metric: str, n: float = 1) -> None:
        pass

    def close(self) -> None:
        pass
