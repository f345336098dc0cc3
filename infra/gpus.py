"""Which GPUs a run may use, and what they are: NVML's list seen through CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from infra import nvml

VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
PCI_ORDER = "PCI_BUS_ID"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The GPUs of this run in the order in which CUDA numbers them, and what to know about it."""

    gpus: tuple[nvml.Gpu, ...]
    note: str | None = None


def choose(gpus: Sequence[nvml.Gpu], environ: Mapping[str, str] = os.environ) -> Selection:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves, and of a GPU in MIG mode what is used.

    Read as CUDA reads it: unset means all, empty means none, entries are indices or (starts of)
    UUIDs, and the first entry that names nothing ends the list. A process uses one MIG instance,
    and no other GPU beside it: where none is named, that is the first one, and all others are
    somebody else's. Several that are named may each have a process of the run. An instance brings
    the GPU it lies on, because power and clocks exist for that alone.
    Source: CUDA programming guide, environment variables; MIG user guide, CUDA_VISIBLE_DEVICES.
    """
    setting = environ.get(VISIBLE)
    if setting is None:
        return _one_instance(Selection(gpus=tuple(gpus)), ())
    if not setting.strip():
        return Selection(gpus=(), note=f'{VISIBLE}="" hides all {_wholes(gpus)} GPUs')
    chosen: dict[str, nvml.Gpu] = {}
    meant: set[str] = set()
    notes = []
    for entry in (part.strip() for part in setting.split(",")):
        named = _named(entry, gpus)
        if not named:
            notes.append(f"{VISIBLE}={setting}: {entry!r} names no GPU here, and ends the list")
            break
        chosen |= {gpu.entity: gpu for gpu in named}
        if entry.startswith("MIG-"):
            meant |= {gpu.entity for gpu in named if gpu.mig_index is not None}
        if entry.isdigit() and _order_is_doubtful(gpus, environ):
            notes.append(
                f"CUDA may number these different GPUs otherwise than NVML: set {ORDER}={PCI_ORDER}"
            )
    note = "; ".join(dict.fromkeys(notes)) or None
    return _one_instance(Selection(gpus=tuple(chosen.values()), note=note), meant)


def _one_instance(selection: Selection, meant: Collection[str]) -> Selection:
    """Without what no process of this run uses where a GPU is in MIG mode."""
    instances = [gpu for gpu in selection.gpus if gpu.mig_index is not None]
    if meant or not instances:
        left = tuple(g for g in selection.gpus if g.mig_index is None or g.entity in meant)
        return replace(selection, gpus=left)
    first = instances[0]
    card = (gpu for gpu in selection.gpus if gpu.index == first.index and gpu.mig_index is None)
    if len(selection.gpus) == len(left := (*card, first)):
        return selection
    told = (
        f"of {len(instances)} MIG instances CUDA uses one, and no other GPU beside it: "
        f"{first.entity} is watched; name another by its UUID in {VISIBLE}"
    )
    note = "; ".join(one for one in (selection.note, told) if one)
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


def _named(entry: str, gpus: Sequence[nvml.Gpu]) -> list[nvml.Gpu]:
    if entry.isdigit():
        return [gpu for gpu in gpus if gpu.index == int(entry)]
    if not entry.startswith(("GPU-", "MIG-")):
        return []
    matches = [gpu for gpu in gpus if gpu.uuid.startswith(entry)]
    if len(matches) != 1:
        return []
    match = matches[0]
    same_card = [gpu for gpu in gpus if gpu.index == match.index]
    if match.mig_index is None:
        return same_card
    return [gpu for gpu in same_card if gpu.mig_index in {None, match.mig_index}]


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
