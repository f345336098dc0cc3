"""Pseudonyms in an archived run: one name is the same pseudonym everywhere, and the shape stays.

Replaced are the names of hosts, VMs, clusters, datastores and vCenter, its user, UUIDs, network
addresses and folders. What somebody typed (a command, a stage's name) stays: nobody can tell there
what is a name. But user and password go out of every address. No key goes away or changes: whatever
is derived of a run is derived of it as well.
``telemetry.pseudonyms``, for what is published, goes further: whatever looks like a name is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from infra.uri import USERINFO, masked
from telemetry.pseudonyms import AS_IT_IS, COMMON
from telemetry.vm_entity import parsed

_UUID = r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"
_MAC = r"(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}"
_ADDRESS = r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])"
_GROUP = r"[0-9a-fA-F]{1,4}"
_GROUPS = rf"{_GROUP}(?::{_GROUP}){{0,6}}"
_ADDRESS_6 = (
    rf"(?<![\w:])(?:(?:{_GROUP}:){{7}}{_GROUP}|(?:{_GROUPS})?::(?:{_GROUPS})?)(?![\w:]|\.\d)"
)
_SITE = r"(?<=://)[^\s/'\",:;()@\[\]]+"
_NAME = r"[^\s/'\",:;()]+"
_ROOTS = r"(?:home|root|tmp|work|mnt|media|srv|opt|Users)(?![\w.-])"
_FOLDER = (
    r"(?<![\w.~])(?<!:/)~?/(?!(?:proc|sys|dev|etc|usr|bin|lib|lib64|run|boot)/)"
    rf"(?:{_NAME}(?:/{_NAME})+|{_ROOTS})"
)
_HOME = re.compile(r"/(?:home|Users)/([^/]+)")
_PLACES = (
    ("vm", "vm-{}", ("vm", "other_vms")),
    ("esxi", "esxi-{}.example", ("esxi_host", "from_host", "to_host")),
    ("cluster", "cluster-{}", ("cluster",)),
    ("datacenter", "datacenter-{}", ("datacenter",)),
    ("datastore", "datastore-{}", ("datastores", "datastore")),
    ("pool", "pool-{}", ("resource_pool",)),
    ("user", "user-{}", ("user",)),
    ("server", "vcenter-{}.example", ("server",)),
    ("host", "guest-{}", ("host",)),
    ("machine", "{:032x}", ("machine_id", "boot_id")),
)
"""What to call the things that these keys name."""
_SHORT = 3
_HOST_OF = re.compile(r"\[?([^\[\]]+?)\]?(?::\d+)?")


@dataclass(kw_only=True)
class Pseudonyms:
    """``words``: names to be replaced wherever they stand as a whole.

    ``keyed``: (key, name) to pseudonym where a name is replaced only as the whole value of a key.
    ``kept``: nothing is replaced at all.
    """

    kept: bool = False
    words: dict[str, str] = field(default_factory=dict)
    keyed: dict[tuple[str, str], str] = field(default_factory=dict)
    _numbers: dict[str, dict[str, int]] = field(default_factory=dict)
    _pattern: re.Pattern[str] | None = None

    def text(self, text: str) -> str:
        """The text with all that is known or looks like one replaced."""
        if self.kept:
            return text
        text = USERINFO.sub("", masked(text))
        if self._pattern is None:
            names = sorted(self.words, key=len, reverse=True)
            named = "|".join(re.escape(one) for one in names) or r"(?!)"
            self._pattern = re.compile(
                rf"(?P<word>(?<![\w.-])(?:{named})(?![\w-]))|(?P<uuid>{_UUID})"
                rf"|(?P<mac>{_MAC})|(?P<address>{_ADDRESS})|(?P<address6>{_ADDRESS_6})"
                rf"|(?P<site>{_SITE})"
            )
        return re.sub(_FOLDER, self._folder, self._pattern.sub(self._pseudonym, text))

    def value(self, value: Any, key: str = "") -> Any:
        """A JSON value with every text in it replaced; its keys stay."""
        if isinstance(value, str):
            if (key, value) in self.keyed:
                return self.keyed[key, value]
            return value if AS_IT_IS.fullmatch(key) else self.text(value)
        if isinstance(value, Mapping):
            whole = bool(AS_IT_IS.fullmatch(key))
            return {name: self.value(one, key if whole else name) for name, one in value.items()}
        if isinstance(value, list):
            return [self.value(one, key) for one in value]
        return value

    def _pseudonym(self, match: re.Match[str]) -> str:
        kind, found = str(match.lastgroup), match[0]
        if kind == "word":
            return self.words[found]
        if kind == "address" and (found.startswith("127.") or not any(map(int, found.split(".")))):
            return found  # this machine, or all of its interfaces
        if (kind == "address6" and not _is_of_somebody(found)) or found == "localhost":
            return found
        numbers = self._numbers.setdefault(kind, {})
        number = numbers.setdefault(found, len(numbers) + 1)
        return {
            "uuid": f"00000000-0000-4000-8000-{number:012x}",
            "mac": f"02:00:00:00:{number >> 8 & 255:02x}:{number & 255:02x}",
            "address": f"192.0.2.{number % 256}",
            "address6": f"2001:db8::{number:x}",
            "site": f"server-{number}.example",
        }[kind]

    def _folder(self, match: re.Match[str]) -> str:
        """A folder's last name, unless that says whose it is; by now without known names."""
        if home := _HOME.fullmatch(match[0]):
            numbers = self._numbers.setdefault("home", {})
            return f"/…/user-{numbers.setdefault(home[1], len(numbers) + 1)}"
        return f"/…/{match[0].rpartition('/')[2]}"


KEPT = Pseudonyms(kept=True)


def of_run(
    record: Mapping[str, Any],
    events: Iterable[Mapping[str, Any]] = (),
    entities: Iterable[str] = (),
) -> Pseudonyms:
    """Pseudonyms for all that the record, the events and the entities of a run name."""
    names: dict[str, list[str]] = {kind: [] for kind, _, _ in _PLACES}
    for entity in sorted(entities):
        seen = parsed(entity)
        names["vm"] += [seen.vm] if seen.vm else []
        names["esxi"] += [seen.host] if seen.host else []
    keys = {key: kind for kind, _, named in _PLACES for key in named}
    _note(names, "host", record.get("host"))
    for part in (record.get("environment"), record.get("placement"), *events):
        for key, value in _leaves(part):
            if key in keys:
                _note(names, keys[key], value)
    for settings in (record.get("vcenter"), (record.get("recipe") or {}).get("vcenter")):
        told = settings or {}
        _note(names, "server", told.get("host"))
        for name in (told.get("vm"), *(told.get("other_vms") or ())):
            _note(names, "vm", name)
    found = Pseudonyms()
    for kind, form, named in _PLACES:
        for number, name in enumerate(dict.fromkeys(names[kind]), 1):
            if name.lower() in COMMON or len(name) < _SHORT:
                found.keyed |= {(key, name): form.format(number) for key in named}
            else:
                found.words.setdefault(name, form.format(number))
    return found


def _note(names: dict[str, list[str]], kind: str, value: object) -> None:
    """Take a name in; of a server its port is no part, and an address is replaced as one.

    So is the UUID by which a VM may be named.
    """
    if not isinstance(value, str) or not value or value.isdigit():
        return
    if kind == "vm" and re.fullmatch(_UUID, value):
        return
    if kind == "server" and (found := _HOST_OF.fullmatch(value)):
        value = found[1]
    if not re.fullmatch(_ADDRESS, value):
        names[kind].append(value)


def _is_of_somebody(text: str) -> bool:
    """Whether it is an address, and not this machine's own or that of all its interfaces."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _leaves(one, str(name))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _leaves(one, key)
    else:
        yield key, value
