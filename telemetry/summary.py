"""The figures of a stage that go to a tracking server, each under a name with its unit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from telemetry.profile import DATA, Figure, Profile, Row
from telemetry.series import clean

LIMIT = 60
"""Figures of a stage at the most: what a tracking server's table can show."""
MOST_GPUS = 2
"""Of more cards than that each figure is one for all of them: a mean or a sum."""


@dataclass(frozen=True)
class _Summary:
    """A summary figure: its name and where it is from; the entity's group fills the braces.

    Of more than ``MOST_GPUS`` shares (%) are their mean and amounts their sum, and the braces say
    ``all``.
    """

    name: str
    entity: str
    metric: str
    figure: Figure


_DISK, _NET, _GPU = r"disk:(.+)", r"net:(?!lo$)(.+)", r"gpu:(\d+(?:/mig:\d+)?)"
_VM, _ESXI = r"vm:.+@[^@/]+", r"esxi:[^/]+"
_VM_PART, _ESXI_GPU = r"vm:.+@[^@/]+/([^@]+)", r"esxi:[^/]+/gpu:(.+)"
_SUMMARY = (
    _Summary("stage/cpu_seconds", "stage", "cpu_busy_seconds", "total"),
    _Summary("stage/cpu_cores_mean", "stage", "cpu_busy_seconds", "mean"),
    _Summary("stage/cpu_cores_p95", "stage", "cpu_busy_seconds", "p95"),
    _Summary("stage/cpu_system_seconds", "stage", "cpu_system_seconds", "total"),
    _Summary("stage/mem_rss_mean_bytes", "stage", "mem_rss_bytes", "mean"),
    _Summary("stage/mem_rss_max_bytes", "stage", "mem_rss_bytes", "max"),
    _Summary("stage/io_read_bytes", "stage", "io_read_bytes", "total"),
    _Summary("stage/io_write_bytes", "stage", "io_write_bytes", "total"),
    _Summary("stage/coverage", "stage", "cpu_busy_seconds", "coverage"),
    _Summary("data/bytes_in", DATA, "bytes_in", "total"),
    _Summary("data/bytes_out", DATA, "bytes_out", "total"),
    _Summary("data/rows_out", DATA, "rows_out", "total"),
    _Summary("data/rows_out_per_s", DATA, "rows_out", "mean"),
    _Summary("data/growth_ratio", DATA, "growth_ratio", "mean"),
    _Summary("guest/cpu_seconds", "machine", "cpu_busy_seconds", "total"),
    _Summary("guest/cpu_busy_mean_percent", "machine", "cpu_busy_percent", "mean"),
    _Summary("guest/cpu_busy_p95_percent", "machine", "cpu_busy_percent", "p95"),
    _Summary("guest/cpu_iowait_seconds", "machine", "cpu_iowait_seconds", "total"),
    _Summary("guest/cpu_steal_seconds", "machine", "cpu_steal_seconds", "total"),
    _Summary("guest/cpu_loop_us", "machine", "cpu_loop_us", "mean"),
    _Summary("guest/mem_used_max_bytes", "machine", "mem_used_bytes", "max"),
    _Summary("guest/psi_cpu_some_seconds", "machine", "psi_cpu_some_seconds", "total"),
    _Summary("guest/psi_memory_full_seconds", "machine", "psi_memory_full_seconds", "total"),
    _Summary("guest/psi_io_full_seconds", "machine", "psi_io_full_seconds", "total"),
    _Summary("vcenter/cpu_used_seconds", _VM, "vm_cpu_used_cores", "total"),
    _Summary("vcenter/cpu_used_seconds_estimate", _VM, "vm_cpu_used_cores_estimate", "total"),
    _Summary("vcenter/cpu_ready_mean_percent", _VM, "vm_cpu_ready_percent", "mean"),
    _Summary("vcenter/cpu_maxlimited_mean_percent", _VM, "vm_cpu_maxlimited_percent", "mean"),
    _Summary("vcenter/cpu_costop_mean_percent", _VM, "vm_cpu_costop_percent", "mean"),
    _Summary("vcenter/cpu_latency_mean_percent", _VM, "vm_cpu_latency_percent", "mean"),
    _Summary("vcenter/coverage", _VM, "vm_cpu_usage_percent", "coverage"),
    _Summary("vcenter/mem_ballooned_max_bytes", _VM, "vm_mem_ballooned_bytes", "max"),
    _Summary("vcenter/mem_swapped_max_bytes", _VM, "vm_mem_swapped_bytes", "max"),
    _Summary("vcenter/disk_latency_max_ms", _VM, "vm_disk_latency_max_ms", "max"),
    _Summary("vcenter/host_energy_j", _ESXI, "host_power_w", "total"),
    _Summary("vcenter/host_power_mean_w", _ESXI, "host_power_w", "mean"),
    _Summary("gpu/{}_util_percent", _GPU, "gpu_util_percent", "mean"),
    _Summary("gpu/{}_mem_used_max_bytes", _GPU, "gpu_mem_used_bytes", "max"),
    _Summary("gpu/{}_power_mean_w", _GPU, "power_instant_w", "mean"),
    _Summary("gpu/{}_energy_j", _GPU, "energy_j", "total"),
    _Summary("gpu/{}_energy_from_power_j", _GPU, "power_instant_w", "total"),
    _Summary("gpu/{}_energy_above_idle_j", _GPU, "energy_above_idle_j", "total"),
    _Summary("gpu/{}_gpm_sm_util_percent", _GPU, "gpm_sm_util_percent", "mean"),
    _Summary("gpu/{}_gpm_tensor_util_percent", _GPU, "gpm_tensor_util_percent", "mean"),
    _Summary("vcenter/gpu_{}_util_percent", _ESXI_GPU, "host_gpu_util_percent", "mean"),
    _Summary("vcenter/{}_read_bytes", _VM_PART, "vm_disk_read_bytes_per_s", "total"),
    _Summary("vcenter/{}_write_bytes", _VM_PART, "vm_disk_write_bytes_per_s", "total"),
    _Summary("guest/{}_read_bytes", _DISK, "disk_read_bytes", "total"),
    _Summary("guest/{}_read_p95_bytes_per_s", _DISK, "disk_read_bytes", "p95"),
    _Summary("guest/{}_write_bytes", _DISK, "disk_write_bytes", "total"),
    _Summary("guest/{}_write_p95_bytes_per_s", _DISK, "disk_write_bytes", "p95"),
    _Summary("guest/{}_rx_bytes", _NET, "net_rx_bytes", "total"),
    _Summary("guest/{}_tx_bytes", _NET, "net_tx_bytes", "total"),
)
"""In order of importance: of a machine with very many devices the last figures are left out."""


def summary(profile: Profile, stage: str, limit: int = LIMIT) -> dict[str, float]:
    """At most ``limit`` figures of a stage, named for a tracking server; no absent ones."""
    figures = dict(_figures(profile.of(stage)))
    return dict(list(figures.items())[:limit])


def _figures(rows: Sequence[Row]) -> Iterator[tuple[str, float]]:
    """Where two entities would give one name (a VM that moved), each has its own added.

    What is of all cards together is left out where one of them has no figure.
    """
    for one in _SUMMARY:
        found = [
            (row, match, value)
            for row in rows
            if row.metric == one.metric
            and (match := re.fullmatch(one.entity, row.entity))
            and (value := row.told(one.figure)) is not None
        ]
        cards = [row for row in rows if row.metric == one.metric and _is_card(row.entity)]
        if one.entity == _GPU and len(cards) > MOST_GPUS:
            told = [value for row, _, value in found if _is_card(row.entity)]
            if len(told) == len(cards):
                together = sum(told) / (len(told) if one.name.endswith("_percent") else 1)
                yield clean(one.name.format("all")), together
            found = [each for each in found if "/" in each[0].entity]
        names = [one.name.format(*match.groups()) for _, match, _ in found]
        for (row, _, value), name in zip(found, names, strict=True):
            whose = row.entity.partition(":")[2].partition("/")[0]
            yield clean(name if names.count(name) == 1 else f"{name} {whose}"), value


def _is_card(entity: str) -> bool:
    return re.fullmatch(r"gpu:\d+", entity) is not None
