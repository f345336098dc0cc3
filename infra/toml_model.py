"""From a TOML file to a model, with every problem said at once and the nearest known key named."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A table of the file: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Count = Annotated[int, Field(ge=1)]

UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
"""How pydantic calls a key that a model, or a dataclass, does not know."""


def override(
    fields: dict[str, Any], overrides: Sequence[str], example: str = "data.days=30"
) -> Iterator[str]:
    """Write each ``a.b=value`` into ``fields``; yield a sentence for each that cannot be.

    ``example``: an override that can be, for that sentence.
    """
    for text in overrides:
        path, equals, value = text.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            yield f"--set {text!r}: write it as section.key=value, for example {example}"
            continue
        section = fields
        for key in keys[:-1]:
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                yield f"--set {text!r}: {key!r} is a value, not a section"
                break
        else:
            section[keys[-1]] = _value(value.strip())


def _value(text: str) -> Any:
    """A TOML value, or the bare text where it is none (so that names need no quotes)."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def sentence(error: Mapping[str, Any], model: type[Any]) -> str:
    """One of pydantic's errors as a sentence that names the place, the value and the way out."""
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] in UNKNOWN_KEY:
        known = known_keys(model, error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{location}: unknown key; {hint}known here: {', '.join(known)}"
    if error["type"] == "string_pattern_mismatch" and error["loc"][-1] == "[key]":
        place = location.removesuffix(".[key]")
        return f"{place}: a name has letters, digits and inner hyphens, 63 characters at most"
    if error["type"] in {"missing", "missing_argument"}:
        return f"{location}: missing"
    said = error["msg"].removeprefix("Value error, ")
    if said.startswith(location):
        return str(said)
    if isinstance(error["input"], dict):
        return f"{location}: {said[:1].lower()}{said[1:]}"
    return f"{location} = {error['input']!r}: {said[:1].lower()}{said[1:]}"


def known_keys(model: type[Any], location: Sequence[Any]) -> list[str]:
    """Keys that the section at this place below ``model`` knows."""
    here: Any = model
    for part in location:
        names = _annotations(here)
        # A number is a place in a list and any other unknown part a key of a table of sections:
        # both were stepped over with the annotation that holds them.
        if str(part) in names:
            here = _section_in(names[str(part)])
    return sorted(_annotations(here))


def _annotations(model: type[Any]) -> dict[str, Any]:
    if is_dataclass(model):
        return {one.name: one.type for one in dataclass_fields(model)}
    if isinstance(model, type) and issubclass(model, BaseModel):
        return {name: field.annotation for name, field in model.model_fields.items()}
    return {}


def _section_in(annotation: Any) -> Any:
    """The model inside of an annotation such as ``tuple[Disk, ...]`` or ``dict[str, VmSpec]``."""
    if get_origin(annotation) is None:
        return annotation
    found = [_section_in(one) for one in get_args(annotation) if one is not Ellipsis]
    return next((one for one in found if _annotations(one)), annotation)


def without(fields: dict[str, Any], errors: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``fields`` without the keys that ``errors`` are about (changed in place)."""
    for error in errors:
        section: Any = fields
        path = [part for part in error["loc"] if part != "[key]"]
        # An entry of a list goes with its whole list: what follows would else move up.
        cut = next((at for at, part in enumerate(path) if isinstance(part, int)), len(path))
        for key in path[: cut - 1]:
            section = section.get(key, {}) if isinstance(section, dict) else {}
        if isinstance(section, dict):
            section.pop(path[cut - 1], None)
    return fields
