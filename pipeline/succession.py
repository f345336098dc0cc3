"""Who is champion, and who becomes it: what a run asks the model registry, and tells it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.artifact import Artifact
from pipeline.tracking import Champion, Tracking, TrackingAway
from telemetry.runfolder import RunFolder


@dataclass(kw_only=True)
class Succession:
    """A registry that was away is asked again each time: hours may lie in between."""

    tracking: Tracking
    lost: Callable[[str], None]
    note: Callable[[str], None]
    champion: Champion | None = field(default=None, init=False)
    _away: str | None = field(default=None, init=False)
    """Why the registry did not tell its champion, or did not take a new one."""

    def fetch(self) -> Artifact | None:
        """The champion's files, if there is one and the registry tells of it."""
        self.tracking.retry()
        try:
            self.champion = self.tracking.champion()
        except TrackingAway as away:
            if self._away is None:
                self.lost(f"model registry away, so the champion is not known: {away}")
            self._away = str(away)
        else:
            self._away = None
        return self.artifact

    @property
    def artifact(self) -> Artifact | None:
        """The champion's files, as far as is known."""
        return None if self.champion is None else self.champion.artifact

    def decide(
        self, folder: RunFolder, candidate: Artifact, verdict: Mapping[str, Any]
    ) -> str | None:
        """Make the candidate champion if it has won; returns why there is nobody to serve, if so.

        Only who was compared with the champion takes its place: one that the registry tells of
        only now stays.
        """
        was_known = self._away is None
        if not was_known:
            self.fetch()
        champion = self.champion
        if champion is not None and champion.artifact.digest == candidate.digest:
            return None
        if verdict["promote"] and self._away is None:
            if was_known or champion is None:
                self._promote(folder, candidate)
            else:
                named = f"{champion.name} version {champion.version}"
                self.lost(f"no promotion: {named} was not known when its rival was validated")
        if self.champion is not None:
            return None
        reasons = "; ".join(verdict["reasons"])
        why = f"gate: {reasons}" if self._away is None else f"registry away: {self._away}"
        return f"there is no champion to serve ({why})"

    def _promote(self, folder: RunFolder, candidate: Artifact) -> None:
        digest = None if self.champion is None else self.champion.artifact.digest
        self.tracking.retry()
        try:
            promoted = self.tracking.promote(folder, candidate, compared_with=digest)
        except TrackingAway as away:
            self._away = str(away)
            self.lost(f"model registry away, so no promotion: {away}")
        else:
            self.champion = promoted
            self.note(f"{promoted.name} version {promoted.version} is the champion")
