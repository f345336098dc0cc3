"""What a day at 10 Hz costs to record, to keep and to finish, by a moved clock.

The series are those that the guest's collector finds here, beside one stage; their values are made
up, and each second has one look at what is looked at once a second. They go through the recorder's
own buffer and writer, a flush for each second, and ``finish`` makes profile and report of them in a
process of its own. Two hours beside it tell what grows with time.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from telemetry.clock import Clock
from telemetry.collectors.guest import GuestCollector
from telemetry.runfolder import RunFolder
from telemetry.samples import Samples, Series, samples_at
from tests.telemetry.test_day import HZ, START_NS, TIME, drive, finished, move_clocks, write_run

HOURS = (2, 24)
_DRAWN = 64
"""Rows of made-up values, taken in turns: to draw each anew would take longer than to write it."""


@dataclass(kw_only=True)
class MadeGuest:
    """Values for the series of a guest collector, the slow ones once a second."""

    series: Sequence[Series]
    slow_periods: dict[str, float]
    name: str = "guest"
    period_s: float = 1 / HZ
    _looks: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        chance, count = random.Random(7), len(self.series)
        self._drawn = [[chance.random() * 1e6 for _ in range(count)] for _ in range(_DRAWN)]
        self._values = [0.0] * count
        self._counts = [one.metric.kind == "counter" for one in self.series]
        self._fast = [number for number, one in enumerate(self.series) if not self._is_slow(one)]

    def _is_slow(self, one: Series) -> bool:
        names = (one.metric.name, f"{one.entity} {one.metric.name}")
        return any(name in self.slow_periods for name in names)

    def open(self) -> Sequence[Series]:
        return self.series

    def sample(self) -> Samples:
        due = self._fast if self._looks % HZ else range(len(self.series))
        drawn = self._drawn[self._looks % _DRAWN]
        self._looks += 1
        for number in due:
            before = self._values[number] if self._counts[number] else 0.0
            self._values[number] = before + drawn[number]
        series, values = zip(*((self.series[n], self._values[n]) for n in due), strict=True)
        return samples_at(START_NS + TIME.ns, series, values)

    def close(self) -> None:
        pass


def guest() -> MadeGuest:
    """The series that this machine has, with a stage."""
    stage = "stage:training"
    one = GuestCollector(clock=Clock(offset_ns=0), period_s=1 / HZ, folder=Path.cwd())
    found = list(one.open())
    one.watch(stage, os.getpid())
    found += one.series_of(stage)
    one.close()
    there = [series for series in found if series.reason is None]
    return MadeGuest(series=there, slow_periods=one.slow_periods)


def main() -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        move_clocks(patch)
        for hours in HOURS:
            print(measured(Path(name), hours), flush=True)


def measured(out: Path, hours: int) -> str:
    folder, made = RunFolder(out / f"20261124-0200{hours:02d}-3fa9c1"), guest()
    folder.samples.mkdir(parents=True)
    held_mb = drive(folder.samples, hours, made)
    write_run(folder, hours)
    files = list(folder.samples.iterdir())
    size_mb = sum(file.stat().st_size for file in files) / 1e6
    begin = time.perf_counter()
    told = finished(folder)
    took_s = time.perf_counter() - begin
    report_mb = folder.report_html.stat().st_size / 1e6
    return (
        f"{hours} h, {len(made.series)} series: {size_mb:.0f} MB on disk in {len(files)} files; "
        f"the process that records holds {held_mb[0]:.0f} MB after the first hour and "
        f"{held_mb[-1]:.0f} MB after the last; finished in {took_s:.1f} s with "
        f"{told['peak_mb'] / 1e3:.2f} GB at the most, report {report_mb:.2f} MB"
    )


if __name__ == "__main__":
    main()
