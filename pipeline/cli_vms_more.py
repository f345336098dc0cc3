"""``stagescope infra check``, ``cloud-init`` and ``inventory``: around a plan of VMs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli_options import FAILED, json_option
from pipeline.console import make_console
from pipeline.vcenter_options import vcenter_options, vcenter_settings

if TYPE_CHECKING:
    from infra.vms.spec import VmPlan

plan_set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override one key of the plan, e.g. --set defaults.cpus=8. May be repeated.",
)


@click.command(
    short_help="Find what is wrong with GPU VMs and their hosts.",
    epilog="Example: stagescope infra check vms.toml --ignore stranded",
)
@click.argument("plan", required=False, type=click.Path(dir_okay=False))
@click.option(
    "--vm",
    "vms",
    multiple=True,
    metavar="VM",
    help="Also check this VM, by name or UUID; without PLAN, only such. May be repeated.",
)
@click.option("--ignore", multiple=True, metavar="RULE", help="Leave out a rule. May be repeated.")
@click.option("--rules", "list_rules", is_flag=True, help="List the rules with their sources.")
@vcenter_options
@json_option
def check(  # noqa: PLR0917 - click passes them by name
    plan: str | None,
    vms: tuple[str, ...],
    ignore: tuple[str, ...],
    list_rules: bool,
    recipe: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
    **given: str | int | bool | None,
) -> None:
    """Check the GPU VMs of PLAN (there or not) and those named by --vm. Changes nothing.

    The vCenter is the plan's; without PLAN, the one that the options name. --set is for either.

    Exit codes: 0 nothing to mend (notes alone count as that), 1 warnings or errors, 2 wrong usage
    or no vCenter. The rules are in docs/vms.md.
    """
    from infra.vms.check import check as look
    from infra.vms.rules import RULE_NAMES
    from infra.vsphere.session import VCenter, VCenterError

    if list_rules:
        _list_rules(as_json)
        return
    if unknown := sorted(set(ignore) - set(RULE_NAMES)):
        raise ValueError(f"--ignore {unknown[0]}: no such rule; they are {', '.join(RULE_NAMES)}")
    if plan is None and not vms:
        raise click.UsageError("Name a PLAN, or a VM with --vm. Try `stagescope infra check -h`.")
    named = sorted(name for name, value in {**given, "recipe": recipe}.items() if value is not None)
    if plan is not None and named:
        option = f"--{named[0].replace('_', '-')}"
        raise ValueError(
            f"{option}: with PLAN the vCenter is the plan's; --set changes a key of it"
        )
    wanted = _read(plan, overrides) if plan is not None else None
    settings = wanted.settings if wanted is not None else vcenter_settings(recipe, overrides, given)
    try:
        with VCenter(settings) as vcenter:
            found = look(vcenter, wanted, vms)
    except (LookupError, VCenterError) as error:
        raise ValueError(str(error)) from error
    found = [one for one in found if one.rule not in ignore]
    if as_json:
        click.echo(json.dumps({"findings": [one.to_json() for one in found]}, indent=1))
    else:
        from pipeline.show_vms_more import show_findings

        show_findings(make_console(), found)
    if any(one.severity != "note" for one in found):
        sys.exit(FAILED)


def _list_rules(as_json: bool) -> None:
    from infra.vms.rules import RULES, STRANDED

    rows = [{"rule": rule.name, "source": rule.source} for rule in (*RULES, STRANDED)]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        click.echo(f"{row['rule']:20} {row['source']}")


def _read(plan: str, overrides: tuple[str, ...]) -> VmPlan:
    from infra.vms.spec import read_plan

    return read_plan(plan, overrides)


@click.command(
    "cloud-init",
    short_help="Write the cloud-init of a plan's VMs.",
    epilog="Example: stagescope infra cloud-init vms.toml --out seeds/",
)
@click.argument("plan", type=click.Path(dir_okay=False))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that gets a NoCloud seed for each VM: user-data, meta-data, network-config.",
)
@plan_set_option
@json_option
def cloud_init(plan: str, out: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Write what makes the VMs of PLAN ready for `make run` at their first boot.

    Without --out the texts are printed; --json has the guestinfo.* entries of extraConfig as well.
    """
    from infra.vms.cloudinit import cloud_inits, plan_notes

    read = _read(plan, overrides)
    made = cloud_inits(read)
    for note in plan_notes(read):
        click.echo(f"note: {note}", err=True)
    if out is not None:
        for one in made:
            folder = out / one.vm
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in one.files().items():
                (folder / name).write_text(text)
    if as_json:
        click.echo(json.dumps([one.to_json() for one in made], indent=1))
    elif out is not None:
        click.echo(f"{len(made)} seeds in {out}")
    else:
        for one in made:
            for name, text in one.files().items():
                click.echo(f"# ---- {one.vm}/{name}\n{text}")


@click.command(
    short_help="Say what Dask and torchrun run on a plan's VMs.",
    epilog="Example: stagescope infra inventory vms.toml --out .",
)
@click.argument("plan", type=click.Path(dir_okay=False))
@click.option("--script", default="train.py", show_default=True, help="What torchrun starts.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that gets the hosts file of dask ssh.",
)
@plan_set_option
@json_option
def inventory(
    plan: str, script: str, out: Path | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Write who is who among the VMs of PLAN: Dask's scheduler and workers, torchrun's ranks."""
    from infra.vms.inventory import HOSTS_FILE
    from infra.vms.inventory import inventory as make
    from pipeline.show_vms_more import show_inventory

    made = make(_read(plan, overrides), script)
    if out is not None and made.dask is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / HOSTS_FILE).write_text("".join(f"{host}\n" for host in made.dask.hosts))
    if as_json:
        click.echo(json.dumps(made.to_json(), indent=1))
    else:
        show_inventory(make_console(), made)


COMMANDS: tuple[click.Command, ...] = (check, cloud_init, inventory)
