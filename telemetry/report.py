"""The report of a run: one HTML file that needs nothing beside it, neither network nor library.

The tables are written here, so that they are read without a script and in print; a small script
of the page's own draws the charts from the JSON that stands in it. The same run gives the same
bytes. What comes from the run is escaped, and a content security policy lets no other script run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import partial
from importlib.resources import files
from typing import Any

from telemetry.report_accounts import growth, ledger
from telemetry.report_beside import beside
from telemetry.report_beside_charts import beside_charts, is_drawn_here
from telemetry.report_charts import RunSeries, charts
from telemetry.report_contention import HEAD, contention, overview_cell, stage_flags
from telemetry.report_generic import absent_list, folded, key_values
from telemetry.report_header import header, hypervisor, why_no_gpu
from telemetry.report_html import (
    Html,
    flat,
    join,
    tag,
    words,
)
from telemetry.report_hypervisor import (
    move_sentence,
    overview_lines,
    section,
)
from telemetry.report_hypervisor_view import HypervisorView, hypervisor_view
from telemetry.report_stages import Column, StageView, overview, stage_section, views
from telemetry.segments import SampleSet

_SECTIONS = (
    ("overview", "Overview"),
    ("hypervisor", "Hypervisor"),
    ("timeline", "Timeline"),
    ("stages", "Stages"),
    ("ledger", "Ledger"),
    ("growth", "Growth of the data"),
    ("absent", "Not measured"),
    ("environment", "Environment"),
)


def render(run: Mapping[str, Any], profile: Mapping[str, Any], samples: SampleSet) -> str:
    """Return the report of a run as HTML.

    ``run``: run.json; ``profile``: profile.json; ``samples``: all samples of the run. A run that
    was killed, has no stages or no samples has a report as well, which says so.
    """
    index = RunSeries(samples)
    stages = views(run, profile)
    extent = _extent(run, stages, index)
    seen = hypervisor_view(run, profile, index, extent)
    style, script = _asset("report.css"), _asset("report.js")
    data = _chart_data(stages, index, seen, extent)
    page = _asset("report.html")
    return _filled(
        page,
        {
            "policy": _policy(script, style),
            "title": join(f"{run.get('name') or 'run'} · {run.get('run_id')} · StageScope"),
            "style": style,
            "body": _body(run, profile, stages, index, seen),
            "data": _json(data),
            "script": script,
        },
    )


def _asset(name: str) -> str:
    return files("telemetry").joinpath("assets", name).read_text(encoding="utf-8")


def _filled(page: str, values: Mapping[str, str]) -> str:
    """The page with each ``{{name}}`` replaced once; what is put in is not looked through again."""
    pieces = []
    for piece in page.split("{{"):
        name, end, rest = piece.partition("}}")
        pieces.append(values[name] + rest if end and name in values else piece)
    return "".join(pieces)


def _json(data: Any) -> str:
    """JSON that can stand in a script element: no character in it can end one."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for risky in "<>&\u2028\u2029":
        text = text.replace(risky, f"\\u{ord(risky):04x}")
    return text


def _policy(script: str, style: str) -> str:
    """Nothing from anywhere; of scripts and styles only the page's own two."""
    digests = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (script, style)
    ]
    return (
        f"default-src 'none'; script-src 'sha256-{digests[0]}'; "
        f"style-src 'sha256-{digests[1]}'; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _extent(run: Mapping[str, Any], stages: list[StageView], index: RunSeries) -> tuple[int, int]:
    """Start and end of the time axis: a killed run ends with the last thing known of it."""
    ends = [view.record["end_ns"] for view in stages if view.record.get("end_ns")]
    starts = [view.record["start_ns"] for view in stages if view.record.get("start_ns")]
    start = run.get("started_ns") or min(starts, default=0)
    end = run.get("ended_ns") or max([*ends, *starts, index.last_ns() or 0, start])
    return start, max(end, start + 1)


def _chart_data(
    stages: list[StageView], index: RunSeries, seen: HypervisorView, extent: tuple[int, int]
) -> dict[str, Any]:
    start_ns, end_ns = extent
    names = [view.name for view in stages]
    drawn = charts(index, stages=names, start_ns=start_ns, elsewhere=is_drawn_here)
    if index.names():
        drawn += beside_charts(index, seen, start_ns)
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
        "charts": drawn,
    }


def _body(
    run: Mapping[str, Any],
    profile: Mapping[str, Any],
    stages: list[StageView],
    index: RunSeries,
    seen: HypervisorView,
) -> Html:
    extent = _extent(run, stages, index)
    no_gpu = why_no_gpu(run, index)
    run_seconds = (extent[1] - extent[0]) / 1e9 if run.get("ended_ns") else None
    missing = [(one.entity, one.metric.name, one.reason) for one in index.absent]
    bodies = {
        "overview": [
            overview(stages, run_seconds, no_gpu, _columns(seen)),
            _unseen(run, index, no_gpu, seen, extent[0]),
            contention(seen, stages) if seen.configured else None,
        ],
        "hypervisor": section(seen, stages, extent[0]) if seen.configured else None,
        "timeline": _timeline(stages),
        "stages": [stage_section(view, index.metrics, _seen(view, seen)) for view in stages]
        or tag("p", "No stage began in this run.", class_="empty"),
        "ledger": ledger(profile.get("ledger") or ()),
        "growth": growth(stages),
        "absent": absent_list(missing, "in the whole run", opened=True)
        or tag("p", "Every series that a collector knows was there.", class_="empty"),
        "environment": _environment(run),
    }
    shown = [(key, title) for key, title in _SECTIONS if bodies[key] is not None]
    return join(
        [
            header(run, extent, no_gpu, seen),
            tag(
                "nav",
                [tag("a", title, href=f"#{key}") for key, title in shown],
                aria_label="Sections",
            ),
            tag(
                "main",
                [
                    tag("section", tag("h2", title), bodies[key], id=key)
                    for key, title in shown
                ],
            ),
            tag("footer", "Made by StageScope. Byte units are powers of 1024. A dash stands where "
                "there is no value; a zero was measured."),
        ]
    )  # fmt: skip


def _columns(seen: HypervisorView) -> list[Column]:
    """The overview's columns of the hypervisor, in a run that asked a vCenter."""
    return [Column(head=HEAD, of=partial(overview_cell, seen))] if seen.configured else []


def _seen(stage: StageView, seen: HypervisorView) -> Html | None:
    if not (seen.configured and stage.measured):
        return None
    return join([stage_flags(seen, stage), beside(seen, stage)])


def _unseen(
    run: Mapping[str, Any], index: RunSeries, no_gpu: str, view: HypervisorView, start_ns: int
) -> Html | None:
    """Below the table: whole worlds that were not measured, each with its reason."""
    told = []
    if not any(entity.startswith("gpu:") for entity, _ in index.names()):
        told.append(tag("li", tag("b", "GPU"), f" not measured: {no_gpu}."))
    if view.configured:
        told += overview_lines(view, start_ns)
    elif (seen := hypervisor(run)).startswith("not measured"):
        told.append(tag("li", tag("b", "Hypervisor"), f" {seen}."))
    return tag("ul", told, class_="unseen") if told else None


def _timeline(stages: list[StageView]) -> Html:
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
            tag(
                "p",
                "One time axis for all charts. Move over a chart to read all of them at that time; "
                "drag to zoom (or choose a stage), double-click to see all again. Keys: ← → move, "
                "Shift for larger steps, + − zoom, 0 or Esc all. Breaks in a line are times "
                "without samples.",
                class_="hint",
            ),
            left_out,
            tag(
                "div",
                tag("output", "", id="range"),
                tag("button", "Show the whole run", type="button", id="reset", disabled=True),
                class_="tools",
            ),
            tag("div", id="charts", tabindex="0", role="group", aria_label="Charts over time"),
            tag("p", id="spoken", class_="hidden", aria_live="polite"),
            tag("noscript", "The charts need JavaScript; all tables are complete without it."),
        ]
    )


def _environment(run: Mapping[str, Any]) -> Html:
    groups = [
        (key, run[key])
        for key in ("environment", "placement", "recipe", "telemetry")
        if run.get(key)
    ]
    if not groups:
        return tag("p", "The record of this run says nothing of its environment.", class_="empty")
    return join([folded(words(key).capitalize(), key_values(flat(value))) for key, value in groups])
