"""A comparison as one HTML file: no script, no network, tables that say in words what is drawn."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from telemetry.compare import ALPHA_REST, ALPHA_TIMES, Comparison
from telemetry.compare_timeline import Timeline, drawings, timeline
from telemetry.compared import FAR_OFF, Compared, percent
from telemetry.reference import Reference
from telemetry.report_html import Html, cell, heading, human, join, number, table, tag

__all__ = ["render", "timeline"]
_WORDS = {"unsure": "could not tell"}
_OUTCOMES = {"same": "Same", "differs": "Differs", "unsure": "Could not tell"}
_FOREST = 260
_MEDIAN, _OF_MEANS = "median", "difference of means"
_FOOTER = (
    "Made by StageScope. A and B are medians of the runs. Differences, changes and intervals are "
    "B less A, of the means on the logarithmic scale of the test: they may disagree with the "
    "medians where a run lies far off. A dash: there is no value."
)
_META = (
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
)


def render(comparison: Comparison, lines: Sequence[Timeline | None] = (None, None)) -> str:
    """The page. ``lines``: what was sampled on either side, None for a published profile."""
    style = "".join(
        files("telemetry").joinpath("assets", name).read_text(encoding="utf-8")
        for name in ("report.css", "compare.css")
    )
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    title = f"{comparison.a.name} and {comparison.b.name} · StageScope"
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        Html(_META),
        tag("title", title),
        tag("style", Html(style)),
    ]
    page = tag("html", tag("head", head), tag("body", _body(comparison, lines)), lang="en")
    return f"<!doctype html>\n{page}\n"


def _body(comparison: Comparison, lines: Sequence[Timeline | None]) -> list[Html]:
    found = [row for row in comparison.rest if row.is_found]
    sections = (
        ("times", "Stage times", _times(comparison)),
        ("why", "Why", _why(comparison)),
        ("held", "What held each stage back", _held_back(comparison)),
        ("timeline", "Both timelines", _timelines(comparison, lines)),
        ("metrics", "Metrics that differ", _metrics(found, "Metrics that differ")),
        ("environment", "Environment", _environment(comparison)),
        ("all", "All figures", _all(comparison)),
    )
    shown = [(key, title, body) for key, title, body in sections if body is not None]
    return [
        tag(
            "header",
            tag("p", "Comparison of stage profiles", class_="kicker"),
            tag("h1", f"{comparison.a.name} and {comparison.b.name}"),
            tag("p", _outcome(comparison), class_=f"outcome {comparison.outcome}"),
            tag("ul", [tag("li", one) for one in comparison.open_points()])
            if comparison.outcome == "unsure"
            else None,
            [tag("p", f"Note: {one}.", class_="hint") for one in comparison.notes],
            tag("div", _facts(comparison.a, "A"), _facts(comparison.b, "B"), class_="sides"),
        ),
        tag(
            "nav",
            [tag("a", title, href=f"#{key}") for key, title, _ in shown],
            aria_label="Sections",
        ),
        tag("main", [tag("section", tag("h2", title), body, id=key) for key, title, body in shown]),
        tag("footer", _FOOTER),
    ]


def _outcome(comparison: Comparison) -> str:
    times = [row.short() for row in comparison.times if row.is_found]
    if times:
        return f"{_OUTCOMES['differs']}: {'; '.join(times)}"
    if comparison.outcome == "differs":
        return f"{_OUTCOMES['differs']}: no stage time, but metrics of the stages"
    if comparison.outcome == "unsure":
        return f"{_OUTCOMES['unsure']}: nothing differs beyond noise, but not all could be told"
    return f"{_OUTCOMES['same']}: no stage and no metric of its own differs beyond noise"


def _facts(side: Reference, key: str) -> Html:
    facts = (
        (key, side.name),
        ("Runs", str(side.runs)),
        ("Measured", f"{side.measured['from']} to {side.measured['to']}"),
        ("Recipe", side.recipe_digest[:23]),
    )
    return tag(
        "dl", [tag("div", tag("dt", name), tag("dd", text)) for name, text in facts],
        class_=key.lower(),
    )  # fmt: skip


def _times(comparison: Comparison) -> Html:
    widest = _widest(comparison)
    head = [
        "Stage",
        *(heading(name, unit=_MEDIAN, num=True) for name in ("A", "B")),
        heading("B less A", unit=_OF_MEANS, num=True),
        heading("Interval", unit="of that difference", num=True),
        heading(f"−{percent(widest)} … 0 … +{percent(widest)}"),
        "Verdict",
        heading("Varies", num=True, title="from run to run"),
        heading("Could have found", num=True, title="in 9 of 10 cases"),
        heading("5 % needs", num=True),
    ]
    rows = [
        tag(
            "tr",
            tag("th", row.stage, scope="row"),
            number(row.a, "s"),
            number(row.b, "s"),
            cell(percent(row.change, signed=True), num=True),
            cell(row.interval(), num=True),
            cell(_forest(row, widest, comparison.tolerance)),
            cell(_verdict(row)),
            cell(_varies(row), num=True),
            cell(percent(row.smallest) or "–", num=True),
            cell(_needs(row), num=True),
        )
        for row in comparison.times
    ]
    hint = (
        f"Intervals hold for all stages at once (false alarm in one of these families: "
        f"{100 * ALPHA_TIMES:g} %). Grey: within {percent(comparison.tolerance)}, where a stage is "
        "called the same. 5 % needs: runs on each side, where a stage varies by more than 1 %. "
        "By the sitting: what runs that were made in a row have in common, and others have not."
    )
    return join(
        [table(head, rows, caption="Stage times", class_="times"), tag("p", hint, class_="hint")]
    )


def _varies(row: Compared) -> Any:
    if row.spread is None:
        return "–"
    if not row.drift:
        return percent(row.spread)
    return join([percent(row.spread), tag("small", f"{percent(row.drift)} by the sitting")])


def _needs(row: Compared) -> str:
    if row.needs_sittings:
        return "more sittings"
    return f"{row.runs_for_5_percent} runs" if row.runs_for_5_percent else ""


def _held_back(comparison: Comparison) -> Html | None:
    if not any(a or b for a, b in comparison.held_back_by.values()):
        return None
    rows = [
        tag("tr", tag("th", stage, scope="row"), cell(a or "–"), cell(b or "–"))
        for stage, (a, b) in comparison.held_back_by.items()
    ]
    hint = (
        "The verdict of each run by itself, and of how many runs where they are not all alike. A "
        "comparison is not decided by it. A dash: none was kept."
    )
    head = ["Stage", "A", "B"]
    return join(
        [table(head, rows, caption="What held each stage back"), tag("p", hint, class_="hint")]
    )


def _widest(comparison: Comparison) -> float:
    """Where the drawings of intervals end: wide enough for all that is not beyond all sense."""
    ends = [
        abs(v) for r in comparison.times for v in (r.change_low, r.change_high) if v is not None
    ]
    return min(max([1.2 * comparison.tolerance, *(1.1 * end for end in ends)]), 1.0)


def _verdict(row: Compared) -> Html:
    word = tag("span", _WORDS.get(row.verdict, row.verdict), class_=f"verdict {row.verdict}")
    return join([word, tag("small", FAR_OFF, class_="faroff") if row.medians_disagree else None])


def _forest(row: Compared, widest: float, tolerance: float) -> Html | None:
    if row.change is None or row.change_low is None or row.change_high is None:
        return None

    def x(value: float) -> float:
        return _FOREST / 2 * (1 + max(-1.0, min(1.0, value / widest)))

    low, middle, high = (x(value) for value in (row.change_low, row.change, row.change_high))
    found = " found" if row.is_found else ""
    near, far = x(-tolerance), x(tolerance)
    return tag(
        "svg",
        tag("path", d=f"M{near:.1f} 0H{far:.1f}V18H{near:.1f}Z", class_="zone"),
        tag("path", d=f"M{_FOREST / 2} 0V18", class_="zero"),
        tag(
            "path",
            d=f"M{low:.1f} 9H{high:.1f}M{low:.1f} 5V13M{high:.1f} 5V13",
            class_=f"line{found}",
        ),
        tag("path", d=f"M{middle - 4:.1f} 9l4 -4l4 4l-4 4Z", class_=f"dot{found}"),
        viewBox=f"0 0 {_FOREST} 18",
        class_="forest",
        role="img",
        aria_label=row.interval(),
    )


def _why(comparison: Comparison) -> Html | None:
    if not comparison.explanations:
        return None
    return tag("ul", [tag("li", one.sentence) for one in comparison.explanations], class_="why")


def _timelines(comparison: Comparison, lines: Sequence[Timeline | None]) -> Html:
    told = [
        f"{key}: run {one.run_id}, the middle one in length"
        if one is not None
        else f"{key}: a published profile, which holds no series"
        for key, one in zip("AB", lines, strict=True)
    ]
    hint = f"One axis: time since the run began. A is solid, B is dashed. {'; '.join(told)}."
    return join([tag("p", hint, class_="hint"), *drawings(comparison.a, comparison.b, lines)])


def _metrics(rows: Sequence[Compared], caption: str) -> Html:
    if not rows:
        return tag("p", "No other metric differs beyond noise.", class_="empty")
    head = [
        "Stage",
        "Metric",
        "Figure",
        *(heading(name, unit=_MEDIAN, num=True) for name in ("A", "B")),
        *(heading(name, unit=_OF_MEANS, num=True) for name in ("Change", "Difference")),
        heading("Interval", unit="of that difference", num=True),
        "Verdict",
    ]
    return table(head, map(_metric, rows), caption=caption, class_="figures")


def _metric(row: Compared) -> Html:
    interval = "–"
    if row.low is not None and row.high is not None:
        interval = f"{human(row.low, row.unit)} to {human(row.high, row.unit)}"
    return tag(
        "tr",
        tag("th", row.stage, scope="row"),
        cell(f"{row.entity} {row.metric}"),
        cell(row.figure),
        number(row.a, row.unit),
        number(row.b, row.unit),
        cell(percent(row.change, signed=True) or "–", num=True),
        number(row.difference, row.unit),
        cell(interval, num=True),
        cell(_verdict(row)),
    )


def _environment(comparison: Comparison) -> Html:
    if not comparison.environment:
        return tag("p", "Nothing that is known of the environments differs.", class_="empty")

    def said(value: Any) -> str:
        return "–" if value is None else str(value)

    rows = [
        tag("tr", tag("th", one.key, scope="row"), cell(said(one.a)), cell(said(one.b)))
        for one in comparison.environment
    ]
    return table(["Key", "A", "B"], rows, caption="What differs in the environment")


def _all(comparison: Comparison) -> Html:
    alone = sum(map(len, comparison.only_figures.values()))
    text = (
        f"{len(comparison.rest)} figures besides the times, with intervals that hold for all of "
        f"them at once (false alarm: {100 * ALPHA_REST:g} %); {comparison.too_small} more are too "
        f"small to matter, and {alone} one side alone has."
    )
    return tag(
        "details",
        tag("summary", text),
        _metrics(comparison.rest, "All figures"),
        *_only(comparison),
    )


def _only(comparison: Comparison) -> list[Html]:
    """A table of what one side alone has, if it has anything."""
    rows = [
        tag("tr", tag("th", one.stage, scope="row"), cell(f"{one.entity} {one.metric}"),
            cell(one.figure), cell(side.upper()))
        for side, ones in comparison.only_figures.items()
        for one in ones
    ]  # fmt: skip
    columns = ["Stage", "Metric", "Figure", "Measured in"]
    title = "Measured on one side only"
    return [tag("h3", title), table(columns, rows, caption=title)] if rows else []
