"""The only door to NVIDIA's management library: one function per question, answers or reasons.

``pynvml`` raises an error class per return code; here every code becomes an ``Absent`` with a
sentence, so that a field which a GPU, a vGPU guest or a MIG instance does not have is data and
not an exception. Units are those of the names: W, J, bytes, MHz, degrees Celsius, seconds.
Source: NVML API reference (docs.nvidia.com/deploy/nvml-api), the binding nvidia-ml-py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any

import pynvml

MIG_ENABLED = pynvml.NVML_DEVICE_MIG_ENABLE

VGPU_GUEST = "vGPU guest"
VIRTUALIZATION = {
    pynvml.NVML_GPU_VIRTUALIZATION_MODE_NONE: "bare metal",
    pynvml.NVML_GPU_VIRTUALIZATION_MODE_PASSTHROUGH: "passthrough",
    pynvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU: VGPU_GUEST,
    pynvml.NVML_GPU_VIRTUALIZATION_MODE_HOST_VGPU: "vGPU host",
    pynvml.NVML_GPU_VIRTUALIZATION_MODE_HOST_VSGA: "vSGA host",
}

REASONS = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: (
        "no NVIDIA driver: libnvidia-ml.so.1 not found (install the driver, or the guest driver "
        "of the vGPU, and in a container start it with the GPU)"
    ),
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "the NVIDIA kernel module is not loaded (modprobe nvidia; dmesg says why it failed)"
    ),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "the NVIDIA library and the loaded kernel module have different versions (restart the "
        "machine after a driver upgrade)"
    ),
    pynvml.NVML_ERROR_NOT_SUPPORTED: "not supported by this GPU",
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "this driver's NVML has no such function (older driver)",
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH: (
        "this driver's NVML has another version of the call"
    ),
    pynvml.NVML_ERROR_NO_PERMISSION: "no permission: the driver answers this to root alone",
    pynvml.NVML_ERROR_GPU_IS_LOST: (
        "the GPU is lost: it fell off the bus or cannot be reached (dmesg has its Xid; "
        "restart the VM)"
    ),
    pynvml.NVML_ERROR_RESET_REQUIRED: "the GPU needs a reset before it answers again",
    pynvml.NVML_ERROR_GPU_NOT_FOUND: "the GPU is no longer there",
    pynvml.NVML_ERROR_IN_USE: (
        "another program holds what this reads (DCGM, Nsight or another profiler: stop it, or "
        "pause its profiling)"
    ),
    pynvml.NVML_ERROR_NO_DATA: "the driver has no data for it",
    pynvml.NVML_ERROR_TIMEOUT: "the driver did not answer in time",
    pynvml.NVML_ERROR_UNKNOWN: "the driver failed without saying why (NVML unknown error)",
}


def _codes(*names: str) -> frozenset[int]:
    return frozenset(getattr(pynvml, f"NVML_ERROR_{name}") for name in names)


LOST = _codes("GPU_IS_LOST", "RESET_REQUIRED", "GPU_NOT_FOUND")
PASSING = _codes("IN_USE", "TIMEOUT", "NO_DATA", "UNKNOWN")
THROTTLE_BITS = {
    "power_cap": pynvml.nvmlClocksEventReasonSwPowerCap,
    "thermal": (
        pynvml.nvmlClocksEventReasonSwThermalSlowdown
        | pynvml.nvmlClocksEventReasonHwThermalSlowdown
    ),
    "hw_slowdown": (
        pynvml.nvmlClocksEventReasonHwSlowdown | pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown
    ),
    "sync_boost": pynvml.nvmlClocksEventReasonSyncBoost,
    "application_clocks": pynvml.nvmlClocksEventReasonApplicationsClocksSetting,
    "idle": pynvml.nvmlClocksEventReasonGpuIdle,
}
UNTOLD_MEMORY = "the driver does not tell the memory of each process here"
GA100_DEVICE_IDS = 0x20
PCIE_WINDOW_NS = 20_000_000
"""``nvmlDeviceGetPcieThroughput`` counts for 20 ms and blocks its caller for as long."""

FIELD_VALUE_MEMBER = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
}


@dataclass(frozen=True, kw_only=True)
class Absent:
    """Why NVML gave no value. ``lost``: not this question alone, the whole GPU is gone;
    ``passing``: it may be over when it is asked again."""

    reason: str
    lost: bool = False
    passing: bool = False


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU, or one MIG instance of it, as NVML lists it (PCI bus order)."""

    index: int
    uuid: str
    name: str
    handle: Any = field(repr=False, compare=False)
    virtualization: str | None = None
    mig_enabled: bool = False
    mig_index: int | None = None
    """Index of the MIG instance on its GPU; None for a whole GPU."""
    card: Any = field(default=None, repr=False, compare=False)
    """The handle of the whole GPU on which a MIG instance lies."""
    gpu_instance: int | None = None
    """NVML's id of the GPU instance in which a MIG instance lies; None where it is not told."""
    reason: str | None = None
    """Why this GPU answers nothing at all (it could not be reached when it was listed)."""

    @property
    def entity(self) -> str:
        whole = f"gpu:{self.index}"
        return whole if self.mig_index is None else f"{whole}/mig:{self.mig_index}"


Values = tuple[float | Absent, ...]
Reader = Callable[[Gpu], Values | Absent]


def start() -> Absent | None:
    """Load and initialize NVML; balanced by ``stop``. Returns the reason where that fails."""
    failure: Absent | None = _ask(pynvml.nvmlInit)
    return failure


def stop() -> None:
    """Give NVML back; a library that is already gone is no error at the end of a run."""
    _ask(pynvml.nvmlShutdown)


def driver_version() -> str | Absent:
    version: str | Absent = _ask(pynvml.nvmlSystemGetDriverVersion)
    return version


def cuda_driver_version() -> str | Absent:
    """The newest CUDA that the driver can serve, as ``13.0``."""
    number = _ask(pynvml.nvmlSystemGetCudaDriverVersion_v2)
    return number if isinstance(number, Absent) else f"{number // 1000}.{number % 1000 // 10}"


def list_gpus() -> list[Gpu] | Absent:
    """All GPUs in NVML's order, each followed by its MIG instances.

    A GPU or instance that cannot be reached stays in the list, with its ``reason``.
    """
    count = _ask(pynvml.nvmlDeviceGetCount)
    if isinstance(count, Absent):
        return count
    gpus: list[Gpu] = []
    for index in range(count):
        gpu = _describe(index)
        gpus += [gpu, *(_mig_instances(gpu) if gpu.mig_enabled else [])]
    return gpus


def _describe(index: int) -> Gpu:
    handle = _ask(pynvml.nvmlDeviceGetHandleByIndex, index)
    if isinstance(handle, Absent):
        return Gpu(index=index, uuid="", name="", handle=None, reason=handle.reason)
    virtualization = _ask(pynvml.nvmlDeviceGetVirtualizationMode, handle)
    mig_mode = _ask(pynvml.nvmlDeviceGetMigMode, handle)
    return Gpu(
        index=index,
        uuid=_text(pynvml.nvmlDeviceGetUUID, handle),
        name=_text(pynvml.nvmlDeviceGetName, handle),
        handle=handle,
        virtualization=VIRTUALIZATION.get(virtualization),
        mig_enabled=not isinstance(mig_mode, Absent) and mig_mode[0] == MIG_ENABLED,
    )


def _mig_instances(gpu: Gpu) -> list[Gpu]:
    """The instances on a GPU; where it does not say how many, the first slot has the reason."""
    slot = replace(gpu, uuid="", name="", handle=None, mig_index=0, card=gpu.handle)
    try:
        count = pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu.handle)
    except pynvml.NVMLError_NotSupported:
        return []
    except pynvml.NVMLError as error:
        return [replace(slot, reason=absent(error.value, gpu).reason)]
    found = (_mig_instance(replace(slot, mig_index=mig_index)) for mig_index in range(count))
    return [one for one in found if one is not None]


def _mig_instance(slot: Gpu) -> Gpu | None:
    try:
        handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(slot.card, slot.mig_index)
    except (pynvml.NVMLError_NotFound, pynvml.NVMLError_InvalidArgument):
        return None  # An empty slot: they are numbered up to the most that a GPU can have.
    except pynvml.NVMLError as error:
        return replace(slot, reason=absent(error.value, slot).reason)
    uuid = _text(pynvml.nvmlDeviceGetUUID, handle)
    name = _text(pynvml.nvmlDeviceGetName, handle)
    instance = _ask(pynvml.nvmlDeviceGetGpuInstanceId, handle)
    gpu_instance = None if isinstance(instance, Absent) else instance
    return replace(slot, uuid=uuid, name=name, handle=handle, gpu_instance=gpu_instance)


def _reader(call: Callable[[Gpu], Values]) -> Reader:
    """Turn what pynvml raises into the reason why this GPU has no such value."""

    @wraps(call)
    def read(gpu: Gpu) -> Values | Absent:
        try:
            return call(gpu)
        except pynvml.NVMLError as error:
            return absent(error.value, gpu)

    return read


@_reader
def utilization_percent(gpu: Gpu) -> Values:
    """(GPU, memory) busy, percent, over the driver's own window of 1/6 to 1 s."""
    rates = pynvml.nvmlDeviceGetUtilizationRates(gpu.handle)
    return float(rates.gpu), float(rates.memory)


@_reader
def memory_used_bytes(gpu: Gpu) -> Values:
    """(used,), without what the driver reserves for itself."""
    return (float(_memory(gpu).used),)


@_reader
def memory_sizes_bytes(gpu: Gpu) -> Values:
    """(free, reserved by the driver, total)."""
    memory = _memory(gpu)
    return float(memory.free), float(memory.reserved), float(memory.total)


def _memory(gpu: Gpu) -> Any:
    return pynvml.nvmlDeviceGetMemoryInfo(gpu.handle, version=pynvml.nvmlMemory_v2)


@_reader
def power_usage_average_w(gpu: Gpu) -> Values:
    """(mean power of the last second,), where ``nvmlDeviceGetPowerUsage`` means that."""
    if not _power_usage_is_average(gpu):
        return (Absent(reason="on GA100 and before Ampere the driver averages no power"),)
    return (pynvml.nvmlDeviceGetPowerUsage(gpu.handle) / 1e3,)


@_reader
def power_usage_instant_w(gpu: Gpu) -> Values:
    """(power now,), where ``nvmlDeviceGetPowerUsage`` means that."""
    if _power_usage_is_average(gpu):
        return (
            Absent(reason="this driver has no field for the momentary power, only its average"),
        )
    return (pynvml.nvmlDeviceGetPowerUsage(gpu.handle) / 1e3,)


def _power_usage_is_average(gpu: Gpu) -> bool:
    """Whether ``nvmlDeviceGetPowerUsage`` is a 1 s average: from Ampere on, but not on GA100.

    GA100 (A100, A30) is told by its PCI device id 0x20xx, the upper half of ``pciDeviceId``.
    """
    architecture = pynvml.nvmlDeviceGetArchitecture(gpu.handle)
    if architecture != pynvml.NVML_DEVICE_ARCH_AMPERE:
        return bool(architecture > pynvml.NVML_DEVICE_ARCH_AMPERE)
    return bool(pynvml.nvmlDeviceGetPciInfo(gpu.handle).pciDeviceId >> 24 != GA100_DEVICE_IDS)


@_reader
def energy_j(gpu: Gpu) -> Values:
    """(J since the driver was loaded,)."""
    return (pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu.handle) / 1e3,)


@_reader
def clock_sm_mhz(gpu: Gpu) -> Values:
    return (float(pynvml.nvmlDeviceGetClockInfo(gpu.handle, pynvml.NVML_CLOCK_SM)),)


@_reader
def clock_mem_mhz(gpu: Gpu) -> Values:
    return (float(pynvml.nvmlDeviceGetClockInfo(gpu.handle, pynvml.NVML_CLOCK_MEM)),)


@_reader
def clock_graphics_mhz(gpu: Gpu) -> Values:
    return (float(pynvml.nvmlDeviceGetClockInfo(gpu.handle, pynvml.NVML_CLOCK_GRAPHICS)),)


@_reader
def temperature_c(gpu: Gpu) -> Values:
    return (float(pynvml.nvmlDeviceGetTemperature(gpu.handle, pynvml.NVML_TEMPERATURE_GPU)),)


@_reader
def throttle_reasons(gpu: Gpu) -> Values:
    """As ``throttle_bits``; what this GPU does not tell is ``Absent``."""
    try:
        known = pynvml.nvmlDeviceGetSupportedClocksEventReasons(gpu.handle)
    except pynvml.NVMLError_FunctionNotFound:  # The name before R535.
        known = pynvml.nvmlDeviceGetSupportedClocksThrottleReasons(gpu.handle)
    unknown = Absent(reason="this GPU does not tell this throttle reason")
    return tuple(
        told if known & bits else unknown
        for told, bits in zip(_told(_throttle(gpu)), THROTTLE_BITS.values(), strict=True)
    )


@_reader
def throttle_bits(gpu: Gpu) -> Values:
    """1 or 0 for each of ``THROTTLE_BITS``: whether it holds the clocks down at this instant."""
    return _told(_throttle(gpu))


def _told(now: int) -> tuple[float, ...]:
    return tuple(float(bool(now & bits)) for bits in THROTTLE_BITS.values())


def _throttle(gpu: Gpu) -> int:
    try:
        return int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(gpu.handle))
    except pynvml.NVMLError_FunctionNotFound:  # The name before R535.
        return int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu.handle))


@_reader
def pcie_rx_bytes_per_s(gpu: Gpu) -> Values:
    """(bytes/s to the GPU,) over ``PCIE_WINDOW_NS``; blocks for as long."""
    return (pynvml.nvmlDeviceGetPcieThroughput(gpu.handle, pynvml.NVML_PCIE_UTIL_RX_BYTES) * 1e3,)


@_reader
def pcie_tx_bytes_per_s(gpu: Gpu) -> Values:
    """(bytes/s from the GPU,) over ``PCIE_WINDOW_NS``; blocks for as long."""
    return (pynvml.nvmlDeviceGetPcieThroughput(gpu.handle, pynvml.NVML_PCIE_UTIL_TX_BYTES) * 1e3,)


def process_memory_bytes(gpu: Gpu) -> dict[int, float | None] | Absent:
    """What each process that computes on the GPU holds of its memory, by the driver's number.

    None where the driver does not tell (``UNTOLD_MEMORY``): 0 is no answer, as what computes has a
    context there (drivers 545 to 565 say 0 of all within a container). A process in several MIG
    instances has the sum; one that is listed twice for the same instance has it once.
    """
    try:
        processes = _compute_processes(gpu.handle)
    except pynvml.NVMLError as error:
        return absent(error.value, gpu)
    sizes: dict[int, dict[tuple[int, int], float]] = {}
    for one in processes:
        instances = sizes.setdefault(one.pid, {})
        instance = one.gpuInstanceId, one.computeInstanceId
        instances[instance] = max(float(one.usedGpuMemory or 0), instances.get(instance, 0.0))
    return {
        pid: sum(instances.values()) if all(instances.values()) else None
        for pid, instances in sizes.items()
    }


def _compute_processes(handle: Any) -> Sequence[Any]:
    """By the versioned names: what pynvml raises for the other one is no ``NVMLError``."""
    try:
        return pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)  # type: ignore[no-any-return]
    except pynvml.NVMLError_FunctionNotFound:  # before R510, and in some releases of R535
        return pynvml.nvmlDeviceGetComputeRunningProcesses_v2(handle)  # type: ignore[no-any-return]


@_reader
def power_limit_w(gpu: Gpu) -> Values:
    """(the power limit in force,)."""
    return (pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu.handle) / 1e3,)


def _ask(question: Callable[..., Any], *arguments: Any) -> Any:
    """Any of pynvml's calls: its answer, or ``Absent``."""
    try:
        return question(*arguments)
    except pynvml.NVMLError as error:
        return absent(error.value)


def _text(question: Callable[..., str], handle: Any) -> str:
    answer = _ask(question, handle)
    return "" if isinstance(answer, Absent) else answer


def absent(code: int, gpu: Gpu | None = None) -> Absent:
    """The reason behind an NVML return code, with what the GPU is part of where that matters."""
    reason = REASONS.get(code) or f"NVML error {code} ({pynvml.NVMLError(code)})"
    if gpu is not None and code == pynvml.NVML_ERROR_NOT_SUPPORTED:
        reason += _circumstance(gpu)
    return Absent(reason=reason, lost=code in LOST, passing=code in PASSING)


def _circumstance(gpu: Gpu) -> str:
    if gpu.mig_enabled:
        return " while MIG is enabled"
    return " inside a vGPU guest" if gpu.virtualization == VGPU_GUEST else ""
