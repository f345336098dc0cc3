"""Tables for people: what a vCenter is like from here, and what is missing."""

from __future__ import annotations

from rich.console import Console

from infra.placement import VmPlace
from infra.vsphere.clocks import ClockReading
from infra.vsphere.probe import CounterRow, Report
from pipeline.console import print_rows

OF = {"vm": "this VM", "esxi": "its host", "gpu": "its host's GPUs"}


def show_vcenter(console: Console, report: Report) -> None:
    """The whole report, what is missing last, because that is what a terminal shows of so much."""

    def say(text: str, style: str | None = None) -> None:
        console.print(text, highlight=False, soft_wrap=True, style=style)

    if report.refused is not None:
        say(f"no session: {report.refused}", "red")
        return
    say(f"vCenter {report.server}: {report.version}")
    say(f"TLS: {report.tls}")
    say(f"logged in as {report.user}")
    say(f"one question may ask for {report.max_query_metrics} series")
    for place in [*([] if report.vm is None else [report.vm]), *report.other_vms]:
        _show_place(console, place, "this VM" if place is report.vm else "VM of the run")
    print_rows(
        console, "clocks", ("clock", "ahead of this machine", "known to"), _clocks(report.clocks)
    )
    rights = [
        (right.privilege.id, right.entity, _granted(right.granted)) for right in report.rights
    ]
    print_rows(console, "rights", ("privilege", "on", "granted"), rights)
    _show_counters(console, report.counters)
    kept = ", ".join(
        f"{one.interval_s} s for {one.kept_s / 86400:g} d up to level {one.level}"
        for one in report.history
        if one.enabled
    )
    say(f"history: {kept or 'none'} (realtime samples of 20 s, for 1 h, have every level)")
    for note in report.notes:
        say(f"note: {note}", "dim")
    for problem in report.problems:
        say(f"missing: {problem}", "yellow")
    if not report.problems:
        say("nothing is missing")


def _show_place(console: Console, place: VmPlace, title: str) -> None:
    rows = [
        ("VM", f"{place.vm} ({place.moid}, UUID {place.uuid})"),
        ("size", f"{place.vcpus} vCPUs, {place.memory_bytes / 2**30:g} GiB"),
        ("host", f"{place.esxi_host}, ESXi {place.esxi_version or 'of unknown version'}"),
        ("host CPU", _host_cpu(place)),
        ("cluster", f"{place.cluster or 'none'}, datacenter {place.datacenter or 'unknown'}"),
        ("resource pool", place.resource_pool or "unknown"),
        ("datastores", ", ".join(place.datastores) or "none"),
        ("GPUs", ", ".join(place.gpus) or "none"),
    ]
    print_rows(console, title, ("", "as the vCenter has it"), rows)


def _host_cpu(place: VmPlace) -> str:
    policy = f", power policy {place.host_power_policy or 'unknown'}"
    if place.host_cores is None or place.host_cpu_mhz is None:
        return f"unknown{policy}"
    return f"{place.host_cores} cores of {place.host_cpu_mhz} MHz{policy}"


def _clocks(clocks: tuple[ClockReading, ...]) -> list[tuple[str, str, str]]:
    return [
        (clock.source, clock.reason or "", "–")
        if clock.offset_ns is None or clock.bound_ns is None
        else (clock.source, f"{clock.offset_ns / 1e9:+.3f} s", f"±{clock.bound_ns / 1e9:.3f} s")
        for clock in clocks
    ]


def _granted(granted: bool | None) -> str:
    return "not known" if granted is None else ("yes" if granted else "NO")


def _show_counters(console: Console, counters: tuple[CounterRow, ...]) -> None:
    there = [
        (OF[row.of], row.counter, "–" if row.level is None else str(row.level))
        for row in counters
        if row.available
    ]
    if there:
        print_rows(console, "counters with samples", ("of", "counter", "level"), there)
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in counters:
        if not row.available:
            reasons.setdefault((row.of, row.reason or ""), []).append(row.counter)
    for (of, reason), names in reasons.items():
        console.print(f"no samples of {OF[of]}: {', '.join(names)}: {reason}", highlight=False)
