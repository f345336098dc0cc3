"""Why a stage takes another time there: the resource that its own metrics point to, and what of
the environment would explain it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import log
from typing import Any

from telemetry.compared import Compared, Rule
from telemetry.publish import differ, flatten
from telemetry.reference import Entry, Reference, StageEntries
from telemetry.witness import POINTS_TO, Witness, witnesses


@dataclass(frozen=True, kw_only=True)
class EnvironmentDifference:
    """A key of the environment that was not alike in all runs of both sides.

    ``a``, ``b``: the value of a side, None where it has none; what occurred, in words and with the
    number of runs, where its own runs were not alike.
    """

    key: str
    a: Any
    b: Any

    def sentence(self) -> str:
        return f"{self.key}: {_said(self.a)} in A, {_said(self.b)} in B"


@dataclass(frozen=True, kw_only=True)
class Resource:
    """``witnesses``: patterns of "entity metric" that grow where this resource holds a stage back;
    ``environment``: patterns of keys of the environment that would change it; ``effects``: those of
    the other resources' witnesses that it makes grow as well, and that then say nothing more.
    """

    name: str
    witnesses: str
    environment: str
    effects: str = r"(?!)"


RESOURCES = (
    Resource(
        name="amount of data",
        witnesses=r"data (rows_in|rows_out|bytes_in|bytes_out)",
        environment=r"(?!)",
    ),
    Resource(
        name="CPU quota",
        witnesses=r"(cgroup|stage) cgroup_cpu_throttled_seconds",
        environment=r"cgroup\.cpu_quota_cores",
        effects=r"machine psi_cpu_.*",  # a task that is held back waits for a CPU, says the kernel
    ),
    Resource(
        name="waiting for a CPU",
        witnesses=r"machine (psi_cpu_some_seconds|cpu_steal_seconds)"
        r"|vm:[^ ]+ vm_cpu_(ready|maxlimited|costop|latency)_percent",
        environment=r"cpu_usable|cpu\.count|cgroup\.cpu_quota_cores"
        r"|placement\.vms\.\d+\.(vcpus|host_cores)",
    ),
    Resource(
        name="memory",
        witnesses=r"machine psi_memory_(some|full)_seconds|stage (page_faults_major|mem_swap_bytes)"
        r"|vm:[^ ]+ vm_mem_(ballooned_bytes|swap_in_bytes_per_s|latency_percent)",
        environment=r"memory_total_bytes|cgroup\.memory_limit_bytes"
        r"|placement\.vms\.\d+\.memory_bytes",
    ),
    Resource(
        name="disk",
        witnesses=r"machine (psi_io_(some|full)_seconds|cpu_iowait_seconds)"
        r"|disk:[^ ]+ disk_(read_wait|write_wait|busy)_seconds|stage io_read_bytes"
        r"|vm:[^ ]+ vm_disk_.*latency.*",
        environment=r"placement\.(datastores|vms\.\d+\.datastores).*|kernel"
        r"|cgroup\.(read|write)_limit_bytes_per_s",
    ),
    Resource(
        name="GPU clock or power",
        witnesses=r"gpu:[^ ]+ gpu_thrott.*",
        environment=r"gpu\..*(name|power_limit_w|driver_version)",
    ),
    Resource(
        name="network",
        witnesses=r"vm:[^ ]+ vm_net_dropped_.*",
        environment=r"placement\.(vm|esxi_host)",
    ),
    Resource(
        name="CPU speed",
        witnesses=r"machine cpu_loop_us in the whole runs",
        environment=r"cpu\.model|python|placement\.(esxi_host"
        r"|vms\.\d+\.(host_cpu_mhz|host_power_policy|esxi_version))",
    ),
    Resource(
        name="CPU speed or work per CPU",
        witnesses=r"stage cpu_(busy|user|system)_seconds",
        environment=r"cpu\.model|kernel|python|packages\..*|distribution|stagescope"
        r"|placement\.vms\.\d+\.(host_cpu_mhz|host_power_policy|esxi_version)|gpu\..*",
    ),
)
"""From the particular to the general: beside an earlier one the last is an effect."""
_CPU_SPEED = "CPU speed"
LOOP = ("machine", "cpu_loop_us", "mean")
_ALL = "|".join(one.witnesses for one in RESOURCES)


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Of a stage that differs: resources that it points to, evidence and explaining differences."""

    stage: str
    resources: tuple[str, ...]
    evidence: tuple[str, ...]
    environment: tuple[EnvironmentDifference, ...]
    sentence: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def environment_differences(a: Reference, b: Reference) -> list[EnvironmentDifference]:
    """All keys that were not alike in all runs of both, but for the names of the machines."""
    one, two = _occurred(a), _occurred(b)
    found = []
    for key in dict.fromkeys([*one, *two]):
        of_a, of_b = one.get(key, [None]), two.get(key, [None])
        if differ([*of_a, *of_b]) and not key.endswith(("placement.host", "reason")):
            found.append(EnvironmentDifference(key=key, a=_together(of_a), b=_together(of_b)))
    return found


def _occurred(side: Reference) -> dict[str, Sequence[Any]]:
    """The values of each key: that of all runs, or one for each where they were not alike."""
    alike = {**dict(flatten(side.environment)), "stagescope": side.stagescope}
    return {**{key: [value] for key, value in alike.items()}, **side.varied}


def _together(values: Sequence[Any]) -> Any:
    if not differ(values):
        return values[0]
    counted = Counter(map(_said, values)).most_common()
    told = [f"{value} ({many} run{'' if many == 1 else 's'})" for value, many in counted[:3]]
    more = f" and {len(counted) - 3} more" if len(counted) > 3 else ""
    return f"{' and '.join(told)}{more}"


def explain(
    time: Compared,
    a: Reference,
    b: Reference,
    environment: Sequence[EnvironmentDifference],
    rule_of: Callable[[Entry], Rule],
) -> Explanation:
    """Why this stage's time differs. ``a``, ``b``: both sides, which have the stage.

    Witnesses that stand out among the stage's own first; without any, what comes near is a hint.
    """
    speeds = cpu_speeds(a, b)
    one, two = (
        side.by_stage[time.stage].with_entry(speed)
        for side, speed in zip((a, b), speeds, strict=True)
    )
    seen = witnesses(time, one, two, _ALL, rule_of)
    near = [one for one in seen if one.chance <= POINTS_TO]
    sure = [one for one in near if one.adjusted <= POINTS_TO]
    hints = not sure
    found = _by_resource(near if hints else [*sure, *_causes(near, sure)])
    names = [one for one in found if one != RESOURCES[-1].name or _says_more(found)]
    patterns = [one.environment for one in RESOURCES if not names or one.name in names]
    fitting = [d for d in environment if any(re.fullmatch(one, d.key) for one in patterns)]
    evidence = [one.short() for name in names for one in found[name][:3]]
    if names == [RESOURCES[-1].name]:
        evidence += _alike(*speeds)
    return Explanation(
        stage=time.stage,
        resources=tuple(names),
        evidence=tuple(evidence),
        environment=tuple(fitting),
        sentence=_sentence(time, names, evidence, fitting, hints=hints),
    )


def _causes(near: Sequence[Witness], sure: Sequence[Witness]) -> list[Witness]:
    """Of what comes near, that whose effect is sure."""
    return [
        one
        for one in near
        for resource in RESOURCES
        if one not in sure
        and re.fullmatch(resource.witnesses, one.key)
        and any(re.fullmatch(resource.effects, effect.key) for effect in sure)
    ]


def _by_resource(moved: Sequence[Witness]) -> dict[str, list[Witness]]:
    """Resources with their witnesses, less those that are the effect of another resource."""
    found: dict[str, list[Witness]] = {}
    left = list(moved)
    for resource in RESOURCES:
        mine = [one for one in left if re.fullmatch(resource.witnesses, one.key)]
        if mine:
            found[resource.name] = sorted(mine, key=lambda one: one.chance)
            left = [one for one in left if not re.fullmatch(resource.effects, one.key)]
    return found


def _says_more(found: Mapping[str, Sequence[Witness]]) -> bool:
    """Whether the last resource, the stage's CPU time, is more than an effect of the others.

    A CPU that was slower is not the whole reason where the work on it took longer by more than the
    loop did, which suffers most of all.
    """
    others = found.keys() - {RESOURCES[-1].name}
    if others != {_CPU_SPEED}:
        return not others
    loop = found[_CPU_SPEED][0]
    return any(
        abs(log(one.b / one.a)) > abs(log(loop.b / loop.a))
        for one in found.get(RESOURCES[-1].name, ())
        if one.a > 0 and one.b > 0
    )


def cpu_speeds(a: Reference, b: Reference) -> tuple[Entry | None, Entry | None]:
    """The fixed loop's time in each whole run of both sides; None where nothing can be told.

    It is looked at once a second on one CPU, and neighbours come and go in ten seconds: a stage of
    a few seconds alone says too little. Only stages that have it in every run of both sides count,
    and each with its length in A: so the runs differ by the loop, and not by what they consist of.
    """
    lengths = {
        stage.name: stage.duration.median
        for stage in a.stages
        if all(_is_whole(side.by_stage.get(stage.name)) for side in (a, b))
    }
    together_s = sum(lengths.values())
    if not together_s:
        return None, None

    def of(side: Reference) -> Entry:
        loops = {name: side.by_stage[name].by_key[LOOP] for name in lengths}
        values = tuple(
            sum(length * (loops[name].values[run] or 0.0) for name, length in lengths.items())
            / together_s
            for run in range(side.runs)
        )
        first = next(iter(loops.values()))
        return replace(first, metric=f"{LOOP[1]} in the whole runs", values=values)

    return of(a), of(b)


def _is_whole(stage: StageEntries | None) -> bool:
    return stage is not None and LOOP in stage.by_key and None not in stage.by_key[LOOP].values


def _alike(a: Entry | None, b: Entry | None) -> list[str]:
    """How fast the CPU itself was, where the work is all that grew: it tells the two apart."""
    if a is None or b is None:
        return []
    return [f"while a fixed loop took {a.median:,.4g} → {b.median:,.4g} {a.unit}"]


def _sentence(
    time: Compared,
    names: Sequence[str],
    evidence: Sequence[str],
    fitting: Sequence[EnvironmentDifference],
    *,
    hints: bool,
) -> str:
    parts = [time.short()]
    if names:
        verb = "no metric differs beyond doubt, but it hints at" if hints else "it points to"
        parts.append(f"{verb} {', '.join(names)} ({'; '.join(evidence)})")
    else:
        parts.append("none of the figures that were asked stands out")
    if fitting:
        told = "; ".join(one.sentence() for one in fitting[:4])
        more = f" and {len(fitting) - 4} more" if len(fitting) > 4 else ""
        parts.append(f"the environments differ where it would explain that: {told}{more}")
    else:
        parts.append("nothing known of the environments explains it")
    return ". ".join(part[0].upper() + part[1:] for part in parts) + "."


def _said(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
