"""What is asked of a vCenter, in one table: metric, counter, unit, scaling and what it tells.

A summation is an amount per sample: it becomes a rate by the sample's own interval, so that it can
be shared out over time and is never averaged as though it were a level. Ready and co-stop are
summed over all virtual CPUs; they are given in cores and, per virtual CPU, in percent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from telemetry.samples import Metric

INTERVAL_S = 20
"""Of vCenter's realtime samples."""
How = Literal["rate", "summation", "latest"]
Of = Literal["vm", "esxi", "gpu"]
Instances = Literal["", "*"]
OBJECT_KINDS: dict[Of, str] = {"vm": "VirtualMachine", "esxi": "HostSystem", "gpu": "HostSystem"}
SCALES = {
    "percent": 0.01,  # hundredths
    "kiloBytes": 1024.0,
    "kiloBytesPerSecond": 1024.0,
    "millisecond": 1.0,
    "number": 1.0,
    "watt": 1.0,
    "joule": 1.0,
    "celsius": 1.0,
}
"""From the server's units to B, B/s, %, ms, W, J and °C."""
MS_PER_S = 1000.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric and the counter behind it.

    ``unit``: the server's key of the counter's unit; with another one it is not used. ``level``:
    from which a server keeps a history of it; realtime samples do not depend on it. ``scale``
    takes the counter's value (of a summation: per second) to the metric's unit. ``instances``: ""
    for the object as a whole, "*" for each of its parts, which are entities of their own.
    """

    metric: Metric
    counter: str
    unit: str
    level: int
    scale: float
    how: How
    of: Of
    instances: Instances
    per_vcpu: bool

    def value(self, raw: int, interval_s: float, vcpus: int) -> float:
        """The metric's value of one sample."""
        value = raw * self.scale
        if self.how == "summation":
            value /= interval_s
        return value / vcpus if self.per_vcpu else value


def _row(  # noqa: PLR0917 - a line of the table
    name: str,
    unit: str,
    integral: str | None,
    of: Of,
    counter: str,
    counter_unit: str,
    level: int,
    meaning: str,
    *,
    instances: Instances = "",
) -> Row:
    """``unit``: "%/vCPU" divides by the number of virtual CPUs."""
    rollup = counter.rpartition(".")[2]
    how: How = "summation" if rollup == "summation" else "rate"
    scale = SCALES[counter_unit]
    if unit == "cores":
        scale = 1 / MS_PER_S
    elif unit == "%/vCPU":
        scale = 100 / MS_PER_S
    return Row(
        metric=Metric(
            name=name,
            unit=unit.removesuffix("/vCPU"),
            kind="window",
            meaning=meaning,
            source=f"vCenter {counter} (level {level}), realtime samples of {INTERVAL_S} s",
            integral_unit=integral,
        ),
        counter=counter,
        unit=counter_unit,
        level=level,
        scale=scale,
        how="latest" if rollup == "latest" else how,
        of=of,
        instances=instances,
        per_vcpu=unit == "%/vCPU",
    )


_MS, _KB, _KBPS = "millisecond", "kiloBytes", "kiloBytesPerSecond"
_CPU_USED = (
    "CPU time that the VM was charged with, at nominal frequency: turbo makes it larger than the "
    "time on a CPU, a lower clock or a busy hyper-thread of the same core smaller"
)
_CPU_READY = "ready to run while no physical CPU was free"
_CPU_LIMITED = (
    "ready to run while the CPU limit of the VM or of its resource pool was used up (ready time "
    "includes it)"
)
_BY_REQUESTS = "; 0 in a window without requests: in a stage each window counts by its requests"
_CPU_COSTOP = "held until its other virtual CPUs could run too"
# fmt: off
ROWS = (
    _row("vm_cpu_usage_percent", "%", None, "vm", "cpu.usage.average", "percent", 1,
         "CPU used, of all virtual CPUs"),
    _row("vm_cpu_used_cores", "cores", "s", "vm", "cpu.used.summation", _MS, 3,
         _CPU_USED),
    _row("vm_cpu_ready_cores", "cores", "s", "vm", "cpu.ready.summation", _MS, 1,
         f"{_CPU_READY}, all virtual CPUs together"),
    _row("vm_cpu_ready_percent", "%/vCPU", None, "vm", "cpu.ready.summation", _MS, 1,
         f"{_CPU_READY}, per virtual CPU"),
    _row("vm_cpu_maxlimited_cores", "cores", "s", "vm", "cpu.maxlimited.summation", _MS, 2,
         f"{_CPU_LIMITED}, all virtual CPUs together"),
    _row("vm_cpu_maxlimited_percent", "%/vCPU", None, "vm", "cpu.maxlimited.summation", _MS, 2,
         f"{_CPU_LIMITED}, per virtual CPU"),
    _row("vm_cpu_costop_cores", "cores", "s", "vm", "cpu.costop.summation", _MS, 2,
         f"{_CPU_COSTOP}, all virtual CPUs together"),
    _row("vm_cpu_costop_percent", "%/vCPU", None, "vm", "cpu.costop.summation", _MS, 2,
         f"{_CPU_COSTOP}, per virtual CPU"),
    _row("vm_cpu_latency_percent", "%", None, "vm", "cpu.latency.average", "percent", 2,
         "time in which the VM could not run for contention of the physical CPUs"),
    _row("vm_cpu_readiness_percent", "%", None, "vm", "cpu.readiness.average", "percent", 4,
         "time ready to run without a physical CPU"),
    _row("vm_mem_consumed_bytes", "B", None, "vm", "mem.consumed.average", _KB, 1,
         "memory of the host that the VM holds"),
    _row("vm_mem_active_bytes", "B", None, "vm", "mem.active.average", _KB, 2,
         "memory touched of late, as the host estimates it"),
    _row("vm_mem_ballooned_bytes", "B", None, "vm", "mem.vmmemctl.average", _KB, 1,
         "memory that the host took back by ballooning"),
    _row("vm_mem_swapped_bytes", "B", None, "vm", "mem.swapped.average", _KB, 2,
         "memory of the VM that the host has swapped out"),
    _row("vm_mem_swap_in_bytes_per_s", "B/s", "B", "vm", "mem.swapinRate.average", _KBPS, 1,
         "swapped in by the host"),
    _row("vm_mem_swap_out_bytes_per_s", "B/s", "B", "vm", "mem.swapoutRate.average", _KBPS, 1,
         "swapped out by the host"),
    _row("vm_mem_latency_percent", "%", None, "vm", "mem.latency.average", "percent", 2,
         "time in which the VM waited for memory that was swapped or compressed"),
    _row("vm_disk_read_bytes_per_s", "B/s", "B", "vm", "virtualDisk.read.average", _KBPS, 2,
         "read from a virtual disk", instances="*"),
    _row("vm_disk_write_bytes_per_s", "B/s", "B", "vm", "virtualDisk.write.average", _KBPS, 2,
         "written to a virtual disk", instances="*"),
    _row("vm_disk_read_requests_per_s", "1/s", "1", "vm", "virtualDisk.numberReadAveraged.average",
         "number", 1, "reads of a virtual disk", instances="*"),
    _row("vm_disk_write_requests_per_s", "1/s", "1", "vm",
         "virtualDisk.numberWriteAveraged.average", "number", 1, "writes of a virtual disk",
         instances="*"),
    _row("vm_disk_read_latency_ms", "ms", None, "vm", "virtualDisk.totalReadLatency.average", _MS,
         1, f"mean time of a read of a virtual disk{_BY_REQUESTS}", instances="*"),
    _row("vm_disk_write_latency_ms", "ms", None, "vm", "virtualDisk.totalWriteLatency.average",
         _MS, 1, f"mean time of a write of a virtual disk{_BY_REQUESTS}", instances="*"),
    _row("vm_disk_latency_max_ms", "ms", None, "vm", "disk.maxTotalLatency.latest", _MS, 1,
         f"highest latency of the VM's disks{_BY_REQUESTS}"),
    _row("vm_net_rx_bytes_per_s", "B/s", "B", "vm", "net.bytesRx.average", _KBPS, 2, "received"),
    _row("vm_net_tx_bytes_per_s", "B/s", "B", "vm", "net.bytesTx.average", _KBPS, 2, "sent"),
    _row("vm_net_dropped_rx_packets_per_s", "packets/s", "packets", "vm",
         "net.droppedRx.summation", "number", 2, "received packets that were dropped"),
    _row("vm_net_dropped_tx_packets_per_s", "packets/s", "packets", "vm",
         "net.droppedTx.summation", "number", 2, "sent packets that were dropped"),
    _row("vm_power_w", "W", "J", "vm", "power.power.average", "watt", 2,
         "power of the host that is put down to the VM"),
    _row("host_cpu_usage_percent", "%", None, "esxi", "cpu.usage.average", "percent", 1,
         "CPU used of the whole host"),
    _row("host_mem_usage_percent", "%", None, "esxi", "mem.usage.average", "percent", 1,
         "memory used of the whole host"),
    _row("host_disk_latency_max_ms", "ms", None, "esxi", "disk.maxTotalLatency.latest", _MS, 1,
         "highest latency of the host's disks"),
    _row("host_power_w", "W", "J", "esxi", "power.power.average", "watt", 2,
         "power of the whole host"),
    _row("host_energy_w", "W", "J", "esxi", "power.energy.summation", "joule", 3,
         "power of the whole host, by its energy counter"),
    _row("host_gpu_util_percent", "%", None, "gpu", "gpu.utilization.average", "percent", 4,
         "utilization of a GPU that the host's own driver runs", instances="*"),
    _row("host_gpu_mem_used_bytes", "B", None, "gpu", "gpu.mem.used.average", _KB, 4,
         "memory of the GPU in use", instances="*"),
    _row("host_gpu_mem_usage_percent", "%", None, "gpu", "gpu.mem.usage.average", "percent", 4,
         "memory of the GPU in use", instances="*"),
    _row("host_gpu_temperature_c", "°C", None, "gpu", "gpu.temperature.average", "celsius", 4,
         "temperature of the GPU", instances="*"),
)
# fmt: on


def _clock(name: str, meaning: str) -> Metric:
    source = "CurrentTime, HostDateTimeSystem.QueryDateTime, each within its round trip"
    return Metric(name=name, unit="s", kind="gauge", meaning=meaning, source=source)


CLOCK_OFFSET = _clock("clock_offset_seconds", "that clock minus this machine's")
CLOCK_BOUND = _clock("clock_bound_seconds", "the offset is known to within this")
CLOCK = (CLOCK_OFFSET, CLOCK_BOUND)
METRICS = (*(row.metric for row in ROWS), *CLOCK)
COUNTER_UNITS = {row.counter: row.unit for row in ROWS}
assert len({(row.counter, row.unit) for row in ROWS}) == len(COUNTER_UNITS)


def rows_of(kind: str) -> tuple[Row, ...]:
    """The rows of a ``VirtualMachine`` or a ``HostSystem``."""
    return tuple(row for row in ROWS if OBJECT_KINDS[row.of] == kind)
