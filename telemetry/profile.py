"""The profile of a run: a row per stage, entity and metric, as Parquet, as JSON and in headlines.

``docs/profile.md`` says how a number comes about, ``docs/profile.schema.json`` what the JSON holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa

from telemetry.samples import Kind
from telemetry.series import clean

SCHEMA = "stagescope.profile/1"
DATA = "data"
"""Entity of what a stage itself says of its inputs and outputs, for the stage as a whole."""
SUMMARY_LIMIT = 60
"""Summary figures of a stage at the most: what a tracking server's table can show."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one metric of one entity was in one stage; null where absent, and ``reason`` says why.

    A counter's ``mean``, ``p50``, ``p95`` and ``max`` are rates in unit/s and its ``total`` is in
    unit; other kinds have levels in unit, and a ``total`` only where their time integral has a
    meaning (W gives J). ``coverage`` is the share of the stage that samples cover, 0 to 1; of
    windows that reach over its edge only the share within counts, and a stage that is shorter than
    a window has its coverage and no figures. ``total_share`` is the share of the stage that
    ``total`` stands for: the coverage, but of windows of which it holds five the whole part within,
    and for a stage's own processes with the moment until they were found; None without a total, and
    in profiles of versions that did not keep it.
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


@dataclass(frozen=True, kw_only=True)
class Headline:
    """What the table of stages says of one stage; None where it was not measured."""

    stage: str
    status: str
    seconds: float | None
    cpu_s: float | None
    cores: float | None
    rss_peak_bytes: float | None
    read_bytes: float | None
    write_bytes: float | None
    gpu: str
    verdict: str
    coverage: float | None
    reused_from: str | None
    reason: str | None


def headlines(profile: Profile, run: Mapping[str, Any]) -> list[Headline]:
    """A line for each stage of the run, also for those that were not measured in it."""
    return [_headline(profile, stage) for stage in run["stages"]]


def _headline(profile: Profile, stage: Mapping[str, Any]) -> Headline:
    name = stage["name"]
    measured = stage.get("end_ns") is not None and stage.get("start_ns") is not None

    def figure(metric: str, figure: Figure) -> float | None:
        row = profile.find(name, "stage", metric)
        value: float | None = getattr(row, figure) if row and row.reason is None else None
        return value

    def whole(metric: str, *by_wait4: str) -> float | None:
        """By samples where they are the whole stage's, else as the kernel told at its end."""
        row, used = profile.find(name, "stage", metric), stage.get("rusage") or {}
        if row and (value := _told(row, "total")) is not None:
            return value
        found = [used[one] for one in by_wait4 if used.get(one) is not None]
        return sum(found) if found else None

    return Headline(
        stage=name,
        status=stage["status"],
        seconds=(stage["end_ns"] - stage["start_ns"]) / 1e9 if measured else None,
        cpu_s=whole("cpu_busy_seconds", "user_s", "system_s"),
        cores=figure("cpu_busy_seconds", "mean"),
        rss_peak_bytes=figure("mem_rss_bytes", "max"),
        read_bytes=whole("io_read_bytes", "read_bytes"),
        write_bytes=whole("io_write_bytes", "write_bytes"),
        gpu=_gpu(profile, name) if measured else "",
        verdict=next((one["verdict"] for one in profile.verdicts if one["stage"] == name), ""),
        coverage=figure("cpu_busy_seconds", "coverage"),
        reused_from=stage.get("reused_from"),
        reason=stage.get("reason"),
    )


def _gpu(profile: Profile, stage: str) -> str:
    """Utilization and energy of each GPU, or why there is none."""
    rows = [row for row in profile.of(stage) if row.entity.partition(":")[0] == "gpu"]
    parts = []
    for entity in sorted({row.entity for row in rows if row.reason is None}):
        busy = profile.find(stage, entity, "gpu_util_percent")
        energy = profile.find(stage, entity, "energy_j")
        said = [f"{busy.mean:.0f} % busy"] if busy and busy.mean is not None else []
        if energy and energy.total is not None:
            part = (
                ""
                if _told(energy, "total") is not None
                else f" in {100 * energy.coverage:.0f} % of it"
            )
            said.append(f"{energy.total:,.0f} J{part}")
        if said:
            parts.append(f"{entity}: {', '.join(said)}")
    if parts:
        return "; ".join(parts)
    return next((row.reason for row in rows if row.reason), "not recorded")


Figure = Literal["mean", "p50", "p95", "max", "total", "coverage"]


@dataclass(frozen=True)
class _Summary:
    """A summary figure: its name and where it is from; the entity's group fills the braces.

    Of more than ``MOST_GPUS`` shares (%) are their mean and amounts their sum, and the braces say
    ``all``.
    """

    name: str
    entity: str
    metric: str
    figure: Figure


_DISK, _NET, _GPU = r"disk:(.+)", r"net:(?!lo$)(.+)", r"gpu:(\d+(?:/mig:\d+)?)"
_VM, _ESXI = r"vm:.+@[^@/]+", r"esxi:[^/]+"
_VM_PART, _ESXI_GPU = r"vm:.+@[^@/]+/([^@]+)", r"esxi:[^/]+/gpu:(.+)"
_SUMMARY = (
    _Summary("stage/cpu_seconds", "stage", "cpu_busy_seconds", "total"),
    _Summary("stage/cpu_cores_mean", "stage", "cpu_busy_seconds", "mean"),
    _Summary("stage/cpu_cores_p95", "stage", "cpu_busy_seconds", "p95"),
    _Summary("stage/cpu_system_seconds", "stage", "cpu_system_seconds", "total"),
    _Summary("stage/mem_rss_mean_bytes", "stage", "mem_rss_bytes", "mean"),
    _Summary("stage/mem_rss_max_bytes", "stage", "mem_rss_bytes", "max"),
    _Summary("stage/io_read_bytes", "stage", "io_read_bytes", "total"),
    _Summary("stage/io_write_bytes", "stage", "io_write_bytes", "total"),
    _Summary("stage/coverage", "stage", "cpu_busy_seconds", "coverage"),
    _Summary("data/bytes_in", DATA, "bytes_in", "total"),
    _Summary("data/bytes_out", DATA, "bytes_out", "total"),
    _Summary("data/rows_out", DATA, "rows_out", "total"),
    _Summary("data/rows_out_per_s", DATA, "rows_out", "mean"),
    _Summary("data/growth_ratio", DATA, "growth_ratio", "mean"),
    _Summary("guest/cpu_seconds", "machine", "cpu_busy_seconds", "total"),
    _Summary("guest/cpu_busy_mean_percent", "machine", "cpu_busy_percent", "mean"),
    _Summary("guest/cpu_busy_p95_percent", "machine", "cpu_busy_percent", "p95"),
    _Summary("guest/cpu_iowait_seconds", "machine", "cpu_iowait_seconds", "total"),
    _Summary("guest/cpu_steal_seconds", "machine", "cpu_steal_seconds", "total"),
    _Summary("guest/cpu_loop_us", "machine", "cpu_loop_us", "mean"),
    _Summary("guest/mem_used_max_bytes", "machine", "mem_used_bytes", "max"),
    _Summary("guest/psi_cpu_some_seconds", "machine", "psi_cpu_some_seconds", "total"),
    _Summary("guest/psi_memory_full_seconds", "machine", "psi_memory_full_seconds", "total"),
    _Summary("guest/psi_io_full_seconds", "machine", "psi_io_full_seconds", "total"),
    _Summary("vcenter/cpu_used_seconds", _VM, "vm_cpu_used_cores", "total"),
    _Summary("vcenter/cpu_used_seconds_estimate", _VM, "vm_cpu_used_cores_estimate", "total"),
    _Summary("vcenter/cpu_ready_mean_percent", _VM, "vm_cpu_ready_percent", "mean"),
    _Summary("vcenter/cpu_maxlimited_mean_percent", _VM, "vm_cpu_maxlimited_percent", "mean"),
    _Summary("vcenter/cpu_costop_mean_percent", _VM, "vm_cpu_costop_percent", "mean"),
    _Summary("vcenter/cpu_latency_mean_percent", _VM, "vm_cpu_latency_percent", "mean"),
    _Summary("vcenter/coverage", _VM, "vm_cpu_usage_percent", "coverage"),
    _Summary("vcenter/mem_ballooned_max_bytes", _VM, "vm_mem_ballooned_bytes", "max"),
    _Summary("vcenter/mem_swapped_max_bytes", _VM, "vm_mem_swapped_bytes", "max"),
    _Summary("vcenter/disk_latency_max_ms", _VM, "vm_disk_latency_max_ms", "max"),
    _Summary("vcenter/host_energy_j", _ESXI, "host_power_w", "total"),
    _Summary("vcenter/host_power_mean_w", _ESXI, "host_power_w", "mean"),
    _Summary("gpu/{}_util_percent", _GPU, "gpu_util_percent", "mean"),
    _Summary("gpu/{}_mem_used_max_bytes", _GPU, "gpu_mem_used_bytes", "max"),
    _Summary("gpu/{}_power_mean_w", _GPU, "power_instant_w", "mean"),
    _Summary("gpu/{}_energy_j", _GPU, "energy_j", "total"),
    _Summary("gpu/{}_energy_from_power_j", _GPU, "power_instant_w", "total"),
    _Summary("gpu/{}_energy_above_idle_j", _GPU, "energy_above_idle_j", "total"),
    _Summary("gpu/{}_gpm_sm_util_percent", _GPU, "gpm_sm_util_percent", "mean"),
    _Summary("gpu/{}_gpm_tensor_util_percent", _GPU, "gpm_tensor_util_percent", "mean"),
    _Summary("vcenter/gpu_{}_util_percent", _ESXI_GPU, "host_gpu_util_percent", "mean"),
    _Summary("vcenter/{}_read_bytes", _VM_PART, "vm_disk_read_bytes_per_s", "total"),
    _Summary("vcenter/{}_write_bytes", _VM_PART, "vm_disk_write_bytes_per_s", "total"),
    _Summary("guest/{}_read_bytes", _DISK, "disk_read_bytes", "total"),
    _Summary("guest/{}_read_p95_bytes_per_s", _DISK, "disk_read_bytes", "p95"),
    _Summary("guest/{}_write_bytes", _DISK, "disk_write_bytes", "total"),
    _Summary("guest/{}_write_p95_bytes_per_s", _DISK, "disk_write_bytes", "p95"),
    _Summary("guest/{}_rx_bytes", _NET, "net_rx_bytes", "total"),
    _Summary("guest/{}_tx_bytes", _NET, "net_tx_bytes", "total"),
)
"""In order of importance: of a machine with very many devices the last figures are left out."""
WHOLE = 0.95
"""A total of less of the stage is not told as the stage's."""
MOST_GPUS = 2
"""Of more cards than that each figure is one for all of them: a mean or a sum."""


def share_of(total_share: float | None, coverage: float) -> float:
    """The share of the stage that a row's total stands for, in profiles of any version."""
    return coverage if total_share is None else total_share


def is_whole(total_share: float | None, coverage: float) -> bool:
    """Whether a row's total is told as the stage's."""
    return share_of(total_share, coverage) >= WHOLE


def summary(profile: Profile, stage: str, limit: int = SUMMARY_LIMIT) -> dict[str, float]:
    """At most ``limit`` figures of a stage, named for a tracking server; no absent ones."""
    figures = dict(_figures(profile.of(stage)))
    return dict(list(figures.items())[:limit])


def _figures(rows: Sequence[Row]) -> Iterator[tuple[str, float]]:
    """Where two entities would give one name (a VM that moved), each has its own added.

    What is of all cards together is left out where one of them has no figure.
    """
    for one in _SUMMARY:
        found = [
            (row, match, value)
            for row in rows
            if row.metric == one.metric
            and (match := re.fullmatch(one.entity, row.entity))
            and (value := _told(row, one.figure)) is not None
        ]
        cards = [row for row in rows if row.metric == one.metric and _is_card(row.entity)]
        if one.entity == _GPU and len(cards) > MOST_GPUS:
            told = [value for row, _, value in found if _is_card(row.entity)]
            if len(told) == len(cards):
                together = sum(told) / (len(told) if one.name.endswith("_percent") else 1)
                yield clean(one.name.format("all")), together
            found = [each for each in found if "/" in each[0].entity]
        names = [one.name.format(*match.groups()) for _, match, _ in found]
        for (row, _, value), name in zip(found, names, strict=True):
            whose = row.entity.partition(":")[2].partition("/")[0]
            yield clean(name if names.count(name) == 1 else f"{name} {whose}"), value


def _told(row: Row, figure: Figure) -> float | None:
    """A figure of the row that stands for the whole stage; None without one."""
    value: float | None = row.whole if figure == "total" else getattr(row, figure)
    return None if row.reason is not None else value


def _is_card(entity: str) -> bool:
    return re.fullmatch(r"gpu:\d+", entity) is not None
