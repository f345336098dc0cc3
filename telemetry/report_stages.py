"""The report's stages: the overview on one screen, and a section for each with all its figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from telemetry.report_generic import absent_list, folded, generic, key_values
from telemetry.report_html import (
    NOTHING,
    Html,
    cell,
    exactly,
    flat,
    heading,
    join,
    number,
    percent,
    seconds,
    short,
    table,
    tag,
    words,
)
from telemetry.samples import Metric
from telemetry.vm_entity import ESTIMATE, is_estimate

_SIGNS = {
    "finished": "✓", "reused": "↺", "failed": "✗", "interrupted": "■",
    "killed": "■", "skipped": "⤼", "running": "…",
}  # fmt: skip
_UNENDED = "no end was recorded"
_CPU = r"cpu_(user_|system_)?seconds"
_READ = r"(io_|disk_)?read_bytes"
_WRITE = r"(io_|disk_)?writ(e|ten)_bytes"
_MEASURES = ("mean", "p50", "p95", "max")

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StageView:
    """One stage of the run beside its rows of the profile."""

    place: int
    record: Row
    rows: Sequence[Row]

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

    def reason(self, entity: str, metric: str = ".*") -> str | None:
        return next((row["reason"] for row in self.find(entity, metric) if row.get("reason")), None)

    def rusage(self, *names: str) -> float | None:
        used = self.record.get("rusage") or {}
        found = [used[name] for name in names if used.get(name) is not None]
        return sum(found) if found else None


def views(run: Row, profile: Row) -> list[StageView]:
    """The run's stages in their order, each with its rows of the profile."""
    rows: dict[str, list[Row]] = {}
    for stage in profile.get("stages") or ():
        rows.setdefault(stage["name"], []).extend(stage.get("metrics") or ())
    return [
        StageView(place=place, record=record, rows=rows.get(str(record.get("name")), []))
        for place, record in enumerate(run.get("stages") or (), start=1)
    ]


@dataclass(frozen=True, kw_only=True)
class Amount:
    """A column of the overview: a number out of a stage, its unit and where it comes from."""

    title: str
    below: str
    unit: str
    meaning: str
    of: Callable[[StageView], float | None]
    adds_up: bool = True


def _cpu_s(view: StageView) -> float | None:
    sampled = view.total("stage", _CPU)
    return view.rusage("user_s", "system_s") if sampled is None else sampled


def _cores(view: StageView) -> float | None:
    used, long = _cpu_s(view), view.seconds
    return used / long if used is not None and long else None


def _peak_rss(view: StageView) -> float | None:
    found = [row["max"] for row in view.find("stage", "mem_rss_bytes") if row["max"] is not None]
    return max(found) if found else view.rusage("max_rss_bytes")


def _io(metric: str, fallback: str) -> Callable[[StageView], float | None]:
    def amount(view: StageView) -> float | None:
        sampled = view.total("stage", metric)
        return view.rusage(fallback) if sampled is None else sampled

    return amount


def _net(metric: str) -> Callable[[StageView], float | None]:
    return lambda view: view.total(r"net:(?!lo$).+", metric)


AMOUNTS = (
    Amount(title="Time", below="wall clock", unit="s", meaning="end − start of the stage's process",
           of=lambda view: view.seconds),
    Amount(title="CPU", below="core·s", unit="core·s", of=_cpu_s,
           meaning="user and system time of the stage's processes (by wait4 where not sampled)"),
    Amount(title="Cores", below="mean", unit="", of=_cores, adds_up=False,
           meaning="CPU time ÷ wall-clock time"),
    Amount(title="Memory", below="peak RSS", unit="B", of=_peak_rss, adds_up=False,
           meaning="largest sum of resident memory of the stage's process tree"),
    Amount(title="Read", below="from devices", unit="B", of=_io(_READ, "read_bytes"),
           meaning="bytes that the stage's processes fetched from storage, not out of memory"),
    Amount(title="Written", below="to devices", unit="B", of=_io(_WRITE, "write_bytes"),
           meaning="bytes that the stage's processes sent to storage"),
    Amount(title="Net in", below="machine", unit="B", of=_net("net_rx_bytes"),
           meaning="bytes received by the machine's interfaces but lo during the stage"),
    Amount(title="Net out", below="machine", unit="B", of=_net("net_tx_bytes"),
           meaning="bytes sent by the machine's interfaces but lo during the stage"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Column:
    """One more column of the overview: its head, and its cell for a stage."""

    head: Html
    of: Callable[[StageView], Html]


def overview(
    stages: Sequence[StageView],
    run_seconds: float | None,
    gpu_absent: str,
    more: Sequence[Column] = (),
) -> Html:
    """The table of stages. ``gpu_absent``: why there are no GPU figures, for stages without."""
    head: list[Any] = [heading("#"), heading("Stage"), heading("Status")]
    head += [heading(a.title, unit=a.below, title=a.meaning, num=True) for a in AMOUNTS]
    head += [
        heading("GPU", unit="busy", num=True, title="time with a kernel resident, mean"),
        heading("GPU", unit="energy", num=True, title="by the GPU's own counter"),
        heading(
            "Coverage", unit="of the stage", num=True, title="share of the stage that samples cover"
        ),
        *(column.head for column in more),
    ]
    if not stages:
        return tag(
            "p", "This run has no stages yet: it ended before the first one began.", class_="empty"
        )
    rows = [_overview_row(view, gpu_absent, more) for view in stages]
    foot = _sums(stages, len(more))
    whole = table(head, rows, caption="Stages of this run", class_="overview", foot=foot)
    inside = sum(view.seconds or 0.0 for view in stages)
    outside = (
        tag("p", f"The run took {seconds(run_seconds)}; {seconds(run_seconds - inside)} of it lie "
            "outside of the stages.", class_="note")
        if run_seconds is not None and run_seconds >= inside
        else None
    )  # fmt: skip
    return join([whole, outside])


def _overview_row(view: StageView, gpu_absent: str, more: Sequence[Column]) -> Html:
    first = [
        cell(str(view.place), class_="place"),
        tag("th", tag("a", view.name, href=f"#{view.anchor}"), scope="row"),
        tag("td", status_mark(view)),
    ]
    if not view.measured:
        return tag(
            "tr",
            first,
            tag("td", _unmeasured(view), colspan=len(AMOUNTS) + 3 + len(more), class_="said"),
        )
    amounts = [number(a.of(view), a.unit, title=a.meaning) for a in AMOUNTS]
    last = [_coverage_cell(view), *(column.of(view) for column in more)]
    return tag("tr", first, amounts, _gpu_cells(view, gpu_absent), last)


def status_mark(view: StageView) -> Html:
    """A word with its sign, so that it never hangs on colour."""
    known = view.status if view.status in _SIGNS else "unknown"
    word = "no end" if known == "running" else view.status
    title = _UNENDED if known == "running" else None
    return tag("span", f"{_SIGNS.get(known, '?')} {word}", class_=f"status {known}", title=title)


def _unmeasured(view: StageView) -> str:
    """Why a stage has no figures in this run, as a sentence."""
    if view.status == "reused":
        source = view.record.get("reused_from")
        where = f"run {source}" if source else "an earlier run"
        return f"Not measured in this run: its outputs are those of {where}, which measured it."
    why = view.record.get("reason")
    return f"Not run: {why}." if why else "Not run."


def _gpu_cells(view: StageView, gpu_absent: str) -> list[Html]:
    why = view.reason("gpu.*") or gpu_absent
    busy = [
        (row["entity"], row["mean"])
        for row in view.find("gpu:.+", "gpu_util_percent")
        if row["mean"] is not None
    ]
    joules = view.total("gpu:.+", "energy_j")
    if not busy:
        busy_cell = cell("not measured", num=True, title=why, class_="none")
    else:
        title = ", ".join(f"{entity}: {exactly(mean)} %" for entity, mean in busy)
        mean = sum(value for _, value in busy) / len(busy)
        more = f" ({len(busy)})" if len(busy) > 1 else ""
        busy_cell = cell(f"{short(mean)} %{more}", num=True, title=title)
    if joules is None:
        return [busy_cell, cell("not measured", num=True, title=why, class_="none")]
    return [busy_cell, number(joules, "J", title="all GPUs together")]


def _coverage_cell(view: StageView) -> Html:
    found = view.find("stage", "cpu_user_seconds") or view.find("stage", ".*")
    covered = [row["coverage"] for row in found if row.get("coverage") is not None]
    if not covered:
        why = view.reason("stage") or "no samples of the stage's processes"
        return cell("none", num=True, title=why, class_="none")
    title = "share of the stage in which its processes were sampled"
    return cell(percent(min(covered)), num=True, title=f"{exactly(min(covered))}: {title}")


def _sums(stages: Sequence[StageView], more: int) -> Html:
    cells = []
    for amount in AMOUNTS:
        found = [amount.of(view) for view in stages if view.measured]
        present = [value for value in found if value is not None]
        if not amount.adds_up or not present:
            cells.append(cell("", num=True))
        else:
            cells.append(number(sum(present), amount.unit, title="sum of the measured stages"))
    joules = [view.total("gpu:.+", "energy_j") for view in stages if view.measured]
    energy = [value for value in joules if value is not None]
    last = [cell(""), number(sum(energy), "J") if energy else cell("")]
    last += [cell("")] * (1 + more)
    return tag(
        "tr", cell(""), tag("th", "Sum of the measured", scope="row", colspan="2"), cells, last
    )


def stage_section(view: StageView, metrics: Mapping[str, Metric], seen: Html | None = None) -> Html:
    """All that is known of one stage. ``seen``: what the hypervisor saw of it."""
    record = view.record
    heads = tag(
        "h3", tag("span", str(view.place), class_="place"), " ", view.name, " ", status_mark(view)
    )
    body: list[Any] = [_sentence(view)]
    if record.get("summary"):
        body.append(
            tag(
                "div",
                generic(record["summary"], "Result, as the stage reports it"),
                class_="summary",
            )
        )
    if view.measured:
        body += [seen, _metric_table(view, metrics), _absent(view.rows)]
    if record.get("settings"):
        body.append(folded("Its settings", key_values(flat(record["settings"]))))
    return tag("section", heads, body, id=view.anchor, class_="stage")


def _sentence(view: StageView) -> Html:
    record = view.record
    if not view.measured:
        return tag("p", _unmeasured(view))
    parts = [f"took {seconds(view.seconds)}" if view.seconds is not None else _UNENDED]
    if record.get("exit_code") is not None:
        parts.append(f"exit code {record['exit_code']}")
    if record.get("pid") is not None:
        parts.append(f"process {record['pid']}")
    text = ", ".join(parts)
    why = record.get("reason")
    return tag(
        "p",
        text[0].upper() + text[1:] + ".",
        [" ", tag("strong", "Reason: "), str(why)] if why else None,
        " ",
        tag("button", "Show on the time axis", type="button", data_stage=str(view.place))
        if view.seconds
        else None,
    )


def _metric_table(view: StageView, metrics: Mapping[str, Metric]) -> Html:
    rows = sorted((row for row in view.rows if _has_value(row)), key=_place)
    if not rows:
        return tag("p", "No sample fell into this stage, so it has no figures.", class_="empty")
    head: list[Any] = [heading("Entity"), heading("Metric"), heading("Unit")]
    head += [heading(word, num=True) for word in ("Mean", "p50", "p95", "Max", "Total", "Coverage")]
    return table(
        head,
        [_metric_row(row, rows[i - 1] if i else None, metrics) for i, row in enumerate(rows)],
        caption=f"What {view.name} took: {len(rows)} series",
        class_="metrics",
    )


def _place(row: Row) -> int:
    """What the stage itself did comes before what the machine did."""
    own = ("stage", "app", "data", "machine")
    return own.index(row["entity"]) if row["entity"] in own else len(own)


def _has_value(row: Row) -> bool:
    return any(row.get(field) is not None for field in (*_MEASURES, "total"))


def _metric_row(row: Row, before: Row | None, metrics: Mapping[str, Metric]) -> Html:
    known = metrics.get(row["metric"])
    unit, scale = rate_unit(row)
    total_unit = row["unit"] or ""
    if row["kind"] != "counter" and known is not None and known.integral_unit:
        total_unit = known.integral_unit
    new = before is None or before["entity"] != row["entity"]
    meaning = f"{known.meaning} ({known.source})" if known is not None else None
    covered = row.get("coverage")
    return tag(
        "tr",
        tag("th", tag("span", row["entity"], class_="entity") if new else "", scope="row"),
        cell(_metric_name(row["metric"], meaning)),
        cell(f"{row['unit'] or NOTHING}", title=row["kind"]),
        [
            number(
                None if row[field] is None else row[field] * scale, unit, title=row.get("reason")
            )
            for field in _MEASURES
        ],
        number(row["total"], total_unit, title=row.get("reason")),
        cell(percent(covered), num=True, title=None if covered is None else exactly(covered)),
        class_="first" if new else None,
    )


def _metric_name(metric: str, meaning: str | None) -> Html:
    """A metric's name; an estimate is never mistaken for something measured."""
    if not is_estimate(metric):
        return tag("span", words(metric), title=meaning)
    return tag("em", "est. ", words(metric.removesuffix(ESTIMATE)), title=meaning, class_="est")


def rate_unit(row: Row) -> tuple[str, float]:
    """Unit and factor of the mean, p50, p95 and max: a counter's are per second."""
    unit = row["unit"] or ""
    if row["kind"] != "counter":
        return unit, 1.0
    if unit != "s":
        return ("W" if unit == "J" else f"{unit}/s"), 1.0
    if row["metric"].startswith("cpu_"):
        return "cores", 1.0
    if row["metric"].startswith("psi_"):
        return "% of time", 100.0
    return "s/s", 1.0


def _absent(rows: Iterable[Row]) -> Html | None:
    missing = [
        (row["entity"], row["metric"], row.get("reason")) for row in rows if not _has_value(row)
    ]
    return absent_list(missing, "in this stage")
