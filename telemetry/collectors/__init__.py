"""The sources of samples. A new one is a file in this folder and a line in ``COLLECTORS``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from telemetry.clock import Clock
from telemetry.samples import Collector, Metric
from telemetry.settings import TelemetrySettings


def _guest(clock: Clock, settings: TelemetrySettings, folder: Path | None) -> Collector:
    from telemetry.collectors.guest import GuestCollector

    return GuestCollector(clock=clock, period_s=settings.period_s("guest"), folder=folder)


def _gpu(clock: Clock, settings: TelemetrySettings, folder: Path | None) -> Collector:
    from telemetry.collectors.gpu import GpuCollector

    return GpuCollector(clock=clock, period_s=settings.period_s("gpu"))


def _vcenter(clock: Clock, settings: TelemetrySettings, folder: Path | None) -> Collector:
    from telemetry.collectors.vcenter import VCenterCollector

    assert settings.vcenter is not None, "TelemetrySettings lets no vcenter through without one"
    return VCenterCollector(clock=clock, settings=settings.vcenter, folder=folder)


COLLECTORS: dict[str, Callable[[Clock, TelemetrySettings, Path | None], Collector]] = {
    "guest": _guest,
    "gpu": _gpu,
    "vcenter": _vcenter,
}


def metric_tables() -> dict[str, tuple[Metric, ...]]:
    """What each collector can deliver, for the reference page."""
    from telemetry import energy
    from telemetry.collectors import gpu, guest_metrics, vcenter_metrics
    from telemetry.health import HEALTH

    return {
        "Guest": guest_metrics.METRICS,
        "GPU (NVML)": tuple(gpu.METRICS),
        "Energy of a stage, derived": energy.METRICS,
        "vCenter": vcenter_metrics.METRICS,
        "The recorder itself": HEALTH,
    }
