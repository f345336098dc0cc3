"""The report's charts: which series stand in which chart, thinned to what a screen can show.

Counters become rates, gaps in sampling become breaks (never zeros), and every series is held to
``MAX_POINTS`` by buckets that keep its smallest and largest value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from telemetry.samples import Metric
from telemetry.segments import SampleSet
from telemetry.series import Points, SeriesIndex
from telemetry.thin import FEWEST, thin

MAX_POINTS = 1000
"""Points of one series in the page: about one per pixel of a wide screen."""
MAX_SERIES = 8
"""Lines of one chart; more cannot be told apart."""
MAX_WINDOW_CHARTS = 8
GAP_PERIODS = 2.5
"""A distance of more periods than this between two samples is a gap, as in the profile."""
_MAX_GAPS = 100
_NS = 1e9

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Line:
    """Series of a chart: entities and metrics by pattern; ``{}`` stands for the entity's name."""

    label: str
    entity: str
    metric: str
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One chart: its title, the unit of its axis and its lines, in their order."""

    key: str
    title: str
    unit: str
    lines: tuple[Line, ...]
    top: float | None = None
    group: str = ""
    """Charts of one group say together, once, that nothing was measured."""


_PSI = (("CPU", "cpu", "some"), ("memory", "memory", "some"), ("memory", "memory", "full"),
        ("I/O", "io", "some"), ("I/O", "io", "full"))  # fmt: skip

SPECS = (
    Spec(
        key="memory",
        title="Memory of the machine",
        unit="B",
        lines=(
            Line(label="used", entity="machine", metric="mem_used_bytes"),
            Line(
                label="page cache",
                entity="machine",
                metric=r"(mem_)?(page_)?cache(d)?(_memory)?_bytes",
            ),
            Line(label="swap used", entity="machine", metric=r"(mem_)?swap_used_bytes"),
        ),
    ),
    Spec(
        key="rss",
        title="Memory of each stage's processes (RSS)",
        unit="B",
        lines=(Line(label="{}", entity=r"stage:.+", metric="mem_rss_bytes"),),
    ),
    Spec(
        key="disk",
        title="Disks",
        unit="B/s",
        lines=(
            Line(label="{} read", entity=r"disk:.+", metric="disk_read_bytes"),
            Line(label="{} write", entity=r"disk:.+", metric=r"disk_writ(e|ten)_bytes"),
        ),
    ),
    Spec(
        key="net",
        title="Network",
        unit="B/s",
        lines=(
            Line(label="{} in", entity=r"net:.+", metric="net_rx_bytes"),
            Line(label="{} out", entity=r"net:.+", metric="net_tx_bytes"),
        ),
    ),
    Spec(
        key="psi",
        title="Pressure: share of the time in which work waited",
        unit="%",
        lines=tuple(
            Line(
                label=f"{word}, {how}",
                entity="machine",
                metric=f"psi_{name}_{how}_seconds",
                scale=100.0,
            )
            for word, name, how in _PSI
        ),
    ),
    Spec(
        key="gpu-util",
        title="GPU: time with a kernel resident",
        unit="%",
        lines=(Line(label="GPU {}", entity=r"gpu:.+", metric="gpu_util_percent"),),
        top=100.0,
        group="GPU",
    ),
    Spec(
        key="gpu-power",
        title="GPU: power",
        unit="W",
        lines=(
            Line(label="GPU {} instant", entity=r"gpu:.+", metric="power_instant_w"),
            Line(label="GPU {} 1 s mean", entity=r"gpu:.+", metric="power_average_w"),
        ),
        group="GPU",
    ),
    Spec(
        key="gpu-memory",
        title="GPU: memory used",
        unit="B",
        lines=(Line(label="GPU {}", entity=r"gpu:.+", metric="gpu_mem_used_bytes"),),
        group="GPU",
    ),
)

_CPU_LAYERS = (
    ("user", ("user", "nice")),
    ("system", ("system", "irq", "softirq")),
    ("I/O wait", ("iowait",)),
    ("steal", ("steal",)),
)
_CPU_MODES = (*(mode for _, modes in _CPU_LAYERS for mode in modes), "idle")
"""All modes of /proc/stat but guest time, which user time contains."""
_CPU_METRIC = "cpu_{}_seconds"
_CPU_TITLE = "CPU of the machine by mode"


class RunSeries(SeriesIndex):
    """The samples of a run by (entity, metric), found by pattern, with what is known of them."""

    def __init__(self, samples: SampleSet) -> None:
        super().__init__(samples)
        self.samples = samples
        self.metrics: Mapping[str, Metric] = samples.metrics
        self.absent = samples.absent
        self._periods = samples.periods

    def matching(self, entity: str, metric: str) -> list[tuple[str, str]]:
        found = [
            n for n in self.names() if re.fullmatch(entity, n[0]) and re.fullmatch(metric, n[1])
        ]
        return sorted(found, key=lambda name: _natural(name[0]))

    def period_ns(self, metric: str, points: Points) -> float:
        """The period that the collector promised, else the middle distance of the samples."""
        period_s = self._periods.get(metric)
        if period_s:
            return period_s * _NS
        return float(np.median(np.diff(points.ts_ns))) if len(points.ts_ns) > 1 else _NS

    def reasons(self, entity: str, metric: str = ".*") -> list[str]:
        """Why series that match are absent, each reason once."""
        found = (
            series.reason
            for series in self.absent
            if series.reason
            and re.fullmatch(entity, series.entity)
            and re.fullmatch(metric, series.metric.name)
        )
        return list(dict.fromkeys(found))


def charts(
    index: RunSeries,
    *,
    stages: Sequence[str],
    start_ns: int,
    elsewhere: Callable[[str], bool] = lambda metric: False,
) -> list[dict[str, Any]]:
    """The charts as JSON: key, title, unit, stacked, top, series of {label, t, v}, note, empty.

    ``t``: ms since ``start_ns``, as differences; ``v``: values in the unit, null where a gap is.
    ``elsewhere``: metrics of windows that have a chart of their own in another place.
    """
    if not index.names():
        nothing = "No samples were recorded in this run, so there is nothing to draw."
        return [empty_chart("none", "Series over time", "", top=None) | {"empty": nothing}]
    made = [_cpu(index, start_ns)]
    drawn = [(spec, _chart(index, spec, stages, start_ns)) for spec in SPECS]
    alive = {spec.group for spec, chart in drawn if chart["series"]}
    told: set[str] = set()
    for spec, chart in drawn:
        if not spec.group or spec.group in alive:
            made.append(chart)
        elif spec.group not in told:
            told.add(spec.group)
            made.append(chart | {"key": spec.group.lower(), "title": spec.group})
    return made + list(_window_charts(index, start_ns, elsewhere))


def _cpu(index: RunSeries, start_ns: int) -> dict[str, Any]:
    """CPU time by mode as a share of all: exact means over buckets, so that layers add up."""
    names = index.matching("machine", _CPU_METRIC.format(f"({'|'.join(_CPU_MODES)})"))
    chart = empty_chart("cpu", _CPU_TITLE, "% of machine", top=100.0) | {"stacked": True}
    modes = {metric[4:-8]: index.points(entity, metric) for entity, metric in names}
    if "idle" not in modes or len(modes["idle"].ts_ns) < 2:
        return without(chart, index.reasons("machine", _CPU_METRIC.format(".*")))
    idle = modes["idle"]
    period = index.period_ns(_CPU_METRIC.format("idle"), idle)
    count = int(min(MAX_POINTS, max(1, (idle.ts_ns[-1] - idle.ts_ns[0]) // period)))
    edges = np.linspace(idle.ts_ns[0], idle.ts_ns[-1], count + 1)
    spent = {mode: bucket_growth(points, edges, period) for mode, points in modes.items()}
    total = np.sum(list(spent.values()), axis=0)
    times = (edges[:-1] + edges[1:]) / 2
    for label, parts in _CPU_LAYERS:
        present = [spent[part] for part in parts if part in spent]
        if present:
            with np.errstate(invalid="ignore", divide="ignore"):
                share = np.clip(100.0 * np.sum(present, axis=0) / total, 0.0, 100.0)
            chart["series"].append(series_json(label, times, share, start_ns))
    return chart


def bucket_growth(points: Points, edges: Floats, period_ns: float) -> Floats:
    """What a counter grew in each bucket; NaN where a gap or a step back lies in it."""
    at = points.ts_ns.astype(np.float64)
    growth = np.diff(np.interp(edges, at, points.values))
    bad = (np.diff(at) > GAP_PERIODS * period_ns) | (np.diff(points.values) < 0)
    for low, high in zip(at[:-1][bad], at[1:][bad], strict=True):
        growth[(edges[1:] > low) & (edges[:-1] < high)] = np.nan
    growth[(edges[:-1] < at[0]) | (edges[1:] > at[-1])] = np.nan
    return np.asarray(growth, dtype=np.float64)


def _chart(index: RunSeries, spec: Spec, stages: Sequence[str], start_ns: int) -> dict[str, Any]:
    chart = empty_chart(spec.key, spec.title, spec.unit, top=spec.top)
    found: list[tuple[float, str, Floats, Floats]] = []
    for line in spec.lines:
        names = index.matching(line.entity, line.metric)
        for entity, metric in sorted(names, key=lambda name: _stage_place(name[0], stages)):
            times, values = _drawn(index, entity, metric)
            if np.isfinite(values).any():
                label = line.label.replace("{}", entity.partition(":")[2])
                weight = float(np.nansum(np.abs(values)))
                found.append((weight, label, times, values * line.scale))
    if not found:
        entity = "|".join(sorted({line.entity for line in spec.lines} | {spec.group.lower()}))
        metric = "|".join(line.metric for line in spec.lines)
        reasons = index.reasons(entity, metric) or (index.reasons(entity) if spec.group else [])
        return without(chart, reasons)
    if spec.key != "rss":
        found, left = _heaviest(found)
        if left:
            chart["note"] = f"Not drawn, with the least in them: {', '.join(left)}."
    chart["series"] = [
        series_json(label, times, values, start_ns) for _, label, times, values in found
    ]
    return chart


def _heaviest(
    found: list[tuple[float, str, Floats, Floats]],
) -> tuple[list[tuple[float, str, Floats, Floats]], list[str]]:
    """The series with something in them, at most MAX_SERIES, and the labels of the others."""
    ranked = sorted(found, key=lambda one: -one[0])
    kept = [one for one in ranked[:MAX_SERIES] if one[0] > 0] or ranked[:2]
    labels = {one[1] for one in kept}
    return (
        [one for one in found if one[1] in labels],
        [one[1] for one in found if one[1] not in labels],
    )


def _window_charts(
    index: RunSeries, start_ns: int, elsewhere: Callable[[str], bool]
) -> Iterator[dict[str, Any]]:
    """A chart for each metric that its source averaged itself and that is not drawn elsewhere."""
    windows: dict[str, list[str]] = {}
    for entity, metric in index.names():
        known = index.metrics.get(metric)
        if known is not None and known.kind == "window" and not elsewhere(metric):
            windows.setdefault(metric, []).append(entity)
    for number, (metric, entities) in enumerate(sorted(windows.items())):
        if number == MAX_WINDOW_CHARTS:
            return
        known = index.metrics[metric]
        chart = empty_chart(f"window-{number}", metric.replace("_", " "), known.unit, top=None)
        chart["note"] = f"{known.meaning} ({known.source})"
        for entity in sorted(entities, key=_natural)[:MAX_SERIES]:
            times, values = _steps(index.points(entity, metric))
            chart["series"].append(series_json(entity, times, values, start_ns))
        yield chart


def _drawn(index: RunSeries, entity: str, metric: str) -> tuple[Floats, Floats]:
    """Times (ns) and values of a series as drawn: rates of counters, NaN between pieces."""
    points = index.points(entity, metric)
    known = index.metrics.get(metric)
    times, values = points.ts_ns.astype(np.float64), points.values
    gap_ns = GAP_PERIODS * index.period_ns(metric, points)
    broken = np.flatnonzero(np.diff(times) > gap_ns)
    if known is not None and known.kind == "counter":
        with np.errstate(divide="ignore", invalid="ignore"):
            rates = np.diff(values) / (np.diff(times) / _NS)
        rates[broken] = np.nan
        rates[rates < 0] = np.nan
        return pieces(times[1:], rates)
    return levels(points, gap_ns)


def levels(points: Points, gap_ns: float) -> tuple[Floats, Floats]:
    """Levels as they were, thinned, NaN where two samples are further apart than ``gap_ns``."""
    times, values = points.ts_ns.astype(np.float64), points.values
    broken = np.flatnonzero(np.diff(times) > gap_ns)
    times = np.insert(times, broken + 1, times[broken] + 1.0)
    return pieces(times, np.insert(values, broken + 1, np.nan))


def pieces(times: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Thin each unbroken piece, with its share of MAX_POINTS, and keep one NaN between them.

    Of very many gaps the last ones are closed: they are narrower than a pixel by then.
    """
    sound = np.isfinite(values)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], sound, [False])).astype(np.int8)))
    ranges = [(int(low), int(high)) for low, high in edges.reshape(-1, 2)]
    if len(ranges) > _MAX_GAPS:
        return pieces(times[sound], values[sound])
    budget, length = MAX_POINTS - 6 * len(ranges), int(sound.sum())
    out_times: list[Floats] = []
    out_values: list[Floats] = []
    for low, high in ranges:
        share = max(FEWEST, budget * (high - low) // max(1, length))
        kept_times, kept_values = thin(times[low:high].astype(np.int64), values[low:high], share)
        out_times += [np.asarray(kept_times, np.float64), np.asarray([kept_times[-1] + 1.0])]
        out_values += [np.asarray(kept_values, np.float64), np.asarray([np.nan])]
    if not ranges:
        return np.empty(0), np.empty(0)
    return np.concatenate(out_times)[:-1], np.concatenate(out_values)[:-1]


def _steps(points: Points) -> tuple[Floats, Floats]:
    """Windows as steps: level over (start, end], a break where the next does not follow on."""
    if len(points.values) > MAX_POINTS // 3:
        return pieces(points.ts_ns.astype(float), points.values)
    starts, ends = points.start_ns.astype(float), points.ts_ns.astype(float)
    times = np.stack([starts, ends, ends + 1.0], axis=1)
    values = np.repeat(points.values[:, None], 3, axis=1)
    values[:, 2] = np.nan
    joined = np.append(np.abs(starts[1:] - ends[:-1]) < 0.5 * (ends[:-1] - starts[:-1]), False)
    keep = np.ones(times.shape, dtype=bool)
    keep[:, 2] = ~joined
    return times[keep], values[keep]


def series_json(label: str, times: Floats, values: Floats, start_ns: int) -> dict[str, Any]:
    at = np.rint((times - start_ns) / 1e6).astype(np.int64)
    return {
        "label": label,
        "t": np.diff(at, prepend=0).tolist(),
        "v": [_rounded(value) for value in values.tolist()],
    }


def _rounded(value: float) -> float | None:
    if not np.isfinite(value):
        return None
    short = float(f"{value:.4g}")
    return int(short) if short.is_integer() else short


def empty_chart(key: str, title: str, unit: str, *, top: float | None) -> dict[str, Any]:
    return {
        "key": key, "title": title, "unit": unit, "top": top,
        "stacked": False, "series": [], "note": None, "empty": None,
    }  # fmt: skip


def without(chart: dict[str, Any], reasons: Iterable[str]) -> dict[str, Any]:
    told = "; ".join(reasons)
    said = f"Not measured: {told}" if told else "No samples of this were recorded in this run"
    return chart | {"empty": said.rstrip(".") + "."}


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts gpu:10 after gpu:9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _stage_place(entity: str, stages: Sequence[str]) -> tuple[int, list[tuple[int, str]]]:
    name = entity.partition(":")[2]
    place = stages.index(name) if entity.startswith("stage:") and name in stages else len(stages)
    return place, _natural(entity)
