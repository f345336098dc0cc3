"""Both sides of a comparison on one time axis, as drawings that need no script."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median_low
from typing import Any

import numpy as np
import numpy.typing as npt

from telemetry.attribution import every_series, share, stretches_of
from telemetry.hypervisor import joined
from telemetry.reference import Reference
from telemetry.report_html import Html, human, tag
from telemetry.runfolder import RunFolder

BINS = 300
WIDTH, LEFT, RIGHT = 1000, 110, 20
ROW, HEIGHT = 16, 110
_LABEL = 70
"""What a bar's label takes, in the units of the drawing."""
_STEPS_S = (
    0.1,
    0.2,
    0.5,
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    14400,
    43200,
)
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Drawn:
    """A chart: the levels of all entities that match, added.

    ``in_turn``: there may be one of them at a time, as of a VM that moves to another host.
    """

    title: str
    entity: str
    metric: str
    unit: str
    in_turn: bool = False


DRAWN = (
    Drawn("CPU of the machine", "machine", "cpu_busy_seconds", "cores"),
    Drawn("Memory of the machine, used", "machine", "mem_used_bytes", "B"),
    Drawn("Disks, read", "disk:.+", "disk_read_bytes", "B/s"),
    Drawn("Disks, written", "disk:.+", "disk_write_bytes", "B/s"),
    Drawn("GPU power", "gpu:.+", "power_instant_w", "W"),
    Drawn("CPU used, by the hypervisor", "vm:.+", "vm_cpu_used_cores", "cores", in_turn=True),
)


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The middle one of a side's runs: its length and what is drawn of it, NaN in gaps."""

    run_id: str
    seconds: float
    lines: dict[str, Floats]


def timeline(folders: Sequence[RunFolder]) -> Timeline | None:
    """The run of middle length; None for a published profile, which holds no series."""
    if not folders:
        return None
    took = {folder: _length_ns(folder) for folder in folders}
    folder = next(one for one in folders if took[one] == median_low(took.values()))
    run = folder.read()
    start, end = run["started_ns"], run["started_ns"] + took[folder]
    samples, _ = joined(folder, run)
    edges = np.linspace(start, end, BINS + 1).astype(np.int64)
    lines: dict[str, Floats] = {}
    for entity, metric, points, period_s in every_series(samples):
        for drawn in DRAWN:
            if metric.name == drawn.metric and re.fullmatch(drawn.entity, entity):
                stretches = stretches_of(points, metric, period_s)
                parts = [share(stretches, int(a), int(b)) for a, b in pairwise(edges)]
                levels = np.array([np.nan if part is None else part.mean for part in parts])
                before = lines.get(drawn.title)
                if before is not None:
                    levels = in_turn(before, levels) if drawn.in_turn else before + levels
                lines[drawn.title] = levels
    return Timeline(run_id=run["run_id"], seconds=took[folder] / 1e9, lines=lines)


def in_turn(line: Floats, levels: Floats) -> Floats:
    """The sum of what there is; NaN where neither is."""
    both = np.stack([line, levels])
    return np.where(np.isnan(both).all(axis=0), np.nan, np.nansum(both, axis=0))


def _length_ns(folder: RunFolder) -> int:
    run = folder.read()
    ends = [stage["end_ns"] for stage in run["stages"] if stage.get("end_ns")]
    return int(max([*ends, run["started_ns"] + 1]) - run["started_ns"])


def drawings(a: Reference, b: Reference, lines: Sequence[Timeline | None]) -> list[Html]:
    """The stages of both sides as bars, then what was sampled, all on one axis."""
    sides = (a, b)
    ends = [s.start_s + s.duration.median for one in sides for s in one.stages]
    seconds = max([*ends, *(line.seconds for line in lines if line is not None), 0.1])
    axis = _Axis(seconds)
    charts = [_bars(axis, sides)]
    for drawn in DRAWN:
        found = [None if one is None else one.lines.get(drawn.title) for one in lines]
        if any(levels is not None for levels in found):
            lengths = [one.seconds if one is not None else 0.0 for one in lines]
            charts.append(_chart(axis, drawn, found, lengths))
    return charts


@dataclass(frozen=True)
class _Axis:
    seconds: float

    def x(self, at_s: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * at_s / self.seconds

    def ticks(self) -> list[float]:
        wanted = self.seconds / 9
        step = next((one for one in _STEPS_S if one >= wanted), wanted)
        return [step * number for number in range(int(self.seconds / step) + 1)]

    def drawn(self, low: float) -> list[Html]:
        return [
            part
            for at in self.ticks()
            for part in (
                _line(self.x(at), 0, self.x(at), low, "rule"),
                _text(self.x(at), low + 13, _clock(at), "soft", "middle"),
            )
        ]


def _clock(seconds: float) -> str:
    if seconds < 60 and seconds != int(seconds):
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _bars(axis: _Axis, sides: Sequence[Reference]) -> Html:
    names = list(dict.fromkeys(stage.name for side in sides for stage in side.stages))
    low = len(names) * (2 * ROW + 6) + 4
    parts = axis.drawn(low)
    for place, name in enumerate(names):
        top = place * (2 * ROW + 6) + 4
        parts.append(_text(LEFT - 8, top + ROW + 4, _cut(name, 16), "", "end"))
        for index, (side, key) in enumerate(zip(sides, "ab", strict=True)):
            stage = side.by_stage.get(name)
            if stage is None:
                continue
            took = stage.duration.median
            x, end = axis.x(stage.start_s), axis.x(stage.start_s + took)
            y = top + index * ROW
            bar = f"M{x:.1f} {y}H{max(end, x + 1):.1f}V{y + ROW - 3}H{x:.1f}Z"
            title = tag("title", f"{key.upper()}: {name}, {took:.4g} s")
            parts.append(tag("path", title, d=bar, class_=f"bar-{key}"))
            said = f"{key.upper()} {took:.3g} s"
            parts.append(_label(x, end, y + 11, said))
    return _figure("Stages, medians of the runs", parts, low + 18)


def _label(x: float, end: float, y: float, said: str) -> Html:
    """Behind the bar, else before it, else on it: beside the axis stands the stage's name."""
    if end + _LABEL <= WIDTH:
        return _text(end + 5, y, said, "soft", "start")
    if x - _LABEL >= LEFT:
        return _text(x - 5, y, said, "soft", "end")
    return _text(end - 5, y, said, "on-bar", "end")


def _chart(
    axis: _Axis, drawn: Drawn, found: Sequence[Floats | None], lengths: Sequence[float]
) -> Html:
    known = [levels[np.isfinite(levels)] for levels in found if levels is not None]
    top = max([float(levels.max()) for levels in known if len(levels)], default=0.0) * 1.05 or 1.0
    low = HEIGHT - 22

    def y(value: float) -> float:
        return low - (low - 6) * value / top

    parts = axis.drawn(low)
    for value in (0.0, top / 1.05):
        parts.append(_text(LEFT - 8, y(value) + 4, human(value, drawn.unit), "soft", "end"))
    for levels, seconds, key in zip(found, lengths, "ab", strict=True):
        if levels is not None:
            parts.append(tag("path", d=_path(axis, levels, seconds, y), class_=f"line-{key}"))
    return _figure(drawn.title, parts, HEIGHT)


def _path(axis: _Axis, levels: Floats, seconds: float, y: Any) -> str:
    path, pen = [], False
    for place, value in enumerate(levels):
        if not np.isfinite(value):
            pen = False
            continue
        x = axis.x(seconds * (place + 0.5) / len(levels))
        path.append(f"{'L' if pen else 'M'}{x:.1f} {y(float(value)):.1f}")
        pen = True
    return "".join(path)


def _figure(title: str, parts: Sequence[Html], height: float) -> Html:
    svg = tag("svg", parts, viewBox=f"0 0 {WIDTH} {height:.0f}", role="img", aria_label=title)
    box = tag("div", svg, class_="scroll axis-box", tabindex="0", role="region", aria_label=title)
    return tag("figure", tag("figcaption", tag("h3", title)), box)


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    return tag("path", d=f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}", class_=class_)


def _text(x: float, y: float, text: str, class_: str, anchor: str) -> Html:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", class_=class_ or None, text_anchor=anchor)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
