"""The report's flags of contention: a figure of the hypervisor that passed its threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from telemetry.contention import is_judged
from telemetry.report_html import (
    Html,
    cell,
    exactly,
    heading,
    human,
    number,
    table,
    tag,
    words,
)
from telemetry.report_hypervisor_view import HypervisorView, ended
from telemetry.report_overview import Column, Fact
from telemetry.report_view import StageView
from telemetry.vm_entity import parsed

Row = Mapping[str, Any]
FLAG = "⚑"


def flags(view: HypervisorView, stage: str | None = None) -> list[Row]:
    """The flags of the run, or of one stage, in the profile's order."""
    found = [one for one in view.told.get("contention") or () if isinstance(one, Mapping)]
    return [one for one in found if stage is None or one.get("stage") == stage]


def flag_of(found: Sequence[Row], entity: str, metric: str) -> Row | None:
    """The flag of one figure, None where it has none."""
    return next((f for f in found if f.get("entity") == entity and f.get("metric") == metric), None)


def has_figures(stage: StageView) -> bool:
    """Whether the hypervisor saw of this stage anything that there is a threshold for.

    Of a stage shorter than a window there are estimates and clocks at most: nothing to judge.
    """
    return any(is_judged(row["entity"], row["metric"]) and row["mean"] is not None
               for row in stage.rows)  # fmt: skip


def overview_column(view: HypervisorView) -> Column:
    """The overview's column of the hypervisor: how long vCPUs waited, and the flags."""
    return Column(title="Hypervisor", below="ready, flags", of=partial(_facts, view),
                  meaning="share of the time in which a vCPU waited for a core; figures above a "
                  "threshold")  # fmt: skip


def _facts(view: HypervisorView, stage: StageView) -> Sequence[Fact]:
    ready = [row["mean"] for row in stage.find("vm:[^/]+", "vm_cpu_ready_percent")
             if row["mean"] is not None]  # fmt: skip
    found = flags(view, stage.name)
    told = []
    if ready:
        told.append(Fact(text=f"{human(max(ready), '%')} ready", title=exactly(max(ready))))
    if found:
        title = "; ".join(_short(one) for one in found)
        word = " flag" if len(found) == 1 else " flags"
        link = tag("a", f"{FLAG} {len(found)}", href=f"#{stage.anchor}-contention")
        told.append(Fact(text=tag("b", link, word, class_="flagged"), title=title))
    elif has_figures(stage):
        told.append(Fact(text="no flag", title="no figure passed its threshold"))
    else:
        told.append(Fact(text="not known", title=why_not_known(view, stage), gone=True))
    return told


def why_not_known(view: HypervisorView, stage: StageView) -> str:
    """Why nobody can say whether this stage met contention."""
    return stage.reason("vm(:.*)?", "vm_.*") or view.why_unseen()


def _short(flag: Row) -> str:
    amount = human(flag.get("value"), str(flag.get("unit") or ""))
    return f"{words(str(flag.get('metric')))} {amount}"


def contention(view: HypervisorView, stages: Sequence[StageView]) -> Html:
    """The table of all flags of the run, or the sentence that there are none."""
    found = flags(view)
    if found:
        places = {stage.name: stage for stage in stages}
        found = sorted(found, key=lambda flag: _place(flag, places))
        caption = "Figures of the hypervisor above a threshold"
        return _table(found, places, caption, view.own_vm)
    if any(has_figures(stage) for stage in stages):
        text = "No figure of the hypervisor passed a threshold of contention in any stage."
        return tag("p", text, class_="note")
    text = f"Not known: {ended(view.why_unseen())}"
    return tag("p", text, class_="empty")


def _place(flag: Row, places: Mapping[str, StageView]) -> int:
    stage = places.get(str(flag.get("stage")))
    return stage.place if stage is not None else len(places) + 1


def stage_flags(view: HypervisorView, stage: StageView) -> Html | None:
    """The flags of one stage, at that stage; None without any."""
    found = flags(view, stage.name)
    if not found:
        return None
    heads = tag("h4", f"{FLAG} Contention in this stage")
    shown = _table(found, None, f"Contention in {stage.name}", view.own_vm)
    return tag("div", heads, shown, class_="contention", id=f"{stage.anchor}-contention")


def _table(
    found: Sequence[Row],
    places: Mapping[str, StageView] | None,
    caption: str,
    own_vm: str | None,
) -> Html:
    head: list[Any] = [
        heading("What"), heading("Value", num=True), heading("Threshold", num=True),
        heading("The threshold's source"),
    ]  # fmt: skip
    if places is not None:
        head.insert(0, heading("Stage"))
    rows = [_row(flag, places, own_vm) for flag in found]
    return table(head, rows, caption=caption, class_="flags")


def _of(entity: str, own_vm: str | None) -> str:
    """Whose figure it is; this machine's own VM is not named again."""
    seen = parsed(entity)
    vm = f"VM {seen.vm}" if seen.vm and seen.vm != own_vm else None
    where = f"on {seen.host}" if seen.host else None
    return " ".join(part for part in (vm, seen.instance, where) if part) or entity


def _row(flag: Row, places: Mapping[str, StageView] | None, own_vm: str | None) -> Html:
    unit, threshold = str(flag.get("unit") or ""), flag.get("threshold")
    what = str(flag.get("sentence") or words(str(flag.get("metric") or "an unnamed figure")))
    limit = cell("any", num=True) if threshold == 0 else number(threshold, unit)
    return tag(
        "tr",
        _stage_head(str(flag.get("stage") or "unknown"), places) if places is not None else None,
        cell([what, tag("small", _of(str(flag.get("entity") or ""), own_vm))], class_="said"),
        cell(
            tag("b", f"{FLAG} {human(flag.get('value'), unit)}"),
            num=True,
            title=_exact(flag.get("value"), unit),
            class_="flagged",
        ),
        limit,
        cell(str(flag.get("source") or "no source was given"), class_="said"),
    )


def _exact(value: float | None, unit: str) -> str | None:
    return None if value is None else f"{exactly(value)} {unit}"


def _stage_head(name: str, places: Mapping[str, StageView]) -> Html:
    stage = places.get(name)
    if stage is None:
        return tag("th", name, scope="row")
    link = tag("a", f"{stage.place} {name}", href=f"#{stage.anchor}")
    return tag("th", link, scope="row")
