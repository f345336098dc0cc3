"""``stagescope data``: make or import raw transactions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.console import make_console


@click.group(epilog="Example: stagescope data generate raw/ --customers 500 --days 80")
def data() -> None:
    """Make or import raw transactions."""


@data.command(
    "generate",
    short_help="Write a generated world, one Parquet file a day.",
    epilog="Example: stagescope data generate raw/ --customers 500 --days 80",
)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--customers",
    type=click.IntRange(min=1),
    default=5_000,
    show_default=True,
    help="Customers of the world.",
)
@click.option(
    "--terminals",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    help="Terminals of the world.",
)
@click.option("--start", default="2018-04-01", show_default=True, help="First day, YYYY-MM-DD.")
@click.option(
    "--days",
    type=click.IntRange(min=1),
    default=80,
    show_default=True,
    help="Days of data.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=42,
    show_default=True,
    help="Seed of all draws.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="Worker processes; 0: this one.",
)
def data_generate(folder: Path, workers: int, **spec: Any) -> None:
    """Write a generated world into FOLDER, one Parquet file a day. Same seed, same table."""
    from pipeline.console import WorkProgress
    from pipeline.data_commands import generate_into

    _must_be_empty(folder)
    with WorkProgress(make_console(stderr=True), "generate") as progress:
        said = generate_into(folder, workers=workers, progress=progress, **spec)
    click.echo(said)


@data.command(
    "import",
    short_help="Import the Handbook's published transactions.",
    epilog="Example: stagescope data import simulated-data-raw/data published/",
)
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--single", is_flag=True, help="FOLDER is one Parquet file with the published names.")
def data_import(source: Path, folder: Path, single: bool) -> None:
    """Import the Handbook's published transactions (one Parquet file, or daily pickles)."""
    from pipeline.console import WorkProgress
    from pipeline.data_commands import import_into

    _must_be_empty(folder)
    with WorkProgress(make_console(stderr=True), "import") as progress:
        said = import_into(source, folder, single=single, progress=progress)
    click.echo(said)


def _must_be_empty(folder: Path) -> None:
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and not empty: name a new folder")
