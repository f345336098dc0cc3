"""A run while it goes: its stages and main series as they stand at the last flush.

It reads what the recorder has on disk and nothing else, so it works for a run that another process
started, and costs that run nothing. The figures are for looking on: rates between the last two
flushes, no coverage, of the hypervisor's windows the newest. What counts is the profile.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from telemetry.runfolder import RunFolder
from telemetry.tail import Fresh, Tail
from telemetry.watch_series import MAIN, Labels, Main, labels_of
from telemetry.watch_windows import Windows

HISTORY = 60
"""Values of a series that are kept to be drawn: a minute at the usual refresh."""
LEAST_S = 0.5
"""A rate is taken over this time at least: one clock tick between two samples is no rate."""
STALE_PERIODS, STALE_S = 3.0, 5.0
"""A series without a sample for so long is not shown any more."""
STALE_WINDOW_S = 900.0
"""A window comes with the next question to vCenter, a quarter of an hour late at most."""
GIVE_UP_S = 60.0
"""A run of which nothing is written for so long has lost its recorder and its runner."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """One of the main series now. ``history``: its last values, one per refresh.

    ``ts_ns``: when it was sampled, on the run's clock; of a ``window`` of the hypervisor its end.
    """

    main: Main
    labels: Mapping[str, str]
    value: float
    ts_ns: int
    window: bool = False
    history: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run at one moment. ``now_ns``: of the newest sample, on the run's clock."""

    record: Mapping[str, Any]
    values: tuple[Value, ...]
    now_ns: int
    absent: Mapping[tuple[str, str], str]

    @property
    def ended(self) -> bool:
        return bool(self.record["status"] != "running")

    @property
    def stage(self) -> str:
        """The stage that goes on; "" between stages."""
        going = (one["name"] for one in self.record["stages"] if one["status"] == "running")
        return next(going, "")

    def stage_at(self, ts_ns: int) -> str:
        """The stage that this time of the run's clock lies in; "" where it lies in none."""
        for stage in self.record["stages"]:
            start_ns, end_ns = stage.get("start_ns"), stage.get("end_ns")
            if end_ns is None and stage["status"] == "running":
                end_ns = ts_ns
            if start_ns is not None and end_ns is not None and start_ns < ts_ns <= end_ns:
                return str(stage["name"])
        return ""

    @property
    def seconds(self) -> float:
        """Time of the run so far."""
        end_ns = self.record.get("ended_ns") or self.now_ns
        return max(0.0, float(end_ns - self.record["started_ns"]) / 1e9)

    def of(self, name: str, **labels: str) -> list[Value]:
        """The values of a main series that have these labels."""
        return [
            one
            for one in self.values
            if one.main.name == name and labels.items() <= dict(one.labels).items()
        ]

    def total(self, name: str, **labels: str) -> float | None:
        """Their sum, None where there are none."""
        found = self.of(name, **labels)
        return sum(one.value for one in found) if found else None

    def stage_seconds(self, stage: Mapping[str, Any]) -> float | None:
        """Time of a stage until its end, or so far."""
        if stage.get("start_ns") is None:
            return None
        end_ns = stage.get("end_ns") or self.now_ns
        return max(0.0, float(end_ns - stage["start_ns"]) / 1e9)


@dataclass(kw_only=True)
class _Last:
    """The newest sample of a series, the one that its rate counts from, and the rate."""

    ts_ns: int
    value: float
    base_ns: int
    base: float
    rate: float | None = None

    def take(self, ts_ns: int, value: float) -> None:
        """Take a newer sample in; a counter that went back begins anew."""
        if ts_ns < self.ts_ns:
            return
        self.ts_ns, self.value = ts_ns, value
        if value < self.base:
            self.rate, self.base_ns, self.base = None, ts_ns, value
        elif ts_ns - self.base_ns >= LEAST_S * 1e9:
            self.rate = (value - self.base) / ((ts_ns - self.base_ns) / 1e9)
            self.base_ns, self.base = ts_ns, value


class Live:
    """Follows one run. ``update()`` reads what is new; not safe for several threads."""

    def __init__(self, folder: RunFolder, main: Sequence[Main] = MAIN) -> None:
        self.folder = folder
        self._main = main
        self._tail = Tail(folder.samples)
        self._windows = Windows()
        self._last: dict[tuple[str, str], _Last] = {}
        self._unwanted: set[tuple[str, str]] = set()
        self._parts: dict[str, dict[Labels, list[tuple[str, str]]]] = {one.name: {} for one in main}
        self._history: dict[tuple[str, Labels], deque[float]] = {}
        self._newest_ns = 0
        self._record: dict[str, Any] = {}
        self._record_at: tuple[int, int, int] | None = None

    def update(self) -> bool:
        """Read on; whether anything is new. Raises what ``RunFolder.read`` raises."""
        new = self._read_record()
        for fresh in self._tail.read():
            new |= len(fresh.ts_ns) > 0
            self._take(fresh)
        return new

    def snapshot(self) -> Snapshot:
        """How the run stands at the last update."""
        now_ns = max(self._newest_ns, self._record["started_ns"])
        return Snapshot(
            record=self._record,
            values=tuple(self._values(now_ns)),
            now_ns=now_ns,
            absent=self._tail.absent,
        )

    def _read_record(self) -> bool:
        stat = self.folder.run_json.stat()
        at = stat.st_ino, stat.st_mtime_ns, stat.st_size
        if at == self._record_at:
            return False
        self._record, self._record_at = self.folder.read(), at
        return True

    def _take(self, fresh: Fresh) -> None:
        """The newest row of each series that is wanted."""
        many = max(1, len(fresh.metrics))
        keys = fresh.entity * many + fresh.metric
        # The last row of each key: rows of one series are in the order of time.
        found, places = np.unique(keys[::-1], return_index=True)
        rows = len(keys) - 1 - places
        for key, row in zip(found.tolist(), rows.tolist(), strict=True):
            name = fresh.entities[key // many], fresh.metrics[key % many]
            ts_ns, value = int(fresh.ts_ns[row]), float(fresh.value[row])
            window = self._is_window(name)
            if window:
                self._windows.take(name[0], ts_ns)
            else:
                self._windows.read_clock(*name, value)
            if name in self._unwanted:
                continue
            if name not in self._last:
                if not self._place(name):
                    self._unwanted.add(name)
                    continue
                first = int(np.argmax(keys == key))
                base_ns, base = int(fresh.ts_ns[first]), float(fresh.value[first])
                self._last[name] = _Last(ts_ns=base_ns, value=base, base_ns=base_ns, base=base)
            self._last[name].take(ts_ns, value)
            if not window:
                self._newest_ns = max(self._newest_ns, ts_ns)

    def _place(self, name: tuple[str, str]) -> bool:
        """Find the main series that a series is of; whether there is any."""
        found = False
        for main in self._main:
            labels = labels_of(main, *name)
            if labels is not None:
                self._parts[main.name].setdefault(labels, []).append(name)
                found = True
        return found

    def _is_window(self, name: tuple[str, str]) -> bool:
        metric = self._tail.metrics.get(name[1])
        return metric is not None and metric.kind == "window"

    def _ts_ns(self, name: tuple[str, str]) -> int:
        """When a series was sampled last, on the run's clock."""
        ts_ns = self._last[name].ts_ns
        return self._windows.end_ns(name[0], ts_ns) if self._is_window(name) else ts_ns

    def _values(self, now_ns: int) -> Iterator[Value]:
        for main in self._main:
            for labels, names in sorted(self._parts[main.name].items()):
                if len(names) < len(main.metrics):
                    continue  # of a sum a part is not there
                parts = [self._last[name] for name in names]
                values = [one.rate if main.how == "rate" else one.value for one in parts]
                known = [one for one in values if one is not None and np.isfinite(one)]
                ts_ns = min(self._ts_ns(name) for name in names)
                if len(known) < len(values) or self._is_over(main, names[0], ts_ns, now_ns):
                    continue
                value = sum(known) * main.scale
                history = self._history.setdefault((main.name, labels), deque(maxlen=HISTORY))
                if main.title:
                    history.append(value)
                yield Value(
                    main=main,
                    labels=dict(labels),
                    value=value,
                    ts_ns=ts_ns,
                    window=self._is_window(names[0]),
                    history=tuple(history),
                )

    def _is_over(self, main: Main, name: tuple[str, str], ts_ns: int, now_ns: int) -> bool:
        """Whether a series is not shown any more: nothing came for long, or its VM has moved."""
        if main.how == "total":
            return False
        limit_s = max(STALE_S, STALE_PERIODS * self._tail.period_s(*name))
        if self._is_window(name):
            if self._windows.is_left(name[0], ts_ns):
                return True
            limit_s = STALE_WINDOW_S
        return (now_ns - ts_ns) / 1e9 > limit_s


def follow(
    live: Live,
    *,
    every_s: float = 1.0,
    give_up_s: float = GIVE_UP_S,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[Snapshot]:
    """The run at every refresh at which something is new, until it has ended.

    Raises TimeoutError if nothing at all is written for ``give_up_s``: it was killed.
    """
    news_s = due_s = monotonic()
    while True:
        if live.update():
            news_s = monotonic()
            snapshot = live.snapshot()
            yield snapshot
            if snapshot.ended:
                return
        elif monotonic() - news_s > give_up_s:
            raise TimeoutError(
                f"nothing was written of this run for {give_up_s:g} s: whoever ran it is gone "
                f"(the next stagescope run in its folder ends its record)"
            )
        due_s = max(due_s + every_s, monotonic())
        sleep(max(0.0, due_s - monotonic()))
