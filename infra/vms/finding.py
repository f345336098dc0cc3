"""What a rule finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""error: it does not power on, or its GPU does not work; warning: it runs worse; note: look."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it should be."""

    vm: str
    """The VM; for what concerns a host as a whole, the VMs of it that matter."""
    host: str | None
    rule: str
    setting: str
    """As vSphere calls it."""
    value: str
    wanted: str
    why: str
    fix: str
    severity: Severity
    source: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a rule says; the table adds whose rule it is."""

    setting: str
    value: object
    wanted: object
    why: str
    severity: Severity
    change: str = ""
    """What ``apply`` changes to mend it, as ``plan`` says it; empty: it cannot."""
    power_off: bool = True
    """That change waits for the VM to be off."""
    fix: str = ""
    """What to do where ``apply`` cannot."""
