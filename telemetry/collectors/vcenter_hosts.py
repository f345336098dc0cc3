"""On which host each VM of a run was at what time: what splits the series of a VM that moved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class Whereabouts:
    """The hosts of the VMs by time, ns on the run's clock. Made again from a run's events."""

    names: dict[str, str] = field(default_factory=dict)
    """What each VM was called at first, by its id: it keeps that name if somebody renames it."""
    _stays: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    _moids: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, events: Iterable[Mapping[str, Any]]) -> Whereabouts:
        """As the placements and moves among the events tell it."""
        found = cls()
        for event in events:
            if event["event"] == "placement":
                found.seen(event["vm"], event["esxi_host"], event["host_moid"])
                found.names.setdefault(event["moid"], event["vm"])
            elif event["event"] == "moved":
                found.moved(event)
        return found

    def seen(self, vm: str, host: str, host_moid: str) -> None:
        """A VM was seen on a host; without a move it had always been there."""
        self._moids[host] = host_moid
        self._stays.setdefault(vm, [(0, host)])

    def moved(self, move: Mapping[str, Any]) -> None:
        """A VM is on another host from some time on. Moves come in the order of their times."""
        stays = self._stays.setdefault(move["vm"], [])
        if not stays or (len(stays) == 1 and stays[0][1] == move["to_host"]):
            stays[:] = [(0, move["from_host"])]  # it was first seen when it had moved already
        stays.append((move["at_ns"], move["to_host"]))
        self._moids[move["from_host"]] = move["from_moid"]
        self._moids[move["to_host"]] = move["to_moid"]

    def now(self, vm: str) -> tuple[int, str] | None:
        """The last host that is known, and since when."""
        stays = self._stays.get(vm)
        return stays[-1] if stays else None

    def at(self, vm: str, end_ns: int) -> str:
        """The host that made the window that ends then.

        The window with the move in it is the new host's: the old one ended its own with the move.
        """
        stays = self._stays[vm]
        return next((host for at_ns, host in reversed(stays) if at_ns < end_ns), stays[0][1])

    def vms(self) -> list[str]:
        return list(self._stays)

    def hosts(self) -> dict[str, str]:
        """Every host that any of the VMs was on, with its id on the server."""
        return dict(self._moids)
