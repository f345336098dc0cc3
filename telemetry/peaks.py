"""The largest memory that any one process of a stage had, where sampling came too early to see it.

``mem_peak_rss_bytes`` is read about once a second, so of a stage of half a second it may have been
read before its imports. What the kernel tells whoever waited for the stage (``max_rss_bytes`` of
its rusage) comes at its very end. But Linux carries the largest memory of whoever started a program
over to it: of a stage that needs less than that, it says what the runner had needed. So it counts
only where it is above the runner's own peak, and then some stage process did have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from telemetry.profile import Row

PEAK = "mem_peak_rss_bytes"
ABOVE_RUNNER = 1.05
"""The two are counted in batches per CPU and read at two times: closer ones cannot be told apart.
"""


def with_peaks(rows: Iterable[Row], run: Mapping[str, Any]) -> Iterator[Row]:
    """All rows, with ``max`` of a stage's ``mem_peak_rss_bytes`` at least what its rusage proves.

    The other figures stay as sampled: they say when it was how large. Nothing is lowered, and a
    row without samples stays empty.
    """
    found = list(rows)
    runner = {row.stage: row.max for row in found if (row.entity, row.metric) == ("runner", PEAK)}
    ended = {stage["name"]: peak_at_exit(stage, runner) for stage in run["stages"]}
    for row in found:
        peak_bytes = ended.get(row.stage) if (row.entity, row.metric) == ("stage", PEAK) else None
        if peak_bytes is not None and row.max is not None and peak_bytes > row.max:
            yield replace(row, max=peak_bytes)
        else:
            yield row


def peak_at_exit(
    stage: Mapping[str, Any], runner_peak_bytes: Mapping[str, float | None]
) -> float | None:
    """What rusage proves of a stage's largest process; None where it may be the runner's memory.

    ``runner_peak_bytes``: by stage, the runner's peak until then.
    """
    told = (stage.get("rusage") or {}).get("max_rss_bytes")
    runner = runner_peak_bytes.get(stage["name"])
    if told is None or runner is None or told <= ABOVE_RUNNER * runner:
        return None
    return float(told)
