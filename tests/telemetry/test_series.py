"""What a tracking server draws: levels and rates at their own times, and nothing that was not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from telemetry.runfolder import Span
from telemetry.samples import Kind, Metric
from telemetry.segments import SampleSet
from telemetry.series import MAX_POINTS, stage_series

START_NS = 1_750_000_000_000_000_000
TICK_NS = 100_000_000
Series = dict[tuple[str, str], list[tuple[int, float]]]


def samples(kinds: dict[str, Kind], series: Series) -> SampleSet:
    """Samples at these ns after the start, each metric of these kinds at 10 Hz."""
    rows = [
        {"entity": entity, "metric": metric, "ts_ns": START_NS + at, "value": value}
        for (entity, metric), points in series.items()
        for at, value in points
    ]
    table = pa.Table.from_pylist(rows)
    table = table.append_column("start_ns", pa.nulls(len(rows), pa.int64()))
    metrics = {
        name: Metric(name=name, unit="s", kind=kind, meaning="m", source="s")
        for name, kind in kinds.items()
    }
    return SampleSet(table=table, metrics=metrics, absent=[], periods=dict.fromkeys(kinds, 0.1))


def span(start: int = 0, end: int = 10**12) -> Span:
    return Span(stage="training", start_ns=START_NS + start, end_ns=START_NS + end)


def test_a_counter_is_a_rate_and_a_level_stays_as_it_was() -> None:
    busy = [(tick * TICK_NS, tick * 0.15) for tick in range(20)]
    rss = [(tick * TICK_NS, 100.0 + tick) for tick in range(20)]
    drawn = stage_series(
        samples(
            {"cpu_user_seconds": "counter", "mem_rss_bytes": "gauge"},
            {("machine", "cpu_user_seconds"): busy, ("stage:training", "mem_rss_bytes"): rss},
        ),
        span(),
    )
    times, cores = drawn["system/guest/cpu_user_cores"]
    assert times == [START_NS + at for at, _ in busy[1:]]
    assert np.allclose(cores, 1.5)
    assert drawn["system/stage/mem_rss_bytes"] == (
        [START_NS + at for at, _ in rss],
        [value for _, value in rss],
    )


def test_samples_too_close_for_a_rate_make_no_peak() -> None:
    """A tick of 10 ms between two samples 1 ms apart is not ten cores."""
    busy = [(tick * TICK_NS, tick * 0.1) for tick in range(20)]
    extra = [(at + 1_000_000, value + 0.01) for at, value in busy[5:7]]
    both = sorted(busy + extra)
    drawn = stage_series(
        samples({"cpu_user_seconds": "counter"}, {("machine", "cpu_user_seconds"): both}), span()
    )
    times, cores = drawn["system/guest/cpu_user_cores"]
    assert times == [START_NS + at for at, _ in busy[1:]]
    assert max(cores) <= 1.5


def test_only_the_stages_own_time_and_tree_and_no_step_backwards() -> None:
    busy = [(tick * TICK_NS, tick * 0.1) for tick in range(20)]
    backwards = [*busy[:10], *((at, value - 0.5) for at, value in busy[10:])]
    drawn = stage_series(
        samples(
            {"cpu_user_seconds": "counter"},
            {
                ("machine", "cpu_user_seconds"): backwards,
                ("stage:serving", "cpu_user_seconds"): busy,
            },
        ),
        span(5 * TICK_NS, 15 * TICK_NS),
    )
    assert set(drawn) == {"system/guest/cpu_user_cores"}
    times, cores = drawn["system/guest/cpu_user_cores"]
    assert times == [START_NS + tick * TICK_NS for tick in range(5, 16) if tick != 10]
    assert np.allclose(cores, 1.0)


def test_long_series_are_thinned_with_their_extremes() -> None:
    level = [(tick * TICK_NS, float(tick % 97)) for tick in range(5_000)]
    level[1234] = (level[1234][0], 1e6)
    drawn = stage_series(
        samples({"power_instant_w": "gauge"}, {("gpu:0", "power_instant_w"): level}), span()
    )
    times, values = drawn["system/gpu/0_power_instant_w"]
    assert len(times) <= MAX_POINTS
    assert (min(values), max(values)) == (0.0, 1e6)
    assert times[values.index(1e6)] == START_NS + level[1234][0]


def seen(entities: dict[str, str]) -> SampleSet:
    """Windows of 20 s of these entities, each of one metric."""
    rows = [
        {"entity": entity, "metric": metric, "ts_ns": START_NS + 20 * k * 10**9,
         "start_ns": START_NS + 20 * (k - 1) * 10**9, "value": float(k)}
        for entity, metric in entities.items()
        for k in range(1, 4)
    ]  # fmt: skip
    metrics = {
        name: Metric(name=name, unit="%", kind="window", meaning="m", source="s")
        for name in entities.values()
    }
    return SampleSet(table=pa.Table.from_pylist(rows), metrics=metrics, absent=[],
                     periods=dict.fromkeys(metrics, 20.0))  # fmt: skip


def test_what_vcenter_says_is_drawn_at_the_ends_of_its_windows() -> None:
    drawn = stage_series(
        seen(
            {
                "vm:ml@esx-1": "vm_cpu_ready_percent",
                "vm:ml@esx-1/scsi0:0": "vm_disk_read_bytes_per_s",
                "esxi:esx-1": "host_power_w",
                "esxi:esx-1/gpu:0": "host_gpu_util_percent",
                "vm:ml@esx-1/scsi0:1": "vm_disk_read_bytes_per_s_estimate",
            }
        ),
        span(),
    )
    assert set(drawn) == {
        "system/vcenter/vm_cpu_ready_percent",
        "system/vcenter/scsi0_0_vm_disk_read_bytes_per_s",
        "system/vcenter/host_power_w",
        "system/vcenter/0_host_gpu_util_percent",
    }
    times, values = drawn["system/vcenter/vm_cpu_ready_percent"]
    assert times == [START_NS + 20 * k * 10**9 for k in (1, 2, 3)]
    assert values == [1.0, 2.0, 3.0]


def test_a_vm_on_two_hosts_is_drawn_twice_and_not_mixed() -> None:
    metric = "vm_cpu_ready_percent"
    drawn = stage_series(seen({"vm:ml@esx-1": metric, "vm:ml@esx-2": metric}), span())
    assert set(drawn) == {
        "system/vcenter/vm_cpu_ready_percent ml_esx-1",
        "system/vcenter/vm_cpu_ready_percent ml_esx-2",
    }
