"""Where the time of the training loop goes: data wait, host to device, compute, and the rest.

The loop tells a clock whenever one part ends. On the CPU that is the clock of the host, at every
step. On CUDA the host only queues work, so there the marks are events in the GPU's own queue, and
no step waits for them: they are read when they have passed. Recording the five events of a
step takes about as long as queueing two kernels. So steps of 4 ms and more are all marked, and of
shorter ones about one in eight, at random, so that no period of the data can follow; the time of
the loop by the host is then shared out as the marked steps were. The first step of every loop is
marked and stands for itself alone: it draws the order.

Between two events lies the GPU's work and, where the host queues more slowly than the GPU works,
the GPU's wait for the next launch. How much of ``compute`` can be such a wait is told beside it:
the GPU can only have waited where it had passed the mark before ``compute`` while the host still
queued it, and no longer than the host took for that.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

from infra.device import Device
from training.batches import Handle

Part = Literal["data_wait", "host_to_device", "compute", "other"]
Clock = Callable[[], int]
PARTS: tuple[Part, ...] = ("data_wait", "host_to_device", "compute", "other")
HOST_BOUND = "compute_host_bound"
"""Of compute, the time in which a GPU can have waited for the next launch."""
TOLD_EVERY_NS = 250_000_000
"""How often the recorder is told: finer than its own second, and too seldom to cost anything."""
LONG_STEP_NS = 4_000_000
"""Five events are some 10 us of the host's: 0.25 % of such a step."""
MARKED_ONE_IN = 8
"""Of shorter steps one in so many is marked, on average."""
ENOUGH_MARKED = 32
"""Marked steps that are shared out by themselves; the share of few is biased where some stall."""


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """What the steps of a training took. The four parts sum to ``loop_seconds``."""

    measured_by: str
    steps: int
    loop_seconds: float
    data_wait_seconds: float
    """Until the loader has given a batch, the drawing of the order included."""
    host_to_device_seconds: float
    """Until that batch is on the device; next to nothing where the table lies there already."""
    compute_seconds: float
    """Forward, loss, backward, optimiser, running average; on a GPU its waits for the next launch
    as well."""
    other_seconds: float
    compute_host_bound_seconds: float | None = None
    """Of compute, at most so long did the GPU wait for the next launch; None on the CPU, where
    nothing is launched."""

    @classmethod
    def of(cls, ones: Iterable[StepTimes]) -> StepTimes:
        """The sum of several trainings that were measured alike."""
        every = list(ones)
        names = ("steps", "loop_seconds", *(f"{part}_seconds" for part in PARTS))
        sums = {name: sum(getattr(one, name) for one in every) for name in names}
        bound = [one.compute_host_bound_seconds for one in every]
        known = [seconds for seconds in bound if seconds is not None]
        return cls(
            measured_by=every[0].measured_by,
            compute_host_bound_seconds=sum(known) if known else None,
            **sums,
        )

    def to_json(self) -> dict[str, Any]:
        """Without what is absent."""
        return {name: value for name, value in vars(self).items() if value is not None}


class StepClock(Protocol):
    """Told by the loop: ``begin``, then for every step its laps and ``step_done``, then ``end``."""

    def begin(self) -> None:
        """A loop over steps begins; what a device still has to do for others is waited for."""
        ...

    def lap(self, part: Part) -> None:
        """What ran since the lap before belongs to ``part``."""
        ...

    def step_done(self, rows: int) -> None:
        """A step of so many rows is over; what ran since its last lap is ``other``."""
        ...

    def end(self) -> None:
        """The loop is over, and on a device all of its work is done."""
        ...

    def times(self) -> StepTimes:
        """The sums over all loops so far."""
        ...


def step_clock(device: Device, handle: Handle) -> StepClock:
    """The clock that fits the device."""
    if device.kind == "cpu":
        return HostStepClock(handle)
    import torch

    return DeviceStepClock(
        handle, _cuda_mark(device), partial(torch.cuda.synchronize, device.index)
    )


class _Sums:
    """What was measured so far, by the ``names`` of times, told to the recorder's handle."""

    def __init__(self, handle: Handle, *names: str) -> None:
        self._handle = handle
        self.ns = dict.fromkeys(names, 0.0)
        self.steps = 0

    def add(self, spent_ns: Mapping[str, float], steps: int, rows: int) -> None:
        for name, ns in spent_ns.items():
            self.ns[name] += ns
            self._handle.count(f"step_{name}_seconds", ns / 1e9)
        self.steps += steps
        self._handle.count("steps", steps)
        self._handle.count("samples", rows)

    def times(self, measured_by: str) -> StepTimes:
        return StepTimes(
            measured_by=measured_by,
            steps=self.steps,
            loop_seconds=_sum_of_parts(self.ns) / 1e9,
            **{f"{name}_seconds": ns / 1e9 for name, ns in self.ns.items()},
        )


class HostStepClock:
    """Every part of every step by the host's clock: exact where the host does the work."""

    def __init__(self, handle: Handle, now_ns: Clock = time.perf_counter_ns) -> None:
        self._sums, self._now_ns = _Sums(handle, *PARTS), now_ns
        self._spent: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._last_ns = self._told_ns = 0
        self._steps = self._rows = 0

    def begin(self) -> None:
        self._last_ns = self._told_ns = self._now_ns()

    def lap(self, part: Part) -> None:
        now_ns = self._now_ns()
        self._spent[part] += now_ns - self._last_ns
        self._last_ns = now_ns

    def step_done(self, rows: int) -> None:
        self._steps += 1
        self._rows += rows
        if self._last_ns - self._told_ns >= TOLD_EVERY_NS:
            self._tell()
        self.lap("other")

    def end(self) -> None:
        self.lap("other")
        self._tell()

    def times(self) -> StepTimes:
        return self._sums.times("the host's clock, every step")

    def _tell(self) -> None:
        self._sums.add(self._spent, self._steps, self._rows)
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._steps = self._rows = 0
        self._told_ns = self._last_ns


class Mark(Protocol):
    """A point in a device's queue of work."""

    def query(self) -> bool:
        """Whether the device has passed it."""
        ...

    def elapsed_time(self, later: Any, /) -> float:
        """Milliseconds on the device from this point to a later one; both are passed."""
        ...


@dataclass(kw_only=True)
class _Marked:
    """The marks of one step: where it began, and where each part ended."""

    first: bool
    queued_ns: int
    """When the host came to queue the last mark."""
    begin: Mark
    ends: list[tuple[Part, Mark]]
    queueing_ns: int = 0
    """How long the host queued compute, where the device had meanwhile come to its beginning."""

    def last(self) -> Mark:
        return self.ends[-1][1] if self.ends else self.begin

    def passed(self) -> bool:
        return self.last().query()

    def spent_ns(self) -> dict[str, float]:
        spent = _nothing()
        before = self.begin
        for part, mark in self.ends:
            spent[part] += before.elapsed_time(mark) * 1e6
            before = mark
        spent[HOST_BOUND] = min(spent["compute"], self.queueing_ns)
        return spent


class DeviceStepClock:
    """The parts of some steps by marks in the device's queue; the loop's time by the host's clock.

    ``mark`` puts a mark into the queue, ``synchronise`` waits until the queue is empty. The sums
    are those of the host's time: that of the first step of a loop as it was marked, all other time
    in the proportion of the marked steps.
    """

    def __init__(
        self,
        handle: Handle,
        mark: Callable[[], Mark],
        synchronise: Callable[[], object],
        now_ns: Clock = time.perf_counter_ns,
    ) -> None:
        self._sums = _Sums(handle, *_nothing())
        self._mark, self._synchronise, self._now_ns = mark, synchronise, now_ns
        self._stride = random.Random(0)  # noqa: S311 - which steps are marked is no secret
        self._until_marked = 0
        self._open: _Marked | None = None
        self._waiting: deque[_Marked] = deque()
        self._one_in, self._fresh_steps = MARKED_ONE_IN, 0
        self._fresh, self._firsts = _nothing(), _nothing()
        """Read and not told yet: of marked steps, and of the first steps of loops."""
        self._seen, self._seen_firsts = _nothing(), _nothing()
        """The same of all that were read."""
        self._told_ns = 0
        self._steps = self._rows = 0

    def begin(self) -> None:
        self._synchronise()
        self._told_ns = self._now_ns()
        self._begin_step(first=True)

    def lap(self, part: Part) -> None:
        one = self._open
        if one is None:
            return
        caught_up = part == "compute" and one.last().query()
        before_ns, one.queued_ns = one.queued_ns, self._now_ns()
        one.ends.append((part, self._mark()))
        if caught_up:
            one.queueing_ns = self._now_ns() - before_ns

    def step_done(self, rows: int) -> None:
        self._steps += 1
        self._rows += rows
        if self._open is not None:
            self.lap("other")
            self._waiting.append(self._open)
            self._open = None
        self._until_marked -= 1
        if self._until_marked <= 0:
            self._until_marked = self._stride.randint(1, 2 * self._one_in - 1)
            if self._now_ns() - self._told_ns >= TOLD_EVERY_NS:
                self._tell()  # before the mark: what it takes of the host is no part of a step
            self._begin_step(first=False)

    def end(self) -> None:
        self._open = None
        self._tell(at_end=True)

    def times(self) -> StepTimes:
        return self._sums.times(
            f"events in the GPU's queue, at one short step in {MARKED_ONE_IN} and at every long "
            "one; their sum by the host's clock"
        )

    def _begin_step(self, *, first: bool) -> None:
        self._open = _Marked(first=first, queued_ns=self._now_ns(), begin=self._mark(), ends=[])

    def _tell(self, *, at_end: bool = False) -> None:
        self._read()
        if self._fresh_steps:
            step_ns = _sum_of_parts(self._fresh) / self._fresh_steps
            self._one_in = 1 if step_ns >= LONG_STEP_NS else MARKED_ONE_IN
        if not (at_end or self._can_tell()):
            return  # this time is shared out at a later telling
        now_ns = self._now_ns()
        host_ns = now_ns - self._told_ns
        firsts_ns = _sum_of_parts(self._firsts)
        fits = min(1.0, host_ns / firsts_ns) if firsts_ns else 0.0
        rest_ns = host_ns - fits * firsts_ns
        shares = self._shares()
        spent = {name: fits * ns + rest_ns * shares[name] for name, ns in self._firsts.items()}
        self._sums.add(spent, self._steps, self._rows)
        self._fresh, self._firsts, self._fresh_steps = _nothing(), _nothing(), 0
        self._steps = self._rows = 0
        self._told_ns = now_ns

    def _read(self) -> None:
        """Take in the marked steps that the device has passed; it is not waited for."""
        while self._waiting and self._waiting[0].passed():
            one = self._waiting.popleft()
            new, all_ = (
                (self._firsts, self._seen_firsts) if one.first else (self._fresh, self._seen)
            )
            self._fresh_steps += not one.first
            for name, ns in one.spent_ns().items():
                new[name] += ns
                all_[name] += ns

    def _can_tell(self) -> bool:
        """Whether the steps read of late stand for all of late: they are many, or nearly all."""
        return self._fresh_steps >= (1 if self._one_in == 1 else ENOUGH_MARKED)

    def _shares(self) -> dict[str, float]:
        """How a step's time is shared out: as of late, where that can be told."""
        of_late = (self._fresh,) if self._can_tell() else ()
        for spent in (*of_late, self._seen, self._seen_firsts):
            total = _sum_of_parts(spent)
            if total:
                return {name: ns / total for name, ns in spent.items()}
        return {**_nothing(), "other": 1.0}


def _nothing() -> dict[str, float]:
    """No time of any part of a device's steps, and of no compute."""
    return dict.fromkeys((*PARTS, HOST_BOUND), 0.0)


def _sum_of_parts(spent: Mapping[str, float]) -> float:
    return sum(spent[part] for part in PARTS)


def _cuda_mark(device: Device) -> Callable[[], Mark]:
    import torch

    stream = torch.cuda.current_stream(device.index)

    def mark() -> Mark:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        marked: Mark = event
        return marked

    return mark
