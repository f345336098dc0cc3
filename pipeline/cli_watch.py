"""``stagescope watch`` and ``stagescope replay``: a run while it goes, and a recorded one again."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli_options import FAILED, finished_run, json_option, out_option
from pipeline.console import make_console

if TYPE_CHECKING:
    from telemetry.exporter import Endpoint
    from telemetry.runfolder import RunFolder
    from telemetry.watch import Snapshot

LINGER_S = 15.0
"""An endpoint stays so long after the end: Prometheus asks every 15 s as Debian sets it up."""
LOOK_AGAIN_S = 1.0
Which = tuple[str, int | None]
"""A run's folder by its name, and of a replay the time (ns) at which that was begun."""
RecordAt = tuple[int, int, int]
"""A run's record as it lies there: inode, time (ns) and bytes."""


@click.command(
    short_help="Show a run while it goes; have Prometheus read it.",
    epilog="Example: stagescope watch --prometheus 127.0.0.1:9464 --follow",
)
@click.argument("run", required=False)
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    help="Seconds between two looks; the recorder writes once a second.",
)
@click.option(
    "--prometheus",
    "place",
    metavar="HOST:PORT",
    help="Serve the main series there, at /metrics. Port 0: a free one.",
)
@click.option("--follow", is_flag=True, help="When the run has ended, wait for the next one.")
@out_option
@json_option
def watch(  # noqa: PLR0917 - click passes them by name
    run: str | None, every_s: float, place: str | None, follow: bool, out: Path, as_json: bool
) -> None:
    """Show stages and main series of RUN (an id, a folder or `latest`) while it goes.

    Without RUN: the run that goes on in the folder of the runs. It reads what is on disk, so any
    process may have started the run, and looking on costs that one nothing. Ends with the run.
    """
    with contextlib.ExitStack() as stack:
        endpoint = _endpoint(place, every_s, stack)
        seen: set[Which] = set()
        while True:
            folder = _waited_for(out, seen) if follow and run is None else _chosen(run, out)
            seen.add(_which(folder))
            try:
                _watch(folder, every_s, endpoint, as_json=as_json)
            except (TimeoutError, FileNotFoundError, ValueError) as gone:
                if not follow:
                    raise
                click.echo(f"{folder.path.name}: {gone}", err=True)
            if not follow:
                break
            run = None
        if endpoint is not None:
            time.sleep(LINGER_S)


def _endpoint(place: str | None, every_s: float, stack: contextlib.ExitStack) -> Endpoint | None:
    if place is None:
        return None
    from telemetry.exporter import QUIET_S, endpoint_at

    endpoint = stack.enter_context(endpoint_at(place, max(QUIET_S, 3 * every_s)))
    click.echo(f"metrics: {endpoint.address}", err=True)
    return endpoint


def _watch(folder: RunFolder, every_s: float, endpoint: Endpoint | None, *, as_json: bool) -> None:
    from pipeline.show_watch import WatchView

    view = None if as_json else WatchView(make_console())
    with view or contextlib.nullcontext():
        for snapshot in _looks(folder, every_s, endpoint):
            if view is None:
                click.echo(json.dumps(_as_json(snapshot)))
            else:
                view.show(snapshot)


def _looks(folder: RunFolder, every_s: float, endpoint: Endpoint | None) -> Iterator[Snapshot]:
    """The run at every look; the endpoint has it, too, until nobody knows how it goes.

    Raises TimeoutError for a run that was killed, FileNotFoundError where its folder is gone, and
    ValueError for a record that is none.
    """
    from telemetry.watch import Live, follow

    which, run = _which(folder), ""
    try:
        for snapshot in follow(Live(folder), every_s=every_s):
            if _which(folder) != which:
                raise FileNotFoundError(folder.path)
            run = str(snapshot.record["run_id"])
            if endpoint is not None:
                endpoint.show(snapshot)
            yield snapshot
    except (TimeoutError, FileNotFoundError, ValueError) as gone:
        if endpoint is not None:
            endpoint.forget(run)
        if not isinstance(gone, FileNotFoundError):
            raise
        raise FileNotFoundError(
            "the folder of this run was deleted, or the next replay of it has taken it"
        ) from gone


def _as_json(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "run": snapshot.record["run_id"],
        "status": snapshot.record["status"],
        "stage": snapshot.stage or None,
        "seconds": snapshot.seconds,
        "now_ns": snapshot.now_ns,
        "series": [
            {"name": one.main.name, **one.labels, "value": one.value} for one in snapshot.values
        ],
    }


def _chosen(run: str | None, out: Path) -> RunFolder:
    from telemetry.runfolder import find_run

    if run is not None:
        return find_run(run, out)
    going = _going(out, {})
    if not going:
        raise FileNotFoundError(
            f"no run goes on in {out}: start one, name one, or wait for one with --follow"
        )
    return going[-1]


def _going(out: Path, over: dict[str, RecordAt]) -> list[RunFolder]:
    """Runs whose record says that they go on, and whose process is there.

    ``over``: records, as they lay there, that said otherwise; they are not read again.
    """
    from pipeline.leftovers import is_dead
    from telemetry.runfolder import list_runs

    going = []
    for one in list_runs(out):
        with contextlib.suppress(FileNotFoundError):  # the next replay is about to take the folder
            stat = one.run_json.stat()
            at = stat.st_ino, stat.st_mtime_ns, stat.st_size
            if over.get(one.path.name) == at:
                continue
            if _status(one) == "running":
                going.append(one)
            else:
                over[one.path.name] = at
    return [one for one in going if not is_dead(one, out)]


def _status(folder: RunFolder) -> str | None:
    """What the record says; None where it cannot be read: that is no run to be watched."""
    try:
        return str(folder.read()["status"])
    except (ValueError, KeyError):
        return None


def _which(folder: RunFolder) -> Which:
    """What tells a run from all others: a replay has the name of its recording every time."""
    from telemetry.runfolder import REPLAYED

    try:
        return folder.path.name, (folder.path / REPLAYED).stat().st_mtime_ns
    except FileNotFoundError:
        return folder.path.name, None


def _waited_for(out: Path, seen: set[Which]) -> RunFolder:
    """The next run that goes on and was not watched yet."""
    over: dict[str, RecordAt] = {}
    while True:
        fresh = [one for one in _going(out, over) if _which(one) not in seen]
        if fresh:
            return fresh[-1]
        time.sleep(LOOK_AGAIN_S)


@click.command(
    short_help="Replay a recorded run to the same report.",
    epilog="Example: stagescope replay example --speed 10",
)
@click.argument("run")
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    help="Times as fast as it was; without it: all at once.",
)
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("replays"),
    show_default=True,
    help="Folder of the replays, apart from the runs that were measured here.",
)
@click.option(
    "--pack",
    "archive",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write RUN as a small archive (.tar.xz) instead, under pseudonyms.",
)
@click.option("--as-it-is", is_flag=True, help="With --pack: keep all names.")
@out_option
@json_option
def replay(  # noqa: PLR0917 - click passes them by name
    run: str,
    speed: float | None,
    into: Path,
    archive: Path | None,
    as_it_is: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Feed the samples and events of RUN again, and check that they make the same report.

    RUN is an id, a folder, `latest`, an archive, or `example`: a recorded run that comes with
    StageScope. While it is fed, `stagescope watch --out replays` sees it as a run that goes on.
    """
    from pipeline.show_watch import show_replayed
    from telemetry.archive import pack
    from telemetry.replay import replay as feed

    with _recording(run, out) as (source, recorded):
        if archive is not None:
            packed = pack(source, archive, pseudonyms=not as_it_is)
            click.echo(f"{packed}: {packed.stat().st_size / 1024:.0f} KiB")
            if not as_it_is:
                click.echo(
                    "names of hosts, VMs and users, UUIDs, addresses and folders are replaced; "
                    "commands and what stages said of themselves are not: look through it first",
                    err=True,
                )
            return
        with _progress(speed) as progress:
            replayed = feed(source, into, speed=speed, recorded=recorded, progress=progress)
    if as_json:
        click.echo(json.dumps(replayed.to_json(), indent=1))
    else:
        show_replayed(make_console(), replayed)
    if not replayed.same:
        sys.exit(FAILED)


@contextlib.contextmanager
def _recording(run: str, out: Path) -> Iterator[tuple[RunFolder, dict[str, str] | None]]:
    """The recorded run, unpacked for as long as it is needed, and its digests if it has them."""
    from telemetry.archive import EXAMPLE, SUFFIX_OF_ARCHIVES, unpack

    path = EXAMPLE if run == "example" else Path(run)
    if not (run == "example" or run.endswith(SUFFIX_OF_ARCHIVES)):
        yield finished_run(run, out), None
        return
    if not path.is_file():
        raise FileNotFoundError(f"no archive {path}")
    with tempfile.TemporaryDirectory(prefix="stagescope-") as scratch:
        yield unpack(path, Path(scratch) / "run")


@contextlib.contextmanager
def _progress(speed: float | None) -> Iterator[Any]:
    from pipeline.console import WorkProgress

    if speed is None:
        yield lambda done_s, total_s: None
        return
    with WorkProgress(make_console(stderr=True), "replay") as progress:
        yield lambda done_s, total_s: progress(round(done_s), round(total_s))


COMMANDS: tuple[click.Command, ...] = (watch, replay)
