"""The report's account of the hypervisor: which VM ran where, how that is known, what is missing.

It reads the key ``hypervisor`` of profile.json. Any part of that may be absent: what is not known
is said, and a run that asked no vCenter has nothing here but the one line in its header.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from telemetry.report_generic import key_values
from telemetry.report_html import (
    NOTHING,
    Html,
    cell,
    heading,
    human,
    join,
    number,
    percent,
    seconds,
    short,
    table,
    tag,
    when,
)
from telemetry.report_hypervisor_view import HypervisorView, ended, records
from telemetry.report_view import StageView

Row = Mapping[str, Any]
Fact = tuple[str, Any]
_MOST_GAPS = 40
_NO_VM = "It is not known which VM this machine is"


def header_facts(view: HypervisorView) -> list[Fact]:
    """The header's facts of a run that asked a vCenter."""
    return [
        ("Hypervisor", _where(view)),
        ("vCenter", _server(view)),
    ]


def _where(view: HypervisorView) -> Any:
    told = []
    for place in view.places:
        hosts = " → ".join(view.hosts(place)) or "an unknown host"
        cluster = f", cluster {place['cluster']}" if place.get("cluster") else ""
        told.append(_part(tag("b", _name(place.get("vm"))), f" on {hosts}{cluster}"))
    if not told:
        told.append(_part(_NO_VM))
    if not view.seen:
        told.append(_part("No figures: ", tag("a", "see what is missing", href="#hypervisor")))
    return told


def _server(view: HypervisorView) -> Any:
    version = view.told.get("version") or next(
        (place["vcenter_version"] for place in view.places if place.get("vcenter_version")), None
    )
    shown = f"TLS {view.tls}" if view.tls else "no connection was recorded"
    state = tag("strong", shown, class_="bad") if view.unverified else shown
    known = [view.server, f"version {version}" if version else None]
    return [" · ".join(part for part in known if part), _part(state)]


def _part(*children: Any) -> Html:
    """A line of its own within a fact."""
    return tag("span", children, class_="part")


def clock_sentence(view: HypervisorView) -> str:
    """By how much the windows' clock differs from the guest's, how sure that is and who says so."""
    clock = view.told.get("clock") or {}
    offset, bound, witness = clock.get("offset_s"), clock.get("bound_s"), clock.get("witness")
    if offset is None:
        return "not known: no clock could be compared with the guest's"
    side = "ahead of" if offset >= 0 else "behind"
    sure = f", within ±{seconds(bound)}" if bound is not None else ", with no bound"
    by = f", by {_witness(str(witness))}" if witness else ""
    return f"{seconds(abs(offset))} {side} the guest's{sure}{by}"


def _witness(witness: str) -> str:
    kind, _, name = witness.partition(":")
    if kind == "esxi":
        return f"the clock of host {name}" if name else "the ESXi host's clock"
    known = {"vcenter": "vCenter's clock", "correlation": "the load that guest and VM both saw"}
    return known.get(witness, witness)


def warnings(view: HypervisorView) -> Html | None:
    """What a reader must know before any figure of the hypervisor: above all sections."""
    told = []
    if view.unverified:
        told.append(
            [tag("strong", "The connection to vCenter was not verified. "),
             "Its certificate was not checked, so that another machine could have answered in its "
             "place."]
        )  # fmt: skip
    if view.refused:
        some = "Some" if view.seen else "All"
        why = f"{some} figures of the hypervisor are refused: "
        told.append([tag("strong", why), ended(view.refused)])
    elif view.configured and not view.seen and view.why_unseen() not in view.lost:
        told.append([tag("strong", "No hypervisor figures: "), ended(view.why_unseen())])
    if not told:
        return None
    return tag("div", tag("ul", [tag("li", one) for one in told]), class_="warn", role="note")


def overview_lines(view: HypervisorView, start_ns: int) -> list[Html]:
    """The overview's lines: moves, and a hypervisor that was seen in part or not at all."""
    moved = [move_sentence(move, start_ns) for move in view.moves]
    lines = [tag("li", tag("b", "Hypervisor"), " ", one) for one in moved]
    unseen = _unseen_line(view)
    return [*lines, unseen] if unseen is not None else lines


def _unseen_line(view: HypervisorView) -> Html | None:
    more = tag("a", "What is missing", href="#hypervisor")
    if not view.seen:
        return tag(
            "li", tag("b", "Hypervisor"), f" not measured: {ended(view.why_unseen())} ", more
        )
    if view.gaps or view.losses:
        covered = percent(view.covered)
        return tag("li", tag("b", "Hypervisor"), f" seen for {covered} of the run. ", more)
    return None


def section(view: HypervisorView, stages: Sequence[StageView], start_ns: int) -> Html:
    """All that is known of the hypervisor for the run as a whole."""
    return join(
        [
            [_place(view, place) for place in view.places]
            or tag("p", f"{_NO_VM}.", class_="empty"),
            _moves(view, start_ns) if view.places or view.moves else None,
            _connection(view),
            _missing(view, stages, start_ns),
        ]
    )


def _place(view: HypervisorView, place: Row) -> Html:
    memory, mhz = place.get("memory_bytes"), place.get("host_cpu_mhz")
    cores = f"{place['host_cores']} cores" if place.get("host_cores") else None
    facts: list[Fact] = [
        ("ESXi host", " → ".join(view.hosts(place)) or None),
        ("ESXi version", place.get("esxi_version")),
        ("Host CPU", ", ".join(p for p in (cores, f"{mhz:,} MHz" if mhz else None) if p) or None),
        ("Host power policy", place.get("host_power_policy")),
        ("Cluster", place.get("cluster")),
        ("Datacenter", place.get("datacenter")),
        ("Resource pool", place.get("resource_pool")),
        ("vCPUs", place.get("vcpus")),
        ("VM memory", human(memory, "B") if memory else None),
        ("GPUs of the VM", ", ".join(map(str, place.get("gpus") or ())) or "none"),
        ("Datastores", ", ".join(map(str, place.get("datastores") or ())) or None),
        ("UUID", place.get("uuid")),
    ]
    own = " (this machine)" if place.get("vm") == view.own_vm else ""
    return join([tag("h3", f"VM {_name(place.get('vm'))}{own}"), key_values(facts)])


def _name(name: Any) -> str:
    return str(name) if name else "without a name"


def _moves(view: HypervisorView, start_ns: int) -> Html:
    if not view.moves:
        return tag("p", "No VM of this run was seen to move to another host.", class_="note")
    lines = [tag("li", move_sentence(move, start_ns)) for move in view.moves]
    return join([tag("h3", "Moves"), tag("ul", lines)])


def move_sentence(move: Row, start_ns: int) -> str:
    """``ml-01 moved from esx1 to esx2 at 12:03:10 UTC (3:10 into the run)``."""
    at, before = move.get("at_ns"), move.get("not_before_ns")
    hosts = (str(move.get(key) or "an unknown host") for key in ("from_host", "to_host"))
    way = f"{_name(move.get('vm'))} moved from {' to '.join(hosts)}"
    if at is None:
        return f"{way} at an unknown time."
    into = f"{seconds(max(0.0, (at - start_ns) / 1e9))} into the run"
    if before is not None and before < at and not move.get("exact"):
        return f"{way} between {_clock_time(before)} and {_clock_time(at)} UTC ({into})."
    return f"{way} at {_clock_time(at)} UTC ({into})."


def _clock_time(ns: int) -> str:
    return when(ns)[11:19]


def _connection(view: HypervisorView) -> Html:
    clock = view.told.get("clock") or {}
    limit = clock.get("limit_s")
    facts: list[Fact] = [
        ("Asked", view.server),
        ("TLS", view.tls or "no connection was recorded"),
        ("Hypervisor's clock", clock_sentence(view)),
        ("Most that a clock may be in doubt", seconds(limit) if limit is not None else None),
        ("Run within vCenter's windows", percent(view.covered)),
    ]
    clocks = records(view.told, "clocks") or [clock]
    hint = "All times of the hypervisor are moved by these offsets to the guest's clock."
    return join(
        [
            tag("h3", "Connection and clock"),
            key_values(facts),
            _clock_table(clocks) if any(clocks) else None,
            tag("p", hint, class_="note") if view.seen else None,
        ]
    )


def _clock_table(clocks: Sequence[Row]) -> Html:
    head: list[Any] = [
        heading("Host"), heading("Offset", unit="at the start", num=True),
        heading("Offset", unit="at the end", num=True), heading("Bound", unit="±", num=True),
        heading("Witness"), heading("By the load", unit="guest and VM", num=True),
        heading("Correlation", num=True), heading("Verdict"),
    ]  # fmt: skip
    return table(
        head, map(_clock_row, clocks), caption="Clocks, against the guest's", class_="gaps"
    )


def _clock_row(clock: Row) -> Html:
    load = clock.get("correlation")
    load = load if isinstance(load, Mapping) else {"correlation": load}
    why_not = load.get("reason") or "the load was not compared"
    strength = load.get("correlation")
    refused = clock.get("refused")
    verdict = tag("strong", "refused", class_="bad") if refused else "used"
    known = clock.get("offset_s") is not None
    return tag(
        "tr",
        tag("th", str(clock.get("host") or "of all hosts"), scope="row"),
        number(clock.get("offset_s"), "s"),
        number(clock.get("offset_end_s"), "s", title="not read again at the end"),
        number(clock.get("bound_s"), "s"),
        cell(_witness(str(clock["witness"])) if clock.get("witness") else NOTHING, class_="said"),
        number(load.get("offset_s"), "s", title=str(why_not)),
        cell(NOTHING if strength is None else short(strength), num=True, title=str(why_not)),
        cell([verdict, tag("small", str(refused))], class_="said")
        if refused
        else _believed(verdict, load)
        if known
        else cell(NOTHING),
    )


def _believed(verdict: str, load: Row) -> Html:
    """A clock that is used, and whether anything looked at the stamps themselves."""
    why = load.get("reason")
    if why is None:
        return cell(verdict)
    return cell([verdict, tag("small", f"unconfirmed by the load: {why}")], class_="said")


def _missing(view: HypervisorView, stages: Sequence[StageView], start_ns: int) -> Html:
    said = [*view.losses, *view.lost]
    if view.refused:
        said.insert(0, f"Attribution refused: {ended(view.refused)}")
    elif not view.seen:
        said.insert(0, view.why_unseen())
    if not said and not view.gaps:
        text = "Nothing of what vCenter was asked for is missing."
        return join([tag("h3", "What is missing"), tag("p", text, class_="note")])
    return join(
        [
            tag("h3", "What is missing"),
            tag("ul", [tag("li", one) for one in dict.fromkeys(map(ended, said))])
            if said
            else None,
            _gap_table(view.gaps, stages, start_ns) if view.gaps else None,
        ]
    )


def _gap_table(gaps: Sequence[Row], stages: Sequence[StageView], start_ns: int) -> Html:
    head: list[Any] = [
        heading("From", unit="UTC"), heading("Until", unit="UTC"), heading("Long", num=True),
        heading("Into the run", num=True), heading("Of"), heading("Stages"), heading("Why"),
    ]  # fmt: skip
    rows = [_gap_row(gap, stages, start_ns) for gap in gaps[:_MOST_GAPS]]
    left = len(gaps) - _MOST_GAPS
    more = tag("p", f"… and {left} more gaps.", class_="note") if left > 0 else None
    caption = f"Times without windows of the hypervisor: {len(gaps)}"
    return join([table(head, rows, caption=caption, class_="gaps"), more])


def _gap_row(gap: Row, stages: Sequence[StageView], start_ns: int) -> Html:
    low, high = gap["from_ns"], gap.get("to_ns")
    long = None if high is None else (high - low) / 1e9
    touched = ", ".join(_touched(stages, low, high)) or "none"
    return tag(
        "tr",
        cell(_clock_time(low)),
        cell(_clock_time(high) if high is not None else NOTHING),
        number(long, "s"),
        number(max(0.0, (low - start_ns) / 1e9), "s"),
        cell(_of(gap), class_="said"),
        cell(touched),
        cell(str(gap.get("reason") or gap.get("why") or "no window was there"), class_="said"),
    )


def _touched(stages: Iterable[StageView], low: int, high: int | None) -> Iterator[str]:
    for stage in stages:
        start, end = stage.record.get("start_ns"), stage.record.get("end_ns")
        if start is not None and (high is None or start < high) and (end is None or end > low):
            yield f"{stage.place} {stage.name}"


def _of(gap: Row) -> str:
    metrics = [str(one) for one in gap.get("metrics") or ()]
    entity = str(gap.get("entity") or "all of the hypervisor")
    return f"{entity}: {', '.join(metrics)}" if metrics else entity
