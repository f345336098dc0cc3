"""What the driver samples by itself and keeps for a while: the card's power, and its processes.

One call brings everything since the last one: finer than asking again and again, for fewer calls.
Stamps are µs since 1970, or since the machine was booted; NVIDIA does not say which.
Source: NVML API reference, nvmlDeviceGetSamples and nvmlDeviceGetProcessUtilization.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import pynvml

from infra.nvml import FIELD_VALUE_MEMBER, Absent, Gpu, absent

NOTHING_NEW = frozenset({pynvml.NVML_SUCCESS, pynvml.NVML_ERROR_NOT_FOUND})
"""How NVML says that there is no sample after the last one seen (the binding raises both)."""
MOST_PERCENT = 100


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """One of the driver's buffers: NVML's id, and the factor to the unit that is wanted."""

    id: int
    factor: float = 1.0


POWER_W = Buffer(id=pynvml.NVML_TOTAL_POWER_SAMPLES, factor=1e-3)


class Kept(NamedTuple):
    """A sample that the driver kept."""

    stamp_us: int
    value: float


class Used(NamedTuple):
    """What one process used of the GPU at some time since the last question, percent."""

    stamp_us: int
    pid: int
    sm_percent: int
    mem_percent: int


def kept(gpu: Gpu, buffer: Buffer, after_us: int) -> list[Kept] | Absent:
    """The samples with stamps after ``after_us`` in their order, none twice; 0 asks for all."""
    try:
        kind, samples = pynvml.nvmlDeviceGetSamples(gpu.handle, buffer.id, after_us)
    except pynvml.NVMLError as error:
        return [] if error.value in NOTHING_NEW else absent(error.value, gpu)
    member = FIELD_VALUE_MEMBER[kind]
    found = {
        sample.timeStamp: float(getattr(sample.sampleValue, member)) * buffer.factor
        for sample in samples
        if sample.timeStamp > after_us
    }
    return [Kept(stamp_us, found[stamp_us]) for stamp_us in sorted(found)]


def used(gpu: Gpu, after_us: int) -> list[Used] | Absent:
    """What each process used of the GPU after ``after_us``; more than 100 % is a torn record."""
    try:
        samples = pynvml.nvmlDeviceGetProcessUtilization(gpu.handle, after_us)
    except pynvml.NVMLError as error:
        return [] if error.value in NOTHING_NEW else absent(error.value, gpu)
    return [
        Used(sample.timeStamp, sample.pid, sample.smUtil, sample.memUtil)
        for sample in samples
        if sample.timeStamp > after_us and max(sample.smUtil, sample.memUtil) <= MOST_PERCENT
    ]


def step_us(samples: Sequence[Kept]) -> float | None:
    """The median distance of a buffer's samples; None with fewer than three."""
    stamps = [sample.stamp_us for sample in samples]
    steps = sorted(after - before for before, after in pairwise(stamps))
    return float(steps[len(steps) // 2]) if len(steps) > 1 else None
