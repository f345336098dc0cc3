"""The report's way with records of any shape: facts, tables, folded lists, what was absent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from telemetry.report_html import NOTHING, Html, cell, heading, join, short, table, tag, words

_LONG_LIST = 12


def absent_list(
    missing: Sequence[tuple[str, str, str | None]], where: str, *, opened: bool = False
) -> Html | None:
    """What was not measured, grouped by reason and folded away; None where all was there."""
    if not missing:
        return None
    reasons: dict[str, dict[str, list[str]]] = {}
    for entity, metric, reason in missing:
        entities = reasons.setdefault(reason or "no reason was given", {})
        entities.setdefault(entity, []).append(words(metric))
    groups = [
        (
            tag("dt", reason),
            [
                tag("dd", tag("b", entity), ": ", ", ".join(names))
                for entity, names in found.items()
            ],
        )
        for reason, found in reasons.items()
    ]
    count, why = len(missing), len(reasons)
    title = f"Not measured {where}: {count} series, {why} {'reason' if why == 1 else 'reasons'}"
    return folded(title, tag("dl", groups, class_="absent"), opened=opened, long=not opened)


def folded(title: Any, *body: Any, opened: bool = False, long: bool = False) -> Html:
    """A list that is folded away. ``long``: not printed either, unless the reader unfolded it."""
    class_ = "long" if long else None
    return tag("details", tag("summary", title), body, open=opened, class_=class_)


def key_values(pairs: Iterable[tuple[str, Any]]) -> Html:
    facts = [tag("div", tag("dt", words(key)), tag("dd", _plain(value))) for key, value in pairs]
    return tag("dl", facts, class_="facts")


def generic(value: Any, title: str, depth: int = 0) -> Html:
    """Any JSON value for people: scalars as a list of facts, lists of records as a table."""
    if not isinstance(value, Mapping):
        return _listed(value, title)
    plain = [(key, one) for key, one in value.items() if not _nested(one)]
    nested = [(key, one) for key, one in value.items() if _nested(one)]
    body: list[Any] = [tag(f"h{min(6, 4 + depth)}", words(title))]
    if plain:
        body.append(key_values(plain))
    body += [generic(one, key, depth + 1) for key, one in nested]
    return join(body)


def _nested(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value)
    return isinstance(value, list) and any(isinstance(one, (Mapping, list)) for one in value)


def _listed(value: Any, title: str) -> Html:
    records = value if isinstance(value, list) else [value]
    if not all(isinstance(one, Mapping) for one in records):
        return key_values([(title, value)])
    columns = list(dict.fromkeys(key for one in records for key in one))
    rows = [tag("tr", [_plain_cell(one.get(key)) for key in columns]) for one in records]
    heads = [heading(words(key), num=_all_numbers(records, key)) for key in columns]
    return table(heads, rows, caption=words(title), class_="plain")


def _all_numbers(records: Sequence[Mapping[str, Any]], key: str) -> bool:
    return all(isinstance(one.get(key), (int, float, type(None))) for one in records)


def _plain_cell(value: Any) -> Html:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return cell(_plain(value), num=is_number, title=str(value) if is_number else None)


def _plain(value: Any) -> Any:  # noqa: PLR0911 - one line per type of JSON
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return tag("span", _four(value), title=repr(value))
    if isinstance(value, list):
        told = ", ".join(
            str(_plain(one)) if not isinstance(one, float) else _four(one)
            for one in value[:_LONG_LIST]
        )
        return f"{told} … ({len(value)} in all)" if len(value) > _LONG_LIST else told or NOTHING
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {one}" for key, one in value.items()) or NOTHING
    return str(value)


def _four(value: float) -> str:
    """Four significant digits; model metrics are compared in the third."""
    if value == 0 or not 1e-4 <= abs(value) < 1e6:
        return f"{value:.4g}"
    return f"{value:,.4f}".rstrip("0").rstrip(".") if abs(value) < 10 else short(value)
