"""The entities of the hypervisor by their names: ``vm:NAME@HOST/INSTANCE``, ``esxi:HOST/gpu:N``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ESTIMATE = "_estimate"
"""What the name of an estimate ends in, behind the name of the metric that it sharpens."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What an entity's name says. ``vm`` is None for a host; parts not named are None.

    A VM's name may hold any character, so that the host is what stands behind the last ``@``.
    """

    vm: str | None
    host: str | None
    instance: str | None


def is_seen_from_outside(entity: str) -> bool:
    """Whether vCenter tells of this entity: a VM or an ESXi host."""
    return entity in {"vm", "esxi"} or entity.startswith(("vm:", "esxi:"))


def parsed(entity: str) -> Seen:
    """Take an entity of the hypervisor apart; all parts are None for any other one."""
    kind, _, rest = entity.partition(":")
    if kind == "esxi":
        host, _, instance = rest.partition("/")
        return Seen(vm=None, host=host or None, instance=instance or None)
    if kind != "vm" or not rest:
        return Seen(vm=None, host=None, instance=None)
    name, at, tail = rest.rpartition("@")
    if not at:
        return Seen(vm=rest, host=None, instance=None)
    host, _, instance = tail.partition("/")
    return Seen(vm=name, host=host or None, instance=instance or None)


def short_hosts(names: Iterable[str]) -> dict[str, str]:
    """Each host's name without its domain, where that still tells it from the others."""
    hosts = sorted(set(names))
    firsts = {host: host.partition(".")[0] for host in hosts}
    numeric = any(first.isdigit() for first in firsts.values())
    if numeric or len(set(firsts.values())) < len(hosts):
        return {host: host for host in hosts}
    return firsts


def is_estimate(metric: str) -> bool:
    """Whether a metric is an estimate made of a measured one."""
    return metric.endswith(ESTIMATE)
