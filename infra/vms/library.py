"""Items of content libraries, found by their names: what a VM of a plan can be deployed from.

Asked over REST, and only where a plan names an item of which a VM is still to be made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from infra.vms.estate import LibraryItem
from infra.vms.place import nearest
from infra.vms.spec import split_item
from infra.vsphere.rest import RestRefused

if TYPE_CHECKING:
    from infra.vsphere.rest import RestSession
    from infra.vsphere.session import VCenter

LIBRARIES = "/com/vmware/content/library"
ITEMS = f"{LIBRARIES}/item"
TEMPLATES = "/vcenter/vm-template/library-items"
OVF, VM_TEMPLATE = "ovf", "vm-template"
HINTED = 50
"""Names that are looked through for a nearest one: each costs a question."""


def read_items(vcenter: VCenter, names: Iterable[str]) -> dict[str, LibraryItem | str]:
    """The items by ``library/item``; a sentence in place of one that no VM can be made of.

    Asks nothing where there are none; other names than of that form are left out.
    """
    wanted = {name: parts for name in names if (parts := split_item(name)) is not None}
    if not wanted:
        return {}
    with vcenter.rest() as rest:
        return {name: _item(rest, name, *parts) for name, parts in wanted.items()}


def _item(rest: RestSession, name: str, library: str, item: str) -> LibraryItem | str:
    said = f"content_library {name!r}"
    try:
        shelf = _one(rest, "library", library, LIBRARIES, {"name": library})
        if isinstance(shelf, str):
            return f"{said}: {shelf}"
        asked = {"name": item, "library_id": shelf["id"]}
        found = _one(rest, "item", item, ITEMS, asked)
        if isinstance(found, str):
            return f"{said}: {found}"
        return _usable(rest, name, found)
    except RestRefused as refused:
        return f"{said}: {refused}"


def _one(
    rest: RestSession, what: str, name: str, path: str, asked: dict[str, str]
) -> dict[str, Any] | str:
    """The library or item of this name, or what is wrong with the name."""
    ids = rest.post(path, {"spec": asked}, action="find") or []
    found = [one for ident in ids if (one := _read(rest, path, ident))["name"] == name]
    if len(found) == 1:
        return found[0]
    if found:
        which = ", ".join(one["id"] for one in found)
        return f"there are {len(found)} of the {what} {name!r} ({which}); rename all but one"
    known = nearest(name, _names(rest, path, asked))
    return f"there is no {what} {name!r}; {known}"


def _names(rest: RestSession, path: str, asked: dict[str, str]) -> Iterator[str]:
    within = {key: asked[key] for key in ("library_id",) if key in asked}
    for ident in (rest.get(path, **within) or [])[:HINTED]:
        yield _read(rest, path, ident)["name"]


def _read(rest: RestSession, path: str, ident: str) -> dict[str, Any]:
    told: dict[str, Any] = rest.get(f"{path}/id:{ident}")
    return told


def _usable(rest: RestSession, name: str, found: dict[str, Any]) -> LibraryItem | str:
    kind = str(found.get("type", ""))
    if kind == OVF:
        return LibraryItem(name=name, id=found["id"])
    if kind != VM_TEMPLATE:
        return (
            f"content_library {name!r}: it is of type {kind or 'unknown'}; a VM is made of an "
            f"{OVF} or a {VM_TEMPLATE}"
        )
    told = rest.get(f"{TEMPLATES}/{found['id']}") or {}
    if not told.get("vm_template"):
        return (
            f"content_library {name!r}: this vCenter does not tell which VM template it is (7.0 "
            "and newer do); name the template itself, with template"
        )
    return LibraryItem(name=name, id=found["id"], template=str(told["vm_template"]))
