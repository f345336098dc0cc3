"""The report's tables of a stage's figures: the main ones with their spread, and all of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from telemetry.report_generic import absent_list, folded
from telemetry.report_html import (
    NOTHING,
    Html,
    cell,
    exactly,
    heading,
    join,
    number,
    percent,
    table,
    tag,
    words,
)
from telemetry.report_view import Row, StageView
from telemetry.samples import Metric
from telemetry.vm_entity import ESTIMATE, is_estimate

_MEASURES = ("mean", "p50", "p95", "max")
_NET = r"net:(?!lo$).+"
MAIN: tuple[tuple[str, str, str], ...] = (
    ("CPU of the stage", "stage", "cpu_busy_seconds"),
    ("Memory of the stage", "stage", "mem_rss_bytes"),
    ("Read by calls", "stage", "io_read_calls_bytes"),
    ("Read from storage", "stage", "io_read_bytes"),
    ("Written to storage", "stage", "io_write_bytes"),
    ("CPU of the machine", "machine", "cpu_busy_percent"),
    ("Waited for CPU", "machine", "psi_cpu_some_seconds"),
    ("Waited for memory", "machine", "psi_memory_some_seconds"),
    ("Waited for I/O", "machine", "psi_io_some_seconds"),
    ("Disk reads", "disk:.+", "disk_read_bytes"),
    ("Disk writes", "disk:.+", "disk_write_bytes"),
    ("Received", _NET, "net_rx_bytes"),
    ("Sent", _NET, "net_tx_bytes"),
    ("GPU busy", "gpu:.+", "gpu_util_percent"),
    ("GPU's SMs busy", "gpu:.+", "gpm_sm_util_percent"),
    ("GPU power", "gpu:.+", "power_instant_w"),
    ("GPU memory", "gpu:.+", "gpu_mem_used_bytes"),
    ("Ready, per vCPU", "vm:.+", "vm_cpu_ready_percent"),
    ("Disk latency of the VM", "vm:.+", "vm_disk_latency_max_ms"),
)
"""What a stage is told by first: title, entity and metric, the entity as a pattern."""
_OF_DEVICES = re.compile(r"disk:|net:")


def figures(view: StageView, metrics: Mapping[str, Metric]) -> Html:
    """A stage's main figures, and folded away all of them and what was not measured."""
    rows = sorted((row for row in view.rows if _has_value(row)), key=_place)
    if not rows:
        nothing = "No sample fell into this stage, so it has no figures."
        return join([tag("p", nothing, class_="empty"), _absent(view.rows)])
    caption = f"All that was measured of {view.name}: {len(rows)} series"
    return join(
        [
            _main(view, metrics),
            folded(caption, _table(rows, metrics, caption), long=True),
            _absent(view.rows),
        ]
    )


def _main(view: StageView, metrics: Mapping[str, Metric]) -> Html | None:
    found = [
        (title, row)
        for title, entity, metric in MAIN
        for row in view.find(entity, metric)
        if row["p50"] is not None and not (_OF_DEVICES.match(entity) and not row["max"])
    ]
    if not found:
        return None
    head: list[Any] = [heading("Main figures"), heading("Of")]
    head += [heading(word, num=True) for word in ("p50", "p95", "Max")]
    head += [heading("From 0 to max", title="bar: p50 to p95; tick: p50; dot: mean"),
             heading("Mean", num=True), heading("Total", num=True),
             heading("Coverage", num=True)]  # fmt: skip
    rows = [_main_row(title, row, metrics) for title, row in found]
    legend = tag(
        "p",
        spread_bar({"p50": 40.0, "p95": 75.0, "mean": 48.0, "max": 100.0}),
        " Line: from 0 to the largest value. Bar: p50 to p95. Tick: the median. Dot: the mean.",
        class_="note spreadlegend",
    )
    shown = table(head, rows, caption=f"Main figures of {view.name}", class_="mainfigures")
    return join([shown, legend])


def _main_row(title: str, row: Row, metrics: Mapping[str, Metric]) -> Html:
    known, (unit, scale) = metrics.get(row["metric"]), rate_unit(row)
    meaning = f"{words(row['metric'])}: {known.meaning} ({known.source})" if known else None
    covered = row.get("coverage")
    p50, p95, most, mean = (
        number(None if row[field] is None else row[field] * scale, unit)
        for field in ("p50", "p95", "max", "mean")
    )
    return tag(
        "tr",
        tag("th", tag("span", title, title=meaning or words(row["metric"])), scope="row"),
        cell(tag("span", row["entity"], class_="entity")),
        (p50, p95, most),
        tag("td", spread_bar(row), class_="spreadcell"),
        mean,
        number(row["total"], total_unit(row, known)),
        cell(percent(covered), num=True, title=None if covered is None else exactly(covered)),
    )


def spread_bar(row: Row) -> Html | None:
    """A small drawing of a distribution, on an axis of its own from 0 (or below) to the largest.

    The figures stand beside it, so it is hidden from readers that cannot see it.
    """
    known = [row.get(name) for name in ("p50", "p95", "max")]
    if any(value is None for value in known):
        return None
    p50, p95, most = (float(value) for value in known if value is not None)
    low = min(0.0, p50)
    size = max(most, 0.0) - low

    def at(value: float) -> float:
        return 2 + 116 * (value - low) / size if size else 2.0

    mean = row.get("mean")
    return tag(
        "svg",
        _rect("whole", at(low), at(most), 5.5, 1),
        _rect("middle", at(p50), max(at(p95), at(p50) + 1.5), 3, 6),
        _rect("median", at(p50) - 1, at(p50) + 1, 1, 10),
        tag("circle", class_="mean", cx=f"{at(float(mean)):.1f}", cy="6", r="2")
        if mean is not None
        else None,
        class_="spread", viewBox="0 0 120 12", aria_hidden="true",
    )  # fmt: skip


def _rect(class_: str, low: float, high: float, y: float, height: float) -> Html:
    return tag("rect", class_=class_, x=f"{low:.1f}", y=f"{y:g}",
               width=f"{max(0.0, high - low):.1f}", height=f"{height:g}")  # fmt: skip


def _table(rows: Sequence[Row], metrics: Mapping[str, Metric], caption: str) -> Html:
    head: list[Any] = [heading("Entity"), heading("Metric"), heading("Unit")]
    head += [heading(word, num=True) for word in ("Mean", "p50", "p95", "Max", "Total", "Coverage")]
    lines = [_row(row, rows[i - 1] if i else None, metrics) for i, row in enumerate(rows)]
    return table(head, lines, caption=caption, class_="metrics")


def _place(row: Row) -> int:
    """What the stage itself did comes before what the machine did."""
    own = ("stage", "app", "data", "machine")
    return own.index(row["entity"]) if row["entity"] in own else len(own)


def _has_value(row: Row) -> bool:
    return any(row.get(field) is not None for field in (*_MEASURES, "total"))


def _row(row: Row, before: Row | None, metrics: Mapping[str, Metric]) -> Html:
    known = metrics.get(row["metric"])
    unit, scale = rate_unit(row)
    new = before is None or before["entity"] != row["entity"]
    meaning = f"{known.meaning} ({known.source})" if known is not None else None
    covered, why = row.get("coverage"), row.get("reason")
    return tag(
        "tr",
        tag("th", tag("span", row["entity"], class_="entity") if new else "", scope="row"),
        cell(_metric_name(row["metric"], meaning)),
        cell(f"{row['unit'] or NOTHING}", title=row["kind"]),
        [
            number(None if row[field] is None else row[field] * scale, unit, title=why)
            for field in _MEASURES
        ],
        number(row["total"], total_unit(row, known), title=why),
        cell(percent(covered), num=True, title=None if covered is None else exactly(covered)),
        class_="first" if new else None,
    )


def _metric_name(metric: str, meaning: str | None) -> Html:
    """A metric's name; an estimate is never mistaken for something measured."""
    if not is_estimate(metric):
        return tag("span", words(metric), title=meaning)
    return tag("em", "est. ", words(metric.removesuffix(ESTIMATE)), title=meaning, class_="est")


def total_unit(row: Row, known: Metric | None) -> str:
    if row["kind"] != "counter" and known is not None and known.integral_unit:
        return known.integral_unit
    return row["unit"] or ""


def rate_unit(row: Row) -> tuple[str, float]:
    """Unit and factor of the mean, p50, p95 and max: a counter's are per second."""
    unit = row["unit"] or ""
    if row["kind"] != "counter":
        return unit, 1.0
    if unit != "s":
        return ("W" if unit == "J" else f"{unit}/s"), 1.0
    if row["metric"].startswith("cpu_"):
        return "cores", 1.0
    if row["metric"].startswith("psi_"):
        return "% of time", 100.0
    return "s/s", 1.0


def _absent(rows: Sequence[Row]) -> Html | None:
    missing = [
        (row["entity"], row["metric"], row.get("reason")) for row in rows if not _has_value(row)
    ]
    return absent_list(missing, "in this stage")
