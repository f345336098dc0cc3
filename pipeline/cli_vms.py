"""``stagescope infra plan``, ``apply`` and ``destroy``: the VMs that a pipeline runs on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from pipeline.cli_options import FAILED, USAGE, json_option
from pipeline.console import echo, make_console

if TYPE_CHECKING:
    from infra.vms.changes import Changes
    from infra.vms.spec import PlanError, VmPlan
    from infra.vsphere.session import VCenter

plan_argument = click.argument("plan", type=click.Path(dir_okay=False))
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override one key of the plan, e.g. --set defaults.cpus=8. May be repeated.",
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


@click.command(
    "plan",
    short_help="Say what apply would change, attribute by attribute.",
    epilog="Example: stagescope infra plan vms.toml --set defaults.cluster=gpu-cluster",
)
@plan_argument
@set_option
@json_option
def plan_command(plan: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Compare PLAN, a TOML file of VMs, with its vCenter. Changes nothing.

    All that is wrong is said at once. Exit codes: 0 it can be applied (or is), 1 the vCenter could
    not be asked, 2 the plan has problems.
    """
    changes, problems = _look(plan, overrides)
    if as_json:
        said = changes.to_json() if changes is not None else {"plan": None, "changes": []}
        click.echo(json.dumps({**said, "problems": problems}, indent=1))
    else:
        _show(changes, problems)
    if problems:
        sys.exit(USAGE)


def _look(plan: str, overrides: tuple[str, ...]) -> tuple[Changes | None, list[str]]:
    """What would change, and all problems: those of the file, and those of the vCenter."""
    from dataclasses import replace

    from infra.vms.cloudinit import plan_notes
    from infra.vms.diff import plan_changes
    from infra.vms.spec import PlanError, read_plan

    try:
        read, problems = read_plan(plan, overrides), list[str]()
    except PlanError as error:
        if error.rest is None or error.rest.vcenter is None:
            return None, error.problems
        read, problems = error.rest, error.problems
    with _opened(read) as vcenter:
        changes = plan_changes(vcenter, read)
    changes = replace(changes, notes=(*changes.notes, *plan_notes(read)))
    return changes, list(dict.fromkeys([*problems, *changes.problems]))


def _show(changes: Changes | None, problems: list[str]) -> None:
    from dataclasses import replace

    from pipeline.show_vms import show_changes

    console = make_console()
    if changes is not None:
        show_changes(console, replace(changes, problems=tuple(problems)))
        return
    for problem in problems:
        console.print(f"problem: {problem}", highlight=False, style="red")


@contextmanager
def _opened(plan: VmPlan) -> Iterator[VCenter]:
    from infra.vms.tasks import faults_said
    from infra.vsphere.session import VCenter

    with VCenter(plan.settings) as vcenter, faults_said():
        yield vcenter


@click.command(
    "apply",
    short_help="Make and change VMs until they are as planned.",
    epilog="Example: stagescope infra apply vms.toml --power-off",
)
@plan_argument
@set_option
@yes_option
@click.option(
    "--power-off",
    "power_off",
    is_flag=True,
    help="Running VMs may be powered off for edits that need it; they are started again.",
)
@json_option
def apply_command(
    plan: str, overrides: tuple[str, ...], yes: bool, power_off: bool, as_json: bool
) -> None:
    """Make the vCenter's VMs as PLAN says, and wait until they are.

    What is as planned is left alone; a run that was killed is finished by the next one. Edits that
    a running VM does not take are refused without --power-off, and the rest is done. Exit codes:
    0 all is as planned, 1 something was refused or failed, 2 the plan has problems.
    """
    from infra.vms.apply import apply
    from infra.vms.diff import plan_changes
    from infra.vms.spec import PlanError, read_plan
    from pipeline.show_vms import TaskProgress, show_applied, show_changes

    _ask_first(yes, as_json)
    read = read_plan(plan, overrides)
    with _opened(read) as vcenter:
        if not yes:
            changes = plan_changes(vcenter, read)
            if changes.problems:
                raise PlanError(plan, changes.problems)
            show_changes(make_console(), changes)
            if not changes.changes:
                return
            click.confirm("apply this?", abort=True)
        with TaskProgress(make_console(stderr=True)) as progress:
            applied = apply(
                vcenter, read, consent_power_off=power_off, say=progress.say, progress=progress
            )
    if as_json:
        echo(json.dumps(applied.to_json(), indent=1))
    else:
        show_applied(make_console(of_work=True), applied)
    if not applied.complete:
        sys.exit(FAILED)


@click.command(
    "destroy",
    short_help="Delete the VMs that a plan made, and no others.",
    epilog="Example: stagescope infra destroy vms.toml",
)
@plan_argument
@set_option
@yes_option
@json_option
def destroy_command(plan: str, overrides: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Power off and delete the VMs that PLAN made, with their disks.

    They are known by the mark that apply put on them; VMs that only bear the same name are named
    and left alone. Exit codes: 0 done, 1 something failed, 2 the plan cannot be read.
    """
    from infra.vms.destroy import destroy, find_doomed
    from infra.vms.spec import PlanError, read_plan
    from pipeline.show_vms import TaskProgress, show_destroyed, show_doomed

    _ask_first(yes, as_json)
    try:
        read = read_plan(plan, overrides)
    except PlanError as error:  # what a plan made can be removed whatever it has become
        if error.rest is None or error.rest.vcenter is None or _tells_whose(error, overrides):
            raise
        read = error.rest
    with _opened(read) as vcenter:
        doomed = find_doomed(vcenter, read)
        if not as_json:
            show_doomed(make_console(of_work=True), doomed)
        if doomed.vms and not yes:
            click.confirm(f"delete {len(doomed.vms)} VMs with their disks?", abort=True)
        with TaskProgress(make_console(stderr=True)) as progress:
            destroyed = destroy(vcenter, doomed, progress=progress)
    if as_json:
        echo(json.dumps(destroyed.to_json(), indent=1))
    else:
        show_destroyed(make_console(of_work=True), destroyed)
    if destroyed.failed:
        sys.exit(FAILED)


def _tells_whose(error: PlanError, overrides: tuple[str, ...]) -> bool:
    """Whether what is wrong may be what says which plan's VMs, and on which vCenter."""
    telling = ("--set", "name", "vcenter", *(text.partition("=")[0] for text in overrides))
    return any(problem.startswith(telling) for problem in error.problems)


def _ask_first(yes: bool, as_json: bool) -> None:
    if as_json and not yes:
        raise click.UsageError("--json asks nobody: give --yes as well")


COMMANDS: tuple[click.Command, ...] = (plan_command, apply_command, destroy_command)
