"""Query rounds: where the VMs of a run are, what the clocks say, and the windows that are new.

The collector makes rounds during the run and the backfill after it, with the same code. All that
a round has to remember is in the run's folder, so that either can go on where another was killed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from infra.placement import VmPlace, uuid_forms
from infra.vsphere.clocks import read_clocks
from infra.vsphere.counters import faults_as_refusals
from infra.vsphere.errors import NoSuchVm, VCenterRefused
from infra.vsphere.find import find_each, find_this_vm
from infra.vsphere.moves import Migration, migrations, where_now
from infra.vsphere.perf import PerfSeries, Wanted, max_query_metrics, query
from infra.vsphere.session import VCenter
from telemetry.clock import Clock
from telemetry.collectors.vcenter_hosts import Whereabouts
from telemetry.collectors.vcenter_journal import Journal
from telemetry.collectors.vcenter_metrics import CLOCK, CLOCK_BOUND, CLOCK_OFFSET, INTERVAL_S
from telemetry.collectors.vcenter_seen import NS, Seen
from telemetry.collectors.vcenter_seen import owner as owner_of
from telemetry.collectors.vcenter_sources import HOST, VM, Counters, Source
from telemetry.runfolder import RunFolder
from telemetry.samples import Sample, Series

DISCOVER_S = 300.0
"""What there is to ask for changes rarely: it is looked for again after this, and after a move."""
LATENESS_NS = 1800 * NS
"""So long a window that is missing is asked for again: 15 minutes late were seen."""
KEPT_NS = 2 * 3600 * NS
"""So long windows are remembered: twice as long as hosts keep theirs."""
MARGIN_NS = 150 * NS
"""Asked for before and after the run: the hosts' clocks, which stamp the windows, can be wrong."""
VCENTER = "vcenter"
DMI_UUID = Path("/sys/class/dmi/id/product_uuid")


def dmi_uuid() -> str | None:
    """This machine's product UUID, which is the VM's own; None where it may not be read."""
    try:
        return DMI_UUID.read_text().strip() or None
    except OSError:
        return None


def started_ns(folder: Path | None, clock: Clock) -> int:
    """When the run with this folder of samples began; now, where it has no record."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        if folder is not None:
            return int(RunFolder(folder.parent).read()["started_ns"])
    return clock.now_ns()


@dataclass(kw_only=True)
class Tally:
    """What one round asked and got."""

    asked: int = 0
    series: int = 0
    windows: int = 0
    repeated: int = 0
    negative: int = 0


@dataclass(kw_only=True)
class Rounds:
    """One run's questions to its vCenter. ``halted``: asked between requests, ends a round."""

    vcenter: VCenter
    clock: Clock
    journal: Journal
    seen: Seen
    since_ns: int
    """Start of the run, on its clock."""
    until_ns: int | None = None
    """Its end, where it has one: a series that has come so far is not asked for any more."""
    product_uuid: str | None = None
    elsewhere: str | None = None
    """Why nothing says which VM the run was on, where it was not on this one."""
    whereabouts: Whereabouts = field(default_factory=Whereabouts)
    halted: Callable[[], bool] = lambda: False
    sources: tuple[Source, ...] = ()
    problems: dict[str, None] = field(default_factory=dict)
    """What was lost and is no gap, a sentence each."""
    _counters: Counters | None = None
    _places: tuple[VmPlace, ...] = ()
    _moids: tuple[str, ...] = ()
    """Of all VMs that are looked for again, this one first."""
    _offsets_ns: dict[str, int] = field(default_factory=dict)
    _blind: dict[str, str | None] = field(default_factory=dict)
    """Clocks that cannot be read, and why."""
    _discovered_s: float = float("-inf")
    _looked_ns: int | None = None
    _chunk: int = 0
    _of_login: int = 0
    _told: set[str] = field(default_factory=set)

    def connect(self) -> None:
        """Log in and read what stays the same for a session. Raises VCenterError, LookupError."""
        self.vcenter.open()
        self.journal.write(
            "connected",
            server=self.vcenter.settings.address,
            version=self.vcenter.version,
            user=self.vcenter.user,
            tls=self.vcenter.tls,
        )
        self._read_counters()

    def _read_counters(self) -> None:
        """Anew with each session: a vCenter that was restored or upgraded has other ids."""
        self._counters = Counters.read(self.vcenter)
        self._chunk = max_query_metrics(self.vcenter)
        self._of_login = self.vcenter.logins
        for name, reason in self._counters.reasons.items():
            self._unresolved(name, reason)

    def look(self, when: str) -> list[Sample]:
        """Find the VMs, note where they are, and read the clocks; returns the readings."""
        looked_ns = self.clock.now_ns()
        found = self._find()
        clocks = self._read_clocks([place.host_moid for place in found])
        moved = [place for place in found if self._note(place, when)]
        self._places = tuple(found)
        self._looked_ns = looked_ns
        renewed = self._of_login != self.vcenter.logins
        if renewed:
            self._read_counters()
        known = {source.moid: source.vcpus for source in self.sources}
        changed = any(known.get(place.moid) != place.vcpus for place in found)
        if moved or changed or renewed or time.monotonic() - self._discovered_s > DISCOVER_S:
            self.sources = tuple(self._discover())
            self._discovered_s = time.monotonic()
        return clocks

    def declared(self) -> list[Series]:
        """All series that there are, and those that there are not, with the reason."""
        clocks = [VCENTER, *(f"esxi:{host}" for host in self.whereabouts.hosts())]
        found = [
            Series(entity=clock, metric=metric, reason=self._blind.get(clock))
            for clock in clocks
            for metric in CLOCK
        ]
        for source in self.sources:
            found += source.series(self.entity(source.owner, self.clock.now_ns()))
        return found

    def entity(self, owner: str, end_ns: int) -> str:
        """What a VM or host is called at a stamp of its own."""
        if owner.startswith("esxi:"):
            return owner
        on_our_clock_ns = end_ns - self.offset_ns(owner)
        return f"{owner}@{self.whereabouts.at(owner.removeprefix('vm:'), on_our_clock_ns)}"

    def offset_ns(self, owner: str) -> int:
        """What is added to the run's time to get that of its stamps, as far as is known."""
        host = owner
        if owner.startswith("vm:"):
            now = self.whereabouts.now(owner.removeprefix("vm:"))
            host = f"esxi:{now[1]}" if now else ""
        return self._offsets_ns.get(host, self._offsets_ns.get(VCENTER, 0))

    def ask(self, lateness_ns: int = LATENESS_NS) -> list[Sample]:
        """Ask for all windows that were not here yet; those that are missing for longer than
        ``lateness_ns`` while newer ones came are given up. None counts as taken where it raises:
        VCenterError, OSError (a full disk)."""
        tally = Tally()
        begin_s = time.monotonic()
        answers: list[PerfSeries] = []  # none counts as taken before all are there
        for start_ns, wanted in self._wanted(lateness_ns):
            if self.halted():
                break
            tally.asked += sum(len(one.counters) for one in wanted)
            for series in self._query(start_ns, wanted):
                answers.append(series)
                if self.halted():
                    break
        by_moid = {source.moid: source for source in self.sources}
        rows = [row for one in answers for row in self._rows(by_moid[one.moid], one, tally)]
        seconds = round(time.monotonic() - begin_s, 3)
        try:
            self.journal.write("round", **vars(tally), seconds=seconds)
        except OSError:
            self.give_back(rows)
            raise
        return rows

    def give_back(self, rows: Iterable[Sample]) -> None:
        """Windows that could not be written: they are asked for again."""
        for row in rows:
            if row.start_ns is not None:
                key = owner_of(row.series.entity), row.series.metric.name
                self.seen.give_back(key, row.ts_ns)

    def forget(self) -> None:
        """Let go of windows that are too old to come again."""
        self.seen.forget(KEPT_NS)

    def _query(self, start_ns: int, wanted: Sequence[Wanted]) -> Iterator[PerfSeries]:
        problems: list[str] = []
        owners = {source.moid: source.owner for source in self.sources}
        end_ns = None
        if self.until_ns is not None:
            end_ns = self.until_ns + max(self._offsets_ns.values(), default=0) + MARGIN_NS
        yield from query(
            self.vcenter,
            wanted,
            start_ns=start_ns,
            end_ns=end_ns,
            interval_s=INTERVAL_S,
            chunk=self._chunk,
            refuse=lambda one, why: problems.append(f"no samples of {owners[one.moid]}: {why}"),
            problems=problems,
        )
        self.problems |= dict.fromkeys(problems)

    def _wanted(self, lateness_ns: int) -> list[tuple[int, list[Wanted]]]:
        """What to ask for, by the time after which it is wanted: mostly one for all series."""
        by_start: dict[int, list[Wanted]] = {}
        for source in self.sources:
            own: dict[int, list[tuple[int, str]]] = {}
            for counter, rows in source.plan.items():
                keys = [source.key(row, counter[1]) for row in rows]
                start_ns = min(self._start_ns(source, key, lateness_ns) for key in keys)
                if not self._is_over(source, start_ns):
                    own.setdefault(start_ns, []).append(counter)
            for start_ns, counters in own.items():
                by_start.setdefault(start_ns, []).append(source.wanted(counters))
        return sorted(by_start.items())

    def _start_ns(self, source: Source, key: tuple[str, str], lateness_ns: int) -> int:
        first_ns = self.since_ns + self.offset_ns(source.owner)
        start_ns = self.seen.unbroken_ns(key, first_ns)
        newest_ns = self.seen.newest_ns(key)
        if start_ns == first_ns:
            start_ns -= MARGIN_NS
        return start_ns if newest_ns is None else max(start_ns, newest_ns - lateness_ns)

    def _is_over(self, source: Source, start_ns: int) -> bool:
        until_ns = self.until_ns
        return until_ns is not None and start_ns >= until_ns + self.offset_ns(source.owner)

    def _rows(self, source: Source, series: PerfSeries, tally: Tally) -> list[Sample]:
        """The samples of a series that are new, one for each metric that it makes."""
        rows: list[Sample] = []
        fresh: list[int] = []
        ends_ns, raw = series.ends_ns.tolist(), series.values.tolist()
        for row in source.plan.get((series.counter_id, series.instance), ()):
            key = source.key(row, series.instance)
            fresh = self.seen.take(key, ends_ns, raw)
            for place in fresh:
                end_ns = ends_ns[place]
                here = self.entity(source.owner, end_ns) + key[0].removeprefix(source.owner)
                value = row.value(raw[place], series.interval_s, source.vcpus)
                one = Series(entity=here, metric=row.metric)
                rows.append(Sample(end_ns, one, value, end_ns - series.interval_s * NS))
        negative = sum(value < 0 for value in raw)
        tally.series += 1
        tally.windows += len(fresh)
        tally.negative += negative
        tally.repeated += len(raw) - negative - len(fresh)
        return rows

    def _find(self) -> list[VmPlace]:
        """This VM and the others of the run; after the first time by their ids alone."""
        with faults_as_refusals():
            found, untold = (
                where_now(self.vcenter, self._moids) if self._moids else self._find_first()
            )
        self._unfound(untold.values())
        unique = list({place.moid: place for place in found}.values())
        self._moids = (*(place.moid for place in unique), *untold)
        return [replace(place, vm=self._name(place, unique)) for place in unique]

    def _find_first(self) -> tuple[list[VmPlace], dict[str, NoSuchVm]]:
        """This VM first. One that the run has met before is known by its id, whatever it is called
        by now; another VM that is not there does not cost this one its windows."""
        settings, known = self.vcenter.settings, self.whereabouts.names
        found, untold = where_now(self.vcenter, list(known)) if known else ([], {})
        if not found or found[0].moid != next(iter(known)):
            if self.elsewhere and not (self.product_uuid or settings.vm):
                raise LookupError(self.elsewhere)
            found.insert(0, find_this_vm(self.vcenter, self.product_uuid, settings.vm))
        met = {name for one in found for name in (*uuid_forms(one.uuid), one.instance_uuid)}
        met |= {known[moid] for moid in (*untold, *(one.moid for one in found)) if moid in known}
        others, missing = find_each(
            self.vcenter, [name for name in settings.other_vms if name not in met]
        )
        self._unfound(missing.values())
        return found + others, untold

    def _unfound(self, problems: Iterable[NoSuchVm]) -> None:
        for problem in problems:
            self.journal.named(vms=problem.vms)
            self.problems[str(problem)] = None

    def _name(self, place: VmPlace, among: Sequence[VmPlace]) -> str:
        """What a VM is called in this run: its name, with its id if another has the same."""
        twins = [one for one in among if one.vm == place.vm]
        name = place.vm if len(twins) == 1 else f"{place.vm} ({place.moid})"
        return self.whereabouts.names.setdefault(place.moid, name)

    def _note(self, place: VmPlace, when: str) -> bool:
        """Write down where a VM is if that is news; returns whether it has moved."""
        before = self.whereabouts.now(place.vm)
        moves = self._moves(place, before)
        for move in moves:
            self.journal.write("moved", **move)
            self.whereabouts.moved(move)
        self.whereabouts.seen(place.vm, place.esxi_host, place.host_moid)
        if when != "round" or moves or before is None:
            self.journal.write("placement", when=when, **place.to_json())
        return bool(moves)

    def _moves(self, place: VmPlace, before: tuple[int, str] | None) -> list[dict[str, Any]]:
        """The changes of host since it was last looked for; exact where the server tells of them.

        It is asked even where the VM is on its old host: it may have been away in between.
        Without the server's word a change lies anywhere between two looks; it is put at the
        earlier one, since the samples come from the new host alone.
        """
        vcenter_ns = self._offsets_ns.get(VCENTER, 0)
        since_ns = max(self._looked_ns or self.since_ns, before[0] + 1 if before else 0)
        told: list[Migration] = []
        with contextlib.suppress(VCenterRefused):  # no right to read events
            told = migrations(self.vcenter, place.moid, since_ns + vcenter_ns)
        if before is not None and told and told[0].to_host == before[1]:
            told = told[1:]  # the last one again: the clocks were compared anew since
        moves = [{**vars(one), "at_ns": one.at_ns - vcenter_ns, "exact": True} for one in told]
        if before is not None and not moves and before[1] != place.esxi_host:
            moves = [
                {
                    "at_ns": since_ns,
                    "from_host": before[1],
                    "from_moid": self.whereabouts.hosts().get(before[1], ""),
                    "to_host": place.esxi_host,
                    "to_moid": place.host_moid,
                    "exact": False,
                }
            ]
        return [{"vm": place.vm, **move, "not_before_ns": since_ns} for move in moves]

    def _discover(self) -> Iterator[Source]:
        """What there is to ask of each VM, and of each host that one of them was on."""
        assert self._counters is not None
        objects = [(VM, one.moid, f"vm:{one.vm}", one.vcpus) for one in self._places]
        hosts = self.whereabouts.hosts().items()
        for kind, moid, owner, vcpus in [
            *objects,
            *((HOST, moid, f"esxi:{host}", 1) for host, moid in hosts),
        ]:
            source, unknown = self._counters.source(self.vcenter, kind, moid, owner, vcpus)
            for number in sorted(unknown):
                self._unresolved(
                    f"id {number}", f"on offer for {owner}, but this vCenter does not describe it"
                )
            yield source

    def _unresolved(self, counter: str, reason: str) -> None:
        if counter not in self._told:
            self._told.add(counter)
            self.journal.write("unresolved", counter=counter, reason=reason)

    def _read_clocks(self, host_moids: Sequence[str]) -> list[Sample]:
        rows = []
        for reading in read_clocks(self.vcenter, host_moids, self.clock.now_ns):
            if reading.offset_ns is None or reading.bound_ns is None:
                self._blind[reading.source] = reading.reason
                continue
            self._blind.pop(reading.source, None)
            self._offsets_ns[reading.source] = reading.offset_ns
            for metric, value_ns in (
                (CLOCK_OFFSET, reading.offset_ns),
                (CLOCK_BOUND, reading.bound_ns),
            ):
                one = Series(entity=reading.source, metric=metric)
                rows.append(Sample(reading.at_ns, one, value_ns / 1e9))
        return rows
