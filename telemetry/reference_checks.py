"""What a published profile must hold to be read and compared, and a sentence for what it lacks."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Key = tuple[str, str, str]
_OF_PROFILE: Mapping[str, type] = {
    **dict.fromkeys(("name", "stagescope", "recipe_digest"), str),
    **dict.fromkeys(("measured", "recipe", "environment", "varied", "absent"), dict),
    "stages": list,
}
_OF_STAGE: Mapping[str, type] = {
    "name": str,
    "start_s": float,
    "held_back_by": list,
    "metrics": list,
}
_OF_FIGURE: Mapping[str, type] = {
    **dict.fromkeys(("entity", "metric", "figure", "unit", "kind"), str),
    "coverage": float,
    "values": list,
}
_WORDS: Mapping[type, str] = {str: "a text", float: "a number", dict: "an object", list: "a list"}
_LONGEST = 60


def check_document(document: Mapping[str, Any], duration: Key) -> None:
    """Raises ValueError with what is wrong and where. ``duration``: the key of a stage's own time.

    That the recipe has its digest, and when the runs were made, is looked at where they are read.
    """
    for place, value in _numbers("", document):
        if not abs(value) <= sys.float_info.max:
            raise _not_whole(f"{place} is {_told(value)}, which is no finite number")
    _check(document, _OF_PROFILE, "")
    runs = document["runs"]
    if type(runs) is not int or runs < 1:
        raise _not_whole(f"runs is {_told(runs)}, and not how many there were")
    _check(document["measured"], {"from": str, "to": str}, "measured ")
    for key, values in document["varied"].items():
        _check_length(values, f"varied {key}", runs)
    for why, what in document["absent"].items():
        _check_each(what, (str,), f"absent {why!r}")
    for number, stage in enumerate(document["stages"], 1):
        _check_stage(stage, f"stage {number}", runs, duration)


def _check_stage(stage: Any, place: str, runs: int, duration: Key) -> None:
    _check(stage, _OF_STAGE, f"{place}: ")
    place = f"stage {stage['name']}"
    _check_each(stage["held_back_by"], (str, type(None)), f"{place}: held_back_by")
    if stage["held_back_by"]:
        _check_length(stage["held_back_by"], f"{place}: held_back_by", runs)
    times: Sequence[Any] | None = None
    for number, figure in enumerate(stage["metrics"], 1):
        _check(figure, _OF_FIGURE, f"{place}, figure {number}: ")
        key, values = (figure["entity"], figure["metric"], figure["figure"]), figure["values"]
        named = f"{place}: {' '.join(key)}"
        _check_length(values, named, runs)
        _check_each(values, (int, float, type(None)), named)
        if all(value is None for value in values):
            raise _not_whole(f"{named} has no value of any run")
        if key == duration:
            times = values
    if times is None:
        raise _not_whole(f"{place} has no {' '.join(duration)}, its own time")
    if wrong := [value for value in times if value is None or value < 0]:
        raise _not_whole(f"{place}: {' '.join(duration)} is {_told(wrong[0])} in one of the runs")


def _check(data: Any, kinds: Mapping[str, type], place: str) -> None:
    if not isinstance(data, dict):
        raise _not_whole(f"{place.rstrip(': ')} is {_told(data)}, and not an object")
    for key, kind in kinds.items():
        if key not in data:
            raise _not_whole(f"{place}{key} is missing")
        if not isinstance(data[key], (int, float) if kind is float else kind):
            raise _not_whole(f"{place}{key} is {_told(data[key])}, and not {_WORDS[kind]}")


def _check_each(values: Any, kinds: tuple[type, ...], place: str) -> None:
    if not isinstance(values, list):
        raise _not_whole(f"{place} is {_told(values)}, and not a list")
    if wrong := [value for value in values if not isinstance(value, kinds)]:
        raise _not_whole(f"{place} has {_told(wrong[0])} in it")


def _check_length(values: Any, place: str, runs: int) -> None:
    if not isinstance(values, list) or len(values) != runs:
        raise _not_whole(f"{place} is {_told(values)}, and not a value for each of {runs} runs")


def _numbers(place: str, data: Any) -> Iterator[tuple[str, int | float]]:
    if isinstance(data, int | float):
        yield place, data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield from _numbers(f"{place}.{key}".lstrip("."), value)
    elif isinstance(data, list):
        for number, value in enumerate(data):
            yield from _numbers(f"{place}.{number}", value)


def _not_whole(what: str) -> ValueError:
    return ValueError(
        f"no whole published profile: {what}; take the file as `stagescope profile publish` wrote "
        "it, or publish it anew"
    )


def _told(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
