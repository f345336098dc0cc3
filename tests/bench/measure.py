"""What processes take: of a command from start to end, and of one that is running."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A finished command: wall and CPU seconds, peak memory, and the JSON of its last line."""

    wall_s: float
    cpu_s: float
    peak_gb: float
    answer: dict[str, Any] | None
    error: str


def measured(command: Sequence[str]) -> Measured:
    """Run ``command`` to its end; ``answer`` is None, and ``error`` its last words, if it fails.

    The kernel starts a child's peak at its parent's memory, so the caller must be small.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        lines, errors = out.read().splitlines(), err.read().splitlines()
    failed = process.returncode != 0
    return Measured(
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_gb=usage.ru_maxrss * 1024 / 1e9,
        answer=None if failed else json.loads(lines[-1]),
        error=(errors or [f"exit code {process.returncode}"])[-1] if failed else "",
    )


def exact_cpu_s(pid: int) -> float:
    """CPU time of another process by its own clock, in ns; /proc says it in ticks of 10 ms."""
    return time.clock_gettime(~pid << 3 | 2)  # MAKE_PROCESS_CPUCLOCK of linux/posix-timers.h


def memory_mb(pid: int) -> tuple[float, float]:
    """Resident and peak."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kb = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
    return kb["VmRSS"] / 1e3, kb["VmHWM"] / 1e3
