"""Tasks of a vCenter: several at once, waited for in one question, their failures as sentences."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyVmomi import vim, vmodl

from infra.vms.estate import Ref
from infra.vsphere.errors import VCenterRefused, sentence

if TYPE_CHECKING:
    from infra.vsphere.session import VCenter

FIRST_POLL_S, LONGEST_POLL_S = 0.05, 2.0
TASK_LIMIT_S = 7200.0
"""A clone of a large template over a slow store takes its time; what takes longer is stuck."""

_INFO = ("info.state", "info.progress", "info.error", "info.entity")
_RUNNING = ("queued", "running")

Progress = Callable[[str, int | None], None]
"""Called with what is done and its percentage, None where the server tells none."""
Hook = Callable[[str], None]
"""Called before and after each step with its name: a seam for tests, which raise in it."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One task to be started."""

    vm: str
    what: str
    """``clone``, ``power on`` ...: the step of the VM."""
    start: Callable[[], Ref]


def nothing(*_: object) -> None:
    """Where nobody listens."""


@contextmanager
def faults_said() -> Iterator[None]:
    """Turn what the vCenter refuses into an error with a sentence."""
    try:
        yield
    except vmodl.MethodFault as fault:
        raise VCenterRefused(f"the vCenter refused: {sentence(fault)}") from fault


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """Starts jobs and waits for them."""

    vcenter: VCenter
    progress: Progress = nothing
    hook: Hook = nothing
    limit_s: float = TASK_LIMIT_S

    def run(self, jobs: Sequence[Job]) -> dict[str, str]:
        """Start all jobs and wait until all have ended; return a sentence for each VM that failed.

        A failure of one job leaves the others alone.
        """
        failed: dict[str, str] = {}
        started: list[tuple[Job, Ref]] = []
        for job in jobs:
            self.hook(f"{job.what} {job.vm}")
            try:
                started.append((job, self.vcenter.call(job.start)))
            except vmodl.MethodFault as fault:
                failed[job.vm] = _said(job, fault)
        ends = self.wait([task for _, task in started], [job for job, _ in started])
        for (job, _), end in zip(started, ends, strict=True):
            if end is not None:
                failed[job.vm] = _said(job, end)
            self.hook(f"{job.what} {job.vm}: done")
        return failed

    def wait(self, tasks: Sequence[Ref], jobs: Sequence[Job] = ()) -> list[Any]:
        """Wait for these tasks; return the fault of each, None where it went well."""
        faults: list[Any] = [None] * len(tasks)
        left, pause_s = dict(enumerate(tasks)), FIRST_POLL_S
        end_s = time.monotonic() + self.limit_s
        while left:
            rows = self._infos(left)
            for at in list(left):
                row = rows.get(at, {"info.state": "success"})
                state = str(row.get("info.state"))
                if jobs and state in _RUNNING:
                    self.progress(f"{jobs[at].what} {jobs[at].vm}", row.get("info.progress"))
                if state not in _RUNNING:
                    left.pop(at)
                    if state == "error":
                        faults[at] = row.get("info.error")
            if left and time.monotonic() > end_s:
                names = ", ".join(f"{jobs[at].what} {jobs[at].vm}" for at in left) if jobs else ""
                raise TimeoutError(
                    f"still not done after {self.limit_s:.0f} s: {names or 'a running task'}; it "
                    "goes on at the vCenter, apply again later"
                )
            if left:
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_POLL_S)
        return faults

    def _infos(self, left: Mapping[int, Ref]) -> dict[int, dict[str, Any]]:
        """State of each task; one that the server has forgotten is missing: it has ended."""
        try:
            rows = self.vcenter.read(list(left.values()), _INFO)
        except vmodl.fault.ManagedObjectNotFound:
            rows = [one for ref in left.values() for one in self._info(ref)]
        found = {ref._GetMoId(): row for ref, row in rows}
        return {at: found[ref._GetMoId()] for at, ref in left.items() if ref._GetMoId() in found}

    def _info(self, ref: Ref) -> list[tuple[Ref, dict[str, Any]]]:
        try:
            return self.vcenter.read([ref], _INFO)
        except vmodl.fault.ManagedObjectNotFound:
            return []

    def settle(self, entities: Iterable[Ref]) -> bool:
        """Wait for what still runs on these objects; return whether there was anything.

        The tasks of an apply that was killed go on at the vCenter.
        """
        running = [task for task, _ in self._running(entities)]
        if running:
            self.progress("waiting for tasks that still run", None)
            self.wait(running)
        return bool(running)

    def percent(self, entities: Iterable[Ref]) -> int | None:
        """How far the one task is that runs on these objects; None: not told, or several run."""
        told = [row.get("info.progress") for _, row in self._running(entities)]
        return told[0] if len(told) == 1 else None

    def _running(self, entities: Iterable[Ref]) -> list[tuple[Ref, dict[str, Any]]]:
        manager = self.vcenter.content.taskManager
        rows = self.vcenter.read([manager], ("recentTask",))
        recent = [task for _, row in rows for task in row.get("recentTask", ())]
        wanted = {ref._GetMoId() for ref in entities}
        infos = self._infos(dict(enumerate(recent)))
        return [
            (recent[at], row)
            for at, row in infos.items()
            if str(row.get("info.state")) in _RUNNING
            and row.get("info.entity") is not None
            and row["info.entity"]._GetMoId() in wanted
        ]


def _said(job: Job, fault: Any) -> str:
    if isinstance(fault, vim.fault.DuplicateName):
        return f"{job.what}: a VM of this name is there already (made meanwhile?); apply again"
    if isinstance(fault, vim.fault.InvalidPowerState):
        state = str(fault.existingState or "").removeprefix("powered").lower() or "in another state"
        return f"{job.what}: the VM is {state} (changed meanwhile?); apply again"
    if isinstance(fault, vim.fault.ConcurrentAccess):
        return f"{job.what}: somebody else changed the VM meanwhile; apply again"
    return f"{job.what}: {sentence(fault)}"
