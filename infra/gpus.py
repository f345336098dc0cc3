"""Which GPUs a run may use, and what they are: NVML's list seen through CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from infra import nvml

VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
PCI_ORDER = "PCI_BUS_ID"
UUIDS = ("GPU-", "MIG-")
ENDED = VISIBLE + "={}: '{}' names no GPU here, and ends the list"
REPEATED = VISIBLE + "={}: '{}' is named a second time, and CUDA then uses no GPU at all"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The GPUs of this run in the order in which CUDA numbers them, and what to know about it."""

    gpus: tuple[nvml.Gpu, ...]
    note: str | None = None


def choose(gpus: Sequence[nvml.Gpu], environ: Mapping[str, str] = os.environ) -> Selection:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves, and of a GPU in MIG mode what is used.

    Read as CUDA reads it: unset means all, empty means none, entries are indices or (starts of)
    UUIDs as the first one is, the first that names nothing ends the list, and where one comes
    again there is none at all. A process uses one MIG instance, and no other GPU beside it: where
    none is named, that is the first that can be opened, and all others are somebody else's. Several
    that are named may each have a process of the run. An instance brings the GPU it lies on,
    because power and clocks exist for that alone.
    Source: CUDA programming guide, environment variables; MIG user guide, CUDA_VISIBLE_DEVICES;
    how torch.cuda reads it.
    """
    setting = environ.get(VISIBLE)
    if setting is None:
        return _one_instance(Selection(gpus=tuple(gpus)), ())
    if not setting.strip():
        return Selection(gpus=(), note=f'{VISIBLE}="" hides all {_wholes(gpus)} GPUs')
    named, notes = _read(setting, gpus)
    if not setting.startswith(UUIDS) and named and _order_is_doubtful(gpus, environ):
        notes.append(
            f"CUDA may number these different GPUs otherwise than NVML: set {ORDER}={PCI_ORDER}"
        )
    brought = {one.entity: one for gpu in named for one in _brought(gpu, gpus)}
    meant = {gpu.entity for gpu in named if gpu.mig_index is not None}
    note = "; ".join(notes) or None
    return _one_instance(Selection(gpus=tuple(brought.values()), note=note), meant)


def _read(setting: str, gpus: Sequence[nvml.Gpu]) -> tuple[list[nvml.Gpu], list[str]]:
    """What a setting names, in its order, and what of it CUDA does not take."""
    entries: list[int | str] = []
    named: list[nvml.Gpu] = []
    notes = []
    for part in setting.split(","):
        entry = _entry(part, setting)
        if entry is None:
            notes.append(ENDED.format(setting, part))
            break
        if entry in entries:
            return [], [REPEATED.format(setting, part)]
        entries.append(entry)
    for entry in entries:
        gpu = _named(entry, gpus)
        if gpu is None:
            return named, [ENDED.format(setting, entry), *_unopened(gpus)]
        if gpu in named:
            return [], [REPEATED.format(setting, entry)]
        named.append(gpu)
    return named, notes


def _entry(part: str, setting: str) -> int | str | None:
    """An entry of a list of UUIDs, or of one of indices (``1gpu2`` is 1); None ends the list."""
    if setting.startswith(UUIDS):
        return part if part.startswith(setting[: len(UUIDS[0])]) else None
    number = re.match(r"\+?[0-9]+", part.strip())
    return int(number[0]) if number else None


def _one_instance(selection: Selection, meant: Collection[str]) -> Selection:
    """Without what no process of this run uses where a GPU is in MIG mode."""
    instances = [gpu for gpu in selection.gpus if gpu.mig_index is not None]
    if meant or not instances:
        left = tuple(g for g in selection.gpus if g.mig_index is None or g.entity in meant)
        return replace(selection, gpus=left)
    first = next((gpu for gpu in instances if gpu.reason is None), instances[0])
    card = (gpu for gpu in selection.gpus if gpu.index == first.index and gpu.mig_index is None)
    if len(selection.gpus) == len(left := (*card, first)):
        return selection
    told = (
        f"of {len(instances)} MIG instances CUDA uses one, and no other GPU beside it: "
        f"{first.entity} is watched; name another by its UUID in {VISIBLE}"
    )
    unopened = _unopened([gpu for gpu in instances if gpu is not first])
    note = "; ".join(one for one in (selection.note, told, *unopened) if one)
    return Selection(gpus=left, note=note)


def gpu_environment(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return what the GPUs of this run are, as plain data for the run's record.

    ``gpus``: entity, index, uuid, name, memory_total_bytes, power_limit_w, virtualization,
    mig_enabled, and ``absent``: field to reason. ``reason`` says why the list is empty.
    """
    failure = nvml.start()
    if failure is not None:
        return {"gpus": [], "reason": failure.reason}
    try:
        listed = nvml.list_gpus()
        if isinstance(listed, nvml.Absent):
            return {"gpus": [], "reason": listed.reason}
        selection = choose(listed, environ)
        return {
            "gpus": [_described(gpu) for gpu in selection.gpus],
            "reason": None if selection.gpus else why_none(listed, selection),
            "note": selection.note,
            "driver_version": _plain(nvml.driver_version()),
            "cuda_driver_version": _plain(nvml.cuda_driver_version()),
        }
    finally:
        nvml.stop()


def why_none(listed: Sequence[nvml.Gpu], selection: Selection) -> str:
    """Why a selection is empty although the driver answers."""
    if not listed:
        return "the NVIDIA driver is there, and lists no GPU"
    return selection.note or f"{VISIBLE} leaves no GPU"


def _named(entry: int | str, gpus: Sequence[nvml.Gpu]) -> nvml.Gpu | None:
    if isinstance(entry, int):
        found = [gpu for gpu in gpus if gpu.index == entry and gpu.mig_index is None]
    else:
        found = [gpu for gpu in gpus if gpu.uuid.startswith(entry)]
    return found[0] if len(found) == 1 else None


def _brought(gpu: nvml.Gpu, gpus: Sequence[nvml.Gpu]) -> list[nvml.Gpu]:
    """A GPU with all its instances, or an instance with the GPU it lies on."""
    same_card = (one for one in gpus if one.index == gpu.index)
    if gpu.mig_index is None:
        return list(same_card)
    return [one for one in same_card if one.mig_index in {None, gpu.mig_index}]


def _unopened(gpus: Sequence[nvml.Gpu]) -> list[str]:
    """What tells no UUID because it could not be opened: a sentence for each reason."""
    by_reason: dict[str, list[str]] = {}
    for gpu in gpus:
        if gpu.reason is not None:
            by_reason.setdefault(gpu.reason, []).append(gpu.entity)
    return [f"{', '.join(those)} cannot be opened: {why}" for why, those in by_reason.items()]


def _order_is_doubtful(gpus: Sequence[nvml.Gpu], environ: Mapping[str, str]) -> bool:
    names = {gpu.name for gpu in gpus if gpu.mig_index is None}
    return len(names) > 1 and environ.get(ORDER) != PCI_ORDER


def _wholes(gpus: Sequence[nvml.Gpu]) -> int:
    return sum(gpu.mig_index is None for gpu in gpus)


def _described(gpu: nvml.Gpu) -> dict[str, Any]:
    absent: dict[str, str] = {}
    if gpu.reason is not None:
        absent = {"memory_total_bytes": gpu.reason, "power_limit_w": gpu.reason}
    memory = _value(nvml.memory_sizes_bytes(gpu), -1) if gpu.reason is None else None
    power = _value(nvml.power_limit_w(gpu), 0) if gpu.reason is None else None
    numbers = {"memory_total_bytes": memory, "power_limit_w": power}
    absent |= {name: n.reason for name, n in numbers.items() if isinstance(n, nvml.Absent)}
    return {
        "entity": gpu.entity,
        "index": gpu.index,
        "uuid": gpu.uuid or None,
        "name": gpu.name or None,
        "virtualization": gpu.virtualization,
        "mig_enabled": gpu.mig_enabled,
        **{name: _plain(number) for name, number in numbers.items()},
        "absent": absent,
    }


def _value(answer: nvml.Values | nvml.Absent, position: int) -> float | nvml.Absent:
    return answer if isinstance(answer, nvml.Absent) else answer[position]


def _plain(value: float | str | nvml.Absent | None) -> float | str | None:
    return None if isinstance(value, nvml.Absent) else value
