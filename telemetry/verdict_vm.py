"""What vCenter says of a stage's VM, over all the hosts that it was on.

The profile has a row for each host; of a VM that moved within a stage each covers a part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from telemetry.profile import Row, share_of
from telemetry.verdict_figures import Evidence, Figures, evidence
from telemetry.verdict_thresholds import limit
from telemetry.vm_entity import parsed

Part = tuple[str, str]
"""A VM's name and which part of it: a disk, or "" for the whole of it."""


@dataclass(frozen=True, kw_only=True)
class OverHosts:
    """The rows of one metric of a VM or of a part of it, one for each host, in order of the hosts.

    ``coverage``, ``mean`` (in the metric's unit, each host's weighted by its coverage) and
    ``total`` (None where the metric has none) are of those rows that have figures.
    """

    rows: tuple[Row, ...]

    @property
    def known(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.mean is not None and row.coverage > 0)

    @property
    def coverage(self) -> float:
        """Share of the stage, 0 to 1."""
        return sum(row.coverage for row in self.known)

    @property
    def is_enough(self) -> bool:
        """Whether the hosts together cover so much of the stage that it is judged by this."""
        return self.coverage >= limit("coverage")

    @property
    def mean(self) -> float:
        levels = (row.mean * row.coverage for row in self.known if row.mean is not None)
        return sum(levels) / self.coverage

    @property
    def total(self) -> float | None:
        totals = [row.total for row in self.known if row.total is not None]
        return sum(totals) if totals else None

    @property
    def total_share(self) -> float:
        """Share of the stage that ``total`` stands for, 0 to 1."""
        return sum(share_of(row.total_share, row.coverage) for row in self.known)

    def above(self, threshold: float) -> OverHosts:
        """Of the same the hosts on which the mean is above a threshold, in the metric's unit."""
        kept = (row for row in self.known if row.mean is not None and row.mean > threshold)
        return OverHosts(rows=tuple(kept))

    def less(self, own: OverHosts | None) -> OverHosts:
        """The same without what another metric in its unit tells of the same host."""
        means = {} if own is None else {row.entity: row.mean for row in own.known}
        return OverHosts(
            rows=tuple(
                replace(row, mean=max(0.0, row.mean - (means.get(row.entity) or 0.0)))
                for row in self.known
                if row.mean is not None
            )
        )

    def on(self, others: OverHosts) -> OverHosts:
        """Of the same the hosts that others have."""
        hosts = {row.entity for row in others.rows}
        return OverHosts(rows=tuple(row for row in self.rows if row.entity in hosts))

    def why_not(self) -> str:
        """Why ``is_enough`` is False."""
        if not self.known:
            return next((row.reason for row in self.rows if row.reason), "it has no figures")
        return self._covers(self.coverage)

    def why_not_whole(self) -> str:
        """Why ``total`` is not the whole stage's."""
        return self._covers(self.total_share) if self.known else self.why_not()

    def _covers(self, share: float) -> str:
        hosts = " and ".join(row.entity for row in self.known)
        return f"{self.rows[0].metric} of {hosts} covers {100 * share:.0f} % of the stage"

    def told(self, says: str) -> list[Evidence]:
        """The mean on each host, a row of the profile each."""
        return [evidence(row, "mean", row.mean, says) for row in self.known if row.mean is not None]


def part_of(entity: str) -> Part | None:
    """Whose an entity is, whatever the host: None for what is no VM's."""
    seen = parsed(entity)
    return None if seen.vm is None else (seen.vm, seen.instance or "")


def over_hosts(figures: Figures, metric: str) -> Mapping[Part, OverHosts]:
    """One metric of each VM, and of each of its parts that has it."""
    rows: dict[Part, list[Row]] = {}
    for entity in sorted(entity for entity, name in figures.rows if name == metric):
        part = part_of(entity)
        if part is not None:
            rows.setdefault(part, []).append(figures.rows[entity, metric])
    return {part: OverHosts(rows=tuple(found)) for part, found in sorted(rows.items())}


def why_unseen(figures: Figures, metric: str) -> str | None:
    """Why no VM has enough of a metric; None where one has, or where no vCenter was asked."""
    found = over_hosts(figures, metric).values()
    if any(one.is_enough for one in found):
        return None
    if found:
        return next(one.why_not() for one in found)
    if ("vm", metric) in figures.rows:
        return figures.why_not("vm", metric, "mean")
    return f"vCenter was asked, and {metric} was not recorded" if figures.asked_vcenter else None
