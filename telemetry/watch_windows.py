"""The hypervisor's windows of a run that goes on: when they ended, and where each VM is now.

A host stamps its windows by its own clock, and a VM that moves goes on under the name of its new
host. Windows come late and in any order; what counts is when they ended.
"""

from __future__ import annotations

from telemetry.collectors.vcenter_metrics import CLOCK_OFFSET
from telemetry.vm_entity import parsed


class Windows:
    """What has come so far. Not safe for several threads."""

    def __init__(self) -> None:
        self._offset_ns: dict[str, int] = {}
        self._newest_ns: dict[str, dict[str, int]] = {}

    def read_clock(self, entity: str, metric: str, value: float) -> None:
        """Note how far a host's clock is ahead of the run's, if that is what this sample says."""
        if metric == CLOCK_OFFSET.name and (host := parsed(entity).host) is not None:
            self._offset_ns[host] = round(value * 1e9)

    def take(self, entity: str, stamp_ns: int) -> None:
        """Note a window of a VM, or of a part of it, by the stamp of its end."""
        seen = parsed(entity)
        if seen.vm is not None and seen.host is not None:
            hosts = self._newest_ns.setdefault(seen.vm, {})
            hosts[seen.host] = max(hosts.get(seen.host, stamp_ns), stamp_ns)

    def end_ns(self, entity: str, stamp_ns: int) -> int:
        """A stamp of the host's clock on the run's; as it is while that clock was not read."""
        return self._on_our_clock_ns(parsed(entity).host or "", stamp_ns)

    def is_left(self, entity: str, end_ns: int) -> bool:
        """Whether a window of the VM that ended later, on the run's clock, came from elsewhere."""
        seen = parsed(entity)
        stamps_ns = self._newest_ns.get(seen.vm or "", {})
        return any(
            host != seen.host and self._on_our_clock_ns(host, stamp_ns) > end_ns
            for host, stamp_ns in stamps_ns.items()
        )

    def _on_our_clock_ns(self, host: str, stamp_ns: int) -> int:
        return stamp_ns - self._offset_ns.get(host, 0)
