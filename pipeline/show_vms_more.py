"""What people see of the linter's findings and of an inventory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from pipeline.console import print_rows

if TYPE_CHECKING:
    from infra.vms.finding import Finding
    from infra.vms.inventory import Inventory

_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold"}


def show_findings(console: Console, found: Sequence[Finding]) -> None:
    """One block for each finding, the gravest first, and how many there are."""
    for one in found:
        where = f"{one.vm} on {one.host}" if one.host else one.vm
        console.print(one.severity, style=_STYLES[one.severity], end=" ")
        console.print(f"{where}: {one.setting}  [{one.rule}]", highlight=False)
        for name, text in (
            ("is", one.value),
            ("wanted", one.wanted),
            ("why", one.why),
            ("fix", one.fix),
        ):
            console.print(f"  {name:7}{text}", highlight=False)
    counts = ", ".join(
        f"{many} {severity}{'' if many == 1 else 's'}"
        for severity in _STYLES
        if (many := sum(one.severity == severity for one in found))
    )
    console.print(counts or "nothing found", highlight=False)


def show_inventory(console: Console, made: Inventory) -> None:
    """Tables and lines to copy."""
    print_rows(
        console,
        "VMs with a role",
        ("VM", "role", "address", "user", "vCPUs", "GiB", "GPUs"),
        [
            (
                one.vm,
                one.role,
                one.address,
                one.user,
                str(one.cpus),
                str(one.memory_gib),
                str(one.gpus),
            )
            for one in made.members
        ],
    )
    if made.dask is not None:
        _lines(
            console,
            "Dask",
            [
                f"cluster.scheduler = {made.dask.scheduler}",
                f"hosts file: {' '.join(made.dask.hosts)}",
                made.dask.ssh,
                *(f"{vm}: {line}" for vm, line in made.dask.commands.items()),
                made.dask.run,
            ],
        )
    if made.torchrun is not None:
        lines = [f"{vm}: {line}" for vm, line in made.torchrun.commands.items()]
        _lines(console, "torchrun", lines)
    for note in made.notes:
        console.print(f"note: {note}", highlight=False, style="dim", soft_wrap=True)


def _lines(console: Console, title: str, lines: Sequence[str]) -> None:
    console.print(title, style="bold")
    for line in lines:  # not broken, so that they can be copied
        console.print(f"  {line}", highlight=False, soft_wrap=True)
