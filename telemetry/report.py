"""The report of a run: one HTML file that needs nothing beside it, neither network nor library.

The tables are written here, so that they are read without a script and in print; a small script
of the page's own draws the charts from the JSON that stands in it. The same run gives the same
bytes. What comes from the run is escaped, and a content security policy lets no other script run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

from telemetry.report_accounts import growth, ledger
from telemetry.report_beside import beside
from telemetry.report_contention import contention, overview_column, stage_flags
from telemetry.report_generic import absent_list, folded, key_values
from telemetry.report_header import about, header, hypervisor, why_no_gpu
from telemetry.report_html import (
    NOTHING,
    Html,
    flat,
    join,
    tag,
    words,
)
from telemetry.report_hypervisor import (
    overview_lines,
    section,
)
from telemetry.report_hypervisor_view import HypervisorView, hypervisor_view
from telemetry.report_overview import Column, gpu_column, overview
from telemetry.report_series import RunSeries
from telemetry.report_stages import stage_section
from telemetry.report_timeline import chart_data, extent_of, is_end_known, timeline
from telemetry.report_verdict import OLD
from telemetry.report_view import StageView, views
from telemetry.segments import SampleSet

_SECTIONS = (
    ("overview", "Overview"),
    ("contention", "Contention"),
    ("timeline", "Timeline"),
    ("stages", "Stages"),
    ("hypervisor", "Hypervisor"),
    ("ledger", "Ledger"),
    ("growth", "Growth of the data"),
    ("absent", "Not measured"),
    ("environment", "Environment"),
)
_SCRIPTS = ("report_axis.js", "report_draw.js", "report.js")


def render(run: Mapping[str, Any], profile: Mapping[str, Any], samples: SampleSet) -> str:
    """Return the report of a run as HTML.

    ``run``: run.json; ``profile``: profile.json; ``samples``: all samples of the run. A run that
    was killed, has no stages or no samples has a report as well, which says so.
    """
    index = RunSeries(samples)
    stages = views(run, profile)
    extent = extent_of(run, stages, index)
    seen = hypervisor_view(run, profile, index, extent)
    style, script = _asset("report.css"), _script()
    data = chart_data(stages, index, seen, extent)
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


def _script() -> str:
    """The page's one script: its parts in their order, in a scope of their own."""
    parts = "\n".join(_asset(name) for name in _SCRIPTS)
    return f'"use strict";\n(() => {{\n{parts}}})();\n'


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


def _body(
    run: Mapping[str, Any],
    profile: Mapping[str, Any],
    stages: list[StageView],
    index: RunSeries,
    seen: HypervisorView,
) -> Html:
    extent = extent_of(run, stages, index)
    no_gpu = why_no_gpu(run, index)
    run_seconds = (extent[1] - extent[0]) / 1e9 if is_end_known(run) else None
    missing = [
        (one.entity, one.metric.name, one.reason)
        for one in index.absent
        if (one.entity, one.metric.name) not in index  # else it was lost on the way: stages say so
    ]
    bodies = {
        "overview": [
            overview(stages, extent, run_seconds, _columns(index, seen, no_gpu)),
            _lines(
                _no_verdicts(stages),
                _no_gpu(index, no_gpu),
                *_no_hypervisor(run, seen, extent[0]),
            ),
        ],
        "contention": contention(seen, stages) if seen.configured else None,
        "hypervisor": section(seen, stages, extent[0]) if seen.configured else None,
        "timeline": timeline(stages),
        "stages": [stage_section(view, index.metrics, _seen(view, seen)) for view in stages]
        or tag("p", "No stage began in this run.", class_="empty"),
        "ledger": ledger(profile.get("ledger") or ()),
        "growth": growth(stages),
        "absent": absent_list(missing, "in the whole run", opened=True)
        or tag("p", "Every series that a collector knows was there.", class_="empty"),
        "environment": _environment(run, extent),
    }
    shown = [(key, title) for key, title in _SECTIONS if bodies[key] is not None]
    return join(
        [
            header(run, extent, seen),
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


def _columns(index: RunSeries, seen: HypervisorView, no_gpu: str) -> list[Column]:
    """The overview's columns of the GPU and the hypervisor, in a run that has them."""
    columns = [gpu_column(no_gpu)] if _has_gpu(index) else []
    return columns + ([overview_column(seen)] if seen.configured else [])


def _has_gpu(index: RunSeries) -> bool:
    return any(entity.startswith("gpu:") for entity, _ in index.names())


def _seen(stage: StageView, seen: HypervisorView) -> Html | None:
    if not (seen.configured and stage.measured):
        return None
    return join([stage_flags(seen, stage), beside(seen, stage)])


def _lines(*told: Html | None) -> Html | None:
    """Below the table: what was not measured as a whole, a sentence with its reason for each."""
    found = [line for line in told if line is not None]
    return tag("ul", found, class_="unseen") if found else None


def _no_gpu(index: RunSeries, why: str) -> Html | None:
    return None if _has_gpu(index) else tag("li", tag("b", "GPU"), f" not measured: {why}.")


def _no_verdicts(stages: list[StageView]) -> Html | None:
    measured = [stage for stage in stages if stage.measured]
    if not measured or any(stage.verdict for stage in measured):
        return None
    return tag("li", tag("b", "Verdicts"), f" absent. {OLD}")


def _no_hypervisor(run: Mapping[str, Any], view: HypervisorView, start_ns: int) -> Iterable[Html]:
    if view.configured:
        return overview_lines(view, start_ns)
    seen = hypervisor(run)
    return [tag("li", tag("b", "Hypervisor"), f" {seen}.")] if _is_absent(seen) else []


def _is_absent(told: str) -> bool:
    return told.startswith("not measured")


def _environment(run: Mapping[str, Any], extent: tuple[int, int]) -> Html:
    groups = [
        (key, run[key])
        for key in ("environment", "placement", "recipe", "telemetry")
        if run.get(key)
    ]
    if not groups:
        return tag("p", "The record of this run says nothing of its environment.", class_="empty")
    facts = [tag("div", tag("dt", key), tag("dd", value or NOTHING))
             for key, value in about(run, extent)]  # fmt: skip
    folds = [folded(words(key).capitalize(), key_values(flat(value))) for key, value in groups]
    return join([tag("dl", facts, class_="facts"), folds])
