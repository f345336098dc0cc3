"""One account of the ledger: two witnesses of a quantity, what remains, and whether it closes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

TOLERANCE = 0.02
"""Witnesses that are no further apart than this share of the larger one agree."""

Entry = dict[str, Any]


def entry(
    name: str,
    unit: str,
    parts: Mapping[str, float | None],
    witnesses: Mapping[str, float | None],
    *,
    floor: float = 0.0,
    trap: str | None = None,
) -> Entry:
    """Compare two witnesses. ``floor``: below it ``TOLERANCE`` is finer than what can be measured.

    A small quantity whose witnesses are further apart than tolerance and resolution together
    allow does not close either. ``trap``: what is known to set them apart, told where they are.
    """
    (first_name, first), (second_name, second) = witnesses.items()
    if first is None or second is None:
        gone = " and ".join(label for label, value in witnesses.items() if value is None)
        return missing(name, unit, f"no {gone}", parts, witnesses)
    remainder, larger = first - second, max(abs(first), abs(second))
    apart = abs(remainder)
    closes: bool | None = apart <= TOLERANCE * larger
    reason = None
    if apart > TOLERANCE * (larger + (floor if larger < floor else 0.0)):
        closes, reason = False, f"{first_name} and {second_name} are more than 2 % apart"
        reason = f"{reason}: {trap}" if trap else reason
    elif larger < floor or not larger:
        closes, reason = None, f"less than {floor:,.4g} {unit}: too small to tell"
        reason = reason if larger else "both witnesses are 0: there is nothing to compare"
    return {
        "name": name,
        "unit": unit,
        "parts": dict(parts),
        "witnesses": dict(witnesses),
        "remainder": remainder,
        "remainder_percent": 100.0 * remainder / second if second else None,
        "closes": closes,
        "reason": reason,
    }


def missing(
    name: str,
    unit: str,
    reason: str,
    parts: Mapping[str, float | None] | None = None,
    witnesses: Mapping[str, float | None] | None = None,
) -> Entry:
    """An account that cannot be made up, and why."""
    return {
        "name": name,
        "unit": unit,
        "parts": dict(parts or {}),
        "witnesses": dict(witnesses or {}),
        "remainder": None,
        "remainder_percent": None,
        "closes": None,
        "reason": reason,
    }


def all_of(values: Iterable[float | None]) -> float | None:
    """The sum, or None where one is missing: a sum with a hole is no witness."""
    found = list(values)
    return (
        None if not found or None in found else sum(value for value in found if value is not None)
    )
