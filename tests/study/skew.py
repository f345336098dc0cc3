"""Is an injected skew found? Scripted loads, their windows stamped 0 to 120 s late, seen in part.

Writes docs/study-skew.md. An offset that is found must be within 1 s; one that is refused is no
error, one that is wrong is. Beside it: whether a host's clock that is 30 s off is contradicted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from telemetry.hypervisor import CLOCK_LIMIT_S
from telemetry.skew import Grown, Skew, find_skew
from tests.telemetry.oracle import Raw
from tests.telemetry.scripted import Load, Sight, guest_counter, hidden, scripted, windows

TRIALS = 100
MOST_S = 120.0
WRONG_CLOCK_S = 30.0
DOCS = Path(__file__).resolve().parents[2] / "docs"
Lengths = Callable[[np.random.Generator], Sequence[float]]
RUNS: dict[str, tuple[Lengths, float]] = {
    "six stages of 20 to 200 s": (lambda random: random.uniform(20, 200, 6), 0.25),
    "twelve stages of 10 to 40 s": (lambda random: random.uniform(10, 40, 12), 0.25),
    "six stages of 10 to 60 s": (lambda random: random.uniform(10, 60, 6), 0.25),
    "one even stage of 5 to 15 min": (lambda random: random.uniform(300, 900, 1), 0.1),
}
SIGHTS = {
    "all of it": Sight(),
    "20 % steal, on and off": Sight(steal=0.2),
    "noise of 30 % on each 0.1 s": Sight(noise=0.3),
    "lag of 0.5 s": Sight(lag_s=0.5),
    "bursts of 2 cores unseen": Sight(burst_cores=2.0),
    "all four": Sight(steal=0.2, noise=0.3, lag_s=0.5, burst_cores=2.0),
}


@dataclass(frozen=True, kw_only=True)
class Trial:
    skew_s: float
    found: Skew

    @property
    def error_s(self) -> float | None:
        return None if self.found.offset_s is None else abs(self.found.offset_s - self.skew_s)


def trial(seed: int, sight: Sight, lengths: Lengths, wave: float) -> Trial:
    random = np.random.default_rng(seed)
    load = scripted(seed, stages=lengths(random), wave=wave)
    skew_s = float(random.uniform(0, MOST_S))
    seen = guest_counter(load, sight, seed)
    return Trial(skew_s=skew_s, found=_find(seen, load, sight, seed, skew_s))


def _find(seen: Sequence[Raw], load: Load, sight: Sight, seed: int, skew_s: float) -> Skew:
    raw = windows(hidden(load, seed, sight.burst_cores), skew_s=skew_s)
    guest = Grown.of(np.array([one[0] for one in seen]), np.array([one[2] for one in seen]))
    starts, ends = (np.array([one[place] for one in raw]) for place in (1, 0))
    return find_skew(guest, starts, ends, np.array([one[2] for one in raw]))


def page(trials: int) -> Iterator[str]:
    yield "# Is a skewed stamp found?"
    yield ""
    yield f"{trials} scripted runs per line (`make study`). Windows of 20 s are stamped by a clock"
    yield f"that is 0 to {MOST_S:g} s ahead of the guest's, chosen at random. The offset is looked"
    yield "for in the load alone: what the hypervisor saw in 20 s windows against what the guest"
    yield "saw at 10 Hz. *Found*: within 1 s of the truth. *Refused*: no offset is given, with a"
    yield "sentence. *Wrong*: given, and more than 1 s off. *Contradicts*: where another clock"
    yield f"said an offset {WRONG_CLOCK_S:g} s off, the load is far from likely at it"
    yield f"(and within {CLOCK_LIMIT_S:g} s of it), so that the attribution is refused; and, in"
    yield "the last column, how often it contradicted the right offset."
    for name, (lengths, wave) in RUNS.items():
        yield ""
        yield f"## {name.capitalize()}"
        yield ""
        yield (
            "| the guest sees | found | refused | wrong | largest error | contradicts 30 s off "
            "| contradicts the truth |"
        )
        yield "|---|---|---|---|---|---|---|"
        for sight_name, sight in SIGHTS.items():
            yield _line(sight_name, [trial(seed, sight, lengths, wave) for seed in range(trials)])


def _line(name: str, trials: Sequence[Trial]) -> str:
    errors = [one.error_s for one in trials if one.error_s is not None]
    right = sum(error <= 1.0 for error in errors)
    worst = f"{max(errors):.2f} s" if errors else "–"
    off, true = (
        sum(one.found.speaks_against(one.skew_s - by, CLOCK_LIMIT_S) for one in trials)
        for by in (WRONG_CLOCK_S, 0.0)
    )
    figures = (right, len(trials) - len(errors), len(errors) - right, worst, off, true)
    return f"| {name} | {' | '.join(map(str, figures))} |"


def main() -> None:
    text = "\n".join(page(int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS)) + "\n"
    (DOCS / "study-skew.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
