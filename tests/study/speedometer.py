"""How fast a CPU of this machine is, whatever else is measured: a fixed loop, now and then.

A virtual machine cannot see its host's clock rate, nor who shares its cores. The loop is neither
StageScope's nor of any stage: where it is faster, the machine is.
"""

from __future__ import annotations

import statistics
import threading
import time
from types import TracebackType

EVERY_S = 1.0
ROUNDS = 50
"""About 5 ms of CPU time at a time on a fast machine: half a per cent of a core."""


class Speedometer:
    """A thread that runs the loop every ``EVERY_S`` while the block lasts."""

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
        """Rounds of the loop in a second of its own CPU time, over all readings together.

        Not their median: a neighbour on the other thread of a core comes for ten seconds and halves
        the speed meanwhile. A median does not see it until it is there half of the time.
        """
        return statistics.harmonic_mean(self._speeds)

    def _run(self) -> None:
        while True:
            self._speeds.append(_read())
            if self._stop.wait(EVERY_S):
                return


def _read() -> float:
    began_ns = time.thread_time_ns()
    for _ in range(ROUNDS):
        sum(range(10_000))
    return ROUNDS / ((time.thread_time_ns() - began_ns) / 1e9)
