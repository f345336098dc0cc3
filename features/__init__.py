"""The features room. It has Feast as it is written, without a check of every call's types.

Feast marks its classes for typeguard, which then reads the source of each and compiles it anew
whenever Feast is imported: three fifths of the CPU time that a stage takes before it works
(docs/decisions.md has the figures). Who else uses typeguard in this process has it as it was.
"""

from __future__ import annotations

from typing import Any

import typeguard

_checked = typeguard.typechecked


def _checked_but_for_feast(target: Any = None, **options: Any) -> Any:
    if str(getattr(target, "__module__", "")).partition(".")[0] == "feast":
        return target
    return _checked(target, **options)


typeguard.typechecked = _checked_but_for_feast
