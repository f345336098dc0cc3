"""What a stage says of itself: time in phases and things counted, as counters of ``app:<stage>``."""

from __future__ import annotations

import contextlib
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from telemetry.clock import Clock
from telemetry.samples import Metric, Sample, Series
from telemetry.segments import SegmentWriter

FLUSH_S = 1.0


class Handle:
    """Counts in memory, and on disk every second. Safe for several threads.

    ``phase("data_wait")`` gives ``phase_data_wait_seconds``; ``count("read_bytes", n)`` gives
    ``app_read_bytes``. Counters begin at 0 when the handle is made.
    """

    def __init__(self, folder: Path, stage: str, clock: Clock, flush_s: float = FLUSH_S) -> None:
        self._folder, self._stage, self._clock, self._flush_s = folder, stage, clock, flush_s
        self._lock = threading.Lock()
        self._totals: dict[str, float] = {}
        self._series: dict[str, Series] = {}
        self._started_ns = clock.now_ns()
        self._writer: SegmentWriter | None = None
        self._written: set[str] = set()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Account the time inside to ``phase_<name>_seconds``."""
        begin = time.monotonic_ns()
        try:
            yield
        finally:
            seconds = (time.monotonic_ns() - begin) / 1e9
            self._add(f"phase_{name}_seconds", "s", f"time in the phase {name}", seconds)

    def count(self, metric: str, n: float = 1) -> None:
        """Add ``n`` to the counter ``app_<metric>``."""
        unit = "B" if metric.endswith("_bytes") else "s" if metric.endswith("_seconds") else "1"
        self._add(f"app_{metric}", unit, f"{metric} that the stage counted", n)

    def close(self) -> None:
        """Write the last values."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._flush()
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _add(self, name: str, unit: str, meaning: str, n: float) -> None:
        with self._lock:
            if name not in self._series:
                metric = Metric(
                    name=name, unit=unit, kind="counter", meaning=meaning, source="the stage"
                )
                self._series[name] = Series(entity=f"app:{self._stage}", metric=metric)
                self._totals[name] = 0.0
            self._totals[name] += n
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._flush_often, daemon=True)
                self._thread.start()

    def _flush_often(self) -> None:
        while not self._stop.wait(self._flush_s):
            self._flush()

    def _flush(self) -> None:
        with self._lock:
            if not self._totals:
                return
            now_ns = self._clock.now_ns()
            fresh = set(self._totals) - self._written
            rows = [Sample(self._started_ns, self._series[name], 0.0) for name in sorted(fresh)]
            rows += [
                Sample(now_ns, self._series[name], value) for name, value in self._totals.items()
            ]
            if fresh and self._writer is not None:
                self._writer.close()  # a segment's metrics are known when it begins
                self._writer = None
            if self._writer is None:
                self._writer = SegmentWriter(
                    self._folder,
                    f"app-{self._stage}",
                    list(self._series.values()),
                    host=platform.node(),
                    period_s=self._flush_s,
                )
            self._written |= fresh
            with contextlib.suppress(OSError):  # a full disk loses samples, not the stage
                self._writer.write(rows)


class NullHandle:
    """The same calls for work without a recorder; nothing is kept."""

    def phase(self, name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def count(self, metric: str, n: float = 1) -> None:
        pass

    def close(self) -> None:
        pass
