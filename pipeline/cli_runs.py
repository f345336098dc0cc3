"""``stagescope runs``: look at runs and delete old ones."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pipeline.cli_options import json_option, out_option
from pipeline.console import make_console


@click.group(epilog="Example: stagescope runs list")
def runs() -> None:
    """List and prune runs."""


@runs.command("list", epilog="Example: stagescope runs list --json")
@out_option
@json_option
def runs_list(out: Path, as_json: bool) -> None:
    """List the runs, oldest first."""
    from pipeline.show import show_runs
    from telemetry.runfolder import list_runs

    records = [folder.read() for folder in list_runs(out)]
    if as_json:
        click.echo(json.dumps(records, indent=1))
    else:
        show_runs(make_console(), records, out)


@runs.command(
    "prune",
    short_help="Delete all but the last runs.",
    epilog="Example: stagescope runs prune --keep 5",
)
@click.option(
    "--keep",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Runs that stay, the latest ones.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@out_option
def runs_prune(keep: int, yes: bool, out: Path) -> None:
    """Delete all but the last runs, and outputs of stages that no kept run made or uses.

    MLflow keeps its records and models.
    """
    from pipeline.prune import prune
    from telemetry.runfolder import list_runs

    ended = [folder for folder in list_runs(out) if folder.read()["status"] != "running"]
    many = max(0, len(ended) - keep)
    if many and not yes:
        click.confirm(f"delete {many} runs in {out}?", abort=True)
    deleted, freed = prune(out, keep)
    click.echo(f"{deleted} runs deleted, {freed / 2**20:.1f} MiB of outputs freed")
