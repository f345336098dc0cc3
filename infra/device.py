"""The one place that decides on which device tensors live."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["cpu", "cuda"]
REQUESTS = ("auto", "cpu", "cuda")
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device for tensors. ``amp``: whether to train in mixed precision there."""

    kind: Kind
    name: str
    index: int | None
    """CUDA's ordinal among the visible GPUs, not NVML's index; None on the CPU."""
    amp: bool

    @property
    def torch_name(self) -> str:
        """What ``torch.device`` takes: ``cpu`` or ``cuda:0``."""
        return self.kind if self.index is None else f"{self.kind}:{self.index}"


def choose_device(requested: str = "auto") -> Device:
    """Return the device for a request of ``auto``, ``cpu`` or ``cuda``.

    ``auto`` is CUDA with mixed precision where there is a GPU, else the CPU. Raises ValueError
    for an unknown request, and for ``cuda`` where there is none, with the way out.
    """
    if requested not in REQUESTS:
        raise ValueError(f"device {requested!r} is unknown; known: {', '.join(REQUESTS)}")
    if requested == "cpu":
        return _cpu()
    import torch  # Here: a request for the CPU does not pay its second of start-up.

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        return Device(kind="cuda", name=name, index=0, amp=True)
    if requested == "cuda":
        raise ValueError(f'device "cuda" is not there: {_why_no_cuda(torch.version.cuda)}')
    return _cpu()


def _why_no_cuda(built_for: str | None) -> str:
    if built_for is None:
        return (
            "this torch is the CPU build; install a CUDA build (pip install torch from the index "
            'of your CUDA version, see the README) or set device = "auto"'
        )
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in {"", "-1"}:
        return 'CUDA_VISIBLE_DEVICES hides every GPU; unset it or set device = "auto"'
    return (
        f"torch is built for CUDA {built_for} and finds no GPU; nvidia-smi says whether the driver "
        'sees one and is new enough; set device = "auto" to run on the CPU'
    )


def _cpu() -> Device:
    return Device(kind="cpu", name=_cpu_name(), index=None, amp=False)


def _cpu_name() -> str:
    lines = CPUINFO.read_text().splitlines() if CPUINFO.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
