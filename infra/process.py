"""Processes that do not outlive the one that needs them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import runpy
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
REAP_S = 30.0
"""So long what was killed may take to end: to free its memory, say. What takes longer is held."""


class Child(NamedTuple):
    """A child process for good: its number is given again, with another start."""

    pid: int
    start_ticks: int


def die_with(parent_pid: int) -> None:
    """Ask the kernel to kill this process when its parent ends; exits at once if it has ended."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that none gets lost."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def children() -> set[Child]:
    """The children of this process, with those that have ended and were not waited for."""
    me, found = os.getpid(), set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
                if int(fields[1]) == me:
                    found.add(Child(int(entry.name), int(fields[19])))
    return found


def tied(module: str, *arguments: str) -> list[str]:
    """Command line of ``python -m module arguments`` as a child that ends when the caller ends.

    The kernel ties it to the calling *thread*: start it from one that lives on.
    """
    return [sys.executable, "-m", "infra.process", str(os.getpid()), module, *arguments]


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM be what Ctrl-C is: it ends a wait, not what comes after. In the main thread."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"prctl({option}): {os.strerror(errno)}")


def _main() -> None:
    die_with(int(sys.argv[1]))
    module = sys.argv[2]
    sys.argv = sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
