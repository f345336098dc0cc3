"""What each GPU of this run does, by NVML: one table of questions, each decided on opening.

Entities are ``gpu:<index>`` in NVML's order (PCI bus), and ``gpu:<index>/mig:<slot>`` for a MIG
instance, which has its own memory and processes; power, clocks and energy exist for the whole
card alone. A GPU that is lost stops its series, keeps ``gpu_up`` at 0 and leaves its reason in
``losses``; a counter that goes backwards is passed on as it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from infra import nvml
from infra.gpus import choose, why_none
from telemetry.clock import Clock
from telemetry.samples import Kind, Metric, Sample, Samples, Series

NO_GPU = "gpu"
"""Entity of the absent series where there is no GPU at all."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One NVML call and the metrics that it answers, in the order of its values.

    ``readers`` are ways to ask the same thing: the first that answers on opening is kept.
    ``window_ns``: the call blocks and counts for this long, so a sample asks one such question.
    """

    readers: tuple[nvml.Reader, ...]
    metrics: tuple[Metric, ...]
    window_ns: int | None = None
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


UTILIZATION = "nvmlDeviceGetUtilizationRates (the driver's own window of 1/6 to 1 s)"
MEMORY = "nvmlDeviceGetMemoryInfo_v2"
CLOCK = "nvmlDeviceGetClockInfo"
PROCESSES = "nvmlDeviceGetComputeRunningProcesses_v3"
PCIE = "nvmlDeviceGetPcieThroughput (counts for 20 ms; one question per sample, in turn)"

UP = _metric(
    "gpu_up",
    "share",
    "1 while the GPU answers, 0 when it is lost",
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
PROCESS_COUNT = _metric(
    "gpu_processes", "processes", "processes that compute on the GPU", PROCESSES
)
PROCESS_MEM = _metric(
    "gpu_process_mem_bytes", "B", "memory that these processes hold together", PROCESSES
)
PCIE_RX = _metric(
    "pcie_rx_bytes_per_s", "B/s", "PCIe traffic from the host to the GPU", PCIE, kind="window"
)
PCIE_TX = _metric(
    "pcie_tx_bytes_per_s", "B/s", "PCIe traffic from the GPU to the host", PCIE, kind="window"
)

QUESTIONS = (
    Question(readers=(nvml.utilization_percent,), metrics=(GPU_UTIL, MEM_UTIL)),
    Question(
        readers=(nvml.memory_bytes,),
        metrics=(MEM_USED, MEM_FREE, MEM_RESERVED, MEM_TOTAL),
        of_instances=True,
    ),
    Question(
        readers=(nvml.power_instant_field_w, nvml.power_usage_instant_w), metrics=(POWER_INSTANT,)
    ),
    Question(
        readers=(nvml.power_average_field_w, nvml.power_usage_average_w), metrics=(POWER_AVERAGE,)
    ),
    Question(readers=(nvml.energy_j,), metrics=(ENERGY,)),
    Question(readers=(nvml.clock_sm_mhz,), metrics=(CLOCK_SM,)),
    Question(readers=(nvml.clock_mem_mhz,), metrics=(CLOCK_MEM,)),
    Question(readers=(nvml.clock_graphics_mhz,), metrics=(CLOCK_GRAPHICS,)),
    Question(readers=(nvml.temperature_c,), metrics=(TEMPERATURE,)),
    Question(readers=(nvml.throttle_reasons,), metrics=THROTTLE),
    Question(readers=(nvml.throttled_seconds,), metrics=(THROTTLED_POWER, THROTTLED_THERMAL)),
    Question(
        readers=(nvml.compute_processes,), metrics=(PROCESS_COUNT, PROCESS_MEM), of_instances=True
    ),
    Question(
        readers=(nvml.pcie_rx_bytes_per_s,), metrics=(PCIE_RX,), window_ns=nvml.PCIE_WINDOW_NS
    ),
    Question(
        readers=(nvml.pcie_tx_bytes_per_s,), metrics=(PCIE_TX,), window_ns=nvml.PCIE_WINDOW_NS
    ),
)

METRICS = (UP, *(metric for question in QUESTIONS for metric in question.metrics))


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is asked of one GPU at each sample: the reader that answered, and a series per value."""

    gpu: nvml.Gpu
    reader: nvml.Reader
    series: tuple[Series, ...]
    window_ns: int | None


@dataclass(kw_only=True)
class GpuCollector:
    """NVML's view of the GPUs of this run. ``losses``: what went away after opening, and when."""

    clock: Clock
    period_s: float = 0.1
    name: str = "gpu"
    losses: list[str] = field(default_factory=list)
    _plans: dict[str, list[_Plan]] = field(default_factory=dict, repr=False)
    _up: dict[str, Series] = field(default_factory=dict, repr=False)
    _blocking: deque[_Plan] = field(default_factory=deque, repr=False)
    _told: set[str] = field(default_factory=set, repr=False)
    _started: bool = field(default=False, repr=False)

    def open(self) -> Sequence[Series]:
        """Ask every GPU every question once; what does not answer is absent, with the reason."""
        failure = nvml.start()
        if failure is not None:
            return _all_absent(NO_GPU, failure.reason)
        self._started = True
        listed = nvml.list_gpus()
        if isinstance(listed, nvml.Absent):
            return _all_absent(NO_GPU, listed.reason)
        selection = choose(listed)
        if not selection.gpus:
            return _all_absent(NO_GPU, why_none(listed, selection))
        return [series for gpu in selection.gpus for series in self._open_gpu(gpu)]

    def _open_gpu(self, gpu: nvml.Gpu) -> list[Series]:
        up = Series(entity=gpu.entity, metric=UP)
        self._up[gpu.entity] = up
        self._plans[gpu.entity] = []
        if gpu.reason is not None:
            return [up, *_all_absent(gpu.entity, gpu.reason)[1:]]
        found = [up]
        for question in QUESTIONS:
            if gpu.mig_index is None or question.of_instances:
                plan = _decide(gpu, question)
                found += plan.series
                if any(series.reason is None for series in plan.series):
                    (self._blocking if plan.window_ns else self._plans[gpu.entity]).append(plan)
        return found

    def sample(self) -> Samples:
        """Return what every GPU answers now; never raises for a GPU that is lost."""
        samples: list[Sample] = []
        lost = {entity for entity in self._plans if not self._sample_gpu(entity, samples)}
        for entity, series in self._up.items():
            samples.append(Sample(self.clock.now_ns(), series, float(entity not in lost)))
        if self._blocking:
            plan = self._blocking[0]
            self._blocking.rotate(-1)
            self._ask(plan, samples)
        return samples

    def _sample_gpu(self, entity: str, samples: list[Sample]) -> bool:
        """Ask one GPU all that does not block; False as soon as it turns out to be lost."""
        plans = self._plans[entity]
        return bool(plans) and all(self._ask(plan, samples) for plan in plans)

    def _ask(self, plan: _Plan, samples: list[Sample]) -> bool:
        values = plan.reader(plan.gpu)
        ts_ns = self.clock.now_ns()
        if isinstance(values, nvml.Absent):
            values = (values,) * len(plan.series)
        start_ns = ts_ns - plan.window_ns if plan.window_ns else None
        for series, value in zip(plan.series, values, strict=True):
            if series.reason is not None:
                continue
            if isinstance(value, nvml.Absent):
                self._lose(plan.gpu, series, value, ts_ns)
                if value.lost:
                    return False
            else:
                samples.append(Sample(ts_ns, series, value, start_ns))
        return True

    def _lose(self, gpu: nvml.Gpu, series: Series, why: nvml.Absent, ts_ns: int) -> None:
        what = f"{gpu.entity} ({gpu.uuid})" if why.lost else f"{gpu.entity} {series.metric.name}"
        if what not in self._told:
            self._told.add(what)
            when = datetime.fromtimestamp(ts_ns / 1e9, UTC).isoformat(timespec="seconds")
            self.losses.append(f"{what} at {when}: {why.reason}")

    def close(self) -> None:
        """Give NVML back. The same collector can be opened again."""
        for kept in (self._plans, self._up, self._blocking, self._told):
            kept.clear()
        if self._started:
            nvml.stop()
        self._started = False


def _decide(gpu: nvml.Gpu, question: Question) -> _Plan:
    """Keep the first reader that answers; without one, every series is absent for their reasons."""
    reasons: dict[str, None] = {}
    for reader in question.readers:
        values = reader(gpu)
        if isinstance(values, nvml.Absent):
            values = (values,) * len(question.metrics)
        absent = [value.reason for value in values if isinstance(value, nvml.Absent)]
        if len(absent) < len(values):
            return _plan(gpu, question, reader, values)
        reasons |= dict.fromkeys(absent)
    nothing = nvml.Absent(reason="; ".join(reasons))
    return _plan(gpu, question, question.readers[0], (nothing,) * len(question.metrics))


def _plan(gpu: nvml.Gpu, question: Question, reader: nvml.Reader, values: nvml.Values) -> _Plan:
    series = tuple(
        Series(
            entity=gpu.entity,
            metric=metric,
            reason=value.reason if isinstance(value, nvml.Absent) else None,
        )
        for metric, value in zip(question.metrics, values, strict=True)
    )
    return _Plan(gpu=gpu, reader=reader, series=series, window_ns=question.window_ns)


def _all_absent(entity: str, reason: str) -> list[Series]:
    return [Series(entity=entity, metric=metric, reason=reason) for metric in METRICS]
