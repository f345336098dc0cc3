"""How far plain overlap and the sharpened estimate are from the truth, on scripted loads.

Writes docs/study-sharpen.md: the error of each stage's CPU seconds, for each thing that the guest
does not see, and for stages of each length. What pays off is shown beside what does not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from telemetry.attribution import Stretches, share, stretches_of
from telemetry.series import Points
from telemetry.sharpen import sharpen
from telemetry.skew import Grown
from tests.telemetry.scripted import (
    USED,
    Load,
    Sight,
    guest_counter,
    hidden,
    scripted,
    windows,
)

RUNS = 100
STAGES = 6
DOCS = Path(__file__).resolve().parents[2] / "docs"
SIGHTS = {
    "all of it": Sight(),
    "20 % steal, on and off": Sight(steal=0.2),
    "noise of 30 % on each 0.1 s": Sight(noise=0.3),
    "lag of 1 s": Sight(lag_s=1.0),
    "bursts of 1 core for 6 s unseen": Sight(burst_cores=1.0),
    "bursts of 3 cores for 6 s unseen": Sight(burst_cores=3.0),
    "0.3 cores of the hypervisor's own unseen": Sight(own_cores=0.3),
    "steal, noise, lag of 0.5 s, bursts of 1 core": Sight(
        steal=0.2, noise=0.3, lag_s=0.5, burst_cores=1.0
    ),
}
LENGTHS = ((5.0, 20.0), (20.0, 30.0), (30.0, 60.0), (60.0, 120.0), (120.0, 300.0))
LEAST_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One stage: relative errors of its total, in percent; None where there is no estimate."""

    plain: float
    sharp: float | None


@dataclass(frozen=True, kw_only=True)
class Run:
    stages: Sequence[Outcome]
    remainder_percent: float
    """Of plain overlap: stages and the time between them, less what the VM really used."""


def run(seed: int, sight: Sight, lengths: tuple[float, float]) -> Run:
    random = np.random.default_rng(seed + 77)
    own = scripted(seed, stages=random.uniform(*lengths, STAGES), least=0.25)
    load = hidden(own, seed, sight.burst_cores, own_cores=sight.own_cores)
    raw, seen = windows(load), guest_counter(own, sight, seed)
    at = np.array([one[:2] for one in raw], dtype=np.int64)
    values = np.array([one[2] for one in raw])
    plain = stretches_of(Points(at[:, 0], at[:, 1], values), USED, 20.0)
    guest = Grown.of(np.array([one[0] for one in seen]), np.array([one[2] for one in seen]))
    made = sharpen(plain, [guest])
    none = np.zeros(len(made.level), bool)
    fine = Stretches(made.start_ns, made.end_ns, made.level, None, none, windows=True)
    return Run(stages=_stages(load, plain, fine), remainder_percent=_remainder(load, plain))


def _stages(load: Load, plain: Stretches, fine: Stretches) -> list[Outcome]:
    found = []
    for one in load.spans:
        truth = load.total(one.start_ns, one.end_ns)
        off = [
            100 * abs(_total(cut, one.start_ns, one.end_ns) / truth - 1) for cut in (plain, fine)
        ]
        found.append(Outcome(plain=off[0], sharp=off[1] if len(fine.level) else None))
    return found


def _total(cut: Stretches, low_ns: int, high_ns: int) -> float:
    part = share(cut, low_ns, high_ns)
    return 0.0 if part is None else part.total


def _remainder(load: Load, plain: Stretches) -> float:
    edges = [plain.start_ns[0], *(ns for one in load.spans for ns in (one.start_ns, one.end_ns)),
             plain.end_ns[-1]]  # fmt: skip
    whole = load.total(int(plain.start_ns[0]), int(plain.end_ns[-1]))
    shared = sum(_total(plain, int(low), int(high)) for low, high in pairwise(edges))
    return 100 * abs(shared / whole - 1)


def page(runs: int) -> Iterator[str]:
    yield "# How near is a stage's total to the truth?"
    yield ""
    yield f"{runs} scripted runs of {STAGES} stages per line (`make study`): levels of 25 to 90 %"
    yield "of 8 CPUs with waves of 25 %, idle for a few seconds between stages, in windows of 20 s"
    yield "that lie anywhere to them. The guest's counter at 10 Hz sees of the load what the first"
    yield "column says. The error is that of a stage's CPU seconds, as a share of the truth;"
    yield "*plain*: windows shared out by overlap; *estimate*: sharpened by proportional Denton,"
    yield "for the stages of those runs in which the guest's signal allowed one. *Ledger*: all"
    yield "stages and the time between them by plain overlap, against what the VM really used."
    yield ""
    yield f"## Stages of {LEAST_S:g} to 200 s, by what the guest sees"
    yield ""
    yield from _table(
        {name: [run(n, sight, (LEAST_S, 200.0)) for n in range(runs)]
         for name, sight in SIGHTS.items()}
    )  # fmt: skip
    yield ""
    yield "Bursts come about every 100 s. Steal comes and goes in phases of 20 to 100 s."
    for name in ("20 % steal, on and off", "noise of 30 % on each 0.1 s"):
        yield ""
        yield f"## By the length of the stages; the guest sees {name}"
        yield ""
        yield from _table(
            {f"{low:g} to {high:g} s": [run(n, SIGHTS[name], (low, high)) for n in range(runs)]
             for low, high in LENGTHS}
        )  # fmt: skip


def _table(found: Mapping[str, Sequence[Run]]) -> Iterator[str]:
    yield (
        "| | plain: median | 95 % | worst | estimate: median | 95 % | worst "
        "| estimates within 5 % | plain overlap's ledger, worst remainder |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, runs in found.items():
        stages = [stage for one in runs for stage in one.stages]
        plain = [one.plain for one in stages]
        sharp = [one.sharp for one in stages if one.sharp is not None]
        within = sum(error <= 5.0 for error in sharp)
        remainder = max(one.remainder_percent for one in runs)
        yield (
            f"| {name} | {_figures(plain)} | {_figures(sharp)} | {within} of {len(sharp)} "
            f"| {remainder:.3f} % |"
        )


def _figures(errors: Sequence[float]) -> str:
    shown = (np.median(errors), np.quantile(errors, 0.95), max(errors))
    return " | ".join(f"{one:.2f} %" for one in shown)


def main() -> None:
    text = "\n".join(page(int(sys.argv[1]) if len(sys.argv) > 1 else RUNS)) + "\n"
    (DOCS / "study-sharpen.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
