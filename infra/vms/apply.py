"""Make a vCenter as a plan says: what is missing is made, what differs is changed, no more.

Every step starts from what the server has, not from what an earlier run may have done: an apply
that was killed is finished by the next one. A VM gets its marks in the task that makes it, or a
note that stands for them where it is deployed, so there is no moment in which it is nobody's.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from infra.vms.changes import Change, Changes, VmChanges, config_spec
from infra.vms.deploy import deploy, order
from infra.vms.diff import plan_changes
from infra.vms.estate import MIB_PER_GIB, Ref
from infra.vms.owned import is_unfinished
from infra.vms.spec import MARK_INSTANCE, MARK_PLAN, MARK_VM, PlanError, VmPlan
from infra.vms.tasks import Hook, Job, Progress, Tasks, nothing

if TYPE_CHECKING:
    from infra.vsphere.session import VCenter

Say = Callable[[str], None]
SHUTDOWN_S = 300.0
"""How long a guest with VMware Tools gets to shut down before it is powered off."""
_SHUTDOWN_POLL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What an apply did, and what it did not."""

    done: tuple[Change, ...]
    refused: tuple[str, ...]
    """Edits that need a running VM powered off, which was not allowed."""
    failed: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return not self.refused and not self.failed

    def to_json(self) -> dict[str, Any]:
        return {
            "done": [change.to_json() for change in self.done],
            "refused": list(self.refused),
            "failed": list(self.failed),
            "notes": list(self.notes),
        }


def apply(
    vcenter: VCenter,
    plan: VmPlan,
    *,
    consent_power_off: bool = False,
    say: Say = nothing,
    progress: Progress = nothing,
    hook: Hook = nothing,
    shutdown_s: float = SHUTDOWN_S,
) -> Applied:
    """Apply a plan. ``consent_power_off``: running VMs may be powered off for edits that need it.

    Raises PlanError with all problems, before anything is changed, where the plan has any.
    """
    tasks = Tasks(vcenter=vcenter, progress=progress, hook=hook)
    run = _Run(vcenter, plan, tasks, consent_power_off, say, shutdown_s)
    return run.run()


@dataclass
class _Run:
    vcenter: VCenter
    plan: VmPlan
    tasks: Tasks
    consent: bool
    say: Say
    shutdown_s: float
    done: list[Change] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def run(self) -> Applied:
        changes = self._look()
        touched = [one.vm.ref for one in changes.vms if one.vm is not None]
        touched += [one.place.template.ref for one in changes.vms if one.place.template is not None]
        if self.tasks.settle([*touched, *_under_way(changes)]):
            changes = self._look()
        if any(one.vm is None for one in changes.vms):
            self._create(changes)
            lost = self._deploy(changes)
            if lost:
                self.tasks.settle(_under_way(changes))
            changes = self._look()
            there = {one.machine.name for one in changes.vms if one.vm is not None}
            self.failed.update({name: said for name, said in lost.items() if name not in there})
        self._change(changes)
        if self.done:
            self._left(self._look())
        failed = [f"{name}: {said}" for name, said in self.failed.items()]
        return Applied(
            done=tuple(self.done),
            refused=tuple(self.refused),
            failed=tuple(failed),
            notes=changes.notes,
        )

    def _look(self) -> Changes:
        changes = plan_changes(self.vcenter, self.plan)
        if changes.problems:
            raise PlanError(self.plan.name, changes.problems, self.plan)
        return changes

    def _create(self, changes: Changes) -> None:
        missing = [one for one in changes.vms if one.vm is None and one.place.item is None]
        jobs = [_creation(self.plan.name, one) for one in missing]
        self._do([(job, one.changes[:1]) for job, one in zip(jobs, missing, strict=True)])

    def _deploy(self, changes: Changes) -> dict[str, str]:
        """Deploy VMs from the items of libraries; return those of which no answer came."""
        missing = [one for one in changes.vms if one.vm is None and one.place.item is not None]
        if not missing:
            return {}
        with self.vcenter.rest() as rest:
            orders = [order(self.plan.name, one) for one in missing]
            ended = deploy(rest, self.tasks, orders)
        self.failed.update(ended.failed)
        for one in missing:
            name = one.machine.name
            said = ended.failed.get(name) or ended.lost.get(name)
            self.say(f"{name}: {said or 'deploy: done'}")
            self.done += one.changes[:1] if said is None else ()
        return dict(ended.lost)

    def _change(self, changes: Changes) -> None:
        """All steps after creation; a VM that fails one is left where it is."""
        there = [one for one in changes.vms if one.vm is not None]
        off = [one for one in there if self.consent and _to_be_off(one)]
        self._shut_down(off)
        self._do(
            [
                (Job(vm=one.machine.name, what="power off", start=_power_off(one)), ())
                for one in self._running(off)
            ]
        )
        allowed = [(one, self._allowed(one)) for one in there]
        self._step(allowed, "move", _move)
        self._step(allowed, "relocate", _relocate)
        moved = {"move", "relocate"} & {one.step for _, kept in allowed for one in kept}
        if off or moved:
            allowed = self._again(allowed)
        self._step(allowed, "reconfigure", _reconfigure)
        self._power(there, off)

    def _again(
        self, allowed: Sequence[tuple[VmChanges, list[Change]]]
    ) -> list[tuple[VmChanges, list[Change]]]:
        """What is left to reconfigure after earlier steps, on the VMs as these left them."""
        looked = plan_changes(self.vcenter, self.plan)
        if looked.problems:  # no reason to leave a VM powered off
            return list(allowed)
        now = {one.machine.name: one for one in looked.vms if one.vm is not None}
        left = []
        for one, changes in allowed:
            fresh = now.get(one.machine.name)
            wanted = {(change.attribute, change.wanted) for change in changes}
            if fresh is not None:
                kept = [one for one in fresh.changes if (one.attribute, one.wanted) in wanted]
                left.append((fresh, kept))
        return left

    def _allowed(self, one: VmChanges) -> list[Change]:
        """What may be done; the rest is said and left."""
        kept = []
        for change in one.changes:
            if change.power_off and not self.consent:
                self.refused.append(
                    f"{change.vm}: {change.attribute} {change.now} → {change.wanted} needs the VM "
                    "powered off; allow it with --power-off"
                )
            else:
                kept.append(change)
        return kept

    def _step(
        self,
        allowed: Sequence[tuple[VmChanges, list[Change]]],
        step: str,
        start: Callable[[VmChanges, list[Change]], Ref],
    ) -> None:
        work = [(one, [change for change in kept if change.step == step]) for one, kept in allowed]
        self._do(
            [
                (Job(vm=one.machine.name, what=step, start=_bound(start, one, wanted)), wanted)
                for one, wanted in work
                if wanted
            ]
        )

    def _power(self, there: Sequence[VmChanges], off: Sequence[VmChanges]) -> None:
        """Power on what is to run: what was off, and what was powered off for its edits."""
        stopped = {one.machine.name for one in off}
        jobs = []
        for one in there:
            wanted = one.machine.spec.power == "on"
            power = [change for change in one.of("power") if change.wanted == "on"]
            if wanted and (power or one.machine.name in stopped):
                job = Job(vm=one.machine.name, what="power on", start=_power_on(one))
                jobs.append((job, power))
        self._do(jobs)
        self.done += [
            change
            for one in off
            for change in one.of("power")
            if change.wanted == "off" and one.machine.name not in self.failed
        ]

    def _do(self, jobs: Sequence[tuple[Job, Sequence[Change]]]) -> None:
        """Run jobs of VMs that have not failed yet, and note what each of them did."""
        able = [(job, changes) for job, changes in jobs if job.vm not in self.failed]
        failed = self.tasks.run([job for job, _ in able])
        self.failed.update(failed)
        for job, changes in able:
            if job.vm in failed:
                self.say(f"{job.vm}: {failed[job.vm]}")
            else:
                self.done += changes
                self.say(f"{job.vm}: {job.what}: done")

    def _shut_down(self, off: Sequence[VmChanges]) -> None:
        """Ask the guests that have VMware Tools to shut down, and give them time for it."""
        asked = [one for one in off if self._tools(one)]
        for one in asked:
            assert one.vm is not None
            self.tasks.hook(f"shut down {one.machine.name}")
            self.vcenter.call(one.vm.ref.ShutdownGuest)
            self.say(f"{one.machine.name}: its guest was asked to shut down")
        end_s = time.monotonic() + self.shutdown_s
        while self._running(asked) and time.monotonic() < end_s:
            time.sleep(_SHUTDOWN_POLL_S)

    def _tools(self, one: VmChanges) -> bool:
        assert one.vm is not None
        rows = self.vcenter.read([one.vm.ref], ("guest.toolsRunningStatus",))
        return any(row.get("guest.toolsRunningStatus") == "guestToolsRunning" for _, row in rows)

    def _running(self, vms: Sequence[VmChanges]) -> list[VmChanges]:
        there = {one.vm.moid: one for one in vms if one.vm is not None}
        refs = [one.vm.ref for one in vms if one.vm is not None]
        states = self.vcenter.read(refs, ("runtime.powerState",))
        return [
            there[ref._GetMoId()]
            for ref, row in states
            if row.get("runtime.powerState") != "poweredOff"
        ]

    def _left(self, changes: Changes) -> None:
        """What the server did not take, although it said so."""
        for change in changes.changes:
            if change.vm not in self.failed and not (change.power_off and not self.consent):
                self.failed[change.vm] = (
                    f"{change.attribute} is still {change.now} and not {change.wanted}, although "
                    "the vCenter reported no failure"
                )


def _under_way(changes: Changes) -> list[Ref]:
    """What the tasks of a deployment are tasks of, where one may still go on."""
    return [
        ref
        for one in changes.vms
        if (one.vm is None and one.place.item is not None)
        or (one.vm is not None and is_unfinished(one.vm))
        for ref in (one.place.pool, one.place.folder)
    ]


def _to_be_off(one: VmChanges) -> bool:
    return one.vm is not None and any(change.power_off for change in one.changes)


def _bound(
    start: Callable[[VmChanges, list[Change]], Ref], one: VmChanges, changes: list[Change]
) -> Callable[[], Ref]:
    return lambda: start(one, changes)


def _power_off(one: VmChanges) -> Callable[[], Ref]:
    assert one.vm is not None
    return one.vm.ref.PowerOffVM_Task  # type: ignore[no-any-return]


def _power_on(one: VmChanges) -> Callable[[], Ref]:
    assert one.vm is not None
    return one.vm.ref.PowerOnVM_Task  # type: ignore[no-any-return]


def _reconfigure(one: VmChanges, changes: list[Change]) -> Ref:
    assert one.vm is not None
    spec = config_spec(changes)
    # Refused if somebody has changed the VM since it was looked at: devices would come twice.
    spec.changeVersion = one.vm.get("changeVersion")
    return one.vm.ref.ReconfigVM_Task(spec)


def _relocate(one: VmChanges, _: list[Change]) -> Ref:
    assert one.vm is not None
    place = one.place
    spec = vim.vm.RelocateSpec(pool=place.pool, host=place.pinned.ref if place.pinned else None)
    return one.vm.ref.RelocateVM_Task(spec)


def _move(one: VmChanges, _: list[Change]) -> Ref:
    assert one.vm is not None
    return one.place.folder.MoveIntoFolder_Task([one.vm.ref])


def _creation(plan: str, one: VmChanges) -> Job:
    """Clone the template, or make an empty VM; all but its marks is the next step's matter."""
    machine, place = one.machine, one.place
    instance = str(uuid.uuid4())
    marks = {MARK_PLAN: plan, MARK_VM: machine.name, MARK_INSTANCE: instance}
    config = vim.vm.ConfigSpec(
        instanceUuid=instance,
        extraConfig=[vim.option.OptionValue(key=key, value=value) for key, value in marks.items()],
    )
    template = place.template
    if template is not None:
        location = vim.vm.RelocateSpec(pool=place.pool, datastore=place.store.ref, host=one.host)
        spec = vim.vm.CloneSpec(location=location, config=config, powerOn=False, template=False)
        return Job(
            vm=machine.name,
            what="clone",
            start=lambda: template.ref.CloneVM_Task(
                folder=place.folder, name=machine.name, spec=spec
            ),
        )
    config.name, config.guestId = machine.name, machine.spec.guest_id
    config.files = vim.vm.FileInfo(vmPathName=f"[{place.store.name}]")
    config.numCPUs = machine.spec.cpus
    config.memoryMB = machine.spec.memory_gib * MIB_PER_GIB
    config.firmware = machine.spec.firmware
    return Job(
        vm=machine.name,
        what="create",
        start=lambda: place.folder.CreateVM_Task(config=config, pool=place.pool, host=one.host),
    )
