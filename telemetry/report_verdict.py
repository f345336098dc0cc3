"""The report's verdicts: what held a stage back, by which rule and figures, and what it moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from telemetry.report_html import (
    NOTHING,
    Html,
    cell,
    exactly,
    heading,
    human,
    join,
    number,
    short,
    table,
    tag,
    words,
)
from telemetry.report_view import Row, StageView

SIGNS = {
    "data-bound": ("⇄", "data"), "CPU-bound": ("▲", "cpu"), "GPU-bound": ("◆", "gpu"),
    "memory-bound": ("■", "memory"), "disk-bound": ("●", "disk"), "network-bound": ("⇅", "net"),
    "contention": ("⚑", "contention"), "idle": ("○", "idle"), "unknown": ("?", "unknown"),
}  # fmt: skip
"""A sign and a colour's name for each verdict: read by word and sign, the colour only helps."""
OLD = (
    "This profile holds no verdicts: it was made by a version that gave none. "
    "“stagescope report RUN” makes it anew from the samples."
)
_IO = {
    "cache": "out of memory (page cache)", "storage": "from storage",
    "both": "partly out of memory, partly from storage", "little": "little was read or written",
    "unknown": "not known",
}  # fmt: skip


def verdict_mark(verdict: str) -> Html:
    """The verdict's word behind its sign."""
    sign, look = SIGNS.get(verdict, SIGNS["unknown"])
    return tag(
        "span",
        tag("span", sign, class_="sign", aria_hidden="true"),
        " ",
        verdict,
        class_=f"bound b-{look}",
    )


def sentence(text: Any) -> str:
    """What a rule says, as a sentence of its own: nothing where it says nothing."""
    told = str(text or "").strip()
    end = "" if not told or told.endswith((".", "!", "?")) else "."
    first = told.partition(" ")[0]
    return (told[:1].upper() if first.islower() else told[:1]) + told[1:] + end


def stage_verdict(view: StageView) -> Html | None:
    """The verdict of a stage with its evidence, what else fired, and the witnesses of its I/O."""
    told = view.verdict
    if told is None:
        return None
    rule = tag("span", "Rule: ", tag("code", str(told.get("rule") or "none")), class_="rule")
    also = [one for one in told.get("also") or () if isinstance(one, Mapping)]
    return tag(
        "div",
        tag(
            "p",
            verdict_mark(str(told.get("verdict") or "unknown")),
            " ",
            tag("strong", sentence(told.get("sentence")) or "No sentence was given."),
            " ",
            rule,
        ),
        _evidence(view, told.get("evidence") or ()),
        _also(also) if also else None,
        _not_judged(view, told.get("missing") or ()),
        _io(view, told.get("io")),
        class_="held",
    )


def _evidence(view: StageView, evidence: Sequence[Row]) -> Html | None:
    if not evidence:
        return None
    head = [heading("Evidence"), heading("Value", num=True), heading("Figure"), heading("Of")]
    rows = [
        tag(
            "tr",
            tag("th", str(one.get("says") or words(str(one.get("metric")))), scope="row"),
            _amount(one.get("value"), str(one.get("unit") or "")),
            cell([str(one.get("figure") or NOTHING), " of ", words(str(one.get("metric")))]),
            cell(tag("span", str(one.get("entity") or NOTHING), class_="entity")),
        )
        for one in evidence
    ]
    caption = f"Evidence for the verdict on {view.name}"
    return table(head, rows, caption=caption, class_="evidence")


def _amount(value: Any, unit: str) -> Html:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number(value, unit) if is_number or value is None else cell(str(value), num=True)


def _also(also: Sequence[Row]) -> Html:
    told = [
        tag("li", verdict_mark(str(one.get("verdict"))), " ", sentence(one.get("sentence")),
            " ", tag("code", str(one.get("rule") or "")))
        for one in also
    ]  # fmt: skip
    return join([tag("p", "Other rules that fired, in their order:"), tag("ul", told)])


def _not_judged(view: StageView, missing: Sequence[Any]) -> Html | None:
    """What could have decided otherwise, had it been known; nothing where all was judged."""
    if not missing or (view.verdict or {}).get("rule") == "missing":
        return None
    told = [tag("li", sentence(one)) for one in missing]
    return join(
        [tag("p", "Rules that could not be judged, and for want of what:"), tag("ul", told)]
    )


def _io(view: StageView, io: Row | None) -> Html | None:
    if not io:
        return None
    source = str(io.get("source") or "unknown")
    head = [heading("Witness"), heading("Read", num=True), heading("Written", num=True),
            heading("Why not seen")]  # fmt: skip
    rows = [
        tag(
            "tr",
            tag("th", str(one.get("name")), scope="row"),
            number(one.get("read_bytes"), "B", title=one.get("reason")),
            number(one.get("write_bytes"), "B", title=one.get("reason")),
            cell(str(one.get("reason") or ""), class_="said"),
        )
        for one in io.get("witnesses") or ()
    ]
    return join(
        [
            tag("h4", "Where its data came from"),
            tag(
                "p",
                tag("strong", f"{_IO.get(source, source).capitalize()}. "),
                sentence(io.get("sentence")),
            ),
            table(head, rows, caption=f"Witnesses of the I/O of {view.name}", class_="witnesses")
            if rows
            else None,
        ]
    )


def stage_moved(view: StageView) -> Html | None:
    """What a stage moved: by calls, storage, network and GPU, and how its data grew."""
    told = view.moved
    if told is None:
        return None
    moved = [one for one in told.get("moved") or () if isinstance(one, Mapping)]
    most = max((one["bytes"] for one in moved if one.get("bytes") is not None), default=0) or 1
    head = [heading("Data moved"), heading("Bytes", num=True), heading("Mean rate", num=True),
            heading("As a bar"), heading("Counted for"), heading("Source")]  # fmt: skip
    rows = [_moved_row(one, most, view.seconds) for one in moved]
    caption = f"What {view.name} moved"
    shown = table(head, rows, caption=caption, class_="moved") if rows else None
    return join([shown, _growth(told)])


def _moved_row(one: Row, most: float, long: float | None) -> Html:
    amount, why = one.get("bytes"), one.get("reason")
    scope = {"stage": "the stage alone", "machine": "the whole machine"}
    rate = amount / long if amount is not None and long else None
    return tag(
        "tr",
        tag("th", str(one.get("what")), scope="row"),
        number(amount, "B", title=why),
        number(rate, "B/s", title=why),
        tag("td", bar(amount / most) if amount else None),
        cell(scope.get(str(one.get("scope")), str(one.get("scope") or NOTHING))),
        cell(str(why) if amount is None and why else words(str(one.get("source") or NOTHING)),
             class_="said"),
    )  # fmt: skip


def bar(share: float) -> Html:
    """A bar for a share of the largest; its figure stands beside it."""
    return tag(
        "svg",
        tag("rect", class_="bar", x="0", y="0", width=f"{max(0.5, 100 * share):.2f}", height="10"),
        class_="growthbar", viewBox="0 0 100 10", preserveAspectRatio="none", aria_hidden="true",
    )  # fmt: skip


def _growth(told: Row) -> Html | None:
    parts: list[Any] = []
    if told.get("growth_ratio") is not None:
        ratio = float(told["growth_ratio"])
        parts.append(tag("span", f"Its output is × {short(ratio)} of the raw data. ",
                         title=exactly(ratio)))  # fmt: skip
    if told.get("epochs") is not None:
        parts.append(f"Epochs: {short(float(told['epochs']))}")
        each = told.get("bytes_per_epoch")
        amount = None if each is None else human(each, "B")
        parts.append(f"; the steps of each took {amount} from its table. " if amount else ". ")
    if told.get("reason"):
        parts.append(str(told["reason"]))
    return tag("p", parts, class_="note") if parts else None
