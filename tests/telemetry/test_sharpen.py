"""Sharpened windows: their totals stay, nothing is below 0, and they come near a known truth."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.attribution import Stretches, share, stretches_of
from telemetry.denton import denton
from telemetry.series import Points
from telemetry.sharpen import Estimate, sharpen
from telemetry.skew import Grown
from tests.telemetry.oracle import Raw
from tests.telemetry.scripted import (
    NS,
    START_NS,
    USED,
    Load,
    Sight,
    guest_counter,
    hidden,
    scripted,
    windows,
)

Floats = npt.NDArray[np.float64]
STAGES = (34.0, 61.0, 30.0, 97.0, 45.0, 38.0)
SIGHTS = {
    "exact": Sight(),
    "20 % steal": Sight(steal=0.2),
    "noise": Sight(noise=0.3),
    "lag of 1 s": Sight(lag_s=1.0),
    "unseen bursts": Sight(burst_cores=1.0),
    "all of it": Sight(steal=0.2, noise=0.3, lag_s=0.5, burst_cores=1.0),
}


def stretches(raw: Sequence[Raw]) -> Stretches:
    columns = np.array([(ts, start or 0) for ts, start, _ in raw], dtype=np.int64).reshape(-1, 2)
    values = np.array([value for *_, value in raw], dtype=np.float64)
    return stretches_of(Points(columns[:, 0], columns[:, 1], values), USED, 20.0)


def grown(raw: Sequence[Raw]) -> Grown:
    return Grown.of(np.array([one[0] for one in raw]), np.array([one[2] for one in raw]))


def of(estimate: Estimate) -> Stretches:
    none = np.zeros(len(estimate.level), bool)
    return Stretches(estimate.start_ns, estimate.end_ns, estimate.level, None, none, windows=True)


def totals(cut: Stretches, low_ns: int, high_ns: int) -> float:
    part = share(cut, low_ns, high_ns)
    return 0.0 if part is None else part.total


def window_totals(cut: Stretches) -> Floats:
    return np.asarray(cut.level * (cut.end_ns - cut.start_ns) / NS, dtype=np.float64)


def errors(load: Load, cut: Stretches) -> list[float]:
    """For each stage, by how much of the truth a series is off."""
    return [
        totals(cut, one.start_ns, one.end_ns) / load.total(one.start_ns, one.end_ns) - 1
        for one in load.spans
    ]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Raw], list[Raw]]:
    """Windows with holes between them and a guest that was recorded in part, or did nothing."""
    at, hypervisor = 0, []
    for _ in range(draw(st.integers(1, 12))):
        at += draw(st.sampled_from([0, 0, 0, 20, 60])) * NS
        level = draw(st.one_of(st.just(0.0), st.floats(0.0, 64.0), st.integers(0, 3).map(float)))
        hypervisor.append((START_NS + at + 20 * NS, START_NS + at, level))
        at += 20 * NS
    shape = draw(st.lists(st.sampled_from([0.0, 0.0, 0.05, 0.5, 4.0]), min_size=1, max_size=40))
    begin, end = draw(st.floats(-30.0, 120.0)), draw(st.floats(0.0, at / NS + 30.0))
    times = np.arange(begin, end, 0.1)
    hole = draw(st.floats(0.0, 200.0))
    times = times[(times < hole) | (times > hole + draw(st.floats(0.0, 45.0)))]
    amount = np.cumsum(np.resize(np.repeat(shape, 37), len(times)) * 0.1)
    guest: list[Raw] = [
        (START_NS + round(second * NS), None, float(value))
        for second, value in zip(times, amount, strict=True)
    ]
    return hypervisor, guest


@settings(deadline=None, max_examples=300)
@given(case=cases(), proportional=st.booleans())
def test_every_total_is_kept_and_nothing_is_below_zero(
    case: tuple[list[Raw], list[Raw]], proportional: bool
) -> None:
    hypervisor, guest = case
    cut = stretches(hypervisor)
    made = sharpen(cut, [grown(guest)], proportional=proportional)
    if made.reason is not None:
        assert not len(made.level)
        return
    assert (made.level >= 0.0).all()
    assert np.isfinite(made.level).all()
    assert (made.start_ns < made.end_ns).all()
    fine = of(made)
    kept = [totals(fine, low, high) for low, high in zip(cut.start_ns, cut.end_ns, strict=True)]
    assert kept == pytest.approx(window_totals(cut), rel=1e-9, abs=1e-12)
    # Its cells tile the windows: no ns is lost, and none is in two of them.
    edges = np.concatenate((made.start_ns, made.end_ns))
    assert set(cut.start_ns) | set(cut.end_ns) <= set(edges)
    assert int((made.end_ns - made.start_ns).sum()) == int((cut.end_ns - cut.start_ns).sum())
    assert (made.start_ns[1:] >= made.end_ns[:-1]).all()


def test_between_two_edges_it_is_denton_of_the_fitted_signal() -> None:
    """Where the guest tells all, the estimate is the optimum of the method and nothing else."""
    load = scripted(3, stages=STAGES)
    cut, signal = stretches(windows(load)), grown(guest_counter(load, Sight(), 3))
    made = sharpen(cut, [signal])
    inside = (made.start_ns >= cut.start_ns[1]) & (made.end_ns <= cut.end_ns[-2])
    start, end = made.start_ns[inside], made.end_ns[inside]
    seen = signal.mean((start - signal.zero_ns) / NS, (end - signal.zero_ns) / NS) * 0.1
    whole = denton(seen + 1e-3 * seen.mean(), np.full(len(cut.level) - 2, 200),
                   window_totals(cut)[1:-1])  # fmt: skip
    near = made.level[inside] * 0.1
    assert np.abs(near - whole).sum() < 0.03 * whole.sum()


@pytest.mark.parametrize("name", SIGHTS)
def test_each_stage_of_30_s_and_more_is_within_5_percent_of_the_truth(name: str) -> None:
    sight = SIGHTS[name]
    load = hidden(scripted(11, stages=STAGES, least=0.25), 11, sight.burst_cores)
    cut = stretches(windows(load))
    made = sharpen(cut, [grown(guest_counter(load, sight, 11))])
    plain, sharp = errors(load, cut), errors(load, of(made))
    assert max(map(abs, sharp)) < 0.05, (plain, sharp)
    assert max(map(abs, plain)) > 0.05  # what sharpening is for


def test_plain_overlap_and_estimate_both_close_over_the_whole_run() -> None:
    load = scripted(5, stages=STAGES)
    cut = stretches(windows(load))
    fine = of(sharpen(cut, [grown(guest_counter(load, Sight(steal=0.2, noise=0.3), 5))]))
    edges = [cut.start_ns[0], *(ns for one in load.spans for ns in (one.start_ns, one.end_ns)),
             cut.end_ns[-1]]  # fmt: skip
    whole = float(window_totals(cut).sum())
    for series in (cut, fine):
        assert sum(totals(series, low, high) for low, high in pairwise(edges)) == pytest.approx(
            whole, rel=1e-9
        )


def test_a_guest_that_saw_nothing_of_it_makes_no_estimate() -> None:
    second = [START_NS + i * NS // 10 for i in range(1_000)]
    idle: list[Raw] = [(ts, None, 7.0) for ts in second]
    hypervisor: list[Raw] = [
        (START_NS + end * NS, START_NS + (end - 20) * NS, 2.0) for end in (20, 40, 60)
    ]
    made = sharpen(stretches(hypervisor), [grown(idle)])
    assert made.reason == "the guest saw nothing of it"
    at_rest = [(end, start, 0.0) for end, start, _ in hypervisor]
    assert not sharpen(stretches(at_rest), [grown(idle)]).level.any()


def test_a_constant_of_the_hypervisors_own_is_told_from_what_the_guest_did() -> None:
    own = scripted(4, stages=STAGES)
    load = hidden(own, 4, 0.0, own_cores=1.0)
    made = sharpen(stretches(windows(load)), [grown(guest_counter(own, Sight(), 4))])
    assert max(map(abs, errors(load, of(made)))) < 0.01  # 0.03 without a constant


def test_steal_does_not_pass_for_such_a_constant() -> None:
    """Where the guest rests between two stages the hypervisor did too."""
    off: list[float] = []
    for seed in range(10):
        load = scripted(seed, stages=STAGES, least=0.25)
        seen = grown(guest_counter(load, Sight(steal=0.2), seed))
        off += map(abs, errors(load, of(sharpen(stretches(windows(load)), [seen]))))
    assert np.median(off) < 0.007  # 0.011 with the constant that a line through all windows has
    assert np.quantile(off, 0.95) < 0.03  # 0.046


def test_what_the_guest_did_not_record_is_one_piece_and_takes_what_is_left() -> None:
    """A run begins within a window: its first stage must not pay for the time before."""
    load = scripted(2, stages=(60.0, 40.0), wave=0.0)
    cut = stretches(windows(load))
    guest = guest_counter(load, Sight(), 2)
    made = sharpen(cut, [grown(guest)])
    before = made.end_ns <= guest[0][0]
    assert before.sum() == 1
    assert made.level[before][0] == pytest.approx(0.05, abs=0.02)  # idle, as it was
    assert max(map(abs, errors(load, of(made)))) < 0.01
    assert abs(errors(load, cut)[0]) > 0.02


def test_a_long_gap_of_the_guest_stays_one_piece() -> None:
    load = scripted(2, stages=(200.0,))
    whole = guest_counter(load, Sight(), 2)
    low, high = START_NS + 60 * NS, START_NS + 75 * NS
    guest = [one for one in whole if not low < one[0] < high]
    made = sharpen(stretches(windows(load)), [grown(guest)])
    inner = (made.start_ns >= low + NS) & (made.end_ns <= high - NS)
    assert inner.sum() <= 1  # the edge of a window may cut it


def test_of_several_signals_the_one_that_fits_is_taken() -> None:
    load = scripted(4, stages=STAGES)
    other = grown(guest_counter(scripted(9, stages=STAGES), Sight(), 9))
    right = grown(guest_counter(load, Sight(), 4))
    made = sharpen(stretches(windows(load)), [other, right])
    assert max(map(abs, errors(load, of(made)))) < 0.01


def test_watts_that_flow_whatever_the_guest_does_stay_even() -> None:
    load = scripted(4, stages=STAGES)
    power = [(end, start, 250.0 + 20.0 * value) for end, start, value in windows(load)]
    signal = grown(guest_counter(load, Sight(), 4))
    made = of(sharpen(stretches(power), [signal], proportional=False))
    for one in load.spans:
        truth = 250.0 * one.seconds + 20.0 * load.total(one.start_ns, one.end_ns)
        assert totals(made, one.start_ns, one.end_ns) == pytest.approx(truth, rel=0.002)


@pytest.mark.parametrize(
    ("hypervisor", "guest", "reason"),
    [
        ([], [(START_NS, None, 0.0)], "no windows to sharpen"),
        ([(START_NS, START_NS - 20 * NS, 1.0)], [], "no signal of its own"),
        (
            [(START_NS + 20 * NS, START_NS, 100.0), (START_NS + 40 * NS, START_NS + 20 * NS, 90.0)],
            [(START_NS + i * NS // 10, None, i * 0.1) for i in range(401)],
            "2 whole windows are too few",
        ),
    ],
)
def test_what_cannot_be_sharpened_says_why(
    hypervisor: list[Raw], guest: list[Raw], reason: str
) -> None:
    made = sharpen(stretches(hypervisor), [grown(guest)] if guest else [], proportional=False)
    assert reason in (made.reason or "")


@pytest.mark.parametrize(("levels", "refused"), [((4.0, 0.1, 0.1), True), ((1.0, 4.0, 0.1), False)])
def test_few_windows_that_lie_elsewhere_than_the_signal_are_refused(
    levels: tuple[float, ...], refused: bool
) -> None:
    """Three windows make no line, yet tell whether the guest was busy in the same ones."""
    edges = [START_NS + i * 20 * NS for i in range(4)]
    hypervisor: list[Raw] = [
        (end, start, level) for (start, end), level in zip(pairwise(edges), levels, strict=True)
    ]
    amount = np.interp(np.arange(601) / 10, [0, 20, 40, 60], [0.0, 20.0, 80.0, 83.0])
    guest: list[Raw] = [(START_NS + i * NS // 10, None, float(one)) for i, one in enumerate(amount)]
    made = sharpen(stretches(hypervisor), [grown(guest)])
    assert ("fell into other windows" in (made.reason or "")) is refused


def test_without_any_whole_window_there_is_no_estimate() -> None:
    guest: list[Raw] = [(START_NS + i * NS // 10, None, i * 0.1) for i in range(100)]
    made = sharpen(stretches([(START_NS + 15 * NS, START_NS - 5 * NS, 1.0)]), [grown(guest)])
    assert made.reason == "the guest was not recorded over any whole window of it"


def test_a_signal_that_has_nothing_to_do_with_it_is_refused() -> None:
    load = scripted(4, stages=STAGES)
    random = np.random.default_rng(0)
    unrelated = [(end, start, float(random.uniform(1, 5))) for end, start, _ in windows(load)]
    made = sharpen(stretches(unrelated), [grown(guest_counter(load, Sight(), 4))])
    assert "follows the guest's signal too little" in (made.reason or "")


def test_ten_series_of_an_hour_take_under_two_seconds() -> None:
    load = scripted(1, stages=[500.0] * 7)
    cut, signal = stretches(windows(load)), grown(guest_counter(load, Sight(), 1))
    started = time.process_time()
    for _ in range(10):
        made = sharpen(cut, [signal])
    assert time.process_time() - started < 2.0
    assert len(made.level) > 34_000
