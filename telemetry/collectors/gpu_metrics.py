"""What NVML is asked about a GPU, and what each answer is called: tables, no behaviour.

``QUESTIONS`` are answered at each sample, or once a second; ``POWER_BUFFER`` is the driver's own
buffer; ``GPM_METRICS`` come from pairs of samples of the counters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from infra import nvml, nvml_fields, nvml_gpm
from telemetry.samples import Kind, Metric


@dataclass(frozen=True, kw_only=True)
class Question:
    """One NVML call and the metrics that it answers, in the order of its values.

    ``readers`` are ways to ask the same thing: the first that answers on opening is kept; after
    that ``again`` is asked in its place, if there is one.
    ``window_ns``: the call blocks and counts for this long, so a sample asks one such question.
    """

    readers: tuple[nvml.Reader, ...]
    metrics: tuple[Metric, ...]
    again: nvml.Reader | None = None
    window_ns: int | None = None
    slow: bool = False
    """Asked once a second: it moves no faster, or the driver counts meanwhile."""
    of_instances: bool = False
    """Whether a MIG instance has an answer of its own."""


def _metric(
    name: str,
    unit: str,
    meaning: str,
    source: str,
    *,
    kind: Kind = "gauge",
    integral: str | None = None,
) -> Metric:
    return Metric(
        name=name, unit=unit, kind=kind, meaning=meaning, source=source, integral_unit=integral
    )


BUFFER = "nvmlDeviceGetSamples (the driver's own buffer, read once a second)"
GPM = "nvmlGpmMetricsGet of two samples 0.2 s apart (Hopper and later)"
PROCESS_USE = "nvmlDeviceGetProcessUtilization, once a second"
UTILIZATION = "nvmlDeviceGetUtilizationRates (the driver's own window of 1/6 to 1 s)"
MEMORY = "nvmlDeviceGetMemoryInfo_v2"
CLOCK = "nvmlDeviceGetClockInfo"
PROCESSES = "nvmlDeviceGetComputeRunningProcesses_v3, once a second"
PCIE = "nvmlDeviceGetPcieThroughput (counts for 20 ms, in turn; without GPM alone)"

UP = _metric(
    "gpu_up",
    "share",
    "1 while the GPU answers, 0 when it is lost or answers nothing",
    "return codes of all NVML calls",
)
GPU_UTIL = _metric(
    "gpu_util_percent",
    "%",
    "time in which any kernel was resident; does not say how full the GPU was",
    UTILIZATION,
)
MEM_UTIL = _metric(
    "gpu_mem_util_percent", "%", "time in which GPU memory was read or written", UTILIZATION
)
MEM_USED = _metric("gpu_mem_used_bytes", "B", "memory in use by all processes together", MEMORY)
MEM_FREE = _metric("gpu_mem_free_bytes", "B", "memory that can still be allocated", MEMORY)
MEM_RESERVED = _metric("gpu_mem_reserved_bytes", "B", "memory that the driver keeps", MEMORY)
MEM_TOTAL = _metric("gpu_mem_total_bytes", "B", "memory of the GPU", MEMORY)
POWER_INSTANT = _metric(
    "power_instant_w",
    "W",
    "power of the whole card at the instant",
    "NVML_FI_DEV_POWER_INSTANT, else nvmlDeviceGetPowerUsage (before Ampere, and GA100)",
    integral="J",
)
POWER_AVERAGE = _metric(
    "power_average_w",
    "W",
    "mean power of the whole card over the last second",
    "NVML_FI_DEV_POWER_AVERAGE, else nvmlDeviceGetPowerUsage (from Ampere on, not GA100)",
    integral="J",
)
ENERGY = _metric(
    "energy_j",
    "J",
    "energy of the whole card; the counter moves about every 100 ms",
    "nvmlDeviceGetTotalEnergyConsumption",
    kind="counter",
)
CLOCK_SM = _metric("gpu_clock_sm_mhz", "MHz", "clock of the multiprocessors", CLOCK)
CLOCK_MEM = _metric("gpu_clock_mem_mhz", "MHz", "clock of the memory", CLOCK)
CLOCK_GRAPHICS = _metric("gpu_clock_graphics_mhz", "MHz", "clock of the graphics engine", CLOCK)
TEMPERATURE = _metric(
    "gpu_temperature_c", "°C", "temperature of the GPU core", "nvmlDeviceGetTemperature"
)
THROTTLE_MEANINGS = {
    "power_cap": "the power limit holds the clocks down",
    "thermal": "heat holds the clocks down",
    "hw_slowdown": "the card slows itself down (heat, power brake, supply)",
    "sync_boost": "a sync boost group holds the clocks down",
    "application_clocks": "clocks set by hand hold the clocks down",
    "idle": "the clocks are low because nothing runs",
}
THROTTLE = tuple(
    _metric(
        f"gpu_throttle_{name}",
        "share",
        f"1 while {THROTTLE_MEANINGS[name]}; its mean is the share of the samples",
        "nvmlDeviceGetCurrentClocksEventReasons",
        integral="s",
    )
    for name in nvml.THROTTLE_BITS
)
THROTTLED_POWER = _metric(
    "gpu_throttled_power_seconds",
    "s",
    "time in which the power limit held the clocks down, as the driver counts it",
    "NVML_FI_DEV_PERF_POLICY_POWER",
    kind="counter",
)
THROTTLED_THERMAL = _metric(
    "gpu_throttled_thermal_seconds",
    "s",
    "time in which heat held the clocks down, as the driver counts it",
    "NVML_FI_DEV_PERF_POLICY_THERMAL",
    kind="counter",
)
PCIE_RX = _metric(
    "pcie_rx_bytes_per_s", "B/s", "PCIe traffic from the host to the GPU", PCIE, kind="window"
)
PCIE_TX = _metric(
    "pcie_tx_bytes_per_s", "B/s", "PCIe traffic from the GPU to the host", PCIE, kind="window"
)

QUESTIONS = (
    Question(readers=(nvml.utilization_percent,), metrics=(GPU_UTIL, MEM_UTIL)),
    Question(readers=(nvml.memory_used_bytes,), metrics=(MEM_USED,), of_instances=True),
    Question(
        readers=(nvml.memory_sizes_bytes,),
        metrics=(MEM_FREE, MEM_RESERVED, MEM_TOTAL),
        slow=True,
        of_instances=True,
    ),
    Question(
        readers=(nvml_fields.POWER_INSTANT_W, nvml.power_usage_instant_w), metrics=(POWER_INSTANT,)
    ),
    Question(
        readers=(nvml_fields.POWER_AVERAGE_W, nvml.power_usage_average_w),
        metrics=(POWER_AVERAGE,),
        slow=True,
    ),
    Question(readers=(nvml.energy_j,), metrics=(ENERGY,)),
    Question(readers=(nvml.clock_sm_mhz,), metrics=(CLOCK_SM,)),
    Question(readers=(nvml.clock_mem_mhz,), metrics=(CLOCK_MEM,), slow=True),
    Question(readers=(nvml.clock_graphics_mhz,), metrics=(CLOCK_GRAPHICS,), slow=True),
    Question(readers=(nvml.temperature_c,), metrics=(TEMPERATURE,), slow=True),
    Question(readers=(nvml.throttle_reasons,), again=nvml.throttle_bits, metrics=THROTTLE),
    Question(
        readers=(nvml_fields.THROTTLED_SECONDS,),
        metrics=(THROTTLED_POWER, THROTTLED_THERMAL),
        slow=True,
    ),
    Question(
        readers=(nvml.pcie_rx_bytes_per_s,), metrics=(PCIE_RX,), window_ns=nvml.PCIE_WINDOW_NS
    ),
    Question(
        readers=(nvml.pcie_tx_bytes_per_s,), metrics=(PCIE_TX,), window_ns=nvml.PCIE_WINDOW_NS
    ),
)

POWER_BUFFER = _metric(
    "power_buffer_w",
    "W",
    "power of the whole card as the driver sampled it for itself, finer than it can be asked",
    BUFFER,
    integral="J",
)


def _gpm(name: str, unit: str, meaning: str) -> Metric:
    integral = "B" if unit == "B/s" else None
    return _metric(f"gpm_{name}", unit, meaning, GPM, kind="window", integral=integral)


GPM_METRICS: Mapping[Metric, nvml_gpm.Counter] = {
    _gpm("graphics_util_percent", "%", "time in which any work was on the GPU"): (
        nvml_gpm.GRAPHICS_UTIL
    ),
    _gpm("sm_util_percent", "%", "multiprocessors that had work, mean over all of them"): (
        nvml_gpm.SM_UTIL
    ),
    _gpm("sm_occupancy_percent", "%", "warps that were active, of all that fit at once"): (
        nvml_gpm.SM_OCCUPANCY
    ),
    _gpm("tensor_util_percent", "%", "time in which the tensor cores worked"): nvml_gpm.TENSOR_UTIL,
    _gpm("tensor_half_util_percent", "%", "the same for half precision (HMMA) alone"): (
        nvml_gpm.TENSOR_HALF_UTIL
    ),
    _gpm("fp64_util_percent", "%", "time in which FP64 units worked, tensor cores left out"): (
        nvml_gpm.FP64_UTIL
    ),
    _gpm("fp32_util_percent", "%", "time in which FP32 units worked, tensor cores left out"): (
        nvml_gpm.FP32_UTIL
    ),
    _gpm("fp16_util_percent", "%", "time in which FP16 units worked, tensor cores left out"): (
        nvml_gpm.FP16_UTIL
    ),
    _gpm("dram_bw_util_percent", "%", "bandwidth of the GPU's memory in use, of its most"): (
        nvml_gpm.DRAM_BW_UTIL
    ),
    _gpm("pcie_rx_bytes_per_s", "B/s", "PCIe traffic from the host to the GPU"): nvml_gpm.PCIE_RX,
    _gpm("pcie_tx_bytes_per_s", "B/s", "PCIe traffic from the GPU to the host"): nvml_gpm.PCIE_TX,
    _gpm("nvlink_rx_bytes_per_s", "B/s", "NVLink traffic to the GPU, all links"): (
        nvml_gpm.NVLINK_RX
    ),
    _gpm("nvlink_tx_bytes_per_s", "B/s", "NVLink traffic from the GPU, all links"): (
        nvml_gpm.NVLINK_TX
    ),
}
"""What GPM is asked; a MIG instance has its own."""
_GPM_BY_COUNTER = {counter: metric for metric, counter in GPM_METRICS.items()}
COVERED_BY_GPM: Mapping[Metric, Metric] = {
    PCIE_RX: _GPM_BY_COUNTER[nvml_gpm.PCIE_RX],
    PCIE_TX: _GPM_BY_COUNTER[nvml_gpm.PCIE_TX],
}
"""What is not asked for where GPM has it: its windows leave no gaps, and nobody is blocked."""

ALL_SM = _metric(
    "gpu_processes_sm_percent",
    "%",
    "time in which any process had work on the GPU, as the driver sampled it",
    PROCESS_USE,
    kind="window",
)
ALL_MEM = _metric(
    "gpu_processes_mem_percent",
    "%",
    "time in which all processes together read or wrote GPU memory, as the driver sampled it",
    PROCESS_USE,
    kind="window",
)
RUN_SM = _metric(
    "gpu_run_sm_percent",
    "%",
    "time in which this run's processes had work on the GPU; the rest of all is others'",
    PROCESS_USE,
    kind="window",
)
RUN_MEM = _metric(
    "gpu_run_mem_percent",
    "%",
    "time in which this run's processes read or wrote GPU memory, as the driver sampled it",
    PROCESS_USE,
    kind="window",
)
PROCESS_USES = (ALL_SM, ALL_MEM, RUN_SM, RUN_MEM)
PROCESS_COUNT = _metric(
    "gpu_processes",
    "processes",
    "processes that compute on the GPU, as far as the driver lists them here",
    PROCESSES,
)
PROCESS_MEM = _metric(
    "gpu_process_mem_bytes", "B", "memory that these processes hold together", PROCESSES
)
RUN_HELD = _metric(
    "gpu_run_mem_bytes", "B", "memory that this run's processes hold together", PROCESSES
)
PROCESS_MEMORY = (PROCESS_COUNT, PROCESS_MEM, RUN_HELD)

METRICS = (
    UP,
    *(metric for question in QUESTIONS for metric in question.metrics),
    POWER_BUFFER,
    *GPM_METRICS,
    *PROCESS_USES,
    *PROCESS_MEMORY,
)
OF_INSTANCES = (
    *(metric for question in QUESTIONS if question.of_instances for metric in question.metrics),
    *GPM_METRICS,
    *PROCESS_MEMORY,
)
"""What a MIG instance has of its own, ``UP`` apart."""
