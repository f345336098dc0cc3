"""What people see: progress, the table of stages, and plain lines where there is no terminal."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

_PLAIN_EVERY_S = 10.0


def make_console(*, stderr: bool = False, of_work: bool = False) -> Console:
    """A console; where there is no terminal, lines are long enough for every table.

    What is told of work, as all on stderr is, may lose its reader (``| head``): the work goes on
    unseen. Elsewhere that is a BrokenPipeError. What the locale has no character for is spelled
    out, as Python itself does on stderr.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    console = _Console(stderr=stderr, markup=False)  # names may have square brackets
    if not console.is_terminal:
        console = _Console(stderr=stderr, markup=False, width=160)
    console.goes_on = of_work or stderr
    return console


class _Console(Console):
    """rich's own would end the process with 1."""

    goes_on = False

    def on_broken_pipe(self) -> None:
        if not self.goes_on:
            raise  # noqa: PLE0704 - rich calls this where it caught the BrokenPipeError
        self.quiet = True
        divert(self.file)


def echo(text: object, *, err: bool = False) -> None:
    """As click's, of work: who stopped reading does not end it."""
    try:
        click.echo(text, err=err)
    except BrokenPipeError:
        divert(sys.stderr if err else sys.stdout)


def divert(file: IO[str]) -> None:
    """Let nobody read what is still to be written to ``file``, at Python's own end too."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), file.fileno())


class RunListener:
    """Shows a run: a progress bar with rate and time left on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._since = self._told = 0.0

    def stage_started(self, name: str) -> None:
        self._since = self._told = time.monotonic()
        if not self._console.is_terminal:
            self._console.print(f"{name}: started", highlight=False)
            return
        self._progress = progress_bar(self._console)
        self._progress.start()
        self._task = self._progress.add_task(name, total=None, rate="")

    def stage_progress(self, name: str, done: int, total: int) -> None:
        now = time.monotonic()
        rate = done / max(now - self._since, 1e-9)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, rate=f"{rate:,.0f}/s")
        elif now - self._told >= _PLAIN_EVERY_S:
            self._told = now
            left = (total - done) / rate if rate else 0.0
            self._console.print(
                f"{name}: {done:,} of {total:,} ({rate:,.0f}/s, about {left:.0f} s left)",
                highlight=False,
            )

    def stage_ended(self, record: Mapping[str, Any]) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        line = f"{record['name']}: {record['status']}"
        if record.get("end_ns") and record.get("start_ns"):
            line += f" in {(record['end_ns'] - record['start_ns']) / 1e9:.1f} s"
        if record.get("reused_from"):
            line += f", measured in run {record['reused_from']}"
        if record.get("reason"):
            line += f": {record['reason']}"
        self._console.print(line, highlight=False)

    def note(self, sentence: str) -> None:
        self._console.print(f"note: {sentence}", highlight=False, style="dim")


def progress_bar(console: Console) -> Progress:
    """A bar with rate and time left; it vanishes when it ends."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


class WorkProgress:
    """Progress of one long piece of work outside of a run, as ``progress(done, total)``."""

    def __init__(self, console: Console, name: str) -> None:
        self._listener, self._name = RunListener(console), name

    def __enter__(self) -> WorkProgress:
        self._listener.stage_started(self._name)
        return self

    def __call__(self, done: int, total: int) -> None:
        self._listener.stage_progress(self._name, done, total)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._listener.stage_ended(
            {"name": self._name, "status": "done" if kind is None else "failed"}
        )


def print_rows(
    console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """A table; the first column is left-aligned and the others are, too, where they are text."""
    table = Table(title=title or None, title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        numeric = index > 0 and all(_numeric(row[index]) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table, highlight=False)


def _numeric(cell: str) -> bool:
    return not cell or cell[0].isdigit() or cell[0] in "-–"
