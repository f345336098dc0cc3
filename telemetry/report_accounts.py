"""The report's accounts: the ledger with its witnesses, and how the data grow on their way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from telemetry.report_html import (
    NOTHING,
    Html,
    cell,
    exactly,
    heading,
    human,
    number,
    short,
    table,
    tag,
    words,
)
from telemetry.report_verdict import bar
from telemetry.report_view import StageView

Row = Mapping[str, Any]


def ledger(entries: Sequence[Row]) -> Html:
    """The ledger: parts, witnesses measured apart, the remainder and the verdict."""
    if not entries:
        return tag("p", "There is no ledger: no stage was measured in this run.", class_="empty")
    head = [
        heading("Account"), heading("Parts"), heading("Witnesses"),
        heading("Remainder", num=True), heading("of the whole", num=True), heading("Verdict"),
    ]  # fmt: skip
    return table(head, [_ledger_row(entry) for entry in entries], caption="Ledger", class_="ledger")


def _ledger_row(entry: Row) -> Html:
    unit, closes, why = entry.get("unit") or "", entry.get("closes"), entry.get("reason")
    words_of = {True: ("yes", "✓ closes"), False: ("no", "✗ does not close")}
    kind, verdict = words_of.get(closes, ("unsure", "? too small to tell"))  # type: ignore[arg-type]
    if closes is None and entry.get("remainder") is None:
        verdict = "? not measured"
    share = entry.get("remainder_percent")
    return tag(
        "tr",
        tag("th", words(str(entry.get("name"))), scope="row"),
        cell(list(_pairs(entry.get("parts"), unit))),
        cell(list(_pairs(entry.get("witnesses"), unit))),
        _remainder(entry.get("remainder"), unit),
        cell(NOTHING if share is None else f"{share:.2f} %", num=True,
             title=None if share is None else exactly(share)),
        cell([tag("span", verdict, class_=f"verdict {kind}"), tag("small", why) if why else None]),
    )  # fmt: skip


def _pairs(values: Row | None, unit: str) -> Iterator[Html]:
    for name, value in (values or {}).items():
        title = None if value is None else f"{exactly(value)} {unit}"
        shown = tag("span", _amount(value, unit), class_="value", title=title)
        yield tag("div", words(str(name)), " ", shown, class_="pair")


def _remainder(value: float | None, unit: str) -> Html:
    if value is None:
        return number(None, unit)
    return cell(_amount(value, unit), num=True, title=f"{exactly(value)} {unit}")


def _amount(value: float | None, unit: str) -> str:
    """Witnesses are compared in their last digits: seconds stay seconds, to the hundredth."""
    return f"{value:,.2f} s" if unit == "s" and value is not None else human(value, unit)


def growth(stages: Sequence[StageView]) -> Html:
    """How much the data grow on their way, against the raw data."""
    moved = [view for view in stages if view.record.get("bytes_out") is not None]
    if not moved:
        return tag(
            "p", "No stage of this run says how many bytes it read and wrote.", class_="empty"
        )
    raw = stages[0].record.get("bytes_out") or None
    most = max(view.record["bytes_out"] for view in moved) or 1
    head = [
        heading("Stage"), heading("Rows in", num=True), heading("Rows out", num=True),
        heading("Bytes in", num=True), heading("Bytes out", num=True),
        heading("Out ÷ in", num=True),
        heading("Out ÷ raw data", num=True, title="against the first stage's output"),
        heading("Bytes out as a bar"),
    ]  # fmt: skip
    rows = [_growth_row(view, raw, most) for view in moved]
    return table(head, rows, caption="Growth of the data", class_="growth")


def _growth_row(view: StageView, raw: float | None, most: float) -> Html:
    record = view.record
    into, out = record.get("bytes_in"), record["bytes_out"]
    return tag(
        "tr",
        tag("th", view.name, scope="row"),
        _count(record.get("rows_in")),
        _count(record.get("rows_out")),
        number(into, "B"),
        number(out, "B"),
        cell(_times(out, into), num=True),
        cell(_times(out, raw), num=True),
        tag("td", bar(out / most) if out else None),
    )


def _count(value: int | None) -> Html:
    return cell(NOTHING if value is None else f"{value:,}", num=True)


def _times(part: float, whole: float | None) -> str:
    return f"× {short(part / whole)}" if whole else NOTHING
