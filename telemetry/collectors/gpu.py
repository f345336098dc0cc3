"""What each GPU of this run does, by NVML: tables of questions, each decided on opening.

Entities are ``gpu:<index>`` in NVML's order (PCI bus), and ``gpu:<index>/mig:<slot>`` for a MIG
instance, which has its own memory, processes and GPM counters; power, clocks and energy exist for
the whole card alone. A GPU that is lost stops its series, keeps ``gpu_up`` at 0 and leaves its
reason in ``losses``; a counter that goes backwards is passed on as it is.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from infra import nvml
from infra.gpus import choose, why_none
from infra.nvml_fields import FieldReader, together
from telemetry.clock import Clock
from telemetry.collectors.gpu_buffers import LevelSource
from telemetry.collectors.gpu_gpm import LONGEST_S as GPM_LONGEST_S
from telemetry.collectors.gpu_gpm import PERIOD_S as GPM_PERIOD_S
from telemetry.collectors.gpu_gpm import GpmSource
from telemetry.collectors.gpu_losses import Losses
from telemetry.collectors.gpu_metrics import (
    COVERED_BY_GPM,
    ENERGY,
    GPM_METRICS,
    LEVELS,
    METRICS,
    OF_INSTANCES,
    POWER_BUFFER,
    PROCESS_MEMORY,
    PROCESS_USES,
    QUESTIONS,
    UP,
    Question,
)
from telemetry.collectors.gpu_processes import (
    PROCESS_S,
    Kin,
    ProcessMemorySource,
    ProcessSource,
)
from telemetry.samples import Metric, Sample, Samples, Series, samples_at

__all__ = ["METRICS", "NO_GPU", "QUESTIONS", "UP", "GpuCollector"]

NO_GPU = "gpu"
"""Entity of the absent series where there is no GPU at all."""
SLOW_S = 1.0
"""How often the ``slow`` questions are asked."""
COVERED = "GPM tells it without gaps, as {}"
OF_THE_CARD = "not told for a MIG instance: its card has it, or the reason why not"
MOVES_S = 0.3
"""The last sample takes at most so much longer, for all GPUs together, until their energy counters
have moved: they do about every 100 ms, and only a value from after a stage bounds what it took."""
ASK_AGAIN_S = 0.02
"""How often an energy counter is asked for meanwhile."""


class Source(Protocol):
    """What has samples at times of its own; asked at every tick, and once more as the ``last``."""

    def sample(self, last: bool = False) -> Sequence[Sample]: ...


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is asked of one GPU at each sample: the reader that answered, and a series per value."""

    gpu: nvml.Gpu
    reader: nvml.Reader
    series: tuple[Series, ...]
    window_ns: int | None
    plain: bool = field(init=False)
    """No series is absent, and none is a window."""

    def __post_init__(self) -> None:
        whole = all(one.reason is None for one in self.series)
        object.__setattr__(self, "plain", whole and self.window_ns is None)


@dataclass(kw_only=True)
class GpuCollector:
    """NVML's view of the GPUs of this run. ``losses``: what went away after opening, and when."""

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
        slow = (m.name for question in QUESTIONS if question.slow for m in question.metrics)
        self.slow_periods |= dict.fromkeys(slow, max(SLOW_S, self.period_s))
        self.slow_periods |= dict.fromkeys(
            (m.name for m in GPM_METRICS), max(GPM_PERIOD_S, self.period_s)
        )
        self.slow_periods |= dict.fromkeys(
            (m.name for m in (*PROCESS_USES, *PROCESS_MEMORY)), max(PROCESS_S, self.period_s)
        )
        for gpu in selection.gpus:  # First of all: the other questions fill the time of a pair.
            if gpu.reason is None:
                self._gpm.append(self._begin_gpm(gpu))
        found = [series for gpu in selection.gpus for series in self._open_gpu(gpu)]
        found += [series for source in self._gpm for series in self._decide_gpm(source)]
        found = self._without_doubles(found)
        self._lost.present += [one for one in found if one.reason is None and one.metric is not UP]
        return found

    def _begin_gpm(self, gpu: nvml.Gpu) -> GpmSource:
        source = GpmSource(gpu=gpu, clock=self.clock, tick_s=self.period_s, lost=self._lost)
        source.begin()
        return source

    def _decide_gpm(self, source: GpmSource) -> list[Series]:
        found = source.decide()
        if any(series.reason is None for series in found):
            self._sources[source.gpu.entity].append(source)
        return found

    def _without_doubles(self, found: Sequence[Series]) -> list[Series]:
        """The same series; what GPM tells better is absent, and not asked for."""
        if self.period_s > GPM_LONGEST_S:
            return list(found)  # then no pair of ticks has a value
        told = {(one.entity, one.metric) for one in found if one.reason is None}
        covered = {
            (one.entity, one.metric): COVERED.format(better.name)
            for one in found
            if (better := COVERED_BY_GPM.get(one.metric)) and (one.entity, better) in told
        }
        plans = [p for p in self._blocking if (p.gpu.entity, p.series[0].metric) not in covered]
        self._blocking = deque(plans)
        return [
            replace(one, reason=covered.get((one.entity, one.metric), one.reason)) for one in found
        ]

    def _open_gpu(self, gpu: nvml.Gpu) -> list[Series]:
        up = Series(entity=gpu.entity, metric=UP)
        self._up[gpu.entity] = up
        plans = self._plans[gpu.entity] = []
        slow = self._slow[gpu.entity] = []
        if gpu.reason is not None:
            self._sources[gpu.entity] = []
            return [up, *_all_absent(gpu.entity, gpu.reason)[1:]]
        found = [up]
        sources = self._sources[gpu.entity] = []
        buffered = [] if gpu.mig_index is not None else self._open_buffers(gpu, sources)
        found += buffered
        memory = ProcessMemorySource(gpu=gpu, clock=self.clock, lost=self._lost, kin=self._kin)
        held = memory.open()
        found += held
        if any(series.reason is None for series in held):
            sources.append(memory)
        told = {series.metric for series in buffered}
        for question in QUESTIONS:
            if not told.issuperset(question.metrics) and _is_asked(gpu, question):
                plan = _decide(gpu, question)
                found += plan.series
                if any(series.reason is None for series in plan.series):
                    paced = slow if question.slow else plans
                    (self._blocking if plan.window_ns else paced).append(plan)
        found += _of_the_card(gpu)
        self._plans[gpu.entity], self._slow[gpu.entity] = _together(plans), _together(slow)
        return found

    def _open_buffers(self, gpu: nvml.Gpu, sources: list[Source]) -> list[Series]:
        """The series that the driver's buffers give, in place of questions or beside them."""
        levels = {
            metric: LevelSource(
                gpu=gpu, metric=metric, buffer=buffer, clock=self.clock, lost=self._lost
            )
            for metric, buffer in LEVELS.items()
        }
        fit = {metric for metric, one in levels.items() if one.open(self.period_s).reason is None}
        wanted = {metric for metric in fit if metric is POWER_BUFFER or _spares(metric, fit)}
        for metric in wanted:
            sources.append(levels[metric])
            self.slow_periods[f"{gpu.entity} {metric.name}"] = levels[metric].period_s
        processes = ProcessSource(gpu=gpu, clock=self.clock, lost=self._lost, kin=self._kin)
        uses = processes.open()
        if any(series.reason is None for series in uses):
            sources.append(processes)
        return [*(levels[metric].series for metric in LEVELS if metric in wanted | {POWER_BUFFER}),
                *uses]  # fmt: skip

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

    def _stands_still(
        self, energy: _Plan, asked_j: dict[str, float], samples: list[Sample]
    ) -> bool:
        """Ask for the energy once more; whether it is told, and still what was told first here.

        ``asked_j``: that, by entity. Of this reading the stamp of the last sample before it says
        that it was begun after the stage: a stamp is from the end of its own call.
        """
        before = len(samples)
        self._ask(energy, samples)
        if len(samples) == before:
            return False
        return samples[-1].value == asked_j.setdefault(energy.gpu.entity, samples[-1].value)

    def _sample(self, last: bool) -> list[Sample]:
        samples: list[Sample] = []
        now_s = time.monotonic()
        slow = last or now_s >= self._slow_due_s
        if slow:
            self._slow_due_s = now_s + SLOW_S - self.period_s / 2
        lost = {entity for entity in self._plans if not self._sample_gpu(entity, samples, slow)}
        for entity, series in self._up.items():
            samples.append(Sample(self.clock.now_ns(), series, float(entity not in lost)))
        if self._blocking:
            plan = self._blocking[0]
            self._blocking.rotate(-1)
            self._ask(plan, samples)
        for entity, sources in self._sources.items():
            if entity not in lost:
                for source in sources:
                    samples += source.sample(last)
        self._lost.find_again(samples)
        return samples

    def _sample_gpu(self, entity: str, samples: list[Sample], slow: bool) -> bool:
        """Ask one GPU all that does not block; False as soon as it turns out to be lost."""
        usual, seldom = self._plans[entity], self._slow[entity]
        if not (usual or seldom):
            return False
        return all(self._ask(plan, samples) for plan in (*usual, *(seldom if slow else ())))

    def _ask(self, plan: _Plan, samples: list[Sample]) -> bool:
        values = plan.reader(plan.gpu)
        ts_ns = self.clock.now_ns()
        if plan.plain and isinstance(values, tuple) and nvml.Absent not in map(type, values):
            samples += samples_at(ts_ns, plan.series, values)  # type: ignore[arg-type]
            return True
        if isinstance(values, nvml.Absent):
            values = (values,) * len(plan.series)
        start_ns = ts_ns - plan.window_ns if plan.window_ns else None
        for series, value in zip(plan.series, values, strict=True):
            if series.reason is not None:
                continue
            if isinstance(value, nvml.Absent):
                self._lost.lose(plan.gpu, series, value, ts_ns)
                if value.lost:
                    return False
            else:
                samples.append(Sample(ts_ns, series, value, start_ns))
        return True

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
    own = {UP, *OF_INSTANCES}
    left = (metric for metric in METRICS if metric not in own)
    return [Series(entity=gpu.entity, metric=metric, reason=OF_THE_CARD) for metric in left]


def _is_asked(gpu: nvml.Gpu, question: Question) -> bool:
    return gpu.mig_index is None or question.of_instances


def _spares(metric: Metric, fit: Collection[Metric]) -> bool:
    """Whether the question that also answers ``metric`` has all its answers in buffers."""
    return all(
        metric not in question.metrics or set(question.metrics) <= set(fit)
        for question in QUESTIONS
    )


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
    again = question.again or reader
    return _Plan(gpu=gpu, reader=again, series=series, window_ns=question.window_ns)


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
