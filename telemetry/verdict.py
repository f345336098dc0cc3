"""What held each stage back: one verdict, the rule that decided, and the figures it rests on.

The rules are few and ordered (``verdict_rules``); the first that holds decides, the others that
hold are told beside it. Where a figure is missing, the rule is not judged and that is said; without
the ones that every rule rests on there is no verdict. ``docs/verdicts.md`` says the rules to
people, with the same tables as here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from telemetry.profile import Profile
from telemetry.verdict_figures import (
    CPU,
    DISK_WAITS,
    PACED,
    READY,
    Evidence,
    Figures,
    Finding,
    Lack,
    percent,
)
from telemetry.verdict_io import io_account
from telemetry.verdict_rules import BESIDE, RULES, Rule
from telemetry.verdict_thresholds import THRESHOLDS, limit

Verdict = dict[str, Any]
_WEAKER = {
    "data": {"cpu-one", "cpu-some", "idle", "disk-machine", "network"},
    "cpu": {"cpu-all", "cpu-one", "cpu-some"},
    "disk": {"disk-machine"},
    "cluster": {"disk-machine", "network"},
    "network": {"idle"},
}
"""What only says the verdict's own figures again in other words is not told beside it."""


def verdicts(profile: Profile, run: Mapping[str, Any]) -> list[Verdict]:
    """One verdict for each measured stage of ``run`` (``run.json``), in its order."""
    flags = (profile.hypervisor or {}).get("contention") or ()
    asked, usable = _names_vcenter(run), (run.get("environment") or {}).get("cpu_usable")
    return [
        _judge(
            Figures.of(
                profile,
                stage,
                [one for one in flags if one["stage"] == stage["name"]],
                asked_vcenter=asked,
                cpus_usable=usable,
            )
        )
        for stage in run["stages"]
        if stage.get("start_ns") is not None and stage.get("end_ns") is not None
    ]


def _names_vcenter(run: Mapping[str, Any]) -> bool:
    settings = run.get("vcenter") or (run.get("recipe") or {}).get("vcenter") or {}
    return bool(settings.get("host"))


def _judge(figures: Figures) -> Verdict:
    missing = _base_missing(figures)
    found: list[tuple[Rule, Finding]] = []
    if not missing:
        for rule in (*RULES, *BESIDE):
            try:
                finding = rule.holds(figures)
            except Lack as lack:
                missing.append(str(lack))
                continue
            if finding is not None:
                found.append((rule, finding))
        missing = list(dict.fromkeys(missing))
        verdict = _mixed(figures) if not found or found[0][0] in BESIDE else None
    else:
        verdict = _unknown(missing)
    told: Verdict = {"stage": figures.stage}
    if verdict is None:
        (rule, finding), *found = found
        paced, by_the_clock = _pace(figures)
        told |= {"verdict": rule.verdict, "rule": rule.id}
        told["sentence"] = finding.sentence + by_the_clock
        told["evidence"] = _evidence([*finding.evidence, paced])
        found = [one for one in found if not _says_again(rule.id, one[0].id)]
    else:
        told |= verdict
    told["also"] = [
        {"verdict": rule.verdict, "rule": rule.id, "sentence": finding.sentence}
        for rule, finding in found
    ]
    if figures.unwatched is not None:
        missing.append(f"what {figures.unwatched} did, to whom its work went: nobody watched them")
    told["missing"] = missing
    told["io"] = io_account(figures)
    return told


def _pace(figures: Figures) -> tuple[Evidence | None, str]:
    """What a stage says of a load that comes by a timetable, if that was most of its time."""
    paced = figures.get("app", PACED, "mean", "share of time in which its load came by a timetable")
    if paced is None or paced.value < limit("most_of_the_time"):
        return None, ""
    share = percent(min(1.0, paced.value))
    return paced, f"; for {share} of its time its load came by a timetable, which nothing shortens"


_OF_OTHERS = {"steal", "vm-limit", "hypervisor", "neighbour", "gpu-neighbour"}
"""Rules by which a CPU was wanted and not given: that it was wanted says nothing more."""


def _says_again(rule: str, other: str) -> bool:
    if other == "disk-share" and rule in {"disk-read", "disk-write", "data-storage"}:
        return True
    return other in _WEAKER.get(rule.partition("-")[0], ()) or (
        other in _WEAKER["cpu"] and rule in _OF_OTHERS
    ) or (rule == "disk-machine" and other in {"network", "idle"})  # fmt: skip


def _evidence(found: Iterable[Evidence | None]) -> list[dict[str, Any]]:
    """Each figure once, in order."""
    known = {(one.entity, one.metric, one.figure): one for one in found if one is not None}
    return [one.to_json() for one in known.values()]


def _base_missing(figures: Figures) -> list[str]:
    """What keeps any rule from being judged."""
    if figures.seconds < limit("shortest_s"):
        return [f"the stage took {figures.seconds:.2f} s, and from {limit('shortest_s'):g} s on it "
                "has samples enough to tell"]  # fmt: skip
    reasons = {
        metric: figures.why_not("stage", metric, "mean")
        for metric in (CPU, READY, DISK_WAITS)
        if figures.get("stage", metric, "mean") is None
    }
    return [why if metric in why else f"{metric}: {why}" for metric, why in reasons.items()]


def _unknown(missing: Iterable[str]) -> Verdict:
    why = "; ".join(missing)
    return {"verdict": "unknown", "rule": "missing", "evidence": [],
            "sentence": f"what held it back is not known: {why}"}  # fmt: skip


def _mixed(figures: Figures) -> Verdict:
    read, write = figures.storage()
    little = read is not None and write is not None and (
        read.value + write.value < limit("storage_bytes_per_s")
    )  # fmt: skip
    hidden = ""
    if little and figures.disk_waits >= limit("most_of_the_time"):
        hidden = "; no storage moved for it meanwhile: FUSE, a network file system or a driver " \
            "keeps a process waiting in the same way"  # fmt: skip
    return {
        "verdict": "unknown",
        "rule": "mixed",
        "sentence": "nothing took most of its time: "
        f"{figures.cores:.2f} CPUs in use, {figures.disk_waits:.2f} processes waiting for a disk, "
        f"asleep for {percent(figures.asleep)}{hidden}",
        "evidence": _evidence(figures.base()),
    }


def table() -> Iterator[str]:
    """The rules and their thresholds as the two tables of ``docs/verdicts.md``."""
    yield "| | verdict | rule | holds where |"
    yield "|---|---|---|---|"
    for number, rule in enumerate(RULES, 1):
        yield f"| {number} | {rule.verdict} | `{rule.id}` | {rule.asks} |"
    for rule in BESIDE:
        yield f"| beside | {rule.verdict} | `{rule.id}` | {rule.asks} |"
    yield ""
    yield "| threshold | value | of | from |"
    yield "|---|---|---|---|"
    for one in THRESHOLDS.values():
        yield f"| `{one.name}` | {one.value:,.10g} {one.unit} | {one.of} | {one.source} |"
