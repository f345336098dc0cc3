"""``stagescope infra``: the vCenter and the VMs on it."""

from __future__ import annotations

import json
import sys

import click

from pipeline.cli_options import FAILED, USAGE, json_option
from pipeline.console import make_console
from pipeline.vcenter_options import vcenter_options, vcenter_settings


@click.group(epilog="Example: stagescope infra probe --host vcenter.example")
def infra() -> None:
    """The vCenter: what it lets us see, and the GPU VMs on it."""


@infra.command(
    short_help="Say what a vCenter lets us see, and what is missing.",
    epilog="Example: stagescope infra probe --host vcenter.example --ca-file vcenter-ca.pem",
)
@vcenter_options
@click.option("--vm", metavar="VM", help="UUID or name of this VM, if its DMI UUID misleads.")
@click.option("--manage", is_flag=True, help="Also check the rights of plan, apply and destroy.")
@json_option
def probe(
    recipe: str | None,
    overrides: tuple[str, ...],
    manage: bool,
    as_json: bool,
    **given: str | int | bool | None,
) -> None:
    """Log in to a vCenter, look, log out: as whom, with which rights, clocks, counters, VM.

    User and password come from the environment variables STAGESCOPE_VCENTER_USER and
    STAGESCOPE_VCENTER_PASSWORD, or from where the options say. Exit codes: 0 all is well,
    1 something is missing (each named with how to grant it), 2 nobody could log in.
    """
    from infra.placement import find_placement
    from infra.vsphere.probe import Wanted
    from infra.vsphere.probe import probe as look
    from pipeline.show_infra import show_vcenter
    from telemetry.collectors.vcenter_metrics import ROWS

    settings = vcenter_settings(recipe, overrides, given)
    wanted = [Wanted(of=row.of, counter=row.counter) for row in ROWS]
    report = look(settings, find_placement(), wanted, manage=manage)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=1))
    else:
        show_vcenter(make_console(), report)
    if report.refused is not None:
        sys.exit(USAGE)
    if report.problems:
        sys.exit(FAILED)


# The commands of pipeline/cli_vms.py and cli_vms_more.py (their COMMANDS) are added here.
