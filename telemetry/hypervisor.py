"""The hypervisor's windows on the guest's clock, or the sentence why they are not attributed.

A window is stamped by the ESXi host. How far that clock is from the guest's is told by the host's
own clock, read at the start and the end of a run, and by the load that guest and hypervisor both
saw (``skew``), which is the only one to look at the stamps themselves. vCenter's clock stamps
nothing: that of its host can be off by any time, so it is recorded and not taken instead. Where
the witnesses disagree, or leave more open than the run's limit, the host's windows are dropped, and
what they would have told is absent with that sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from telemetry.derived import BUSY
from telemetry.estimates import MACHINE, guest_signal, rows_of, sharpened
from telemetry.runfolder import RunFolder
from telemetry.samples import Series
from telemetry.segments import SampleSet, read_samples
from telemetry.series import SeriesIndex, select
from telemetry.skew import WITHIN_S, Skew, find_skew
from telemetry.vm_entity import is_seen_from_outside, parsed

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Record = Mapping[str, Any]

CLOCK_LIMIT_S = 2.0
"""Where a run does not say otherwise: a tenth of a window."""
OFFSET, BOUND = "clock_offset_seconds", "clock_bound_seconds"
USED = ("vm_cpu_used_cores", "vm_cpu_usage_percent")
"""What is compared with the guest's CPU, the better one first."""
_NS = 1e9
_HOSTLESS = "it is not known which host made its windows, so that they are on no clock"
_PLACE, _MOVE, _GAP = "placement", "moved", "gap"


@dataclass(frozen=True, kw_only=True)
class HostClock:
    """One host's stamps less the guest's clock, s, at times of the guest's; or why not known.

    ``bound_s``: how far off that may be. ``witness``: who says so, ``esxi:HOST`` or
    ``correlation``.
    """

    host: str
    at_ns: Ints
    offset_s: Floats
    bound_s: float | None
    witness: str | None
    correlation: Skew | None
    refused: str | None = None

    def shift_ns(self, stamps_ns: Ints) -> Ints:
        """What to take from these stamps; linear between two readings."""
        since = (stamps_ns - self.at_ns[0]) / _NS
        offsets = np.interp(since, (self.at_ns - self.at_ns[0]) / _NS, self.offset_s)
        return np.asarray(np.rint(offsets * _NS), dtype=np.int64)

    def to_json(self) -> dict[str, Any]:
        skew = self.correlation
        known = len(self.offset_s) > 0
        return {
            "host": self.host,
            "offset_s": float(self.offset_s[0]) if known else None,
            "offset_end_s": float(self.offset_s[-1]) if known else None,
            "bound_s": self.bound_s,
            "witness": self.witness,
            "correlation": None if skew is None else skew.to_json(),
            "refused": self.refused,
        }


def joined(folder: RunFolder, run: Record) -> tuple[SampleSet, dict[str, Any] | None]:
    """A run's samples on the guest's clock, with estimates, and what is known of the hypervisor.

    Without a vCenter the samples are as they were recorded, and the rest is None.
    """
    samples = read_samples(folder.samples)
    aligned, told = align(samples, run, _events(folder))
    if told is not None:
        aligned = sharpened(aligned, told["vm"])
    return aligned, told


def _events(folder: RunFolder) -> list[dict[str, Any]]:
    """What happened between the run and its vCenter; a run without one imports nothing for it."""
    if not (folder.samples / "vcenter.jsonl").is_file():
        return []
    from telemetry.collectors.vcenter_journal import read_events

    return read_events(folder.samples)


def align(
    samples: SampleSet, run: Record, events: Sequence[Record] = ()
) -> tuple[SampleSet, dict[str, Any] | None]:
    """Move every window of a VM or an ESXi host to the guest's clock, or drop it with the reason.

    ``run``: run.json; ``events``: the lines of ``vcenter.jsonl``. None for a run without a vCenter.
    """
    outside = [one for one in _entities(samples) if is_seen_from_outside(one)]
    absent = any(is_seen_from_outside(series.entity) for series in samples.absent)
    if not outside and not absent and not events:
        return samples, None
    told = _told(run, events, outside)
    clocks = _clocks(samples, outside, told["vm"], _limit_s(run))
    refused = {clock.host: clock.refused for clock in clocks if clock.refused}
    chosen = _of_own_vm(clocks, outside, told["vm"])
    told["clock"] = {"limit_s": _limit_s(run), **(chosen.to_json() if chosen else _NO_CLOCK)}
    told["clock"].pop("refused", None)
    told["clocks"] = [clock.to_json() for clock in clocks]
    told["refused"] = "; ".join(refused.values()) or None
    by_host = {clock.host: clock for clock in clocks}
    told["gaps"] = [_on_guests_clock(gap, by_host) for gap in told["gaps"]]
    return _moved(samples, by_host), told


_NO_CLOCK: dict[str, Any] = dict.fromkeys(("host", "offset_s", "bound_s", "witness", "correlation"))


def _on_guests_clock(gap: dict[str, Any], clocks: Mapping[str, HostClock]) -> dict[str, Any]:
    """A gap between stamps of a host, by the guest's clock."""
    clock = clocks.get(parsed(str(gap.get("entity"))).host or "")
    if clock is None or clock.refused:
        return gap
    edges = np.array([gap["from_ns"], gap["to_ns"]], dtype=np.int64)
    low, high = (edges - clock.shift_ns(edges)).tolist()
    return {**gap, "from_ns": low, "to_ns": high}


def _entities(samples: SampleSet) -> list[str]:
    """The names of all entities, by the table's dictionaries alone."""
    column = samples.table.column("entity")
    if not pa.types.is_dictionary(column.type):
        return sorted(set(column.to_pylist()))
    return sorted({name for chunk in column.chunks for name in chunk.dictionary.to_pylist()})


def _limit_s(run: Record) -> float:
    for settings in ((run.get("recipe") or {}).get("vcenter"), run.get("vcenter")):
        if settings and settings.get("clock_limit_s") is not None:
            return float(settings["clock_limit_s"])
    return CLOCK_LIMIT_S


def _told(run: Record, events: Sequence[Record], outside: Sequence[str]) -> dict[str, Any]:
    """What is known of the hypervisor besides its windows."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        by_kind.setdefault(str(event.get("event")), []).append(dict(event))
    places: dict[str, dict[str, Any]] = {}
    for place in (run.get("placement") or {}).get("vms") or ():
        places.setdefault(place["vm"], dict(place))
    for event in by_kind.get(_PLACE, ()):
        kept = {key: value for key, value in event.items() if key not in {"event", "at_ns", "when"}}
        places.setdefault(kept.get("vm", ""), {}).update(kept)
    connected = by_kind.get("connected", [{}])[-1]
    seen = [name for name in (parsed(one).vm for one in outside) if name]
    return {
        **{key: connected.get(key) for key in ("server", "version", "tls")},
        "vm": next(iter(places), None) or next(iter(seen), None),
        "vms": list(places.values()),
        "moves": _plain(by_kind.get(_MOVE, ())),
        "clock": None,
        "clocks": [],
        "refused": None,
        "gaps": _plain(by_kind.get(_GAP, ())),
        "losses": list(dict.fromkeys(_losses(by_kind))),
        "contention": [],
    }


def _plain(events: Iterable[Record]) -> list[dict[str, Any]]:
    return [{k: v for k, v in one.items() if k != "event"} for one in events]


def _losses(by_kind: Mapping[str, Sequence[Record]]) -> Iterable[str]:
    for event in by_kind.get("lost", ()):
        yield f"vCenter did not answer for a time: {event.get('reason') or 'no reason was told'}"
    for event in by_kind.get("unresolved", ()):
        yield f"counter {event.get('counter')}: {event.get('reason') or 'unknown to this vCenter'}"
    for event in by_kind.get("backfill", ())[-1:]:
        if event.get("failure"):
            yield f"the last windows were not fetched: {event['failure']}"


def _of_own_vm(
    clocks: Sequence[HostClock], outside: Sequence[str], vm: str | None
) -> HostClock | None:
    """The clock of the host that this VM is on, the first where there were several."""
    own = {seen.host for seen in map(parsed, outside) if seen.vm == vm and vm}
    return next((one for one in clocks if one.host in own), clocks[0] if clocks else None)


def _clocks(
    samples: SampleSet, outside: Sequence[str], vm: str | None, limit_s: float
) -> list[HostClock]:
    """One for each host that has windows."""
    hosts = sorted({host for one in outside if (host := parsed(one).host)})
    small = select(
        samples,
        lambda entity, metric: (
            metric in {OFFSET, BOUND}
            or (metric in USED and parsed(entity).vm == vm)
            or (entity == MACHINE and metric in BUSY)
        ),
    )
    index = SeriesIndex(small)
    return [
        _judged(
            host,
            _readings(index, f"esxi:{host}"),
            _skew(index, small, f"vm:{vm}@{host}"),
            limit_s,
        )
        for host in hosts
    ]


@dataclass(frozen=True)
class _Readings:
    """A clock's offsets in time order, and how well each is known (s; NaN: nothing says it)."""

    at_ns: Ints
    offset_s: Floats
    bounds_s: Floats

    @property
    def bound_s(self) -> float | None:
        """The widest of the bounds."""
        known = self.bounds_s[np.isfinite(self.bounds_s)]
        return float(known.max()) if len(known) else None

    def within(self, limit_s: float) -> _Readings:
        """Those that are known well enough; all of them where none is. One slow answer of a busy
        vCenter says nothing against the others."""
        good = ~(self.bounds_s > limit_s)
        if not good.any():
            return self
        return _Readings(self.at_ns[good], self.offset_s[good], self.bounds_s[good])

    @property
    def jump_s(self) -> float:
        """The largest change between two readings that their bounds do not explain."""
        bounds = np.nan_to_num(self.bounds_s)
        changes = np.abs(np.diff(self.offset_s)) - bounds[1:] - bounds[:-1]
        return float(changes.max(initial=0.0))


def _readings(index: SeriesIndex, entity: str) -> _Readings | None:
    """None where the clock was not read."""
    if (entity, OFFSET) not in index:
        return None
    points = index.points(entity, OFFSET)
    kept = np.isfinite(points.values)
    if not kept.any():
        return None
    at_ns, first = np.unique(points.ts_ns[kept], return_index=True)
    bounds = np.full(len(at_ns), np.nan)
    if (entity, BOUND) in index:
        known = index.points(entity, BOUND)
        by_time = dict(zip(known.ts_ns.tolist(), known.values.tolist(), strict=True))
        bounds = np.array([by_time.get(at, np.nan) for at in at_ns.tolist()])
    return _Readings(at_ns, points.values[kept][first], bounds)


def _skew(index: SeriesIndex, samples: SampleSet, entity: str) -> Skew | None:
    """What guest and hypervisor say together; None where the VM had no windows on this host."""
    metric = next((one for one in USED if (entity, one) in index), None)
    if metric is None:
        return None
    guest = guest_signal(index, [(MACHINE, mode) for mode in BUSY])
    windows = rows_of(index, samples, entity, metric)
    if guest is None:
        return Skew(offset_s=None, reason="the guest's CPU was not recorded")
    return find_skew(guest, windows.start_ns, windows.end_ns, windows.level)


def _judged(host: str, own: _Readings | None, skew: Skew | None, limit_s: float) -> HostClock:
    """Weigh the witnesses of one host's clock."""
    empty = np.empty(0, np.int64), np.empty(0)
    clock = HostClock(
        host=host, at_ns=empty[0], offset_s=empty[1], bound_s=None, witness=None, correlation=skew
    )
    if own is None:
        return _by_the_load(clock, limit_s)
    good = own.within(limit_s)
    jump_s, own = max(own.jump_s, good.jump_s), good  # a wide reading hides no step beside it
    clock = replace(
        clock,
        at_ns=own.at_ns,
        offset_s=own.offset_s,
        bound_s=own.bound_s,
        witness=f"esxi:{host}",
    )
    middle = float(np.median(own.offset_s))
    whose = f"the clock of {host}"
    if own.bound_s is None:
        why = f"nothing says how well {whose} is known"
    elif own.bound_s > limit_s:
        why = f"{whose} is known to {own.bound_s:.3g} s only; the limit is {limit_s:g} s"
    elif jump_s > limit_s:
        why = (
            f"{whose} was set during the run: its offset changed by {jump_s:.3g} s between two "
            f"readings, beyond what their bounds leave open"
        )
    elif skew is not None and skew.best_s is not None and skew.speaks_against(middle, limit_s):
        why = (
            f"{whose} is {middle:+.2f} s from the guest's, but by the load that guest and VM both "
            f"saw the windows are stamped {skew.best_s:+.2f} s: they are further apart than the "
            f"limit of {limit_s:g} s"
        )
    else:
        return clock
    return replace(clock, refused=why)


def _by_the_load(clock: HostClock, limit_s: float) -> HostClock:
    """A host whose clock could not be read. vCenter's does not stand for it: it stamps nothing."""
    unread, skew = f"the clock of {clock.host} could not be read", clock.correlation
    if skew is None or skew.offset_s is None:
        why = "" if skew is None else f": {skew.reason}"
        told = f"{unread}, vCenter's does not stamp the windows, and the load does not tell{why}"
        return replace(clock, refused=told)
    bound_s = WITHIN_S if skew.width_s is None else skew.width_s / 2
    clock = replace(
        clock,
        at_ns=np.zeros(1, np.int64),
        offset_s=np.array([skew.offset_s]),
        bound_s=bound_s,
        witness="correlation",
    )
    if bound_s <= limit_s:
        return clock
    why = f"{unread}, and the load tells it to {bound_s:.3g} s only; the limit is {limit_s:g} s"
    return replace(clock, refused=why)


def _moved(samples: SampleSet, clocks: Mapping[str, HostClock]) -> SampleSet:
    """The samples with every window on the guest's clock, or absent where its clock is refused."""
    windows = {name for name, metric in samples.metrics.items() if metric.kind == "window"}

    def outside(entity: str, metric: str) -> bool:
        return is_seen_from_outside(entity) and metric in windows

    rest = select(samples, lambda entity, metric: not outside(entity, metric)).table
    seen = select(samples, outside)
    tables, absent = [rest], {(one.entity, one.metric.name): one for one in samples.absent}
    for entity in sorted(set(seen.table.column("entity").to_pylist())):
        mine = _of(seen, entity)
        clock = clocks.get(parsed(entity).host or "")
        refused = _HOSTLESS if clock is None else clock.refused
        if clock is None or refused:
            for name in sorted(set(mine.column("metric").to_pylist())):
                series = Series(entity=entity, metric=samples.metrics[name], reason=refused)
                absent[entity, name] = series
            continue
        tables.append(_shifted(mine, clock))
    table = pa.concat_tables(tables)
    return replace(samples, table=table.unify_dictionaries(), absent=list(absent.values()))


def _of(samples: SampleSet, entity: str) -> pa.Table:
    return select(samples, lambda one, _: one == entity).table


def _shifted(table: pa.Table, clock: HostClock) -> pa.Table:
    for name in ("ts_ns", "start_ns"):
        place, column = table.schema.get_field_index(name), table.column(name)
        stamps = np.asarray(column.fill_null(0).to_numpy(), dtype=np.int64)
        moved = pa.array(stamps - clock.shift_ns(stamps), mask=np.asarray(column.is_null()))
        table = table.set_column(place, table.schema.field(name), moved)
    return table
