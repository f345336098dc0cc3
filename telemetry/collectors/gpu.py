"""What each GPU of this run does, by NVML: tables of questions, each decided on opening.

Entities are ``gpu:<index>`` in NVML's order (PCI bus), and ``gpu:<index>/mig:<slot>`` for a MIG
instance, which has its own memory, processes and GPM counters; power, clocks and energy exist for
the whole card alone. A GPU that is lost, or answers nothing at all, stops its series, keeps
``gpu_up`` at 0 and leaves its reason in ``losses``; a counter that goes backwards is passed on.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from infra import nvml
from infra.gpus import choose, why_none
from infra.nvml_buffers import POWER_W
from infra.nvml_fields import FieldReader, together
from telemetry.clock import Clock
from telemetry.collectors.gpu_buffers import LevelSource
from telemetry.collectors.gpu_gpm import PERIOD_S as GPM_PERIOD_S
from telemetry.collectors.gpu_gpm import GpmSource, covered, may_pass
from telemetry.collectors.gpu_losses import Losses
from telemetry.collectors.gpu_metrics import (
    ENERGY,
    GPM_METRICS,
    METRICS,
    OF_INSTANCES,
    POWER_BUFFER,
    PROCESS_MEMORY,
    PROCESS_USES,
    QUESTIONS,
    UP,
    Question,
)
from telemetry.collectors.gpu_processes import PROCESS_S, Kin, ProcessMemorySource, ProcessSource
from telemetry.samples import Sample, Samples, Series, samples_at

__all__ = ["METRICS", "NO_GPU", "QUESTIONS", "UP", "GpuCollector"]

NO_GPU = "gpu"
"""Entity of the absent series where there is no GPU at all."""
SLOW_S = 1.0
"""How often the ``slow`` questions are asked."""
OF_THE_CARD = "not told for a MIG instance: its card has it, or the reason why not"
MOVES_S = 0.3
"""The last sample takes at most so much longer, for all GPUs together, until their energy counters
have moved: they do about every 100 ms, and only a value from after a stage bounds what it took."""
ASK_AGAIN_S = 0.02
"""How often an energy counter is asked for meanwhile."""
PASSES_S = 0.05
"""So long after it a failure on opening that may pass is asked about once more."""

_Failure = tuple[nvml.Gpu, Series, nvml.Absent, int]
"""Which series had no value, why, and when (ns)."""


class Source(Protocol):
    """What has samples at times of its own; asked at every tick, and once more as the ``last``."""

    gpu: nvml.Gpu

    def sample(self, last: bool = False) -> Sequence[Sample]: ...


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is asked of one GPU at each sample: the reader that answered, and a series per value."""

    gpu: nvml.Gpu
    reader: nvml.Reader
    series: tuple[Series, ...]
    window_ns: int | None
    doubtful: bool = False
    """What is absent may be there when it is asked again."""
    plain: bool = field(init=False)
    """No series is absent, and none is a window."""

    def __post_init__(self) -> None:
        whole = all(one.reason is None for one in self.series)
        object.__setattr__(self, "plain", whole and self.window_ns is None)


@dataclass(kw_only=True)
class GpuCollector:
    """NVML's view of the GPUs of this run. ``losses``: what went away after opening, and when;
    before that, what is to be known about which GPUs these are."""

    clock: Clock
    period_s: float = 0.1
    name: str = "gpu"
    root: int = field(default_factory=os.getppid)
    """The process whose descendants are this run: whoever started the recorder."""
    losses: list[str] = field(default_factory=list)
    ended: deque[Series] = field(default_factory=deque, repr=False)
    """Series that had values and have none any more, with the reason; whoever writes takes them."""
    _plans: dict[str, list[_Plan]] = field(default_factory=dict, repr=False)
    """By entity: what is asked at every tick."""
    _slow: dict[str, list[_Plan]] = field(default_factory=dict, repr=False)
    """The same of what is asked every ``SLOW_S``."""
    _slow_due_s: float = field(default=0.0, repr=False)
    _up: dict[str, Series] = field(default_factory=dict, repr=False)
    _blocking: deque[_Plan] = field(default_factory=deque, repr=False)
    _sources: dict[str, list[Source]] = field(default_factory=dict, repr=False)
    _gpm: list[GpmSource] = field(default_factory=list, repr=False)
    slow_periods: dict[str, float] = field(default_factory=dict)
    """Periods (s) of what has another pace than the collector, by metric or by series."""
    _lost: Losses = field(init=False, repr=False)
    _started: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        self._lost = Losses(told=self.losses, ended=self.ended)

    def open(self) -> Sequence[Series]:
        """Ask every GPU every question once; what does not answer is absent, with the reason."""
        failure = nvml.start()
        if failure is not None:
            return _all_absent(NO_GPU, failure.reason)
        self._started = True
        listed = nvml.list_gpus()
        if isinstance(listed, nvml.Absent):
            return _all_absent(NO_GPU, listed.reason)
        self._kin = Kin(root=self.root)
        selection = choose(listed)
        if not selection.gpus:
            return _all_absent(NO_GPU, why_none(listed, selection))
        if selection.note is not None and selection.note not in self.losses:
            self.losses.append(selection.note)
        slow = [metric for question in QUESTIONS if question.slow for metric in question.metrics]
        processes = (*PROCESS_USES, *PROCESS_MEMORY)
        for pace_s, metrics in (SLOW_S, slow), (GPM_PERIOD_S, GPM_METRICS), (PROCESS_S, processes):
            names = (metric.name for metric in metrics)
            self.slow_periods |= dict.fromkeys(names, max(pace_s, self.period_s))
        for gpu in selection.gpus:  # First of all: the other questions fill the time of a pair.
            if gpu.reason is None:
                source = GpmSource(gpu=gpu, clock=self.clock, tick_s=self.period_s, lost=self._lost)
                source.begin()
                self._gpm.append(source)
        found = [series for gpu in selection.gpus for series in self._open_gpu(gpu)]
        for source in self._gpm:
            found += (decided := source.decide())
            if any(series.reason is None for series in decided):
                self._sources[source.gpu.entity].append(source)
        for source in self._gpm:  # Last: a driver that was just loaded fills its buffer meanwhile.
            if source.gpu.mig_index is None:
                found.append(self._open_buffer(source.gpu))
        found = self._without_doubles(found)
        self._lost.present += [one for one in found if one.reason is None and one.metric is not UP]
        return found

    def _without_doubles(self, found: Sequence[Series]) -> list[Series]:
        """The same series; what GPM tells better is absent, and not asked for."""
        better = covered(self._gpm, self.period_s)
        plans = [p for p in self._blocking if (p.gpu.entity, p.series[0].metric) not in better]
        self._blocking = deque(plans)
        return [
            replace(one, reason=better.get((one.entity, one.metric), one.reason)) for one in found
        ]

    def _open_gpu(self, gpu: nvml.Gpu) -> list[Series]:
        up = self._up[gpu.entity] = Series(entity=gpu.entity, metric=UP)
        if gpu.reason is not None:
            return [up, *_all_absent(gpu.entity, gpu.reason)[1:]]
        found = [up]
        plans: list[_Plan] = []
        slow: list[_Plan] = []
        sources = self._sources[gpu.entity] = []
        if gpu.mig_index is None:
            processes = ProcessSource(gpu=gpu, clock=self.clock, lost=self._lost, kin=self._kin)
            found += (uses := processes.open())
            if any(series.reason is None for series in uses):
                sources.append(processes)
        memory = ProcessMemorySource(gpu=gpu, clock=self.clock, lost=self._lost, kin=self._kin)
        held = memory.open()
        found += held
        if any(series.reason is None for series in held):
            sources.append(memory)
        asked = [one for one in QUESTIONS if gpu.mig_index is None or one.of_instances]
        for question, plan in zip(asked, _decide_all(gpu, asked), strict=True):
            found += plan.series
            if any(series.reason is None for series in plan.series):
                paced = slow if question.slow else plans
                (self._blocking if plan.window_ns else paced).append(plan)
        found += _of_the_card(gpu)
        self._plans[gpu.entity], self._slow[gpu.entity] = _together(plans), _together(slow)
        return found

    def _open_buffer(self, gpu: nvml.Gpu) -> Series:
        """The driver's own buffer of power, beside the questions."""
        source = LevelSource(
            gpu=gpu, metric=POWER_BUFFER, buffer=POWER_W, clock=self.clock, lost=self._lost
        )
        series = source.open(self.period_s)
        if series.reason is None:
            self._sources[gpu.entity].append(source)
            self.slow_periods[f"{gpu.entity} {POWER_BUFFER.name}"] = source.period_s
        return series

    def sample(self) -> Samples:
        """Return what every GPU answers now; never raises for a GPU that is lost."""
        return self._sample(last=False)

    def last_sample(self) -> Samples:
        """The same, with all that the slower sources have until now: nothing comes after it.

        Then the energy counters alone, until each has moved after it was asked once more, or
        ``MOVES_S`` are over.
        """
        samples = self._sample(last=True)
        self._see_energy_move(samples)
        return samples

    def _see_energy_move(self, samples: list[Sample]) -> None:
        told = [one.series.entity for one in samples if one.series.metric is ENERGY]
        waiting = [
            plan
            for entity in told
            for plan in self._plans[entity]
            if plan.series[0].metric is ENERGY
        ]
        asked_j: dict[str, float] = {}
        until_s = time.monotonic() + MOVES_S - ASK_AGAIN_S
        while waiting and time.monotonic() < until_s:
            time.sleep(ASK_AGAIN_S)
            waiting = [one for one in waiting if self._stands_still(one, asked_j, samples)]

    def _stands_still(self, plan: _Plan, asked_j: dict[str, float], samples: list[Sample]) -> bool:
        """Ask for the energy once more; whether it is told, and still what was told first here.

        ``asked_j``: that, by entity. Of this reading the stamp of the last sample before it says
        that it was begun after the stage: a stamp is from the end of its own call.
        """
        before = len(samples)
        self._tell(self._ask(plan, samples))
        if len(samples) == before:
            return False
        return samples[-1].value == asked_j.setdefault(plan.gpu.entity, samples[-1].value)

    def _sample(self, last: bool) -> list[Sample]:
        samples: list[Sample] = []
        now_s = time.monotonic()
        slow = last or now_s >= self._slow_due_s
        if slow:
            self._slow_due_s = now_s + SLOW_S - self.period_s / 2
        alive: set[str] = set()
        for entity in self._plans:  # a card before its instances
            if self._answers(entity, samples, slow, alive):
                alive.add(entity)
        for entity, series in self._up.items():
            samples.append(Sample(self.clock.now_ns(), series, float(entity in alive)))
        if self._blocking:
            plan = self._blocking[0]
            self._blocking.rotate(-1)
            if plan.gpu.entity in alive:
                self._tell(self._ask(plan, samples))
        for entity, sources in self._sources.items():
            if entity in alive:
                for source in sources:
                    samples += source.sample(last)
        self._lost.find_again(samples)
        return samples

    def _answers(self, entity: str, samples: list[Sample], slow: bool, alive: set[str]) -> bool:
        """Ask one GPU all that does not block; False as soon as it turns out to be lost, or where
        nothing answers. An instance of which nothing is asked lives while its card does."""
        usual, seldom = self._plans[entity], self._slow[entity]
        if not (usual or seldom):
            card, _, slot = entity.partition("/")
            return card in alive if slot else self._is_there(entity)
        before = len(samples)
        failed: list[_Failure] = []
        for plan in (*usual, *(seldom if slow else ())):
            failed += self._ask(plan, samples)
            if failed and failed[-1][2].lost:
                break
        if failed and len(samples) == before and not failed[-1][2].lost:
            gpu, series, why, ts_ns = failed[0]
            if isinstance(nvml.process_memory_bytes(gpu), nvml.Absent):  # nor does it answer this
                failed = [(gpu, series, replace(why, lost=True), ts_ns)]
        self._tell(failed)
        return not (failed and failed[-1][2].lost)

    def _is_there(self, card: str) -> bool:
        """Of a card whose plain questions all failed on opening, but for a source of its own."""
        sources = self._sources[card]
        return bool(sources) and not isinstance(
            nvml.process_memory_bytes(sources[0].gpu), nvml.Absent
        )

    def _ask(self, plan: _Plan, samples: list[Sample]) -> Sequence[_Failure]:
        """Take what a plan asks for among the samples; what failed, up to a GPU that is lost."""
        values = plan.reader(plan.gpu)
        ts_ns = self.clock.now_ns()
        if plan.plain and isinstance(values, tuple) and nvml.Absent not in map(type, values):
            samples += samples_at(ts_ns, plan.series, values)  # type: ignore[arg-type]
            return ()
        if isinstance(values, nvml.Absent):
            values = (values,) * len(plan.series)
        start_ns = ts_ns - plan.window_ns if plan.window_ns else None
        failed: list[_Failure] = []
        for series, value in zip(plan.series, values, strict=True):
            if series.reason is not None:
                continue
            if isinstance(value, nvml.Absent):
                failed.append((plan.gpu, series, value, ts_ns))
                if value.lost:
                    break
            else:
                samples.append(Sample(ts_ns, series, value, start_ns))
        return failed

    def _tell(self, failed: Sequence[_Failure]) -> None:
        for gpu, series, why, ts_ns in failed:
            self._lost.lose(gpu, series, why, ts_ns)

    def close(self) -> None:
        """Give NVML back. The same collector can be opened again."""
        for source in self._gpm:
            source.close()
        for kept in (
            self._plans, self._slow, self._up, self._blocking,
            self._sources, self._gpm, self.slow_periods, self._lost,
        ):  # fmt: skip
            kept.clear()
        self._slow_due_s = 0.0
        if self._started:
            nvml.stop()
        self._started = False


def _of_the_card(gpu: nvml.Gpu) -> list[Series]:
    """What a MIG instance does not tell and its card may; nothing for a whole GPU."""
    if gpu.mig_index is None:
        return []
    left = (metric for metric in METRICS if metric is not UP and metric not in OF_INSTANCES)
    return [Series(entity=gpu.entity, metric=metric, reason=OF_THE_CARD) for metric in left]


def _decide_all(gpu: nvml.Gpu, questions: Sequence[Question]) -> list[_Plan]:
    """What becomes of each question; one that failed and may not again is asked once more."""
    plans = [_decide(gpu, one) for one in questions]
    if any(plan.doubtful for plan in plans):
        time.sleep(PASSES_S)
    both = zip(plans, questions, strict=True)
    return [_decide(gpu, one) if plan.doubtful else plan for plan, one in both]


def _decide(gpu: nvml.Gpu, question: Question) -> _Plan:
    """Keep the first reader that answers; without one, every series is absent for their reasons."""
    reasons: dict[str, None] = {}
    passing = False
    for reader in question.readers:
        values = reader(gpu)
        if isinstance(values, nvml.Absent):
            values = (values,) * len(question.metrics)
        absent = [value.reason for value in values if isinstance(value, nvml.Absent)]
        if len(absent) < len(values):
            return _plan(gpu, question, reader, values)
        reasons |= dict.fromkeys(absent)
        passing |= may_pass(values)
    nothing = nvml.Absent(reason="; ".join(reasons), passing=passing)
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
    again = question.again or reader
    doubtful = may_pass(values)
    return _Plan(
        gpu=gpu, reader=again, series=series, window_ns=question.window_ns, doubtful=doubtful
    )


def _together(plans: Sequence[_Plan]) -> list[_Plan]:
    """The same plans, with all that are field values as one: the driver tells them in one call."""
    fields = [(plan, plan.reader) for plan in plans if isinstance(plan.reader, FieldReader)]
    if not fields:
        return list(plans)
    series = tuple(one for plan, _ in fields for one in plan.series)
    reader = together(reader for _, reader in fields)
    asked = _Plan(gpu=plans[0].gpu, reader=reader, series=series, window_ns=None)
    return [asked, *(plan for plan in plans if not isinstance(plan.reader, FieldReader))]


def _all_absent(entity: str, reason: str) -> list[Series]:
    return [Series(entity=entity, metric=metric, reason=reason) for metric in METRICS]
