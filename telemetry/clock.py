"""One clock for all processes of a run: the monotonic clock, moved to UTC once, at the start."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Nanoseconds since 1970 UTC that never step: CLOCK_MONOTONIC plus a fixed offset."""

    offset_ns: int

    def now_ns(self) -> int:
        return time.monotonic_ns() + self.offset_ns


def measure_offset_ns(tries: int = 5) -> int:
    """Return realtime minus monotonic in ns, from the narrowest of ``tries`` bracketed readings."""
    best_width, best = 1 << 62, 0
    for _ in range(tries):
        before = time.monotonic_ns()
        wall = time.time_ns()
        after = time.monotonic_ns()
        if after - before < best_width:
            best_width, best = after - before, wall - (before + after) // 2
    return best
