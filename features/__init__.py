"""The features room. It has Feast as it is written, without a check of every call's types.

Feast marks its classes for typeguard, which then reads the source of each and compiles it anew
whenever Feast is imported: nearly half of the CPU time that this takes (docs/benchmarks.md).
Whoever else uses typeguard in this process has it as it was.
"""

from __future__ import annotations

from typing import Any

import typeguard

_MARK = "but_for_feast"


def _but_for_feast(checked: Any) -> Any:
    def typechecked(target: Any = None, **options: Any) -> Any:
        if str(getattr(target, "__module__", "")).partition(".")[0] == "feast":
            return target
        return checked(target, **options)

    setattr(typechecked, _MARK, True)
    return typechecked


if not hasattr(typeguard.typechecked, _MARK):  # this module may be loaded again
    typeguard.typechecked = _but_for_feast(typeguard.typechecked)
