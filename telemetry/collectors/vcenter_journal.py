"""What happened between a run and its vCenter: one JSON object per line beside the samples.

``at_ns`` is on the run's clock, ``event`` one of connected, placement, moved, lost, back, named,
round, unresolved, backfill, gap. Lines are appended whole, by the recorder and after it by the
backfill.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telemetry.clock import Clock
from telemetry.runfolder import write_atomically

EVENTS = "vcenter.jsonl"


@dataclass(frozen=True, kw_only=True)
class Journal:
    """The events of one run. Without a folder nothing is kept."""

    folder: Path | None
    clock: Clock

    def write(self, event: str, **fields: Any) -> None:
        """Append one event. Raises OSError (a full disk, say)."""
        if self.folder is None:
            return
        line = json.dumps({"at_ns": self.clock.now_ns(), "event": event, **fields}) + "\n"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self.folder / EVENTS, flags, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def named(self, *, user: str = "", vms: Sequence[str] = ()) -> None:
        """Note, once, whom the sentence of a failure may name, so that it can be replaced there.

        Raises OSError.
        """
        told: dict[str, Any] = {"user": user, "vm": list(vms)}
        known = ({key: one.get(key) for key in told} for one in self.read())
        if (user or vms) and told not in known:
            self.write("named", **told)

    def drop(self, event: str) -> None:
        """Remove all events of one kind, for those that are found out anew as a whole."""
        kept = [one for one in self.read() if one["event"] != event]
        if self.folder is not None and kept:
            text = "".join(json.dumps(one) + "\n" for one in kept)
            write_atomically(self.folder / EVENTS, text)

    def read(self) -> list[dict[str, Any]]:
        """All events so far; a torn line is passed over."""
        return [] if self.folder is None else read_events(self.folder)


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The events in a folder of samples, as they were written; none without a vCenter."""
    path = folder / EVENTS
    if not path.is_file():
        return []
    events = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # the end of a line that a kill or a full disk cut off
    return events
