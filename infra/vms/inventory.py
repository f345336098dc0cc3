"""Who is who among a plan's VMs: what Dask and torchrun are told to run on them together."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from infra.vms.cloudinit import CHECKOUT
from infra.vms.spec import Machine, VmPlan

DASK_PORT = 8786
"""Dask's own default port of a scheduler."""
RENDEZVOUS_PORT = 29500
"""torchrun's own default port."""
HOSTS_FILE = "dask-hosts.txt"


@dataclass(frozen=True, kw_only=True)
class Member:
    """One VM."""

    vm: str
    role: str
    address: str
    """Its static address, else its name, which the name service must know."""
    user: str
    cpus: int
    memory_gib: int
    gpus: int


@dataclass(frozen=True, kw_only=True)
class Dask:
    """A Dask cluster over SSH."""

    scheduler: str
    """The value of the recipe's ``cluster.scheduler``."""
    hosts: tuple[str, ...]
    """Lines of the hosts file: the workers' addresses."""
    ssh: str
    """Starts scheduler and workers from one machine (needs paramiko there)."""
    commands: dict[str, str]
    """The same by hand: what to run on which VM."""
    run: str


@dataclass(frozen=True, kw_only=True)
class Torchrun:
    """Training over several VMs."""

    nnodes: int
    nproc_per_node: int
    endpoint: str
    commands: dict[str, str]
    """What to run on which VM."""


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What a plan's VMs are to each other."""

    members: tuple[Member, ...]
    dask: Dask | None
    torchrun: Torchrun | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def inventory(plan: VmPlan, script: str = "train.py") -> Inventory:
    """The inventory of a plan; ``script``: what torchrun starts. Raises ValueError."""
    members = tuple(_member(one) for one in plan.machines() if one.spec.guest.role)
    if not members:
        raise ValueError(
            f"plan {plan.name}: no VM has a role; set guest = {{ role = 'runner' }}, "
            "'dask-worker' or 'torchrun' in its table"
        )
    workers = [one for one in members if one.role == "dask-worker"]
    trainers = [one for one in members if one.role == "torchrun"]
    _check_alike(trainers)
    return Inventory(
        members=members,
        dask=_dask(members, workers) if workers else None,
        torchrun=_torchrun(plan.name, trainers, script) if trainers else None,
        notes=tuple(_notes(members, bool(workers))),
    )


def _member(machine: Machine) -> Member:
    spec = machine.spec
    return Member(
        vm=machine.name,
        role=spec.guest.role,
        address=machine.address.partition("/")[0] or machine.name,
        user=spec.guest.user,
        cpus=spec.cpus,
        memory_gib=spec.memory_gib,
        gpus=spec.gpu_count,
    )


def _check_alike(trainers: Sequence[Member]) -> None:
    counts = {max(1, one.gpus) for one in trainers}
    if len(counts) > 1:
        said = ", ".join(f"{one.vm} {one.gpus}" for one in trainers)
        raise ValueError(
            f"torchrun starts as many processes on each VM, but they have unlike GPUs ({said}): "
            "plan them alike"
        )


def _dask(members: Sequence[Member], workers: Sequence[Member]) -> Dask:
    head = next((one for one in members if one.role == "runner"), workers[0])
    scheduler = f"tcp://{_in_url(head.address)}:{DASK_PORT}"
    small = min(workers, key=lambda one: (one.cpus, one.memory_gib))
    python = f"/home/{head.user}/{CHECKOUT}/.venv/bin/python"
    ssh = [
        *("dask", "ssh", "--scheduler", head.address, "--scheduler-port", str(DASK_PORT)),
        *("--hostfile", HOSTS_FILE, "--ssh-username", head.user, "--remote-python", python),
        *("--nworkers", str(small.cpus), "--nthreads", "1"),
        *("--memory-limit", _limit(small, small.cpus)),
    ]
    commands = {head.vm: f"{python} -m distributed.cli.dask_scheduler --port {DASK_PORT}"}
    for one in workers:
        line = f"{_worker_python(one)} -m distributed.cli.dask_worker {scheduler} "
        line += f"--nworkers {one.cpus} --nthreads 1 --memory-limit {_limit(one, one.cpus)}"
        commands[one.vm] = f"{commands[one.vm]} & {line}" if one.vm in commands else line
    return Dask(
        scheduler=scheduler,
        hosts=tuple(one.address for one in workers),
        ssh=shlex.join(ssh),
        commands=commands,
        run=f"stagescope run --set cluster.scheduler={scheduler}",
    )


def _worker_python(member: Member) -> str:
    return f"/home/{member.user}/{CHECKOUT}/.venv/bin/python"


def _limit(member: Member, workers: int) -> str:
    """Memory of one worker: the VM's, less an eighth for the guest itself, shared out evenly."""
    return f"{member.memory_gib * 1024 * 7 // 8 // workers}MiB"


def _torchrun(plan: str, trainers: Sequence[Member], script: str) -> Torchrun:
    endpoint = f"{_in_url(trainers[0].address)}:{RENDEZVOUS_PORT}"
    each = max(1, trainers[0].gpus)
    commands = {}
    for rank, one in enumerate(trainers):
        words = [
            *(f"/home/{one.user}/{CHECKOUT}/.venv/bin/torchrun",),
            *(f"--nnodes={len(trainers)}", f"--nproc-per-node={each}", f"--node-rank={rank}"),
            *("--rdzv-backend=static", f"--rdzv-id={plan}", f"--rdzv-endpoint={endpoint}"),
        ]
        commands[one.vm] = f"{shlex.join(words)} {script}"
    return Torchrun(nnodes=len(trainers), nproc_per_node=each, endpoint=endpoint, commands=commands)


def _in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _notes(members: Sequence[Member], with_dask: bool) -> list[str]:
    notes = []
    by_name = [one.vm for one in members if one.address == one.vm]
    if by_name:
        notes.append(
            f"{', '.join(by_name)}: by DHCP, so named and not numbered: the name service must know "
            "them, or give guest.addresses"
        )
    if with_dask:
        notes.append(
            "workers read and write the run's files by path: put the folder of the runs on storage "
            "that all VMs have under the same path"
        )
        if len({one.user for one in members if one.role in {"runner", "dask-worker"}}) > 1:
            notes.append("dask ssh logs in everywhere as one user: give the VMs the same one")
    return notes
