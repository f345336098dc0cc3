"""What can be measured here: rows with values, rates and reasons."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from telemetry.probe import ProbeRow, probe
from telemetry.samples import Kind, Metric, Sample, Samples, Series
from tests.nvml.build import VGPU, build, environment, run_with

SECOND_NS = 1_000_000_000


def _series(name: str, kind: Kind = "gauge", reason: str | None = None) -> Series:
    metric = Metric(name=name, unit="J", kind=kind, meaning="", source="")
    return Series(entity="thing", metric=metric, reason=reason)


@dataclass(kw_only=True)
class Scripted:
    """A collector that says the given rounds, one per sample."""

    series: Sequence[Series]
    rounds: list[list[tuple[Series, float]]]
    error: Exception | None = None
    name: str = "scripted"
    period_s: float = 0.1
    closed: int = 0
    asked: int = field(default=0)

    def open(self) -> Sequence[Series]:
        return self.series

    def sample(self) -> Samples:
        if self.error is not None:
            raise self.error
        self.asked += 1
        rows = self.rounds[self.asked - 1]
        return [Sample(self.asked * SECOND_NS, series, value) for series, value in rows]

    def close(self) -> None:
        self.closed += 1


def _probe(collector: Scripted) -> dict[str, ProbeRow]:
    rows = probe([collector], pause_s=0)
    assert collector.closed == 1
    return {row.metric: row for row in rows}


def test_gauges_say_their_last_value_and_counters_their_rate() -> None:
    level, count = _series("level"), _series("count", "counter")
    rounds = [[(level, 1.0), (count, 100.0)], [(level, 2.0), (count, 130.0)]]
    rows = _probe(Scripted(series=[level, count], rounds=rounds))
    assert (rows["level"].value, rows["level"].unit) == (2.0, "J")
    assert (rows["count"].value, rows["count"].unit) == (30.0, "J/s")
    assert all(row.available and row.reason is None for row in rows.values())


def test_absent_series_keep_their_reason_and_have_no_value() -> None:
    missing = _series("missing", reason="not supported here")
    row = _probe(Scripted(series=[missing], rounds=[[], []]))["missing"]
    assert row == ProbeRow(
        collector="scripted",
        entity="thing",
        metric="missing",
        unit="J",
        available=False,
        value=None,
        reason="not supported here",
    )


@pytest.mark.parametrize("rounds", [[[], []], [[5.0], []], [[], [5.0]], [[5.0], [4.0]]], ids=str)
def test_a_counter_without_two_growing_values_has_no_rate(rounds: list[list[float]]) -> None:
    count = _series("count", "counter")
    scripted = [[(count, value) for value in values] for values in rounds]
    row = _probe(Scripted(series=[count], rounds=scripted))["count"]
    assert row.available
    assert row.value is None
    assert row.reason == "no value in the two samples of this probe"


def test_series_that_turn_up_later_are_rows_too() -> None:
    late = _series("late")
    assert _probe(Scripted(series=[], rounds=[[], [(late, 3.0)]]))["late"].value == 3.0


def test_a_collector_that_fails_hides_no_other() -> None:
    broken = Scripted(series=[], rounds=[], error=RuntimeError("the cable is out"))
    level = _series("level")
    healthy = Scripted(series=[level], rounds=[[(level, 1.0)], [(level, 1.0)]])
    first, second = probe([broken, healthy], pause_s=0)
    assert (first.entity, first.metric, first.available) == ("collector:scripted", "up", False)
    assert first.reason == "RuntimeError: the cable is out"
    assert broken.closed == 1
    assert second.metric == "level"


@pytest.mark.needs("gcc")
def test_a_vgpu_guest_through_the_real_binding(tmp_path: Path) -> None:
    code = """
import json
from dataclasses import asdict
from telemetry.clock import Clock
from telemetry.collectors.gpu import GpuCollector
from telemetry.probe import probe
print(json.dumps([asdict(row) for row in probe([GpuCollector(clock=Clock(offset_ns=0))])]))
"""
    rows = {row["metric"]: row for row in run_with(environment(build(tmp_path), VGPU), code)}
    assert rows["gpu_util_percent"]["value"] == 50
    assert rows["gpu_util_percent"]["available"] is True
    assert rows["energy_j"]["value"] is None
    assert "vGPU guest" in rows["energy_j"]["reason"]
    assert json.dumps(rows)
