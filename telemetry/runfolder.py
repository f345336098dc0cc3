"""A run's folder: what lies in it, how it is written whole, and how it is found again.

``run.json`` is the record while the run goes on (replaced atomically at each event); the
profile, the spans as Parquet and the report are derived from it and from ``samples/``.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RUN_SCHEMA = 1
LATEST = "latest"
LOCK = ".lock"
"""Held by the process that makes the run; the kernel drops it at any death."""
REPLAYED = "replay.json"
"""Tells a replayed run from a measured one; such a folder may be replaced by the next replay."""
_RUN_ID = re.compile(r"\w[\w.-]*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Span:
    """The time one stage took, ns UTC on the run's clock; ``finished``: to its own end."""

    stage: str
    start_ns: int
    end_ns: int
    finished: bool = True

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run's folder, and its ``run.json``."""

    path: Path

    @property
    def run_json(self) -> Path:
        return self.path / "run.json"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def spans_parquet(self) -> Path:
        return self.path / "spans.parquet"

    @property
    def profile_parquet(self) -> Path:
        return self.path / "profile.parquet"

    @property
    def profile_json(self) -> Path:
        return self.path / "profile.json"

    @property
    def report_html(self) -> Path:
        return self.path / "report.html"

    def read(self) -> dict[str, Any]:
        """Return ``run.json``; raises FileNotFoundError or ValueError naming the file."""
        try:
            record = json.loads(self.run_json.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.run_json} is not valid JSON: {error}") from error
        if record.get("schema") != RUN_SCHEMA:
            raise ValueError(
                f"{self.run_json} has schema {record.get('schema')!r}; "
                f"this version of stagescope reads schema {RUN_SCHEMA}"
            )
        return dict(record)

    def write(self, record: Mapping[str, Any]) -> None:
        """Replace ``run.json`` in one step."""
        write_atomically(self.run_json, json.dumps(record, indent=1, allow_nan=False) + "\n")

    def spans(self) -> list[Span]:
        """Spans of the stages measured in this run (reused and unfinished ones have none)."""
        return [
            Span(
                stage=stage["name"],
                start_ns=stage["start_ns"],
                end_ns=stage["end_ns"],
                finished=stage["status"] == "finished",
            )
            for stage in self.read()["stages"]
            if stage.get("end_ns") is not None
        ]


def write_atomically(path: Path, text: str) -> None:
    """Write text beside ``path``, sync it and rename it over: readers see old or new, whole."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def hold(folder: RunFolder) -> int:
    """Lock the folder for as long as this process lives; returns the descriptor that holds it."""
    descriptor = os.open(folder.path / LOCK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def is_abandoned(folder: RunFolder) -> bool:
    """Whether the process that held the folder is gone; False where nobody ever held it."""
    try:
        descriptor = os.open(folder.path / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def killed(record: Mapping[str, Any], samples: Path) -> dict[str, Any]:
    """The record of a run whose process is gone, ended with the last thing that is known of it.

    ``samples``: the folder of its samples. It went on for at least so long; its end nobody noted.
    """
    stages = [
        {**stage, "status": "killed", "end_ns": None, "reason": "the run was killed"}
        if stage["status"] == "running"
        else stage
        for stage in record["stages"]
    ]
    edges = (stage.get(edge) for stage in stages for edge in ("start_ns", "end_ns"))
    known = (record["started_ns"], last_sample_ns(samples), *edges)
    ended_ns = max(at_ns for at_ns in known if at_ns is not None)
    return {**record, "stages": stages, "status": "killed", "ended_ns": ended_ns}


def last_sample_ns(samples: Path) -> int | None:
    """The time of the last sample in a folder, ns UTC on the run's clock; None without any.

    Windows do not count: a hypervisor's have the stamps of its own clock.
    """
    import pyarrow.compute as pc

    from telemetry.segments import read_samples

    table = read_samples(samples).table
    own = table.filter(pc.is_null(table["start_ns"]))
    last_ns: int | None = pc.max(own["ts_ns"]).as_py()
    return last_ns


def new_run_id(now: datetime | None = None) -> str:
    """A sortable id: UTC time to the second and six random hex digits."""
    return f"{now or datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def checked_run_id(run_id: object) -> str:
    """The id of a run as the name of its folder. Raises ValueError for what leads elsewhere."""
    if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id) or run_id == LATEST:
        raise ValueError(
            f"run id {run_id!r} is no name of a run's folder: wanted is one such as "
            "20261124-020000-3fa9c1, of letters, digits, '_', '-' and '.'"
        )
    return run_id


def point_latest_at(out: Path, run_id: str) -> None:
    """Let ``<out>/latest`` name this run, in one step."""
    scratch = out / f".{LATEST}.{os.getpid()}.{secrets.token_hex(4)}"
    scratch.symlink_to(run_id)
    scratch.replace(out / LATEST)


def find_run(run: str, out: Path) -> RunFolder:
    """Return the run named by an id, a unique start of an id, a folder or ``latest``.

    Raises FileNotFoundError with the runs that do exist.
    """
    for candidate in (Path(run), out / run):
        if (candidate / "run.json").is_file():
            return RunFolder(candidate.resolve())
    known = [folder.path.name for folder in list_runs(out)]
    matches = [name for name in known if name.startswith(run)]
    if len(matches) == 1:
        return RunFolder((out / matches[0]).resolve())
    if len(matches) > 1:
        raise FileNotFoundError(f"run {run!r} is ambiguous in {out}: {', '.join(matches)}")
    have = f"runs there: {', '.join(known[-5:])}" if known else "there are no runs there yet"
    raise FileNotFoundError(f"no run {run!r} in {out} ({have}); name an id, a folder or 'latest'")


def list_runs(out: Path) -> list[RunFolder]:
    """All runs below ``out``, oldest first."""
    if not out.is_dir():
        return []
    return [
        RunFolder(path)
        for path in sorted(out.iterdir())
        if not path.is_symlink() and (path / "run.json").is_file()
    ]
