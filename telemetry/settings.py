"""How a run is sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

MOST_HZ = 100.0
"""Clock ticks are 10 ms: faster sampling sees no more, and costs."""


@dataclass(frozen=True, kw_only=True)
class TelemetrySettings:
    """Samples per second of each collector, seconds of samples that a kill can cost, and which.

    Raises ValueError for a figure that is out of range or a collector that has no rate.
    """

    guest_hz: float = 10.0
    gpu_hz: float = 10.0
    flush_s: float = 1.0
    collectors: tuple[str, ...] = ("guest", "gpu")

    def __post_init__(self) -> None:
        for name in ("guest_hz", "gpu_hz"):
            if not 0 < getattr(self, name) <= MOST_HZ:
                raise ValueError(
                    f"{name} = {getattr(self, name)}: give samples per second, up to {MOST_HZ:g}"
                )
        if not 0 < self.flush_s <= 60:
            raise ValueError(f"flush_s = {self.flush_s}: give seconds, above 0 and up to 60")
        for name in self.collectors:
            self.period_s(name)

    def period_s(self, collector: str) -> float:
        """Seconds between two samples of a collector."""
        rates_hz = {"guest": self.guest_hz, "gpu": self.gpu_hz}
        if collector not in rates_hz:
            raise ValueError(f"no collector {collector!r}; there are {', '.join(rates_hz)}")
        return 1.0 / rates_hz[collector]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> TelemetrySettings:
        return cls(**{**fields, "collectors": tuple(fields["collectors"])})
