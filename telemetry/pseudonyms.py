"""Names of people and machines out of what is published: hosts, VMs, addresses, UUIDs, paths.

Names that the record is known to hold are replaced wherever they stand; whatever else has the form
of an address, a UUID or a path outside of the system's own folders is replaced by its form. The
same name gets the same replacement, so that a file still says what belongs together.

A published profile may lose keys and shape; an archived run may not, as all is derived of it anew:
its names are replaced by ``telemetry.archive_names``, by other rules.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

DROPPED = frozenset(
    {"uuid", "instance_uuid", "machine_id", "boot_id", "product_uuid", "gpu_uuids", "moid"}
    | {"host_moid", "serial"}
)
"""Keys that identify one machine and describe nothing."""
AS_IT_IS = re.compile(r".*(?:version|digest|fingerprint|kernel|packages|python)$")
"""Keys whose values may look like addresses and are none."""
COMMON = frozenset(
    ("vm", "esxi", "host", "guest", "gpu", "machine", "stage", "runner", "recorder", "vcenter",
     "disk", "net", "app", "server", "worker", "cluster", "localhost", "root", "default")
)  # fmt: skip
"""Names that are words of a run, too."""
_HEX = "[0-9A-Fa-f]"
_FORMS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("uuid", re.compile(rf"(?:GPU-|MIG-)?\b{_HEX}{{8}}-(?:{_HEX}{{4}}-){{3}}{_HEX}{{12}}\b")),
    ("uuid", re.compile(rf"\b(?:GPU|MIG)-{_HEX}{{8}}[0-9A-Fa-f-]*(?!\w)")),
    ("id", re.compile(rf"\b{_HEX}{{32,}}\b")),
    ("url", re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\",)]+")),
    ("user", re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b")),
    ("mac", re.compile(rf"\b(?:{_HEX}{{2}}[:-]){{5}}{_HEX}{{2}}\b|(?<=enx){_HEX}{{12}}\b")),
    ("address", re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)(?::\d+)?")),
    ("address", re.compile(rf"(?<![\w:])(?:{_HEX}{{0,4}}:){{2,7}}{_HEX}{{1,4}}(?![\w:])")),
    ("path", re.compile(r"(?<![\w.~/])(?:~|[A-Za-z]:)?/(?!/)[^\s'\",;:()]+")),
)
_SHORTENED = re.compile(rf"\b(?:GPU|MIG)-{_HEX}[0-9A-Fa-f-]*(?![\w-])")
"""A GPU's UUID cut short, as CUDA takes it; in a recipe it may be a word (``GPU-a100``)."""
SYSTEM = re.compile(r"/(?:proc|sys|dev|etc|usr|bin|lib|lib64)(?:/|$)")
"""Paths that every Linux has say nothing of its user."""
_HOMES = (
    re.compile(r"(?<![\w./])/(?:home|Users)/([^/\s'\":=,;]+)"),
    re.compile(r"(?<![\w~])~([A-Za-z_][\w.-]*)(?=/|$)"),
)
"""Whose a folder is, as its path says it."""
_ANYBODY = frozenset(("root", "default", "user", "admin", "ubuntu", "debian", "runner", "jovyan"))
"""Users that every machine or image has, which name nobody and may be words of a recipe."""
MARKED = re.compile(r"<[a-z]+-\d+>")
"""What stands in a published command for a name, an address, a path …"""
_WITH_DOMAIN = frozenset(("machine", "host", "vcenter"))
_LABEL = re.compile(r"(?!\d+\.)((?:[A-Za-z0-9-]*\d|[A-Za-z0-9-]{3})[A-Za-z0-9-]*)\.")
"""The first part of a full host name, unless it is a number or too short to tell a machine."""
_PARTS = r"(?:\.[A-Za-z0-9][A-Za-z0-9-]*)"
_PORT = r"(?=:\d)"
_VM = re.compile(r"vm:(.+)@([^@/]+)((?:/.*)?)", re.DOTALL)
_ESXI = re.compile(r"esxi:([^/]+)((?:/.*)?)", re.DOTALL)


class Pseudonyms:
    """``known``: names by what they name, in the order in which they are numbered.

    Users have their numbers in the order in which they occur: that of who publishes, who may occur
    nowhere, must not change what is published. A host is known by the first part of its full name
    and by its name with any domain, too; where there is no digit in it, and it may be a word, by
    that part with a port or a domain of several parts alone (``train.py`` is a file).
    """

    def __init__(self, known: Mapping[str, Sequence[str]]) -> None:
        self._names: dict[str, str] = {}
        self._found: dict[str, dict[str, str]] = {}
        self._kinds: dict[str, str] = {}
        self._whole: dict[str, str] = {}
        self._hosts: dict[str, None] = {}
        self.know(known)
        for name, kind in self._kinds.items():
            if kind != "user":
                self.name(name, kind)

    def know(self, known: Mapping[str, Sequence[str]]) -> None:
        """Replace these names, too, from now on; they are numbered as they occur."""
        for kind, names in known.items():
            for name in filter(None, names):
                self._kinds.setdefault(name, kind)
                if kind in _WITH_DOMAIN:
                    self._hosts[name] = None
        for name in list(self._hosts):
            found = _LABEL.match(name)
            if found and found[1].lower() not in COMMON:
                self._hosts[found[1]] = None
                if found[1] not in self._kinds:
                    self._kinds[found[1]] = self._kinds[name]
                    self._whole[found[1]] = name
        longest = [self._form(name) for name in sorted(self._kinds, key=len, reverse=True)]
        self._known = (
            re.compile(rf"(?<![\w-])(?:{'|'.join(longest)})(?![\w-])") if longest else None
        )

    def _form(self, name: str) -> str:
        form = re.escape(name)
        if name not in self._hosts:
            return form
        if re.search(r"\d", name):
            return f"{form}{_PARTS}*"
        domain = f"{_PARTS}{{2,}}"
        return f"{form}(?:{domain}|{_PORT})" if name in self._whole else f"{form}(?:{domain})?"

    def _number(self, kind: str, name: str) -> int:
        found = self._found.setdefault(kind, {})
        found.setdefault(name, str(len(found) + 1))
        return int(found[name])

    def name(self, name: str, kind: str) -> str:
        """What stands for a name of a VM, host, datastore …; the same each time."""
        name = self._whole.get(name, name)
        if name not in self._names:
            self._names[name] = f"{kind}-{self._number(kind, name)}"
        return self._names[name]

    def marked(self, name: str, kind: str) -> str:
        """As ``name``, ``MARKED``."""
        return f"<{self.name(name, kind)}>"

    def text(self, text: str) -> str:
        """A text without any known name and without what has the form of one."""
        shortened = self._replacement("uuid", "{}")
        return self._without_names(_SHORTENED.sub(shortened, self.forms(text)))

    def forms(self, text: str) -> str:
        """A text without what has the form of a name; words stay, whatever they may name."""
        return self._without_forms(text, "{}")

    def command(self, text: str) -> str:
        """As ``text``, but what was replaced is ``MARKED``: such a command cannot be run."""
        return self._without_names(self._without_forms(text, "<{}>"), "<{}>")

    def _without_names(self, text: str, shown: str = "{}") -> str:
        if self._known is None:
            return text
        return self._known.sub(lambda found: shown.format(self._named(found[0])), text)

    def _named(self, name: str) -> str:
        """What stands for a known name, or for one that is followed by a domain."""
        while name not in self._kinds:
            name = name.rpartition(".")[0]
        return self.name(name, self._kinds[name])

    def _without_forms(self, text: str, shown: str) -> str:
        for kind, form in _FORMS:
            text = form.sub(self._replacement(kind, shown), text)
        return text

    def _replacement(self, kind: str, shown: str) -> Callable[[re.Match[str]], str]:
        def of(found: re.Match[str]) -> str:
            if kind == "path" and SYSTEM.match(found[0]):
                return found[0]
            if kind == "address" and not _is_address(found[0]):
                return found[0]
            return shown.format(f"{kind}-{self._number(kind, found[0])}")

        return of

    def entity(self, entity: str) -> str:
        """An entity: what it is stays, whose it is does not (``vm:vm-1@host-1/scsi0:0``)."""
        if found := _VM.fullmatch(entity):
            vm, host = self.name(found[1], "vm"), self.name(found[2], "host")
            return f"vm:{vm}@{host}{self._rest(found[3])}"
        if found := _ESXI.fullmatch(entity):
            return f"esxi:{self.name(found[1], 'host')}{self._rest(found[2])}"
        kind, colon, rest = entity.partition(":")
        return f"{kind}{colon}{self.text(rest)}"

    def _rest(self, part: str) -> str:
        return f"/{self.text(part[1:])}" if part else ""

    def data(self, data: Any) -> Any:
        """Nested plain data without the keys of ``DROPPED``; what those of ``AS_IT_IS`` hold stays.

        A key that is one word is a field's name, whatever a machine may be called ("vm", "host").
        """
        return _changed(data, self.text)

    def recipe(self, data: Any) -> Any:
        """The same of a recipe, whose words are choices, even if somebody's VM is called so."""
        return _changed(data, self.forms)


def _changed(data: Any, change: Callable[[str], str]) -> Any:
    if isinstance(data, str):
        return change(data)
    if isinstance(data, Mapping):
        return {
            key if str(key).isidentifier() else change(str(key)): (
                value if AS_IT_IS.fullmatch(str(key)) else _changed(value, change)
            )
            for key, value in data.items()
            if key not in DROPPED
        }
    if isinstance(data, list | tuple):
        return [_changed(one, change) for one in data]
    return data


def _is_address(text: str) -> bool:
    """A time of day is no address, and neither is a version with four parts that begins with 0."""
    if "." in text:
        parts = text.partition(":")[0].split(".")
        return all(int(part) < 256 for part in parts) and int(parts[0]) > 0
    return "::" in text or text.count(":") >= 4


def names_of(run: Mapping[str, Any], hypervisor: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """All names that a run's record and its view of the hypervisor are known to hold."""
    placement, recipe = run.get("placement") or {}, run.get("recipe") or {}
    seen, environment = hypervisor or {}, run.get("environment") or {}
    vms = [*(placement.get("vms") or ()), *(seen.get("vms") or ())]
    moves = [*(placement.get("moves") or ()), *(seen.get("moves") or ())]
    vcenter = run.get("vcenter") or recipe.get("vcenter") or {}

    def of(key: str) -> list[str]:
        return [one[key] for one in vms if one.get(key)]

    moved = [one[end] for one in moves for end in ("from_host", "to_host") if one.get(end)]
    of_run = _some(placement.get("vm"), seen.get("vm"), vcenter.get("vm"))
    return {
        "vm": [*of_run, *of("vm"), *(vcenter.get("other_vms") or ())],
        "host": [*_some(placement.get("esxi_host")), *of("esxi_host"), *moved],
        "cluster": of("cluster"),
        "datacenter": of("datacenter"),
        "pool": of("resource_pool"),
        "datastore": [name for one in vms for name in one.get("datastores") or ()],
        "vcenter": list(_some(vcenter.get("host"), seen.get("server"))),
        "machine": [*_some(run.get("host"), environment.get("host"), placement.get("host"))],
        "user": [one for one in (_user(),) if one and one not in _ANYBODY],
    }


def named_in(events: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """As whom a vCenter was asked, and the VMs that its refusals may name, by a run's events."""
    told = [one for one in events if one.get("event") in {"connected", "named"}]
    return {
        "vm": [vm for one in told for vm in one.get("vm") or ()],
        "user": [one["user"] for one in told if one.get("user") and one["user"] not in _ANYBODY],
    }


def owners(run: Mapping[str, Any]) -> list[str]:
    """Whose folders the recorded commands name, each once."""
    words = [word for stage in run.get("stages") or () for word in stage.get("command") or ()]
    found = (name for word in words for form in _HOMES for name in form.findall(word))
    return [name for name in dict.fromkeys(found) if name not in _ANYBODY]


def _some(*names: str | None) -> Iterator[str]:
    yield from (name for name in names if name)


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user that has no name
        return None
