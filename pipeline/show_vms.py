"""Tables and lines for people: what a plan of VMs would change, and what was done."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.status import Status

from infra.vms.apply import Applied
from infra.vms.changes import Changes
from infra.vms.destroy import Destroyed, Doomed
from pipeline.console import print_rows

NOT_THERE = "–"
_PLAIN_EVERY_S = 10.0


def show_changes(console: Console, changes: Changes) -> None:
    """All problems, notes, and each attribute that would change."""
    for problem in changes.problems:
        console.print(f"problem: {problem}", highlight=False, style="red")
    for note in changes.notes:
        console.print(f"note: {note}", highlight=False, style="dim")
    rows = [
        (
            change.vm,
            change.attribute,
            NOT_THERE if change.now is None else change.now,
            NOT_THERE if change.wanted is None else change.wanted,
            "power-off" if change.power_off else "",
        )
        for change in changes.changes
    ]
    if rows:
        columns = ("VM", "attribute", "now", "wanted", "needs")
        print_rows(console, f"plan {changes.plan}", columns, rows)
    elif not changes.problems:
        console.print(f"plan {changes.plan}: nothing to change", highlight=False)


def show_applied(console: Console, applied: Applied) -> None:
    """What was not done, and how much was."""
    for sentence in applied.refused:
        console.print(f"refused: {sentence}", highlight=False, style="yellow")
    for sentence in applied.failed:
        console.print(f"failed: {sentence}", highlight=False, style="red")
    many = len(applied.done)
    said = f"{many} change{'' if many == 1 else 's'} made" if many else "nothing was changed"
    console.print(said, highlight=False)


def show_doomed(console: Console, doomed: Doomed) -> None:
    """What would be removed, and what would be left."""
    for sentence in doomed.left:
        console.print(f"note: {sentence}", highlight=False, style="dim")
    rows = [(vm.name, vm.moid, vm.power, vm.host) for vm in doomed.vms]
    if rows:
        title = f"VMs that plan {doomed.plan} made"
        print_rows(console, title, ("VM", "id", "power", "host"), rows)
    else:
        console.print(f"plan {doomed.plan}: no VM of its making", highlight=False)


def show_destroyed(console: Console, destroyed: Destroyed) -> None:
    for sentence in destroyed.failed:
        console.print(f"failed: {sentence}", highlight=False, style="red")
    if destroyed.removed:
        names = ", ".join(destroyed.removed)
        console.print(f"removed: {names}", highlight=False)


class TaskProgress:
    """What the vCenter is at: a moving line on a terminal, a plain line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console, self._status = console, Status("", console=console)
        self._told_s = time.monotonic()

    def __enter__(self) -> TaskProgress:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __call__(self, what: str, percent: int | None) -> None:
        line = what if percent is None else f"{what}: {percent} %"
        if self._console.is_terminal:
            self._status.update(line)
        elif time.monotonic() - self._told_s >= _PLAIN_EVERY_S:
            self._told_s = time.monotonic()
            self.say(line)

    def say(self, sentence: str) -> None:
        self._console.print(sentence, highlight=False)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._status.stop()
