"""The figures of one stage that verdicts rest on, each with the row of the profile it is from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from telemetry.contention import Flag
from telemetry.profile import Profile, Row, share_of
from telemetry.verdict_thresholds import limit
from telemetry.vm_entity import parsed

CPU, READY = "cpu_busy_seconds", "process_ready_count"
DISK_WAITS = "process_waiting_for_disk_count"
ONLY_DISK = "process_only_disk_wait_percent"
PSI_IO = "psi_io_some_seconds"
PACED = "app_paced_seconds"
_DISK_PRESSURE = "some task waited for a disk"
_AS_OF_ONE = "pressure on I/O was as of a task that waits for a disk"
_RATE = {"mean", "p50", "p95", "max"}


class Lack(Exception):  # noqa: N818 - what it is, not that something went wrong
    """A rule cannot be judged; the text says for want of what."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One figure of a row of the profile, and what it says in a few words."""

    entity: str
    metric: str
    figure: str
    value: float
    unit: str
    says: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Finding:
    """What a rule found: the sentence with its numbers, and the evidence."""

    sentence: str
    evidence: list[Evidence | None] = field(default_factory=list)


_SAYS = {
    ("stage", CPU): "CPUs that its processes used",
    ("stage", READY): "processes that ran or were ready to run",
    ("stage", DISK_WAITS): "processes that waited for a disk",
    ("stage", ONLY_DISK): "time in which a process waited for a disk and none ran or was ready to",
    ("stage", "io_read_bytes"): "storage read for it",
    ("stage", "io_write_bytes"): "storage written for it",
    ("stage", "page_faults_major"): "its page faults that waited for storage",
    ("stage", "mem_rss_bytes"): "its resident memory",
    ("stage", "mem_swap_bytes"): "its memory that was swapped out",
    ("stage", "cgroup_cpu_throttled_periods"): "periods in which the quota held it back",
    ("stage", "cgroup_cpu_periods"): "periods of the quota in which it had work",
    ("machine", "cpu_count"): "CPUs of the machine",
    ("machine", CPU): "CPUs of the machine that worked",
    ("machine", "cpu_steal_seconds"): "CPUs of the machine that the hypervisor gave to others",
    ("machine", "psi_cpu_some_seconds"): "share of time in which a task of the machine waited for "
    "a CPU",
    ("machine", "psi_memory_some_seconds"): "share of time in which a task of the machine waited "
    "for memory",
    ("machine", PSI_IO): "some task waited for a disk, the mean over the CPUs that were not idle",
    ("app", "app_step_data_wait_seconds"): "share of time in which its steps waited for data",
    ("app", "phase_data_wait_seconds"): "share of time in which it was in its phase data_wait",
}


def evidence(row: Row, figure: str, value: float, says: str = "") -> Evidence:
    """A figure of a row as evidence; ``says`` stands for the few words of the table."""
    return Evidence(
        entity=row.entity,
        metric=row.metric,
        figure=figure,
        value=value,
        unit=f"{row.unit}/s" if row.kind == "counter" and figure in _RATE else row.unit,
        says=says or _SAYS.get((row.entity, row.metric)) or row.metric.replace("_", " "),
    )


class BusyDisk(NamedTuple):
    """Share of the time in which what ``says`` says was so on the machine."""

    share: float
    says: str
    evidence: list[Evidence]


@dataclass(kw_only=True)
class Figures:
    """The rows of a stage, asked for by figure; a row that covers too little is not there."""

    stage: str
    seconds: float
    rows: Mapping[tuple[str, str], Row]
    flags: Sequence[Flag]
    told: Mapping[str, Any]
    """The stage's entry in ``run.json``."""
    asked_vcenter: bool = False
    """Whether the run had a vCenter to ask, whatever came of it."""
    cpus_usable: int | None = None
    """CPUs that the run was allowed to use when it began; None where that was not recorded."""

    WAITS: ClassVar = ("app_step_data_wait_seconds", "phase_data_wait_seconds")

    @classmethod
    def of(
        cls,
        profile: Profile,
        stage: Mapping[str, Any],
        flags: Sequence[Flag],
        *,
        asked_vcenter: bool = False,
        cpus_usable: int | None = None,
    ) -> Figures:
        """Of all VMs that were watched its own alone: others hold back their own stages."""
        own = (profile.hypervisor or {}).get("vm")

        def is_foreign(entity: str) -> bool:
            vm = parsed(entity).vm
            return vm is not None and own is not None and vm != own

        return cls(
            stage=stage["name"],
            seconds=(stage["end_ns"] - stage["start_ns"]) / 1e9,
            rows={
                (row.entity, row.metric): row
                for row in profile.of(stage["name"])
                if not is_foreign(row.entity)
            },
            flags=[flag for flag in flags if not is_foreign(flag["entity"])],
            told=stage,
            asked_vcenter=asked_vcenter or profile.hypervisor is not None,
            cpus_usable=cpus_usable,
        )

    def get(self, entity: str, metric: str, figure: str, says: str = "") -> Evidence | None:
        """One figure, if it was measured over enough of the stage."""
        row = self.rows.get((entity, metric))
        value = getattr(row, figure) if row is not None else None
        if row is None or value is None or row.coverage < limit("coverage"):
            return None
        return evidence(row, figure, value, says)

    def why_not(self, entity: str, metric: str, figure: str) -> str:
        """Why ``get`` has nothing."""
        row = self.rows.get((entity, metric))
        if row is None:
            return f"{metric} of {entity} was not recorded"
        if row.reason is not None:
            return row.reason
        if row.coverage < limit("coverage"):
            return f"{metric} of {entity} covers {100 * row.coverage:.0f} % of the stage"
        return f"{metric} of {entity} has no {figure}"

    def whole(self, entity: str, metric: str) -> Evidence | None:
        """A total, if it stands for the whole stage."""
        row = self.rows.get((entity, metric))
        return None if row is None or row.whole is None else self.get(entity, metric, "total")

    def why_not_whole(self, entity: str, metric: str) -> str:
        """Why ``whole`` has nothing."""
        row = self.rows.get((entity, metric))
        if row is None or self.get(entity, metric, "total") is None:
            return self.why_not(entity, metric, "total")
        share = share_of(row.total_share, row.coverage)
        return f"{metric} of {entity} covers {100 * share:.0f} % of the stage"

    @property
    def unwatched(self) -> str | None:
        """Who did its work where nobody watched: the workers of a scheduler; None without one."""
        scheduler = self.told.get("scheduler")
        return f"the workers of {scheduler}" if scheduler else None

    def _value(self, metric: str) -> float:
        one = self.get("stage", metric, "mean")
        assert one is not None  # judged only where these are there
        return one.value

    @cached_property
    def cores(self) -> float:
        return self._value(CPU)

    @cached_property
    def ready(self) -> float:
        return self._value(READY)

    @cached_property
    def disk_waits(self) -> float:
        return self._value(DISK_WAITS)

    @property
    def only_disk(self) -> list[Evidence]:
        """Of a stage that did nothing but wait for a disk most of its time, what shows it.

        Seen are first threads alone: where others compute meanwhile, the median of its CPUs says
        so.
        """
        share = self.get("stage", ONLY_DISK, "mean")
        cpus = self.get("stage", CPU, "p50", "CPUs that its processes used, in the median")
        most = limit("most_of_the_time")
        if share is None or cpus is None or share.value < 100 * most or cpus.value >= most:
            return []
        return [share, cpus]

    @property
    def wanted(self) -> float:
        """CPUs that it used or was ready to use."""
        return max(self.cores, self.ready)

    @property
    def asleep(self) -> float:
        """Share of its time in which, at the least, none of its processes did or wanted a thing."""
        return max(0.0, 1.0 - self.wanted - self.disk_waits)

    def base(self) -> list[Evidence]:
        found = (self.get("stage", name, "mean") for name in (CPU, READY, DISK_WAITS))
        return [one for one in found if one is not None]

    def loader(self, wait: float) -> str:
        """What went on while the stage waited for its data; its own work is taken for one core."""
        work = self.wanted - (1.0 - wait)
        if max(self.disk_waits, work) >= 0.5 * wait:
            return "storage" if self.disk_waits >= work else "decoding"
        busy = self.busiest_disk()
        if busy is None or busy.share < 0.5 * wait or not self._reads_storage():
            return "starved"
        return "machine"

    def quota(self) -> tuple[float, list[Evidence]] | None:
        """Share of the periods with work in which a quota above it held it back."""
        held = self.get("stage", "cgroup_cpu_throttled_periods", "total")
        periods = self.get("stage", "cgroup_cpu_periods", "total")
        if held is None or periods is None:
            return None
        return (held.value / periods.value if periods.value else 0.0), [held, periods]

    def storage(self) -> tuple[Evidence | None, Evidence | None]:
        """Bytes a second that storage read and wrote for it."""
        return (
            self.get("stage", "io_read_bytes", "mean"),
            self.get("stage", "io_write_bytes", "mean"),
        )

    def _reads_storage(self) -> bool:
        """Whether storage read more for it than a program's own files, and that in the mean."""
        rate = self.get("stage", "io_read_bytes", "mean")
        total = self.get("stage", "io_read_bytes", "total")
        if rate is None or total is None:
            return False
        return rate.value >= limit("storage_bytes_per_s") and total.value >= limit("little_bytes")

    def of_machine_disks(self) -> list[BusyDisk]:
        """Pressure on I/O and the busy time of each device: of the machine, so anybody's.

        Of a device never more than its requests took in all: many kernels count a whole tick
        (1 to 10 ms) as busy for each request that begins in it, however short it is.
        """
        pressure = self.get("machine", PSI_IO, "mean", _DISK_PRESSURE)
        found = [] if pressure is None else [BusyDisk(pressure.value, pressure.says, [pressure])]
        for entity in sorted(entity for entity, name in self.rows if name == "disk_busy_seconds"):
            says = f"{entity} had requests in flight"
            busy = self.get(entity, "disk_busy_seconds", "mean", says)
            if busy is not None:
                took = [
                    one
                    for name in ("disk_read_wait_seconds", "disk_write_wait_seconds")
                    if (one := self.get(entity, name, "mean")) is not None
                ]
                most = sum(one.value for one in took) if len(took) == 2 else busy.value
                found.append(BusyDisk(min(busy.value, most), says, [busy, *took]))
        return found

    def busiest_disk(self) -> BusyDisk | None:
        """Pressure on I/O or a device's busy time, whichever is more."""
        found = self.of_machine_disks()
        told = self.as_of_one(PSI_IO)
        if told is not None:
            share, evidence = told
            found.append(BusyDisk(share, _AS_OF_ONE, evidence))
        return max(found, key=lambda one: one.share, default=None)

    def as_of_one(self, pressure_metric: str) -> tuple[float, list[Evidence]] | None:
        """The share of its time that the stage alone must have waited to make a pressure.

        The kernel's pressure is the mean over the CPUs, weighted by the time that each was not idle
        (kernel/sched/psi.c): a stage that waits for the share x and works for c on the same CPU,
        on a machine with B busy CPUs in all, makes it x * (x + c) / (x + B). So x is the most that
        the stage waited: others' waits are in the pressure too. None below ``pressure_of_one``.
        """
        pressure = self.get("machine", pressure_metric, "mean")
        busy = self.get("machine", CPU, "mean")
        if pressure is None or busy is None or pressure.value < limit("pressure_of_one"):
            return None
        p, more = pressure.value, pressure.value - self.cores
        share = min(1.0, (more + math.sqrt(more * more + 4 * p * busy.value)) / 2)
        return share, [pressure, busy]

    def busiest_interface(self) -> list[Evidence] | None:
        """Received and sent by the interface, not ``lo``, that carried the most in the median."""
        found: list[list[Evidence]] = []
        for entity in sorted({entity for entity, _ in self.rows if entity.startswith("net:")}):
            both = [
                self.get(entity, metric, "p50", f"{what} by {entity}, of the machine")
                for metric, what in (("net_rx_bytes", "received"), ("net_tx_bytes", "sent"))
            ]
            known = [one for one in both if one is not None]
            if entity != "net:lo" and len(known) == len(both):
                found.append(known)
        return max(found, key=lambda ones: sum(one.value for one in ones), default=None)


def percent(share: float) -> str:
    """A share for people."""
    return f"{100 * share:.0f} %"


def need(figures: Figures, *asked: tuple[str, str, str], what: str) -> list[Evidence]:
    """These figures (entity, metric, figure); raises Lack, with ``what``, where one is missing."""
    found = [figures.get(*one) for one in asked]
    missing = [one for one, got in zip(asked, found, strict=True) if got is None]
    if missing:
        raise Lack(f"{what}: {figures.why_not(*missing[0])}")
    return [one for one in found if one is not None]
