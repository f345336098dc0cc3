"""GPM: what the GPU's own counters say between two samples of them. Hopper and later.

A sample is a copy of counters that run all the time; two of them, at least ``SHORTEST_NS`` apart,
give means over the time in between. The copy of a MIG instance is taken through its card, by the
id of its GPU instance. In a vGPU guest there are counters only where the profile is MIG-backed and
has the whole frame buffer of its instance.
Source: NVML API reference, GPM functions; the binding nvidia-ml-py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pynvml

from infra.nvml import VGPU_GUEST, Absent, Gpu, Values, absent

SHORTEST_NS = 100_000_000
"""The counters need about this long to be read anew: a pair closer together has no valid values."""
ARCHITECTURES = {
    getattr(pynvml, name): name.rpartition("_")[2].capitalize()
    for name in dir(pynvml)
    if name.startswith("NVML_DEVICE_ARCH_")
}
_MIB = float(1 << 20)
_OVER_PERCENT = 1.0
"""A mean over counters that are not read in the same instant may pass 100 % by a little."""

VGPU_WHY = (
    "no GPM in this vGPU guest: it needs a MIG-backed vGPU profile that has the whole frame buffer "
    "of its instance"
)
INVALID = "the driver's value is not valid (two samples too close together, or counters reset)"


@dataclass(frozen=True, kw_only=True)
class Counter:
    """One GPM metric: NVML's id, the factor to the unit of its name, and the most it can be."""

    id: int
    factor: float = 1.0
    most: float = 100.0 + _OVER_PERCENT


def _bytes_per_s(id_: int) -> Counter:
    return Counter(id=id_, factor=_MIB, most=math.inf)


GRAPHICS_UTIL = Counter(id=pynvml.NVML_GPM_METRIC_GRAPHICS_UTIL)
SM_UTIL = Counter(id=pynvml.NVML_GPM_METRIC_SM_UTIL)
SM_OCCUPANCY = Counter(id=pynvml.NVML_GPM_METRIC_SM_OCCUPANCY)
TENSOR_UTIL = Counter(id=pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL)
TENSOR_HALF_UTIL = Counter(id=pynvml.NVML_GPM_METRIC_HMMA_TENSOR_UTIL)
DRAM_BW_UTIL = Counter(id=pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL)
FP64_UTIL = Counter(id=pynvml.NVML_GPM_METRIC_FP64_UTIL)
FP32_UTIL = Counter(id=pynvml.NVML_GPM_METRIC_FP32_UTIL)
FP16_UTIL = Counter(id=pynvml.NVML_GPM_METRIC_FP16_UTIL)
PCIE_RX = _bytes_per_s(pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC)
PCIE_TX = _bytes_per_s(pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC)
NVLINK_RX = _bytes_per_s(pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC)
NVLINK_TX = _bytes_per_s(pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC)


@dataclass(kw_only=True)
class Gpm:
    """The counters of one GPU or MIG instance: ``take`` a sample, ask ``values`` of the last two.

    ``close`` gives the buffers back; do that before NVML is stopped.
    """

    gpu: Gpu
    _older: Any = field(default=None, repr=False)
    _newer: Any = field(default=None, repr=False)
    _request: Any = field(default=None, repr=False)
    _asked: Sequence[Counter] = field(default=(), repr=False)
    _answers: list[Any] = field(default_factory=list, repr=False)
    """Where the driver writes what was ``_asked``, within the request."""

    def open(self) -> Absent | None:
        """Take the first sample; the reason where this GPU, driver or guest has no GPM.

        After a reason there is no sample to be compared with: only another ``open`` takes it.
        """
        self.close()
        why = self._unsupported()
        if why is not None:
            return why
        try:
            self._older, self._newer = pynvml.nvmlGpmSampleAlloc(), pynvml.nvmlGpmSampleAlloc()
        except pynvml.NVMLError as error:
            return absent(error.value, self.gpu)
        self._request, self._asked = pynvml.c_nvmlGpmMetricsGet_t(), ()
        self._request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        return self.take()

    def _unsupported(self) -> Absent | None:
        card = self.gpu.card if self.gpu.mig_index is not None else self.gpu.handle
        try:
            architecture = pynvml.nvmlDeviceGetArchitecture(card)
            if architecture < pynvml.NVML_DEVICE_ARCH_HOPPER:
                name = ARCHITECTURES.get(architecture, f"of architecture {architecture}")
                return Absent(reason=f"GPM counters exist from Hopper on; this GPU is {name}")
            supported = bool(pynvml.nvmlGpmQueryDeviceSupport(card).isSupportedDevice)
        except pynvml.NVMLError as error:
            return self._why(error.value)
        if not supported:
            return self._why(pynvml.NVML_ERROR_NOT_SUPPORTED)
        if self.gpu.mig_index is not None and self.gpu.gpu_instance is None:
            return Absent(reason="the driver does not tell the GPU instance of this MIG instance")
        return None

    def take(self) -> Absent | None:
        """Copy the counters; the sample before stays to be compared with.

        Opens first if that failed before.
        """
        if self._older is None:
            return self.open()
        try:
            if self.gpu.mig_index is None:
                pynvml.nvmlGpmSampleGet(self.gpu.handle, self._older)
            else:
                pynvml.nvmlGpmMigSampleGet(self.gpu.card, self.gpu.gpu_instance, self._older)
        except pynvml.NVMLError as error:
            return self._why(error.value)
        self._older, self._newer = self._newer, self._older
        return None

    def values(self, counters: Sequence[Counter]) -> Values | Absent:
        """The means between the last two samples, in the units of the counters' names.

        A value that the driver calls a success and that cannot be is absent too.
        """
        if counters != self._asked:
            self._ask_for(counters)
        request = self._request
        request.sample1, request.sample2 = self._older, self._newer
        try:
            pynvml.nvmlGpmMetricsGet(request)
        except pynvml.NVMLError as error:
            return self._why(error.value)
        return tuple(map(self._checked, self._answers, counters))

    def _ask_for(self, counters: Sequence[Counter]) -> None:
        """Write into the request what is asked, once: the same is asked again and again."""
        self._request.numMetrics = len(counters)
        self._answers = [self._request.metrics[position] for position in range(len(counters))]
        for answer, counter in zip(self._answers, counters, strict=True):
            answer.metricId = counter.id
        self._asked = counters

    def _checked(self, metric: Any, counter: Counter) -> float | Absent:
        if metric.nvmlReturn != pynvml.NVML_SUCCESS:
            return self._why(metric.nvmlReturn)
        value = float(metric.value)
        if not math.isfinite(value) or not 0 <= value <= counter.most:
            return Absent(reason=INVALID, passing=True)
        return value * counter.factor

    def _why(self, code: int) -> Absent:
        if code == pynvml.NVML_ERROR_NOT_SUPPORTED and self.gpu.virtualization == VGPU_GUEST:
            return Absent(reason=VGPU_WHY)
        return absent(code, self.gpu)

    def close(self) -> None:
        """Give both buffers back; quiet where there are none, or NVML is already gone."""
        for sample in (self._older, self._newer):
            if sample is not None:
                with suppress(pynvml.NVMLError):
                    pynvml.nvmlGpmSampleFree(sample)
        self._older = self._newer = None
