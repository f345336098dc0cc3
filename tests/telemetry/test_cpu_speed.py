"""The CPU's own speed: what of the fixed loop counts, and what becomes of it."""

from __future__ import annotations

import time
from itertools import accumulate, chain

import pytest

from telemetry.clock import Clock
from telemetry.collectors import cpu_speed
from telemetry.collectors.cpu_speed import cpu_loop_us
from telemetry.collectors.guest import GuestCollector


def test_interrupts_and_cold_caches_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five loops that take so long, in ns, with as long between them, the least."""
    took_ns = (90_000, 47_000, 46_500, 300_000, 46_800)
    steps = chain.from_iterable((7_000, one) for one in took_ns)
    monkeypatch.setattr(time, "thread_time_ns", accumulate(steps).__next__)
    assert cpu_loop_us() == 46.5


def test_it_is_the_loop_that_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight times the work is several times the CPU time, on whatever machine."""
    once = min(cpu_loop_us() for _ in range(10))
    monkeypatch.setattr(cpu_speed, "LENGTH", 8 * cpu_speed.LENGTH)
    assert min(cpu_loop_us() for _ in range(10)) > 4 * once


def test_it_is_sampled_once_a_second_as_a_level_of_the_machine() -> None:
    guest = GuestCollector(clock=Clock(offset_ns=0), period_s=0.1)
    guest.open()
    try:
        assert guest.slow_periods["cpu_loop_us"] == 1.0
        found = [one for one in guest.sample() if one.series.metric.name == "cpu_loop_us"]
    finally:
        guest.close()
    (only,) = found
    assert (only.series.entity, only.series.metric.unit) == ("machine", "µs")
    assert only.value > 0
