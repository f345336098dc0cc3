"""Performance counters by name. Their ids differ from server to server, so none is ever fixed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pyVmomi import vim, vmodl

from infra.vsphere.errors import VCenterRefused, sentence
from infra.vsphere.session import VCenter

REALTIME_S = 20
"""Interval of the samples that hosts make themselves and keep for an hour."""


@dataclass(frozen=True, kw_only=True)
class Counter:
    """One counter as this server describes it."""

    id: int
    name: str
    """``group.name.rollup``, the same on every server."""
    unit: str
    """The server's key: percent (in hundredths), kiloBytes, millisecond, watt…"""
    stats_type: str
    """absolute, rate, or delta (a sum over the interval)."""
    level: int
    """Collection level from which the history has it; realtime samples do not depend on it."""


@dataclass(frozen=True, kw_only=True)
class CounterTable:
    """All counters that a server describes, by name and by id."""

    by_name: Mapping[str, Counter] = field(repr=False)
    by_id: Mapping[int, Counter] = field(repr=False)

    @classmethod
    def read(cls, vcenter: VCenter) -> CounterTable:
        """Ask the server for its table. Raises VCenterError."""
        with faults_as_refusals():
            infos = vcenter.call(lambda: vcenter.content.perfManager.perfCounter, read_only=True)
        return cls.of(_counter(info) for info in infos)

    @classmethod
    def of(cls, counters: Iterable[Counter]) -> CounterTable:
        """A table of these; of two with one name the first counts."""
        by_name: dict[str, Counter] = {}
        by_id: dict[int, Counter] = {}
        for one in counters:
            by_name.setdefault(one.name, one)
            by_id.setdefault(one.id, one)
        return cls(by_name=by_name, by_id=by_id)

    def resolve(
        self, names: Iterable[str], units: Mapping[str, str] | None = None
    ) -> tuple[dict[str, Counter], dict[str, str]]:
        """Counters by name, and by name why there is none.

        ``units``: the unit that a name must have, so that no figure is off by a power of ten.
        """
        found: dict[str, Counter] = {}
        reasons: dict[str, str] = {}
        for name in dict.fromkeys(names):
            counter = self.by_name.get(name)
            wanted = (units or {}).get(name)
            if counter is None:
                reasons[name] = f"this vCenter knows no counter {name}"
            elif wanted is not None and counter.unit != wanted:
                reasons[name] = f"{name} is in {counter.unit} on this vCenter, not in {wanted}"
            else:
                found[name] = counter
        return found, reasons


def _counter(info: Any) -> Counter:
    return Counter(
        id=info.key,
        name=f"{info.groupInfo.key}.{info.nameInfo.key}.{info.rollupType}",
        unit=info.unitInfo.key,
        stats_type=str(info.statsType),
        level=info.level or 0,
    )


def available(
    vcenter: VCenter, kind: str, moid: str, interval_s: int = REALTIME_S
) -> list[tuple[int, str]]:
    """Counter id and instance of every series that the server offers of one object, in order.

    Ids that ``CounterTable`` does not have can be among them. Raises VCenterError.
    """
    kinds: Sequence[Any] = (vim.VirtualMachine, vim.HostSystem)
    (made,) = (one for one in kinds if one._wsdlName == kind)
    entity = made(moid, vcenter.stub)
    manager = vcenter.content.perfManager
    with faults_as_refusals():
        offered = vcenter.call(
            lambda: manager.QueryAvailablePerfMetric(entity=entity, intervalId=interval_s),
            read_only=True,
        )
    return sorted({(one.counterId, one.instance or "") for one in offered})


@contextmanager
def faults_as_refusals(*but: type[BaseException]) -> Iterator[None]:
    """Turn the server's faults into VCenterRefused, which those who know no pyVmomi can catch."""
    try:
        yield
    except but:
        raise
    except vmodl.MethodFault as fault:
        raise VCenterRefused(f"vCenter refuses: {sentence(fault)}") from fault
