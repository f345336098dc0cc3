"""Bytes of the tensors that a piece of code makes and keeps, counted as it runs, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensor storages that were made inside of ``with``, while they live.

    A view shares its storage and counts once; what was made before ``with`` does not count. Each
    storage is rounded up to ``block_bytes``, as an allocator does; with a ``kind`` ("cuda") those
    of other devices do not count. What a kernel takes for itself while it runs (the workspace of a
    matrix product) is not seen. Under ``FakeTensorMode``, entered before it, the same code is
    counted without its memory being taken.
    """

    def __init__(self, *, block_bytes: int = 1, kind: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kind = kind
        self.bytes = 0
        self.peak_bytes = 0
        self._block_bytes = block_bytes
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def restart_peak(self) -> int:
        """Return the peak so far and forget it: the next one is at least what lives now."""
        peak_bytes, self.peak_bytes = self.peak_bytes, self.bytes
        return peak_bytes

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_iter(made):
            if isinstance(one, torch.Tensor):
                self._see(one.untyped_storage())
        return made

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive or self._kind not in {None, storage.device.type}:
            return
        rounded = -(-storage.nbytes() // self._block_bytes) * self._block_bytes

        def gone(_: weakref.ref[torch.UntypedStorage]) -> None:
            del self._alive[key]
            self.bytes -= rounded

        self._alive[key] = weakref.ref(storage, gone)
        self.bytes += rounded
        self.peak_bytes = max(self.peak_bytes, self.bytes)
