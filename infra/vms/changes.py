"""Changes of VMs as values: shown by ``plan``, gathered and made by ``apply``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pyVmomi import vim

from infra.vms.devices import MakeSpecs, device_specs
from infra.vms.estate import Ref, VmState
from infra.vms.place import Place
from infra.vms.spec import Machine

Step = Literal["create", "relocate", "move", "reconfigure", "power"]
"""Which task makes a change."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One attribute of one VM that is not as planned."""

    vm: str
    attribute: str
    now: str | None
    """None: not there."""
    wanted: str | None
    """None: taken away."""
    power_off: bool = False
    """The VM runs, and has to be powered off for it."""
    step: Step = "reconfigure"
    write: Callable[[Any], None] | None = field(default=None, repr=False, compare=False)
    make: MakeSpecs | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        names = ("vm", "attribute", "now", "wanted", "power_off")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class VmChanges:
    """One VM of the plan: where it goes, what is there, what would change."""

    machine: Machine
    place: Place
    vm: VmState | None
    changes: tuple[Change, ...]
    host: Ref = field(default=None, repr=False, compare=False)
    """Where it is to be made; None: DRS chooses."""

    def of(self, *steps: Step) -> list[Change]:
        return [change for change in self.changes if change.step in steps]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """All that a plan would change. With problems, nothing may be applied."""

    plan: str
    vms: tuple[VmChanges, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def changes(self) -> list[Change]:
        return [change for vm in self.vms for change in vm.changes]

    @property
    def empty(self) -> bool:
        return not self.changes and not self.problems

    def to_json(self) -> dict[str, Any]:
        return {
            "plan": self.plan,
            "changes": [change.to_json() for change in self.changes],
            "problems": list(self.problems),
            "notes": list(self.notes),
        }


def config_spec(changes: Sequence[Change]) -> Any:
    """One reconfiguration that makes all of these changes."""
    spec = vim.vm.ConfigSpec()
    for change in changes:
        if change.write is not None:
            change.write(spec)
    spec.deviceChange = device_specs([one.make for one in changes if one.make is not None])
    return spec
