"""Field values: figures that NVML tells by number, many in one call, each with its own outcome.

Source: NVML API reference, nvmlDeviceGetFieldValues and the field identifiers NVML_FI_*.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pynvml

from infra.nvml import FIELD_VALUE_MEMBER, Absent, Gpu, Values, absent


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field: NVML's number and the factor to the unit that is wanted."""

    id: int
    factor: float


@dataclass(frozen=True)
class FieldReader:
    """A reader of field values; it asks for all of them in one call."""

    name: str
    fields: tuple[Field, ...]

    def __call__(self, gpu: Gpu) -> Values | Absent:
        """A value per field; ``Absent`` alone where the call as a whole fails."""
        asked = [(one.id, 0) for one in self.fields]
        try:
            found = pynvml.nvmlDeviceGetFieldValues(gpu.handle, asked)
        except pynvml.NVMLError as error:
            return absent(error.value, gpu)
        return tuple(
            float(getattr(value.value, FIELD_VALUE_MEMBER[value.valueType])) * one.factor
            if (code := value.nvmlReturn) == pynvml.NVML_SUCCESS
            else absent(code, gpu)
            for one, value in zip(self.fields, found, strict=True)
        )


def together(readers: Iterable[FieldReader]) -> FieldReader:
    """One reader for the fields of all these, in their order."""
    return FieldReader("fields", tuple(field for reader in readers for field in reader.fields))


POWER_INSTANT_W = FieldReader(
    "power_instant_field_w", (Field(id=pynvml.NVML_FI_DEV_POWER_INSTANT, factor=1e-3),)
)
"""(power now,)."""
POWER_AVERAGE_W = FieldReader(
    "power_average_field_w", (Field(id=pynvml.NVML_FI_DEV_POWER_AVERAGE, factor=1e-3),)
)
"""(mean power of the last second,)."""
THROTTLED_SECONDS = FieldReader(
    "throttled_seconds",
    (
        Field(id=pynvml.NVML_FI_DEV_PERF_POLICY_POWER, factor=1e-9),
        Field(id=pynvml.NVML_FI_DEV_PERF_POLICY_THERMAL, factor=1e-9),
    ),
)
"""(by power, by heat): seconds with lowered clocks, cumulative, moved about every 100 ms."""
