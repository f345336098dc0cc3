"""The report's time axis: what all charts share, and which charts stand on it in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from telemetry.report_beside_charts import HEADING, beside_charts, is_drawn_here
from telemetry.report_charts import charts
from telemetry.report_html import Html, join, tag
from telemetry.report_hypervisor import move_sentence
from telemetry.report_hypervisor_view import HypervisorView
from telemetry.report_series import RunSeries
from telemetry.report_view import StageView

_TOGETHER = ("cpu", "gpu", "gpu-util", "gpu-power", "vm", "vm-cpu", "vm-contention")
"""The charts by which the three worlds are compared first."""
_HINT = (
    "One time axis for all charts; the bands behind are the stages. Move over a chart to read all "
    "of them at that time; drag to zoom (or choose a stage), double-click to see all again. Keys, "
    "with the charts in focus: ← → move, Shift for larger steps, + − zoom, 0 or Esc all. Where "
    "several samples share a pixel, the line is their median and the band reaches from the "
    "smallest to the largest. In long runs samples are put together into points of about equal "
    "time, and each chart says how many a point holds: zooming in shows no more of them, all are "
    "in samples/. Breaks in a line are times without samples."
)
_BUTTONS = (
    ("earlier", "←", "Show earlier"),
    ("later", "→", "Show later"),
    ("closer", "+", "Zoom in"),
    ("wider", "−", "Zoom out"),
    ("reset", "Whole run", "Show the whole run"),
)
_TITLES = {
    "together": "Guest, GPU and hypervisor together",
    "guest": "Guest",
    "gpu": "GPU",
    "hypervisor": HEADING,
}


def is_end_known(run: Mapping[str, Any]) -> bool:
    """Whether somebody noted when the run ended; of a killed one ``ended_ns`` is only the last
    thing that is known of it."""
    return bool(run.get("ended_ns")) and run.get("status") != "killed"


def extent_of(run: Mapping[str, Any], stages: list[StageView], index: RunSeries) -> tuple[int, int]:
    """Start and end of the time axis: a run without an end ends with the last thing known of it."""
    ends = [view.record["end_ns"] for view in stages if view.record.get("end_ns")]
    starts = [view.record["start_ns"] for view in stages if view.record.get("start_ns")]
    start = run.get("started_ns") or min(starts, default=0)
    end = run.get("ended_ns") or index.last_ns() or 0
    if not is_end_known(run):
        end = max([*ends, *starts, end, start])
    return start, max(end, start + 1)


def chart_data(
    stages: list[StageView], index: RunSeries, seen: HypervisorView, extent: tuple[int, int]
) -> dict[str, Any]:
    start_ns, end_ns = extent
    names = [view.name for view in stages]
    guest = charts(index, stages=names, start_ns=start_ns, elsewhere=is_drawn_here)
    outside = beside_charts(index, seen, start_ns) if index.names() else []
    return {
        "startMs": start_ns // 1_000_000,
        "durationMs": max(1, (end_ns - start_ns) // 1_000_000),
        "stages": [
            {
                "place": view.place,
                "name": view.name,
                "status": view.status,
                "from": (view.record["start_ns"] - start_ns) // 1_000_000,
                "to": ((view.record.get("end_ns") or end_ns) - start_ns) // 1_000_000,
                "ended": view.record.get("end_ns") is not None,
            }
            for view in stages
            if view.measured
        ],
        "unmeasured": [
            {"place": view.place, "name": view.name, "status": view.status}
            for view in stages
            if not view.measured
        ],
        "moves": [
            {
                "at": (move["at_ns"] - start_ns) // 1_000_000,
                "text": move_sentence(move, start_ns),
                "to": str(move.get("to_host") or "another host"),
            }
            for move in seen.moves
            if move.get("at_ns") is not None
        ],
        "charts": _in_chapters(guest, outside),
    }


def _in_chapters(
    guest: Sequence[dict[str, Any]], outside: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The charts in their order: one or two of each world together first, then world by world."""
    known = [chart | {"world": _world(chart)} for chart in guest]
    known += [chart | {"world": "hypervisor", "heading": None} for chart in outside]
    hint = next((chart.pop("hint") for chart in known if chart.get("hint")), None)
    together = [one for key in _TOGETHER for one in known if one["key"] == key]
    rest = [one for one in known if one["key"] not in _TOGETHER]
    made = []
    if len({str(one["world"]) for one in together if one["series"]}) > 1:
        made += _chapter(_TITLES["together"], together, hint)
    else:
        rest = [one for one in known if one in together] + rest
    for world in ("guest", "gpu", "hypervisor"):
        own = [one for one in rest if one["world"] == world]
        made += _chapter(_TITLES[world], own, None if made else hint)
    return made


def _chapter(title: str, drawn: Sequence[dict[str, Any]], hint: str | None) -> list[dict[str, Any]]:
    if not drawn:
        return []
    return [drawn[0] | {"heading": title, "hint": hint}, *drawn[1:]]


def _world(chart: Mapping[str, Any]) -> str:
    labels = [str(series["label"]) for series in chart["series"]]
    of_gpus = bool(labels) and all(label.startswith("gpu:") for label in labels)
    return "gpu" if of_gpus or str(chart["key"]).startswith("gpu") else "guest"


def timeline(stages: list[StageView]) -> Html:
    numbers = [f"{view.place} {view.name}" for view in stages if not view.measured]
    left_out = (
        tag(
            "p", f"Not in this run's time: {', '.join(numbers)} (see the overview).", class_="empty"
        )
        if numbers
        else None
    )
    return join(
        [
            tag("p", _HINT, class_="hint", id="charthint"),
            left_out,
            tag(
                "div",
                tag("output", "", id="range"),
                tag("span", [_button(*one) for one in _BUTTONS], class_="buttons"),
                class_="tools",
            ),
            tag("div", id="charts", tabindex="0", role="group", aria_label="Charts over time",
                aria_describedby="charthint"),
            tag("p", id="spoken", class_="hidden", aria_live="polite"),
            tag("noscript", "The charts need JavaScript; all tables are complete without it."),
        ]
    )  # fmt: skip


def _button(key: str, text: str, says: str) -> Html:
    return tag("button", text, type="button", id=key, title=says, aria_label=says)
