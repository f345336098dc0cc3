"""The ledger: what two witnesses, measured apart, say of the same quantity, and what remains.

Idle time is measured like everything else and is never what is left over. What each account shows,
and which traps it knows, is in ``docs/profile.md``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from telemetry.derived import BUSY, NOT_BUSY, STEAL, TREE
from telemetry.ledger_books import Books
from telemetry.ledger_entry import Entry, all_of, entry, missing
from telemetry.runfolder import Span
from telemetry.segments import SampleSet

CPU_FLOOR_S = 1.0
"""Below it the two ticks of 10 ms that /proc rounds off per process are over the tolerance."""
TREE_IO_FLOOR_B = 8 << 20
"""Below it the pages of a process that nobody waited for are over the tolerance."""
DEVICE_IO_FLOOR_B = 64 << 20
"""Below it a file system's own metadata and journal are over the tolerance."""
ENERGY_FLOOR_S = 10.0
"""The energy counter of a GPU moves about every 100 ms, which is 1 % of this time."""
ENERGY_COVERAGE = 0.99
ENERGY_ALONE_NS = 500_000_000
"""At the end the counter alone is asked until it moves, for 0.3 s and what its answers take."""
_NS = 1e9

_METADATA = (
    "devices also write the file system's metadata and journal, which fsync writes past all "
    "counts of processes, and late what was written before"
)
_OTHERS = "a device is also read for the file system's metadata and by other machines that share it"
_STEAL_UNSEEN = " (steal is not measured here)"
_NO_CPUS = "the number of CPUs is unknown"
_REST = "other processes"
_UNSEEN = "not sampled"
_UNSAMPLED = "no sample says anything of"


def close_ledger(samples: SampleSet, spans: Sequence[Span], run: Mapping[str, Any]) -> list[Entry]:
    """Every account of the run: name, unit, parts, two witnesses, remainder and verdict.

    ``remainder`` is the first witness less the second, ``remainder_percent`` its share of the
    second. ``closes`` is None where a witness is missing or the quantity too small to tell, and
    then ``reason`` says so. ``run`` is ``run.json``.
    """
    books = Books(samples, spans)
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


def _trees(books: Books, run: Mapping[str, Any]) -> Iterator[Entry]:
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
            witnesses = {
                "sampled process tree": all_of(parts.values()),
                "wait4 rusage": all_of(told),
            }
            yield entry(name, unit, parts, witnesses, floor=floor)


def _processes(books: Books, run: Mapping[str, Any]) -> Entry:
    """All processes, one by one, against the time in which the CPUs were not idle.

    Most kernels count busy time by ticks and idle time by the clock. Work in step with the tick is
    then seen too seldom or too often, so what was measured by the clock is the better witness.
    Interrupts belong to no process.
    """
    name = "CPU of all processes"
    bounds = books.bounds("processes", TREE[0])
    cpus = _cpus(books, run, bounds)
    if bounds is None or not cpus:
        what = "the processes were not sampled" if bounds is None else _NO_CPUS
        return missing(name, "s", what)
    processes = books.grew("processes", TREE, *bounds)
    parts = _whose(books, TREE, processes, bounds)
    interrupts = [mode for mode in BUSY if "irq" in mode]
    not_busy, stolen, unseen = _not_busy(books)
    otherwise = books.grew("machine", [*not_busy, *interrupts], *bounds)
    time_s = cpus * (bounds[1] - bounds[0]) / _NS
    witnesses = {
        "sum over processes": processes,
        f"{cpus:.4g} CPUs × time - idle, iowait, {stolen}interrupts of /proc/stat{unseen}": (
            None if otherwise is None else time_s - otherwise
        ),
    }
    return _shared(entry(name, "s", parts, witnesses, floor=CPU_FLOOR_S), books)


def _whose(
    books: Books, metrics: Sequence[str], all_together: float | None, bounds: tuple[int, int]
) -> dict[str, float | None]:
    """Which processes took how much: the watched trees, none of them in another, and the rest.

    A tree whose samples say nothing has None, and is in the rest. Where stages overlap, trees may
    have processes in common, and the rest is not known.
    """
    own = (one for one in ("runner", "recorder") if one in books.entities(metrics[0]))
    watched = [*books.entities(metrics[0], "stage:"), *own]
    trees = {entity: books.grew(entity, metrics, *bounds) for entity in watched}
    if all_together is None or _overlap(books.spans):
        return {**trees, _REST: None}
    rest = all_together - (_known(trees.values()) or 0.0)
    return {**trees, _REST: rest}


def _machine(books: Books, run: Mapping[str, Any]) -> Entry:
    """All modes of /proc/stat against the CPUs and the recorder's clock: nothing is left out."""
    name = "CPU time of the machine"
    bounds = books.bounds("machine", BUSY[0])
    cpus = _cpus(books, run, bounds)
    if bounds is None or not cpus:
        what = "the machine was not sampled" if bounds is None else _NO_CPUS
        return missing(name, "s", what)
    not_busy, _, unseen = _not_busy(books)
    modes = {mode: books.grew("machine", [mode], *bounds) for mode in (*BUSY, *not_busy)}
    witnesses = {
        f"all modes of /proc/stat{unseen}": all_of(modes.values()),
        f"{cpus:.4g} CPUs × time": cpus * (bounds[1] - bounds[0]) / _NS,
    }
    return entry(name, "s", modes, witnesses, floor=CPU_FLOOR_S)


def _not_busy(books: Books) -> tuple[tuple[str, ...], str, str]:
    """Modes in which a CPU does not work, and what a witness says of steal.

    Where the collector found steal not to be measured, stolen time is within the other modes.
    """
    if books.is_absent("machine", STEAL):
        return tuple(mode for mode in NOT_BUSY if mode != STEAL), "", _STEAL_UNSEEN
    return NOT_BUSY, "steal, ", ""


def _cpus(books: Books, run: Mapping[str, Any], bounds: tuple[int, int] | None) -> float | None:
    """CPUs in the mean of that time: a VM may get more, or lose some, while it runs."""
    mean = books.mean("machine", "cpu_count", *bounds) if bounds else None
    if mean is not None:
        return mean
    cpu = (run.get("environment") or {}).get("cpu")
    return cpu.get("count") if isinstance(cpu, Mapping) else None


def _storage(books: Books) -> Iterator[Entry]:
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
            yield missing(name, "B", f"{what} sampled")
            continue
        seen = books.grew("processes", [process], *bounds)
        parts = _whose(books, [process], seen, bounds)
        if process == "io_write_bytes":
            # Counted when a page gets dirty; taken back when its file goes before it is written.
            cancelled = books.grew("processes", [cancelled_name], *bounds)
            parts["cancelled"] = None if cancelled is None else -cancelled
            seen = None if seen is None or cancelled is None else seen - cancelled
        moved = all_of(books.grew(disk, [device], *bounds) for disk in disks)
        witnesses = {"sum over processes": seen, "block devices": moved}
        made = entry(name, "B", parts, witnesses, floor=DEVICE_IO_FLOOR_B, trap=trap)
        yield _shared(made, books)


def _seconds(books: Books, run: Mapping[str, Any]) -> Entry:
    """Stages and the time between them, on the monotonic clock, against the wall clock's view."""
    name, clock = "time of the run", run.get("clock") or {}
    start, end = run.get("started_ns"), run.get("ended_ns")
    drift = clock.get("offset_end_ns"), clock.get("offset_start_ns")
    if start is None or end is None or None in drift:
        return missing(name, "s", "the run was killed, so its end is not on both clocks")
    parts: dict[str, float | None] = {span.stage: span.seconds for span in books.spans}
    parts["between stages"] = sum(b - a for a, b in books.between(start, end)) / _NS
    witnesses = {
        "stages + between stages": all_of(parts.values()),
        "wall clock": (end - start + drift[0] - drift[1]) / _NS,
    }
    return entry(name, "s", parts, witnesses, trap=_overlap(books.spans))


def _whole_run(books: Books) -> Iterator[Entry]:
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
            yield missing(title, unit, f"there are no two samples of {metric} of {entity}")
            continue
        parts = _stages_and_between(books, entity, metric, bounds)
        witnesses = {
            "stages + between stages": _known(parts.values()),
            "whole run": books.raw_growth(entity, metric),
        }
        why = _overlap(books.spans) or "the counter went backwards in between"
        yield _noted(entry(title, unit, parts, witnesses, trap=why), _UNSAMPLED)


def _windows(books: Books) -> Iterator[Entry]:
    """Stages and the time between them, each attributed, against the hypervisor's windows."""
    for entity, metric in books.integrated():
        bounds, whole = books.windows(entity, metric)
        parts = _stages_and_between(books, entity, metric, bounds)
        witnesses = {"stages + between stages": _known(parts.values()), "all windows": whole}
        title = f"{metric} of {entity}, stages and between"
        why = _overlap(books.spans) or "windows that overlap one another"
        made = entry(title, books.integral_unit(metric), parts, witnesses, trap=why)
        yield _noted(made, _UNSAMPLED)


def _stages_and_between(
    books: Books, entity: str, metric: str, bounds: tuple[int, int]
) -> dict[str, float | None]:
    """What each stage held of a series, and the time between them; None where nothing says it."""
    parts = {
        span.stage: books.grew(entity, [metric], span.start_ns, span.end_ns) for span in books.spans
    }
    gaps = [books.grew(entity, [metric], *gap) for gap in books.between(*bounds)]
    parts["between stages"] = _known(gaps) if gaps else 0.0
    return parts


def _known(values: Iterable[float | None]) -> float | None:
    """The sum of what was measured; None where nothing was."""
    found = [value for value in values if value is not None]
    return sum(found) if found else None


def _noted(made: Entry, note: str, but: Collection[str] = ()) -> Entry:
    """The account, with a ``note`` in its reason of the parts that were not measured."""
    parts = (part for part, value in made["parts"].items() if value is None)
    gone = ", ".join(part for part in parts if part not in but)
    if not gone:
        return made
    reasons = (made["reason"], f"{note}: {gone}")
    return {**made, "reason": "; ".join(one for one in reasons if one)}


def _shared(made: Entry, books: Books) -> Entry:
    """The account, with why parts of it are not known, the rest of the processes among them."""
    why = _overlap(books.spans)
    if why is None:
        return _noted(made, _UNSEEN)
    made = _noted(made, _UNSEEN, but=(_REST,))
    why = f"{why}, and what other processes did cannot be told"
    return {**made, "reason": "; ".join(one for one in (made["reason"], why) if one)}


def _energy(books: Books) -> Iterator[Entry]:
    """A GPU's energy counter against the integral of its power, which is sampled apart."""
    for entity in books.entities("energy_j"):
        name = f"energy of {entity}, counter and power"
        bounds = _both_asked(books, entity)
        if bounds is None or not books.entities("power_instant_w", entity):
            yield missing(name, "J", f"{entity} has only one witness of its energy")
            continue
        low, high = bounds
        if books.covered(entity, "power_instant_w", low, high) < ENERGY_COVERAGE:
            yield missing(name, "J", "the samples of power have gaps, so their integral is short")
            continue
        counter = books.grew(entity, ["energy_j"], low, high)
        integral = books.grew(entity, ["power_instant_w"], low, high)
        parts = {span.stage: books.grew(entity, ["energy_j"], span.start_ns, span.end_ns)
                 for span in books.spans}  # fmt: skip
        witnesses = {"energy counter": counter, "integral of power": integral}
        floor = (counter or 0.0) * ENERGY_FLOOR_S * _NS / (high - low)
        why = "the sensor looks at only part of the time, and the counter moves every 100 ms"
        yield _noted(entry(name, "J", parts, witnesses, floor=floor, trap=why), _UNSAMPLED)


def _both_asked(books: Books, entity: str) -> tuple[int, int] | None:
    """From the counter's first sample to its last, without the end where it was asked alone."""
    counter, power = (books.bounds(entity, one) for one in ("energy_j", "power_instant_w"))
    if counter is None or power is None:
        return counter
    (low, high), (_, alone) = counter, power
    is_end = low < alone <= high <= alone + ENERGY_ALONE_NS
    return low, alone if is_end else high


def _overlap(spans: Sequence[Span]) -> str | None:
    for one, other in pairwise(spans):
        if other.start_ns < one.end_ns:
            return f"stages {one.stage} and {other.stage} overlap, so their sum counts time twice"
    return None
