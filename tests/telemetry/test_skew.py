"""The offset of stamps, found by the load alone: right within 1 s, or refused; never wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from telemetry.skew import Grown, Skew, find_lag, find_skew
from tests.telemetry.oracle import Raw
from tests.telemetry.scripted import Load, Sight, guest_counter, hidden, scripted, windows

STAGES = (34.0, 61.0, 130.0, 97.0, 45.0, 138.0)


def look(
    load: Load, skew_s: float, sight: Sight | None = None, seed: int = 0, guest: bool = True
) -> Skew:
    sight = sight or Sight()
    seen = guest_counter(load, sight, seed) if guest else []
    truth = hidden(load, seed, sight.burst_cores)
    return find_skew(signal(seen), *columns(windows(truth, skew_s=skew_s)))


def signal(raw: Sequence[Raw]) -> Grown:
    return Grown.of(
        np.array([one[0] for one in raw], dtype=np.int64),
        np.array([one[2] for one in raw], dtype=np.float64),
    )


def columns(raw: Sequence[Raw]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    starts = np.array([one[1] for one in raw], dtype=np.int64)
    ends = np.array([one[0] for one in raw], dtype=np.int64)
    return starts, ends, np.array([one[2] for one in raw], dtype=np.float64)


@pytest.mark.parametrize("skew_s", [-90.0, -0.4, 0.0, 7.3, 61.0, 120.0])
def test_a_skew_is_found(skew_s: float) -> None:
    found = look(scripted(1, stages=STAGES), skew_s)
    assert found.reason is None
    assert found.offset_s == pytest.approx(skew_s, abs=0.2)
    assert found.correlation is not None
    assert found.correlation > 0.99


@pytest.mark.parametrize(
    "sight",
    [
        Sight(steal=0.2),
        Sight(noise=0.3),
        Sight(lag_s=0.5),
        Sight(burst_cores=2.0),
        Sight(steal=0.2, noise=0.3, lag_s=0.3, burst_cores=2.0),
    ],
)
def test_20_trials_are_right_within_a_second_or_refused(sight: Sight) -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        load = scripted(seed, stages=random.uniform(20, 200, 6))
        skew_s = random.uniform(0, 120)
        found = look(load, skew_s, sight, seed)
        if found.offset_s is None:
            assert found.reason
        else:
            assert abs(found.offset_s - skew_s) < 1.0, (seed, found)


def test_a_load_that_repeats_is_refused() -> None:
    """Every minute the same: 60 s earlier or later fits as well."""
    load = scripted(1, stages=[600.0])
    times = load.times[:-1]
    even = Load(cores=4.0 + 3.0 * (np.floor(times / 30.0) % 2), lead_s=load.lead_s,
                spans=load.spans)  # fmt: skip
    found = look(even, 20.0)
    assert found.offset_s is None
    assert "fits nearly as well" in (found.reason or "")


def test_a_load_that_is_even_is_refused() -> None:
    load = scripted(1, stages=[600.0])
    even = Load(cores=np.full(len(load.cores), 4.0), lead_s=load.lead_s, spans=load.spans)
    found = look(even, 20.0)
    assert found.offset_s is None
    assert "too even" in (found.reason or "")


def test_a_guest_that_did_something_else_is_refused() -> None:
    load, other = scripted(1, stages=STAGES), scripted(2, stages=STAGES)
    found = find_skew(signal(guest_counter(other, Sight(), 2)), *columns(windows(load)))
    assert found.offset_s is None
    assert found.reason


@pytest.mark.parametrize("stages", [(20.0, 30.0), (100.0,)])
def test_a_short_run_is_refused(stages: tuple[float, ...]) -> None:
    found = look(scripted(1, stages=stages), 5.0)
    assert found.offset_s is None
    assert "too few" in (found.reason or "")


def test_without_a_guest_it_is_refused() -> None:
    assert look(scripted(1, stages=STAGES), 5.0, guest=False).offset_s is None


def test_a_skew_beyond_what_is_searched_is_not_taken_for_its_nearest() -> None:
    assert look(scripted(1, stages=STAGES), 170.0).offset_s is None


def test_the_order_of_windows_does_not_matter() -> None:
    load = scripted(1, stages=STAGES)
    guest = signal(guest_counter(load, Sight(), 1))
    raw = windows(load, skew_s=33.0)
    shuffled = [raw[place] for place in np.random.default_rng(0).permutation(len(raw))]
    assert find_skew(guest, *columns(shuffled)) == find_skew(guest, *columns(raw))


@pytest.mark.parametrize("lag_s", [0.0, 0.5, 1.0, 1.5])
def test_the_lag_of_the_guests_signal_is_found(lag_s: float) -> None:
    load = scripted(1, stages=STAGES)
    guest = signal(guest_counter(load, Sight(lag_s=lag_s), 1))
    assert find_lag(guest, *columns(windows(load))) == pytest.approx(lag_s, abs=0.15)


def test_without_evidence_there_is_no_lag() -> None:
    load = scripted(1, stages=[600.0], wave=0.0)
    guest = signal(guest_counter(load, Sight(lag_s=1.0), 1))
    assert find_lag(guest, *(column[5:15] for column in columns(windows(load)))) == pytest.approx(
        0.0, abs=0.3
    )


@pytest.mark.parametrize("seed", range(6))
def test_a_load_that_cannot_tell_its_own_offset_still_tells_a_wrong_one(seed: int) -> None:
    sight = Sight(steal=0.2, noise=0.1, lag_s=0.3, burst_cores=1.0)
    found = look(scripted(seed, stages=STAGES), 30.0, sight, seed)
    assert not found.speaks_against(30.0, 2.0)
    assert found.speaks_against(0.0, 2.0)
    assert found.speaks_against(90.0, 2.0)


@pytest.mark.parametrize("offset_s", [-400.0, 200.0])
def test_a_load_that_tells_its_offset_speaks_against_one_that_nobody_looked_at(
    offset_s: float,
) -> None:
    found = look(scripted(1, stages=STAGES), 0.0)
    assert found.offset_s == 0.0
    assert found.speaks_against(offset_s, 2.0)


def test_an_even_load_speaks_against_nothing() -> None:
    load = scripted(1, stages=[600.0])
    even = Load(cores=np.full(len(load.cores), 4.0), lead_s=load.lead_s, spans=load.spans)
    assert not look(even, 20.0).speaks_against(80.0, 2.0)
    assert not look(even, 20.0).speaks_against(400.0, 2.0)
