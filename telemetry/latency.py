"""Latencies of virtual disks with the requests that each of them is the mean of.

vCenter gives a disk's latency once a window, the mean over the requests of that window, and 0 where
there were none. So a latency counts by its requests and not by its time.
"""

from __future__ import annotations

import numpy as np

from telemetry.series import Points, SeriesIndex

REQUESTS = {
    "vm_disk_read_latency_ms": ("vm_disk_read_requests_per_s",),
    "vm_disk_write_latency_ms": ("vm_disk_write_requests_per_s",),
    "vm_disk_latency_max_ms": ("vm_disk_read_requests_per_s", "vm_disk_write_requests_per_s"),
}
"""What counts the requests behind a latency: of the disk, or of all disks of the VM."""
FEW_PER_S = 0.5
"""What took time while vCenter counted 0 a second was fewer than that, and not none."""


def with_requests(index: SeriesIndex, entity: str, metric: str) -> Points:
    """A series; of a latency with its requests/s, where they were counted, and without the
    windows of which they are not known."""
    points = index.points(entity, metric)
    counts = [index.points(*name) for name in _counted(index, entity, metric)]
    if not counts:
        return points
    rate, counted = np.zeros(len(points.values)), np.zeros(len(points.values), bool)
    for one in counts:
        known = dict(zip(one.ts_ns.tolist(), one.values.tolist(), strict=True))
        there = (points.ts_ns >= one.ts_ns.min()) & (points.ts_ns <= one.ts_ns.max())
        told = np.array([known.get(ts_ns, np.nan) for ts_ns in points.ts_ns.tolist()])
        rate += np.where(there, told, 0.0)  # a disk that is not there has no requests
        counted |= there
    kept = np.isfinite(rate) & counted
    rate = np.where((rate == 0) & (points.values > 0), FEW_PER_S, rate)
    return Points(points.ts_ns[kept], points.start_ns[kept], points.values[kept], rate[kept])


def _counted(index: SeriesIndex, entity: str, metric: str) -> list[tuple[str, str]]:
    counters = REQUESTS.get(metric, ())
    return [
        (whose, name)
        for name in counters
        for whose in index.entities(name)
        if f"{whose}/".startswith(f"{entity}/")
    ]
