"""Raw data outside of a run: ``stagescope data generate`` and ``data import``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

Progress = Callable[[int, int], None]


def generate_into(
    folder: Path,
    *,
    customers: int,
    terminals: int,
    start: str,
    days: int,
    seed: int,
    workers: int,
    progress: Progress,
) -> str:
    """Write a generated world as daily files; returns a sentence. Raises ValueError."""
    from infra.cluster import open_cluster
    from pipeline.data.generator import GeneratorSpec, generate

    try:
        first = date.fromisoformat(start)
    except ValueError as error:
        raise ValueError(f"--start {start}: write the day as YYYY-MM-DD") from error
    spec = GeneratorSpec(
        seed=seed, customers=customers, terminals=terminals, start=first, days=days
    )
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_cluster(workers=workers, local_directory=Path(scratch)) as cluster,
    ):
        report = generate(spec, folder, cluster, progress)
    return (
        f"{report.rows:,} rows ({report.frauds:,} frauds) in {report.files} files, "
        f"{report.bytes / 2**20:.1f} MiB, digest {report.digest[:16]}"
    )


def import_into(source: Path, folder: Path, *, single: bool, progress: Progress) -> str:
    """Import the published table as daily files, or as one file; returns a sentence."""
    from pipeline.data.handbook import import_published, write_single

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".import-") as scratch:
        made = Path(scratch) / "days"
        report = import_published(source, made, progress)
        if single:
            write_single(made, Path(scratch) / "single")
            made = Path(scratch) / "single"
        if folder.is_dir():
            folder.rmdir()  # it is empty, and a file cannot be renamed over it
        made.rename(folder)
    return f"{report.rows:,} rows ({report.frauds:,} frauds) in {folder}"
