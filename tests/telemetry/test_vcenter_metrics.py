"""The table of counters: scaling, summations, ready per virtual CPU, and one unit per counter."""

from __future__ import annotations

import pytest

from telemetry.collectors.vcenter_metrics import COUNTER_UNITS, METRICS, ROWS, rows_of
from telemetry.report_quantities import QUANTITIES

BY_NAME = {row.metric.name: row for row in ROWS}


@pytest.mark.parametrize(
    ("metric", "raw", "vcpus", "value"),
    [
        ("vm_cpu_usage_percent", 1234, 4, 12.34),  # hundredths
        ("vm_cpu_used_cores", 30_000, 4, 1.5),  # ms in 20 s
        ("vm_cpu_ready_cores", 4_000, 4, 0.2),
        ("vm_cpu_ready_percent", 4_000, 4, 5.0),  # 4000 / 20,000 · 100 / 4
        ("vm_cpu_ready_percent", 20_000, 1, 100.0),
        ("vm_cpu_costop_percent", 800, 8, 0.5),
        ("vm_mem_consumed_bytes", 2_048, 4, 2_097_152.0),
        ("vm_mem_swap_in_bytes_per_s", 3, 4, 3_072.0),
        ("vm_disk_read_bytes_per_s", 10, 4, 10_240.0),
        ("vm_disk_read_requests_per_s", 300, 4, 300.0),
        ("vm_disk_read_latency_ms", 7, 4, 7.0),
        ("vm_disk_latency_max_ms", 7, 4, 7.0),
        ("vm_net_dropped_rx_packets_per_s", 40, 4, 2.0),
        ("vm_power_w", 250, 4, 250.0),
        ("host_energy_w", 5_000, 1, 250.0),  # J in 20 s
        ("host_gpu_util_percent", 9_900, 1, 99.0),
        ("host_gpu_mem_used_bytes", 1, 1, 1_024.0),
        ("host_gpu_temperature_c", 61, 1, 61.0),
    ],
)
def test_a_raw_value_in_the_metrics_unit(metric: str, raw: int, vcpus: int, value: float) -> None:
    assert BY_NAME[metric].value(raw, 20, vcpus) == pytest.approx(value, rel=1e-12)


def test_summations_are_rates_and_every_rate_has_an_integral() -> None:
    for row in ROWS:
        assert row.how == ("summation" if row.counter.endswith(".summation") else row.how)
        assert row.metric.kind == "window"
        integrals = {"cores": "s", "B/s": "B", "W": "J", "packets/s": "packets", "1/s": "1"}
        assert row.metric.integral_unit == integrals.get(row.metric.unit), row.metric.name


def test_names_are_unique_and_a_counter_has_one_unit() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    assert len({(row.counter, row.unit) for row in ROWS}) == len(COUNTER_UNITS)
    assert {row.of for row in rows_of("HostSystem")} == {"esxi", "gpu"}
    assert {row.of for row in rows_of("VirtualMachine")} == {"vm"}


def test_cpu_used_is_not_told_as_plain_time_on_a_cpu() -> None:
    """ESXi scales it by the actual over the nominal frequency, and for a busy hyper-thread."""
    beside = next(one for one in QUANTITIES if one.metric == "vm_cpu_used_cores")
    for meaning in (BY_NAME["vm_cpu_used_cores"].metric.meaning, beside.meaning):
        assert "physical CPU time" not in meaning
        for word in ("nominal frequency", "turbo makes it larger", "hyper-thread", "smaller"):
            assert word in meaning
