"""The memory that a piece of work took at most, measured: on CUDA by torch, on the CPU coarsely."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from infra.device import Device

STATUS = Path("/proc/self/status")
CUDA_BLOCK_BYTES = 512
"""torch's CUDA allocator rounds up to it (kMinBlockSize in CUDACachingAllocator). A block of more
than 1 MiB may be up to 1 MiB larger: so much is not split off (kSmallSize), and counts."""
CUDA_HOW = "torch.cuda.max_memory_allocated over what was allocated before"
CPU_HOW = (
    "coarse: the process's largest resident memory (VmHWM) over what was resident before; code "
    "that is loaded and memory that the allocator keeps are in it"
)


@dataclass(frozen=True, kw_only=True)
class MeasuredPeak:
    """What was taken at most over what was there before; no number has its reason."""

    how: str
    peak_bytes: int | None = None
    reserved_bytes: int | None = None
    """What torch's allocator held of the GPU at most, from the start of the process; CUDA only."""
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Without what is absent; ``reason`` stays."""
        return {name: value for name, value in vars(self).items() if value is not None}


class MemoryPeak(Protocol):
    """Made before the work; ``read`` after it."""

    def read(self) -> MeasuredPeak: ...


def watch_peak(device: Device) -> MemoryPeak:
    """Begin to watch the memory of ``device``: its tensors, or this process where it is the CPU."""
    return ProcessPeak() if device.kind == "cpu" else CudaPeak(device)


class ProcessPeak:
    """This process's peak. The kernel's mark is not set back: the recorder reads it as well."""

    def __init__(self, status: Path = STATUS) -> None:
        self._status = status
        self._before = _resident_bytes(status)

    def read(self) -> MeasuredPeak:
        before, now = self._before, _resident_bytes(self._status)
        if before is None or now is None:
            why = f"{self._status} has no VmRSS and VmHWM here"
            return MeasuredPeak(how=CPU_HOW, reason=why)
        (resident, peak_before), (_, peak) = before, now
        if peak <= peak_before:
            why = (
                f"the process had held {peak_before / 2**20:.0f} MiB at once before this work "
                f"began at {resident / 2**20:.0f} MiB, and it stayed below that"
            )
            return MeasuredPeak(how=CPU_HOW, reason=why)
        return MeasuredPeak(how=CPU_HOW, peak_bytes=peak - resident)


class CudaPeak:
    """The peak of what torch's allocator gave out on one GPU. Sets torch's peak mark back.

    That is tensors, in blocks that may be larger than they, and cuBLAS's workspaces: by PyTorch's
    default 32 MiB each on GPUs of compute capability 9.0 and ``:4096:2:16:8`` (KiB, number) on
    others, for each thread that multiplies. Those taken before this is made are in no figure.
    """

    def __init__(self, device: Device) -> None:
        import torch

        self._index = device.index
        torch.cuda.reset_peak_memory_stats(self._index)
        self._before = torch.cuda.memory_allocated(self._index)

    def read(self) -> MeasuredPeak:
        import torch

        return MeasuredPeak(
            how=CUDA_HOW,
            peak_bytes=torch.cuda.max_memory_allocated(self._index) - self._before,
            reserved_bytes=torch.cuda.max_memory_reserved(self._index),
        )


def _resident_bytes(status: Path) -> tuple[int, int] | None:
    """Resident memory now and at most, or None where the kernel does not say."""
    if not status.is_file():
        return None
    lines = (line.split() for line in status.read_text().splitlines())
    kib = {words[0]: int(words[1]) for words in lines if words[-1:] == ["kB"]}
    if "VmRSS:" not in kib or "VmHWM:" not in kib:
        return None
    return kib["VmRSS:"] * 1024, kib["VmHWM:"] * 1024
