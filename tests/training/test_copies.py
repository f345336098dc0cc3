"""What is copied to and from a GPU is counted by its size; on the CPU there is nothing to count.

A tensor of torch's ``meta`` device stands for one on a GPU: it has a size, and is not on the host.
"""

from __future__ import annotations

import torch

from infra.device import Device
from tests.training.conftest import CountingHandle
from training.copies import ORDER_BYTES_PER_ROW, Copies

GPU = Device(kind="cuda", name="a GPU", index=0, amp=True)
CPU = Device(kind="cpu", name="a CPU", index=None, amp=False)


def state() -> dict[str, object]:
    """A checkpoint's kind of state: 40 B on the host, 24 B on the device, and what is no tensor."""
    return {
        "live": {"weight": torch.zeros(2, 3, device="meta")},
        "held": [torch.zeros(8), (torch.zeros(1, dtype=torch.int64),)],
        "steps": 7,
        "history": [{"loss": 0.5}],
    }


def test_only_what_lies_on_the_other_side_is_copied() -> None:
    handle = CountingHandle()
    copies = Copies(GPU, handle)
    copies.to_gpu(state())
    copies.from_gpu(state())
    assert handle.counts == {"host_to_device_bytes": 40, "device_to_host_bytes": 24}
    copies.bytes_to_gpu(1000)
    assert handle.counts["host_to_device_bytes"] == 1040


def test_on_the_cpu_there_is_no_counter_rather_than_one_of_zero() -> None:
    handle = CountingHandle()
    copies = Copies(CPU, handle)
    copies.to_gpu(state())
    copies.from_gpu(state())
    copies.bytes_to_gpu(1000)
    assert handle.counts == {}


def test_an_epochs_order_has_the_bytes_that_are_counted_per_row() -> None:
    assert torch.randperm(5).nbytes == 5 * ORDER_BYTES_PER_ROW
