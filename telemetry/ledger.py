"""The ledger: what two witnesses, measured apart, say of the same quantity, and what remains.

Idle time is measured like everything else and is never what is left over. What each account shows,
and which traps it knows, is in ``docs/profile.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from telemetry.attribution import Stretches, every_series, share, stretches_of
from telemetry.derived import BUSY, NOT_BUSY, TREE
from telemetry.estimates import SUFFIX
from telemetry.runfolder import Span
from telemetry.samples import Metric
from telemetry.segments import SampleSet
from telemetry.series import Points

TOLERANCE = 0.02
"""Witnesses that are no further apart than this share of the larger one agree."""
CPU_FLOOR_S = 1.0
"""Below it the two ticks of 10 ms that /proc rounds off per process are over the tolerance."""
TREE_IO_FLOOR_B = 8 << 20
"""Below it the pages of a process that nobody waited for are over the tolerance."""
DEVICE_IO_FLOOR_B = 64 << 20
"""Below it a file system's own metadata and journal are over the tolerance."""
ENERGY_FLOOR_S = 10.0
"""The energy counter of a GPU moves about every 100 ms, which is 1 % of this time."""
ENERGY_COVERAGE = 0.99
_NS = 1e9

_METADATA = (
    "devices also write the file system's metadata and journal, which fsync writes past all "
    "counts of processes, and late what was written before"
)
_OTHERS = "a device is also read for the file system's metadata and by other machines that share it"
_NO_CPUS = "the number of CPUs is unknown"

Entry = dict[str, Any]


def close_ledger(samples: SampleSet, spans: Sequence[Span], run: Mapping[str, Any]) -> list[Entry]:
    """Every account of the run: name, unit, parts, two witnesses, remainder and verdict.

    ``remainder`` is the first witness less the second, ``remainder_percent`` its share of the
    second. ``closes`` is None where a witness is missing or the quantity too small to tell, and
    then ``reason`` says so. ``run`` is ``run.json``.
    """
    books = _Books(samples, spans)
    return [
        *_trees(books, run),
        _processes(books, run),
        _machine(books, run),
        *_storage(books),
        _seconds(books, run),
        *_whole_run(books),
        *_windows(books),
        *_energy(books),
    ]


class _Books:
    """Series by name, cut into stretches once, and what they held in a span of time."""

    def __init__(self, samples: SampleSet, spans: Sequence[Span]) -> None:
        self.spans = sorted(spans, key=lambda span: span.start_ns)
        self._series: dict[tuple[str, str], tuple[Points, Stretches, Metric]] = {
            (entity, metric.name): (points, stretches_of(points, metric, period_s), metric)
            for entity, metric, points, period_s in every_series(samples)
        }

    def entities(self, metric: str, prefix: str = "") -> list[str]:
        return sorted(
            entity for entity, name in self._series if name == metric and entity.startswith(prefix)
        )

    def grew(self, entity: str, metrics: Iterable[str], start_ns: int, end_ns: int) -> float | None:
        """What the counters held together in (start_ns, end_ns]; None if one has nothing there."""
        total = 0.0
        for metric in metrics:
            known = self._series.get((entity, metric))
            part = share(known[1], start_ns, end_ns) if known else None
            if part is None:
                return None
            total += part.total
        return total

    def bounds(self, entity: str, metric: str) -> tuple[int, int] | None:
        """The times of the first and the last sample; None with fewer than two."""
        known = self._series.get((entity, metric))
        ts = known[0].ts_ns if known else np.empty(0, np.int64)
        return (int(ts[0]), int(ts[-1])) if len(ts) > 1 and ts[-1] > ts[0] else None

    def raw_growth(self, entity: str, metric: str) -> float:
        """The last value less the first, straight from the samples."""
        values = self._series[entity, metric][0].values
        finite = values[np.isfinite(values)]
        return float(finite[-1] - finite[0]) if len(finite) else 0.0

    def integrated(self) -> list[tuple[str, str]]:
        """Series of windows whose integral has a meaning; what was made of them is no witness."""
        return sorted(
            (entity, name)
            for (entity, name), (_, stretches, metric) in self._series.items()
            if metric.kind == "window" and metric.integral_unit and len(stretches.level)
            if not name.endswith(SUFFIX)
        )

    def windows(self, entity: str, metric: str) -> tuple[tuple[int, int], float]:
        """Where the windows begin and end, and their levels times their lengths in s, summed up."""
        points, stretches, _ = self._series[entity, metric]
        start, end = int(stretches.start_ns[0]), int(stretches.end_ns[-1])
        kept = np.isfinite(points.values) & (points.start_ns > 0)
        lengths = (points.ts_ns[kept] - points.start_ns[kept]) / _NS
        return (start, end), float(np.sum(points.values[kept] * lengths))

    def integral_unit(self, metric: str) -> str:
        units = (one.integral_unit for _, _, one in self._series.values() if one.name == metric)
        return next(unit for unit in units if unit)

    def last(self, entity: str, metric: str) -> float | None:
        known = self._series.get((entity, metric))
        return float(known[0].values[-1]) if known else None

    def covered(self, entity: str, metric: str, start_ns: int, end_ns: int) -> float:
        part = share(self._series[entity, metric][1], start_ns, end_ns)
        return part.covered_ns / (end_ns - start_ns) if part else 0.0

    def between(self, low_ns: int, high_ns: int) -> Iterator[tuple[int, int]]:
        """The stretches of (low_ns, high_ns] that no stage covers."""
        at = low_ns
        for span in self.spans:
            if at < min(span.start_ns, high_ns):
                yield at, min(span.start_ns, high_ns)
            at = max(at, span.end_ns)
        if at < high_ns:
            yield at, high_ns


def _trees(books: _Books, run: Mapping[str, Any]) -> Iterator[Entry]:
    """Sampled process trees of the stages against what the kernel told who waited for them."""
    rusage = {stage["name"]: stage.get("rusage") for stage in run["stages"]}
    for span in books.spans:
        usage = rusage.get(span.stage) or {}
        for what, unit, metrics, fields, floor in (
            ("CPU", "s", TREE, ("user_s", "system_s"), CPU_FLOOR_S),
            ("bytes read", "B", ("io_read_bytes",), ("read_bytes",), TREE_IO_FLOOR_B),
            ("bytes written", "B", ("io_write_bytes",), ("write_bytes",), TREE_IO_FLOOR_B),
        ):
            name = f"{what} of stage {span.stage}"
            parts = {
                metric: books.grew(f"stage:{span.stage}", [metric], span.start_ns, span.end_ns)
                for metric in metrics
            }
            told = [usage.get(field) for field in fields]
            witnesses = {"sampled process tree": _all(parts.values()), "wait4 rusage": _all(told)}
            yield entry(name, unit, parts, witnesses, floor=floor)


def _processes(books: _Books, run: Mapping[str, Any]) -> Entry:
    """All processes, one by one, against the time in which the CPUs were not idle.

    Most kernels count busy time by ticks and idle time by the clock. Work in step with the tick is
    then seen too seldom or too often, so what was measured by the clock is the better witness.
    Interrupts belong to no process.
    """
    name = "CPU of all processes"
    bounds = books.bounds("processes", TREE[0])
    cpus = books.last("machine", "cpu_count") or _cpus_of(run)
    if bounds is None or not cpus:
        what = "the processes were not sampled" if bounds is None else _NO_CPUS
        return _missing(name, "s", what)
    processes = books.grew("processes", TREE, *bounds)
    parts = _whose(books, TREE, processes, bounds)
    interrupts = [mode for mode in BUSY if "irq" in mode]
    otherwise = books.grew("machine", [*NOT_BUSY, *interrupts], *bounds)
    time_s = cpus * (bounds[1] - bounds[0]) / _NS
    witnesses = {
        "sum over processes": processes,
        f"{cpus:.0f} CPUs × time - idle, iowait, steal, interrupts of /proc/stat": (
            None if otherwise is None else time_s - otherwise
        ),
    }
    return entry(name, "s", parts, witnesses, floor=CPU_FLOOR_S)


def _whose(
    books: _Books, metrics: Sequence[str], all_together: float | None, bounds: tuple[int, int]
) -> dict[str, float | None]:
    """Which processes took how much: the watched trees, none of them in another, and the rest."""
    watched = [*books.entities(metrics[0], "stage:"), "runner", "recorder"]
    trees = {entity: books.grew(entity, metrics, *bounds) or 0.0 for entity in watched}
    rest = None if all_together is None else all_together - sum(trees.values())
    return {**trees, "other processes": rest}


def _machine(books: _Books, run: Mapping[str, Any]) -> Entry:
    """All modes of /proc/stat against the CPUs and the recorder's clock: nothing is left out."""
    name = "CPU time of the machine"
    bounds = books.bounds("machine", BUSY[0])
    cpus = books.last("machine", "cpu_count") or _cpus_of(run)
    if bounds is None or not cpus:
        what = "the machine was not sampled" if bounds is None else _NO_CPUS
        return _missing(name, "s", what)
    modes = {mode: books.grew("machine", [mode], *bounds) for mode in (*BUSY, *NOT_BUSY)}
    witnesses = {
        "all modes of /proc/stat": _all(modes.values()),
        f"{cpus:.0f} CPUs × time": cpus * (bounds[1] - bounds[0]) / _NS,
    }
    return entry(name, "s", modes, witnesses, floor=CPU_FLOOR_S)


def _cpus_of(run: Mapping[str, Any]) -> float | None:
    cpu = (run.get("environment") or {}).get("cpu")
    return cpu.get("count") if isinstance(cpu, Mapping) else None


def _storage(books: _Books) -> Iterator[Entry]:
    """What processes fetched and dirtied against what the block devices moved."""
    cancelled_name = "io_cancelled_write_bytes"
    for name, process, device, trap in (
        ("bytes read from storage", "io_read_bytes", "disk_read_bytes", _OTHERS),
        ("bytes written to storage", "io_write_bytes", "disk_write_bytes", _METADATA),
    ):
        bounds = books.bounds("processes", process)
        disks = books.entities(device, "disk:")
        if bounds is None or not disks:
            what = "the I/O of all processes was not" if bounds is None else "no block device was"
            yield _missing(name, "B", f"{what} sampled")
            continue
        seen = books.grew("processes", [process], *bounds)
        parts = _whose(books, [process], seen, bounds)
        if process == "io_write_bytes":
            # Counted when a page gets dirty; taken back when its file goes before it is written.
            cancelled = books.grew("processes", [cancelled_name], *bounds)
            parts["cancelled"] = None if cancelled is None else -cancelled
            seen = None if seen is None or cancelled is None else seen - cancelled
        moved = _all(books.grew(disk, [device], *bounds) for disk in disks)
        witnesses = {"sum over processes": seen, "block devices": moved}
        yield entry(name, "B", parts, witnesses, floor=DEVICE_IO_FLOOR_B, trap=trap)


def _seconds(books: _Books, run: Mapping[str, Any]) -> Entry:
    """Stages and the time between them, on the monotonic clock, against the wall clock's view."""
    name, clock = "time of the run", run.get("clock") or {}
    start, end = run.get("started_ns"), run.get("ended_ns")
    drift = clock.get("offset_end_ns"), clock.get("offset_start_ns")
    if start is None or end is None or None in drift:
        return _missing(name, "s", "the run was killed, so its end is not on both clocks")
    parts: dict[str, float | None] = {span.stage: span.seconds for span in books.spans}
    parts["between stages"] = sum(b - a for a, b in books.between(start, end)) / _NS
    witnesses = {
        "stages + between stages": _all(parts.values()),
        "wall clock": (end - start + drift[0] - drift[1]) / _NS,
    }
    return entry(name, "s", parts, witnesses, trap=_overlap(books.spans))


def _whole_run(books: _Books) -> Iterator[Entry]:
    """Stages and the time between them, each attributed, against the raw counter's growth."""
    accounts = [("CPU of the machine", "s", "cpu_busy_seconds", ["machine"])]
    for what, unit, metric in (
        ("bytes read by", "B", "disk_read_bytes"),
        ("bytes written by", "B", "disk_write_bytes"),
        ("energy of", "J", "energy_j"),
    ):
        accounts += [
            (f"{what} {entity}", unit, metric, [entity]) for entity in books.entities(metric)
        ]
    for name, unit, metric, (entity,) in accounts:
        title, bounds = f"{name}, stages and between", books.bounds(entity, metric)
        if bounds is None:
            yield _missing(title, unit, f"there are no two samples of {metric} of {entity}")
            continue
        parts = {
            span.stage: books.grew(entity, [metric], span.start_ns, span.end_ns) or 0.0
            for span in books.spans
        }
        gaps = [books.grew(entity, [metric], *gap) or 0.0 for gap in books.between(*bounds)]
        parts["between stages"] = sum(gaps)
        witnesses = {
            "stages + between stages": sum(parts.values()),
            "whole run": books.raw_growth(entity, metric),
        }
        why = _overlap(books.spans) or "the counter went backwards in between"
        yield entry(title, unit, parts, witnesses, trap=why)


def _windows(books: _Books) -> Iterator[Entry]:
    """Stages and the time between them, each attributed, against the hypervisor's windows."""
    for entity, metric in books.integrated():
        bounds, whole = books.windows(entity, metric)
        parts = {
            span.stage: books.grew(entity, [metric], span.start_ns, span.end_ns) or 0.0
            for span in books.spans
        }
        gaps = [books.grew(entity, [metric], *gap) or 0.0 for gap in books.between(*bounds)]
        parts["between stages"] = sum(gaps)
        witnesses = {"stages + between stages": sum(parts.values()), "all windows": whole}
        title = f"{metric} of {entity}, stages and between"
        why = _overlap(books.spans) or "windows that overlap one another"
        yield entry(title, books.integral_unit(metric), parts, witnesses, trap=why)


def _energy(books: _Books) -> Iterator[Entry]:
    """A GPU's energy counter against the integral of its power, which is sampled apart."""
    for entity in books.entities("energy_j"):
        name = f"energy of {entity}, counter and power"
        bounds = books.bounds(entity, "energy_j")
        if bounds is None or not books.entities("power_instant_w", entity):
            yield _missing(name, "J", f"{entity} has only one witness of its energy")
            continue
        low, high = bounds
        if books.covered(entity, "power_instant_w", low, high) < ENERGY_COVERAGE:
            yield _missing(name, "J", "the samples of power have gaps, so their integral is short")
            continue
        counter = books.grew(entity, ["energy_j"], low, high)
        integral = books.grew(entity, ["power_instant_w"], low, high)
        parts = {span.stage: books.grew(entity, ["energy_j"], span.start_ns, span.end_ns)
                 for span in books.spans}  # fmt: skip
        witnesses = {"energy counter": counter, "integral of power": integral}
        floor = (counter or 0.0) * ENERGY_FLOOR_S * _NS / (high - low)
        why = "the sensor looks at only part of the time, and the counter moves every 100 ms"
        yield entry(name, "J", parts, witnesses, floor=floor, trap=why)


def _all(values: Iterable[float | None]) -> float | None:
    """The sum, or None where one is missing: a sum with a hole is no witness."""
    found = list(values)
    return (
        None if not found or None in found else sum(value for value in found if value is not None)
    )


def _overlap(spans: Sequence[Span]) -> str | None:
    for one, other in pairwise(spans):
        if other.start_ns < one.end_ns:
            return f"stages {one.stage} and {other.stage} overlap, so their sum counts time twice"
    return None


def entry(
    name: str,
    unit: str,
    parts: Mapping[str, float | None],
    witnesses: Mapping[str, float | None],
    *,
    floor: float = 0.0,
    trap: str | None = None,
) -> Entry:
    """Compare two witnesses. ``floor``: below it ``TOLERANCE`` is finer than what can be measured.

    A small quantity whose witnesses are further apart than tolerance and resolution together
    allow does not close either. ``trap``: what is known to set them apart, told where they are.
    """
    (first_name, first), (second_name, second) = witnesses.items()
    if first is None or second is None:
        gone = " and ".join(label for label, value in witnesses.items() if value is None)
        return _missing(name, unit, f"no {gone}", parts, witnesses)
    remainder, larger = first - second, max(abs(first), abs(second))
    apart = abs(remainder)
    closes: bool | None = apart <= TOLERANCE * larger
    reason = None
    if apart > TOLERANCE * (larger + (floor if larger < floor else 0.0)):
        closes, reason = False, f"{first_name} and {second_name} are more than 2 % apart"
        reason = f"{reason}: {trap}" if trap else reason
    elif larger < floor or not larger:
        closes, reason = None, f"less than {floor:,.4g} {unit}: too small to tell"
        reason = reason if larger else "both witnesses are 0: there is nothing to compare"
    return {
        "name": name,
        "unit": unit,
        "parts": dict(parts),
        "witnesses": dict(witnesses),
        "remainder": remainder,
        "remainder_percent": 100.0 * remainder / second if second else None,
        "closes": closes,
        "reason": reason,
    }


def _missing(
    name: str,
    unit: str,
    reason: str,
    parts: Mapping[str, float | None] | None = None,
    witnesses: Mapping[str, float | None] | None = None,
) -> Entry:
    return {
        "name": name,
        "unit": unit,
        "parts": dict(parts or {}),
        "witnesses": dict(witnesses or {}),
        "remainder": None,
        "remainder_percent": None,
        "closes": None,
        "reason": reason,
    }
