"""A run while it goes: its stages and main series as they stand at the last flush.

It reads what the recorder has on disk and nothing else, so it works for a run that another process
started, and costs that run nothing. The figures are for looking on: rates between the last two
flushes, no coverage, the hypervisor's windows by the host's clock. What counts is the profile.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from telemetry.derived import BUSY, TREE
from telemetry.runfolder import RunFolder
from telemetry.tail import Fresh, Tail

How = Literal["rate", "level", "total"]
Labels = tuple[tuple[str, str], ...]

HISTORY = 60
"""Values of a series that are kept to be drawn: a minute at the usual refresh."""
LEAST_S = 0.5
"""A rate is taken over this time at least: one clock tick between two samples is no rate."""
STALE_PERIODS, STALE_S = 3.0, 5.0
"""A series without a sample for so long is not shown any more."""
STALE_WINDOW_S = 900.0
"""A window comes with the next question to vCenter, a quarter of an hour late at most."""
GIVE_UP_S = 60.0
"""A run of which nothing is written for so long has lost its recorder and its runner."""


@dataclass(frozen=True, kw_only=True)
class Main:
    """One of the series that are shown and exported.

    ``name``: with its unit, as Prometheus has it. ``entity``: a pattern whose named groups are the
    labels; so is ``metrics``, unless several are summed. ``how``: a counter's ``rate`` or
    ``total``, or the ``level`` of anything else. ``title``: in the terminal, with labels in
    braces; none: not shown there.
    """

    name: str
    unit: str
    help: str
    entity: str
    metrics: tuple[str, ...]
    how: How
    scale: float = 1.0
    title: str = ""


def _main(  # noqa: PLR0917 - a line of the table
    how: How,
    name: str,
    entity: str,
    metrics: str | tuple[str, ...],
    help_: str,
    title: str = "",
    scale: float = 1.0,
) -> Main:
    return Main(
        name=name,
        unit=next((unit for unit in _UNITS if name.endswith(f"_{unit}")), ""),
        help=help_,
        entity=entity,
        metrics=(metrics,) if isinstance(metrics, str) else metrics,
        how=how,
        scale=scale,
        title=title,
    )


_UNITS = (
    "bytes_per_second", "cores", "bytes", "ratio", "watts", "joules", "celsius", "seconds",
)  # fmt: skip
_M, _STAGE, _APP = "machine", r"stage:(?P<stage>.+)", r"app:(?P<stage>.+)"
_DISK, _GPU = r"disk:(?P<device>.+)", r"gpu:(?P<gpu>[^/]+)"
_VM, _ESXI = r"vm:(?P<vm>.+)@(?P<host>[^@/]+)", r"esxi:(?P<host>[^/]+)"
_PERCENT = 0.01
# fmt: off
MAIN = (
    _main("rate", "cpu_busy_cores", _M, BUSY, "CPUs of the machine at work", "CPU"),
    _main("rate", "cpu_steal_cores", _M, "cpu_steal_seconds",
          "CPUs that the hypervisor took while the guest had work", "CPU stolen"),
    _main("level", "cpus", _M, "cpu_count", "CPUs that the machine has online"),
    _main("level", "memory_used_bytes", _M, "mem_used_bytes", "Memory in use", "memory"),
    _main("level", "memory_total_bytes", _M, "mem_total_bytes", "Memory of the machine"),
    _main("level", "memory_page_cache_bytes", _M, "mem_page_cache_bytes",
          "Page cache of the machine", "page cache"),
    _main("rate", "disk_read_bytes_per_second", _DISK, "disk_read_bytes",
          "Read from the device", "disk read"),
    _main("rate", "disk_written_bytes_per_second", _DISK, "disk_write_bytes",
          "Written to the device", "disk written"),
    _main("rate", "network_received_bytes_per_second", _M, "net_rx_bytes",
          "Received by the machine", "network in"),
    _main("rate", "network_sent_bytes_per_second", _M, "net_tx_bytes",
          "Sent by the machine", "network out"),
    _main("rate", "pressure_waiting_ratio", _M, r"psi_(?P<resource>\w+)_some_seconds",
          "Share of the time in which some task waited for the resource", "waiting for {resource}"),
    _main("level", "filesystem_free_bytes", "fs:runs", "fs_free_bytes",
          "Free on the file system of the runs"),
    _main("rate", "stage_cpu_busy_cores", _STAGE, TREE, "CPUs that the stage's processes use"),
    _main("level", "stage_memory_resident_bytes", _STAGE, "mem_rss_bytes",
          "Resident memory of the stage's processes"),
    _main("rate", "stage_storage_read_bytes_per_second", _STAGE, "io_read_bytes",
          "What storage delivers to the stage"),
    _main("rate", "stage_storage_written_bytes_per_second", _STAGE, "io_write_bytes",
          "What the stage makes dirty for storage"),
    _main("total", "stage_cpu_seconds", _STAGE, TREE, "CPU time of the stage's processes"),
    _main("total", "stage_storage_read_bytes", _STAGE, "io_read_bytes",
          "What storage delivered to the stage"),
    _main("total", "stage_storage_written_bytes", _STAGE, "io_write_bytes",
          "What the stage made dirty for storage"),
    _main("total", "stage_phase_seconds", _APP, r"phase_(?P<phase>\w+)_seconds",
          "Time that the stage spent in a phase"),
    _main("total", "stage_counted", _APP, r"app_(?P<what>\w+)", "What the stage itself counts"),
    _main("level", "gpu_utilization_ratio", _GPU, "gpu_util_percent",
          "Share of the time in which any kernel was resident", "GPU {gpu} busy", _PERCENT),
    _main("level", "gpu_memory_used_bytes", r"gpu:(?P<gpu>.+)", "gpu_mem_used_bytes",
          "Memory of the GPU or MIG instance in use", "GPU {gpu} memory"),
    _main("level", "gpu_memory_total_bytes", r"gpu:(?P<gpu>.+)", "gpu_mem_total_bytes",
          "Memory of the GPU or MIG instance"),
    _main("level", "gpu_power_watts", _GPU, "power_instant_w", "Power of the card",
          "GPU {gpu} power"),
    _main("level", "gpu_temperature_celsius", _GPU, "gpu_temperature_c",
          "Temperature of the GPU core", "GPU {gpu} temperature"),
    _main("total", "gpu_energy_joules", _GPU, "energy_j", "Energy of the card, as it counts it"),
    _main("level", "vm_cpu_used_cores", _VM, "vm_cpu_used_cores",
          "CPUs at nominal frequency that the VM was charged with, last window", "{vm} CPU"),
    _main("level", "vm_cpu_ready_ratio", _VM, "vm_cpu_ready_percent",
          "Time per virtual CPU ready without a physical one, last window", "{vm} ready", _PERCENT),
    _main("level", "vm_cpu_costop_ratio", _VM, "vm_cpu_costop_percent",
          "Time per virtual CPU held for the others, last window", "{vm} co-stop", _PERCENT),
    _main("level", "vm_memory_ballooned_bytes", _VM, "vm_mem_ballooned_bytes",
          "Memory that the hypervisor took by ballooning, last window", "{vm} ballooned"),
    _main("level", "vm_disk_latency_seconds", _VM, "vm_disk_latency_max_ms",
          "Highest latency of the VM's disks, last window", "{vm} disk latency", 1e-3),
    _main("level", "host_cpu_usage_ratio", _ESXI, "host_cpu_usage_percent",
          "CPU of the ESXi host in use, last window", "{host} CPU", _PERCENT),
    _main("level", "host_power_watts", _ESXI, "host_power_w",
          "Power of the ESXi host, last window", "{host} power"),
    _main("level", "collector_up", "collector:(?P<collector>.+)", "collector_up",
          "1 while the collector's samples succeed"),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Value:
    """One of the main series now. ``history``: its last values, one per refresh."""

    main: Main
    labels: Mapping[str, str]
    value: float
    ts_ns: int
    history: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run at one moment. ``now_ns``: of the newest sample, on the run's clock."""

    record: Mapping[str, Any]
    values: tuple[Value, ...]
    now_ns: int
    absent: Mapping[tuple[str, str], str]

    @property
    def ended(self) -> bool:
        return bool(self.record["status"] != "running")

    @property
    def stage(self) -> str:
        """The stage that goes on; "" between stages."""
        going = (one["name"] for one in self.record["stages"] if one["status"] == "running")
        return next(going, "")

    @property
    def seconds(self) -> float:
        """Time of the run so far."""
        end_ns = self.record.get("ended_ns") or self.now_ns
        return max(0.0, float(end_ns - self.record["started_ns"]) / 1e9)

    def of(self, name: str, **labels: str) -> list[Value]:
        """The values of a main series that have these labels."""
        return [
            one
            for one in self.values
            if one.main.name == name and labels.items() <= dict(one.labels).items()
        ]

    def total(self, name: str, **labels: str) -> float | None:
        """Their sum, None where there are none."""
        found = self.of(name, **labels)
        return sum(one.value for one in found) if found else None

    def stage_seconds(self, stage: Mapping[str, Any]) -> float | None:
        """Time of a stage until its end, or so far."""
        if stage.get("start_ns") is None:
            return None
        end_ns = stage.get("end_ns") or self.now_ns
        return max(0.0, float(end_ns - stage["start_ns"]) / 1e9)


@dataclass(kw_only=True)
class _Last:
    """The newest sample of a series, the one that its rate counts from, and the rate."""

    ts_ns: int
    value: float
    base_ns: int
    base: float
    rate: float | None = None

    def take(self, ts_ns: int, value: float) -> None:
        """Take a newer sample in; a counter that went back begins anew."""
        if ts_ns < self.ts_ns:
            return
        self.ts_ns, self.value = ts_ns, value
        if value < self.base:
            self.rate, self.base_ns, self.base = None, ts_ns, value
        elif ts_ns - self.base_ns >= LEAST_S * 1e9:
            self.rate = (value - self.base) / ((ts_ns - self.base_ns) / 1e9)
            self.base_ns, self.base = ts_ns, value


class Live:
    """Follows one run. ``update()`` reads what is new; not safe for several threads."""

    def __init__(self, folder: RunFolder, main: Sequence[Main] = MAIN) -> None:
        self.folder = folder
        self._main = main
        self._tail = Tail(folder.samples)
        self._last: dict[tuple[str, str], _Last] = {}
        self._unwanted: set[tuple[str, str]] = set()
        self._parts: dict[str, dict[Labels, list[tuple[str, str]]]] = {one.name: {} for one in main}
        self._history: dict[tuple[str, Labels], deque[float]] = {}
        self._newest_ns = 0
        self._record: dict[str, Any] = {}
        self._record_at: tuple[int, int, int] | None = None

    def update(self) -> bool:
        """Read on; whether anything is new. Raises what ``RunFolder.read`` raises."""
        new = self._read_record()
        for fresh in self._tail.read():
            new = True
            self._take(fresh)
        return new

    def snapshot(self) -> Snapshot:
        """How the run stands at the last update."""
        now_ns = max(self._newest_ns, self._record["started_ns"])
        return Snapshot(
            record=self._record,
            values=tuple(self._values(now_ns)),
            now_ns=now_ns,
            absent=self._tail.absent,
        )

    def _read_record(self) -> bool:
        stat = self.folder.run_json.stat()
        at = stat.st_ino, stat.st_mtime_ns, stat.st_size
        if at == self._record_at:
            return False
        self._record, self._record_at = self.folder.read(), at
        return True

    def _take(self, fresh: Fresh) -> None:
        """The newest row of each series that is wanted."""
        many = max(1, len(fresh.metrics))
        keys = fresh.entity * many + fresh.metric
        # The last row of each key: rows of one series are in the order of time.
        found, places = np.unique(keys[::-1], return_index=True)
        rows = len(keys) - 1 - places
        for key, row in zip(found.tolist(), rows.tolist(), strict=True):
            name = fresh.entities[key // many], fresh.metrics[key % many]
            if name in self._unwanted:
                continue
            ts_ns, value = int(fresh.ts_ns[row]), float(fresh.value[row])
            if name not in self._last:
                if not self._place(name):
                    self._unwanted.add(name)
                    continue
                first = int(np.argmax(keys == key))
                base_ns, base = int(fresh.ts_ns[first]), float(fresh.value[first])
                self._last[name] = _Last(ts_ns=base_ns, value=base, base_ns=base_ns, base=base)
            self._last[name].take(ts_ns, value)
            if self._kind(name) != "window":
                self._newest_ns = max(self._newest_ns, ts_ns)

    def _place(self, name: tuple[str, str]) -> bool:
        """Find the main series that a series is of; whether there is any."""
        found = False
        for main in self._main:
            labels = _labels(main, *name)
            if labels is not None:
                self._parts[main.name].setdefault(labels, []).append(name)
                found = True
        return found

    def _kind(self, name: tuple[str, str]) -> str:
        metric = self._tail.metrics.get(name[1])
        return metric.kind if metric is not None else "gauge"

    def _values(self, now_ns: int) -> Iterator[Value]:
        for main in self._main:
            for labels, names in sorted(self._parts[main.name].items()):
                if len(names) < len(main.metrics):
                    continue  # of a sum a part is not there
                parts = [self._last[name] for name in names]
                values = [one.rate if main.how == "rate" else one.value for one in parts]
                known = [one for one in values if one is not None and np.isfinite(one)]
                ts_ns = min(one.ts_ns for one in parts)
                if len(known) < len(values) or self._stale(main, names[0], now_ns - ts_ns):
                    continue
                value = sum(known) * main.scale
                history = self._history.setdefault((main.name, labels), deque(maxlen=HISTORY))
                if main.title:
                    history.append(value)
                yield Value(
                    main=main,
                    labels=dict(labels),
                    value=value,
                    ts_ns=ts_ns,
                    history=tuple(history),
                )

    def _stale(self, main: Main, name: tuple[str, str], age_ns: int) -> bool:
        if main.how == "total":
            return False
        limit_s = max(STALE_S, STALE_PERIODS * self._tail.period_s(*name))
        if self._kind(name) == "window":
            limit_s = STALE_WINDOW_S
        return age_ns / 1e9 > limit_s


def _labels(main: Main, entity: str, metric: str) -> Labels | None:
    """The labels of a series within a main series; None if it is not of it."""
    of_entity = re.fullmatch(main.entity, entity)
    if of_entity is None:
        return None
    for pattern in main.metrics:
        of_metric = re.fullmatch(pattern, metric)
        if of_metric:
            return tuple(sorted({**of_entity.groupdict(), **of_metric.groupdict()}.items()))
    return None


def follow(
    live: Live,
    *,
    every_s: float = 1.0,
    give_up_s: float = GIVE_UP_S,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[Snapshot]:
    """The run at every refresh at which something is new, until it has ended.

    Raises TimeoutError if nothing at all is written for ``give_up_s``: it was killed.
    """
    news_s = due_s = monotonic()
    while True:
        if live.update():
            news_s = monotonic()
            snapshot = live.snapshot()
            yield snapshot
            if snapshot.ended:
                return
        elif monotonic() - news_s > give_up_s:
            raise TimeoutError(
                f"nothing was written of this run for {give_up_s:g} s: whoever ran it is gone "
                f"(the next stagescope run in its folder ends its record)"
            )
        due_s = max(due_s + every_s, monotonic())
        sleep(max(0.0, due_s - monotonic()))
