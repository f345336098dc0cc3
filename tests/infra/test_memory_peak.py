"""Peaks by the kernel's words, and by a stand-in for torch.cuda."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from infra.device import Device
from infra.memory_peak import ProcessPeak, watch_peak

CUDA = Device(kind="cuda", name="test", index=1, amp=True)


def status(folder: Path, resident_kib: int, peak_kib: int) -> Path:
    path = folder / "status"
    path.write_text(f"Name:\tx\nVmHWM:\t{peak_kib} kB\nVmRSS:\t{resident_kib} kB\nThreads:\t1\n")
    return path


def test_a_process_that_grew_beyond_its_mark_has_a_number(tmp_path: Path) -> None:
    peak = ProcessPeak(status(tmp_path, 1000, 1200))
    status(tmp_path, 900, 5000)
    said = peak.read()
    assert said.peak_bytes == 4000 * 1024
    assert "coarse" in said.how
    assert said.reason is None


def test_a_process_that_was_larger_before_has_a_reason_and_no_number(tmp_path: Path) -> None:
    peak = ProcessPeak(status(tmp_path, 100 * 1024, 400 * 1024))
    said = peak.read().to_json()
    assert "peak_bytes" not in said
    assert "had held 400 MiB at once before this work began at 100 MiB" in said["reason"]


def test_a_kernel_that_does_not_say_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tx\n")
    assert "no VmRSS and VmHWM" in str(ProcessPeak(tmp_path / "status").read().reason)
    assert "no VmRSS and VmHWM" in str(ProcessPeak(tmp_path / "none").read().reason)


def test_cuda_is_asked_of_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    answers = {
        "reset_peak_memory_stats": 0,
        "memory_allocated": 100,
        "max_memory_allocated": 700,
        "max_memory_reserved": 2048,
    }

    def answer(name: str, index: int) -> int:
        asked.append((name, index))
        return answers[name]

    for name in answers:
        monkeypatch.setattr(torch.cuda, name, partial(answer, name))
    said = watch_peak(CUDA).read()
    assert (said.peak_bytes, said.reserved_bytes) == (600, 2048)
    assert {index for _, index in asked} == {1}
    assert asked[0][0] == "reset_peak_memory_stats"
