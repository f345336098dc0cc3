"""What processes used of a GPU, from samples of the driver that are made here."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from infra.nvml import Absent, Gpu
from infra.nvml_buffers import Used
from telemetry.clock import Clock
from telemetry.collectors.gpu_losses import Losses
from telemetry.collectors.gpu_processes import (
    INITIAL_PID_NAMESPACE,
    Kin,
    ProcessMemorySource,
    ProcessSource,
)

STEP_US = 166_000

Ask = Callable[..., dict[str, float]]


def _looks(*percents: tuple[int, int]) -> list[Used]:
    """Process and percent of each of the driver's looks, ``STEP_US`` apart and all in the past."""
    first_us = time.time_ns() // 1000 - 10_000_000
    return [Used(first_us + n * STEP_US, pid, sm, sm) for n, (pid, sm) in enumerate(percents)]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """One window of a source that has been opened: what it says, by metric."""
    (tmp_path / "self/ns").mkdir(parents=True)
    (tmp_path / "self/ns/pid").symlink_to(INITIAL_PID_NAMESPACE)
    for pid, parent in ((7, 1), (8, 7), (9, 1), (1, 0)):
        (tmp_path / str(pid)).mkdir()
        told = f"Name:\tpython\nTgid:\t{pid}\nPid:\t{pid}\nPPid:\t{parent}\n"
        (tmp_path / str(pid) / "status").write_text(told)

    def window(
        before: Sequence[Used], found: Sequence[Used], seconds: float, *, last: bool = False
    ) -> dict[str, float]:
        answers = deque([before, found])
        monkeypatch.setattr(
            "telemetry.collectors.gpu_processes.used", lambda gpu, after: answers.popleft()
        )
        source = ProcessSource(
            gpu=Gpu(index=0, uuid="GPU-0", name="H100", handle=None),
            clock=Clock(offset_ns=0),
            lost=Losses(told=[], ended=deque()),
            kin=Kin(root=7, proc=tmp_path),
        )
        source.open()
        source.clock = Clock(offset_ns=int(seconds * 1e9))
        return {one.series.metric.name: one.value for one in source.sample(last)}

    return window


def test_a_last_window_in_which_the_driver_may_not_have_looked_is_not_idle(ask: Ask) -> None:
    known = _looks((7, 50), (7, 50), (7, 50))
    assert ask(known, [], 0.1, last=True) == {}
    assert ask(known, [], 0.3, last=True)["gpu_processes_sm_percent"] == 0
    assert ask([], [], 0.9, last=True) == {}
    assert ask([], [], 1.1, last=True)["gpu_run_sm_percent"] == 0
    assert ask(known, _looks((7, 40)), 0.1, last=True)["gpu_run_sm_percent"] == 40


def test_after_a_long_rest_a_last_window_of_a_second_is_idle_all_the_same(ask: Ask) -> None:
    one, other = _looks((7, 50), (7, 50))
    known = [one._replace(stamp_us=one.stamp_us - 60_000_000), other]
    assert ask(known, [], 0.9, last=True) == {}
    assert ask(known, [], 1.1, last=True)["gpu_processes_sm_percent"] == 0


def test_processes_that_take_turns_have_no_more_than_the_whole_gpu(ask: Ask) -> None:
    told = ask([], _looks((7, 90), (8, 90), (7, 90), (8, 90)), 1.0)
    assert set(told.values()) == {100}
    assert len(told) == 4
    shared = ask([], _looks((7, 30), (8, 50)), 1.0)
    assert set(shared.values()) == {80}


def test_of_a_gpu_that_two_kept_full_each_has_its_share(ask: Ask) -> None:
    told = ask([], _looks((7, 90), (9, 90), (7, 90), (9, 90)), 1.0)
    assert told["gpu_processes_sm_percent"] == 100
    assert told["gpu_run_sm_percent"] == 50
    told = ask([], _looks((7, 60), (9, 30)), 1.0)
    assert (told["gpu_processes_sm_percent"], told["gpu_run_sm_percent"]) == (90, 60)


@pytest.mark.parametrize(
    ("driver", "held"),
    [("570.86.15", 5.0), ("1001.1", 5.0), ("560.35.03", None), ("", None)],
)
def test_in_a_container_a_driver_that_lists_its_processes_alone_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str, held: float | None
) -> None:
    (tmp_path / "self/ns").mkdir(parents=True)
    (tmp_path / "self/ns/pid").symlink_to("pid:[4026532999]")
    monkeypatch.setattr("infra.nvml.process_memory_bytes", lambda gpu: {7: 5.0})
    monkeypatch.setattr("infra.nvml.driver_version", lambda: driver or Absent(reason="unknown"))
    source = ProcessMemorySource(
        gpu=Gpu(index=0, uuid="GPU-0", name="H200", handle=None),
        clock=Clock(offset_ns=0),
        lost=Losses(told=[], ended=deque()),
        kin=Kin(root=7, proc=tmp_path),
    )
    source.open()
    told = {one.series.metric.name: one.value for one in source.sample()}
    assert told.get("gpu_run_mem_bytes") == held
    assert told["gpu_process_mem_bytes"] == 5.0
