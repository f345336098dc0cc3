"""What the commands share: options, exit codes, and how bad input is said."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.console import divert

if TYPE_CHECKING:
    from telemetry.runfolder import RunFolder

FAILED, USAGE, INTERRUPTED, CUT_OFF = 1, 2, 130, 141

out_option = click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    show_default=True,
    help="Folder of the runs.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for a script.")
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override one key of the recipe, e.g. --set data.days=30. May be repeated.",
)


class SentenceGroup(click.Group):
    """Says bad input in a sentence and an exit code, never in a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.MissingParameter as missing:
            example = missing.ctx and missing.ctx.command.epilog
            raise click.UsageError(
                f"{missing.format_message()} {example or ''}".strip(), missing.ctx
            ) from missing
        except (ValueError, FileNotFoundError, PermissionError, NotADirectoryError) as error:
            raise _UsageProblem(str(error)) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:  # `... | head`: a shell's own code for it, as 1 may be an answer
            divert(sys.stdout)
            divert(sys.stderr)
            ctx.exit(CUT_OFF)
        except OSError as error:
            raise click.ClickException(str(error)) from error


class _UsageProblem(click.ClickException):
    exit_code = USAGE


def finished_run(run: str, out: Path) -> RunFolder:
    """The run's folder, its profile made now if a kill left it without one."""
    from telemetry.finish import finish
    from telemetry.runfolder import find_run, is_abandoned, killed

    folder = find_run(run, out)
    record = folder.read()
    # A recipe's run is put in order by the next one, which also has its half-made outputs to drop.
    if record["status"] == "running" and "recipe" not in record and is_abandoned(folder):
        folder.write(killed(record, folder.samples))
        click.echo(f"run {folder.path.name} was killed: what was recorded of it is shown", err=True)
    if folder.read()["status"] != "running" and not folder.profile_json.is_file():
        finish(folder)
    if not folder.profile_json.is_file():
        name = folder.path.name
        raise ValueError(f"run {name} {no_end_yet(folder)}; its profile comes at its end")
    return folder


def no_end_yet(folder: RunFolder) -> str:
    """What is so of a run whose record has no end, in words."""
    from pipeline.leftovers import is_dead

    out = folder.path.parent
    if is_dead(folder, out):
        return f"was killed, and the next `stagescope run --out {out}` ends its record"
    return "is still running"
