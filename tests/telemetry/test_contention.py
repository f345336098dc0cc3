"""Flags of contention: what is above a threshold, with the threshold's source and a sentence."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from telemetry.contention import Thresholds, flags, is_judged
from telemetry.profile import Profile, Row

HERE = "vm:ml-01@esx-1.example"


def row(metric: str, unit: str, mean: float, *, entity: str = HERE, **more: Any) -> Row:
    figures = {"mean": mean, "p50": mean, "p95": mean, "max": mean, "coverage": 1.0} | more
    return Row(stage="training", entity=entity, metric=metric, unit=unit, kind="window", **figures)


def only(profile_row: Row, thresholds: Thresholds | None = None) -> dict[str, Any]:
    (flag,) = flags(Profile(rows=(profile_row,)), thresholds)
    return flag


ABOVE = [
    ("vm_cpu_ready_percent", "%", 5.1, 5.0),
    ("vm_cpu_costop_percent", "%", 3.1, 3.0),
    ("vm_cpu_latency_percent", "%", 10.1, 10.0),
    ("vm_mem_ballooned_bytes", "B", 2.0**21, 2.0**20),
    ("vm_mem_swap_in_bytes_per_s", "B/s", 65_537.0, 65_536.0),
    ("vm_mem_latency_percent", "%", 1.1, 1.0),
    ("vm_disk_read_latency_ms", "ms", 21.0, 20.0),
    ("vm_disk_write_latency_ms", "ms", 21.0, 20.0),
    ("vm_disk_latency_max_ms", "ms", 21.0, 20.0),
    ("vm_net_dropped_rx_packets_per_s", "packets/s", 1.05, 1.0),
    ("vm_net_dropped_tx_packets_per_s", "packets/s", 1.05, 1.0),
]


@pytest.mark.parametrize(("metric", "unit", "value", "threshold"), ABOVE)
def test_a_figure_above_its_threshold_is_flagged(
    metric: str, unit: str, value: float, threshold: float
) -> None:
    flag = only(row(metric, unit, value))
    assert (flag["stage"], flag["entity"], flag["metric"]) == ("training", HERE, metric)
    assert (flag["value"], flag["threshold"], flag["unit"]) == (value, threshold, unit)
    assert len(flag["source"]) > 20
    assert flag["sentence"].startswith("ml-01: ")


@pytest.mark.parametrize(("metric", "unit", "value", "threshold"), ABOVE)
def test_a_figure_at_its_threshold_is_not(
    metric: str, unit: str, value: float, threshold: float
) -> None:
    assert flags(Profile(rows=(row(metric, unit, threshold),))) == []


def test_each_threshold_has_a_rule_and_can_be_set() -> None:
    for one in fields(Thresholds):
        limits = Thresholds.from_json({one.name: 1e12})
        found = [
            flag
            for metric, unit, value, _ in ABOVE
            for flag in flags(Profile(rows=(row(metric, unit, value),)), limits)
        ]
        assert len(found) < len(ABOVE), one.name


def test_a_threshold_of_the_recipe_has_the_recipe_for_its_source() -> None:
    flag = only(row("vm_cpu_ready_percent", "%", 3.0), Thresholds(cpu_ready_percent=2.0))
    assert (flag["threshold"], flag["source"]) == (2.0, "set in the recipe")


def test_the_sentence_says_what_where_and_how_much_of_it_is_known() -> None:
    flag = only(row("vm_cpu_ready_percent", "%", 12.34, coverage=0.62))
    assert flag["sentence"] == (
        "ml-01: cpu ready 12.3 % on average during training, in the 62 % of it that is covered: "
        "it was ready to run and no physical CPU was free"
    )
    disk = only(row("vm_disk_read_latency_ms", "ms", 31.0, entity=f"{HERE}/scsi0:1"))
    assert disk["sentence"].startswith("ml-01 (scsi0:1): disk read latency 31 ms on average")
    swap = only(row("vm_mem_swap_in_bytes_per_s", "B/s", 1.0, max=3.0 * 2**20))
    assert "mem swap in 3 MiB/s at most" in swap["sentence"]
    trickle = only(row("vm_mem_swap_in_bytes_per_s", "B/s", 1.0, max=100.0 * 2**10))
    assert "mem swap in 100 KiB/s at most" in trickle["sentence"]


@pytest.mark.parametrize(("metric", "unit", "value", "threshold"), ABOVE)
def test_what_can_be_flagged_is_what_is_judged(
    metric: str, unit: str, value: float, threshold: float
) -> None:
    assert is_judged(HERE, metric)
    assert not is_judged("esxi:esx-1.example", metric)
    assert not is_judged(HERE, f"{metric}_estimate")


@pytest.mark.parametrize(
    "one",
    [
        row("vm_cpu_ready_percent", "%", 50.0, entity="esxi:esx-1.example"),
        row("vm_cpu_ready_percent_estimate", "%", 50.0),
        row("vm_cpu_usage_percent", "%", 99.0),
        Row(stage="a", entity=HERE, metric="vm_cpu_ready_percent", unit="%", kind="window",
            coverage=0.7, reason="shorter than one window of 20 s"),
    ],
)  # fmt: skip
def test_nothing_else_is_flagged(one: Row) -> None:
    assert flags(Profile(rows=(one,))) == []


def test_an_unknown_threshold_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"cpu_redy_percent.*did you mean cpu_ready_percent"):
        Thresholds.from_json({"cpu_redy_percent": 3})
    with pytest.raises(ValueError, match=r"disk_latency_ms = -1.*give a figure of 0 or more"):
        Thresholds(disk_latency_ms=-1)
    assert Thresholds.from_json(None) == Thresholds()
