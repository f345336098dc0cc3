"""Made-up runs on a vSphere VM: windows, estimates, moves, gaps and flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from telemetry.attribution import correlate
from telemetry.profile import Profile
from telemetry.runfolder import Span
from telemetry.samples import Metric, Series
from telemetry.segments import SampleSet
from tests.telemetry.report_runs import GIB, MIB, START_NS, MadeRun

VM, FROM, TO = "ml-trainer-01", "esx1.lab.example", "esx2.lab.example"
SERVER = "vcenter.lab.example"
WINDOW_NS = 20_000_000_000
LEVEL_4 = "this vCenter collects it at level 4 and is set to level 1"
UNREACHED = f"{SERVER}:443 did not answer in this run"
RULE = "a rule of thumb among administrators"
TELLS = {
    "vm_cpu_ready_percent": "it was ready to run and no physical CPU was free",
    "vm_disk_latency_max_ms": "its disks took long to answer",
}
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Table = tuple[tuple[str, str, str | None, float, float], ...]

# metric, unit, unit of the integral, scale of the load (0 to 1), level without load
OF_VM: Table = (
    ("vm_cpu_usage_percent", "%", None, 88.0, 2.0),
    ("vm_cpu_used_cores", "cores", "s", 1.7, 0.05),
    ("vm_cpu_ready_cores", "cores", "s", 0.12, 0.002),
    ("vm_cpu_ready_percent", "%", None, 6.0, 0.1),
    ("vm_cpu_costop_percent", "%", None, 0.4, 0.0),
    ("vm_mem_consumed_bytes", "B", None, 4 * GIB, 9 * GIB),
    ("vm_mem_active_bytes", "B", None, 3 * GIB, 1 * GIB),
    ("vm_mem_ballooned_bytes", "B", None, 0.0, 0.0),
    ("vm_mem_swapped_bytes", "B", None, 0.0, 0.0),
    ("vm_disk_latency_max_ms", "ms", None, 18.0, 1.0),
    ("vm_net_rx_bytes_per_s", "B/s", "B", 4e5, 2e3),
    ("vm_net_tx_bytes_per_s", "B/s", "B", 3e5, 1e3),
    ("vm_net_dropped_rx_packets_per_s", "packets/s", "packets", 0.0, 0.0),
)
OF_DISK: Table = (
    ("vm_disk_read_bytes_per_s", "B/s", "B", 90 * MIB, 1e4),
    ("vm_disk_write_bytes_per_s", "B/s", "B", 40 * MIB, 5e4),
    ("vm_disk_read_latency_ms", "ms", None, 9.0, 0.6),
    ("vm_disk_write_latency_ms", "ms", None, 14.0, 0.9),
)
OF_HOST: Table = (
    ("host_cpu_usage_percent", "%", None, 20.0, 55.0),
    ("host_mem_usage_percent", "%", None, 4.0, 71.0),
    ("host_power_w", "W", "J", 120.0, 310.0),
)
OF_GPU: Table = (
    ("host_gpu_util_percent", "%", None, 85.0, 1.0),
    ("host_gpu_mem_used_bytes", "B", None, 30 * GIB, 1 * GIB),
)
SHARPENED = (
    "vm_cpu_used_cores", "vm_cpu_usage_percent", "vm_disk_read_bytes_per_s",
    "vm_disk_write_bytes_per_s", "vm_net_rx_bytes_per_s", "vm_net_tx_bytes_per_s", "host_power_w",
)  # fmt: skip
ABSENT = (
    ("vm", "vm_cpu_latency_percent", "%"), ("vm", "vm_cpu_readiness_percent", "%"),
    ("vm", "vm_mem_latency_percent", "%"), ("vm", "vm_power_w", "W"),
)  # fmt: skip


@dataclass(kw_only=True)
class MadeVsphere(MadeRun):
    """A run on a VM. ``away``: s into the run without windows; ``move_s``: when it moved."""

    seconds: float = 600.0
    vm: str = VM
    hosts: tuple[str, str] = (FROM, TO)
    move_s: float | None = None
    away: tuple[float, float] | None = None
    tls: str = "verified by ca_file"
    refused: str | None = None
    reached: bool = True
    flagged: bool = True
    others: tuple[str, ...] = ()

    def build(self) -> tuple[dict[str, Any], dict[str, Any], SampleSet]:
        self.vcenter = self.reached and self.refused is None
        return super().build()

    def _guest(self) -> None:
        """Every mode of /proc/stat and the disk's own latency, beside what a made run has."""
        super()._guest()
        none = np.zeros(len(self._times))
        for mode in ("nice", "irq", "softirq"):
            self._count("machine", f"cpu_{mode}_seconds", none, "s")
        for way, ops in (("read", 300.0), ("write", 150.0)):
            busy = self._load()
            self._count("disk:sda", f"disk_{way}_ops", ops * busy, "1")
            self._count("disk:sda", f"disk_{way}_wait_seconds", 0.004 * ops * busy**2, "s")

    def _load(self) -> Floats:
        level = self._level((0.5, 0.8, 0.9, 1.0, 0.6, 0.7), 0.02, idle=0.02)
        return np.asarray(level.clip(0, 1.2), dtype=np.float64)

    def _vcenter(self) -> None:
        moved = self.seconds if self.move_s is None else self.move_s
        for host, low, high in ((self.hosts[0], 0.0, moved), (self.hosts[1], moved, self.seconds)):
            ends = self._ends(low, high)
            if not len(ends):
                continue
            for vm in (self.vm, *self.others):
                self._windows(f"vm:{vm}@{host}", OF_VM, ends, sharpened=vm == self.vm)
                self._windows(f"vm:{vm}@{host}/scsi0:0", OF_DISK, ends, sharpened=vm == self.vm)
            self._windows(f"esxi:{host}", OF_HOST, ends, sharpened=True)
            if self.gpus:
                self._windows(f"esxi:{host}/gpu:0", OF_GPU, ends, sharpened=False)

    def _ends(self, low: float, high: float) -> Ints:
        """Ends of windows from ``low`` to ``high`` s, on a grid of 20 s that began 7 s late."""
        whole = np.arange(START_NS + 27 * 10**9, START_NS + int(self.seconds * 1e9), WINDOW_NS)
        at = (whole - START_NS) / 1e9
        keep = (at - 20 >= low) & (at <= high)
        if self.away is not None:
            keep &= (at <= self.away[0]) | (at - 20 >= self.away[1])
        return np.asarray(whole[keep], dtype=np.int64)

    def _windows(self, entity: str, rows: Table, ends: Ints, *, sharpened: bool) -> None:
        load, second = self._load(), 10**8
        at = self._times * 1e9 + START_NS
        mean = np.array([load[(at > end - WINDOW_NS) & (at <= end)].mean() for end in ends])
        fine = np.concatenate(
            [np.arange(end - WINDOW_NS + second, end + 1, second) for end in ends]
        )
        for name, unit, integral, scale, base in rows:
            self._put_windows(entity, name, unit, integral, ends, base + scale * mean)
            if sharpened and name in SHARPENED:
                shape = base + scale * np.interp(fine.astype(float), at, load)
                self._put_windows(entity, f"{name}_estimate", unit, integral, fine, shape)

    def _put_windows(
        self, entity: str, name: str, unit: str, integral: str | None, ends: Ints, values: Floats
    ) -> None:
        estimate = name.endswith("_estimate")
        self._metrics[name] = Metric(
            name=name,
            unit=unit,
            kind="window",
            meaning="estimate: the windows sharpened" if estimate else f"meaning of {name}",
            source="vCenter of this test",
            integral_unit=integral,
        )
        long = 10**8 if estimate else WINDOW_NS
        self._columns[entity, name] = (ends, ends - long, values)

    def _absent(self) -> list[Series]:
        names, why = list(ABSENT), LEVEL_4
        if self.refused or not self.reached:
            why = self.refused or UNREACHED
            names += [("vm", name, unit) for name, unit, *_ in (*OF_VM, *OF_DISK)]
            names += [("esxi", name, unit) for name, unit, *_ in OF_HOST]
        made = [
            Metric(name=name, unit=unit, kind="window", meaning="", source="vCenter of this test")
            for _, name, unit in names
        ]
        return super()._absent() + [
            Series(entity=name[0], metric=metric, reason=why)
            for name, metric in zip(names, made, strict=True)
        ]

    def _run(self) -> dict[str, Any]:
        run = super()._run()
        run["recipe"]["vcenter"] = {"host": SERVER, "port": 443}
        run["losses"] = [] if self.reached else [f"vcenter: {UNREACHED}"]
        return run

    def _profile(self, run: dict[str, Any], samples: SampleSet) -> dict[str, Any]:
        spans = [
            Span(stage=one["name"], start_ns=one["start_ns"], end_ns=one["end_ns"])
            for one in run["stages"]
        ]
        rows = correlate(samples, spans).rows
        return Profile(rows=rows, hypervisor=self._told()).to_json(run)

    def _told(self) -> dict[str, Any]:
        """What profile.json says of the hypervisor as a whole."""
        told: dict[str, Any] = {
            "server": None, "version": None, "tls": None, "vm": None, "vms": [], "moves": [],
            "clock": dict.fromkeys(("host", "offset_s", "bound_s", "witness", "correlation")),
            "clocks": [], "refused": None, "gaps": [], "losses": [], "contention": [],
        }  # fmt: skip
        if not self.reached:
            return told
        clocks = [self._clock(host) for host in self._hosts()]
        told |= {
            "server": SERVER, "version": "8.0.3", "tls": self.tls, "vm": self.vm,
            "vms": [self._place(name) for name in (self.vm, *self.others)],
            "clocks": clocks, "clock": {"limit_s": 2.0, **clocks[0]}, "refused": self.refused,
        }  # fmt: skip
        if self.move_s is not None:
            told["moves"] = [
                {"vm": self.vm, "at_ns": START_NS + int(self.move_s * 1e9),
                 "from_host": self.hosts[0], "to_host": self.hosts[1]}
            ]  # fmt: skip
        if self.away is not None:
            low, high = (START_NS + int(at * 1e9) for at in self.away)
            entity = f"vm:{self.vm}@{self.hosts[0]}"
            told["gaps"] = [{"entity": entity, "from_ns": low, "to_ns": high}]
        if self.flagged and self.refused is None:
            told["contention"] = [
                self._flag("features", "vm_cpu_ready_percent", 5.3, 5.0, "%"),
                self._flag("training", "vm_cpu_ready_percent", 6.1, 5.0, "%"),
                self._flag("training", "vm_disk_latency_max_ms", 22.0, 20.0, "ms"),
            ]
        return told

    def _hosts(self) -> tuple[str, ...]:
        return self.hosts[:1] if self.move_s is None else self.hosts

    def _clock(self, host: str) -> dict[str, Any]:
        load = {"offset_s": 3.1, "reason": None, "correlation": 0.982, "lead": 40.0,
                "width_s": 0.8, "windows": 28}  # fmt: skip
        return {
            "host": host, "offset_s": 3.207, "offset_end_s": 3.209, "bound_s": 0.048,
            "witness": f"esxi:{host}", "correlation": load, "refused": self.refused,
        }  # fmt: skip

    def _place(self, name: str) -> dict[str, Any]:
        return {
            "vm": name, "moid": "vm-42", "uuid": "4211c2a0-0000-1111-2222-333344445555",
            "instance_uuid": "5011c2a0-0000-1111-2222-333344445555", "esxi_host": self.hosts[0],
            "host_moid": "host-9", "cluster": "GPU-Cluster", "datacenter": "Lab",
            "resource_pool": "Resources", "datastores": ["vsanDatastore"], "vcpus": 2,
            "memory_bytes": 24 * 2**30, "host_cpu_mhz": 2600, "host_cores": 48,
            "host_power_policy": "High performance",
            "gpus": ["vGPU grid_h100-40c"] if self.gpus else [], "esxi_version": "8.0.3",
            "vcenter_version": "8.0.3",
        }  # fmt: skip

    def _flag(
        self, stage: str, metric: str, value: float, limit: float, unit: str
    ) -> dict[str, Any]:
        host = self.hosts[1] if self.move_s is not None and stage == "training" else self.hosts[0]
        return {
            "stage": stage, "entity": f"vm:{self.vm}@{host}", "metric": metric,
            "figure": "max" if unit == "ms" else "mean", "value": value, "threshold": limit,
            "unit": unit, "source": RULE if unit == "%" else "this project's choice",
            "sentence": f"{self.vm}: {value} {unit} during {stage}: {TELLS[metric]}",
        }  # fmt: skip
