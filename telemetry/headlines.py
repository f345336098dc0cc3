"""What is told of each stage in one line: on the console, in ``show`` and in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from telemetry.profile import Figure, Profile


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
        return row.told(figure) if row else None

    def whole(metric: str, *by_wait4: str) -> float | None:
        """By samples where they are the whole stage's, else as the kernel told at its end."""
        row, used = profile.find(name, "stage", metric), stage.get("rusage") or {}
        if row and (value := row.told("total")) is not None:
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
                if energy.told("total") is not None
                else f" in {100 * energy.coverage:.0f} % of it"
            )
            said.append(f"{energy.total:,.0f} J{part}")
        if said:
            parts.append(f"{entity}: {', '.join(said)}")
    if parts:
        return "; ".join(parts)
    return next((row.reason for row in rows if row.reason), "not recorded")
