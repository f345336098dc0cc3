"""Comparisons for people: the table of stage times, what else differs, and why."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from pipeline.console import print_rows
from pipeline.show import ABSENT
from telemetry.compare import Comparison, compare
from telemetry.compared import FAR_OFF, QUIET, WANTED, Compared, percent
from telemetry.reference import Reference
from telemetry.statistics import LEAST_SITTINGS

MOST_ROWS = 40
_OUTCOMES = {
    "same": "same: no stage and no metric of its own differs beyond noise",
    "differs": "differs",
    "unsure": "could not tell",
}
_VERDICTS = {"unsure": "could not tell", "same": "same"}
_MEDIANS = ("A, median", "B, median")
_STATISTICS = (
    "A, B: medians of the runs; B less A, change, interval: difference of means on the scale of "
    "the test. They may disagree where a run lies far off"
)


def show_published(console: Console, reference: Reference) -> None:
    """What was published, stage by stage, and whether it is quiet enough to be reproduced."""
    rows = [
        (
            stage.name,
            f"{stage.duration.median:.3g} s",
            f"{min(stage.duration.known):.3g} to {max(stage.duration.known):.3g} s",
            stage.verdicts or ABSENT,
            str(len(stage.metrics)),
        )
        for stage in reference.stages
    ]
    title = f"profile {reference.name}: {reference.runs} runs"
    print_rows(console, title, ("stage", "median", "band", "held back by", "figures"), rows)
    for key, values in reference.varied.items():
        told = ", ".join(map(str, dict.fromkeys(values)))
        console.print(f"note: {key} was not alike in all runs: {told}", highlight=False)
    sat = len(set(reference.sittings))
    if sat < LEAST_SITTINGS:
        console.print(
            f"note: all made in {'one sitting' if sat == 1 else 'two sittings'}: what the machine "
            f"differs by from hour to hour is not in it; runs of {LEAST_SITTINGS} sittings or more "
            "would tell it (docs/compare.md)",
            highlight=False,
        )
    sittings = reference.sittings, (sat,) * reference.runs
    for point in compare(reference, reference.in_one_sitting(), sittings=sittings).open_points():
        console.print(
            f"note: even the same again could not be told by it: {point}",
            highlight=False,
        )


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Times first, then the metrics that differ, then reasons and what could not be told."""
    a, b = comparison.a, comparison.b
    title = f"A: {a.name} ({_runs(a.runs)})   B: {b.name} ({_runs(b.runs)})"
    of_times = ("stage", *_MEDIANS, "B less A, of means", "interval", "verdict")
    print_rows(console, title, of_times, [_time(row) for row in comparison.times])
    for line in power_lines(comparison.times):
        console.print(line, highlight=False, style="dim")
    found = [row for row in comparison.rest if row.is_found]
    if found:
        columns = ("stage", "metric", "figure", *_MEDIANS, "change, of means", "verdict")
        print_rows(
            console, "metrics that differ", columns, [_metric(row) for row in found[:MOST_ROWS]]
        )
        if len(found) > MOST_ROWS:
            console.print(f"and {len(found) - MOST_ROWS} more (--json has all)", highlight=False)
    for line in far_off_lines([*comparison.times, *found[:MOST_ROWS]]):
        console.print(line, highlight=False)
    console.print(_STATISTICS, highlight=False, style="dim")
    console.print(counted(comparison), highlight=False, style="dim")
    for sentence in closing_lines(comparison):
        console.print(sentence, highlight=False)


def closing_lines(comparison: Comparison) -> list[str]:
    """Why it differs, how the environments differ, and the outcome, which is the last line."""
    lines = [f"note: {one}" for one in comparison.notes]
    lines += [one.sentence for one in comparison.explanations]
    lines += comparison.other_verdicts()
    lines += [f"environment: {one.sentence()}" for one in comparison.environment]
    if comparison.outcome == "unsure":
        lines += [f"open: {one}" for one in comparison.open_points()]
    return [*lines, f"outcome: {_OUTCOMES[comparison.outcome]}"]


def counted(comparison: Comparison) -> str:
    found = sum(row.is_found for row in comparison.rest)
    return (
        f"{found} of {len(comparison.rest)} other figures differ; "
        f"{comparison.too_small} too small to matter, "
        f"{sum(map(len, comparison.only_figures.values()))} on one side only"
    )


def power_lines(times: Sequence[Compared]) -> list[str]:
    """Of each stage that varies by more than 1 %: what could be found, and what 5 % needs."""
    lines = []
    for row in times:
        if row.spread is None or row.spread <= QUIET:
            continue
        needed = row.runs_for_5_percent
        runs = f"{needed} runs a side" if needed else "more runs than anybody makes"
        shared = ""
        if row.drift:
            shared = f", {percent(row.drift)} of it from sitting to sitting"
        if row.needs_sittings:
            runs = "runs of more sittings, not more runs"
        lines.append(
            f"{row.stage}: varies by {percent(row.spread)}{shared}; {percent(row.smallest)} could "
            f"have been found, {100 * WANTED:g} % would need {runs}"
        )
    return lines


def far_off_lines(rows: Sequence[Compared]) -> list[str]:
    """Of each figure that differs the one way by its means and the other way by its medians."""
    named = {row: f" {row.entity} {row.metric} {row.figure}" for row in rows if not row.is_time}
    return [f"{row.stage}{named.get(row, '')}: {FAR_OFF}" for row in rows if row.medians_disagree]


def _runs(many: int) -> str:
    return "1 run" if many == 1 else f"{many} runs"


def _time(row: Compared) -> tuple[str, ...]:
    return (
        row.stage,
        f"{row.a:.4g} s",
        f"{row.b:.4g} s",
        percent(row.change, signed=True),
        row.interval(),
        _VERDICTS.get(row.verdict, row.verdict),
    )


def _metric(row: Compared) -> tuple[str, ...]:
    return (
        row.stage,
        f"{row.entity} {row.metric}",
        row.figure,
        f"{row.a:,.4g} {row.unit}",
        f"{row.b:,.4g} {row.unit}",
        percent(row.change, signed=True) or f"{row.difference:+,.3g} {row.unit}",
        row.verdict,
    )
