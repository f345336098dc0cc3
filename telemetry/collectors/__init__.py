"""The sources of samples. A new one is a file in this folder and a line in ``COLLECTORS``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from telemetry.clock import Clock
from telemetry.samples import Collector, Metric


def _guest(clock: Clock, period_s: float, folder: Path | None) -> Collector:
    from telemetry.collectors.guest import GuestCollector

    return GuestCollector(clock=clock, period_s=period_s, folder=folder)


def _gpu(clock: Clock, period_s: float, folder: Path | None) -> Collector:
    from telemetry.collectors.gpu import GpuCollector

    return GpuCollector(clock=clock, period_s=period_s)


COLLECTORS: dict[str, Callable[[Clock, float, Path | None], Collector]] = {
    "guest": _guest,
    "gpu": _gpu,
}


def metric_tables() -> dict[str, tuple[Metric, ...]]:
    """What each collector can deliver, for the reference page."""
    from telemetry.collectors import gpu, guest_metrics
    from telemetry.health import HEALTH

    return {
        "Guest": guest_metrics.METRICS,
        "GPU (NVML)": tuple(gpu.METRICS),
        "The recorder itself": HEALTH,
    }
