"""Tables for people: plans, runs, profiles and what can be measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.console import print_rows
from pipeline.plan import Plan
from telemetry.headlines import Headline, headlines
from telemetry.probe import ProbeRow
from telemetry.profile import Profile
from telemetry.runfolder import RunFolder

ABSENT = "–"


def show_plan(console: Console, plan: Plan) -> None:
    """What is wrong, else what each stage would do."""
    for problem in plan.problems:
        console.print(f"problem: {problem}", highlight=False, style="red")
    for warning in plan.warnings:
        console.print(f"note: {warning}", highlight=False, style="dim")
    if plan.stages:
        rows = [(stage.name, stage.action, stage.why) for stage in plan.stages]
        print_rows(console, f"plan of recipe {plan.recipe.name}", ("stage", "action", "why"), rows)


def show_run(console: Console, folder: RunFolder) -> None:
    """The table of stages, losses, and where the folder is."""
    record = folder.read()
    document = json.loads(folder.profile_json.read_text())
    lines = headlines(Profile.from_json(document), record)
    sizes = ("peak RSS", "read", "written")
    columns = ("stage", "time", "CPU", "cores", *sizes, "verdict", "coverage")
    rows = [_run_row(line) for line in lines]
    print_rows(console, f"run {record['run_id']}: {record['status']}", columns, rows)
    for line in lines:
        if line.reused_from:
            said = f"{line.stage}: measured in run {line.reused_from}"
            console.print(said, highlight=False)
        elif line.reason:
            console.print(f"{line.stage}: {line.reason}", highlight=False)
    for sentence in _gpu_lines(lines):
        console.print(sentence, highlight=False)
    for sentence in _hypervisor_lines(document.get("hypervisor")):
        console.print(sentence, highlight=False)
    for loss in record["losses"]:
        console.print(f"lost: {loss}", highlight=False, style="yellow")
    console.print(f"folder: {folder.path}", highlight=False, soft_wrap=True)
    console.print(f"report: {folder.report_html}", highlight=False, soft_wrap=True)


def _run_row(line: Headline) -> tuple[str, ...]:
    if line.seconds is None:
        return (line.stage, line.status, *[ABSENT] * 7)
    failed = "" if line.status == "finished" else f" ({line.status})"
    return (
        f"{line.stage}{failed}",
        f"{line.seconds:.1f} s",
        _or_absent(line.cpu_s, "{:.1f} s"),
        _or_absent(line.cores, "{:.2f}"),
        _size(line.rss_peak_bytes),
        _size(line.read_bytes),
        _size(line.write_bytes),
        line.verdict or ABSENT,
        _or_absent(line.coverage, "{:.0%}"),
    )


def _gpu_lines(lines: Sequence[Headline]) -> list[str]:
    """One line where all stages say the same of the GPU, else one for each."""
    said = {line.stage: line.gpu for line in lines if line.gpu}
    if len(set(said.values())) == 1:
        return [f"GPU: {next(iter(said.values()))}"]
    return [f"GPU in {stage}: {text}" for stage, text in said.items()]


def _hypervisor_lines(seen: Mapping[str, Any] | None) -> Iterator[str]:
    """Where the VM ran and what it suffered there; nothing for a run without a vCenter."""
    if seen is None:
        return
    if seen["refused"]:
        yield f"hypervisor: not attributed: {seen['refused']}"
    vms = [f"{one['vm']} on {one['esxi_host']}" for one in seen["vms"]]
    if vms:
        clock = seen["clock"] or {}
        offset_s = clock.get("offset_s")
        told = "" if offset_s is None else f", its clock {offset_s:+.2f} s from this machine's"
        yield f"hypervisor: {', '.join(vms)}{told}"
    if seen["tls"] and "NOT VERIFIED" in seen["tls"]:
        yield f"hypervisor: connection to {seen['server']} {seen['tls']}"
    for move in seen["moves"]:
        yield f"hypervisor: {move['vm']} moved from {move['from_host']} to {move['to_host']}"
    for flag in seen["contention"]:
        yield f"contention in {flag['stage']}: {flag['sentence']}"


def show_runs(console: Console, records: Sequence[Mapping[str, Any]], out: Path) -> None:
    """One line for each run."""
    if not records:
        console.print(f"no runs in {out} yet: start one with stagescope run", highlight=False)
        return
    rows = [
        (
            record["run_id"],
            record["name"],
            record["status"],
            f"{datetime.fromtimestamp(record['started_ns'] / 1e9, UTC):%Y-%m-%d %H:%M} UTC",
            _took(record),
            str(sum(stage["status"] == "finished" for stage in record["stages"])),
            str(sum(stage["status"] == "reused" for stage in record["stages"])),
        )
        for record in records
    ]
    columns = ("run", "recipe", "status", "started", "took", "measured", "reused")
    print_rows(console, "", columns, rows)


def _took(record: Mapping[str, Any]) -> str:
    if record["ended_ns"] is None:
        return ABSENT
    seconds = (record["ended_ns"] - record["started_ns"]) / 1e9
    return f"{seconds:.0f} s" if record["status"] != "killed" else f"at least {seconds:.0f} s"


def show_profile(console: Console, folder: RunFolder, stage: str | None) -> None:
    """All rows of the profile (and the table of stages after those of all of them).

    Raises ValueError for a stage that the run does not have.
    """
    record = folder.read()
    names = [one["name"] for one in record["stages"]]
    if stage is not None and stage not in names:
        raise ValueError(f"--stage {stage}: this run has {', '.join(names) or 'no stages'}")
    profile = Profile.from_json(json.loads(folder.profile_json.read_text()))
    columns = ("entity", "metric", "unit", "mean", "p50", "p95", "max", "total", "coverage")
    for name in [stage] if stage else names:
        rows = [row for row in profile.rows if row.stage == name]
        measured = [row for row in rows if row.reason is None]
        figures = [
            (
                row.entity,
                row.metric,
                f"{row.unit}/s, total {row.unit}" if row.kind == "counter" else row.unit,
                *map(_figure, (row.mean, row.p50, row.p95, row.max, row.total)),
                f"{row.coverage:.0%}",
            )
            for row in measured
        ]
        if figures:
            print_rows(console, name, columns, figures)
        reasons: dict[str, list[str]] = {}
        for row in rows:
            if row.reason is not None:
                reasons.setdefault(row.reason, []).append(f"{row.entity} {row.metric}")
        for reason, what in reasons.items():
            console.print(f"absent: {reason} ({', '.join(what)})", highlight=False)
    if stage is None:  # last, because that is what a terminal shows of so much
        show_run(console, folder)


def show_probe(console: Console, rows: Sequence[ProbeRow]) -> None:
    """What can be measured here with its value now, then the rest by reason."""
    measured = [
        (row.entity, row.metric, _figure(row.value), row.unit) for row in rows if row.available
    ]
    print_rows(console, "can be measured here", ("entity", "metric", "now", "unit"), measured)
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if not row.available:
            reasons.setdefault(row.reason or "", []).append(f"{row.entity} {row.metric}")
    for reason, what in reasons.items():
        console.print(f"not here: {reason}", highlight=False)
        console.print(f"  {', '.join(what)}", highlight=False, style="dim")


def _or_absent(value: float | None, form: str) -> str:
    return ABSENT if value is None else form.format(value)


def _figure(value: float | None) -> str:
    return ABSENT if value is None else f"{value:,.6g}"


def _size(value: float | None) -> str:
    if value is None:
        return ABSENT
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError
