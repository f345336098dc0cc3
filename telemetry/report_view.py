"""A stage as the report sees it: its record, its rows of the profile, verdict, what it moved."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from telemetry.profile import is_whole, share_of
from telemetry.report_html import Html, tag

_SIGNS = {
    "finished": "✓", "reused": "↺", "failed": "✗", "interrupted": "■",
    "killed": "■", "skipped": "⤼", "running": "…",
}  # fmt: skip
UNENDED = "no end was recorded"

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StageView:
    """One stage of the run beside what the profile knows of it.

    ``verdict`` and ``moved`` are None where the profile has none: one of an older version, or a
    stage that was not measured.
    """

    place: int
    record: Row
    rows: Sequence[Row]
    verdict: Row | None = None
    moved: Row | None = None

    @property
    def name(self) -> str:
        return str(self.record.get("name"))

    @property
    def status(self) -> str:
        return str(self.record.get("status") or "unknown")

    @property
    def anchor(self) -> str:
        return f"stage-{self.place}"

    @property
    def seconds(self) -> float | None:
        start, end = self.record.get("start_ns"), self.record.get("end_ns")
        return None if start is None or end is None else (end - start) / 1e9

    @property
    def measured(self) -> bool:
        return self.record.get("start_ns") is not None

    def find(self, entity: str, metric: str) -> list[Row]:
        return [
            row
            for row in self.rows
            if re.fullmatch(entity, row["entity"]) and re.fullmatch(metric, row["metric"])
        ]

    def total(self, entity: str, metric: str, field: str = "total") -> float | None:
        """The sum over all rows that match and have a value; None without any."""
        found = [row[field] for row in self.find(entity, metric) if row.get(field) is not None]
        return sum(found) if found else None

    def whole(self, entity: str, metric: str) -> float | None:
        """The sum of the totals of all rows that match, if each stands for the whole stage."""
        found = [row for row in self.find(entity, metric) if row.get("total") is not None]
        return sum(row["total"] for row in found) if found and all(map(whole, found)) else None

    def reason(self, entity: str, metric: str = ".*") -> str | None:
        return next((row["reason"] for row in self.find(entity, metric) if row.get("reason")), None)

    def rusage(self, *names: str) -> float | None:
        used = self.record.get("rusage") or {}
        found = [used[name] for name in names if used.get(name) is not None]
        return sum(found) if found else None


def whole(row: Row) -> bool:
    """Whether a row's total is the whole stage's."""
    return is_whole(row.get("total_share"), row.get("coverage") or 0.0)


def shown_share(row: Row) -> float:
    """The share of the stage that a row's total stands for."""
    return share_of(row.get("total_share"), row.get("coverage") or 0.0)


def views(run: Row, profile: Row) -> list[StageView]:
    """The run's stages in their order, each with its part of the profile."""
    rows: dict[str, list[Row]] = {}
    for stage in profile.get("stages") or ():
        rows.setdefault(stage["name"], []).extend(stage.get("metrics") or ())
    verdicts, moved = _by_stage(profile, "verdicts"), _by_stage(profile, "data_moved")
    return [
        StageView(
            place=place,
            record=record,
            rows=rows.get(name := str(record.get("name")), []),
            verdict=verdicts.get(name),
            moved=moved.get(name),
        )
        for place, record in enumerate(run.get("stages") or (), start=1)
    ]


def _by_stage(profile: Row, key: str) -> dict[str, Row]:
    found = [one for one in profile.get(key) or () if isinstance(one, Mapping)]
    return {str(one.get("stage")): one for one in found}


def status_mark(view: StageView) -> Html:
    """A word with its sign, so that it never hangs on colour."""
    known = view.status if view.status in _SIGNS else "unknown"
    word = "no end" if known == "running" else view.status
    title = UNENDED if known == "running" else None
    return tag("span", f"{_SIGNS.get(known, '?')} {word}", class_=f"status {known}", title=title)


def unmeasured(view: StageView) -> str:
    """Why a stage has no figures in this run, as a sentence."""
    if view.status == "reused":
        source = view.record.get("reused_from")
        where = f"run {source}" if source else "an earlier run"
        return f"Not measured in this run: its outputs are those of {where}, which measured it."
    why = view.record.get("reason")
    return f"Not run: {why}." if why else "Not run."
