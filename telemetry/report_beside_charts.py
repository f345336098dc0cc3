"""The report's charts of guest beside hypervisor: one quantity each, on one axis.

The guest is a thin line of means over a second, the hypervisor's windows are steps over their own
time, from start to end, and open where none was; an estimate is a dotted line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from telemetry.derived import derived_series
from telemetry.report_charts import MAX_SERIES, empty_chart, without
from telemetry.report_hypervisor_view import HypervisorView, ended
from telemetry.report_series import (
    GAP_PERIODS,
    MAX_POINTS,
    Floats,
    RunSeries,
    Trace,
    bucket_growth,
    levels,
    pieces,
    series_json,
)
from telemetry.series import Points
from telemetry.vm_entity import ESTIMATE, parsed, short_hosts

_NS = 1e9
Look = Literal["guest", "step", "est"]


@dataclass(frozen=True, kw_only=True)
class Beside:
    """One chart: the guest's series by pattern and the hypervisor's metrics with their labels."""

    key: str
    title: str
    unit: str
    hypervisor: tuple[tuple[str, str], ...]
    guest: tuple[tuple[str, str, str], ...] = ()
    """Label (``{}``: the entity's name), entity and metric."""
    top: float | None = None


_NET = r"net:(?!lo$).+"
CHARTS = (
    Beside(key="vm-cpu", title="CPU used", unit="cores",
           guest=(("guest", "machine", "cpu_busy_seconds"),),
           hypervisor=(("VM", "vm_cpu_used_cores"),)),
    Beside(key="vm-cpu-usage", title="CPU usage", unit="%",
           guest=(("guest", "machine", "cpu_busy_percent"),),
           hypervisor=(("VM", "vm_cpu_usage_percent"), ("host", "host_cpu_usage_percent"))),
    Beside(key="vm-contention", title="CPU contention: share of the time in which vCPUs waited",
           unit="%",
           hypervisor=(("ready", "vm_cpu_ready_percent"), ("limited", "vm_cpu_maxlimited_percent"),
                       ("co-stop", "vm_cpu_costop_percent"),
                       ("latency", "vm_cpu_latency_percent"),
                       ("readiness", "vm_cpu_readiness_percent"))),
    Beside(key="vm-memory", title="Memory", unit="B",
           guest=(("guest used", "machine", "mem_used_bytes"),),
           hypervisor=(("consumed", "vm_mem_consumed_bytes"), ("active", "vm_mem_active_bytes"),
                       ("ballooned", "vm_mem_ballooned_bytes"),
                       ("swapped", "vm_mem_swapped_bytes"))),
    Beside(key="vm-swap", title="Memory swapped by the host", unit="B/s",
           hypervisor=(("in", "vm_mem_swap_in_bytes_per_s"),
                       ("out", "vm_mem_swap_out_bytes_per_s"))),
    Beside(key="vm-mem-wait", title="Memory latency and use", unit="%",
           hypervisor=(("VM latency", "vm_mem_latency_percent"),
                       ("host used", "host_mem_usage_percent"))),
    Beside(key="vm-read", title="Disk: read", unit="B/s",
           guest=(("guest {}", "disk:.+", "disk_read_bytes"),),
           hypervisor=(("VM", "vm_disk_read_bytes_per_s"),)),
    Beside(key="vm-write", title="Disk: written", unit="B/s",
           guest=(("guest {}", "disk:.+", "disk_write_bytes"),),
           hypervisor=(("VM", "vm_disk_write_bytes_per_s"),)),
    Beside(key="vm-requests", title="Disk: requests", unit="1/s",
           guest=(("guest {} reads", "disk:.+", "disk_read_ops"),
                  ("guest {} writes", "disk:.+", "disk_write_ops")),
           hypervisor=(("reads", "vm_disk_read_requests_per_s"),
                       ("writes", "vm_disk_write_requests_per_s"))),
    Beside(key="vm-latency", title="Disk: latency", unit="ms",
           hypervisor=(("read", "vm_disk_read_latency_ms"), ("write", "vm_disk_write_latency_ms"),
                       ("largest", "vm_disk_latency_max_ms"),
                       ("host's largest", "host_disk_latency_max_ms"))),
    Beside(key="vm-rx", title="Network: received", unit="B/s",
           guest=(("guest {}", _NET, "net_rx_bytes"),),
           hypervisor=(("VM", "vm_net_rx_bytes_per_s"),)),
    Beside(key="vm-tx", title="Network: sent", unit="B/s",
           guest=(("guest {}", _NET, "net_tx_bytes"),),
           hypervisor=(("VM", "vm_net_tx_bytes_per_s"),)),
    Beside(key="vm-dropped", title="Network: packets dropped", unit="packets/s",
           hypervisor=(("received", "vm_net_dropped_rx_packets_per_s"),
                       ("sent", "vm_net_dropped_tx_packets_per_s"))),
    Beside(key="vm-power", title="Power", unit="W",
           guest=(("GPU {} by NVML", "gpu:.+", "power_instant_w"),),
           hypervisor=(("VM", "vm_power_w"), ("host", "host_power_w"),
                       ("host, by energy", "host_energy_w"))),
    Beside(key="vm-gpu", title="GPU: busy", unit="%", top=100.0,
           guest=(("GPU {} by NVML", "gpu:.+", "gpu_util_percent"),),
           hypervisor=(("host", "host_gpu_util_percent"),)),
    Beside(key="vm-gpu-memory", title="GPU: memory used", unit="B",
           guest=(("GPU {} by NVML", "gpu:.+", "gpu_mem_used_bytes"),),
           hypervisor=(("host", "host_gpu_mem_used_bytes"),)),
    Beside(key="vm-gpu-share", title="GPU: memory used, share", unit="%",
           hypervisor=(("host", "host_gpu_mem_usage_percent"),)),
    Beside(key="vm-gpu-heat", title="GPU: temperature", unit="°C",
           guest=(("GPU {} by NVML", "gpu:.+", "gpu_temperature_c"),),
           hypervisor=(("host", "host_gpu_temperature_c"),)),
)  # fmt: skip
_SAME = ("vm_cpu_ready_cores", "vm_cpu_maxlimited_cores", "vm_cpu_costop_cores")
"""The percentages of the contention chart in another unit."""
METRICS = frozenset((*_SAME, *(metric for chart in CHARTS for _, metric in chart.hypervisor)))
HEADING = "Guest beside hypervisor"
HINT = (
    "Thin line: the guest, means over a second. Thick steps: the hypervisor's windows, each over "
    "its own time on the guest's clock, open where there was none. Dotted: an estimate, the "
    "windows sharpened by the guest's own signal, each window's total kept. A vertical line: "
    "the VM moved to another host."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Drawn:
    label: str
    look: Look
    trace: Trace


def beside_charts(index: RunSeries, view: HypervisorView, start_ns: int) -> list[dict[str, Any]]:
    """The charts that have a series of the hypervisor in them; one that says why without any.

    What was 0 in the whole run is named, not drawn.
    """
    if not view.configured:
        return []
    seen = {spec: list(_hypervisor(index, spec, view)) for spec in CHARTS}
    if not any(seen.values()):
        chart = without(empty_chart("vm", "Hypervisor", "", top=None), [ended(view.why_unseen())])
        return [chart | {"heading": HEADING}]
    flat = [spec.title for spec, drawn in seen.items() if drawn and not any(map(_moves, drawn))]
    hint = f"{HINT} Not drawn, since 0 in the whole run: {', '.join(flat)}." if flat else HINT
    made = [
        _chart([*_guest(index, spec), *drawn], spec, start_ns)
        for spec, drawn in seen.items()
        if any(map(_moves, drawn))
    ]
    if not made:
        chart = without(empty_chart("vm", "Hypervisor", "", top=None), ["every window is 0"])
        return [chart | {"heading": HEADING}]
    return [made[0] | {"heading": HEADING, "hint": hint}, *made[1:]]


def _moves(one: _Drawn) -> bool:
    return one.trace.top > 0


def is_drawn_here(metric: str) -> bool:
    """Whether a metric of windows has its place in one of these charts."""
    return metric.removesuffix(ESTIMATE) in METRICS


def _chart(drawn: Sequence[_Drawn], spec: Beside, start_ns: int) -> dict[str, Any]:
    chart = empty_chart(spec.key, spec.title, spec.unit, top=spec.top)
    compared = any(one.look == "guest" for one in drawn)
    lines = [one for one in drawn if _moves(one) or (compared and len(spec.hypervisor) == 1)]
    zero = [one.label for one in drawn if one not in lines]
    left = [one.label for one in lines[MAX_SERIES:]]
    told = [f"0 in the whole run: {', '.join(zero)}."] if zero else []
    told += [f"Not drawn, for want of room: {', '.join(left)}."] if left else []
    chart["note"] = " ".join(told) or None
    chart["series"] = [
        series_json(one.label, one.trace, start_ns) | {"look": one.look, "hue": hue}
        for one, hue in list(zip(lines, _hues(lines), strict=True))[:MAX_SERIES]
    ]
    return chart


def _hues(drawn: Sequence[_Drawn]) -> list[int]:
    """The guest's first colour is the page's first; an estimate has that of its windows."""
    free = {"guest": iter((0, 5, 7, 6)), "step": iter((1, 2, 3, 4, 6, 7, 5, 0))}
    known: dict[str, int] = {}
    for one in drawn:
        if one.look != "est":
            known[one.label] = next(free[one.look], 6)
    return [known.get(one.label.removeprefix("est. "), 6) for one in drawn]


def _guest(index: RunSeries, spec: Beside) -> Iterator[_Drawn]:
    for label, entity, metric in spec.guest:
        for name in _guest_names(index, entity, metric):
            line = _guest_line(index, *name)
            if not line.is_empty:
                shown = label.replace("{}", name[0].partition(":")[2])
                yield _Drawn(label=shown, look="guest", trace=line)


def _guest_names(index: RunSeries, entity: str, metric: str) -> list[tuple[str, str]]:
    """Devices with anything in them, the busiest two; a derived series is made of the others."""
    found = index.matching(entity, metric)
    if not found and entity == "machine":
        return [(entity, metric)]
    busy = [name for name in found if np.nanmax(index.points(*name).values, initial=0.0) > 0]
    weight = {name: float(np.ptp(index.points(*name).values)) for name in busy}
    kept = set(sorted(busy, key=lambda name: -weight[name])[:2])
    return [name for name in found if name in kept]


def _guest_line(index: RunSeries, entity: str, metric: str) -> Trace:
    points, kind, period_ns = _points(index, entity, metric)
    if points is None or len(points.ts_ns) < 2:
        return Trace(times=np.empty(0), values=np.empty(0))
    if kind != "counter":
        return levels(points, GAP_PERIODS * period_ns)
    first, last = points.ts_ns[0], points.ts_ns[-1]
    count = int(max(1, min(MAX_POINTS, (last - first) / _NS)))
    edges = np.linspace(first, last, count + 1)
    rates = bucket_growth(points, edges, period_ns) / (np.diff(edges) / _NS)
    return Trace.between(edges, rates, period_ns)


def _points(index: RunSeries, entity: str, metric: str) -> tuple[Points | None, str, float]:
    """A measured series, or the derived one of that name; its kind and its period (ns)."""
    if (entity, metric) in index.names():
        points = index.points(entity, metric)
        return points, index.metrics[metric].kind, index.period_ns(entity, metric, points)
    for made, known, points, period_s in derived_series(index, index.samples):
        if (made, known.name) == (entity, metric):
            return points, known.kind, period_s * _NS
    return None, "gauge", _NS


def _hypervisor(index: RunSeries, spec: Beside, view: HypervisorView) -> Iterator[_Drawn]:
    """Steps of each entity, each with its estimate behind it; this machine's own VM alone."""
    names = index.names()
    vms = {parsed(entity).vm for entity, _ in names} - {None}
    for label, metric in spec.hypervisor:
        entities = [
            entity
            for entity in index.entities(metric)
            if (vm := parsed(entity).vm) is None or vm == view.own_vm or view.own_vm not in vms
        ]
        chains = _chains(index, entities, metric)
        for chain in chains:
            shown = _label(label, chain, chains)
            yield _joined(index, chain, metric, shown, "step")
            sharpened = [one for one in chain if (one, metric + ESTIMATE) in names]
            if sharpened:
                yield _joined(index, sharpened, metric + ESTIMATE, f"est. {shown}", "est")


def _chains(index: RunSeries, entities: Sequence[str], metric: str) -> list[list[str]]:
    """Entities that are one VM, or one disk of it, on one host after the other.

    What stands on two hosts at one time is drawn apart, and so is each host itself.
    """
    chains: dict[tuple[str, str], list[str]] = {}
    times = {one: index.points(one, metric) for one in entities}
    for entity in sorted(entities, key=lambda one: int(times[one].ts_ns[0])):
        seen = parsed(entity)
        key = (seen.vm or entity, seen.instance or "")
        before = chains.get(key)
        if before and int(times[before[-1]].ts_ns[-1]) > int(times[entity].start_ns[0]):
            key = (entity, "")
        chains.setdefault(key, []).append(entity)
    return list(chains.values())


def _label(label: str, chain: Sequence[str], chains: Sequence[Sequence[str]]) -> str:
    """What tells this chain from the others of the chart: its VM, its device, its host."""
    seen, others = parsed(chain[0]), [parsed(other[0]) for other in chains]
    short = short_hosts(one.host for one in others if one.host)
    parts = [seen.vm if len({one.vm for one in others}) > 1 and seen.vm else label]
    if seen.instance:
        parts.append(seen.instance.replace("gpu:", "GPU "))
    if len({one.host for one in others}) > 1 and seen.host:
        whole = seen.vm is None and not seen.instance
        parts.append(short[seen.host] if whole else f"on {short[seen.host]}")
    return " ".join(parts)


def _joined(index: RunSeries, chain: Sequence[str], metric: str, label: str, look: Look) -> _Drawn:
    """The windows of a chain in one line that is open where the host changed."""
    drawn = [_windows(index.points(entity, metric), look) for entity in chain]
    times, values = (np.concatenate(part) for part in zip(*drawn, strict=True))
    # More than a screen has pixels: buckets that keep the extremes.
    trace = pieces(times, values) if len(times) > MAX_POINTS else Trace(times=times, values=values)
    return _Drawn(label=label, look=look, trace=trace)


def _windows(points: Points, look: Look) -> tuple[Floats, Floats]:
    """Windows as (time from which, level): NaN from the end of one that no other follows.

    Those of an estimate are points at their middles, NaN where one does not follow the other.
    """
    kept = np.isfinite(points.values)
    starts, ends = points.start_ns[kept].astype(float), points.ts_ns[kept].astype(float)
    values = points.values[kept]
    if not len(values):
        return np.empty(0), np.empty(0)
    lengths = ends - starts
    joined = np.abs(starts[1:] - ends[:-1]) < 0.5 * lengths[1:]
    if look == "est":
        middles, broken = (starts + ends) / 2, np.flatnonzero(np.append(~joined, True))
        times = np.insert(middles, broken + 1, middles[broken] + 1.0)
        return times, np.insert(values, broken + 1, np.nan)
    open_end = np.flatnonzero(np.append(~joined, True))
    return np.insert(starts, open_end + 1, ends[open_end]), np.insert(values, open_end + 1, np.nan)
