"""Words and elements of the report: HTML that escapes by default, and numbers with their units."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

_VOID = frozenset({"meta", "link", "br", "img", "hr"})
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SI_UNITS = {
    "W": ("W", "kW", "MW"),
    "J": ("J", "kJ", "MJ", "GJ"),
    "Hz": ("Hz", "kHz", "MHz", "GHz"),
}
_SMALL_SECONDS = ((1.0, 1.0, "s"), (1e-3, 1e3, "ms"), (0.0, 1e6, "µs"))
NOTHING = "–"
"""What a cell shows where there is no value; the reason is beside it or in its title."""


class Html(str):
    """Text that is HTML already. Any other string is escaped when it enters an element."""

    __slots__ = ()


type_of_child = str | Html | None | Iterable["type_of_child"]


def tag(name: str, *children: Any, **attributes: Any) -> Html:
    """An element. Children: text (escaped), ``Html``, None (left out) or sequences of these.

    Attributes: ``class_`` for class, ``data_x`` for data-x; None and False leave one out, True
    writes its bare name.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Any) -> Html:
    """Children in a row as HTML."""
    if children is None:
        return Html("")
    if isinstance(children, Html):
        return children
    if isinstance(children, str):
        return Html(_escaped(children))
    return Html("".join(join(child) for child in children))


def _attribute(key: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{_escaped(str(value))}"'


def _escaped(text: str) -> str:
    """As HTML; a name of a file that is no UTF-8, as Python has it, in backslashes."""
    return html.escape(text.encode("utf-8", "backslashreplace").decode())


def table(
    head: Sequence[Any], rows: Iterable[Any], *, caption: str, class_: str = "", foot: Any = None
) -> Html:
    """A table in its own scrolling box, which the keyboard can reach."""
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption),
            tag("thead", tag("tr", [cell if _is(cell, "th") else heading(cell) for cell in head])),
            tag("tbody", rows),
            tag("tfoot", foot) if foot is not None else None,
            class_=class_ or None,
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def heading(
    text: Any, *, unit: str | None = None, title: str | None = None, num: bool = False
) -> Html:
    """A column's head, with its unit below it."""
    below = tag("span", unit, class_="unit") if unit else None
    return tag("th", text, below, scope="col", title=title, class_="num" if num else None)


def _is(cell: Any, element: str) -> bool:
    return isinstance(cell, Html) and cell.startswith(f"<{element}")


def cell(text: Any, *, title: str | None = None, num: bool = False, class_: str = "") -> Html:
    """A table cell; numbers stand to the right."""
    classes = " ".join(filter(None, ("num" if num else "", class_)))
    return tag("td", text, title=title, class_=classes or None)


def number(value: float | None, unit: str, *, title: str | None = None) -> Html:
    """A cell with a value in human units and the exact one in its title; a dash without one."""
    if value is None:
        return cell(NOTHING, num=True, title=title or "not measured", class_="none")
    exact = f"{exactly(value)} {unit}".strip()
    return cell(human(value, unit), num=True, title=f"{exact}; {title}" if title else exact)


def exactly(value: float) -> str:
    """The value with all its digits, in plain notation where that is readable."""
    if float(value).is_integer() and abs(value) < 1e18:
        return f"{int(value)}"
    return f"{value!r}"


def human(value: float | None, unit: str) -> str:
    """A value with its unit for people: ``1.21 GiB``, ``340 MiB/s``, ``1.8 cores``, ``62 %``."""
    if value is None or not math.isfinite(value):
        return NOTHING
    base, slash, per = unit.partition("/")
    suffix = slash + per
    if base in {"B", "bytes", "byte"}:
        return _scaled(value, 1024.0, _BYTE_UNITS) + suffix
    if base in _SI_UNITS:
        return _scaled(value, 1000.0, _SI_UNITS[base]) + suffix
    if unit == "s":
        return seconds(value)
    if unit == "share":
        return f"{short(100 * value)} %"
    return f"{short(value)} {unit}".rstrip() if unit not in {"1", ""} else short(value)


def _scaled(value: float, step: float, units: Sequence[str]) -> str:
    index = 0
    while abs(value) >= step * 0.9995 and index < len(units) - 1:
        value, index = value / step, index + 1
    return f"{short(value, whole=index == 0)} {units[index]}"


def short(value: float, *, whole: bool = True) -> str:
    """Three significant digits, thousands separated, no exponent in everyday sizes.

    ``whole``: a whole number stays one (``5``); without it has its digits too (``5.00``).
    """
    size = abs(value)
    if size == 0 or (whole and size < 1e12 and float(value).is_integer()):
        return f"{value:,.0f}"
    if size >= 1e12 or size < 1e-4:
        return f"{value:.2e}"
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.{max(0, 2 - math.floor(math.log10(abs(rounded))))}f}"


def seconds(value: float) -> str:
    """A duration: ``850 ms``, ``12.3 s``, ``3 min 05 s``, ``2 h 04 min``."""
    size = abs(value)
    if size >= 3599.5:
        minutes = round(size / 60)
        return f"{'-' if value < 0 else ''}{minutes // 60} h {minutes % 60:02d} min"
    if size >= 99.95:
        whole = round(size)
        return f"{'-' if value < 0 else ''}{whole // 60} min {whole % 60:02d} s"
    if value == 0:
        return "0 s"
    factor, name = next((factor, name) for least, factor, name in _SMALL_SECONDS if size >= least)
    return f"{short(value * factor, whole=False)} {name}"


def percent(share: float | None) -> str:
    """A share as per cent; never rounded up to 100 or down to 0."""
    if share is None:
        return NOTHING
    value = 100 * share
    if 99 < value < 99.95 or 0 < value < 0.95:
        return f"{min(value, 99.9):.1f} %" if value >= 0.05 else "< 0.1 %"
    return f"{value:.0f} %" if value < 99.95 or value >= 100 else "99.9 %"


def when(ns: int | None) -> str:
    """A time in UTC to the second."""
    if ns is None:
        return NOTHING
    return f"{datetime.fromtimestamp(ns // 10**9, UTC):%Y-%m-%d %H:%M:%S} UTC"


def words(name: str) -> str:
    """A name for people: underscores become spaces."""
    return name.replace("_", " ")


def flat(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as ``a.b`` → value, in their order; lists stay whole."""
    found: list[tuple[str, Any]] = []
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found += flat(value, f"{name}.")
        else:
            found.append((name, value))
    return found
