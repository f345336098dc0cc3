"""``stagescope profile``: print a run's profile, or publish that of several runs."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli_options import finished_run, json_option, out_option
from pipeline.console import make_console

DEFAULT = "show"


class _WithDefault(click.Group):
    """``profile latest`` is ``profile show latest``: what names no command is a run."""

    default = DEFAULT

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=_WithDefault,
    short_help="Print a run's profile, or publish one of several runs.",
    epilog="Example: stagescope profile latest --stage training",
)
def profile() -> None:
    """Print the profile of a run (`profile RUN`), or publish that of several runs."""


@profile.command(DEFAULT, epilog="Example: stagescope profile show latest --stage training")
@click.argument("run")
@click.option("--stage", metavar="STAGE", help="Only this stage.")
@out_option
@json_option
def show(run: str, stage: str | None, out: Path, as_json: bool) -> None:
    """Print the profile of RUN (an id, a folder or `latest`)."""
    from pipeline.show import show_profile

    folder = finished_run(run, out)
    if as_json and stage is not None:
        raise ValueError("--stage with --json: the document is whole; take the stage out of it")
    if as_json:
        click.echo(folder.profile_json.read_text())
    else:
        show_profile(make_console(), folder, stage)


@profile.command(
    short_help="Write runs of one recipe into one file to keep and to share.",
    epilog="Example: stagescope profile publish 20261125-01 20261125-02 20261125-03 --name a100",
)
@click.argument("runs", nargs=-1, required=True)
@click.option("--name", required=True, help="Name of the profile, e.g. of the machine.")
@click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write; without it NAME.profile.json here.",
)
@click.option("--keep-names", is_flag=True, help="Keep names of machines, VMs and paths.")
@out_option
def publish(
    runs: tuple[str, ...], name: str, file: Path | None, keep_names: bool, out: Path
) -> None:
    """Publish the profile of RUNS: at least three of one recipe, with every stage measured.

    Host names, UUIDs, addresses, user names and paths are replaced unless --keep-names is given.
    """
    from pipeline.show_compare import show_published
    from telemetry.publish import reference_of
    from telemetry.reference import write_reference

    if not name.strip() or not set(name).isdisjoint("/\0"):
        raise ValueError(f"--name {name!r}: a file is called after it, so it must not hold a slash")
    folders = [finished_run(run, out) for run in runs]
    reference = reference_of(name, folders, keep_names=keep_names, whole=True)
    target = file or Path(f"{name}.profile.json")
    write_reference(reference, target)
    show_published(make_console(), reference)
    click.echo(target)
