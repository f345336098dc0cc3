"""How far the clocks of vCenter and its hosts are from this machine's, and how sure that is.

Each reading bounds the offset on both sides: the server read its clock after the question left
and before the answer came, and cut it to its grain. Several readings are intersected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pyVmomi import vim, vmodl

from infra.vsphere.errors import VCenterUnreachable, sentence
from infra.vsphere.session import VCenter

READINGS = 3
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND_NS, MILLISECOND_NS, SECOND_NS = 1_000, 1_000_000, 1_000_000_000
VCENTER = "vcenter"


@dataclass(frozen=True, kw_only=True)
class ClockReading:
    """Offset of a clock: what is added to this machine's time to get that one's.

    ``bound_ns``: the true offset is at most this far from ``offset_ns``, as long as no clock was
    set meanwhile. ``reason``: why there are no numbers.
    """

    source: str
    """``vcenter`` or ``esxi:<name of the host>``."""
    at_ns: int
    offset_ns: int | None
    bound_ns: int | None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_clocks(
    vcenter: VCenter, host_moids: Sequence[str], now_ns: Callable[[], int]
) -> list[ClockReading]:
    """Read vCenter's clock and those of these hosts. Raises VCenterUnreachable alone.

    ``now_ns``: this machine's time, ns since the epoch.
    """
    service = vcenter.service
    readings = [_measure(vcenter, VCENTER, service.CurrentTime, now_ns)]
    hosts = [vim.HostSystem(moid, vcenter.stub) for moid in dict.fromkeys(host_moids)]
    for host in hosts:
        readings.append(_read_host(vcenter, host, now_ns))
    return readings


def _read_host(vcenter: VCenter, host: Any, now_ns: Callable[[], int]) -> ClockReading:
    source = f"esxi:{host._GetMoId()}"
    try:
        ((_, read),) = vcenter.read([host], ["name", "configManager.dateTimeSystem"])
    except (vmodl.MethodFault, ValueError) as fault:
        return _absent(source, now_ns(), sentence(fault))
    source = f"esxi:{read.get('name', host._GetMoId())}"
    system = read.get("configManager.dateTimeSystem")
    if system is None:
        return _absent(
            source, now_ns(), "the account may not read the host's date (System.Read on the host)"
        )
    return _measure(vcenter, source, system.QueryDateTime, now_ns)


def _measure(
    vcenter: VCenter, source: str, ask: Callable[[], datetime], now_ns: Callable[[], int]
) -> ClockReading:
    exchanges = []
    try:
        vcenter.call(ask, read_only=True)  # opens a connection, or logs in again, if need be
        for _ in range(READINGS):
            before_ns = now_ns()
            answer = vcenter.call(ask, read_only=True)
            exchanges.append((before_ns, _ns(answer), now_ns()))
    except VCenterUnreachable:
        raise
    except (vmodl.MethodFault, OSError) as fault:
        return _absent(source, now_ns(), f"its clock cannot be read: {sentence(fault)}")
    return offset(source, exchanges)


def offset(source: str, exchanges: Sequence[tuple[int, int, int]]) -> ClockReading:
    """The offset that all ``(before_ns, that clock's ns, after_ns)`` leave possible.

    Where they leave none, a clock was set in between: the narrowest exchange counts alone.
    """
    grain_ns = grain([answer for _, answer, _ in exchanges])
    bounds = [(theirs - after, theirs + grain_ns - before) for before, theirs, after in exchanges]
    low, high = max(low for low, _ in bounds), min(high for _, high in bounds)
    if low > high:
        low, high = min(bounds, key=lambda bound: bound[1] - bound[0])
    before_ns, _, after_ns = exchanges[-1]
    return ClockReading(
        source=source,
        at_ns=(before_ns + after_ns) // 2,
        offset_ns=(low + high) // 2,
        bound_ns=(high - low + 1) // 2,
    )


def grain(answers_ns: Sequence[int]) -> int:
    """To what a clock's answers are cut, by their digits: s, ms or µs, in ns."""
    for size_ns in (SECOND_NS, MILLISECOND_NS):
        if all(answer % size_ns == 0 for answer in answers_ns):
            return size_ns
    return MICROSECOND_NS


def _ns(answer: datetime) -> int:
    return (answer - EPOCH) // timedelta(microseconds=1) * MICROSECOND_NS


def _absent(source: str, at_ns: int, reason: str) -> ClockReading:
    return ClockReading(source=source, at_ns=at_ns, offset_ns=None, bound_ns=None, reason=reason)
