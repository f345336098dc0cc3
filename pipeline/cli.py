"""The command line. Every command answers to ``--help`` with an example; exit codes are fixed.

0 done · 1 a stage or command failed · 2 wrong usage, recipe or input · 130 interrupted (Ctrl-C) ·
141 nobody reads the output any more (``| head``); ``record`` ends with the recorded command's code.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from pipeline.cli_compare import COMMANDS as COMPARE
from pipeline.cli_data import data
from pipeline.cli_infra import infra
from pipeline.cli_options import (
    CUT_OFF,
    FAILED,
    INTERRUPTED,
    USAGE,
    SentenceGroup,
    finished_run,
    json_option,
    no_end_yet,
    out_option,
    set_option,
)
from pipeline.cli_profile import profile
from pipeline.cli_runs import runs
from pipeline.cli_telemetry import telemetry
from pipeline.cli_vms import COMMANDS as VM_COMMANDS
from pipeline.cli_vms_more import COMMANDS as VM_VIEWS
from pipeline.cli_watch import COMMANDS as WATCH
from pipeline.console import echo, make_console

__all__ = ["CUT_OFF", "FAILED", "INTERRUPTED", "USAGE", "main"]


@click.group(
    cls=SentenceGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with `stagescope run`, then open runs/latest/report.html.",
)
@click.version_option(package_name="stagescope", prog_name="stagescope")
def main() -> None:
    """Run an ML pipeline and learn what each stage takes from GPU, guest and hypervisor.

    \b
    stagescope run                              the reference pipeline on embedded defaults
    stagescope record --name train -- make fit  profile somebody else's stage
    stagescope report latest                    where the last run's page is
    """


@main.command(epilog="Example: stagescope plan handbook --set data.path=transactions.parquet")
@click.argument("recipe", default="default")
@set_option
@out_option
@json_option
def plan(recipe: str, overrides: tuple[str, ...], out: Path, as_json: bool) -> None:
    """Check RECIPE in whole and say what a run would do. Nothing is spent.

    RECIPE is `default`, `handbook`, `vsphere` or the path of a TOML file. All that is wrong is said
    at once.
    """
    from pipeline.plan import read_and_plan
    from pipeline.recipe import RecipeError

    try:
        planned = read_and_plan(recipe, overrides, out)
    except RecipeError as error:
        if not as_json:
            raise
        refused = {"recipe": None, "problems": error.problems, "warnings": [], "stages": []}
        click.echo(json.dumps(refused, indent=1))
        sys.exit(USAGE)
    if as_json:
        click.echo(json.dumps(planned.to_json(), indent=1))
    else:
        from pipeline.show import show_plan

        show_plan(make_console(), planned)
    if planned.problems:
        sys.exit(USAGE)


@main.command(
    short_help="Run a recipe and profile each of its stages.",
    epilog="Example: stagescope run --set data.days=60 --set serving.seconds_per_rate=10",
)
@click.argument("recipe", default="default")
@set_option
@out_option
@click.option("--fresh", is_flag=True, help="Measure every stage anew; reuse nothing.")
@click.option("--force", multiple=True, metavar="STAGE", help="Run this stage even if unchanged.")
@json_option
def run(  # noqa: PLR0917 - click passes them by name
    recipe: str,
    overrides: tuple[str, ...],
    out: Path,
    fresh: bool,
    force: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run RECIPE (an embedded one or a TOML file) and profile each of its stages.

    Unchanged stages are reused from earlier runs in the same folder; a killed run goes on where it
    was. RECIPE is `default`, `handbook`, `vsphere` or a path.
    """
    from pipeline.console import RunListener
    from pipeline.plan import read_and_plan
    from pipeline.runner import Run
    from pipeline.show import show_run
    from pipeline.stages import STAGES

    names = [stage.name for stage in STAGES]
    if unknown := sorted(set(force) - set(names)):
        raise ValueError(f"--force {unknown[0]}: no such stage; they are {', '.join(names)}")
    planned = read_and_plan(recipe, overrides, out)
    if planned.problems:
        raise ValueError(planned.sentence())
    console = make_console(stderr=as_json, of_work=True)
    for warning in planned.warnings:
        console.print(f"note: {warning}", highlight=False, style="dim")
    folder = Run(
        recipe=planned.recipe,
        out=out,
        listener=RunListener(console),
        fresh=fresh,
        force=frozenset(force),
    ).execute()
    record = folder.read()
    if as_json:
        echo(folder.profile_json.read_text())
    else:
        show_run(console, folder)
    if record["status"] != "finished":
        sys.exit(FAILED)


@main.command(
    context_settings={"allow_interspersed_args": False},  # what follows the command is its own
    short_help="Profile any command as one stage.",
    epilog="Example: stagescope record --name train -- python train.py --epochs 3",
)
@click.option("--name", required=True, help="Name of the stage, e.g. train.")
@out_option
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a key of telemetry, vcenter or tracking, e.g. --set telemetry.guest_hz=20. May be "
    "repeated.",
)
@json_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def record(
    name: str, out: Path, overrides: tuple[str, ...], as_json: bool, command: Sequence[str]
) -> None:
    """Profile COMMAND as one stage; its output and exit code are its own.

    With MLFLOW_TRACKING_URI set (or --set tracking.uri=...), the profile goes to that server too.
    """
    from pipeline.recording import record_stage
    from pipeline.show import show_run

    console = make_console(stderr=True)
    folder, code = record_stage(name, list(command), out, overrides, note=console.print)
    if not folder.profile_json.is_file():
        sys.exit(code)
    if as_json:
        echo(folder.profile_json.read_text(), err=True)
    else:
        show_run(console, folder)
    sys.exit(code)


@main.command(
    short_help="Send to MLflow what an absent server missed.",
    epilog="Example: stagescope sync latest",
)
@click.argument("run", required=False)
@out_option
def sync(run: str | None, out: Path) -> None:
    """Send to MLflow what an absent server missed, of RUN or of all runs."""
    from pipeline.artifact import STORE
    from pipeline.recipe import Tracking as TrackingSettings
    from pipeline.tracking import Tracking, TrackingAway
    from telemetry.runfolder import find_run, list_runs

    folders = [find_run(run, out)] if run else list_runs(out)
    if not folders:
        click.echo(f"no runs in {out}: nothing to send")
    failed = False
    for folder in folders:
        record = folder.read()
        if record["status"] == "running":
            echo(f"{record['run_id']}: {no_end_yet(folder)}, left alone")
            continue
        told = record.get("recipe")
        if told is None and not os.environ.get("MLFLOW_TRACKING_URI"):
            echo(
                f"{record['run_id']}: recorded without a server, left alone: export "
                "MLFLOW_TRACKING_URI=..., and it goes there"
            )
            continue
        here = {"uri": os.environ.get("MLFLOW_TRACKING_URI", "")} if told is None else {}
        settings = TrackingSettings.model_validate((told or {}).get("tracking", here))
        try:
            sent = Tracking(settings, out.resolve() / STORE).sync(folder)
            echo(f"{record['run_id']}: " + (f"{sent} records sent" if sent else "complete"))
        except TrackingAway as away:
            failed = True
            echo(f"{record['run_id']}: not sent, {away}", err=True)
    if failed:
        sys.exit(FAILED)


@main.command(epilog="Example: stagescope report latest")
@click.argument("run")
@out_option
def report(run: str, out: Path) -> None:
    """Write the report of RUN anew and print its path."""
    from telemetry.finish import finish

    folder = finished_run(run, out)
    finish(folder)
    click.echo(folder.report_html)


@main.command(
    short_help="Serve the champion over HTTP.",
    epilog="Example: stagescope serve latest --port 8080 --token-env SERVE_TOKEN",
)
@click.argument("run")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to bind; 0.0.0.0: all."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port to bind; 0: a free one.",
)
@click.option(
    "--token-env",
    metavar="NAME",
    help="Require the bearer token that this environment variable holds.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    help="Where the model runs.  [default: as in the recipe of RUN]",
)
@out_option
def serve(
    run: str, out: Path, *, host: str, port: int, token_env: str | None, device: str | None
) -> None:
    """Serve the champion with the online features of RUN (Open Inference Protocol v2, HTTP)."""
    from pipeline.serve import serve_run

    if token_env and not os.environ.get(token_env):
        raise ValueError(f"--token-env {token_env}: this environment variable is not set")
    serve_run(
        finished_run(run, out),
        out,
        host=host,
        port=port,
        token_env=token_env,
        device=device,
        say=click.echo,
    )


@main.command(epilog='Example: eval "$(stagescope completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(main, {}, "stagescope", "_STAGESCOPE_COMPLETE").source())


for group in (data, infra, profile, runs, telemetry):
    main.add_command(group)
for of_runs in (*COMPARE, *WATCH):
    main.add_command(of_runs)
for vm_command in (*VM_COMMANDS, *VM_VIEWS):
    infra.add_command(vm_command)

if __name__ == "__main__":
    main()
