"""The profile of a run: a row per stage, entity and metric, as Parquet and as JSON.

``docs/profile.md`` says how a number comes about, ``docs/profile.schema.json`` what the JSON holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa

from telemetry.samples import Kind

SCHEMA = "stagescope.profile/1"
DATA = "data"
"""Entity of what a stage itself says of its inputs and outputs, for the stage as a whole."""
WHOLE = 0.95
"""A total of less of the stage is not told as the stage's."""
Figure = Literal["mean", "p50", "p95", "max", "total", "coverage"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one metric of one entity was in one stage; null where absent, and ``reason`` says why.

    A counter's ``mean``, ``p50``, ``p95`` and ``max`` are rates in unit/s and its ``total`` is in
    unit; other kinds have levels in unit, and a ``total`` only where their time integral has a
    meaning (W gives J). ``coverage`` is the share of the stage that samples cover, 0 to 1; of
    windows that reach over its edge only the share within counts, and a stage that is shorter than
    a window has its coverage and no figures. ``total_share`` is the share of the stage that
    ``total`` stands for: the coverage, but of windows of which it holds five the whole part within,
    for a stage's own processes with the moment until they were found, and for what it counts itself
    with the time until it could and the moment after it had done; None without a total, and in
    profiles of versions that did not keep it.
    """

    stage: str
    entity: str
    metric: str
    unit: str
    kind: Kind
    mean: float | None = None
    p50: float | None = None
    p95: float | None = None
    max: float | None = None
    total: float | None = None
    coverage: float = 0.0
    total_share: float | None = None
    reason: str | None = None

    @property
    def whole(self) -> float | None:
        """The total, if it stands for the whole stage."""
        return self.total if is_whole(self.total_share, self.coverage) else None

    def told(self, figure: Figure) -> float | None:
        """A figure that stands for the whole stage; None without one."""
        if self.reason is not None:
            return None
        value: float | None = self.whole if figure == "total" else getattr(self, figure)
        return value


_TABLE = pa.schema(
    [
        *(pa.field(name, pa.string(), False) for name in ("stage", "entity", "metric", "unit")),
        pa.field("kind", pa.string(), False),
        *(pa.field(name, pa.float64()) for name in ("mean", "p50", "p95", "max", "total")),
        pa.field("coverage", pa.float64(), False),
        pa.field("total_share", pa.float64()),
        pa.field("reason", pa.string()),
    ]
)
_RUN = ("run_id", "name", "status", "started_ns", "ended_ns", "host", "seed", "clock", "losses")
_STAGE = ("name", "status", "start_ns", "end_ns", "reused_from", "reason")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """All rows of a run's measured stages, and the run's ledger.

    ``hypervisor``: what is known of vCenter's view as a whole; None in a run that asked none.
    ``verdicts``: what held each stage back; ``data_moved``: what each moved. Both are empty in the
    profile of a version that did not say it.
    """

    rows: tuple[Row, ...]
    ledger: tuple[Mapping[str, Any], ...] = ()
    hypervisor: Mapping[str, Any] | None = None
    verdicts: tuple[Mapping[str, Any], ...] = ()
    data_moved: tuple[Mapping[str, Any], ...] = ()

    @cached_property
    def _found(self) -> dict[tuple[str, str, str], Row]:
        return {(row.stage, row.entity, row.metric): row for row in self.rows}

    def find(self, stage: str, entity: str, metric: str) -> Row | None:
        """The row of one series in one stage; None where the run has no such series."""
        return self._found.get((stage, entity, metric))

    def of(self, stage: str) -> list[Row]:
        """The rows of a stage; none for one that was not measured in this run."""
        return [row for row in self.rows if row.stage == stage]

    def to_table(self) -> pa.Table:
        """The rows as a table: strings and float64, null where absent."""
        return pa.Table.from_pylist([asdict(row) for row in self.rows], schema=_TABLE)

    def to_json(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """``profile.json``: all stages of ``run`` in its order; without a span, no metrics."""
        metrics: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows:
            fields = asdict(row)
            metrics.setdefault(fields.pop("stage"), []).append(fields)
        told = {} if self.hypervisor is None else {"hypervisor": dict(self.hypervisor)}
        return {
            "schema": SCHEMA,
            "run": {name: run.get(name) for name in _RUN},
            "environment": run.get("environment") or {},
            "stages": [
                {name: stage.get(name) for name in _STAGE}
                | {"metrics": metrics.get(stage["name"], [])}
                for stage in run["stages"]
            ],
            "ledger": [dict(entry) for entry in self.ledger],
            "verdicts": [dict(one) for one in self.verdicts],
            "data_moved": [dict(one) for one in self.data_moved],
            **told,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Profile:
        """Read ``profile.json``. Raises ValueError for a schema that this version does not know."""
        if document.get("schema") != SCHEMA:
            raise ValueError(
                f"the profile has schema {document.get('schema')!r}; this version of stagescope "
                f"reads {SCHEMA!r}: make it anew with stagescope report RUN"
            )
        return cls(
            rows=tuple(
                Row(stage=stage["name"], **row)
                for stage in document["stages"]
                for row in stage["metrics"]
            ),
            ledger=tuple(document["ledger"]),
            hypervisor=document.get("hypervisor"),
            verdicts=tuple(document.get("verdicts", ())),
            data_moved=tuple(document.get("data_moved", ())),
        )


@dataclass(frozen=True, kw_only=True)
class _Told:
    """A field of a stage's entry in ``run.json`` that becomes a row of entity ``data``."""

    metric: str
    unit: str
    what: str


_TOLD = (
    _Told(metric="bytes_in", unit="B", what="how many bytes it read"),
    _Told(metric="bytes_out", unit="B", what="how many bytes it wrote"),
    _Told(metric="rows_in", unit="rows", what="how many rows it read"),
    _Told(metric="rows_out", unit="rows", what="how many rows it wrote"),
)


def data_rows(run: Mapping[str, Any]) -> Iterator[Row]:
    """What the measured stages say of their data: bytes and rows in and out, and growth.

    The figures stand for the whole stage: they have a rate (mean) and a total, but no p50, p95 and
    max. ``growth_ratio`` is a stage's bytes out over those of the run's first stage.
    """
    for stage in run["stages"]:
        if stage.get("end_ns") is None or stage.get("start_ns") is None:
            continue
        seconds = (stage["end_ns"] - stage["start_ns"]) / 1e9
        for told in _TOLD:
            row = Row(
                stage=stage["name"], entity=DATA, metric=told.metric, unit=told.unit, kind="counter"
            )
            value = stage.get(told.metric)
            if value is None or seconds <= 0:
                yield replace(row, reason=f"the stage does not say {told.what}")
            else:
                yield replace(row, mean=value / seconds, total=float(value),
                              coverage=1.0, total_share=1.0)  # fmt: skip
        yield _growth(stage, run["stages"][0])


def _growth(stage: Mapping[str, Any], first: Mapping[str, Any]) -> Row:
    row = Row(stage=stage["name"], entity=DATA, metric="growth_ratio", unit="ratio", kind="gauge")
    for one in (stage, first):
        if one.get("bytes_out") is None:
            return replace(row, reason=f"{one['name']} does not say how many bytes it wrote")
    if not first["bytes_out"]:
        return replace(row, reason=f"{first['name']}, the first stage, wrote nothing")
    return replace(row, mean=stage["bytes_out"] / first["bytes_out"], coverage=1.0)


def share_of(total_share: float | None, coverage: float) -> float:
    """The share of the stage that a row's total stands for, in profiles of any version."""
    return coverage if total_share is None else total_share


def is_whole(total_share: float | None, coverage: float) -> bool:
    """Whether a row's total is told as the stage's."""
    return share_of(total_share, coverage) >= WHOLE
