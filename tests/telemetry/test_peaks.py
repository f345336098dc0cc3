"""A stage's peak of memory: what rusage proves, and what it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.peaks import ABOVE_RUNNER, PEAK, with_peaks
from telemetry.profile import Row

MIB = 1 << 20


def peak(entity: str, max_bytes: float | None, stage: str = "a") -> Row:
    level = {"mean": max_bytes, "p50": max_bytes, "p95": max_bytes, "max": max_bytes}
    reason = "not sampled" if max_bytes is None else None
    return Row(
        stage=stage, entity=entity, metric=PEAK, unit="B", kind="gauge", reason=reason, **level
    )


def run(max_rss_bytes: float | None) -> dict[str, Any]:
    rusage = None if max_rss_bytes is None else {"max_rss_bytes": max_rss_bytes}
    return {"stages": [{"name": "a", "rusage": rusage}, {"name": "reused", "rusage": None}]}


def largest(sampled: float | None, runner: float | None, told: float | None) -> float | None:
    rows = [peak("stage", sampled), *([] if runner is None else [peak("runner", runner)])]
    changed = list(with_peaks(rows, run(told)))
    assert changed[1:] == rows[1:]
    assert (changed[0].mean, changed[0].p50, changed[0].p95) == (sampled,) * 3
    return changed[0].max


def test_a_peak_that_sampling_missed_is_what_the_kernel_said_at_the_end() -> None:
    assert largest(sampled=8 * MIB, runner=99 * MIB, told=152 * MIB) == 152 * MIB


def test_the_runners_memory_is_not_taken_for_the_stages() -> None:
    assert largest(sampled=8 * MIB, runner=260 * MIB, told=260 * MIB) == 8 * MIB


@pytest.mark.parametrize(("runner", "told"), [(None, 152 * MIB), (99 * MIB, None)])
def test_without_both_the_sampled_peak_stands(runner: float | None, told: float | None) -> None:
    assert largest(sampled=8 * MIB, runner=runner, told=told) == 8 * MIB


def test_an_absent_peak_stays_absent() -> None:
    assert largest(sampled=None, runner=1 * MIB, told=152 * MIB) is None


@given(st.floats(0, 1e12), st.none() | st.floats(0, 1e12), st.none() | st.floats(0, 1e12))
def test_a_peak_is_never_lowered_and_only_raised_to_what_was_told(
    sampled: float, runner: float | None, told: float | None
) -> None:
    found = largest(sampled, runner, told)
    assert found is not None
    assert found >= sampled
    if found > sampled:
        assert found == told
        assert runner is not None
        assert found > ABOVE_RUNNER * runner


def test_linux_says_the_starters_memory_of_a_small_program() -> None:
    """The reason for all this: a program of a few MiB that a larger process started."""
    code = (
        "import os; held = bytearray(200 << 20); del held; "
        "pid = os.posix_spawnp('true', ['true'], os.environ); "
        "print(os.wait4(pid, 0)[2].ru_maxrss)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], env=os.environ, capture_output=True, check=True, text=True
    )
    assert int(said.stdout) * 1024 > 200 * MIB
