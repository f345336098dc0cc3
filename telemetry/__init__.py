"""What a stage takes from the machine: collectors, recorder, attribution, profile and report.

``telemetry.span("train")`` profiles a block of anybody's Python; ``telemetry.Session`` several.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from telemetry.session import Session, span

__all__ = ["Session", "span"]


def __getattr__(name: str) -> Any:
    """Import on first use: the recorder is a module of this package and has to stay small."""
    if name in __all__:
        from telemetry import session

        return getattr(session, name)
    raise AttributeError(f"module 'telemetry' has no attribute {name!r}")
