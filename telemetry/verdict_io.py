"""Where a stage's bytes came from: what was asked for, and what storage, guest and host saw of it.

Four witnesses, each further away: the calls of the stage's processes, what the kernel says that
storage did for them, the guest's block devices, the hypervisor's virtual disks. The last two see
everybody's bytes. What the calls asked for and storage did not deliver came from the page cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from telemetry.profile import WHOLE
from telemetry.verdict_figures import Figures
from telemetry.verdict_thresholds import limit
from telemetry.verdict_vm import over_hosts, why_unseen

FROM_CACHE, FROM_STORAGE = 0.2, 0.8
"""StageScope's own choice: up to a fifth from storage is the cache's, from four fifths storage's;
read-ahead and pages that were still there blur both ends."""
_NOT_STORAGE = (
    "from the page cache, from other programs through pipes, or from a file system that tells the "
    "kernel of no storage (FUSE, 9p)"
)
_MB = 1e6

Account = dict[str, Any]
Moved = float | str
"""What a device moved, B; or why that is not known."""


def io_account(figures: Figures) -> Account:
    """The source of what was read, in a sentence, and what each witness saw."""
    witnesses = [
        _of_stage(figures, "application", "io_read_calls_bytes", "io_write_calls_bytes"),
        _of_stage(figures, "storage", "io_read_bytes", "io_write_bytes"),
        _devices(figures, ("disk_read_bytes", "disk_write_bytes")),
        _virtual_disks(figures, ("vm_disk_read_bytes_per_s", "vm_disk_write_bytes_per_s")),
    ]
    source, sentence = _source(witnesses[0]["read_bytes"], witnesses[1]["read_bytes"], figures)
    return {"source": source, "sentence": sentence, "witnesses": witnesses}


def _source(asked: float | None, got: float | None, figures: Figures) -> tuple[str, str]:
    if asked is None or got is None:
        return "unknown", "where its data came from is not known: the I/O of its processes was " \
            "not measured"  # fmt: skip
    if max(asked, got) < limit("little_bytes"):
        return "little", f"it read {max(asked, got) / _MB:,.1f} MB: too little to tell from where"
    share = got / max(asked, got)
    told = f"its calls read {asked / _MB:,.0f} MB, and storage delivered {got / _MB:,.0f} MB"
    faults = figures.get("stage", "page_faults_major", "total")
    if got > asked and faults is not None and faults.value > 0:
        told += f" (read ahead, or mapped into memory: {faults.value:,.0f} page faults)"
    if share >= FROM_STORAGE:
        return "storage", f"{told}: from storage"
    if share <= FROM_CACHE:
        return "cache", f"{told}: {_NOT_STORAGE}"
    return "both", f"{told}: {100 * share:.0f} % from storage, the rest {_NOT_STORAGE}"


def _of_stage(figures: Figures, name: str, read: str, write: str) -> Account:
    found = [figures.whole("stage", metric) for metric in (read, write)]
    reason = figures.why_not_whole("stage", read) if found[0] is None else None
    values = [one.value if one is not None else None for one in found]
    return _witness(name, values, reason)


def _devices(figures: Figures, metrics: tuple[str, str]) -> Account:
    """Of all block devices: everybody's bytes, and late what was written before."""
    return _summed("guest device", [_of_devices(figures, metric) for metric in metrics])


def _of_devices(figures: Figures, metric: str) -> list[Moved]:
    entities = [
        entity for entity, known in figures.rows if known == metric and entity.startswith("disk:")
    ]
    found = {entity: figures.whole(entity, metric) for entity in sorted(entities)}
    return [
        figures.why_not_whole(entity, metric) if one is None else one.value
        for entity, one in found.items()
    ] or ["no block device was recorded"]


def _virtual_disks(figures: Figures, metrics: tuple[str, str]) -> Account:
    """Of all disks of the VM, each over all the hosts that the VM was on."""
    return _summed("hypervisor", [_of_virtual_disks(figures, metric) for metric in metrics])


def _of_virtual_disks(figures: Figures, metric: str) -> list[Moved]:
    return [
        one.total if one.total_share >= WHOLE and one.total is not None else one.why_not_whole()
        for one in over_hosts(figures, metric).values()
    ] or [why_unseen(figures, metric) or "no vCenter was asked"]


def _summed(name: str, ways: Sequence[Sequence[Moved]]) -> Account:
    """The sums of what was read and what was written, each of all devices or not at all."""
    whys = [one for way in ways for one in way if isinstance(one, str)]
    sums = [
        None
        if any(isinstance(one, str) for one in way)
        else sum(one for one in way if not isinstance(one, str))
        for way in ways
    ]
    return _witness(name, sums, whys[0] if whys else None)


def _witness(name: str, moved: Sequence[float | None], reason: str | None) -> Account:
    read, write = moved
    return {"name": name, "read_bytes": read, "write_bytes": write, "reason": reason}
