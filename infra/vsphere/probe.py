"""Everything that has to be right before a run can ask a vCenter: looked at once, said in full."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pyVmomi import vim, vmodl

from infra.placement import Placement, VmPlace
from infra.vsphere import tls
from infra.vsphere.clocks import ClockReading, read_clocks
from infra.vsphere.counters import CounterTable, available
from infra.vsphere.errors import VCenterError, VCenterRefused, sentence
from infra.vsphere.find import find_this_vm, find_vms
from infra.vsphere.perf import max_query_metrics
from infra.vsphere.privileges import Right, Targets, check_rights
from infra.vsphere.session import VCenter
from infra.vsphere.settings import VCenterSettings

VMWARE = "VMware, Inc."
Of = Literal["vm", "esxi", "gpu"]
T = TypeVar("T")
REFUSED = (vmodl.MethodFault, VCenterRefused)
NO_GPU_COUNTERS = (
    "this host offers none: it has no GPU that it shares (a passed-through one is seen by the "
    "guest alone), or the vendor's host driver gives none"
)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A counter that telemetry reads, of this VM (``vm``) or of its host (``esxi``, ``gpu``)."""

    of: Of
    counter: str


@dataclass(frozen=True, kw_only=True)
class CounterRow:
    """Whether a counter has realtime samples here; ``level`` matters for its history alone."""

    of: Of
    counter: str
    level: int | None
    available: bool
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class History:
    """One of the server's stored intervals; a counter above ``level`` is not kept there."""

    interval_s: int
    kept_s: int
    level: int
    enabled: bool


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a vCenter is like from here. ``refused`` says why nobody could log in."""

    server: str
    tls: str
    refused: str | None = None
    user: str | None = None
    version: str | None = None
    max_query_metrics: int | None = None
    rights: tuple[Right, ...] = ()
    clocks: tuple[ClockReading, ...] = ()
    vm: VmPlace | None = None
    other_vms: tuple[VmPlace, ...] = ()
    counters: tuple[CounterRow, ...] = ()
    history: tuple[History, ...] = ()
    problems: tuple[str, ...] = ()
    """Each in a sentence: what is missing, what it costs, how to put it right."""
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        places = [] if self.vm is None else [self.vm]
        return {
            **{
                name: getattr(self, name)
                for name in ("server", "tls", "refused", "user", "version", "max_query_metrics")
            },
            "rights": [right.to_json() for right in self.rights],
            "clocks": [clock.to_json() for clock in self.clocks],
            "vm": next((place.to_json() for place in places), None),
            "other_vms": [place.to_json() for place in self.other_vms],
            "counters": [vars(row) for row in self.counters],
            "history": [vars(one) for one in self.history],
            "problems": list(self.problems),
            "notes": list(self.notes),
        }


def probe(
    settings: VCenterSettings,
    placement: Placement,
    wanted: Sequence[Wanted],
    *,
    manage: bool = False,
    environ: Mapping[str, str] = os.environ,
    now_ns: Callable[[], int] = time.time_ns,
) -> Report:
    """Look at a vCenter from ``placement``, this machine. Raises nothing of the vCenter's.

    ``manage``: ask for the rights of plan, apply and destroy as well.
    """
    vcenter = VCenter(settings, environ=environ)
    try:
        with vcenter:
            return _Look(vcenter, placement, wanted, manage, now_ns).report()
    except VCenterError as error:
        return Report(server=settings.address, tls=tls.state(settings), refused=str(error))


class _Look:
    """One look, question by question; each may fail and then leaves its problem."""

    def __init__(
        self,
        vcenter: VCenter,
        placement: Placement,
        wanted: Sequence[Wanted],
        manage: bool,
        now_ns: Callable[[], int],
    ) -> None:
        self._vcenter, self._settings = vcenter, vcenter.settings
        self._placement, self._wanted, self._manage = placement, wanted, manage
        self._now_ns = now_ns
        self._problems: list[str] = []
        self._notes: list[str] = []

    def report(self) -> Report:
        vcenter = self._vcenter
        if self._settings.insecure:
            self._notes.append(
                "the server is not verified: anybody in between can read the password; name "
                "vcenter.ca_file or pin vcenter.thumbprint"
            )
        vm, others = self._vms()
        rights = self._part("the rights", lambda: self._rights(vm))
        hosts = [one.host_moid for one in [*([] if vm is None else [vm]), *others]]
        clocks = read_clocks(vcenter, hosts, self._now_ns)
        self._judge_clocks(clocks)
        counters = self._part("the counters", lambda: self._counters(vm))
        history = self._part("the stored intervals", self._history)
        return Report(
            server=self._settings.address,
            tls=vcenter.tls,
            user=vcenter.user,
            version=vcenter.version,
            max_query_metrics=max_query_metrics(vcenter),
            rights=rights,
            clocks=tuple(clocks),
            vm=vm,
            other_vms=tuple(others),
            counters=counters,
            history=history,
            problems=tuple(self._problems),
            notes=tuple(self._notes),
        )

    def _part(self, what: str, ask: Callable[[], Iterable[T]]) -> tuple[T, ...]:
        """One part of the report; what the server refuses becomes a problem, and the rest stays."""
        try:
            return tuple(ask())
        except REFUSED as fault:
            self._problems.append(f"{what} cannot be read: {sentence(fault)}")
            return ()

    def _vms(self) -> tuple[VmPlace | None, list[VmPlace]]:
        this: VmPlace | None = None
        others: list[VmPlace] = []
        try:
            this = find_this_vm(self._vcenter, self._placement.product_uuid, self._settings.vm)
        except LookupError as error:
            self._problems.append(f"{error}{self._not_vmware()}")
        try:
            others = find_vms(self._vcenter, self._settings.other_vms)
        except LookupError as error:
            self._problems.append(str(error))
        return this, others

    def _not_vmware(self) -> str:
        system = self._placement.system
        if self._settings.vm or system is None or system == VMWARE:
            return ""
        return f" (this machine calls itself one of {system!r}, not of {VMWARE!r}: no vSphere VM?)"

    def _rights(self, vm: VmPlace | None) -> list[Right]:
        targets = self._targets(vm)
        rights = check_rights(self._vcenter, "read", targets)
        if self._manage:
            rights += check_rights(self._vcenter, "apply", targets)
            self._notes.append(
                "the rights on a template are checked by `stagescope infra plan`, which knows it"
            )
        self._problems += [said for right in rights if (said := right.problem())]
        return rights

    def _targets(self, vm: VmPlace | None) -> Targets:
        content, stub = self._vcenter.content, self._vcenter.stub
        root = (content.rootFolder, f"vCenter {self._settings.address}")
        if vm is None:
            return {"root": [root]}
        this = vim.VirtualMachine(vm.moid, stub)
        ((_, read),) = self._vcenter.read(
            [this], ["parent", "resourcePool", "datastore", "network"]
        )
        folder, pool = read.get("parent"), read.get("resourcePool")
        return {
            "root": [root],
            "vm": [(this, f"VM {vm.vm}")],
            "host": [(vim.HostSystem(vm.host_moid, stub), f"host {vm.esxi_host}")],
            "folder": [] if folder is None else [(folder, f"the folder of VM {vm.vm}")],
            "pool": [] if pool is None else [(pool, f"the resource pool of VM {vm.vm}")],
            "datastore": self._named("datastore", read.get("datastore", ())),
            "network": self._named("network", read.get("network", ())),
        }

    def _named(self, kind: str, objects: Sequence[Any]) -> list[tuple[Any, str]]:
        try:
            read = self._vcenter.read(objects, ["name"])
        except vim.fault.NoPermission:
            return [(one, f"{kind} {one._GetMoId()}") for one in objects]
        return [(one, f"{kind} {known.get('name', one._GetMoId())}") for one, known in read]

    def _judge_clocks(self, clocks: Sequence[ClockReading]) -> None:
        limit_ns = self._settings.clock_limit_s * 1e9
        for clock in clocks:
            if clock.offset_ns is None or clock.bound_ns is None:
                self._problems.append(f"clock of {clock.source}: {clock.reason}")
            elif abs(clock.offset_ns) - clock.bound_ns > limit_ns:
                way = "ahead of" if clock.offset_ns > 0 else "behind"
                self._problems.append(
                    f"the clock of {clock.source} is {abs(clock.offset_ns) / 1e9:.1f} s {way} this "
                    f"machine's, more than vcenter.clock_limit_s ({self._settings.clock_limit_s:g} "
                    "s): a run corrects it by what it measures, but set both by one NTP source"
                )
            elif clock.bound_ns > limit_ns:
                self._problems.append(
                    f"the clock of {clock.source} is known to {clock.bound_ns / 1e9:.1f} s only, "
                    f"more than vcenter.clock_limit_s ({self._settings.clock_limit_s:g} s): the "
                    "way to the server is too slow for it"
                )

    def _counters(self, vm: VmPlace | None) -> list[CounterRow]:
        unique = list(dict.fromkeys((one.of, one.counter) for one in self._wanted))
        table = CounterTable.read(self._vcenter)
        found, reasons = table.resolve([name for _, name in unique])
        offered = {
            "vm": self._offered("VirtualMachine", vm.moid if vm else None),
            "esxi": self._offered("HostSystem", vm.host_moid if vm else None),
        }
        offered["gpu"] = offered["esxi"]
        rows = []
        for of, name in unique:
            counter, ids = found.get(name), offered[of]
            reason = reasons.get(name)
            if reason is None and isinstance(ids, str):
                reason = ids
            elif reason is None and counter is not None and counter.id not in ids:
                reason = NO_GPU_COUNTERS if of == "gpu" else "not offered here in realtime"
            level = counter.level if counter else None
            rows.append(
                CounterRow(
                    of=of, counter=name, level=level, available=reason is None, reason=reason
                )
            )
        if vm and not any(row.available for row in rows if row.of == "vm"):
            self._problems.append(f"VM {vm.vm} offers no counter in realtime; is it powered on?")
        return rows

    def _offered(self, kind: str, moid: str | None) -> frozenset[int] | str:
        if moid is None:
            return "no VM was found"
        try:
            return frozenset(id_ for id_, _ in available(self._vcenter, kind, moid))
        except REFUSED as fault:
            return sentence(fault)

    def _history(self) -> list[History]:
        manager = self._vcenter.content.perfManager
        intervals = self._vcenter.call(lambda: manager.historicalInterval, read_only=True)
        return [
            History(
                interval_s=one.samplingPeriod,
                kept_s=one.length,
                level=one.level or 1,
                enabled=bool(one.enabled),
            )
            for one in intervals or ()
        ]
