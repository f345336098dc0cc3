"""A recipe as it is published: what was done, without where; and by what two of them differ."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from telemetry.pseudonyms import SYSTEM, Pseudonyms, owners
from telemetry.reference import digest_of

_PLACES: tuple[tuple[str, ...], ...] = (
    ("vcenter",),
    ("tracking",),
    ("data", "path"),
    ("data", "path_env"),
    ("online", "redis_env"),
)
"""Keys of a recipe that say where something is, and not what is done."""
_ONE_PATH = re.compile(r"^((?:[^\s/=]+=)?)/+(?:[\w.+@<>~%,-]+/+)*([\w.+@<>~%,-]+/*)$")
_WITH_BLANKS = re.compile(
    r"^((?:[^\s/=]+=)?(?:~<user-\d+>)?)(~?/(?:[^;&|()$`'\"*?\[\]{}!\\#^<>\n]|<user-\d+>)*)$"
)
"""A path that any character may be in but those that a shell or a pattern gives a meaning."""
_LINE = re.compile(r"\s(?:-[\w-]|~?/)")
"""A second path, or an option: it is a line, whatever it begins with."""
_SHELLS = frozenset(("sh", "bash", "dash", "ash", "zsh", "ksh", "fish"))
_LINE_FOLLOWS = re.compile(r"-[A-Za-z]*c")
_ABSENT = object()


def published_recipe(run: Mapping[str, Any], pseudonyms: Pseudonyms) -> dict[str, Any]:
    """What was done, without where: a recipe less its places, or the recorded commands.

    Whatever is published of it is what its digest is made of, so that another machine's is alike.
    """
    recipe = run.get("recipe") or {}
    if "seed" in recipe:
        portable = json.loads(json.dumps(recipe))
        for place in _PLACES:
            section = portable
            for key in place[:-1]:
                section = section.get(key, {})
            section.pop(place[-1], None)
        if portable.get("cluster", {}).get("scheduler"):
            portable["cluster"]["scheduler"] = "external"
        return dict(pseudonyms.recipe(portable))
    commands = {stage["name"]: stage.get("command") for stage in run["stages"]}
    homes = owners(run)

    def told(part: str, before: list[str]) -> str:
        for owner in homes:
            part = _without_owner(part, owner, pseudonyms.marked(owner, "user"))
        part = _base_names(part)
        if not _is_shells(before):
            part = _without_path(part, pseudonyms)
        return pseudonyms.command(part)

    return {
        "recorded": {
            name: command and [told(part, command[:at]) for at, part in enumerate(command)]
            for name, command in commands.items()
        }
    }


def _is_shells(before: list[str]) -> bool:
    """Whether what comes after these words is a line for a shell: ``bash -e -c``."""
    if not before or not _LINE_FOLLOWS.fullmatch(before[-1]):
        return False
    words = [word for word in before if not word.startswith("-")]
    return bool(words) and words[-1].rpartition("/")[2] in _SHELLS


def _without_owner(argument: str, owner: str, shown: str) -> str:
    """An argument that is the owner's name, or names the folder that bears it, but no other word
    that is the same: ``ray start`` stays, whoever's home ``/home/ray`` is."""
    name = re.escape(owner)
    argument = re.sub(rf"^((?:[^=]*=)?){name}$", rf"\g<1>{shown}", argument)
    ends = r"(?=/?(?:$|[\s'\",:;]))"
    argument = re.sub(rf"(/(?:home|Users)/){name}{ends}", rf"\g<1>{shown}", argument)
    return re.sub(rf"(?<![\w~])~{name}(?=/|$)", f"~{shown}", argument)


def _base_names(argument: str) -> str:
    """``/opt/venv/bin/python`` is ``python``, and ``--data=/srv/in.csv`` ``--data=in.csv``.

    Only where the argument, or all of it after its ``=``, is one path: to cut what stands within a
    shell's line, a pattern or a glob would make other work of it (``rm -rf /scratch/*``).
    """
    return _ONE_PATH.sub(r"\1\2", argument)


def _without_path(argument: str, pseudonyms: Pseudonyms) -> str:
    """``--data=/srv/acme corp/q3.csv`` as ``--data=<path-1>``: nothing of the path stays.

    It is not cut to its last name, since it may be a line of a command that only looks like a path.
    """
    found = _WITH_BLANKS.match(argument)
    if found is None or SYSTEM.match(found[2]) or _LINE.search(found[2]):
        return argument
    return found[1] + pseudonyms.marked(found[2], "path")


def recipe_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """The first few keys by which two recipes differ, for a sentence."""
    one, two = dict(_leaves(a)), dict(_leaves(b))
    keys = [
        key for key in dict.fromkeys([*one, *two]) if one.get(key, _ABSENT) != two.get(key, _ABSENT)
    ]
    told = [f"{key} is {_value(one, key)} and {_value(two, key)}" for key in keys[:3]]
    more = f", and {len(keys) - 3} more" if len(keys) > 3 else ""
    return "; ".join(told) + more


def _value(leaves: Mapping[str, Any], key: str) -> str:
    return repr(leaves[key]) if key in leaves else "absent"


def is_same_recipe(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    version_a: str,
    version_b: str,
    defaults: Mapping[str, Any],
) -> str | None:
    """None, or by what two published recipes differ.

    A key that one of two versions of StageScope does not have yet is no difference where the other
    has it at its default: what the older one did is what the default says.
    """
    if digest_of(a) == digest_of(b):
        return None
    one, two, usual = (dict(_leaves(data)) for data in (a, b, defaults))
    if version_a != version_b and "recorded" not in a:
        grown = {key: value for key, value in {**one, **two}.items() if key not in one.keys() & two}
        same = all(one[key] == two[key] for key in one.keys() & two)
        if same and all(key in usual and usual[key] == value for key, value in grown.items()):
            return None
    return recipe_difference(a, b)


def _leaves(data: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """A recipe's keys with their values; a list is one value."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", value
