"""The main series of a run that goes on: what is shown of it and exported, in one table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from telemetry.derived import BUSY, TREE

How = Literal["rate", "level", "total"]
Labels = tuple[tuple[str, str], ...]


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
    _main("total", "stage_counted_bytes", _APP, r"app_(?P<what>\w+)_bytes",
          "Bytes that the stage itself counts"),
    _main("total", "stage_counted_seconds", _APP, r"app_(?P<what>\w+)_seconds",
          "Time that the stage itself counts"),
    _main("total", "stage_counted", _APP, r"app_(?P<what>(?!\w+_(?:bytes|seconds)\Z)\w+)",
          "What else the stage itself counts"),
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


def labels_of(main: Main, entity: str, metric: str) -> Labels | None:
    """The labels of a series within a main series; None if it is not of it."""
    of_entity = re.fullmatch(main.entity, entity)
    if of_entity is None:
        return None
    for pattern in main.metrics:
        of_metric = re.fullmatch(pattern, metric)
        if of_metric:
            return tuple(sorted({**of_entity.groupdict(), **of_metric.groupdict()}.items()))
    return None
