"""The ledger: what two witnesses, measured apart, say of the same quantity, and what remains.

Idle time is measured like everything else and is never what is left over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from telemetry.attribution import attribute, windows_of
from telemetry.runfolder import Span
from telemetry.segments import SampleSet
from telemetry.series import SeriesIndex

TOLERANCE_PERCENT = 2.0
CPU_FLOOR_S = 1.0
"""Below it the kernel's ticks of 10 ms, one for each process of a tree, are over the tolerance."""
IO_FLOOR_BYTES = 64 << 20
"""Below it the file system's own journal and metadata are over the tolerance."""
BUSY = ("user", "nice", "system")
"""Modes of /proc/stat that belong to processes; interrupts belong to none."""
IDLE = ("idle", "iowait", "steal")
INTERRUPTS = ("irq", "softirq")

Entry = dict[str, Any]


def close_ledger(
    samples: SampleSet, spans: Sequence[Span], record: Mapping[str, Any]
) -> list[Entry]:
    """Every account of the run: name, unit, parts, both witnesses, remainder, whether it closes.

    ``remainder`` is the first witness less the second, ``remainder_percent`` its share of the
    second. ``closes`` is None where the quantity is too small to tell, and then ``reason`` says so.
    """
    index = SeriesIndex(samples)
    return [
        *_stage_cpu(index, samples, spans, record),
        *_machine(index, spans),
        *_whole_run(index, samples, spans),
    ]


def _stage_cpu(
    index: SeriesIndex, samples: SampleSet, spans: Sequence[Span], record: Mapping[str, Any]
) -> Iterator[Entry]:
    """Sampled process trees against what the kernel told the one that waited for them."""
    rusage = {stage["name"]: stage.get("rusage") for stage in record["stages"]}
    for span in spans:
        usage = rusage.get(span.stage)
        parts = {
            mode: _total(index, samples, f"stage:{span.stage}", f"cpu_{mode}_seconds", span)
            for mode in ("user", "system")
        }
        name = f"CPU of stage {span.stage}"
        if usage is None or None in parts.values():
            missing = "no rusage" if usage is None else "no samples of its process tree"
            yield _cannot(name, "s", missing)
            continue
        sampled = sum(part for part in parts.values() if part is not None)
        waited = usage["user_s"] + usage["system_s"]
        witnesses = {"sampled process tree": sampled, "wait4 rusage": waited}
        yield _entry(name, "s", parts, witnesses, CPU_FLOOR_S)


def _machine(index: SeriesIndex, spans: Sequence[Span]) -> Iterator[Entry]:
    """All processes, one by one, against the kernel's counters of the machine."""
    bounds = _bounds(index, "processes", "cpu_user_seconds")
    if bounds is None:
        for name, unit in (
            ("CPU of all processes", "s"),
            ("CPU time of the machine", "s"),
            ("bytes read from storage", "B"),
            ("bytes written to storage", "B"),
        ):
            yield _cannot(name, unit, "no samples of all processes")
        return
    low, high = bounds
    trees = {
        entity: _sum(index, [entity], ("cpu_user_seconds", "cpu_system_seconds"), low, high)
        for entity in index.entities("cpu_user_seconds")
        if entity.startswith("stage:") or entity in {"runner", "recorder"}
    }
    processes = _sum(index, ["processes"], ("cpu_user_seconds", "cpu_system_seconds"), low, high)
    rest = processes - sum(trees.values())
    busy = _sum(index, ["machine"], [f"cpu_{mode}_seconds" for mode in BUSY], low, high)
    yield _entry(
        "CPU of all processes",
        "s",
        {**trees, "rest of the machine": rest},
        {"sum over processes": processes, "/proc/stat user + nice + system": busy},
        CPU_FLOOR_S,
    )
    modes = {
        mode: _sum(index, ["machine"], [f"cpu_{mode}_seconds"], low, high)
        for mode in (*BUSY, *INTERRUPTS, *IDLE)
    }
    cpus = index.points("machine", "cpu_count").values[-1] if ("machine", "cpu_count") in index else 0
    yield _entry(
        "CPU time of the machine",
        "s",
        modes,
        {"/proc/stat, all modes": sum(modes.values()), "CPUs x time": cpus * (high - low) / 1e9},
        CPU_FLOOR_S,
    )
    yield from _storage(index, low, high)


def _storage(index: SeriesIndex, low: int, high: int) -> Iterator[Entry]:
    disks = [entity for entity in index.entities("disk_read_bytes") if entity.startswith("disk:")]
    for verb, process, device in (
        ("read from", "io_read_bytes", "disk_read_bytes"),
        ("written to", "io_write_bytes", "disk_write_bytes"),
    ):
        trees = {
            entity: _sum(index, [entity], [process], low, high)
            for entity in index.entities(process)
            if entity.startswith("stage:") or entity in {"runner", "recorder"}
        }
        seen = _sum(index, ["processes"], [process], low, high)
        cancelled = 0.0
        if verb == "written to":
            # Counted when a page gets dirty, and taken back when its file goes before it is written.
            cancelled = _sum(index, ["processes"], ["io_cancelled_write_bytes"], low, high)
        rest = seen - sum(trees.values())
        moved = _sum(index, disks, [device], low, high)
        yield _entry(
            f"bytes {verb} storage",
            "B",
            {**trees, "rest of the machine": rest, "cancelled": -cancelled},
            {"sum over processes": seen - cancelled, "block devices": moved},
            IO_FLOOR_BYTES,
        )


def _whole_run(
    index: SeriesIndex, samples: SampleSet, spans: Sequence[Span]
) -> Iterator[Entry]:
    """Stages and the time between them against the whole run, as attribution shares it out."""
    counters = [
        ("machine", "cpu_user_seconds", "s"),
        ("machine", "cpu_system_seconds", "s"),
        *((entity, "disk_read_bytes", "B") for entity in index.entities("disk_read_bytes")),
        *((entity, "disk_write_bytes", "B") for entity in index.entities("disk_write_bytes")),
        *((entity, "energy_j", "J") for entity in index.entities("energy_j")),
    ]
    for entity, metric, unit in counters:
        bounds = _bounds(index, entity, metric)
        if bounds is None or not spans:
            continue
        low, high = bounds
        parts: dict[str, float | None] = {
            span.stage: _total(index, samples, entity, metric, span) or 0.0 for span in spans
        }
        gaps = [_total(index, samples, entity, metric, gap) for gap in _gaps(spans, low, high)]
        parts["between stages"] = sum(gap for gap in gaps if gap is not None)
        points = index.points(entity, metric)
        grown = float(np.clip(np.diff(points.values), 0, None).sum())
        shared = sum(part for part in parts.values() if part is not None)
        yield _entry(
            f"{metric} of {entity}, stages and between them",
            unit,
            parts,
            {"stages + between stages": shared, "whole run": grown},
            0.0,
        )


def _gaps(spans: Sequence[Span], low: int, high: int) -> Iterator[Span]:
    at = low
    for span in sorted(spans, key=lambda one: one.start_ns):
        if span.start_ns > at:
            yield Span(stage="", start_ns=at, end_ns=min(span.start_ns, high))
        at = max(at, span.end_ns)
    if at < high:
        yield Span(stage="", start_ns=at, end_ns=high)


def _total(
    index: SeriesIndex, samples: SampleSet, entity: str, metric: str, span: Span
) -> float | None:
    if (entity, metric) not in index or span.end_ns <= span.start_ns:
        return None
    described = samples.metrics[metric]
    period_ns = round(samples.period_s(entity, metric) * 1e9)
    windows = windows_of(index.points(entity, metric), described.kind, period_ns)
    return attribute(windows, described, entity, span).total


def _bounds(index: SeriesIndex, entity: str, metric: str) -> tuple[int, int] | None:
    if (entity, metric) not in index:
        return None
    ts = index.points(entity, metric).ts_ns
    return (int(ts[0]), int(ts[-1])) if len(ts) > 1 else None


def _sum(
    index: SeriesIndex, entities: Sequence[str], metrics: Sequence[str], low: int, high: int
) -> float:
    """Growth of counters between two times, read between their samples in a straight line."""
    total = 0.0
    for entity in entities:
        for metric in metrics:
            if (entity, metric) in index:
                points = index.points(entity, metric)
                at = (points.ts_ns - low).astype(np.float64)
                ends = np.interp([0.0, float(high - low)], at, points.values)
                total += float(ends[1] - ends[0])
    return total


def _entry(
    name: str,
    unit: str,
    parts: Mapping[str, float | None],
    witnesses: Mapping[str, float],
    floor: float,
) -> Entry:
    first, second = witnesses.values()
    remainder = first - second
    share = 100 * remainder / second if second else None
    small = max(abs(first), abs(second)) < floor or share is None
    return {
        "name": name,
        "unit": unit,
        "parts": dict(parts),
        "witnesses": dict(witnesses),
        "remainder": remainder,
        "remainder_percent": share,
        "closes": None if small else abs(share or 0.0) <= TOLERANCE_PERCENT,
        "reason": f"less than {floor:g} {unit}: too small to tell" if small else None,
    }


def _cannot(name: str, unit: str, reason: str) -> Entry:
    return {
        "name": name,
        "unit": unit,
        "parts": {},
        "witnesses": {},
        "remainder": None,
        "remainder_percent": None,
        "closes": None,
        "reason": reason,
    }
