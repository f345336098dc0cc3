"""A machine made worse on purpose: a CPU quota, a neighbour on the CPUs, a slow disk. Needs root.

Each is a context manager that gives the words to put before a command, so that the whole command
runs in the control group.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.study import control_groups
from tests.study.control_groups import device_of, group

PERIOD_US = 100_000
_SPIN = "while True:\n    pass"


def why_not() -> str | None:
    """Why nothing can be throttled here, as a sentence; None where it can."""
    return control_groups.why_not("cpu") or control_groups.why_not("io")


@contextlib.contextmanager
def quota(cores: float) -> Iterator[list[str]]:
    """At most ``cores`` of CPU time a second for all of the command together."""
    most_us = round(cores * PERIOD_US)
    limits = {"cpu.cfs_period_us": f"{PERIOD_US}", "cpu.cfs_quota_us": f"{most_us}"}
    with _within("cpu", limits) as prefix:
        yield prefix


@contextlib.contextmanager
def slow_reads(path: Path, bytes_per_s: int) -> Iterator[list[str]]:
    """The disk that holds ``path`` gives the command so many bytes a second, and no more."""
    limits = {"blkio.throttle.read_bps_device": f"{device_of(path)} {bytes_per_s}"}
    with _within("io", limits) as prefix:
        yield prefix


@contextlib.contextmanager
def neighbour(processes: int) -> Iterator[list[str]]:
    """So many processes beside it that do nothing but use their CPU.

    Each is a session of its own, as other people's programs are: the kernel shares CPUs out by
    session first (``sched_autogroup``), and all of them together would weigh no more than one.
    """
    spin = [sys.executable, "-c", _SPIN]
    busy = [subprocess.Popen(spin, start_new_session=True) for _ in range(processes)]
    try:
        yield []
    finally:
        for one in busy:
            one.kill()
            one.wait()


@contextlib.contextmanager
def nothing() -> Iterator[list[str]]:
    yield []


@contextlib.contextmanager
def _within(controller: str, limits: Mapping[str, str]) -> Iterator[list[str]]:
    """The words that start a command in a new control group with these limits."""
    with group(controller, limits) as folder:
        yield ["sh", "-c", 'echo $$ > "$0"; exec "$@"', str(folder / "cgroup.procs")]
