"""The report's overview: a strip for each stage in the run's time, all of them on one screen.

Two figures share a cell, the second one below the first. On a phone each stage is a card and each
cell is named by its ``data-label``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from telemetry.report_html import (
    NOTHING,
    Html,
    exactly,
    heading,
    human,
    join,
    percent,
    seconds,
    short,
    table,
    tag,
)
from telemetry.report_verdict import sentence, verdict_mark
from telemetry.report_view import Row, StageView, shown_share, status_mark, unmeasured, whole

_CPU = r"cpu_(user_|system_)?seconds"
_READ = r"(io_|disk_)?read_bytes"
_WRITE = r"(io_|disk_)?writ(e|ten)_bytes"
_NET = r"net:(?!lo$).+"
_CARDS = "the sum over cards, else over interfaces that are not within others"


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One line of a cell: its text, what it says exactly, and whether it is missing."""

    text: Any
    title: str | None = None
    gone: bool = False


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the overview: its head, and its one or two lines for a stage or for all."""

    title: str
    below: str
    meaning: str
    of: Callable[[StageView], Sequence[Fact]]
    sums: Callable[[Sequence[StageView]], Sequence[Fact]] = lambda stages: ()


def overview(
    stages: Sequence[StageView],
    extent: tuple[int, int],
    run_seconds: float | None,
    more: Sequence[Column] = (),
) -> Html:
    """The table of stages.

    ``extent``: start and end of the run (ns); ``run_seconds``: None where its end is not known;
    ``more``: columns besides.
    """
    if not stages:
        return tag(
            "p", "This run has no stages yet: it ended before the first one began.", class_="empty"
        )
    columns = (*([_VERDICT] if any(view.verdict for view in stages) else []), *_COLUMNS, *more,
               _COVERAGE)  # fmt: skip
    head: list[Any] = [heading("Stage"), heading("When", unit="in the run", title=_WHEN)]
    head += [
        heading(one.title, unit=one.below, title=one.meaning, num=one is not _VERDICT)
        for one in columns
    ]
    rows = [_rows(view, extent, columns) for view in stages]
    foot = _foot(stages, columns)
    whole = table(head, rows, caption="Stages of this run", class_="overview", foot=foot)
    inside = _together_s(stages)
    outside = (
        tag("p", f"The run took {seconds(run_seconds)}; {seconds(run_seconds - inside)} of it lie "
            "outside of the stages.", class_="note")
        if run_seconds is not None and run_seconds >= inside
        else None
    )  # fmt: skip
    return join([whole, outside])


_WHEN = "the stage's place in the time of the run"


def _rows(view: StageView, extent: tuple[int, int], columns: Sequence[Column]) -> Html:
    place = tag("span", str(view.place), class_="place")
    link = tag("a", view.name, href=f"#{view.anchor}")
    first = tag("th", place, " ", link, tag("small", status_mark(view)), scope="row")
    if not view.measured:
        return tag("tr", first, tag("td", unmeasured(view), colspan=len(columns) + 1,
                                    class_="said"), class_="unmeasured")  # fmt: skip
    cells = [_cell(column.title, column.of(view), column is not _VERDICT) for column in columns]
    why = sentence((view.verdict or {}).get("sentence"))
    row = tag("tr", first, _strip(view, extent), cells, class_="told" if why else None)
    if not why:
        return row
    said = tag("td", why, colspan=len(columns) + 2, title=why)
    return join([row, tag("tr", said, class_="why")])


def _together_s(stages: Sequence[StageView]) -> float:
    """The time in which any stage went on; one that lies within another counts once."""
    together_ns, until_ns = 0, 0
    for low, high in sorted(_times(stages)):
        together_ns += max(0, high - max(low, until_ns))
        until_ns = max(until_ns, high)
    return together_ns / 1e9


def _overlap(stages: Sequence[StageView]) -> bool:
    times = sorted(_times(stages))
    return any(low < high for (_, high), (low, _) in itertools.pairwise(times))


def _times(stages: Sequence[StageView]) -> Iterator[tuple[int, int]]:
    """Start and end (ns) of the stages that have both."""
    for view in stages:
        start, end = view.record.get("start_ns"), view.record.get("end_ns")
        if start is not None and end is not None:
            yield start, end


def _cell(title: str, facts: Sequence[Fact], num: bool = True) -> Html:
    lines = [
        tag("span" if not place else "small", fact.text, title=fact.title,
            class_="gone" if fact.gone else None)
        for place, fact in enumerate(facts)
    ]  # fmt: skip
    return tag("td", lines, class_="num" if num else "verdictcell", data_label=title)


def _strip(view: StageView, extent: tuple[int, int]) -> Html:
    """The stage as a bar at its place in the run; one without an end is open to the right."""
    start, end = extent
    low = view.record["start_ns"]
    high = view.record.get("end_ns") or end
    x, to = (200 * (at - start) / (end - start) for at in (low, high))
    look = "whole" if view.record.get("end_ns") else "open"
    bar = tag(
        "svg",
        tag("rect", class_="rail", x="0", y="4", width="200", height="2"),
        tag("rect", class_=f"when {look}", x=f"{x:.2f}", y="0", width=f"{max(0.8, to - x):.2f}",
            height="10"),
        class_="strip", viewBox="0 0 200 10", preserveAspectRatio="none", aria_hidden="true",
    )  # fmt: skip
    said = f"from {seconds((low - start) / 1e9)} on"
    return tag("td", bar, class_="stripcell", title=said)


def _fact(value: float | None, unit: str, meaning: str, after: str = "") -> Fact:
    if value is None:
        return Fact(text=NOTHING, title=f"not measured; {meaning}", gone=True)
    exact = f"{exactly(value)} {unit}".strip()
    return Fact(text=f"{human(value, unit)}{after}", title=f"{exact}; {meaning}")


def _time(view: StageView) -> Sequence[Fact]:
    if view.seconds is None:
        return (Fact(text=NOTHING, title="no end was recorded", gone=True),)
    return (_fact(view.seconds, "s", "end − start of the stage's process"),)


def _cpu_s(view: StageView) -> float | None:
    sampled = view.whole("stage", _CPU)
    return view.rusage("user_s", "system_s") if sampled is None else sampled


def _cpu(view: StageView) -> Sequence[Fact]:
    used, long = _cpu_s(view), view.seconds
    mean = view.total("stage", _CPU, "mean")
    if used is not None and long:
        mean = used / long
    return (
        _fact(mean, "cores", "CPU time ÷ wall-clock time, of what was seen of the stage"),
        _fact(used, "core·s", "user and system time of the stage's processes (by wait4 where not "
              "sampled)"),
    )  # fmt: skip


def _memory(view: StageView) -> Sequence[Fact]:
    found = [row["max"] for row in view.find("stage", "mem_rss_bytes") if row["max"] is not None]
    # Never the kernel's own peak at exit: it carries over that of whoever started the stage.
    peak = max(found, default=None)
    return (_fact(peak, "B", "largest sum of resident memory of the stage's process tree"),)


def _io(view: StageView, metric: str, fallback: str) -> float | None:
    sampled = view.whole("stage", metric)
    return view.rusage(fallback) if sampled is None else sampled


def _storage(view: StageView) -> Sequence[Fact]:
    return _both(
        _io(view, _READ, "read_bytes"), _io(view, _WRITE, "write_bytes"), ("read", "written"),
        "bytes that the stage's processes fetched from storage, not out of memory, and sent to it",
    )  # fmt: skip


def _network(view: StageView) -> Sequence[Fact]:
    return _both(
        _moved(view, "net_rx_bytes"), _moved(view, "net_tx_bytes"), ("in", "out"),
        f"bytes of the machine during the stage: {_CARDS}",
    )  # fmt: skip


def _moved(view: StageView, metric: str) -> float | None:
    """The machine's sum: a bridge, a bond or a container's end counts the same bytes again."""
    together = view.whole("machine", metric)
    return view.whole(_NET, metric) if together is None else together


def _both(
    first: float | None, second: float | None, names: tuple[str, str], meaning: str
) -> Sequence[Fact]:
    return tuple(
        _fact(value, "B", meaning, f" {name}")
        for value, name in zip((first, second), names, strict=True)
    )


def _sum_of(of: Callable[[StageView], float | None], stages: Sequence[StageView]) -> float | None:
    """None where it is not known of each measured stage."""
    found = [of(view) for view in stages if view.measured]
    known = [value for value in found if value is not None]
    return sum(known) if found and len(known) == len(found) else None


_SUM = "sum of the measured stages, if it is known of each"


def _sum_storage(stages: Sequence[StageView]) -> Sequence[Fact]:
    return _both(
        _sum_of(lambda view: _io(view, _READ, "read_bytes"), stages),
        _sum_of(lambda view: _io(view, _WRITE, "write_bytes"), stages), ("read", "written"), _SUM,
    )  # fmt: skip


def _sum_network(stages: Sequence[StageView]) -> Sequence[Fact]:
    return _both(
        _sum_of(lambda view: _moved(view, "net_rx_bytes"), stages),
        _sum_of(lambda view: _moved(view, "net_tx_bytes"), stages), ("in", "out"), _SUM,
    )  # fmt: skip


def _verdict(view: StageView) -> Sequence[Fact]:
    if view.verdict is None:
        return (Fact(text=NOTHING, title="the profile gives no verdict on this stage", gone=True),)
    return (Fact(text=verdict_mark(str(view.verdict.get("verdict") or "unknown"))),)


def _coverage(view: StageView) -> Sequence[Fact]:
    found = view.find("stage", "cpu_user_seconds") or view.find("stage", ".*")
    covered = [row["coverage"] for row in found if row.get("coverage") is not None]
    if not covered:
        why = view.reason("stage") or "no samples of the stage's processes"
        return (Fact(text="none", title=why, gone=True),)
    title = f"{exactly(min(covered))}: share of the stage in which its processes were sampled"
    return (Fact(text=percent(min(covered)), title=title),)


_VERDICT = Column(title="Verdict", below="what held it back", of=_verdict,
                  meaning="what the stage waited for, by the rule named at the stage")  # fmt: skip
_COVERAGE = Column(title="Coverage", below="of the stage", of=_coverage,
                   meaning="share of the stage that samples cover")  # fmt: skip
_TIME = Column(title="Time", below="wall clock", meaning="end − start of the stage's process",
               of=_time, sums=lambda stages: (
                   _fact(_sum_of(lambda view: view.seconds, stages), "s", _SUM),))  # fmt: skip
_COLUMNS = (
    _TIME,
    Column(title="CPU", below="cores used", meaning="mean, and the CPU time below", of=_cpu,
           sums=lambda stages: (_fact(_sum_of(_cpu_s, stages), "core·s", _SUM),)),
    Column(title="Memory", below="peak RSS", meaning="of the stage's process tree", of=_memory),
    Column(title="Storage", below="by the stage", of=_storage, sums=_sum_storage,
           meaning="bytes read from and written to storage"),
    Column(title="Network", below="machine", of=_network, sums=_sum_network,
           meaning=f"bytes of the machine: {_CARDS}"),
)  # fmt: skip


def gpu_column(absent: str) -> Column:
    """GPU time and energy. ``absent``: why a stage has no figures, where its rows do not say."""

    def of(view: StageView) -> Sequence[Fact]:
        why = view.reason("gpu.*") or absent
        busy = [row for row in view.find("gpu:.+", "gpu_util_percent") if row["mean"] is not None]
        return (_busy(busy, why), _energy(view.find(r"gpu:\d+", "energy_j"), why))

    def sums(stages: Sequence[StageView]) -> Sequence[Fact]:
        rows = [row for view in stages for row in view.find(r"gpu:\d+", "energy_j")]
        told = [row for row in rows if row.get("total") is not None]
        if not told:
            return ()
        if len(told) < len(rows) or not all(map(whole, told)):
            return (Fact(text=NOTHING, title="not known of every GPU in every stage", gone=True),)
        return (_fact(sum(row["total"] for row in told), "J", _SUM),)

    return Column(title="GPU", below="busy, energy", of=of, sums=sums,
                  meaning="time with a kernel resident, mean; energy by the GPU's own "
                  "counter")  # fmt: skip


def _busy(rows: Sequence[Row], why: str) -> Fact:
    if not rows:
        return Fact(text="not measured", title=why, gone=True)
    title = ", ".join(f"{row['entity']}: {exactly(row['mean'])} %" for row in rows)
    mean = sum(row["mean"] for row in rows) / len(rows)
    several = f" of {len(rows)}" if len(rows) > 1 else ""
    return Fact(text=f"{short(mean)} %{several}", title=title)


def _energy(rows: Sequence[Row], why: str) -> Fact:
    told = [row for row in rows if row.get("total") is not None]
    if not told:
        return Fact(text="energy not measured", title=why, gone=True)
    known = [row["total"] for row in told if whole(row)]
    if not known:
        part = percent(min(map(shown_share, told)))
        return Fact(text=f"energy of {part} alone", gone=True,
                    title=f"it was measured in {part} of the stage")  # fmt: skip
    if len(known) < len(rows):
        some = f"{len(known)} of {len(rows)} GPUs: the others' was not measured in all of the stage"
        return _fact(sum(known), "J", some, f" ({len(known)} of {len(rows)})")
    return _fact(sum(known), "J", "all GPUs together" if len(known) > 1 else "of the GPU")


def _no_sum(one: Column, stages: Sequence[StageView], took: Fact, told: Fact) -> Sequence[Fact]:
    if one is _TIME:
        return (took,)
    return (told,) if one.sums(stages) else ()


def _foot(stages: Sequence[StageView], columns: Sequence[Column]) -> Html:
    if _overlap(stages):
        told = Fact(text=NOTHING, title="some stages ran at the same time: adding them up would "
                    "count twice", gone=True)  # fmt: skip
        took = _fact(_together_s(stages), "s", "time in which any of the stages went on")
        facts = [_no_sum(one, stages, took, told) for one in columns]
        label = "All measured together"
    else:
        facts, label = [one.sums(stages) for one in columns], "Sum of the measured"
    cells = [_cell(one.title, fact) for one, fact in zip(columns, facts, strict=True)]
    return tag("tr", tag("th", label, scope="row", colspan="2"), cells)
