"""The latency of a virtual disk in a stage: of its requests, and of no window without any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import pytest

from telemetry.attribution import correlate
from telemetry.contention import flags
from telemetry.profile import Profile, Row
from telemetry.runfolder import Span
from tests.telemetry.oracle import Raw, make_metric, make_samples

NS = 1_000_000_000
WINDOW_NS = 20 * NS
START_NS = 1_795_485_600 * NS
VM = "vm:ml@esx-1"
DISK, OTHER = f"{VM}/scsi0:0", f"{VM}/scsi0:1"
READ_MS, WRITE_MS = "vm_disk_read_latency_ms", "vm_disk_write_latency_ms"
LARGEST_MS = "vm_disk_latency_max_ms"
READS, WRITES = "vm_disk_read_requests_per_s", "vm_disk_write_requests_per_s"


def windows(values: Sequence[float]) -> list[Raw]:
    ends = [START_NS + (number + 1) * WINDOW_NS for number in range(len(values))]
    return [(end, end - WINDOW_NS, value) for end, value in zip(ends, values, strict=True)]


def profile(series: Mapping[tuple[str, str], Sequence[float]], *seconds: float) -> Profile:
    """The profile of stages s0, s1, ... of so many seconds, one after the other."""
    samples = make_samples(
        {(entity, make_metric(name, "window", "ms")): windows(values)
         for (entity, name), values in series.items()},
        period_s=20.0,
    )  # fmt: skip
    ends = [START_NS + round(one * NS) for one in accumulate(seconds)]
    spans = [
        Span(stage=f"s{number}", start_ns=start, end_ns=end)
        for number, (start, end) in enumerate(zip([START_NS, *ends], ends, strict=False))
    ]
    return correlate(samples, spans)


def row(found: Profile, entity: str, metric: str, stage: str = "s0") -> Row:
    one = found.find(stage, entity, metric)
    assert one is not None
    return one


def test_a_stage_that_reads_and_then_computes_has_the_latency_of_its_reads() -> None:
    found = profile({(DISK, READ_MS): [100, 100] + [0] * 30, (DISK, READS): [200, 200] + [0] * 30},
                    640)  # fmt: skip
    one = row(found, DISK, READ_MS)
    assert (one.mean, one.p50, one.p95, one.max) == (100.0, 100.0, 100.0, 100.0)
    assert (one.coverage, one.reason) == (1.0, None)
    (flag,) = flags(found)
    assert (flag["metric"], flag["value"]) == (READ_MS, 100.0)
    assert "disk read latency 100 ms on average during s0:" in flag["sentence"]


def test_few_requests_count_for_little_and_not_for_nothing() -> None:
    trickle = [1.0] * 30
    found = profile({(DISK, WRITE_MS): [100, 100, *trickle],
                     (DISK, WRITES): [200, 200] + [0] * 30}, 640)  # fmt: skip
    of_requests = (40 * 200 * 100.0 + 600 * 0.5 * 1.0) / (40 * 200 + 600 * 0.5)
    assert row(found, DISK, WRITE_MS).mean == pytest.approx(of_requests)
    alone = profile({(DISK, WRITE_MS): trickle, (DISK, WRITES): [0] * 30}, 600)
    assert row(alone, DISK, WRITE_MS).mean == 1.0


def test_a_latency_of_0_with_requests_is_one() -> None:
    found = profile({(DISK, READ_MS): [0, 30], (DISK, READS): [300, 100]}, 40)
    assert row(found, DISK, READ_MS).mean == pytest.approx(7.5)
    assert row(found, DISK, READ_MS).p50 == 0.0


def test_a_stage_without_requests_has_no_latency() -> None:
    found = profile({(DISK, READ_MS): [50, 50, 0, 0], (DISK, READS): [10, 10, 0, 0]}, 40, 40)
    one = row(found, DISK, READ_MS, "s1")
    assert (one.mean, one.max, one.coverage) == (None, None, 0.0)
    assert one.reason == "there were no requests"
    assert row(found, DISK, READ_MS, "s0").mean == 50.0


def test_the_largest_of_a_vm_counts_by_the_requests_of_all_its_disks() -> None:
    found = profile(
        {
            (VM, LARGEST_MS): [40, 10, 0],
            (DISK, READS): [10, 0, 0],
            (DISK, WRITES): [20, 0, 0],
            (OTHER, READS): [0, 30, 0],
            (OTHER, WRITES): [0, 30, 0],
            ("vm:ml@esx-10/scsi0:0", READS): [9_000, 0, 0],
        },
        60,
    )
    assert row(found, VM, LARGEST_MS).mean == pytest.approx((30 * 40 + 60 * 10) / 90)


def test_a_window_whose_requests_are_not_known_covers_nothing() -> None:
    series = {(DISK, READ_MS): [50, 90], (DISK, READS): [10]}
    one = row(profile(series, 40), DISK, READ_MS)
    assert (one.mean, one.coverage) == (50.0, 0.5)


def test_a_disk_that_came_later_had_no_requests_before() -> None:
    series = {(VM, LARGEST_MS): [40, 10, 20], (DISK, READS): [30, 10, 0]}
    late = [(end, start, value) for end, start, value in windows([0, 0, 60])[2:]]
    samples = make_samples(
        {
            **{(entity, make_metric(name, "window", "ms")): windows(values)
               for (entity, name), values in series.items()},
            (OTHER, make_metric(READS, "window", "ms")): late,
        },
        period_s=20.0,
    )  # fmt: skip
    found = correlate(samples, [Span(stage="s0", start_ns=START_NS, end_ns=START_NS + 60 * NS)])
    one = row(found, VM, LARGEST_MS)
    assert one.coverage == 1.0
    assert one.mean == pytest.approx((30 * 40 + 10 * 10 + 60 * 20) / 100)


def test_where_requests_were_not_counted_time_counts() -> None:
    one = row(profile({(DISK, READ_MS): [100, 0]}, 40), DISK, READ_MS)
    assert (one.mean, one.coverage) == (50.0, 1.0)


def test_a_share_of_a_window_has_its_share_of_the_requests() -> None:
    found = profile({(DISK, READ_MS): [10, 70, 10], (DISK, READS): [100, 300, 100]}, 30, 30)
    for stage in ("s0", "s1"):
        one = row(found, DISK, READ_MS, stage)
        assert one.mean == pytest.approx((20 * 100 * 10 + 10 * 300 * 70) / (2_000 + 3_000))
