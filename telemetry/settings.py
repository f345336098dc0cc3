"""How a run is sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TelemetrySettings:
    """Samples per second of each collector, seconds of samples that a kill can cost, and which."""

    guest_hz: float = 10.0
    gpu_hz: float = 10.0
    flush_s: float = 1.0
    collectors: tuple[str, ...] = ("guest", "gpu")

    def period_s(self, collector: str) -> float:
        """Seconds between two samples of a collector."""
        return 1.0 / {"guest": self.guest_hz, "gpu": self.gpu_hz}[collector]

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> TelemetrySettings:
        """Settings from what ``dataclasses.asdict`` made of them, through JSON."""
        return cls(**{**fields, "collectors": tuple(fields["collectors"])})
