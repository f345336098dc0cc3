"""What can be measured on this machine, what it says now, and why the rest can't."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from telemetry.samples import Collector, Sample, Samples, Series

PAUSE_S = 0.25
"""Between the two samples: longer than the 100 ms in which a GPU's energy counter moves."""

Key = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """One series: its value now, or why there is none.

    A counter's value is its growth between the two samples, so its unit is per second.
    """

    collector: str
    entity: str
    metric: str
    unit: str
    available: bool
    value: float | None
    reason: str | None


def probe(collectors: Sequence[Collector], pause_s: float = PAUSE_S) -> list[ProbeRow]:
    """Open the collectors, sample twice and return a row per series, in their order.

    A collector that fails is one row: entity ``collector:<name>``, metric ``up``, the error.
    """
    rows: list[ProbeRow] = []
    for collector in collectors:
        try:
            rows += _probe_one(collector, pause_s)
        except Exception as error:  # noqa: BLE001  One that fails must not hide the others.
            rows.append(_failed(collector.name, error))
    return rows


def _probe_one(collector: Collector, pause_s: float) -> list[ProbeRow]:
    try:
        known: dict[Key, Series] = {_key(series): series for series in collector.open()}
        first = _by_key(collector.sample())
        time.sleep(pause_s)
        second = _by_key(collector.sample())
    finally:
        collector.close()
    for key, sample in (first | second).items():
        known.setdefault(key, sample.series)
    return [
        _row(collector.name, series, first.get(key), second.get(key))
        for key, series in known.items()
    ]


def _row(name: str, series: Series, first: Sample | None, second: Sample | None) -> ProbeRow:
    metric = series.metric
    value = second.value if second is not None else first.value if first is not None else None
    unit = metric.unit
    if metric.kind == "counter":
        value = _rate(first, second)
        unit = f"{unit}/s"
    reason = series.reason
    if value is None and reason is None:
        reason = "no value in the two samples of this probe"
    return ProbeRow(
        collector=name,
        entity=series.entity,
        metric=metric.name,
        unit=unit,
        available=series.reason is None,
        value=value,
        reason=reason,
    )


def _rate(first: Sample | None, second: Sample | None) -> float | None:
    if first is None or second is None or second.ts_ns <= first.ts_ns:
        return None
    growth = second.value - first.value
    return growth / ((second.ts_ns - first.ts_ns) / 1e9) if growth >= 0 else None


def _by_key(samples: Samples) -> dict[Key, Sample]:
    return {_key(sample.series): sample for sample in sorted(samples, key=lambda s: s.ts_ns)}


def _key(series: Series) -> Key:
    return series.entity, series.metric.name


def _failed(name: str, error: Exception) -> ProbeRow:
    return ProbeRow(
        collector=name,
        entity=f"collector:{name}",
        metric="up",
        unit="share",
        available=False,
        value=None,
        reason=f"{type(error).__name__}: {error}",
    )
