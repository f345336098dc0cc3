"""The ledger: two witnesses of everything, and a verdict that can be wrong in either direction."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from telemetry.ledger import CPU_FLOOR_S, DEVICE_IO_FLOOR_B, close_ledger
from telemetry.ledger_entry import entry
from telemetry.runfolder import Span
from telemetry.samples import Metric, Series
from telemetry.segments import SampleSet
from tests.telemetry.oracle import Raw, make_metric, make_samples

S = 1_000_000_000
START = 1_795_485_600 * S
MIB = 2.0**20
SPANS = (
    Span(stage="a", start_ns=START + 2 * S, end_ns=START + 22 * S),
    Span(stage="b", start_ns=START + 25 * S, end_ns=START + 35 * S),
)
MODES = ("user", "nice", "system", "irq", "softirq", "idle", "iowait", "steal")


def counter(name: str, unit: str = "s") -> Metric:
    return make_metric(name, "counter", unit)


def line(rate: float, first: float = 0.0, last: float = 40.0, base: float = 0.0) -> list[Raw]:
    """A counter that grows by ``rate`` per second, sampled at 1 Hz from ``first`` to ``last`` s."""
    steps = range(math.ceil(first), math.floor(last) + 1)
    times = sorted({first, *map(float, steps), last})
    return [(START + round(t * S), None, base + rate * (t - first)) for t in times]


def machine(**changed: Any) -> dict[tuple[str, Metric], list[Raw]]:
    """Two CPUs for 40 s; stage a takes a core and b half a one, the runner and others a little."""
    grows = {"user": 0.75, "nice": 0.0, "system": 0.25, "irq": 0.01, "softirq": 0.02,
             "idle": 0.9, "iowait": 0.05, "steal": 0.02}  # fmt: skip
    series = {
        ("machine", counter(f"cpu_{mode}_seconds")): line(grows[mode], base=1e6) for mode in MODES
    }
    for entity, rates, edges in (
        ("stage:a", (0.8, 0.2, 8 * MIB, 8 * MIB), (2, 22)),
        ("stage:b", (0.4, 0.1, 4 * MIB, 4 * MIB), (25, 35)),
        ("runner", (0.04, 0.01, 0.0, 0.0), (0, 40)),
        ("processes", (0.75, 0.25, 8 * MIB, 10 * MIB), (0, 40)),
    ):
        names = ("cpu_user_seconds", "cpu_system_seconds", "io_read_bytes", "io_write_bytes")
        for name, rate in zip(names, rates, strict=True):
            series[entity, counter(name, "B" if "io_" in name else "s")] = line(rate, *edges)
    series["processes", counter("io_cancelled_write_bytes", "B")] = line(2 * MIB)
    series["disk:sda", counter("disk_read_bytes", "B")] = line(6 * MIB, base=1e12)
    series["disk:sdb", counter("disk_read_bytes", "B")] = line(2 * MIB, base=1e12)
    series["disk:sda", counter("disk_write_bytes", "B")] = line(8 * MIB)
    series["disk:sdb", counter("disk_write_bytes", "B")] = line(0.0)
    series["gpu:0", counter("energy_j", "J")] = line(100.0, base=5e8)
    power = make_metric("power_instant_w", "gauge", "W", integral="J")
    series["gpu:0", power] = [(ts, None, 100.0) for ts, _, _ in line(1.0)]
    for name, raw in changed.items():
        entity, _, metric = name.partition("__")
        key = next(
            key for key in series if (key[0].replace(":", "_"), key[1].name) == (entity, metric)
        )
        if raw is None:
            del series[key]
        else:
            series[key] = raw
    return series


def samples(**changed: Any) -> SampleSet:
    return make_samples(machine(**changed), period_s=1.0)


def run(**changed: Any) -> dict[str, Any]:
    def usage(user: float, system: float, io: float) -> dict[str, float]:
        return {"user_s": user, "system_s": system, "max_rss_bytes": 1,
                "read_bytes": io, "write_bytes": io}  # fmt: skip

    return {
        "started_ns": START,
        "ended_ns": START + 40 * S,
        "clock": {"offset_start_ns": 1000, "offset_end_ns": 1000},
        "environment": {"cpu": {"count": 2}},
        "stages": [
            {"name": "a", "rusage": usage(16.1, 3.95, 160 * MIB)},
            {"name": "b", "rusage": usage(4.0, 1.0, 40 * MIB)},
        ],
    } | changed


def books(**changed: Any) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in close_ledger(samples(**changed), SPANS, run())}


def test_a_sound_run_closes_in_every_account() -> None:
    entries = books()
    assert {name for name, one in entries.items() if one["closes"] is not True} == {
        "bytes written by disk:sdb, stages and between"  # it wrote nothing
    }
    assert len(entries) == 18
    for one in entries.values():
        first, second = one["witnesses"].values()
        assert one["remainder"] == pytest.approx(first - second)


def test_a_stage_is_compared_with_what_the_kernel_says() -> None:
    one = books()["CPU of stage a"]
    assert one["parts"] == pytest.approx({"cpu_user_seconds": 16.0, "cpu_system_seconds": 4.0})
    assert one["witnesses"] == pytest.approx({"sampled process tree": 20.0, "wait4 rusage": 20.05})
    assert one["remainder"] == pytest.approx(-0.05)
    assert one["remainder_percent"] == pytest.approx(-100 * 0.05 / 20.05)


def test_a_tree_that_lost_a_process_does_not_close() -> None:
    one = books(stage_a__cpu_user_seconds=line(0.7, 2, 22))["CPU of stage a"]
    assert one["closes"] is False
    assert one["reason"] == "sampled process tree and wait4 rusage are more than 2 % apart"


def test_parts_say_whose_cpu_time_it_was() -> None:
    one = books()["CPU of all processes"]
    assert one["parts"] == pytest.approx(
        {"stage:a": 20.0, "stage:b": 5.0, "runner": 2.0, "other processes": 13.0}
    )
    assert list(one["witnesses"].values()) == pytest.approx([40.0, 40.0])  # without interrupts


def test_a_tree_with_one_sample_is_absent_from_the_parts_and_named() -> None:
    once: list[Raw] = [(START + 30 * S, None, 1.0)]
    one = books(stage_b__cpu_user_seconds=once)["CPU of all processes"]
    assert one["parts"] == pytest.approx(
        {"stage:a": 20.0, "stage:b": None, "runner": 2.0, "other processes": 18.0}
    )
    assert (one["closes"], one["reason"]) == (True, "not sampled: stage:b")


def test_a_stage_outside_of_what_was_sampled_has_no_part_and_is_named() -> None:
    entries = books(gpu_0__energy_j=line(100.0, last=23.0, base=5e8))
    whole, apart = (
        entries[f"energy of gpu:0, {what}"] for what in ("stages and between", "counter and power")
    )
    assert whole["parts"] == pytest.approx({"a": 2000.0, "b": None, "between stages": 300.0})
    assert whole["witnesses"] == pytest.approx(
        {"stages + between stages": 2300.0, "whole run": 2300.0}
    )
    for one in (whole, apart):
        assert (one["closes"], one["reason"]) == (True, "no sample says anything of: b")
    assert apart["parts"] == pytest.approx({"a": 2000.0, "b": None})


def test_a_stage_outside_of_all_windows_has_no_part_and_is_named() -> None:
    power = make_metric("host_power_w", "window", "W", integral="J")
    window: list[Raw] = [(START + 20 * S, START, 100.0)]
    seen = make_samples({("esxi:h", power): window}, period_s=20.0)
    entries = {one["name"]: one for one in close_ledger(seen, SPANS, run())}
    one = entries["host_power_w of esxi:h, stages and between"]
    assert one["parts"] == pytest.approx({"a": 1800.0, "b": None, "between stages": 200.0})
    assert (one["closes"], one["reason"]) == (True, "no sample says anything of: b")


def test_the_end_where_the_counter_alone_was_asked_is_no_gap_of_power() -> None:
    counts = [*line(100.0, last=20.0), (START + 20 * S + 3 * S // 10, None, 2030.0)]
    power: list[Raw] = [(ts, None, 100.0) for ts, _, _ in line(1.0, last=20.0)]
    entries = books(gpu_0__energy_j=counts, gpu_0__power_instant_w=power)
    one = entries["energy of gpu:0, counter and power"]
    assert one["closes"] is True, one["reason"]
    assert one["witnesses"] == pytest.approx(
        {"energy counter": 2000.0, "integral of power": 2000.0}
    )


def test_idle_time_is_a_witness_and_not_the_rest() -> None:
    """With idle time that was not counted, no other mode may take its place."""
    one = books(machine__cpu_idle_seconds=line(0.8, base=1e6))["CPU time of the machine"]
    assert one["closes"] is False
    assert one["remainder"] == pytest.approx(-4.0)
    assert one["parts"]["cpu_idle_seconds"] == pytest.approx(32.0)


def test_cancelled_writes_are_taken_back_and_the_journal_is_known() -> None:
    one = books()["bytes written to storage"]
    assert one["parts"]["cancelled"] == pytest.approx(-80 * MIB)
    assert one["witnesses"]["sum over processes"] == pytest.approx(320 * MIB)
    journal = books(disk_sda__disk_write_bytes=line(9 * MIB))["bytes written to storage"]
    assert journal["closes"] is False
    assert "journal" in journal["reason"]


def test_a_counter_that_went_backwards_shows_in_the_whole_run() -> None:
    raw = line(6 * MIB, base=1e12)
    fallen = [*raw[:20], *((ts, None, value - 1e12) for ts, _, value in raw[20:])]
    one = books(disk_sda__disk_read_bytes=fallen)["bytes read by disk:sda, stages and between"]
    assert one["closes"] is False
    assert "went backwards" in one["reason"]


def test_time_between_stages_is_measured_as_the_stages_are() -> None:
    one = books()["CPU of the machine, stages and between"]
    assert one["parts"] == pytest.approx({"a": 20.6, "b": 10.3, "between stages": 10.3})
    time = books()["time of the run"]
    assert time["parts"] == pytest.approx({"a": 20.0, "b": 10.0, "between stages": 10.0})


def test_a_clock_that_was_set_in_the_run_shows() -> None:
    set_back = run(clock={"offset_start_ns": 0, "offset_end_ns": -5 * S})
    entries = {one["name"]: one for one in close_ledger(samples(), SPANS, set_back)}
    assert entries["time of the run"]["closes"] is False
    assert entries["time of the run"]["remainder"] == pytest.approx(5.0)


def test_overlapping_stages_are_named() -> None:
    spans = (SPANS[0], Span(stage="b", start_ns=START + 12 * S, end_ns=START + 35 * S))
    entries = {one["name"]: one for one in close_ledger(samples(), spans, run())}
    assert entries["time of the run"]["closes"] is False
    assert "stages a and b overlap" in entries["time of the run"]["reason"]
    everybody = entries["CPU of all processes"]
    assert everybody["parts"]["other processes"] is None  # trees may have processes in common
    assert "what other processes did cannot be told" in everybody["reason"]
    assert "not sampled" not in everybody["reason"]
    assert entries["bytes read from storage"]["parts"]["other processes"] is None


def test_energy_has_a_counter_and_an_integral() -> None:
    one = books()["energy of gpu:0, counter and power"]
    assert one["witnesses"] == pytest.approx(
        {"energy counter": 4000.0, "integral of power": 4000.0}
    )
    apart = books(gpu_0__energy_j=line(110.0))["energy of gpu:0, counter and power"]
    assert apart["closes"] is False
    away = books(gpu_0__power_instant_w=[(START + 40 * S, None, 100.0)])
    assert away["energy of gpu:0, counter and power"]["closes"] is None
    assert "gaps" in away["energy of gpu:0, counter and power"]["reason"]
    alone = books(gpu_0__power_instant_w=None)["energy of gpu:0, counter and power"]
    assert alone["reason"] == "gpu:0 has only one witness of its energy"


@pytest.mark.parametrize(
    ("gone", "name", "reason"),
    [
        ("processes__cpu_user_seconds", "CPU of all processes", "were not sampled"),
        ("machine__cpu_user_seconds", "CPU time of the machine", "the machine was not sampled"),
        ("machine__cpu_steal_seconds", "CPU time of the machine", "no all modes of /proc/stat"),
        ("stage_a__cpu_user_seconds", "CPU of stage a", "no sampled process tree"),
        (
            "processes__io_cancelled_write_bytes",
            "bytes written to storage",
            "no sum over processes",
        ),
    ],
)
def test_a_missing_witness_is_named_and_nothing_is_put_in_its_place(
    gone: str, name: str, reason: str
) -> None:
    one = books(**{gone: None})[name]
    assert (one["closes"], one["remainder"]) == (None, None)
    assert reason in one["reason"]


def test_accounts_close_without_a_steal_that_is_not_measured() -> None:
    """As on a VMware VM without its steal clock: what was stolen is within the other modes."""
    why = Series(entity="machine", metric=counter("cpu_steal_seconds"), reason="not measured")
    stolen = {
        "machine__cpu_steal_seconds": None,
        "machine__cpu_idle_seconds": line(0.92, base=1e6),
    }
    without = replace(samples(**stolen), absent=[why])
    entries = {one["name"]: one for one in close_ledger(without, SPANS, run())}
    for name in ("CPU of all processes", "CPU time of the machine"):
        one = entries[name]
        assert (one["closes"], one["reason"]) == (True, None), one
        assert any("(steal is not measured here)" in label for label in one["witnesses"])
        assert not any("steal" in label.partition(" (")[0] for label in one["witnesses"])
        assert "cpu_steal_seconds" not in one["parts"]


def test_accounts_close_where_a_vm_gets_another_cpu_while_it_runs() -> None:
    """Two for 20 s, then three, of which the third is idle."""
    series = machine()
    count = make_metric("cpu_count", "gauge", "1")
    series["machine", count] = [(ts, None, 2.0 if ts <= START + 20 * S else 3.0)
                                for ts, _, _ in line(1.0)]  # fmt: skip
    idle = next(key for key in series if key[1].name == "cpu_idle_seconds")
    series[idle] = [(ts, None, value + max(0, ts - START - 20 * S) / S)
                    for ts, _, value in series[idle]]  # fmt: skip
    grown = make_samples(series, period_s=1.0)
    entries = {one["name"]: one for one in close_ledger(grown, SPANS, run())}
    for name in ("CPU of all processes", "CPU time of the machine"):
        one = entries[name]
        assert (one["closes"], one["reason"]) == (True, None), one
        assert any("2.5 CPUs × time" in label for label in one["witnesses"])
    assert list(entries["CPU time of the machine"]["witnesses"].values()) == pytest.approx(
        [100.0, 100.0]
    )


def test_a_run_without_samples_or_stages_has_a_ledger_that_says_so() -> None:
    entries = close_ledger(SampleSet.empty(), SPANS, run())
    assert all(
        one["closes"] is None and one["reason"] for one in entries[:-1] if one["unit"] != "s"
    )
    bare = close_ledger(SampleSet.empty(), (), {"stages": []})
    assert {one["closes"] for one in bare} == {None}
    assert all(one["reason"] for one in bare)


@pytest.mark.parametrize(
    ("first", "second", "floor", "closes"),
    [
        (100.0, 101.9, 0.0, True),
        (100.0, 102.1, 0.0, False),
        (-100.0, -101.0, 0.0, True),
        (0.20, 0.21, CPU_FLOOR_S, None),  # ticks of 10 ms: nobody can tell
        (0.20, 0.90, CPU_FLOOR_S, False),  # small, and yet far too far apart
        (0.0, 0.0, CPU_FLOOR_S, None),
        (1.0, 1.0, CPU_FLOOR_S, True),
        (0.0, 5.0 * MIB, DEVICE_IO_FLOOR_B, False),
        (1.0 * MIB, 1.5 * MIB, DEVICE_IO_FLOOR_B, None),
    ],
)
def test_the_verdict(first: float, second: float, floor: float, closes: bool | None) -> None:
    one = entry("n", "s", {}, {"one": first, "other": second}, floor=floor)
    assert one["closes"] is closes
    assert (one["reason"] is None) == (closes is True)
