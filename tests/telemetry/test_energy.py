"""Energy by two witnesses, on GPUs whose true energy is known at every moment."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.attribution import correlate
from telemetry.clock import Clock, measure_offset_ns
from telemetry.energy import METRICS, energy_rows
from telemetry.profile import Profile, Row
from telemetry.recording import Recording
from telemetry.runfolder import Span
from telemetry.samples import Metric, Series
from telemetry.segments import SampleSet, read_samples
from telemetry.settings import TelemetrySettings
from tests.nvml.build import build, environment
from tests.telemetry.oracle import Raw, make_metric, make_samples

NS = 1_000_000_000
EPOCH_NS = 1_795_485_600_123_456_789
ENERGY = make_metric("energy_j", "counter", "J")
POWER = make_metric("power_instant_w", "gauge", "W", integral="J")
NAMES = {metric.name for metric in METRICS}
ROUNDING_J = 1e-6
GRAIN_J = 1e-3
"""The counter is in mJ."""

Energy = Callable[[float], float]


def _span(start_s: float, end_s: float, stage: str = "train") -> Span:
    start_ns, end_ns = (EPOCH_NS + round(at * NS) for at in (start_s, end_s))
    return Span(stage=stage, start_ns=start_ns, end_ns=end_ns)


def _wave(
    idle_w: float = 100, busy_w: float = 200, from_s: float = 2.0, to_s: float = 30
) -> Energy:
    """Joules until t: idle but between the two times, where power also swings by 80 W."""

    def energy(t: float) -> float:
        busy = min(max(t, from_s), to_s) - from_s
        swing = 80 / (2 * math.pi * 1.3) * (1 - math.cos(2 * math.pi * 1.3 * busy))
        return idle_w * t + busy_w * busy + swing

    return energy


def _samples(
    energy: Energy, length_s: float, *, step_s: float = 0.1, period_s: float = 0.1,
    phase_s: float = 0.03, factor: float = 1.0,
) -> SampleSet:  # fmt: skip
    """A counter that moves every ``step_s``, and power (times ``factor``) at the same moments."""
    counter: list[Raw] = []
    power: list[Raw] = []
    for tick in range(int(length_s / period_s)):
        t = phase_s + tick * period_s
        ts = EPOCH_NS + round(t * NS)
        counter.append((ts, None, energy(math.floor(t / step_s) * step_s)))
        power.append((ts, None, factor * (energy(t) - energy(t - 1e-4)) / 1e-4))
    return make_samples({("gpu:0", ENERGY): counter, ("gpu:0", POWER): power}, period_s=period_s)


def _rows(samples: SampleSet, spans: Sequence[Span]) -> dict[tuple[str, str], Row]:
    return {(row.stage, row.metric): row for row in energy_rows(samples, spans)}


def _mean(rows: dict[tuple[str, str], Row], metric: str, stage: str = "train") -> float:
    value = rows[stage, metric].mean
    assert value is not None, rows[stage, metric].reason
    return value


def test_witnesses_that_agree_are_within_a_percent_on_a_long_stage() -> None:
    rows = _rows(_samples(_wave(), 34), [_span(3.01, 23.77)])
    assert abs(_mean(rows, "energy_difference_percent")) < 1
    assert _mean(rows, "energy_difference_j") == pytest.approx(0, abs=60)


@pytest.mark.parametrize("phase_s", [0.0005, 0.03, 0.0995])
def test_a_counter_that_moves_as_often_as_it_is_read_has_no_power_of_nothing_or_twice(
    phase_s: float,
) -> None:
    """Each reading is late by some ms: of two neighbours one may see no step and the other two."""
    chance = np.random.default_rng(5)
    late = phase_s + 0.1 * np.arange(300) + chance.uniform(0, 0.004, 300)
    raw: list[Raw] = [
        (EPOCH_NS + round(t * NS), None, 300.0 * math.floor(t / 0.1) * 0.1) for t in late
    ]
    samples = make_samples({("gpu:0", ENERGY): raw}, period_s=0.1)
    (row,) = correlate(samples, [_span(3.0, 23.0)]).rows
    assert row.mean == pytest.approx(300.0, rel=0.01)
    for figure in (row.p50, row.p95, row.max):
        assert figure == pytest.approx(300.0, rel=0.11)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_witness_that_is_off_shows_by_how_much(factor: float) -> None:
    rows = _rows(_samples(_wave(), 34, factor=factor), [_span(3, 23)])
    assert _mean(rows, "energy_difference_percent") == pytest.approx(100 * (1 / factor - 1), abs=1)


def test_the_difference_is_that_of_the_profiles_own_rows() -> None:
    samples, span = _samples(_wave(), 34), _span(4.321, 17.5)
    profile = correlate(samples, [span])
    counter, power = (
        profile.find("train", "gpu:0", name) for name in ("energy_j", "power_instant_w")
    )
    assert counter is not None
    assert power is not None
    assert counter.total is not None
    assert power.total is not None
    rows = _rows(samples, [span])
    assert _mean(rows, "energy_difference_j") == pytest.approx(counter.total - power.total)


def _pulsed(t: float) -> float:
    """Joules until t: 300 W for 2 s, then nothing for 2 s; a reading made in there is exact."""
    return 600 * (t // 4) + 300 * min(t % 4, 2.0)


def _called(
    energy: Energy, *, phase_ms: int, step_ms: int, period_ms: float, slowest_ms: int, seed: int
) -> SampleSet:
    """The counter as a thread asks for it: each call takes up to ``slowest_ms``, has its value from
    any moment of it, and its stamp from its end; one that is late is followed at once."""
    random = np.random.default_rng(seed)
    free_ns = 0
    counter: list[Raw] = []
    for tick in range(int(34_000 / period_ms)):
        begin_ns = max(free_ns, round((phase_ms + tick * period_ms) * 1e6))
        free_ns = begin_ns + int(random.integers(0, slowest_ms * 1_000_000 + 1))
        read_ns = int(random.choice([begin_ns, free_ns, random.integers(begin_ns, free_ns + 1)]))
        value_j = energy(read_ns // (step_ms * 1_000_000) * step_ms / 1e3)
        counter.append((EPOCH_NS + free_ns, None, value_j))
    return make_samples({("gpu:0", ENERGY): counter}, period_s=period_ms / 1e3)


TIMES_MS = st.tuples(st.integers(300, 20_000), st.integers(10, 12_000), st.integers(0, 99))
"""A stage's start and length, and the recorder's first tick."""


@settings(deadline=None, max_examples=300)
@given(
    energy=st.sampled_from([_pulsed, _wave()]),
    times_ms=TIMES_MS,
    step_ms=st.sampled_from([20, 100, 150, 200]),
    period_ms=st.sampled_from([50, 100, 101.3]),
    slowest_ms=st.sampled_from([0, 80]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_true_energy_lies_between_the_bounds_however_slow_the_calls_are(
    energy: Energy, times_ms: tuple[int, int, int], step_ms: int, period_ms: float,
    slowest_ms: int, seed: int,
) -> None:  # fmt: skip
    start_ms, length_ms, phase_ms = times_ms
    samples = _called(
        energy, phase_ms=phase_ms, step_ms=step_ms, period_ms=period_ms, slowest_ms=slowest_ms,
        seed=seed,
    )  # fmt: skip
    end_ms = start_ms + length_ms
    rows = _rows(samples, [_span(start_ms / 1e3, end_ms / 1e3)])
    if (why := rows["train", "energy_low_j"].reason) is not None:
        assert "counter" in why or (length_ms < 200 and "has no sample" in why)
        return
    true = energy(end_ms / 1e3) - energy(start_ms / 1e3)
    low, high = _mean(rows, "energy_low_j"), _mean(rows, "energy_high_j")
    assert low - ROUNDING_J <= true <= high + ROUNDING_J
    in_step = period_ms in {50, 100} and step_ms in {20, 100} and not slowest_ms
    most_ms = 600 if in_step else 8 * period_ms + 10 * slowest_ms + 4 * step_ms
    assert high - low <= most_ms / 1e3 * 400 + ROUNDING_J  # at the most power that there is


def test_a_reading_from_before_its_stamp_does_not_make_the_bounds_too_tight() -> None:
    """At 10 W. What is stamped with 2.1 s was read at 2.01 s; the counter moved at 2.05 s, while
    the stage still ran, and then at 2.25 s."""
    before = [(0.1 * tick, float(tick)) for tick in range(1, 21)]
    after = [(2.1, 20.0), (2.2, 20.5), (2.3, 22.5), (2.4, 22.5), (2.5, 24.5)]
    counter: list[Raw] = [
        (EPOCH_NS + round(t * NS), None, joules) for t, joules in [*before, *after]
    ]
    rows = _rows(make_samples({("gpu:0", ENERGY): counter}), [_span(1.0, 2.08)])
    assert _mean(rows, "energy_low_j") <= 10.8 <= _mean(rows, "energy_high_j")


def test_the_bounds_are_wide_on_a_short_stage_and_narrow_on_a_long_one() -> None:
    rows = _rows(_samples(_wave(), 34), [_span(5, 6, "short"), _span(6, 26, "long")])
    widths = {
        stage: (_mean(rows, "energy_high_j", stage) - _mean(rows, "energy_low_j", stage))
        / _mean(rows, "energy_high_j", stage)
        for stage in ("short", "long")
    }
    assert 0.2 < widths["short"] < 0.6
    assert widths["long"] < 0.04


def test_a_counter_that_moves_rarely_widens_the_bounds() -> None:
    rows = _rows(_samples(_wave(), 34, step_s=1.0), [_span(5.5, 9.5)])
    true = _wave()(9.5) - _wave()(5.5)
    low, high = _mean(rows, "energy_low_j"), _mean(rows, "energy_high_j")
    assert low <= true <= high
    assert 2 * 100 < high - low < 4 * 400


def test_a_time_without_readings_widens_the_bounds_of_its_own_stage_alone() -> None:
    full = _samples(_wave(), 34).table.to_pylist()
    kept = [
        (row["ts_ns"], None, row["value"])
        for row in full
        if row["metric"] == "energy_j" and not 12.5 * NS < row["ts_ns"] - EPOCH_NS < 15.5 * NS
    ]
    spans = [_span(5, 8, "before"), _span(10, 14, "within"), _span(20, 23, "after")]
    rows = _rows(make_samples({("gpu:0", ENERGY): kept}), spans)
    widths = {
        span.stage: _mean(rows, "energy_high_j", span.stage)
        - _mean(rows, "energy_low_j", span.stage)
        for span in spans
    }
    assert max(widths["before"], widths["after"]) < 0.6001 * 400
    assert widths["within"] > 2 * 200


def test_idle_power_is_no_less_for_a_counter_that_is_out_of_step_with_the_ticks() -> None:
    still = _wave(from_s=290)
    rows = _rows(_samples(still, 300, period_s=0.1013), [_span(291, 299)])
    assert _mean(rows, "power_idle_before_w") == pytest.approx(100, abs=0.5)


def test_bounds_need_readings_beyond_both_ends_and_a_counter_that_grows() -> None:
    energy = _wave()
    late = _rows(_samples(energy, 10), [_span(3, 9.95)])["train", "energy_high_j"]
    assert "after the stage had ended" in (late.reason or "")
    early = _rows(_samples(energy, 10, phase_s=0.5), [_span(0.2, 4)])["train", "energy_low_j"]
    assert "before the stage began" in (early.reason or "")
    back = _samples(lambda t: energy(t) - (500 if t > 5 else 0), 10)
    assert "backwards" in (_rows(back, [_span(3, 9)])["train", "energy_low_j"].reason or "")


def test_idle_power_before_the_first_stage_is_taken_off_and_named() -> None:
    rows = _rows(_samples(_wave(), 34), [_span(2, 12), _span(12, 22, "serve")])
    assert _mean(rows, "power_idle_before_w") == pytest.approx(100, abs=1)
    assert ("train", "power_idle_least_w") not in rows
    above = rows["train", "energy_above_idle_j"]
    assert above.kind == "counter"
    assert above.total == pytest.approx(2000, rel=0.02)
    assert above.mean == pytest.approx(200, rel=0.02)


def test_without_an_idle_second_before_it_is_the_least_of_the_run() -> None:
    busy_first = _wave(from_s=-5, to_s=10)
    rows = _rows(_samples(busy_first, 20), [_span(2, 9)])
    assert _mean(rows, "power_idle_least_w") == pytest.approx(100, abs=1)
    assert ("train", "power_idle_before_w") not in rows
    at_once = _rows(_samples(_wave(), 34), [_span(0.2, 12)])
    assert ("train", "power_idle_least_w") in at_once


def _seen(samples: SampleSet, name: str, busy: float, idle: float, *, to_s: float) -> SampleSet:
    """With what NVML says of a GPU at work until ``to_s``, and idle then."""
    metric = make_metric(name, "gauge", "%")
    rows: list[Raw] = [
        (EPOCH_NS + round(0.1 * tick * NS), None, busy if 0.1 * tick < to_s else idle)
        for tick in range(330)
    ]
    seen = make_samples({("gpu:0", metric): rows})
    return replace(
        samples,
        table=pa.concat_tables([samples.table, seen.table]).unify_dictionaries(),
        metrics=samples.metrics | seen.metrics,
        periods=samples.periods | seen.periods,
    )


@pytest.mark.parametrize(
    ("name", "busy", "idle"), [("gpu_util_percent", 97, 0), ("gpu_throttle_idle", 0, 1)]
)
def test_a_second_at_work_is_not_idle_however_little_it_took(
    name: str, busy: float, idle: float
) -> None:
    steady = _wave(idle_w=600, from_s=40)
    rows = _rows(_seen(_samples(steady, 30), name, busy, idle, to_s=40), [_span(2, 29)])
    why = rows["train", "energy_above_idle_j"].reason or ""
    assert "at work in every 1 s" in why
    assert "rest for two seconds" in why
    at_rest = lambda t: 600 * min(t, 20) + 70 * max(0, t - 20)  # noqa: E731
    rows = _rows(_seen(_samples(at_rest, 30), name, busy, idle, to_s=22), [_span(2, 18)])
    assert _mean(rows, "power_idle_run_w") == pytest.approx(70, abs=1)


def _noisy(length_s: float, seed: int) -> SampleSet:
    """A GPU that does nothing, at 70 W with noise of 2 W, by both witnesses."""
    random = np.random.default_rng(seed)
    power_w = 70 + 2 * random.standard_normal(int(10 * length_s))
    ts = [EPOCH_NS + round((0.1 * tick + 0.03) * NS) for tick in range(len(power_w))]
    joules = np.cumsum(power_w) * 0.1
    return make_samples(
        {
            ("gpu:0", POWER): [(at, None, float(w)) for at, w in zip(ts, power_w, strict=True)],
            ("gpu:0", ENERGY): [(at, None, float(j)) for at, j in zip(ts, joules, strict=True)],
        }
    )


@pytest.mark.parametrize(
    ("start_s", "seen", "row"),
    [(30, False, "power_idle_before_w"), (0.5, True, "power_idle_run_w")],
)
def test_a_stage_that_did_nothing_is_as_often_below_idle_as_above_it(
    start_s: float, seen: bool, row: str
) -> None:
    above_j = []
    for seed in range(40):
        samples = _noisy(330, seed)
        if seen:
            samples = _seen(samples, "gpu_util_percent", 97, 0, to_s=0)
        rows = _rows(samples, [_span(start_s, start_s + 290)])
        assert ("train", row) in rows
        above_j.append(rows["train", "energy_above_idle_j"].total or 0.0)
    assert 8 <= sum(joules > 0 for joules in above_j) <= 32
    assert abs(float(np.mean(above_j))) < 30  # 0.1 W over 290 s


def test_the_least_second_of_a_run_is_too_low_and_says_so() -> None:
    rows = _rows(_noisy(330, 1), [_span(0.5, 290)])
    assert (rows["train", "energy_above_idle_j"].total or 0.0) > 0.5 * 290
    (least,) = (metric for metric in METRICS if metric.name == "power_idle_least_w")
    assert _mean(rows, least.name) < 69.5
    assert "too low" in least.meaning


def test_idle_power_needs_a_whole_second() -> None:
    rows = _rows(_samples(_wave(), 0.8), [_span(0.1, 0.7)])
    assert "no whole 1 s" in (rows["train", "energy_above_idle_j"].reason or "")


def test_a_gap_says_that_a_witness_is_short_of_the_stage() -> None:
    samples = _samples(_wave(), 34)
    power = [row for row in samples.table.to_pylist() if row["metric"] == "power_instant_w"]
    kept = [row for row in power if not 5 * NS < row["ts_ns"] - EPOCH_NS < 9 * NS]
    counter = [row for row in samples.table.to_pylist() if row["metric"] == "energy_j"]
    series = {
        ("gpu:0", metric): [(row["ts_ns"], None, row["value"]) for row in rows]
        for metric, rows in ((ENERGY, counter), (POWER, kept))
    }
    rows = _rows(make_samples(series), [_span(3, 13)])
    assert "power_instant_w cover only" in (rows["train", "energy_difference_j"].reason or "")
    assert rows["train", "energy_above_idle_j"].total is not None


def test_one_witness_alone_says_what_the_other_lacks() -> None:
    full = _samples(_wave(), 20).table.to_pylist()
    power = [
        (row["ts_ns"], None, row["value"]) for row in full if row["metric"] == "power_instant_w"
    ]
    absent = [Series(entity="gpu:0", metric=ENERGY, reason="not supported by this GPU")]
    rows = _rows(make_samples({("gpu:0", POWER): power}, absent=absent), [_span(3, 13)])
    for metric in ("energy_difference_j", "energy_low_j"):
        assert rows["train", metric].reason == "not supported by this GPU"
    assert rows["train", "energy_above_idle_j"].total == pytest.approx(2000, rel=0.02)


def _lost(
    samples: SampleSet, metric: Metric, from_s: float, why: str, to_s: float = math.inf
) -> SampleSet:
    """Without one witness between the two times, and with what its collector says of that."""
    series: dict[tuple[str, Metric], list[Raw]] = {("gpu:0", ENERGY): [], ("gpu:0", POWER): []}
    for row in samples.table.to_pylist():
        one = ENERGY if row["metric"] == ENERGY.name else POWER
        if one is not metric or not from_s < (row["ts_ns"] - EPOCH_NS) / NS < to_s:
            series["gpu:0", one].append((row["ts_ns"], None, row["value"]))
    return make_samples(series, absent=[Series(entity="gpu:0", metric=metric, reason=why)])


def test_a_stage_that_the_counter_does_not_cover_is_above_idle_by_power() -> None:
    why = "since 10:00: the GPU's counter is lost"
    samples = _lost(_samples(_wave(), 34), ENERGY, 15, why)
    spans = [_span(3, 13, "before"), _span(13, 23, "within"), _span(23, 29, "after")]
    rows = _rows(samples, spans)
    for span in spans:
        above = rows[span.stage, "energy_above_idle_j"]
        assert above.total == pytest.approx(200 * span.seconds, rel=0.05)
        assert above.coverage == pytest.approx(1)
    assert rows["before", "energy_low_j"].reason is None
    for stage in ("within", "after"):
        for metric in ("energy_difference_j", "energy_low_j", "energy_high_j"):
            assert (rows[stage, metric].reason or "").endswith(f": {why}")


def test_a_stage_that_no_witness_covers_is_above_idle_by_what_covers_more() -> None:
    half = _lost(_samples(_wave(), 34), ENERGY, 9, "lost")
    samples = _lost(half, POWER, 6, "lost")
    above = _rows(samples, [_span(3, 13)])["train", "energy_above_idle_j"]
    assert above.coverage == pytest.approx(0.6, abs=0.02)
    assert above.total_share == above.coverage
    assert above.whole is None
    none = _rows(samples, [_span(20, 30)])["train", "energy_above_idle_j"]
    assert "energy_j has no sample" in (none.reason or "")


def test_a_witness_that_comes_back_ends_no_later_stage() -> None:
    samples = _lost(_samples(_wave(), 34), ENERGY, 15, "the GPU's counter is lost", to_s=20)
    rows = _rows(samples, [_span(16, 18), _span(21, 29, "after")])
    assert rows["train", "energy_above_idle_j"].total == pytest.approx(400, rel=0.1)
    why = rows["train", "energy_difference_j"].reason or ""
    assert "cover only 0 %" in why
    assert "lost" not in why
    assert rows["after", "energy_low_j"].reason is None


@pytest.mark.needs("gcc")
def test_a_stage_that_ends_right_before_the_recorder_has_both_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the recorder and the real binding, at 200 W all the time."""
    env = environment(build(tmp_path / "nvml"), "gpus=1;power_swing_w=0")
    for name in ("LD_LIBRARY_PATH", "STAGESCOPE_NVML_SCENARIO"):
        monkeypatch.setenv(name, env[name])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    clock = Clock(offset_ns=measure_offset_ns())
    with Recording(tmp_path / "samples", clock, TelemetrySettings(collectors=("gpu",))):
        time.sleep(0.6)
        start_ns = clock.now_ns()
        time.sleep(0.5)
        span = Span(stage="train", start_ns=start_ns, end_ns=clock.now_ns())
    rows = _rows(read_samples(tmp_path / "samples"), [span])
    low, high = _mean(rows, "energy_low_j"), _mean(rows, "energy_high_j")
    assert low - GRAIN_J <= 200 * span.seconds <= high + GRAIN_J


def test_without_a_gpu_everything_is_absent_with_the_reason_and_parts_of_one_have_no_rows() -> None:
    absent = [
        Series(entity="gpu", metric=metric, reason="no NVIDIA driver") for metric in (ENERGY, POWER)
    ]
    rows = _rows(make_samples({}, absent=absent), [_span(3, 13)])
    assert rows
    assert {row.reason for row in rows.values()} == {"no NVIDIA driver"}
    assert not list(energy_rows(make_samples({}), [_span(3, 13)]))


def test_a_span_without_duration_or_outside_the_samples_has_reasons() -> None:
    samples = _samples(_wave(), 20)
    for span in (_span(5, 5), _span(40, 50)):
        rows = _rows(samples, [span])
        assert rows["train", "energy_difference_j"].reason
        assert rows["train", "energy_low_j"].reason
        assert rows["train", "energy_above_idle_j"].reason


def test_the_rows_fit_into_a_profile_and_its_schema() -> None:
    samples, spans = _samples(_wave(), 34), [_span(2, 12), _span(33.9, 34.4, "serve")]
    added = list(energy_rows(samples, spans))
    assert {row.metric for row in added} <= NAMES
    profile = Profile(rows=(*correlate(samples, spans).rows, *added))
    assert len({(row.stage, row.entity, row.metric) for row in profile.rows}) == len(profile.rows)
    assert profile.to_table().num_rows == len(profile.rows)
    schema = json.loads(Path("docs/profile.schema.json").read_text())
    run = {"stages": [{"name": span.stage} for span in spans]}
    stages = profile.to_json(run)["stages"]
    metric = {"$defs": schema["$defs"], "$ref": "#/$defs/metric"}
    for stage in stages:
        for row in stage["metrics"]:
            jsonschema.validate(row, metric)
