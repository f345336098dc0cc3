"""How fast a CPU of this machine is, whatever else is measured: fixed work, once a second.

A virtual machine cannot see its host's clock rate, nor who shares its cores and caches. The work is
neither StageScope's nor of any stage: where it is faster, the machine is. It adds up an array that
fits a core's own cache, because that suffers from a neighbour on the core's other thread about as
much as the stages do: a loop of integers suffers three times as much, a copy of memory a quarter.
"""

from __future__ import annotations

import statistics
import threading
import time
from types import TracebackType

import numpy as np

EVERY_S = 1.0
ROUNDS = 200
"""About 2 ms of CPU time at a time on a fast machine: 0.2 % of a core."""
_WORK = np.random.default_rng(7).random(60_000)


class Speedometer:
    """A thread that does the work every ``EVERY_S`` while the block lasts."""

    def __init__(self) -> None:
        self._speeds: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Speedometer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def per_s(self) -> float:
        """Rounds of the work in a second of its own CPU time, over all readings together.

        Not their median: a neighbour comes for ten seconds, and a median does not see it until it
        is there half of the time.
        """
        return statistics.harmonic_mean(self._speeds)

    def _run(self) -> None:
        while True:
            self._speeds.append(_read())
            if self._stop.wait(EVERY_S):
                return


def _read() -> float:
    _WORK.sum()  # what the stages put into the cache meanwhile goes out
    began_ns = time.thread_time_ns()
    for _ in range(ROUNDS):
        _WORK.sum()
    return ROUNDS / ((time.thread_time_ns() - began_ns) / 1e9)
