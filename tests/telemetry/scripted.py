"""A scripted load: what a VM really used, what its guest saw of it, and a hypervisor's windows.

The truth is a level for each step of 50 ms, so what a stage took is known exactly. The guest's
counters follow it only as far as the ``Sight`` lets them; the windows are its exact means, stamped
by a clock of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from telemetry.runfolder import Span
from telemetry.samples import Metric
from telemetry.segments import SampleSet
from tests.telemetry.oracle import Raw, make_metric, make_samples

Floats = npt.NDArray[np.float64]
STEP_S = 0.05
WINDOW_S = 20
START_NS = 1_795_485_607_000_000_000
"""Not on the grid of the windows: a run begins in the middle of one."""
NS = 1_000_000_000
VM, HOST = "ml-01", "esx-1.example"
USED = make_metric("vm_cpu_used_cores", "window", "cores", integral="s")


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What the guest sees of the truth."""

    steal: float = 0.0
    """Share of what it thinks it used that it did not get, in phases of about a minute."""
    noise: float = 0.0
    """Standard deviation of a factor on each 0.1 s."""
    lag_s: float = 0.0
    burst_cores: float = 0.0
    """What the hypervisor spends for the VM unseen, for 6 s about every 100 s."""
    own_cores: float = 0.0
    """What it spends for the VM unseen all the time."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """``cores``: what the VM used in each step of ``STEP_S``, from ``lead_s`` before the run on."""

    cores: Floats
    lead_s: float
    spans: tuple[Span, ...]

    @property
    def times(self) -> Floats:
        """Edges of the steps, s since the run's start."""
        return np.arange(len(self.cores) + 1) * STEP_S - self.lead_s

    @property
    def grown(self) -> Floats:
        return np.concatenate(([0.0], np.cumsum(self.cores) * STEP_S))

    def total(self, start_ns: int, end_ns: int) -> float:
        """Core seconds in (start_ns, end_ns]."""
        edges = [(ns - START_NS) / NS for ns in (start_ns, end_ns)]
        low, high = np.interp(edges, self.times, self.grown)
        return float(high - low)


def scripted(
    seed: int,
    *,
    stages: Sequence[float],
    cpus: int = 8,
    idle_s: float = 4.0,
    wave: float = 0.25,
    least: float = 0.08,
    lead_s: float = 180.0,
) -> Load:
    """Stages of these lengths in s, each at a level and with waves of its own; idle in between."""
    random = np.random.default_rng(seed)
    length = sum(stages) + idle_s * (len(stages) + 1)
    steps = round((length + 2 * lead_s) / STEP_S)
    times = np.arange(steps) * STEP_S - lead_s
    cores = np.full(steps, 0.05)
    at, spans = idle_s * (0.5 + random.random()), []
    for place, seconds in enumerate(stages):
        level = random.uniform(least, 0.9) * cpus
        inside = (times >= at) & (times < at + seconds)
        phase = times[inside] / random.uniform(1.5, 15.0)
        cores[inside] = level * (1 + wave * np.sin(phase))
        edges = [START_NS + round(second * NS) for second in (at, at + seconds)]
        spans.append(Span(stage=f"s{place}", start_ns=edges[0], end_ns=edges[1]))
        at += seconds + idle_s * (0.5 + random.random())
    return Load(cores=cores.clip(0, cpus), lead_s=lead_s, spans=tuple(spans))


def hidden(
    load: Load, seed: int, cores: float, *, every_s: float = 100.0, own_cores: float = 0.0
) -> Load:
    """The load with bursts of so many cores for 6 s in it that its guest cannot see, and more."""
    load = replace(load, cores=load.cores + own_cores)
    if not cores:
        return load
    random = np.random.default_rng(seed + 500)
    first = (load.spans[0].start_ns - START_NS) / NS
    last = (load.spans[-1].end_ns - START_NS) / NS
    times, used = load.times[:-1], load.cores.copy()
    for at in random.uniform(first, last - 6.0, max(1, round((last - first) / every_s))):
        used[(times >= at) & (times < at + 6.0)] += cores
    return replace(load, cores=used)


def guest_counter(load: Load, sight: Sight, seed: int, *, hz: float = 10.0) -> list[Raw]:
    """Busy seconds of the guest's CPUs, in ticks of 10 ms, from the run's start to its end."""
    random = np.random.default_rng(seed + 1000)
    seen = load.cores
    if sight.steal:
        seen = seen / (1 - sight.steal * _phases(len(seen), random))
    if sight.noise:
        coarse = random.normal(1.0, sight.noise, len(seen) // 2 + 1).clip(0)
        seen = seen * np.repeat(coarse, 2)[: len(seen)]
    grown = np.concatenate(([0.0], np.cumsum(seen) * STEP_S))
    end = (load.spans[-1].end_ns - START_NS) / NS + 3.0
    at = np.arange(0.0, end, 1 / hz) + random.uniform(-0.01, 0.01, len(np.arange(0.0, end, 1 / hz)))
    values = np.floor(100 * np.interp(at - sight.lag_s, load.times, grown)) / 100
    return [
        (START_NS + round(second * NS), None, float(value))
        for second, value in zip(at, values, strict=True)
    ]


def _phases(steps: int, random: np.random.Generator) -> Floats:
    """0 or 1 for phases of 20 to 100 s."""
    lengths = (random.uniform(20, 100, steps) / STEP_S).astype(int)
    return np.repeat(np.arange(steps) % 2, lengths)[:steps].astype(np.float64)


def windows(load: Load, *, skew_s: float = 0.0, grain: float = 0.001) -> list[Raw]:
    """Means over the hypervisor's 20 s windows that touch the run, stamped ``skew_s`` late.

    The windows lie on the grid of the hypervisor's own clock, so a skew moves what they hold.
    """
    end = load.spans[-1].end_ns + 3 * NS
    skew = round(skew_s * NS)
    first = (START_NS + skew) // (WINDOW_S * NS) * WINDOW_S * NS
    raw: list[Raw] = []
    for start in range(first, end + skew, WINDOW_S * NS):
        mean = load.total(start - skew, start + WINDOW_S * NS - skew) / WINDOW_S
        raw.append((start + WINDOW_S * NS, start, round(mean / grain) * grain))
    return raw


GUEST = (
    "cpu_user_seconds",
    "cpu_nice_seconds",
    "cpu_system_seconds",
    "cpu_irq_seconds",
    "cpu_softirq_seconds",
)


def samples(
    guest: Sequence[Raw],
    hypervisor: Mapping[tuple[str, Metric], Sequence[Raw]],
    more: Mapping[tuple[str, Metric], Sequence[Raw]] | None = None,
) -> SampleSet:
    """The guest's CPU (all of it in user mode) with what a hypervisor says."""
    series: dict[tuple[str, Metric], Sequence[Raw]] = {
        ("machine", make_metric(name, "counter")): [
            (ts, start, value if name == "cpu_user_seconds" else 0.0) for ts, start, value in guest
        ]
        for name in GUEST
    }
    made = make_samples({**series, **hypervisor, **(more or {})})
    periods = {
        name: 300.0 if metric.kind == "window" else 0.1 for name, metric in made.metrics.items()
    }
    return replace(made, periods=periods)
