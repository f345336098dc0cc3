"""How much is copied between the host and a GPU, counted from the sizes of what is copied.

A batch is gathered where the table lies, so nothing is copied for it but the order of its rows. On
the CPU nothing is copied, and nothing is counted: there is no counter, rather than one of 0. The
single numbers that the host asks a GPU for (losses) are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from infra.device import Device
from training.batches import Handle

ORDER_BYTES_PER_ROW = 8
"""The order of an epoch is drawn on the host, int64."""


class Copies:
    """Tells the recorder what is copied to and from ``device``."""

    def __init__(self, device: Device, handle: Handle) -> None:
        self._device, self._handle = device, handle

    def to_gpu(self, held: Any) -> None:
        """All tensors in nested plain data that lie on the host are about to be copied."""
        self.bytes_to_gpu(_tensor_bytes(held, on_host=True))

    def bytes_to_gpu(self, n: int) -> None:
        """So many bytes of the host are about to be copied."""
        self._count("host_to_device_bytes", n)

    def from_gpu(self, held: Any) -> None:
        """All tensors in nested plain data that do not lie on the host are about to be copied."""
        self._count("device_to_host_bytes", _tensor_bytes(held, on_host=False))

    def _count(self, metric: str, n: int) -> None:
        if self._device.kind != "cpu":
            self._handle.count(metric, n)


def _tensor_bytes(held: Any, *, on_host: bool) -> int:
    return sum(one.nbytes for one in _tensors(held) if (one.device.type == "cpu") == on_host)


def _tensors(held: Any) -> Iterator[Tensor]:
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, Mapping):
        for one in held.values():
            yield from _tensors(one)
    elif isinstance(held, list | tuple):
        for one in held:
            yield from _tensors(one)
