"""A run around somebody else's work: a folder, a recorder, spans, and the profile at the end."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import resource
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar, Token
from pathlib import Path
from types import TracebackType
from typing import Any

from infra.placement import boot_id, product_uuid
from telemetry.clock import Clock, measure_offset_ns
from telemetry.environment import environment, stagescope_version
from telemetry.handle import Handle, not_all_written
from telemetry.recording import Keeper, Recording
from telemetry.runfolder import RUN_SCHEMA, RunFolder, hold, new_run_id, point_latest_at
from telemetry.settings import TelemetrySettings


def new_record(run_id: str, name: str, clock: Clock, **more: Any) -> dict[str, Any]:
    """The beginning of a ``run.json``."""
    return {
        "schema": RUN_SCHEMA,
        "stagescope": stagescope_version(),
        "run_id": run_id,
        "name": name,
        "status": "running",
        "started_ns": clock.now_ns(),
        "ended_ns": None,
        "host": platform.node(),
        "clock": {
            "offset_start_ns": clock.offset_ns,
            "offset_end_ns": None,
            "boot_id": boot_id(),
        },
        "environment": environment(),
        "stages": [],
        "losses": [],
        **more,
    }


class Session:
    """A run in the making. ``with Session(...) as run: with run.span("train"): ...``

    Once it is open, a disk that is full, or gone, costs the profile and not the work.
    """

    def __init__(
        self,
        name: str,
        out: Path | str = "runs",
        settings: TelemetrySettings | None = None,
        *,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """``say`` is told what the end waits for and what is lost; without it that is a warning."""
        _check(name)
        self._name, self._out, self._say = name, Path(out), say
        self._settings = settings or TelemetrySettings()

    def open(self) -> None:
        """Make the folder and start the recorder. Raises OSError if the folder cannot be made."""
        self._owner = os.getpid()
        self.clock = Clock(offset_ns=measure_offset_ns())
        run_id = new_run_id()
        self.folder = RunFolder(self._out.resolve() / run_id)
        self.folder.samples.mkdir(parents=True)
        self._held = hold(self.folder)
        vcenter = self._settings.vcenter
        more: dict[str, Any] = {}
        if vcenter is not None:
            more = {"vcenter": vcenter.to_json(), "product_uuid": product_uuid()}
        self.record = new_record(run_id, self._name, self.clock, **more)
        self.folder.write(self.record)
        point_latest_at(self._out, run_id)
        self.recording = Recording(self.folder.samples, self.clock, self._settings)
        self.recording.open()
        self.keeper = Keeper(self.recording)
        self.keeper.start()

    def close(self, status: str = "finished") -> None:
        """End the recorder, fetch vCenter's last windows, then write profile and report.

        What goes wrong with these is a loss, and nothing that the work is to suffer from.
        """
        if not self._is_owner():
            return
        self.keeper.stop()
        self.recording.close()
        self.record["losses"] += self.recording.losses
        self.record |= {"status": status, "ended_ns": self.clock.now_ns()}
        self.record["clock"]["offset_end_ns"] = measure_offset_ns()
        try:
            self._derive()
        except Exception as error:  # noqa: BLE001 - the boundary of all that is derived
            self._lose(error)
            self._save()
        finally:
            os.close(self._held)

    def _derive(self) -> None:
        from telemetry.finish import finish

        self.folder.write(self.record)
        if self._settings.vcenter is not None:
            from telemetry.backfill import backfill

            vcenter = self._settings.vcenter
            say = self._say or (lambda sentence: None)
            losses = backfill(self.folder, vcenter, self.clock, say=say)
            self.record["losses"] = list(dict.fromkeys([*self.record["losses"], *losses]))
            self.folder.write(self.record)
        finish(self.folder)

    def _save(self) -> None:
        """Write the record; where there is no room now, there may be at the close."""
        with contextlib.suppress(OSError):
            self.folder.write(self.record)

    def _lose(self, error: Exception) -> None:
        """Note and say that record or profile could not be written."""
        reason = error.strerror if isinstance(error, OSError) else None
        why = reason or f"{type(error).__name__}: {error}"
        loss = f"record or profile could not be written: {why}"
        self.record["losses"].append(loss)
        first = "once there is room, " if isinstance(error, OSError) else ""
        again = f"`stagescope report {shlex.quote(str(self.folder.path))}`"
        told = f"{loss}; {first}{again} makes a profile of what is there"
        if self._say is None:
            warnings.warn(told, RuntimeWarning, stacklevel=2)
        else:
            self._say(f"lost: {told}")

    def begin(
        self, stage: str, pid: int, start_ns: int | None = None, *, whole: bool = True
    ) -> dict[str, Any]:
        """Note that a stage begins (now, if not before) and have its process tree sampled.

        ``whole``: the stage is all of that child process, with the orphans that it leaves to this
        one; else it is what the process does from now on. A name that this run has already gets a
        number. Raises ValueError for a name that no file can have.
        """
        _check(stage)
        entry: dict[str, Any] = {
            "name": self._unused(stage),
            "status": "running",
            "start_ns": self.clock.now_ns() if start_ns is None else start_ns,
            "end_ns": None,
            "pid": pid,
            "rusage": None,
            "reused_from": None,
            "reason": None,
        }
        self.record["stages"].append(entry)
        self._save()
        self.recording.watch(entry["name"], pid, from_start=whole, orphans=whole)
        return entry

    def _unused(self, stage: str) -> str:
        taken = {one["name"] for one in self.record["stages"]}
        numbered = (f"{stage}-{number}" for number in itertools.count(2))
        return next(name for name in itertools.chain([stage], numbered) if name not in taken)

    def end(self, entry: dict[str, Any], **fields: Any) -> None:
        """Note that a stage has ended, after the last sample of its tree."""
        entry["end_ns"] = self.clock.now_ns()
        self.recording.unwatch(entry["name"])
        entry |= fields
        self._save()

    @contextlib.contextmanager
    def span(self, stage: str) -> Iterator[Handle]:
        """Profile the body as a stage; yields a handle to name phases and count things.

        What is sampled is this process with its children. An exception marks the stage as failed
        and goes on; ``sys.exit()`` without a fault is none.
        """
        entry = self.begin(stage, os.getpid(), whole=False)
        entry["start_ns"] = self.clock.now_ns()  # the first sample lies before: nothing is missing
        before = _usage()
        handle = Handle(self.folder.samples, entry["name"], self.clock)
        status, reason = "failed", None
        try:
            yield handle
            status = "finished"
        except BaseException as error:
            if _is_well(error):
                status = "finished"
            else:
                reason = f"{type(error).__name__}: {error}"
            raise
        finally:
            if self._is_owner():
                after = _usage()
                self._close(handle, entry["name"])
                rusage = {name: after[name] - before[name] for name in after}
                rusage["max_rss_bytes"] = after["max_rss_bytes"]
                self.end(entry, status=status, reason=reason, rusage=rusage)

    def _close(self, handle: Handle, stage: str) -> None:
        try:
            handle.close()
        except OSError as error:
            self.record["losses"].append(not_all_written(stage, error))

    def _is_owner(self) -> bool:
        """False in a fork of the process that opened this: leaving its block there ends nothing."""
        return os.getpid() == self._owner

    def __enter__(self) -> Session:
        self.open()
        self._token: Token[Session | None] = _CURRENT.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _CURRENT.reset(self._token)
        self.close("finished" if _is_well(error) else "failed")


_CURRENT: ContextVar[Session | None] = ContextVar("session", default=None)


@contextlib.contextmanager
def span(
    stage: str, out: Path | str = "runs", settings: TelemetrySettings | None = None
) -> Iterator[Handle]:
    """Profile the body as a stage; yields a handle with ``phase(name)`` and ``count(metric, n)``.

    Within a ``Session`` or another span it is a stage of the same run; else a run of its own, in a
    folder below ``out``.
    """
    current = _CURRENT.get()
    if current is not None:
        with current.span(stage) as handle:
            yield handle
        return
    with Session(stage, out, settings) as session, session.span(stage) as handle:
        yield handle


def _is_well(error: BaseException | None) -> bool:
    """Whether a block was left at its end, or by ``sys.exit()`` without a fault."""
    return error is None or (isinstance(error, SystemExit) and error.code in (None, 0))


def _check(name: str) -> None:
    quoted = "'" in name and '"' in name  # a search in MLflow can hold one kind or the other
    text = all(character.isprintable() for character in name)
    if (
        name in {"", "-"}
        or name.startswith(".")
        or not set(name).isdisjoint("/:")
        or quoted
        or not text
    ):
        raise ValueError(
            f"{name!r} cannot name a stage: its files are called after it, so it must not be "
            "empty or a dash, begin with a dot, or hold a slash, a colon, both kinds of quotes or "
            "what cannot be printed"
        )


def _usage() -> Mapping[str, float]:
    own, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return {
        "user_s": own.ru_utime + children.ru_utime,
        "system_s": own.ru_stime + children.ru_stime,
        "max_rss_bytes": max(own.ru_maxrss, children.ru_maxrss) * 1024,
        "read_bytes": (own.ru_inblock + children.ru_inblock) * 512,
        "write_bytes": (own.ru_oublock + children.ru_oublock) * 512,
    }
