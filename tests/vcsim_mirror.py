"""A simulated hypervisor that sees this machine's real load: what the VM takes follows /proc/stat.

Of each core-second that the guest works, the hypervisor gives 80 % and lets the VM wait for the
rest; a tenth of a core is its own. So the truth is known, and the guest's signal shows it in part.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.vcsim_server import Vcsim

STEP_S = 0.5
GIVEN, OVERHEAD_CORES = 0.8, 0.1
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
WATTS_IDLE, WATTS_PER_CORE = 120, 45


class Mirror:
    """Tells the simulator every second what its VM took until now; ``with`` starts and ends it."""

    def __init__(self, vcsim: Vcsim, vm: str, host: str) -> None:
        self._vcsim, self._vm, self._host = vcsim, vm, host
        self._busy_cores: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Mirror:
        self._start_s = time.time()
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

    def _follow(self) -> None:
        before, due = _busy_s(), self._start_s + STEP_S
        while not self._stop.wait(max(0.0, due - time.time())):
            now = _busy_s()
            self._busy_cores.append((now - before) / STEP_S)
            before, due = now, due + STEP_S
            if len(self._busy_cores) % 2 == 0:
                self._vcsim.control(truth=self._truth())

    def _truth(self) -> list[dict[str, Any]]:
        used = [GIVEN * busy + OVERHEAD_CORES for busy in self._busy_cores]
        ready = [(1 - GIVEN) * busy for busy in self._busy_cores]
        cores = os.cpu_count() or 1
        of_vm = {
            "cpu.used.summation": [1e3 * one for one in used],
            "cpu.ready.summation": [1e3 * one for one in ready],
            "cpu.usage.average": [1e4 * one / cores for one in used],
        }
        of_host = {"power.power.average": [WATTS_IDLE + WATTS_PER_CORE * one for one in used]}
        return [
            {
                "entity": entity,
                "counter": counter,
                "start_s": self._start_s,
                "step_s": STEP_S,
                "values": values,
            }
            for entity, counters in ((self._vm, of_vm), (self._host, of_host))
            for counter, values in counters.items()
        ]


def _busy_s() -> float:
    """CPU seconds of this machine in all busy modes since it was started."""
    modes = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(modes) - modes[3] - modes[4] - modes[7]) / TICKS_PER_S  # idle, iowait, steal
