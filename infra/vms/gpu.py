"""GPUs of a planned VM: their kinds, what their names tell, and what they need mapped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pydantic import Field

from infra.toml_model import Count, Section

GPU_MEMORY_GIB: Mapping[str, int] = {
    "10de:1db1": 16,  # V100 SXM2 16 GB
    "10de:1db4": 16,  # V100 PCIe 16 GB
    "10de:1db5": 32,  # V100 SXM2 32 GB
    "10de:1db6": 32,  # V100 PCIe 32 GB
    "10de:1eb8": 16,  # T4
    "10de:20b0": 40,  # A100 SXM4 40 GB
    "10de:20b2": 80,  # A100 SXM4 80 GB
    "10de:20b5": 80,  # A100 PCIe 80 GB
    "10de:20b7": 24,  # A30
    "10de:20f1": 40,  # A100 PCIe 40 GB
    "10de:2235": 48,  # A40
    "10de:2236": 24,  # A10
    "10de:2321": 94,  # H100 NVL
    "10de:2330": 80,  # H100 SXM5 80 GB
    "10de:2331": 80,  # H100 PCIe 80 GB
    "10de:2335": 141,  # H200 SXM
    "10de:233b": 141,  # H200 NVL
    "10de:26b5": 48,  # L40
    "10de:26b9": 48,  # L40S
    "10de:27b8": 24,  # L4
}
"""Frame buffer of GPUs by PCI vendor:device, from the public PCI id list (pci.ids)."""

_ADDRESS = re.compile(r"^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$")
_DEVICE_ID = re.compile(r"^[0-9a-f]{4}:[0-9a-f]{4}$")
_PROFILE_END = re.compile(r"-(?:(?P<slices>\d+)-)?(?P<gib>\d+)[abcq](?:me|gfx)?\d*$")


class Gpu(Section):
    """One kind of GPU, once or several times."""

    kind: Literal["vgpu", "passthrough", "dynamic"] = Field(
        description="vgpu: a share of a GPU by its profile, time-sliced or MIG-backed; "
        "passthrough: DirectPath, one device of a pinned host; dynamic: Dynamic DirectPath, any "
        "free device of the allowed ones"
    )
    profile: str = Field("", description="vgpu: the profile, for example grid_a100-40c")
    device: str = Field(
        "", description="passthrough: PCI address (0000:3b:00.0) or vendor:device (10de:20b5)"
    )
    devices: tuple[str, ...] = Field((), description="dynamic: allowed vendor:device ids")
    label: str = Field("", description="dynamic: hardware label that the device must have")
    count: Count = Field(1, description="how many of it")
    memory_gib: float | None = Field(
        None, gt=0, description="frame buffer of a passed-through device that is not known, GiB"
    )

    @property
    def what(self) -> str:
        """What people call it."""
        if self.kind == "vgpu":
            return f"vGPU {self.profile}"
        if self.kind == "passthrough":
            return f"passthrough {self.device}"
        return f"dynamic passthrough {', '.join(self.devices)}" + (
            f" labelled {self.label!r}" if self.label else ""
        )

    @property
    def model(self) -> tuple[str, ...]:
        """What all GPUs of one VM have in common; an address says nothing of the model."""
        if self.kind == "vgpu":
            return (self.kind, self.profile)
        if self.kind == "passthrough":
            return (self.kind, "" if _ADDRESS.match(self.device) else self.device)
        return (self.kind, *self.devices, self.label)

    @property
    def by_address(self) -> bool:
        """Whether it is one certain device."""
        return bool(_ADDRESS.match(self.device))

    @property
    def frame_buffer_gib(self) -> float | None:
        """Memory of one, GiB: of the plan, the profile's name or the table; None: not known."""
        if self.memory_gib is not None:
            return self.memory_gib
        if self.kind == "vgpu":
            return profile_memory_gib(self.profile)
        known = [GPU_MEMORY_GIB.get(device) for device in (self.device, *self.devices) if device]
        return max((one for one in known if one is not None), default=None)


def profile_memory_gib(profile: str) -> float | None:
    """Frame buffer of a vGPU profile by its name, GiB: 40 for grid_a100-40c; None: not told."""
    found = _PROFILE_END.search(profile)
    if found is None:
        return None
    return float(found["gib"]) or 0.5  # grid_m60-0q and its like have 512 MiB


def profile_is_mig(profile: str) -> bool:
    """Whether a vGPU profile stands on a MIG instance: its name has the number of slices."""
    found = _PROFILE_END.search(profile)
    return found is not None and found["slices"] is not None


def mmio_size_gib(frame_buffers_gib: Sequence[float]) -> int:
    """64bitMMIOSizeGB: each frame buffer up to the next power of two, doubled, summed."""
    return sum(2 * max(1, 1 << (_ceil(size) - 1).bit_length()) for size in frame_buffers_gib)


def _ceil(size: float) -> int:
    return max(1, -int(-size // 1))


def one_gpu_problems(gpu: Gpu, *, pinned: bool) -> Iterator[str]:
    """What is wrong with one GPU of a plan; ``pinned``: its VM has a certain host."""
    needs = {"vgpu": "profile", "passthrough": "device", "dynamic": "devices"}
    if not getattr(gpu, needs[gpu.kind]):
        yield f"a GPU of kind {gpu.kind!r} needs {needs[gpu.kind]}"
        return
    foreign = {"profile", "device", "devices", "label"} - {needs[gpu.kind]}
    if gpu.kind == "dynamic":
        foreign -= {"label"}
    for key in sorted(key for key in foreign if getattr(gpu, key)):
        yield f"{key} says nothing about a GPU of kind {gpu.kind!r}; take it out"
    yield from _device_problems(gpu, pinned)
    if gpu.frame_buffer_gib is None and not gpu.by_address:  # an address is looked up on its host
        yield f"{gpu.what}: its frame buffer is not known; say memory_gib"


def _device_problems(gpu: Gpu, pinned: bool) -> Iterator[str]:
    for device in gpu.devices:
        if not _DEVICE_ID.match(device):
            yield f"devices {device!r}: write vendor:device in small hex, for example '10de:20b5'"
    if gpu.kind != "passthrough":
        return
    if not (gpu.by_address or _DEVICE_ID.match(gpu.device)):
        yield f"device {gpu.device!r}: write '0000:3b:00.0' or '10de:20b5', in small hex"
    if gpu.by_address and gpu.count > 1:
        yield f"{gpu.count} times device {gpu.device}: one address is one GPU; name each"
    if not pinned:
        yield (
            "passthrough needs a pinned host: set host, or take kind 'dynamic', which lets vCenter "
            "choose"
        )
