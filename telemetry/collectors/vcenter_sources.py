"""What a vCenter can be asked about a run: objects, their counters, and the entities they make.

Discovery is apart from collection: it is done rarely, and its result is swapped in whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from infra.vsphere.counters import Counter, CounterTable, available
from infra.vsphere.errors import VCenterRefused
from infra.vsphere.perf import Wanted
from infra.vsphere.session import VCenter
from telemetry.collectors.vcenter_metrics import COUNTER_UNITS, Row, rows_of
from telemetry.samples import Series

VM, HOST = "VirtualMachine", "HostSystem"


@dataclass(frozen=True, kw_only=True)
class Source:
    """One object of the server: ``owner`` is its entity, of a VM without the host it is on.

    ``plan``: the metrics that each counter id and instance make. ``absent``: why the others are
    not there.
    """

    kind: str
    moid: str
    owner: str
    vcpus: int = 1
    plan: Mapping[tuple[int, str], tuple[Row, ...]] = field(repr=False)
    absent: Mapping[str, str] = field(default_factory=dict, repr=False)

    def key(self, row: Row, instance: str) -> tuple[str, str]:
        """Owner and metric of one series."""
        part = instance if row.of != "gpu" else f"gpu:{instance}"
        return (f"{self.owner}/{part}" if instance else self.owner), row.metric.name

    def names(self) -> list[tuple[str, str]]:
        """All series of this object."""
        return [
            self.key(row, instance) for (_, instance), rows in self.plan.items() for row in rows
        ]

    def series(self, entity: str) -> list[Series]:
        """All series with ``entity`` for the owner; the absent ones with their reasons."""
        found = []
        for owner, metric in self.names():
            here = entity + owner.removeprefix(self.owner)
            found.append(Series(entity=here, metric=_METRICS[metric]))
        return found + [
            Series(entity=entity, metric=_METRICS[metric], reason=reason)
            for metric, reason in self.absent.items()
        ]

    def wanted(self, counters: Iterable[tuple[int, str]]) -> Wanted:
        return Wanted(self.kind, self.moid, tuple(counters))


_METRICS = {row.metric.name: row.metric for kind in (VM, HOST) for row in rows_of(kind)}


@dataclass(frozen=True, kw_only=True)
class Counters:
    """The counters of the table on one server, and what it does not have of them."""

    table: CounterTable
    found: Mapping[str, Counter]
    reasons: Mapping[str, str]

    @classmethod
    def read(cls, vcenter: VCenter) -> Counters:
        table = CounterTable.read(vcenter)
        found, reasons = table.resolve(COUNTER_UNITS, COUNTER_UNITS)
        return cls(table=table, found=found, reasons=reasons)

    def source(
        self, vcenter: VCenter, kind: str, moid: str, owner: str, vcpus: int = 1
    ) -> tuple[Source, set[int]]:
        """Find out what there is of one object, and which ids on offer nobody describes."""
        plan: dict[tuple[int, str], tuple[Row, ...]] = {}
        unknown: set[int] = set()
        try:
            offered = available(vcenter, kind, moid)
        except VCenterRefused as error:
            absent = {row.metric.name: str(error) for row in rows_of(kind)}
        else:
            plan, absent = self.plan(kind, offered)
            unknown = {number for number, _ in offered if number not in self.table.by_id}
        source = Source(kind=kind, moid=moid, owner=owner, vcpus=vcpus, plan=plan, absent=absent)
        return source, unknown

    def plan(
        self, kind: str, offered: Sequence[tuple[int, str]]
    ) -> tuple[dict[tuple[int, str], tuple[Row, ...]], dict[str, str]]:
        """The offer, by what the table wants of it, and by metric why it is not on offer."""
        plan: dict[tuple[int, str], tuple[Row, ...]] = {}
        absent: dict[str, str] = {}
        for row in rows_of(kind):
            counter = self.found.get(row.counter)
            if counter is None:
                absent[row.metric.name] = self.reasons[row.counter]
                continue
            parts = [
                instance
                for number, instance in offered
                if number == counter.id and bool(instance) == (row.instances == "*")
            ]
            for instance in parts:
                plan[counter.id, instance] = (*plan.get((counter.id, instance), ()), row)
            if not parts:
                of = "its parts" if row.instances else "it"
                absent[row.metric.name] = f"vCenter offers no realtime {row.counter} of {of}"
        return plan, absent
