"""Properties of many objects in one question to the PropertyCollector, page by page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyVmomi import vim, vmodl

PAGE = 1_000
"""Objects in one answer: keeps the server's answers, and our parser's memory, small."""
_spec = vmodl.query.PropertyCollector


def only(one: Any) -> Any:
    """Choose one known object."""
    return _spec.ObjectSpec(obj=one)


def everything_in(view: Any) -> Any:
    """Choose all objects of a container view."""
    along = _spec.TraversalSpec(name="view", path="view", skip=False, type=vim.view.ContainerView)
    return _spec.ObjectSpec(obj=view, skip=True, selectSet=[along])


def collect(
    content: Any, chosen: Sequence[Any], kinds: Sequence[type], properties: Sequence[str]
) -> list[tuple[Any, dict[str, Any]]]:
    """Each object with those of its properties that are set and may be read."""
    wanted = [_spec.PropertySpec(type=kind, all=False, pathSet=list(properties)) for kind in kinds]
    asked = _spec.FilterSpec(objectSet=list(chosen), propSet=wanted)
    collector = content.propertyCollector
    page = collector.RetrievePropertiesEx([asked], _spec.RetrieveOptions(maxObjects=PAGE))
    found = []
    while page is not None:
        found += [_found(one) for one in page.objects]
        page = collector.ContinueRetrievePropertiesEx(page.token) if page.token else None
    return found


def _found(content: Any) -> tuple[Any, dict[str, Any]]:
    for missing in content.missingSet:
        if isinstance(missing.fault, vim.fault.NotAuthenticated):
            raise missing.fault  # an expired session can look like this as well
    return content.obj, {one.name: one.val for one in content.propSet}
