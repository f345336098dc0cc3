"""Flags of contention: figures of the hypervisor above a threshold, each with its source.

No vendor draws most of these lines as such: where a figure is a rule of thumb it says so, and all
of them can be set in the recipe. A flag says that the VM waited for others or for want of
something; whether that mattered to a stage is for its own times to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal

from telemetry.profile import Profile, Row
from telemetry.vm_entity import parsed

Flag = dict[str, Any]
_KIB, _MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The largest value of each figure that is not flagged. Units are in the names."""

    cpu_ready_percent: float = 5.0
    cpu_costop_percent: float = 3.0
    cpu_latency_percent: float = 10.0
    mem_ballooned_bytes: float = _MIB
    mem_swap_in_bytes_per_s: float = 64 * _KIB
    mem_latency_percent: float = 1.0
    disk_latency_ms: float = 20.0
    net_dropped_packets_per_s: float = 1.0

    def __post_init__(self) -> None:
        for one in fields(self):
            if not 0 <= getattr(self, one.name) < float("inf"):
                raise ValueError(
                    f"contention {one.name} = {getattr(self, one.name)}: give a figure of 0 or more"
                )

    @classmethod
    def from_json(cls, given: Mapping[str, Any] | None) -> Thresholds:
        """The defaults with what is given in their place. ValueError for an unknown name."""
        known = [one.name for one in fields(cls)]
        for name in given or {}:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise ValueError(
                    f"no contention threshold {name!r}: {hint}there are {', '.join(known)}"
                )
        return cls(**{name: float(value) for name, value in (given or {}).items()})


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """Which figure of which metrics a threshold is for, where its default is from, what it means.

    ``figure``: a level that hurts while it lasts counts by its mean over the stage; what should
    not happen at all counts by its largest window.
    """

    threshold: str
    metric: str
    figure: Literal["mean", "max"]
    source: str
    tells: str


_RULES = (
    _Rule(
        threshold="cpu_ready_percent",
        metric="vm_cpu_ready_percent",
        figure="mean",
        source="rule of thumb among administrators: up to 5 % per vCPU is not felt, 10 % is "
        "(2,000 ms in a sample of 20 s)",
        tells="it was ready to run and no physical CPU was free",
    ),
    _Rule(
        threshold="cpu_costop_percent",
        metric="vm_cpu_costop_percent",
        figure="mean",
        source="rule of thumb for esxtop's %CSTP: 3 % per vCPU",
        tells="vCPUs were held until others of the VM could run: it has more than the host can "
        "schedule together",
    ),
    _Rule(
        threshold="cpu_latency_percent",
        metric="vm_cpu_latency_percent",
        figure="mean",
        source="StageScope's own choice: twice that of ready time, which it includes, since a busy "
        "hyper-thread beside it and power saving count too",
        tells="it could not run at full speed: physical CPUs were taken, shared by two threads or "
        "slowed down to save power",
    ),
    _Rule(
        threshold="mem_ballooned_bytes",
        metric="vm_mem_ballooned_bytes",
        figure="max",
        source="VMware's best practices take no ballooning as the sign that a host is under no "
        "pressure of memory; 1 MiB is what esxtop shows",
        tells="the host took memory back from it",
    ),
    _Rule(
        threshold="mem_swap_in_bytes_per_s",
        metric="vm_mem_swap_in_bytes_per_s",
        figure="max",
        source="VMware's best practices: swapping by the host costs noticeably; StageScope's own "
        "choice of 64 KiB/s (1.25 MiB in a window of 20 s) leaves out what trickles in when the "
        "want of memory is over",
        tells="it waited for memory that the host had swapped out",
    ),
    _Rule(
        threshold="mem_latency_percent",
        metric="vm_mem_latency_percent",
        figure="mean",
        source="StageScope's own choice: 1 % of the time is more than chance",
        tells="it waited for memory that was swapped or compressed",
    ),
    _Rule(
        threshold="disk_latency_ms",
        metric="vm_disk_(?:read|write)_latency_ms|vm_disk_latency_max_ms",
        figure="mean",
        source="rule of thumb for a storage array: above 15 ms at the device and 4 ms in the "
        "kernel it has a problem, together about 20 ms",
        tells="its disks took long to answer",
    ),
    _Rule(
        threshold="net_dropped_packets_per_s",
        metric="vm_net_dropped_(?:rx|tx)_packets_per_s",
        figure="max",
        source="StageScope's own choice: a virtual network drops few unless something is full; "
        "1 a second is 20 in a window of 20 s",
        tells="packets were dropped between it and the host",
    ),
)


def is_judged(entity: str, metric: str) -> bool:
    """Whether there is a threshold for this figure, so that without a flag it is below it."""
    seen = parsed(entity).vm is not None
    return seen and any(re.fullmatch(rule.metric, metric) for rule in _RULES)


def flags(profile: Profile, thresholds: Thresholds | None = None) -> list[Flag]:
    """Every figure of a VM above its threshold, in the profile's order; estimates do not count."""
    limits = thresholds or Thresholds()
    return [flag for row in profile.rows for flag in _flagged(row, limits)]


def _flagged(row: Row, limits: Thresholds) -> Iterator[Flag]:
    if row.reason is not None or parsed(row.entity).vm is None:
        return
    for rule in _RULES:
        value, limit = getattr(row, rule.figure), getattr(limits, rule.threshold)
        if re.fullmatch(rule.metric, row.metric) and value is not None and value > limit:
            default = limit == getattr(Thresholds(), rule.threshold)
            yield {
                "stage": row.stage,
                "entity": row.entity,
                "metric": row.metric,
                "figure": rule.figure,
                "value": value,
                "threshold": limit,
                "unit": row.unit,
                "source": rule.source if default else "set in the recipe",
                "sentence": _sentence(row, rule, value),
            }


def _sentence(row: Row, rule: _Rule, value: float) -> str:
    seen = parsed(row.entity)
    part = f" ({seen.instance})" if seen.instance else ""
    name = row.metric.removeprefix("vm_").removesuffix(f"_{_suffix(row.unit)}").replace("_", " ")
    how = "on average" if rule.figure == "mean" else "at most"
    percent = 100 * row.coverage
    whole = f", in the {percent:.0f} % of it that is covered" if percent < 99.5 else ""
    return (
        f"{seen.vm}{part}: {name} {_amount(value, row.unit)} {how} during {row.stage}{whole}: "
        f"{rule.tells}"
    )


def _suffix(unit: str) -> str:
    return {"%": "percent", "B": "bytes", "B/s": "bytes_per_s", "packets/s": "packets_per_s"}.get(
        unit, unit
    )


def _amount(value: float, unit: str) -> str:
    if unit in {"B", "B/s"}:
        size, prefix = (_KIB, "Ki") if value < _MIB else (_MIB, "Mi")
        return f"{value / size:,.3g} {prefix}{unit}"
    return f"{value:,.3g} {unit}"
