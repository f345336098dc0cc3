"""``stagescope telemetry``: what can be measured, and what can still be fetched."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pipeline.cli_options import FAILED, finished_run, json_option, out_option
from pipeline.console import make_console


@click.group(epilog="Example: stagescope telemetry probe")
def telemetry() -> None:
    """Look at what can be measured."""


@telemetry.command(epilog="Example: stagescope telemetry probe --json")
@json_option
def probe(as_json: bool) -> None:
    """Say what can be measured on this machine, and why the rest cannot."""
    from dataclasses import asdict

    from pipeline.show import show_probe
    from telemetry.clock import Clock, measure_offset_ns
    from telemetry.collectors import COLLECTORS
    from telemetry.probe import probe as look
    from telemetry.settings import TelemetrySettings

    settings, clock = TelemetrySettings(), Clock(offset_ns=measure_offset_ns())
    collectors = [COLLECTORS[name](clock, settings, None) for name in settings.collectors]
    rows = look(collectors)
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        show_probe(make_console(), rows)


@telemetry.command(epilog="Example: stagescope telemetry backfill latest")
@click.argument("run")
@out_option
def backfill(run: str, out: Path) -> None:
    """Fetch what vCenter still has of RUN, and write its profile and report anew.

    For a run during which vCenter was away. vCenter keeps its 20 s windows for an hour.
    """
    from pipeline.hypervisor import fetch_windows, vcenter_of
    from telemetry.finish import finish

    folder = finished_run(run, out)
    if vcenter_of(folder.read()) is None:
        raise ValueError(f"run {folder.path.name} names no vCenter: its recipe has no vcenter.host")
    losses = fetch_windows(folder, click.echo, wait=False)
    finish(folder)
    for loss in losses:
        click.echo(f"lost: {loss}", err=True)
    click.echo(folder.report_html)
    if losses:
        raise SystemExit(FAILED)
