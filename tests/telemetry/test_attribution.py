"""Attribution against an oracle that looks at every nanosecond, and its laws on random input."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from telemetry.attribution import correlate, entity_in, quantiles, share, stretches_of
from telemetry.profile import Row
from telemetry.runfolder import Span
from telemetry.samples import Kind, Metric, Series
from telemetry.segments import SampleSet
from telemetry.series import SeriesIndex
from tests.telemetry.oracle import Raw, attribute, make_metric, make_samples

END = 160
PERIOD_NS = 10
PERIOD_S = PERIOD_NS / 1e9
EPOCH_NS = 1_795_485_600_123_456_789
METRICS: dict[Kind, Metric] = {
    "counter": make_metric("cpu_user_seconds", "counter"),
    "gauge": make_metric("power_instant_w", "gauge", "W", integral="J"),
    "window": make_metric("vm_cpu_ready_percent", "window", "%"),
}
KINDS: st.SearchStrategy[Kind] = st.sampled_from(["counter", "gauge", "window"])
VALUES = st.one_of(st.integers(-40, 400).map(float), st.sampled_from([math.nan, math.inf]))


@st.composite
def raw_series(draw: st.DrawFn, kind: Kind, values: st.SearchStrategy[float] = VALUES) -> list[Raw]:
    """Samples in no order, some at one time, with gaps and failures; counters mostly grow."""
    times = draw(st.lists(st.integers(0, END), max_size=24))
    raw: list[Raw] = []
    level = 0.0
    for ts in sorted(times):
        value = draw(values)
        if kind == "counter" and math.isfinite(value):
            level = value if value < 0 else level + value
            value = level
        start = ts - draw(st.integers(1, 30)) if kind == "window" and draw(st.booleans()) else None
        raw.append((ts, start, value))
    return draw(st.permutations(raw))


SERIES = KINDS.flatmap(lambda kind: st.tuples(st.just(kind), raw_series(kind)))
EDGES = st.tuples(st.integers(0, END), st.integers(0, END)).map(sorted)


def moved(raw: Sequence[Raw], by_ns: int) -> list[Raw]:
    """The same samples at another time; times near 0 would hide what float64 loses."""
    return [(ts + by_ns, None if start is None else start + by_ns, v) for ts, start, v in raw]


def span(name: str, start_ns: int, end_ns: int) -> Span:
    return Span(stage=name, start_ns=start_ns + EPOCH_NS, end_ns=end_ns + EPOCH_NS)


def sample_set(kind: Kind, raw: Sequence[Raw], order: Sequence[int] | None = None) -> SampleSet:
    series = {("machine", METRICS[kind]): moved(raw, EPOCH_NS)}
    return make_samples(series, period_s=PERIOD_S, order=order)


def rows_of(kind: Kind, raw: Sequence[Raw], *spans: Span) -> list[Row]:
    """The rows of one series, one for each span."""
    return list(correlate(sample_set(kind, raw), spans).rows)


def totals(kind: Kind, raw: Sequence[Raw], edges: Sequence[tuple[int, int]]) -> float:
    """What lies in all of these stretches together, covered or not."""
    if not raw:
        return 0.0
    points = SeriesIndex(sample_set(kind, raw)).points("machine", METRICS[kind].name)
    stretches = stretches_of(points, METRICS[kind], PERIOD_S)
    parts = [share(stretches, EPOCH_NS + a, EPOCH_NS + b) for a, b in edges]
    return sum(part.total for part in parts if part is not None)


@settings(deadline=None, max_examples=400)
@given(series=SERIES, edges=EDGES)
def test_every_figure_is_the_oracles(series: tuple[Kind, list[Raw]], edges: list[int]) -> None:
    kind, raw = series
    assume(raw)
    (row,) = rows_of(kind, raw, span("a", *edges))
    answer = attribute(raw, kind, PERIOD_NS, *edges)
    if answer is None or answer.covered == 0:
        assert (row.mean, row.p50, row.p95, row.max, row.total) == (None,) * 5
        assert row.coverage == 0.0
        assert row.reason
        return
    if edges[1] - edges[0] < answer.usual:
        assert (row.mean, row.p50, row.p95, row.max, row.total) == (None,) * 5
        assert "shorter than one window" in (row.reason or "")
        covered = answer.covered / (edges[1] - edges[0])
        assert row.coverage == pytest.approx(float(covered), rel=1e-12)
        return
    assert row.reason is None
    assert row.coverage == pytest.approx(float(answer.covered / (edges[1] - edges[0])), rel=1e-12)
    for name in ("mean", "p50", "p95", "max"):
        expected = float(getattr(answer, name))
        assert getattr(row, name) == pytest.approx(expected, rel=1e-9, abs=1e-9), name
    if kind == "window":
        assert (row.total, row.total_share) == (None, None)  # nothing says what its integral is
    else:
        assert row.total == pytest.approx(float(answer.total), rel=1e-9, abs=1e-15)
        assert row.total_share == pytest.approx(row.coverage, rel=1e-12)


def test_the_total_of_windows_stands_for_all_of_them_that_lies_within() -> None:
    power = make_metric("power", "window", "W", integral="J")
    raw: list[Raw] = [(end, end - 20, 3.0) for end in (*range(20, 180, 20), *range(200, 260, 20))]
    samples = make_samples({("esxi:a", power): moved(raw, EPOCH_NS)}, period_s=PERIOD_S)
    spans = [span("a", 10, 110), span("b", 130, 230), span("c", 10, 50)]
    whole, hole, few = correlate(samples, spans).rows
    assert whole.total_share == 1.0
    assert whole.coverage == pytest.approx((80 + 5 + 5) / 100)
    assert hole.total_share == pytest.approx(80 / 100)
    assert few.total_share == few.coverage == pytest.approx((20 + 5 + 5) / 40)


@pytest.mark.parametrize(
    ("entity", "begins_ms", "first", "ends_ms", "finished", "total_share"),
    [
        ("stage:a", 400, 0.0, 2000, True, 1.0),  # the moment until it was found
        ("stage:a", 600, 0.0, 2000, True, 0.7),
        ("stage:a", 400, 0.0, 1600, True, 0.8),  # a recorder that was lost
        ("stage:a", 400, 0.0, 1900, True, 0.95),
        ("app:a", 1400, 0.0, 2000, True, 1.0),  # it counts from 0 once it is loaded
        ("app:a", 1400, 0.0, 1900, True, 1.0),  # and was written at last when it had done
        ("app:a", 400, 0.0, 1900, False, 0.95),  # it was killed: who knows what it counted
        ("app:a", 400, 0.0, 1600, True, 0.8),  # what it counted in four periods is not on disk
        ("app:a", 1400, 7.0, 2000, True, 0.3),  # its first segment is gone
        ("machine", 400, 0.0, 2000, True, 0.8),
        ("machine", 400, 0.0, 1900, True, 0.75),
    ],
)
def test_a_stages_own_total_is_whole_where_what_was_not_seen_is_known(
    entity: str, begins_ms: int, first: float, ends_ms: int, finished: bool, total_share: float
) -> None:
    times = range(begins_ms, ends_ms + 1, 100)
    raw: list[Raw] = [(at * 10**6, None, first + at - begins_ms) for at in times]
    samples = make_samples({(entity, METRICS["counter"]): moved(raw, EPOCH_NS)}, period_s=0.1)
    (row,) = (
        one
        for one in correlate(samples, [replace(span("a", 0, 2 * 10**9), finished=finished)]).rows
        if one.metric == METRICS["counter"].name
    )
    assert row.total_share == pytest.approx(total_share)


@settings(deadline=None)
@given(series=SERIES, cuts=st.lists(st.integers(0, END), max_size=8))
def test_stages_and_idle_are_the_whole_run(series: tuple[Kind, list[Raw]], cuts: list[int]) -> None:
    """However time is cut up, the pieces hold what the whole holds: nothing is lost or doubled."""
    kind, raw = series
    edges = [-50, *sorted(cuts), END + 50]
    shared = totals(kind, raw, list(pairwise(edges)))
    assert shared == pytest.approx(totals(kind, raw, [(-50, END + 50)]), rel=1e-9, abs=1e-12)


@settings(deadline=None)
@given(raw=raw_series("counter"))
def test_the_whole_of_a_counter_is_all_that_it_grew(raw: list[Raw]) -> None:
    largest: dict[int, float] = {}
    for ts, _, value in raw:
        if math.isfinite(value):
            largest[ts] = max(value, largest.get(ts, value))
    values = [largest[ts] for ts in sorted(largest)]
    grown = sum(max(0.0, b - a) for a, b in pairwise(values))
    assert totals("counter", raw, [(-50, END + 50)]) == pytest.approx(grown, rel=1e-12)


@settings(deadline=None)
@given(series=SERIES, edges=EDGES, cut=st.integers(0, END))
def test_two_halves_make_the_span(
    series: tuple[Kind, list[Raw]], edges: list[int], cut: int
) -> None:
    kind, raw = series
    low, high = edges
    middle = min(max(cut, low), high)
    halves = totals(kind, raw, [(low, middle), (middle, high)])
    assert halves == pytest.approx(totals(kind, raw, [(low, high)]), rel=1e-9, abs=1e-12)


@settings(deadline=None)
@given(series=SERIES, edges=EDGES, seed=st.integers(0, 1 << 30))
def test_order_and_repetition_of_samples_change_nothing(
    series: tuple[Kind, list[Raw]], edges: list[int], seed: int
) -> None:
    kind, raw = series
    chance = random.Random(seed)
    again = raw + chance.choices(raw, k=5) if raw else raw
    order = chance.sample(range(len(again)), len(again))
    shuffled = correlate(sample_set(kind, again, order), [span("a", *edges)])
    assert shuffled == correlate(sample_set(kind, raw), [span("a", *edges)])


@settings(deadline=None)
@given(series=SERIES, edges=EDGES, when=st.lists(st.integers(0, END), max_size=5))
def test_a_failed_reading_is_no_sample(
    series: tuple[Kind, list[Raw]], edges: list[int], when: list[int]
) -> None:
    kind, raw = series
    assume(any(math.isfinite(value) for _, _, value in raw))
    failed: list[Raw] = [(ts, None, math.nan) for ts in when]
    here = span("a", *edges)
    assert rows_of(kind, raw + failed, here) == rows_of(kind, raw, here)


@settings(deadline=None)
@given(series=SERIES, edges=EDGES)
def test_coverage_is_a_share_and_levels_stay_in_bounds(
    series: tuple[Kind, list[Raw]], edges: list[int]
) -> None:
    kind, raw = series
    assume(raw)
    (row,) = rows_of(kind, raw, span("a", *edges))
    assert 0.0 <= row.coverage <= 1.0
    if row.mean is None:
        return
    assert row.p50 is not None
    assert row.p95 is not None
    assert row.max is not None
    assert row.p50 <= row.p95 <= row.max
    slack = 1e-9 * (1 + abs(row.max))
    assert row.mean <= row.max + slack
    if kind != "counter":
        values = [value for _, _, value in raw if math.isfinite(value)]
        assert min(values) <= row.mean <= max(values)


@settings(deadline=None)
@given(series=SERIES, first=EDGES, second=EDGES)
def test_each_span_is_attributed_by_itself(
    series: tuple[Kind, list[Raw]], first: list[int], second: list[int]
) -> None:
    """Spans may touch, nest or overlap: a row does not know of the other spans."""
    kind, raw = series
    one, other = span("a", *first), span("b", *second)
    both = correlate(sample_set(kind, raw), [one, other]).rows
    alone = (*rows_of(kind, raw, one), *rows_of(kind, raw, other))
    assert both == alone


@settings(deadline=None)
@given(weights=st.lists(st.integers(1, 9), min_size=1, max_size=30), data=st.data())
def test_quantiles_are_those_of_the_time(weights: list[int], data: st.DataObject) -> None:
    levels = data.draw(st.lists(st.integers(-5, 5), min_size=len(weights), max_size=len(weights)))
    spread = sorted(level for level, n in zip(levels, weights, strict=True) for _ in range(n))
    found = quantiles(np.array(levels, float), np.array(weights), ((1, 2), (19, 20), (1, 1)))
    places = [math.ceil(len(spread) * q) - 1 for q in (0.5, 0.95, 1.0)]
    assert found == tuple(float(spread[place]) for place in places)


def test_a_counter_is_shared_out_by_overlap() -> None:
    raw: list[Raw] = [(0, None, 0.0), (10, None, 4.0), (20, None, 4.0)]
    first, second = rows_of("counter", raw, span("a", 0, 5), span("b", 5, 20))
    assert (first.total, second.total) == (2.0, 2.0)
    assert first.mean == 2.0 / 5e-9
    assert second.p50 == 0.0  # 10 of its 15 ns nothing grew
    assert (first.coverage, second.coverage) == (1.0, 1.0)


def test_a_reset_loses_its_stretch_and_nothing_else() -> None:
    raw: list[Raw] = [(0, None, 90.0), (10, None, 100.0), (20, None, 3.0), (30, None, 8.0)]
    (row,) = rows_of("counter", raw, span("a", 0, 30))
    assert row.total == 15.0
    assert row.coverage == pytest.approx(2 / 3)


def test_a_gap_inside_a_stage_keeps_its_total_and_one_over_the_edge_is_not_covered() -> None:
    raw: list[Raw] = [(0, None, 0.0), (10, None, 1.0), (110, None, 11.0), (120, None, 12.0)]
    inside, across = rows_of("counter", raw, span("a", 0, 120), span("b", 60, 120))
    assert (inside.total, inside.coverage) == (12.0, 1.0)
    assert across.total == pytest.approx(6.0)
    assert across.coverage == pytest.approx(10 / 60)


def test_a_level_after_a_gap_holds_for_one_period_back() -> None:
    raw: list[Raw] = [(10, None, 5.0), (20, None, 5.0), (100, None, 7.0)]
    (row,) = rows_of("gauge", raw, span("a", 0, 100))
    assert row.coverage == pytest.approx(0.3)
    assert row.mean == pytest.approx(17 / 3)
    assert row.total == pytest.approx(17 * 10e-9)  # W and s make J


@pytest.mark.parametrize(("distance", "covered"), [(25, 25), (26, 10)])
def test_a_gap_begins_beyond_two_and_a_half_periods(distance: int, covered: int) -> None:
    raw: list[Raw] = [(0, None, 5.0), (distance, None, 5.0)]
    (row,) = rows_of("gauge", raw, span("a", 0, distance))
    assert row.coverage == pytest.approx(covered / distance)


def test_a_window_over_the_edge_is_shared_and_says_so() -> None:
    raw: list[Raw] = [(40, 20, 8.0), (60, 40, 2.0)]
    before, after = rows_of("window", raw, span("a", 0, 30), span("b", 30, 60))
    # Half of the first window lies in each: 10 of its ns, each known by half.
    assert [before.mean, before.coverage] == pytest.approx([8.0, (10 * 0.5) / 30])
    assert [after.mean, after.coverage] == pytest.approx([4.0, (20 + 10 * 0.5) / 30])


def test_a_stage_shorter_than_a_window_has_coverage_and_no_number() -> None:
    second = 1_000_000_000
    raw: list[Raw] = [(40 * second, 20 * second, 8.0), (60 * second, 40 * second, 2.0)]
    series = {("vm:a@b", METRICS["window"]): raw}
    spans = [
        Span(stage="within", start_ns=22 * second, end_ns=37 * second),
        Span(stage="across", start_ns=30 * second, end_ns=49 * second),
        Span(stage="just", start_ns=30 * second, end_ns=50 * second),
    ]
    within, across, just = correlate(make_samples(series, period_s=300.0), spans).rows
    assert (within.mean, within.max, within.total) == (None, None, None)
    assert within.coverage == pytest.approx(15 / 20)
    assert within.reason == "shorter than one window of 20 s: nothing says when in it"
    assert (across.mean, across.coverage) == (None, pytest.approx((10 * 0.5 + 9 * 0.45) / 19))
    assert (just.mean, just.coverage, just.reason) == (5.0, 0.5, None)


def test_a_long_window_that_reaches_in_by_a_hair_does_not_take_the_others_away() -> None:
    """As of an estimate, whose piece from before the run is longer than its first stage."""
    second = 1_000_000_000
    raw: list[Raw] = [(17 * second, 0, 1.0), *(
        ((17 + i) * second, (16 + i) * second, 2.0) for i in range(1, 6)
    )]  # fmt: skip
    series = {("vm:a@b", METRICS["window"]): raw}
    stage = Span(stage="a", start_ns=17 * second - second // 10, end_ns=21 * second)
    (row,) = correlate(make_samples(series), [stage]).rows
    assert row.reason is None
    assert row.mean == pytest.approx((0.1 * 1.0 + 4 * 2.0) / 4.1)


def test_a_tick_between_two_samples_out_of_turn_is_no_burst() -> None:
    """A last sample 1 ms after another must not make ten cores out of one clock tick."""
    ms = 1_000_000
    raw: list[Raw] = [(100 * i * ms, None, 0.1 * i) for i in range(11)]
    raw.append((1_001 * ms, None, 1.01))
    series = {("stage:a", METRICS["counter"]): raw}
    row = correlate(make_samples(series), [Span(stage="a", start_ns=0, end_ns=1_001 * ms)]).rows[0]
    assert row.total == pytest.approx(1.01)
    assert row.max == pytest.approx(0.11 / 0.101)


def test_what_belongs_to_a_stage_shows_there_and_nowhere_else() -> None:
    raw: list[Raw] = [(0, None, 0.0), (40, None, 4.0)]
    counted = make_metric("app_rows", "counter", "rows")
    series = {
        ("stage:a", METRICS["counter"]): raw,
        ("app:b", counted): raw,
        ("gpu:0", METRICS["gauge"]): raw,
    }
    profile = correlate(
        make_samples(series, period_s=PERIOD_S),
        [Span(stage=name, start_ns=0, end_ns=40) for name in ("a", "b")],
    )
    names = [(row.stage, row.entity, row.reason is None) for row in profile.rows]
    assert names == [
        ("a", "gpu:0", True),
        ("a", "stage", True),
        ("b", "app", True),
        ("b", "gpu:0", True),
        ("b", "stage", False),  # others' processes were sampled, its own were not: that is told
    ]
    missing = profile.find("b", "stage", "cpu_user_seconds")
    assert missing is not None
    assert missing.reason == "the stage's processes were not sampled"


@pytest.mark.parametrize("step_ms", [0, 200, 250, 330, 500, 1000, 2000])
@pytest.mark.parametrize("late_ms", [0, 7])
def test_rates_of_a_card_whose_driver_fetches_its_counters_now_and_then(
    step_ms: int, late_ms: int
) -> None:
    """A steady 12 MB/s, read ten times a second: most readings find that nothing has come."""
    received = make_metric("net_rx_bytes", "counter", "B")
    ms, rate = 1_000_000, 12e6
    times = [100 * i + (late_ms if i % 3 else 0) for i in range(401)]
    raw: list[Raw] = [(at * ms, None, rate * (at - at % max(step_ms, 1)) / 1e3) for at in times]
    samples = make_samples({("net:eth0", received): moved(raw, EPOCH_NS)}, period_s=0.1)
    row, brief = correlate(
        samples, [span("a", 0, 40 * 10**9), span("b", 9 * 10**9, 18 * 10**9)]
    ).rows
    for one, seconds in ((row, 40), (brief, 9)):
        assert one.total == pytest.approx(rate * seconds, rel=0.25)
        assert one.p50 == pytest.approx(rate, rel=0.26)
        assert 0.7 * rate < (one.max or 0) < 1.6 * rate


@pytest.mark.parametrize("alive_s", [0, 1])
def test_what_really_came_now_and_then_has_its_own_rates(alive_s: int) -> None:
    """Bursts of half a second at times of their own: the median is nothing, the most all of it.

    Also where a sign of life is sent every second.
    """
    received = make_metric("net_rx_bytes", "counter", "B")
    random = np.random.default_rng(3)
    bursts = np.cumsum(random.uniform(2.0, 6.0, 20)) * 10
    grown = np.zeros(900)
    for at in bursts.astype(int):
        grown[at : at + 5] = 1e6
    grown[:: 10 * alive_s or len(grown)] += 60
    raw: list[Raw] = [
        (100_000_000 * i, None, float(level)) for i, level in enumerate(np.cumsum(grown))
    ]
    samples = make_samples({("net:eth0", received): moved(raw, EPOCH_NS)}, period_s=0.1)
    (row,) = correlate(samples, [span("a", 0, 89 * 10**9)]).rows
    assert (row.p50, row.max) == (0.0, pytest.approx(1e7, rel=1e-3))


@pytest.mark.parametrize(
    ("entity", "stage", "here"),
    [
        ("stage:a", "a", "stage"),
        ("stage:a", "b", None),
        ("stage:*", "b", "stage"),
        ("app:a:b", "a:b", "app"),
        ("gpu:0", "0", "gpu:0"),
        ("machine", "a", "machine"),
    ],
)
def test_names_of_entities_within_a_stage(entity: str, stage: str, here: str | None) -> None:
    assert entity_in(entity, stage) == here


def test_an_absent_series_has_its_reason_in_every_stage() -> None:
    absent = [Series(entity="gpu", metric=METRICS["gauge"], reason="no driver here")]
    rows = correlate(make_samples({}, absent=absent), [span("a", 0, 5), span("b", 5, 9)]).rows
    assert [(row.stage, row.reason, row.mean, row.total, row.coverage) for row in rows] == [
        ("a", "no driver here", None, None, 0.0),
        ("b", "no driver here", None, None, 0.0),
    ]


def test_samples_count_for_more_than_a_reason() -> None:
    """A series that was absent after a restart still has the figures of the time before."""
    raw: list[Raw] = [(10, None, 3.0)]
    absent = [Series(entity="gpu:0", metric=METRICS["gauge"], reason="GPU is lost")]
    samples = make_samples({("gpu:0", METRICS["gauge"]): raw}, period_s=PERIOD_S, absent=absent)
    spans = [Span(stage="a", start_ns=0, end_ns=10), Span(stage="b", start_ns=10, end_ns=20)]
    assert [(row.mean, row.reason) for row in correlate(samples, spans).rows] == [
        (3.0, None),
        (None, "GPU is lost"),
    ]


@pytest.mark.parametrize(
    ("raw", "edges", "reason"),
    [
        ([(0, None, 1.0)], (5, 5), "the stage has no duration"),
        ([(3, None, math.nan)], (0, 5), "every reading of it failed"),
        ([(3, None, 1.0)], (0, 5), "one sample in all: a counter needs two"),
        ([(0, None, 1.0), (1, None, 2.0)], (2, 5), "the last one came 1e-09 s before it began"),
        ([(8, None, 1.0), (9, None, 2.0)], (2, 5), "the next one 3e-09 s after it ended"),
        ([(0, None, 1.0), (99, None, 2.0)], (50, 60), "before it began, the next one"),
        ([(3, None, 5.0), (5, None, 2.0)], (0, 5), "do not say what happened between them"),
    ],
)
def test_every_empty_row_says_why(raw: list[Raw], edges: tuple[int, int], reason: str) -> None:
    (row,) = rows_of("counter", raw, span("a", *edges))
    assert row.mean is None
    assert reason in (row.reason or "")


def test_stages_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two spans are called a: give each stage its own name"):
        correlate(SampleSet.empty(), [span("a", 0, 1), span("a", 1, 2)])


def test_no_samples_and_no_spans_make_no_rows() -> None:
    assert correlate(SampleSet.empty(), [span("a", 0, 1)]).rows == ()
    assert correlate(sample_set("gauge", [(1, None, 1.0)]), []).rows == ()


def test_busy_time_is_derived_from_its_parts() -> None:
    modes = ("user", "nice", "system", "irq", "softirq", "idle", "iowait", "steal")
    grows = dict(zip(modes, (3.0, 0.0, 1.0, 0.5, 0.5, 4.0, 0.5, 0.5), strict=True))
    second = 1_000_000_000
    series = {
        ("machine", make_metric(f"cpu_{mode}_seconds", "counter")): [
            (i * second, None, i * grown) for i in range(5)
        ]
        for mode, grown in grows.items()
    }
    spans = [Span(stage="a", start_ns=0, end_ns=4 * second)]
    profile = correlate(make_samples(series, period_s=1.0), spans)
    busy = profile.find("a", "machine", "cpu_busy_seconds")
    percent = profile.find("a", "machine", "cpu_busy_percent")
    assert busy is not None
    assert percent is not None
    assert (busy.total, busy.mean, busy.p95) == (20.0, 5.0, 5.0)
    assert (percent.mean, percent.max, percent.coverage) == (50.0, 50.0, 1.0)


@pytest.mark.parametrize("reason", ["not measured", None])
def test_busy_percent_does_without_a_steal_that_is_not_measured(reason: str | None) -> None:
    """Said by its collector; of one that is merely not there nothing is known."""
    second = 1_000_000_000
    series = {
        ("machine", make_metric(f"cpu_{mode}_seconds", "counter")): [
            (i * second, None, float(i)) for i in range(5)
        ]
        for mode in ("user", "nice", "system", "irq", "softirq", "idle", "iowait")
    }
    steal = make_metric("cpu_steal_seconds", "counter")
    absent = [] if reason is None else [Series(entity="machine", metric=steal, reason=reason)]
    spans = [Span(stage="a", start_ns=0, end_ns=4 * second)]
    made = correlate(make_samples(series, period_s=1.0, absent=absent), spans)
    row = made.find("a", "machine", "cpu_busy_percent")
    if reason is None:
        assert row is None
    else:
        assert row is not None
        assert row.mean == pytest.approx(500 / 7)


def test_looks_at_which_it_did_nothing_but_wait_for_a_disk_are_told_apart() -> None:
    second = 1_000_000_000
    disk, ready = (0, 1, 1, 0, 2), (0, 1, 0, 1, 0)
    series = {
        ("stage:a", make_metric(name, "gauge")): [
            (i * second, None, float(value)) for i, value in enumerate(values, 1)
        ]
        for name, values in (
            ("process_waiting_for_disk_count", disk), ("process_ready_count", ready)
        )
    }  # fmt: skip
    made = correlate(
        make_samples(series, period_s=1.0), [Span(stage="a", start_ns=0, end_ns=5 * second)]
    )
    only = made.find("a", "stage", "process_only_disk_wait_percent")
    assert only is not None
    assert (only.mean, only.max, only.total, only.coverage) == (40.0, 100.0, None, 1.0)


def test_busy_time_needs_all_of_its_parts_at_one_time() -> None:
    user, system = (make_metric(f"cpu_{mode}_seconds", "counter") for mode in ("user", "system"))
    spans = [Span(stage="a", start_ns=0, end_ns=30)]
    alone = make_samples({("stage:a", user): [(0, None, 0.0), (10, None, 1.0)]})
    assert correlate(alone, spans).find("a", "stage", "cpu_busy_seconds") is None
    apart = make_samples(
        {
            ("stage:a", user): [(0, None, 0.0), (10, None, 1.0), (30, None, 2.0)],
            ("stage:a", system): [(0, None, 0.0), (20, None, 5.0), (30, None, 7.0)],
        },
        period_s=30e-9,
    )
    busy = correlate(apart, spans).find("a", "stage", "cpu_busy_seconds")
    assert busy is not None
    assert (busy.total, busy.coverage) == (9.0, 1.0)


def hour_at_10_hz(series: int) -> SampleSet:
    """One hour of counters and gauges in the order in which a recorder writes them."""
    count = 36_000
    values = np.random.default_rng(0).random((count, series))
    values[:, ::2] = np.cumsum(values[:, ::2], axis=0)
    names = [f"m{place}" for place in range(series)]
    ts = EPOCH_NS + np.arange(1, count + 1) * 100_000_000
    table = pa.table(
        {
            "ts_ns": np.repeat(ts, series),
            "start_ns": pa.nulls(count * series, pa.int64()),
            "entity": pa.DictionaryArray.from_arrays(
                np.zeros(count * series, np.int32), ["machine"]
            ),
            "metric": pa.DictionaryArray.from_arrays(
                np.tile(np.arange(series, dtype=np.int32), count), names
            ),
            "value": values.ravel(),
        }
    )
    metrics = {
        name: make_metric(name, "gauge" if place % 2 else "counter")
        for place, name in enumerate(names)
    }
    return SampleSet(table=table, metrics=metrics, absent=[], periods=dict.fromkeys(names, 0.1))


def test_an_hour_of_150_series_takes_under_three_seconds() -> None:
    samples = hour_at_10_hz(150)
    edges = [EPOCH_NS + round(i * 600e9) for i in range(7)]
    spans = [
        Span(stage=f"s{i}", start_ns=low + 7, end_ns=high)
        for i, (low, high) in enumerate(pairwise(edges))
    ]
    started = time.process_time()
    profile = correlate(samples, spans)
    assert time.process_time() - started < 3.0
    assert len(profile.rows) == 900
    assert min(row.coverage for row in profile.rows) > 0.999


def test_of_a_series_that_was_lost_on_the_way_later_stages_have_the_reason() -> None:
    """The reason is known from then on; what came before had samples, and says its own."""
    metric = make_metric("power_w", "gauge", "W")
    raw = [(round(t * 1e8), None, 5.0) for t in range(100)]  # 10 s of them
    lost = Series(entity="gpu:0", metric=metric, reason="since then: the GPU is lost")
    samples = make_samples({("gpu:0", metric): raw}, absent=[lost])
    spans = [
        Span(stage=name, start_ns=round(a * 1e9), end_ns=round(b * 1e9))
        for name, a, b in (("empty", 2, 2), ("whole", 2, 8), ("part", 8, 14), ("late", 14, 20))
    ]
    profile = correlate(samples, spans)
    rows = {span.stage: profile.find(span.stage, "gpu:0", "power_w") for span in spans}
    assert all(rows.values())
    assert rows["late"].reason == lost.reason  # type: ignore[union-attr]
    assert rows["empty"].reason == "the stage has no duration"  # type: ignore[union-attr]
    assert rows["whole"].reason is None  # type: ignore[union-attr]
    assert rows["part"].reason is None  # type: ignore[union-attr]
    assert 0.25 < rows["part"].coverage < 0.4  # type: ignore[union-attr]
