"""The report's sections of the stages: one for each, from its verdict down to its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from telemetry.report_generic import folded, generic, key_values
from telemetry.report_html import Html, flat, seconds, tag
from telemetry.report_metrics import figures
from telemetry.report_verdict import stage_moved, stage_verdict
from telemetry.report_view import UNENDED, StageView, status_mark, unmeasured
from telemetry.samples import Metric


def stage_section(view: StageView, metrics: Mapping[str, Metric], seen: Html | None = None) -> Html:
    """All that is known of one stage. ``seen``: what the hypervisor saw of it."""
    record = view.record
    heads = tag(
        "h3", tag("span", str(view.place), class_="place"), " ", view.name, " ", status_mark(view)
    )
    body: list[Any] = [_sentence(view)]
    if view.measured:
        body += [stage_verdict(view), figures(view, metrics), stage_moved(view), seen]
    if record.get("summary"):
        result = generic(record["summary"], "Result, as the stage reports it")
        body.append(tag("div", result, class_="summary"))
    if record.get("settings"):
        body.append(folded("Its settings", key_values(flat(record["settings"]))))
    return tag("section", heads, body, id=view.anchor, class_="stage")


def _sentence(view: StageView) -> Html:
    record = view.record
    if not view.measured:
        return tag("p", unmeasured(view))
    parts = [f"took {seconds(view.seconds)}" if view.seconds is not None else UNENDED]
    if record.get("exit_code") is not None:
        parts.append(f"exit code {record['exit_code']}")
    if record.get("pid") is not None:
        parts.append(f"process {record['pid']}")
    text = ", ".join(parts)
    why = record.get("reason")
    return tag(
        "p",
        text[0].upper() + text[1:] + ".",
        [" ", tag("strong", "Reason: "), str(why)] if why else None,
        " ",
        tag("button", "Show on the time axis", type="button", data_stage=str(view.place))
        if view.seconds
        else None,
    )
