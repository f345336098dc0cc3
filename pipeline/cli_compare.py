"""``stagescope compare`` and ``reproduce``: is it the same, and if not, where and why."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli_options import finished_run, json_option, out_option
from pipeline.console import echo, make_console

if TYPE_CHECKING:
    from telemetry.compare import Comparison
    from telemetry.reference import Reference
    from telemetry.runfolder import RunFolder

EXIT = {"same": 0, "differs": 1, "unsure": 2}
SCHEMA = "stagescope.comparison/1"
"""As in ``telemetry.compare``, which cannot say it where numpy or scipy cannot be loaded."""


def _number(option: click.Parameter, value: float) -> float:
    if math.isnan(value):
        raise click.BadParameter(f"{value} is no number", param=option)
    return value


tolerance_option = click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True, max=1000),
    callback=lambda _, option, value: _number(option, value),
    default=20.0,
    show_default=True,
    metavar="PERCENT",
    help="How far a stage's time may be off for `same` to be said.",
)
html_option = click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a page with both timelines, too.",
)


@click.command(
    short_help="What differs between two runs or profiles, and whether it is noise.",
    epilog="Example: stagescope compare a100.profile.json latest --html compare.html",
)
@click.argument("a")
@click.argument("b")
@tolerance_option
@html_option
@out_option
@json_option
def compare(  # noqa: PLR0917 - click passes them by name
    a: str, b: str, tolerance: float, html: Path | None, out: Path, as_json: bool
) -> None:
    """Compare B with A: each a run, several runs joined by commas, or a published profile.

    At least three runs a side tell noise from change; five find a stage that is 5 % slower where it
    varies by 1 %. Ends with 0 whatever it finds (see reproduce).
    """
    from pipeline.reproduce import published_defaults
    from telemetry.compare import compare as compare_profiles

    _check_page(html)
    one, of_a = _side(a, out)
    two, of_b = _side(b, out, of_a)
    comparison = compare_profiles(
        one, two, tolerance=tolerance / 100, defaults=published_defaults()
    )
    comparison = replace(comparison, notes=_notes(of_a, of_b))
    _tell(comparison, as_json)
    _write_page(comparison, html, [of_a, of_b], as_json)


@click.command(
    short_help="Run a published profile's recipe again: the same, or what differs?",
    epilog="Example: stagescope reproduce a100.profile.json --runs 5 --html compare.html",
)
@click.argument("profile", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Runs to compare, each with every stage measured.",
)
@click.option(
    "--warm-up",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Runs before them that do not count.",
)
@click.option(
    "--have",
    metavar="RUN,RUN",
    default="",
    help="Runs of an earlier reproduction that was cut short, to go on with.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Say where things are here, e.g. --set data.path=FILE. May be repeated.",
)
@tolerance_option
@html_option
@out_option
@json_option
def reproduce(  # noqa: PLR0917 - click passes them by name
    profile: Path,
    runs: int,
    warm_up: int,
    have: str,
    overrides: tuple[str, ...],
    tolerance: float,
    html: Path | None,
    out: Path,
    as_json: bool,
) -> None:
    """Run what PROFILE holds again and compare.

    Ends with 0 if it is the same, 1 if it differs, 2 if these runs could not tell (or could not be
    made): whatever goes wrong is never taken for a difference. It runs the recipe or command that
    the file holds, and says which: read a file that is not yours first.
    """
    done: list[RunFolder] = []
    with _never_taken_for_a_difference(as_json, done):
        sys.exit(
            _reproduce(profile, runs, warm_up, have, overrides, tolerance, html, out, as_json, done)
        )


def _reproduce(  # noqa: PLR0917 - as click passes them
    profile: Path,
    runs: int,
    warm_up: int,
    have: str,
    overrides: Sequence[str],
    tolerance: float,
    html: Path | None,
    out: Path,
    as_json: bool,
    done: list[RunFolder],
) -> int:
    from pipeline.reproduce import Again, announced, earlier, foreign, published_defaults, ready
    from telemetry.compare import compare as compare_profiles
    from telemetry.publish import reference_of, unnamed
    from telemetry.reference import read_reference

    if not profile.is_file():
        what = "a folder" if profile.is_dir() else "not there"
        raise ValueError(
            f"{profile} is {what}: name a published profile's file, as `stagescope profile "
            "publish` writes it"
        )
    _check_page(html)
    reference = unnamed(read_reference(profile))
    console = make_console(stderr=True)
    asked = _asked(profile, runs, overrides, tolerance, html, out, as_json)

    def say(sentence: str) -> None:
        console.print(sentence, highlight=False, style="dim", soft_wrap=True)

    had = earlier(reference, [finished_run(run, out) for run in have.split(",") if run])
    once = ready(reference, overrides, out, say)
    for line in (*announced(reference, runs, warm_up, len(had)), foreign(reference, out)):
        if line:
            say(line)
    again = Again(once=once, runs=runs, warm_up=warm_up, had=had, done=done)
    try:
        folders = list(again.execute(say))
        measured = reference_of("this machine", folders)
        comparison = compare_profiles(
            reference, measured, tolerance=tolerance / 100, defaults=published_defaults()
        )
    except BaseException:
        if done:
            say(_kept(done, asked, out))
        raise
    _tell(comparison, as_json)
    done.clear()  # the answer is given: whatever goes wrong from here on is none
    try:
        _write_page(comparison, html, [[], folders], as_json)
    except Exception as error:  # noqa: BLE001 - the outcome stands, and has been told
        why = getattr(error, "strerror", None) or error or type(error).__name__
        say(f"{html} was not written: {why}; {_kept(folders, asked, out)}")
    return EXIT[comparison.outcome]


def _asked(  # noqa: PLR0917 - as click passes them
    profile: Path,
    runs: int,
    overrides: Sequence[str],
    tolerance: float,
    html: Path | None,
    out: Path,
    as_json: bool,
) -> list[str]:
    """The words of this command, for a shell; user and password of an address are masked."""
    from infra.uri import masked

    words = ["stagescope", "reproduce", str(profile), "--out", str(out), "--runs", str(runs)]
    words += ["--tolerance", f"{tolerance:g}"]
    words += [word for one in overrides for word in ("--set", masked(one))]
    words += ["--html", str(html)] if html is not None else []
    return [*words, *["--json"] * as_json]


def _kept(done: Sequence[RunFolder], asked: Sequence[str], out: Path) -> str:
    """How to go on with the runs that there are."""
    names = ",".join(
        one.path.name if one.path.parent == out.resolve() else str(one.path) for one in done
    )
    many = "1 run is" if len(done) == 1 else f"{len(done)} runs are"
    again = shlex.join([*asked, "--have", names])
    return f"{many} whole and kept. Go on with them: {again}"


@contextlib.contextmanager
def _never_taken_for_a_difference(as_json: bool, done: Sequence[RunFolder]) -> Iterator[None]:
    """What goes wrong ends with 2: click and Python would end with 1, which means "differs".

    ``done``: with any run that is whole, a document is told too, if one was asked for.
    """

    def unsure(why: str) -> None:
        if as_json:
            echo(json.dumps({"schema": SCHEMA, "outcome": "unsure", "open": [why]}))

    try:
        yield
    except KeyboardInterrupt:
        if done:
            unsure("interrupted")
        raise
    except (
        click.ClickException,
        ValueError,
        FileNotFoundError,
        PermissionError,
        NotADirectoryError,
    ) as error:
        if done:
            unsure(str(error))
        raise  # a mistake of the caller's: said in a sentence, and 2 as well
    except OSError as error:
        unsure(str(error))
        echo(f"outcome: could not tell: {error}", err=True)
        sys.exit(EXIT["unsure"])
    except Exception as error:  # noqa: BLE001 - a fault of the program's own is no outcome
        traceback.print_exc()
        unsure(f"a fault of stagescope itself: {type(error).__name__}: {error}")
        echo("outcome: could not tell: a fault of stagescope itself (above)", err=True)
        sys.exit(EXIT["unsure"])


def _side(
    text: str, out: Path, beside: Sequence[RunFolder] = ()
) -> tuple[Reference, Sequence[RunFolder]]:
    """A published profile, or runs as one, with their folders. ``beside``: the other side's."""
    from telemetry.publish import reference_of, unnamed
    from telemetry.reference import read_reference

    if _is_file(text):
        return unnamed(read_reference(Path(text))), []
    folders = [finished_run(run, out) for run in text.split(",") if run]
    if not folders:
        raise ValueError(f"{text!r} names no run")
    names = [folder.path.name for folder in folders]
    name = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
    return reference_of(name, folders, beside=beside), folders


def _notes(of_a: Sequence[RunFolder], of_b: Sequence[RunFolder]) -> tuple[str, ...]:
    """That both sides have runs in common, if so."""
    both = len({one.path for one in of_a} & {one.path for one in of_b})
    if not both:
        return ()
    runs = "1 run is" if both == 1 else f"{both} runs are"
    return (f"{runs} on both sides, which the tests take to be independent of each other",)


def _is_file(text: str) -> bool:
    """Many runs joined by commas are longer than a name may be."""
    try:
        return Path(text).is_file()
    except OSError:
        return False


def _check_page(html: Path | None) -> None:
    """Raises ValueError, before anything is spent, where the page could not be written."""
    if html is not None and not html.parent.is_dir():
        raise ValueError(f"--html {html}: there is no folder {html.parent}; make it first")


def _tell(comparison: Comparison, as_json: bool) -> None:
    from pipeline.show_compare import show_comparison

    if as_json:
        echo(json.dumps(comparison.to_json(), indent=1, allow_nan=False))
        return
    show_comparison(make_console(of_work=True), comparison)


def _write_page(
    comparison: Comparison, html: Path | None, folders: Sequence[Sequence[RunFolder]], as_json: bool
) -> None:
    from telemetry.compare_page import render, timeline
    from telemetry.runfolder import write_atomically

    if html is None:
        return
    write_atomically(html, render(comparison, [timeline(one) for one in folders]))
    if not as_json:
        echo(html)


COMMANDS: tuple[click.Command, ...] = (compare, reproduce)
