"""How fast a CPU of this machine is, whatever runs on it: the CPU time of a fixed loop.

A guest sees neither its host's clock rate nor who shares its cores; its own work takes longer then,
and looks like more work. The loop is always the same: where it takes longer, the CPU is slower.
"""

from __future__ import annotations

import time

LENGTH = 5000
"""About 50 µs: long against the clock's steps, short against the kernel's (4 ms or 1 ms)."""
TIMES = 5
"""The first finds cold caches and a core that was asleep, and an interrupt can fall into each."""


def cpu_loop_us() -> float:
    """CPU time of the loop in µs, the least of ``TIMES``; takes a quarter of a millisecond.

    It is of the calling thread (``CLOCK_THREAD_CPUTIME_ID``), so to wait for a CPU is not in it.
    """
    least_ns = min(_loop_ns() for _ in range(TIMES))
    return least_ns / 1000


def _loop_ns() -> int:
    began_ns = time.thread_time_ns()
    sum(range(LENGTH))
    return time.thread_time_ns() - began_ns
