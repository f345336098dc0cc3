"""How a run is sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from infra.vsphere.settings import VCenterSettings

MOST_HZ = 100.0
"""Clock ticks are 10 ms: faster sampling sees no more, and costs."""


@dataclass(frozen=True, kw_only=True)
class TelemetrySettings:
    """Samples per second of each collector, seconds of samples that a kill can cost, and which.

    With a ``vcenter``, its collector is one of them. Raises ValueError for a figure that is out
    of range or a collector that has no rate.
    """

    guest_hz: float = 10.0
    gpu_hz: float = 10.0
    flush_s: float = 1.0
    collectors: tuple[str, ...] = ("guest", "gpu")
    vcenter: VCenterSettings | None = None

    def __post_init__(self) -> None:
        for name in ("guest_hz", "gpu_hz"):
            if not 0 < getattr(self, name) <= MOST_HZ:
                raise ValueError(
                    f"{name} = {getattr(self, name)}: give samples per second, up to {MOST_HZ:g}"
                )
        if not 0 < self.flush_s <= 60:
            raise ValueError(f"flush_s = {self.flush_s}: give seconds, above 0 and up to 60")
        if self.vcenter is not None and "vcenter" not in self.collectors:
            object.__setattr__(self, "collectors", (*self.collectors, "vcenter"))
        for name in self.collectors:
            self.period_s(name)

    def period_s(self, collector: str) -> float:
        """Seconds between two samples of a collector."""
        periods_s = {"guest": 1.0 / self.guest_hz, "gpu": 1.0 / self.gpu_hz}
        if self.vcenter is not None:
            periods_s["vcenter"] = self.vcenter.query_period_s
        if collector == "vcenter" and self.vcenter is None:
            raise ValueError("collector 'vcenter': no vCenter is given, so there is none to ask")
        if collector not in periods_s:
            raise ValueError(f"no collector {collector!r}; there are {', '.join(periods_s)}")
        return periods_s[collector]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "vcenter": self.vcenter and self.vcenter.to_json()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> TelemetrySettings:
        vcenter = fields.get("vcenter")
        return cls(
            **{
                **fields,
                "collectors": tuple(fields["collectors"]),
                "vcenter": None if vcenter is None else VCenterSettings.from_json(vcenter),
            }
        )
