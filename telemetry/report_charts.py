"""The report's charts of guest and GPU: which series stand in which, and why one is empty."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from telemetry.attribution import GAP_PERIODS
from telemetry.report_series import (
    MAX_POINTS,
    RunSeries,
    Trace,
    bucket_growth,
    drawn,
    natural,
    pieces,
    series_json,
)
from telemetry.report_specs import SPECS, Spec, has_place
from telemetry.series import Points

MAX_SERIES = 8
"""Lines of one chart; more cannot be told apart."""
MAX_WINDOW_CHARTS = 12
"""Charts of metrics that nobody gave a place."""

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


def charts(
    index: RunSeries,
    *,
    stages: Sequence[str],
    start_ns: int,
    elsewhere: Callable[[str], bool] = lambda metric: False,
) -> list[dict[str, Any]]:
    """The charts as JSON: key, title, unit, stacked, top, series of {label, t, v}, note, empty.

    ``elsewhere``: metrics of windows that have a chart of their own in another place.
    """
    if not index.names():
        nothing = "No samples were recorded in this run, so there is nothing to draw."
        return [empty_chart("none", "Series over time", "", top=None) | {"empty": nothing}]
    made = [_cpu(index, start_ns)]
    by_spec = [(spec, _chart(index, spec, stages, start_ns)) for spec in SPECS]
    alive = {spec.group for spec, chart in by_spec if chart["series"]}
    told: set[str] = set()
    for spec, chart in by_spec:
        if spec.optional and not chart["series"]:
            continue
        if not spec.group or spec.group in alive:
            made.append(chart)
        elif spec.group not in told:
            told.add(spec.group)
            made.append(chart | {"key": spec.group.lower(), "title": spec.group})
    return made + list(
        _window_charts(index, start_ns, lambda metric: elsewhere(metric) or has_place(metric))
    )


def _cpu(index: RunSeries, start_ns: int) -> dict[str, Any]:
    """CPU time by mode as a share of all: exact means over buckets, so that layers add up."""
    names = index.matching("machine", _CPU_METRIC.format(f"({'|'.join(_CPU_MODES)})"))
    chart = empty_chart("cpu", _CPU_TITLE, "% of machine", top=100.0) | {"stacked": True}
    modes = {metric[4:-8]: index.points(entity, metric) for entity, metric in names}
    if "idle" not in modes or len(modes["idle"].ts_ns) < 2:
        return without(chart, index.reasons("machine", _CPU_METRIC.format(".*")))
    idle = modes["idle"]
    period = index.period_ns("machine", _CPU_METRIC.format("idle"), idle)
    count = int(min(MAX_POINTS, max(1, (idle.ts_ns[-1] - idle.ts_ns[0]) // period)))
    edges = np.linspace(idle.ts_ns[0], idle.ts_ns[-1], count + 1)
    spent = {mode: bucket_growth(points, edges, period) for mode, points in modes.items()}
    total = np.sum(list(spent.values()), axis=0)
    for label, parts in _CPU_LAYERS:
        present = [spent[part] for part in parts if part in spent]
        if present:
            with np.errstate(invalid="ignore", divide="ignore"):
                share = np.clip(100.0 * np.sum(present, axis=0) / total, 0.0, 100.0)
            chart["series"].append(
                series_json(label, Trace.between(edges, share, period), start_ns)
            )
    return chart


def _chart(index: RunSeries, spec: Spec, stages: Sequence[str], start_ns: int) -> dict[str, Any]:
    chart = empty_chart(spec.key, spec.title, spec.unit, top=spec.top)
    found: list[tuple[float, str, Trace]] = []
    sources: set[str] = set()
    for line in spec.lines:
        names = index.matching(line.entity, line.metric)
        for entity, metric in sorted(names, key=lambda name: _stage_place(name[0], stages)):
            trace = _trace(index, entity, metric).scaled(line.scale)
            if not trace.is_empty:
                label = line.label.replace("{}", entity.partition(":")[2])
                found.append((_weight(trace), label, trace))
                if _is_window(index, metric):
                    sources.add(index.metrics[metric].source)
    if not found:
        entity = "|".join(sorted({line.entity for line in spec.lines} | {spec.group.lower()}))
        metric = "|".join(line.metric for line in spec.lines)
        reasons = index.reasons(entity, metric) or (index.reasons(entity) if spec.group else [])
        return without(chart, reasons)
    told = [f"From {source}." for source in sorted(sources)]
    if spec.key != "rss":
        found, left = _heaviest(found)
        if left:
            told.append(f"Not drawn, with the least in them: {', '.join(left)}.")
    chart["note"] = " ".join(told) or None
    chart["series"] = [series_json(label, trace, start_ns) for _, label, trace in found]
    return chart


def _trace(index: RunSeries, entity: str, metric: str) -> Trace:
    if _is_window(index, metric):
        return _steps(index.points(entity, metric))
    return drawn(index, entity, metric)


def _is_window(index: RunSeries, metric: str) -> bool:
    known = index.metrics.get(metric)
    return known is not None and known.kind == "window"


def _heaviest(
    found: list[tuple[float, str, Trace]],
) -> tuple[list[tuple[float, str, Trace]], list[str]]:
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
        if _is_window(index, metric) and not elsewhere(metric):
            windows.setdefault(metric, []).append(entity)
    names = sorted(windows)
    left = names[MAX_WINDOW_CHARTS:]
    for number, metric in enumerate(names[:MAX_WINDOW_CHARTS]):
        known, entities = index.metrics[metric], sorted(windows[metric], key=natural)
        chart = empty_chart(f"window-{number}", metric.replace("_", " "), known.unit, top=None)
        found = [(_weight(trace), entity, trace) for entity in entities
                 if not (trace := _steps(index.points(entity, metric))).is_empty]  # fmt: skip
        drawn_here, quiet = _heaviest(found)
        told = [f"{known.meaning} ({known.source})"]
        if quiet:
            told.append(f"Not drawn, with the least in them: {', '.join(quiet)}.")
        if left and number == MAX_WINDOW_CHARTS - 1:
            told.append(f"No room for charts of {', '.join(left)}: see the stages' tables.")
        chart["note"] = " ".join(told)
        chart["series"] = [series_json(entity, trace, start_ns) for _, entity, trace in drawn_here]
        yield chart


def _weight(trace: Trace) -> float:
    """How much there is in a line: what has least is left out first."""
    return float(np.nansum(np.abs(trace.values if trace.high is None else trace.high)))


def _steps(points: Points) -> Trace:
    """Windows as steps: level over (start, end], a break where the next does not follow on.

    Of too many, each is a point at its end; so it is of short ones that lie apart.
    """
    starts, ends = points.start_ns.astype(float), points.ts_ns.astype(float)
    steps, lengths = np.diff(ends), (ends - starts)[:-1]
    joined = np.abs(starts[1:] - ends[:-1]) < 0.5 * lengths
    if apart := len(steps) >= 10 and bool(np.median(lengths) < 0.5 * np.median(steps)):
        joined = steps <= GAP_PERIODS * np.median(steps)
    joined = np.append(joined, False)
    if apart or len(points.values) > MAX_POINTS // 3:
        broken = np.flatnonzero(~joined[:-1]) + 1
        times = np.insert(ends, broken, ends[broken - 1] + 1.0)
        return pieces(times, np.insert(points.values, broken, np.nan))
    times = np.stack([starts, ends, ends + 1.0], axis=1)
    values = np.repeat(points.values[:, None], 3, axis=1)
    values[:, 2] = np.nan
    keep = np.ones(times.shape, dtype=bool)
    keep[:, 2] = ~joined
    return Trace(times=times[keep], values=values[keep])


def empty_chart(key: str, title: str, unit: str, *, top: float | None) -> dict[str, Any]:
    return {
        "key": key, "title": title, "unit": unit, "top": top,
        "stacked": False, "series": [], "note": None, "empty": None,
    }  # fmt: skip


def without(chart: dict[str, Any], reasons: Iterable[str]) -> dict[str, Any]:
    told = "; ".join(reasons)
    said = f"Not measured: {told}" if told else "No samples of this were recorded in this run"
    return chart | {"empty": said.rstrip(".") + "."}


def _stage_place(entity: str, stages: Sequence[str]) -> tuple[int, list[tuple[int, str]]]:
    name = entity.partition(":")[2]
    place = stages.index(name) if entity.startswith("stage:") and name in stages else len(stages)
    return place, natural(entity)
