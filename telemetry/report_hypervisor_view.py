"""What the report knows of a run's hypervisor, from all that the record may leave out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from telemetry.report_series import RunSeries
from telemetry.vm_entity import is_estimate, is_seen_from_outside, parsed

Row = Mapping[str, Any]
_UNVERIFIED = ("not verified", "unverified", "insecure")


@dataclass(frozen=True, kw_only=True)
class HypervisorView:
    """What a run knows of its hypervisor, whatever the record leaves out.

    ``told``: profile.json's key ``hypervisor``; ``settings``: what the run says of its vCenter;
    ``configured``: a vCenter was asked in this run;
    ``covered``: share of the run that vCenter's windows of a VM cover, None without any.
    """

    told: Row
    placement: Row
    settings: Row
    configured: bool
    covered: float | None
    absent: Sequence[str]
    lost: Sequence[str]

    @property
    def seen(self) -> bool:
        """Some window of the hypervisor was recorded and is trusted."""
        return self.covered is not None

    @property
    def places(self) -> list[Row]:
        """One record for each VM, the first one where there are several."""
        found: dict[str, Row] = {}
        for place in [*records(self.told, "vms"), *records(self.placement, "vms")]:
            found.setdefault(str(place.get("vm") or ""), place)
        return list(found.values())

    @property
    def own_vm(self) -> str | None:
        """The VM that this machine is, by name."""
        named = self.told.get("vm") or self.placement.get("vm")
        first = next((place.get("vm") for place in self.places), None)
        return str(named or first) if named or first else None

    @property
    def moves(self) -> list[Row]:
        moves = records(self.told, "moves") or records(self.placement, "moves")
        return sorted(moves, key=lambda move: move.get("at_ns") or 0)

    @property
    def gaps(self) -> list[Row]:
        gaps = [gap for gap in records(self.told, "gaps") if gap.get("from_ns") is not None]
        return sorted(gaps, key=lambda gap: (gap["from_ns"], str(gap.get("entity"))))

    @property
    def refused(self) -> str | None:
        refused = self.told.get("refused")
        return str(refused) if refused else None

    @property
    def losses(self) -> list[str]:
        losses = self.told.get("losses") or ()
        return [str(loss) for loss in losses]

    @property
    def server(self) -> str:
        return str(self.told.get("server") or self.settings.get("host") or "name not recorded")

    @property
    def tls(self) -> str | None:
        """How the server's certificate was checked; None where nothing says so."""
        said = self.told.get("tls")
        return str(said) if said else None

    @property
    def unverified(self) -> bool:
        said = (self.tls or "").lower()
        return any(word in said for word in _UNVERIFIED)

    def hosts(self, place: Row) -> list[str]:
        """The ESXi hosts of a VM in their order."""
        moves = [move for move in self.moves if move.get("vm") in {place.get("vm"), None}]
        passed = [host for move in moves for host in (move.get("from_host"), move.get("to_host"))]
        chain = [str(host) for host in passed or [place.get("esxi_host")] if host]
        return [host for i, host in enumerate(chain) if not i or host != chain[i - 1]]

    def why_unseen(self) -> str:
        """Why there is no figure of the hypervisor at all."""
        if self.refused:
            return f"refused: {self.refused}"
        reasons = [*self.losses, *self.lost, *self.absent]
        return reasons[0] if reasons else "vCenter was asked and no window of it was recorded"


def hypervisor_view(
    run: Row, profile: Row, index: RunSeries, extent: tuple[int, int]
) -> HypervisorView:
    """Put together what run.json, profile.json and the samples know of the hypervisor."""
    told, placement = profile.get("hypervisor") or {}, run.get("placement") or {}
    settings = run.get("vcenter") or (run.get("recipe") or {}).get("vcenter") or {}
    covered = _covered(index, extent)
    asked = bool(told or settings.get("host") or covered is not None)
    return HypervisorView(
        told=told,
        placement=placement,
        settings=settings,
        configured=asked,
        covered=covered,
        absent=[*index.reasons("vm(:.*)?"), *index.reasons("esxi(:.*)?")],
        lost=[str(loss) for loss in run.get("losses") or () if "vcenter" in str(loss).lower()],
    )


def records(record: Row, key: str) -> list[Row]:
    """The records of a list in a record; none where it is absent or null."""
    return [one for one in record.get(key) or () if isinstance(one, Mapping)]


def _covered(index: RunSeries, extent: tuple[int, int]) -> float | None:
    """Share of the run within windows of the VM's metric that has the most of them."""
    spent: dict[tuple[str, str], float] = {}
    for entity, metric in index.names():
        if is_window_from_outside(index, entity, metric):
            points = index.points(entity, metric)
            inside = points.ts_ns.clip(*extent) - points.start_ns.clip(*extent)
            key = (parsed(entity).vm or "", metric)
            spent[key] = spent.get(key, 0.0) + float(inside.sum())
    return min(1.0, max(spent.values()) / (extent[1] - extent[0])) if spent else None


def is_window_from_outside(index: RunSeries, entity: str, metric: str) -> bool:
    """Whether a series is vCenter's own windows of a whole VM or host: no device, no estimate."""
    known = index.metrics.get(metric)
    own = is_seen_from_outside(entity) and parsed(entity).instance is None
    return own and known is not None and known.kind == "window" and not is_estimate(metric)


def ended(text: str) -> str:
    """A reason as a sentence with its full stop."""
    text = text.strip().removeprefix("vcenter: ")
    return text if text.endswith((".", "!", "?")) else f"{text}."
