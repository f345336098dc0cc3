"""Which series of guest and hypervisor the report puts beside each other: one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Of = Literal["vm", "esxi", "gpu"]


@dataclass(frozen=True, kw_only=True)
class Guest:
    """What the guest measured: a metric by pattern, or ``metric`` ÷ ``per`` of the totals."""

    entity: str
    metric: str
    per: str | None = None
    scale: float = 1.0
    unit: str | None = None


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One line of the table. ``guest`` is None where no guest can see it."""

    group: str
    title: str
    metric: str
    of: Of
    guest: Guest | None = None
    meaning: str = ""


_NET = r"net:(?!lo$).+"
_OF_REQUESTS = (
    "of a request: by the guest the time that they waited ÷ their number, by the hypervisor each "
    "window's mean by the number of its requests"
)


def _latency(way: str) -> Guest:
    return Guest(entity="disk:.+", metric=f"disk_{way}_wait_seconds", per=f"disk_{way}_ops",
                 scale=1000.0, unit="ms")  # fmt: skip


def _vm(group: str, title: str, metric: str, guest: Guest | None = None, why: str = "") -> Quantity:
    return Quantity(group=group, title=title, metric=metric, of="vm", guest=guest, meaning=why)


def _host(group: str, title: str, metric: str, why: str = "") -> Quantity:
    return Quantity(group=group, title=title, metric=metric, of="esxi", meaning=why)


def _gpu(title: str, metric: str, guest_metric: str | None) -> Quantity:
    guest = Guest(entity="gpu:.+", metric=guest_metric) if guest_metric else None
    return Quantity(group="GPU", title=title, metric=metric, of="gpu", guest=guest)


QUANTITIES = (
    _vm("CPU", "CPU used", "vm_cpu_used_cores", Guest(entity="machine", metric="cpu_busy_seconds"),
        "CPU time at nominal frequency that the VM was charged with (turbo makes it larger, a busy "
        "hyper-thread of the same core smaller), beside the CPU time that its guest counted"),
    _vm("CPU", "CPU usage", "vm_cpu_usage_percent",
        Guest(entity="machine", metric="cpu_busy_percent"),
        "of the VM's nominal clock by the hypervisor, of its time by the guest"),
    _vm("CPU", "Ready, all vCPUs", "vm_cpu_ready_cores",
        Guest(entity="machine", metric="cpu_steal_seconds"),
        "vCPUs that had work and waited for a physical core; the guest's word for it is steal"),
    _vm("CPU", "Ready, per vCPU", "vm_cpu_ready_percent", None,
        "share of its time in which a vCPU had work and waited for a physical core"),
    _vm("CPU", "Limited, per vCPU", "vm_cpu_maxlimited_percent", None,
        "the part of ready time in which a CPU limit of the VM or its resource pool was used up"),
    _vm("CPU", "Co-stop, per vCPU", "vm_cpu_costop_percent", None,
        "share of its time in which a vCPU was held until its siblings had caught up"),
    _vm("CPU", "CPU latency", "vm_cpu_latency_percent", None,
        "share of the time in which the VM could not run for contention"),
    _vm("CPU", "Readiness", "vm_cpu_readiness_percent", None,
        "share of the time in which the VM was ready and could not run"),
    _host("CPU", "CPU usage of the host", "host_cpu_usage_percent", "all VMs of the host together"),
    _vm("Memory", "Used · consumed", "vm_mem_consumed_bytes",
        Guest(entity="machine", metric="mem_used_bytes"),
        "used by the guest's own account; host memory that backs the VM"),
    _vm("Memory", "Active", "vm_mem_active_bytes", None, "touched of late, as the host estimates"),
    _vm("Memory", "Ballooned", "vm_mem_ballooned_bytes", None,
        "taken back from the guest by the balloon driver"),
    _vm("Memory", "Swapped out", "vm_mem_swapped_bytes",
        Guest(entity="machine", metric="mem_swap_used_bytes"),
        "to the guest's own swap; by the host, behind the guest's back"),
    _vm("Memory", "Swapped in, rate", "vm_mem_swap_in_bytes_per_s"),
    _vm("Memory", "Swapped out, rate", "vm_mem_swap_out_bytes_per_s"),
    _vm("Memory", "Memory latency", "vm_mem_latency_percent", None,
        "share of the time in which the VM waited for swapped or compressed memory"),
    _host("Memory", "Memory usage of the host", "host_mem_usage_percent"),
    _vm("Disk", "Read", "vm_disk_read_bytes_per_s",
        Guest(entity="disk:.+", metric="disk_read_bytes")),
    _vm("Disk", "Written", "vm_disk_write_bytes_per_s",
        Guest(entity="disk:.+", metric="disk_write_bytes")),
    _vm("Disk", "Reads", "vm_disk_read_requests_per_s",
        Guest(entity="disk:.+", metric="disk_read_ops")),
    _vm("Disk", "Writes", "vm_disk_write_requests_per_s",
        Guest(entity="disk:.+", metric="disk_write_ops")),
    _vm("Disk", "Latency of reads", "vm_disk_read_latency_ms", _latency("read"), _OF_REQUESTS),
    _vm("Disk", "Latency of writes", "vm_disk_write_latency_ms", _latency("write"), _OF_REQUESTS),
    _vm("Disk", "Largest latency of the VM", "vm_disk_latency_max_ms", None,
        "each window's highest, by the requests of all disks"),
    _host("Disk", "Largest latency of the host", "host_disk_latency_max_ms", "over time"),
    _vm("Network", "Received", "vm_net_rx_bytes_per_s", Guest(entity=_NET, metric="net_rx_bytes")),
    _vm("Network", "Sent", "vm_net_tx_bytes_per_s", Guest(entity=_NET, metric="net_tx_bytes")),
    _vm("Network", "Dropped on receipt", "vm_net_dropped_rx_packets_per_s"),
    _vm("Network", "Dropped on sending", "vm_net_dropped_tx_packets_per_s"),
    _vm("Power", "Power of the VM", "vm_power_w", None, "the host's share for this VM"),
    _host("Power", "Power of the host", "host_power_w", "the whole machine with all its VMs"),
    _host("Power", "Power of the host, by energy", "host_energy_w",
          "the host's energy counter over its interval"),
    _gpu("Busy", "host_gpu_util_percent", "gpu_util_percent"),
    _gpu("Memory used", "host_gpu_mem_used_bytes", "gpu_mem_used_bytes"),
    _gpu("Memory used, share", "host_gpu_mem_usage_percent", None),
    _gpu("Temperature", "host_gpu_temperature_c", "gpu_temperature_c"),
)  # fmt: skip
