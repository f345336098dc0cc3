"""Feast as this room has it: as it is written, and typeguard as it was for everybody else."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import typeguard

import features.definitions  # noqa: F401

MARK = "check_argument_types_internal"
"""What typeguard compiles into a function that it checks."""


def checked_in_feast(imports: str) -> set[str]:
    """Functions of Feast's feature views that are checked on every call, in a new process."""
    code = f"""
import inspect, {imports}
from feast import FeatureView
print(*(name for name, one in inspect.getmembers(FeatureView, inspect.isfunction)
        if {MARK!r} in one.__code__.co_names))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True,
                          stdout=subprocess.PIPE, text=True)  # fmt: skip
    return set(done.stdout.split())


def test_feast_is_as_it_is_written() -> None:
    assert "__init__" in checked_in_feast("os"), "Feast has no such checks any more: take ours away"
    assert checked_in_feast("features.definitions") == set()


def test_whoever_else_asks_for_checks_has_them() -> None:
    @typeguard.typechecked
    def twice(number: int) -> int:
        return 2 * number

    @typeguard.typechecked(collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS)
    class Sums:
        def of(self, numbers: list[int]) -> int:
            return sum(numbers)

    assert (twice(2), Sums().of([1, 2])) == (4, 3)
    assert MARK in inspect.unwrap(twice).__code__.co_names
    with pytest.raises(typeguard.TypeCheckError):
        twice("2")  # type: ignore[arg-type]
    with pytest.raises(typeguard.TypeCheckError):
        Sums().of([1, "2"])  # type: ignore[list-item]
