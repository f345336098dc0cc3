"""The report's table "guest beside hypervisor": what both saw of one stage, quantity by quantity.

One table says which series stand beside each other. A figure that is not there is a dash with a
number, and the note of that number below the table says why: on paper nothing can be hovered over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from telemetry.report_contention import FLAG, flag_of, flags
from telemetry.report_generic import folded
from telemetry.report_html import NOTHING, Html, exactly, heading, human, join, percent, table, tag
from telemetry.report_hypervisor_view import HypervisorView, ended
from telemetry.report_metrics import rate_unit
from telemetry.report_quantities import QUANTITIES, Guest, Quantity
from telemetry.report_view import StageView
from telemetry.vm_entity import ESTIMATE, parsed, short_hosts

Row = Mapping[str, Any]
_UNSEEN = "a guest cannot see this"


@dataclass(frozen=True, kw_only=True)
class Side:
    """One figure of one side: whose it is, its value, or the reason why there is none."""

    of: str = ""
    value: float | None = None
    unit: str = ""
    coverage: float | None = None
    reason: str = ""
    estimate: float | None = None
    largest: float | None = None
    flag: Row | None = None


class Notes:
    """Reasons by number, each once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, reason: str) -> Html:
        """A dash with the number of its reason."""
        number = self._numbers.setdefault(reason, len(self._numbers) + 1)
        return tag("span", NOTHING, tag("sup", str(number)), class_="gone", title=reason)

    def list(self) -> Html | None:
        notes = [tag("li", reason) for reason in self._numbers]
        return tag("ol", notes, class_="notes") if notes else None


def beside(view: HypervisorView, stage: StageView) -> Html:
    """Guest beside hypervisor in one stage; further VMs of the run are folded below it."""
    title = tag("h4", "Guest beside hypervisor")
    if not view.seen:
        text = f"No figures of the hypervisor: {ended(view.why_unseen())}"
        return join([title, tag("p", text, class_="empty")])
    others = sorted({seen for row in stage.rows if (seen := parsed(row["entity"]).vm)})
    own = view.own_vm if view.own_vm in others or not others else others[0]
    rest = [name for name in others if name != own]
    return join(
        [
            title,
            _table(view, stage, own, alone=not rest),
            [
                folded(
                    f"The hypervisor's view of VM {name}", _table(view, stage, name, guest=False)
                )
                for name in rest
            ],
        ]
    )


def _table(
    view: HypervisorView,
    stage: StageView,
    vm: str | None,
    *,
    guest: bool = True,
    alone: bool = True,
) -> Html:
    notes, found = Notes(), flags(view, stage.name)
    pairs = [
        (
            quantity,
            _guest_sides(stage, quantity) if guest else [Side(reason="no recorder ran there")],
            _hypervisor_sides(view, stage, quantity, vm, found),
        )
        for quantity in QUANTITIES
    ]
    known = {q.group for q, ours, theirs in pairs if _any((*ours, *theirs))}
    by_hypervisor = any(_any(theirs) for _, _, theirs in pairs)
    groups: dict[str, list[Any]] = {}
    empty: dict[str, list[str]] = {}
    for quantity, ours, theirs in pairs:
        if _any((*ours, *theirs)) or (by_hypervisor and quantity.group in known):
            lines = _lines(quantity, ours, theirs, notes)
            groups.setdefault(quantity.group, []).append(lines)
        else:
            name = f"{quantity.group}: {quantity.title}"
            empty.setdefault(theirs[0].reason, []).append(name)
    if not groups:
        why = next(iter(empty), view.why_unseen())
        return tag("p", f"Neither side has a figure of this stage: {why}", class_="empty")
    body = [
        [tag("tr", tag("th", group, colspan="5", scope="colgroup"), class_="group"), lines]
        for group, lines in groups.items()
    ]
    caption = f"Guest beside hypervisor in {stage.name}" + ("" if alone else f": VM {vm}")
    return join(
        [
            table(_head(), body, caption=caption, class_="beside"),
            tag("p", _legend(groups), class_="note"),
            notes.list(),
            _empty(empty),
        ]
    )


def _any(sides: Sequence[Side]) -> bool:
    """Whether a side has a value, or covers the stage with windows that are too long for it."""
    return any(side.value is not None or side.coverage for side in sides)


def _head() -> list[Html]:
    return [
        heading("Quantity"),
        heading("Guest", unit="mean, coverage", num=True, title="as this machine itself saw it"),
        heading("Hypervisor", unit="mean, coverage", num=True,
                title="vCenter's windows by their overlap with the stage"),
        heading("Estimate", unit="mean", num=True,
                title="the hypervisor's windows, sharpened by the guest's own signal"),
        heading("Largest", unit="window", num=True, title="the largest window of the stage"),
    ]  # fmt: skip


def _legend(groups: Mapping[str, Any]) -> Html:
    return join(
        [
            "Hypervisor: vCenter's windows of 20 s, shared out by overlap. ",
            tag("em", "est.", class_="est"),
            " an estimate: the same windows sharpened by the guest's own 10 Hz signal, each "
            "window's total kept. ",
            f"{FLAG} above a threshold of contention.",
            " Devices of the two sides stand in their own order: which is which is not known."
            if "Disk" in groups or "Network" in groups
            else "",
        ]
    )


def _empty(empty: Mapping[str, Sequence[str]]) -> Html | None:
    if not empty:
        return None
    told = [
        [tag("dt", reason or "no reason was given"), tag("dd", ", ".join(names))]
        for reason, names in empty.items()
    ]
    count = sum(len(names) for names in empty.values())
    title = f"Seen by neither side in this stage: {count} quantities"
    return folded(title, tag("dl", told, class_="absent"))


def _guest_sides(stage: StageView, quantity: Quantity) -> list[Side]:
    guest = quantity.guest
    if guest is None:
        return [Side(reason=_UNSEEN)]
    rows = stage.find(guest.entity, re.escape(guest.metric))
    sides = [_guest_side(stage, guest, row) for row in rows]
    known = [side for side in sides if side.value is not None]
    if known:
        return known
    reason = (
        sides[0].reason
        if sides
        else stage.reason(f"{guest.entity}|gpu")
        if quantity.of == "gpu"
        else None
    )
    return [Side(reason=reason or "this guest has no such series")]


def _guest_side(stage: StageView, guest: Guest, row: Row) -> Side:
    kind, _, name = row["entity"].partition(":")
    unit, scale = rate_unit(row)
    value, coverage = row["mean"], row.get("coverage")
    reason = row.get("reason") or ""
    if guest.per is not None:
        count = stage.total(re.escape(row["entity"]), guest.per)
        value = row["total"] / count if row["total"] is not None and count else None
        unit, scale = guest.unit or unit, guest.scale
        reason = reason or "there were no requests"
    of = f"GPU {name}" if kind == "gpu" else name
    known = None if value is None else value * scale
    return Side(of=of, value=known, unit=unit, coverage=coverage or None, reason=reason)


def _hypervisor_sides(
    view: HypervisorView, stage: StageView, quantity: Quantity, vm: str | None, found: Sequence[Row]
) -> list[Side]:
    rows = [
        row for row in stage.find("(vm|esxi)(:.*)?", quantity.metric) if _is_of(row, quantity, vm)
    ]
    known = [row for row in rows if row["mean"] is not None]
    if not known:
        covered = sorted(rows, key=lambda row: -(row.get("coverage") or 0.0))
        first: Row = covered[0] if covered else {}
        none = "vCenter gave no such series" if view.seen else view.why_unseen()
        sharpened = _sharpened(stage, first) if first else None
        return [
            Side(
                reason=first.get("reason") or none,
                coverage=first.get("coverage") or None,
                unit=first.get("unit") or "",
                estimate=sharpened,
            )
        ]
    hosts = [host for row in known if (host := parsed(row["entity"]).host)]
    short = short_hosts(hosts) if len(set(hosts)) > 1 else {}
    return [_hypervisor_side(stage, row, short, found) for row in known]


def _is_of(row: Row, quantity: Quantity, vm: str | None) -> bool:
    seen = parsed(row["entity"])
    if quantity.of == "vm":
        return vm is None or seen.vm in {vm, None}
    return seen.vm is None


def _hypervisor_side(
    stage: StageView, row: Row, short: Mapping[str, str], found: Sequence[Row]
) -> Side:
    seen = parsed(row["entity"])
    instance = (seen.instance or "").replace("gpu:", "GPU ")
    where = f"on {short[seen.host]}" if seen.host and seen.host in short else ""
    return Side(
        of=" ".join(part for part in (instance, where) if part),
        value=row["mean"],
        unit=row["unit"] or "",
        coverage=row.get("coverage"),
        estimate=_sharpened(stage, row),
        largest=row["max"],
        flag=flag_of(found, row["entity"], row["metric"]),
    )


def _sharpened(stage: StageView, row: Row) -> float | None:
    """The estimate made of a row's windows; it can be there for a stage shorter than a window."""
    found = stage.find(re.escape(row["entity"]), re.escape(row["metric"] + ESTIMATE))
    return next((one["mean"] for one in found), None)


def _lines(
    quantity: Quantity, ours: Sequence[Side], theirs: Sequence[Side], notes: Notes
) -> list[Html]:
    count = max(len(ours), len(theirs))
    title = tag(
        "th",
        quantity.title,
        tag("small", quantity.meaning) if quantity.meaning else None,
        title=quantity.meaning or None,
        scope="rowgroup" if count > 1 else "row",
        rowspan=str(count) if count > 1 else None,
    )
    lines = []
    for place in range(count):
        mine = ours[place] if place < len(ours) else None
        other = theirs[place] if place < len(theirs) else None
        lines.append(tag("tr", title if place == 0 else None, list(_cells(mine, other, notes))))
    return lines


def _cells(ours: Side | None, theirs: Side | None, notes: Notes) -> Iterator[Html]:
    yield _value(ours, notes, "guest")
    flagged = (theirs.flag or {}).get("figure", "mean") if theirs and theirs.flag else None
    yield _value(theirs, notes, "flagged" if flagged == "mean" else "")
    estimate = theirs.estimate if theirs is not None else None
    if theirs is None or estimate is None:
        yield _td("")
    else:
        shown = tag("em", "est. ", human(estimate, theirs.unit), class_="est")
        yield _td(shown, "", estimate, theirs.unit)
    largest = theirs.largest if theirs is not None else None
    if theirs is None or largest is None:
        yield _td("")
    else:
        text = human(largest, theirs.unit)
        over = flagged == "max"
        marked = tag("b", f"{FLAG} {text}") if over else text
        yield _td(marked, "flagged" if over else "", largest, theirs.unit)


def _value(side: Side | None, notes: Notes, class_: str) -> Html:
    """A figure with whose it is and, below it, how much of the stage it covers."""
    if side is None:
        return _td("", class_)
    of = tag("span", side.of, class_="of") if side.of else None
    covered = tag("small", percent(side.coverage)) if side.coverage is not None else None
    if side.value is None:
        return _td([of, notes.mark(side.reason or "no reason was given"), covered], class_)
    flag = f"{FLAG} " if class_ == "flagged" else ""
    shown = tag("b", flag + human(side.value, side.unit))
    return _td([of, shown, covered], class_, side.value, side.unit)


def _td(text: Any, class_: str = "", exact: float | None = None, unit: str = "") -> Html:
    title = None if exact is None else f"{exactly(exact)} {unit}".strip()
    return tag("td", text, title=title, class_=f"num {class_}".strip())
