"""A recorded run fed again, as it came or all at once, and whether it makes the same bytes.

Samples, events and the stages' beginnings and ends go into a new folder in the order in which they
came, so that whoever watches that folder sees a run. At its end the profile and the report are
derived there as after any run. They depend on nothing but ``run.json`` and ``samples/``: not on
where the folder is, when it is, on which machine, or how fast it was fed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from telemetry.finish import finish
from telemetry.runfolder import (
    LOCK,
    REPLAYED,
    RunFolder,
    checked_run_id,
    hold,
    is_abandoned,
    killed,
    write_atomically,
)
from telemetry.segments import META, SUFFIX, whole_batches

DERIVED = ("spans.parquet", "profile.parquet", "profile.json", "report.html")
"""What ``finish`` makes of a run."""
EVENTS = "vcenter.jsonl"
BATCH_NS = 1_000_000_000
"""A batch that holds more of a run's time than this is fed in pieces of it."""
_LATE = ("-backfill", "-absent")
"""Ends of the names of collectors that wrote when the run was over."""
_LIVE = ("name", "start_ns", "pid", "reused_from", "settings", "key", "inputs")
"""What is known of a stage that goes on."""

Progress = Callable[[float, float], None]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One derived file: its digest, and which of the others it equals.

    ``recorded``: the digest of the file that was made when the run was recorded, None without one;
    ``anew``: of what this version makes of the recording itself, None where it was not needed.
    """

    name: str
    digest: str
    recorded: str | None
    anew: str | None = None

    @property
    def verdict(self) -> str:
        if self.digest == self.recorded:
            return "same"
        if self.digest != self.anew:
            return "differs"
        return "new" if self.recorded is None else "other version"


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """A replayed run: its folder and what came of the comparison."""

    folder: RunFolder
    files: tuple[Compared, ...]

    @property
    def same(self) -> bool:
        """Whether feeding the samples again made no difference."""
        return all(one.verdict != "differs" for one in self.files)

    def to_json(self) -> dict[str, Any]:
        files = [
            {"name": one.name, "sha256": one.digest, "verdict": one.verdict} for one in self.files
        ]
        return {"folder": str(self.folder.path), "same": self.same, "files": files}


def replay(
    source: RunFolder,
    into: Path,
    *,
    speed: float | None = None,
    recorded: Mapping[str, str] | None = None,
    progress: Progress = lambda done_s, total_s: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Replayed:
    """Feed the run of ``source`` into ``into/<run id>`` and derive profile and report there.

    ``speed``: times as fast as it was; None: all at once. ``recorded``: digests of what was made
    of the run when it was recorded; without them those of the files beside it. Raises ValueError
    for a run that goes on, a speed that is none, or a folder that is in use.
    """
    record = source.read()
    if record["status"] == "running":
        raise ValueError(f"run {record['run_id']} is still running: a replay needs its end")
    if speed is not None and not 0 < speed < float("inf"):
        raise ValueError(f"speed {speed}: give how many times as fast, above 0, e.g. 10")
    target = _made(source, into, record)
    kept = digests(source.path) if recorded is None else dict(recorded)
    feed = _Feed(source=source, target=target, record=record, speed=speed)
    with _held(target):
        try:
            _paced(feed, progress, sleep)
        finally:
            feed.close()
        shutil.copyfile(source.run_json, target.path / ".run.json")
        (target.path / ".run.json").replace(target.run_json)
        finish(target)
    return Replayed(folder=target, files=_compared(source, target, kept))


@contextlib.contextmanager
def _held(target: RunFolder) -> Iterator[None]:
    """Hold the folder as whoever makes a run does; a replay that is cut short ends its record."""
    held = hold(target)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # there is none yet, or no room: nobody holds it then
            _end(target)
        raise
    finally:
        os.close(held)


def _end(target: RunFolder) -> None:
    """End the record of a replay that goes on, with the last of what was fed."""
    record = target.read()
    if record["status"] != "running":
        return
    cut = {"status": "interrupted", "reason": "the replay was interrupted"}
    stages = [{**one, **cut} if one["status"] == "running" else one for one in record["stages"]]
    ended = killed({**record, "stages": stages}, target.samples)
    target.write({**ended, "status": "interrupted"})


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each derived file that is there."""
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in DERIVED
        if (folder / name).is_file()
    }


def _compared(
    source: RunFolder, target: RunFolder, recorded: Mapping[str, str]
) -> tuple[Compared, ...]:
    made = digests(target.path)
    anew: Mapping[str, str] = {}
    if any(made[name] != recorded.get(name) for name in DERIVED):
        anew = derived_anew(source)
    return tuple(
        Compared(name=name, digest=made[name], recorded=recorded.get(name), anew=anew.get(name))
        for name in DERIVED
    )


def derived_anew(source: RunFolder) -> dict[str, str]:
    """Digests of what this version makes of a recording; the recording is left as it is."""
    with tempfile.TemporaryDirectory(prefix="stagescope-") as scratch:
        copy = RunFolder(Path(scratch) / "run")
        copy.path.mkdir()
        shutil.copyfile(source.run_json, copy.run_json)
        if source.samples.is_dir():
            copy.samples.symlink_to(source.samples.resolve())
        finish(copy)
        return digests(copy.path)


def _made(source: RunFolder, into: Path, record: Mapping[str, Any]) -> RunFolder:
    """An empty folder for the replayed run, in place of that of an earlier replay."""
    target = RunFolder(into.resolve() / checked_run_id(record.get("run_id")))
    if target.path == source.path.resolve():
        raise ValueError(f"{target.path} is the recording itself: give another folder")
    if target.path.exists():
        if not (target.path / REPLAYED).is_file():
            raise ValueError(f"{target.path} is there and is no replay: give another folder")
        if (target.path / LOCK).is_file() and not is_abandoned(target):
            raise ValueError(
                f"{target.path} is being replayed: wait for its end or give another folder"
            )
        target.run_json.unlink(missing_ok=True)  # first: without it the rest is no run
        shutil.rmtree(target.path)
    target.samples.mkdir(parents=True)
    write_atomically(target.path / REPLAYED, json.dumps({"source": record["run_id"]}) + "\n")
    return target


@dataclass(kw_only=True)
class _Step:
    """One thing that happened: when (ns, the run's clock), and how it is done again."""

    at_ns: int
    do: Callable[[], None]


@dataclass(kw_only=True)
class _Feed:
    """All steps of one run, and the files that they write."""

    source: RunFolder
    target: RunFolder
    record: dict[str, Any]
    speed: float | None
    _open: list[_Writer] = field(default_factory=list)

    def steps(self) -> list[_Step]:
        """In the order of time; within a file in the order of the file."""
        steps = [*self._stages(), *self._samples(), *self._events()]
        return sorted(steps, key=lambda step: step.at_ns)

    def close(self) -> None:
        for writer in self._open:
            writer.close()

    def _stages(self) -> Iterator[_Step]:
        """``run.json`` as it was when each stage began and ended; at once it is not needed."""
        start_ns = self.record["started_ns"]
        if self.speed is None:
            return
        yield _Step(at_ns=start_ns, do=partial(self._say, start_ns))
        for stage in self.record["stages"]:
            for at_ns in (stage.get("start_ns"), stage.get("end_ns")):
                if at_ns is not None:
                    yield _Step(at_ns=at_ns, do=partial(self._say, at_ns))

    def _say(self, now_ns: int) -> None:
        """Write the record as it was at that time."""
        stages = list(_stages_at(self.record["stages"], now_ns))
        self.target.write(
            {
                **self.record,
                "status": "running",
                "ended_ns": None,
                "losses": [],
                "stages": stages,
                "replayed_at_speed": self.speed,
            }
        )

    def _samples(self) -> Iterator[_Step]:
        for path in sorted(self.source.samples.glob(f"*{SUFFIX}")):
            schema, tables = whole_batches(path)
            if schema is None:
                continue
            writer = _Writer(path=self.target.samples / path.name, schema=schema)
            self._open.append(writer)
            late = json.loads(schema.metadata[META])["collector"].endswith(_LATE)
            latest_ns = (self.record.get("ended_ns") or 0) if late else self.record["started_ns"]
            yield _Step(at_ns=latest_ns, do=writer.open)
            for batch in (one for table in tables for one in table.to_batches()):
                for piece, at_ns in _pieces(batch, latest_ns, late=late):
                    latest_ns = at_ns
                    yield _Step(at_ns=at_ns, do=partial(writer.write, piece))

    def _events(self) -> Iterator[_Step]:
        path = self.source.samples / EVENTS
        if not path.is_file():
            return
        latest_ns = self.record["started_ns"]
        for line in path.read_bytes().splitlines(keepends=True):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                latest_ns = max(latest_ns, json.loads(line)["at_ns"])  # a torn one: as before it
            yield _Step(at_ns=latest_ns, do=partial(self._append, line))

    def _append(self, line: bytes) -> None:
        with (self.target.samples / EVENTS).open("ab") as file:
            file.write(line)


def _stages_at(stages: Iterable[Mapping[str, Any]], now_ns: int) -> Iterator[dict[str, Any]]:
    """The stages that had begun, those that went on without what was known at their end."""
    began = True
    for stage in stages:
        start_ns, end_ns = stage.get("start_ns"), stage.get("end_ns")
        began = began and (start_ns is None or start_ns <= now_ns)
        if not began:
            return
        if start_ns is None or (end_ns is not None and end_ns <= now_ns):
            yield dict(stage)
            began = start_ns is not None or end_ns is None
        else:
            known = {key: stage[key] for key in _LIVE if key in stage}
            ended = {"status": "running", "end_ns": None, "rusage": None, "reason": None}
            yield {**known, **ended}


def _pieces(
    batch: pa.RecordBatch, latest_ns: int, *, late: bool
) -> Iterator[tuple[pa.RecordBatch, int]]:
    """A batch in pieces of a second, each with the time at which all of it was there.

    A batch came when its last sample was there; windows of the past came with it.
    """
    if late or not batch.num_rows:
        yield batch, latest_ns
        return
    ts_ns = np.maximum.accumulate(batch.column("ts_ns").to_numpy())
    if int(ts_ns[-1] - ts_ns[0]) <= 2 * BATCH_NS:
        yield batch, max(latest_ns, int(ts_ns[-1]))
        return
    edges = np.flatnonzero(np.diff(ts_ns // BATCH_NS)) + 1
    for low, high in zip([0, *edges.tolist()], [*edges.tolist(), len(ts_ns)], strict=True):
        yield batch.slice(low, high - low), max(latest_ns, int(ts_ns[high - 1]))


@dataclass(kw_only=True)
class _Writer:
    """A segment that is written again: every batch whole and in one write, as the recorder does."""

    path: Path
    schema: pa.Schema
    _file: io.FileIO | None = None

    def open(self) -> None:
        self._file = io.FileIO(self.path, "xb")
        self._buffer = io.BytesIO()
        options = pa.ipc.IpcWriteOptions(compression="zstd", emit_dictionary_deltas=True)
        self._stream = pa.ipc.new_stream(self._buffer, self.schema, options=options)

    def write(self, batch: pa.RecordBatch) -> None:
        self._stream.write_batch(batch)
        self._flush()

    def close(self) -> None:
        if self._file is not None:
            self._stream.close()
            self._flush()
            self._file.close()
            self._file = None

    def _flush(self) -> None:
        assert self._file is not None
        self._file.write(self._buffer.getvalue())
        self._buffer.seek(0)
        self._buffer.truncate()


def _paced(feed: _Feed, progress: Progress, sleep: Callable[[float], None]) -> None:
    """Take every step when it is due; without a speed that is at once."""
    steps = feed.steps()
    first_ns = feed.record["started_ns"]
    total_s = (max((step.at_ns for step in steps), default=first_ns) - first_ns) / 1e9
    began_s = time.monotonic()
    for step in steps:
        since_s = (step.at_ns - first_ns) / 1e9
        if feed.speed is not None:
            ahead_s = began_s + since_s / feed.speed - time.monotonic()
            if ahead_s > 0:
                progress(since_s, total_s)
                sleep(ahead_s)
        step.do()
    progress(total_s, total_s)
