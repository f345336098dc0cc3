"""Whether a GPU was busy for this run, and what shows that it was for this run.

Where the driver does not tell the use of each process there is only that of all who used the GPU,
and some of them may be strangers. It counts where this run's processes held memory of that GPU or
the stage says itself that it copied to or from one.
"""

from __future__ import annotations

from collections.abc import Sequence

from telemetry.verdict_figures import Evidence, Figures, Lack
from telemetry.verdict_thresholds import limit

_RUN, _GPM, _ANY = "gpu_run_sm_percent", "gpm_graphics_util_percent", "gpu_util_percent"
_ALL, _HELD = "gpu_processes_sm_percent", "gpu_run_mem_bytes"
_SM = "gpm_sm_util_percent"
_BY_ALL = (
    (_GPM, "time in which anybody's work was on the GPU"),
    (_ANY, "time in which anybody's kernels were on the GPU"),
)
_COPIED = (
    ("app_host_to_device_bytes", "what the stage copied to a GPU"),
    ("app_device_to_host_bytes", "what the stage copied from a GPU"),
)


def busiest(figures: Figures) -> list[Evidence]:
    """Of the GPU that worked the most for this run its use (%), and what shows whose work it was.

    Empty where none worked at least ``gpu_busy`` for it. Raises Lack where none is known to have,
    and one of them cannot be judged.
    """
    entities = gpus(figures)
    found: list[list[Evidence]] = []
    lacks: list[str] = []
    for entity in entities:
        try:
            found.append(_busy(figures, entity, entities))
        except Lack as lack:
            lacks.append(str(lack))
    most = max(found, key=lambda told: told[0].value if told else 0.0, default=[])
    if lacks and not most:
        raise Lack(f"a GPU: {'; '.join(lacks)}")
    return most


def fullest_with_others(figures: Figures) -> list[Evidence]:
    """Of the GPU that this run shared with the most of others' work, what all and it used (%).

    Empty where the driver does not tell the use of each process, or none was full of both.
    """
    found = []
    for entity in gpus(figures):
        everybody = figures.get(entity, _ALL, "mean", "time in which any process had work on it")
        own = figures.get(entity, _RUN, "mean", "that of this run's processes")
        if everybody is None or own is None or everybody.value < limit("gpu_busy"):
            continue
        if min(own.value, everybody.value - own.value) >= limit("gpu_of_each"):
            found.append([everybody, own])
    return max(found, key=lambda told: told[0].value - told[1].value, default=[])


def fullness(figures: Figures, entity: str) -> Evidence | None:
    """What share of a GPU's multiprocessors worked (%), by whoever's work; where GPM tells it."""
    return figures.get(entity, _SM, "mean", "multiprocessors that worked, for anybody")


def gpus(figures: Figures) -> list[str]:
    """The GPUs and MIG instances; without a card whose other instances may be anybody's."""
    entities = sorted({entity for entity, _ in figures.rows if entity.startswith("gpu:")})
    shared = {entity.partition("/")[0] for entity in entities if "/" in entity}
    return [entity for entity in entities if entity not in shared]


def _busy(figures: Figures, entity: str, entities: Sequence[str]) -> list[Evidence]:
    """The use of a busy GPU and whose it was; empty where it was not busy for this run."""
    own = figures.get(entity, _RUN, "mean", "time in which this run's processes worked on the GPU")
    if own is not None:
        return [own] if own.value >= limit("gpu_busy") else []
    use = _use_by_all(figures, entity)
    if use.value < limit("gpu_busy"):
        return []
    shown = _own_use(figures, entity, entities)
    if shown is None and figures.get(entity, _HELD, "max") is None:
        raise Lack(
            f"{entity} worked for {use.value:.0f} % of its time, and whose work that was is not "
            f"known: {figures.why_not(entity, _HELD, 'max')}"
        )
    return [] if shown is None else [use, shown]


def _use_by_all(figures: Figures, entity: str) -> Evidence:
    """How busy all who used it kept a GPU: by GPM, else by kernels being there."""
    for metric, says in _BY_ALL:
        one = figures.get(entity, metric, "mean", says)
        if one is not None:
            return one
    order = (_GPM, _ANY, _RUN) if "/" in entity else (_ANY, _GPM, _RUN)  # an instance has its GPM
    asked = (one for one in order if (entity, one) in figures.rows)
    metric = next(asked, _ANY)
    raise Lack(f"how busy {entity} was is not known: {figures.why_not(entity, metric, 'mean')}")


def _own_use(figures: Figures, entity: str, entities: Sequence[str]) -> Evidence | None:
    """What shows that this run used a GPU. What the stage copied does not say to which one: it
    counts for each, unless the run's memory is known to lie on another."""
    held = {
        one: got
        for one in entities
        if (got := figures.get(one, _HELD, "max", "memory that this run's processes held there"))
        and got.value > 0
    }
    if held:
        return held.get(entity)
    copied = (figures.get("app", metric, "total", says) for metric, says in _COPIED)
    return next((one for one in copied if one is not None and one.value > 0), None)
