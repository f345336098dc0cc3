"""The generated world: random numbers, distributions, fraud, drift, and the same table always."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.cluster import Cluster, open_cluster
from pipeline.data.drift import Drift
from pipeline.data.generator import GeneratorSpec, digest_of, generate
from pipeline.data.payments import make_day, poisson
from pipeline.data.population import (
    list_reach,
    make_customers,
    make_terminals,
    pick_terminals,
    usual_radius,
)
from pipeline.data.schema import day_files
from pipeline.data.streams import Kind, Streams, philox

SMALL = GeneratorSpec(seed=7, customers=400, terminals=800, days=12)
HERE = Cluster(workers=0)


# Random numbers


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        ((0, 0), (0, 0, 0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 4, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_its_authors_test_vectors(
    key: tuple[int, int], counter: tuple[int, int, int, int], words: str
) -> None:
    assert [f"{int(word):08x}" for word in philox(key, counter)[:, 0]] == words.split()


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_a_draw_depends_on_its_counter_alone(data: st.DataObject) -> None:
    streams = Streams(seed=data.draw(st.integers(0, 2**64 - 1)))
    entities = data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20))
    day = data.draw(st.integers(0, 40_000))
    together = streams.words(Kind.PAYMENT, np.array(entities), day=day, index=3)
    alone = [streams.words(Kind.PAYMENT, entity, day=day, index=3)[:, 0] for entity in entities]
    np.testing.assert_array_equal(together.T, alone)


def test_chunks_do_not_show() -> None:
    entities = np.arange(40_000)
    whole = Streams(seed=1).words(Kind.PLACE, entities)
    halves = [Streams(seed=1).words(Kind.PLACE, part) for part in np.split(entities, [17_001])]
    np.testing.assert_array_equal(whole, np.concatenate(halves, axis=1))


def chi_squared(observed: np.ndarray, expected: np.ndarray | float) -> float:
    """Chi-squared as a normal deviate (Wilson-Hilferty), for any number of cells."""
    freedom = observed.size - 1
    value = float(((observed - expected) ** 2 / expected).sum())
    spread = 2 / (9 * freedom)
    return ((value / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5


STREAMS_OF_TESTS = {
    "neighbouring entities": lambda s, n: s.uniforms(Kind.PAYMENT, n),
    "neighbouring days": lambda s, n: s.uniforms(Kind.PAYMENT, 5, day=n),
    "neighbouring draws": lambda s, n: s.uniforms(Kind.PAYMENT, 5, index=n),
    "one draw in two kinds": lambda s, n: (
        s.uniforms(Kind.PAYMENT, n)[0],
        s.uniforms(Kind.PLACE, n)[0],
    ),
    "one draw in two blocks": lambda s, n: (
        s.uniforms(Kind.PLACE, n)[0],
        s.uniforms(Kind.PLACE, n, block=1)[0],
    ),
    "an entity and one far off": lambda s, n: (
        s.uniforms(Kind.PAYMENT, n)[0],
        s.uniforms(Kind.PAYMENT, n + (1 << 31))[0],
    ),
    "a day and the next": lambda s, n: (
        s.uniforms(Kind.PAYMENT, n, day=8)[0],
        s.uniforms(Kind.PAYMENT, n, day=9)[0],
    ),
    "a seed and the next": lambda s, n: (
        s.uniforms(Kind.PAYMENT, n)[0],
        Streams(seed=s.seed + 1).uniforms(Kind.PAYMENT, n)[0],
    ),
}


@pytest.mark.parametrize("name", STREAMS_OF_TESTS)
def test_draws_are_uniform_and_independent(name: str) -> None:
    draws = 1 << 18
    first, second = STREAMS_OF_TESTS[name](Streams(seed=2026), np.arange(draws))
    cells = 32
    counts = np.histogram2d(first, second, bins=cells, range=[(0, 1), (0, 1)])[0]
    assert abs(chi_squared(counts, draws / cells**2)) < 4
    fine = np.bincount((first * 4096).astype(int), minlength=4096)
    assert abs(chi_squared(fine, draws / 4096)) < 4
    low_bits = np.bincount((first * 2**53).astype(np.int64) % 256, minlength=256)
    assert abs(chi_squared(low_bits, draws / 256)) < 4
    for lag in (1, 2, 7):
        correlation = np.corrcoef(first[lag:], second[:-lag])[0, 1]
        assert abs(correlation) * draws**0.5 < 4.5


def test_normals_are_standard_and_independent() -> None:
    draws = 1 << 18
    first, second = Streams(seed=3).normals(Kind.PAYMENT, np.arange(draws))
    for normal in (first, second):
        assert abs(normal.mean()) < 4.5 / draws**0.5
        assert abs(normal.std() - 1) < 4.5 / (2 * draws) ** 0.5
        assert abs((normal**4).mean() - 3) < 4.5 * (96 / draws) ** 0.5
        # The share beyond two standard deviations of a standard normal.
        assert abs((np.abs(normal) > 2).mean() - 0.0455003) < 4.5 * (0.0455 / draws) ** 0.5
    assert abs(np.corrcoef(first, second)[0, 1]) < 4.5 / draws**0.5
    assert abs(np.corrcoef(first**2, second**2)[0, 1]) < 4.5 / draws**0.5


@pytest.mark.parametrize("rate", [0.0, 1e-9, 0.3, 1.0, 3.999])
def test_poisson_numbers_have_their_distribution(rate: float) -> None:
    draws = 200_000
    chance = Streams(seed=4).uniforms(Kind.DAY_COUNT, np.arange(draws))[0]
    counts = np.bincount(poisson(np.full(draws, rate), chance), minlength=30)
    term, expected = np.exp(-rate), []
    for number in range(30):
        expected.append(term * draws)
        term *= rate / (number + 1)
    enough = np.array(expected) > 10
    if enough.sum() > 1:
        observed = np.append(counts[:30][enough], counts.sum() - counts[:30][enough].sum())
        wanted = np.append(np.array(expected)[enough], draws - np.array(expected)[enough].sum())
        assert abs(chi_squared(observed, np.maximum(wanted, 1e-3))) < 4
    else:
        assert counts[0] == draws


def test_poisson_ends_at_the_largest_uniform() -> None:
    largest = np.array([1 - 2.0**-53])
    assert 15 < poisson(np.array([4.0]), largest)[0] < 60


# Who reaches what


@pytest.mark.parametrize(
    ("terminals", "factor"), [(1, 1), (3, 1), (50, 1), (900, 1), (900, 0.1), (900, 0.02), (900, 9)]
)
def test_reach_is_that_of_all_pairs(terminals: int, factor: float) -> None:
    streams = Streams(seed=9)
    radius = usual_radius(terminals) * factor
    places = make_terminals(streams, terminals, radius)
    customers = make_customers(streams, 100, 300)
    offsets, positions = list_reach(places, customers.x, customers.y)
    x, y = (100 * u for u in streams.uniforms(Kind.TERMINAL, np.arange(terminals)))
    near = (x - customers.x[:, None]) ** 2 + (y - customers.y[:, None]) ** 2 <= radius**2
    for who in range(200):
        found = places.ids[positions[offsets[who] : offsets[who + 1]]]
        assert sorted(found) == list(np.flatnonzero(near[who]))


@pytest.mark.parametrize("factor", [1.0, 0.15, 0.02])
def test_terminals_are_picked_evenly_from_those_in_reach(factor: float) -> None:
    streams = Streams(seed=10)
    terminals = make_terminals(streams, 2_000, usual_radius(2_000) * factor)
    customers = make_customers(streams, 0, 20)
    payments = 20_000
    of, index = np.repeat(np.arange(20), payments), np.tile(np.arange(payments), 20)
    picked = pick_terminals(terminals, streams, customers, of=of, index=index, day=3)
    offsets, positions = list_reach(terminals, customers.x, customers.y)
    for who in range(20):
        reach = np.sort(terminals.ids[positions[offsets[who] : offsets[who + 1]]])
        mine = picked[of == who]
        if not len(reach):
            assert (mine == -1).all()
            continue
        counts = np.bincount(np.searchsorted(reach, mine), minlength=len(reach))
        assert set(mine) <= set(reach)
        if len(reach) > 1:
            assert chi_squared(counts, payments / len(reach)) < 4.5


def test_a_customer_without_a_terminal_in_reach_makes_no_payment() -> None:
    spec = GeneratorSpec(
        seed=3,
        customers=300,
        terminals=40,
        days=2,
        drift=Drift(radius_shift_day=0, radius_shift_factor=0.1),
    )
    streams = Streams(seed=3)
    terminals = make_terminals(streams, 40, usual_radius(40) * 0.1)
    customers = make_customers(streams, 0, 300)
    offsets, _ = list_reach(terminals, customers.x, customers.y)
    alone = set(np.flatnonzero(np.diff(offsets) == 0).tolist())
    payers = set(make_day(spec, 0)["customer_id"].to_pylist())
    assert alone
    assert payers
    assert not alone & payers


# The same table always


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with open_cluster(workers=4, local_directory=tmp_path_factory.mktemp("dask")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with open_cluster(workers=1, local_directory=tmp_path_factory.mktemp("dask")) as cluster:
        yield cluster


DRIFTING = replace(
    SMALL,
    drift=Drift(
        new_fraud_scenario_day=2, amount_shift_day=4, radius_shift_day=6, label_delay_day=8
    ),
)


@pytest.mark.parametrize("spec", [SMALL, DRIFTING], ids=["usual", "drifting"])
def test_the_table_does_not_depend_on_workers_or_pieces(
    spec: GeneratorSpec, one: Cluster, four: Cluster, tmp_path: Path
) -> None:
    reports = [
        generate(spec, tmp_path / "one", one),
        generate(spec, tmp_path / "four", four),
        generate(spec, tmp_path / "wide", four, days_per_task=5),
        generate(spec, tmp_path / "narrow", HERE, customers_per_block=37),
    ]
    assert len({report.digest for report in reports}) == 1
    assert len(set(map(repr, reports))) == 1
    for path in day_files(tmp_path / "one"):
        for other in ("four", "wide", "narrow"):
            assert (tmp_path / other / path.name).read_bytes() == path.read_bytes()


def test_the_digest_is_of_the_values(tmp_path: Path) -> None:
    report = generate(SMALL, tmp_path / "a", HERE, days=range(2))
    other = generate(replace(SMALL, seed=8), tmp_path / "b", HERE, days=range(2))
    assert report.digest != other.digest
    table = make_day(SMALL, 0)
    in_pieces = pa.concat_tables([table.slice(0, 10), table.slice(10)])
    assert digest_of(table) == digest_of(in_pieces)
    amounts = table["amount"].to_numpy().copy()
    amounts[-1] += 0.01
    assert digest_of(table) != digest_of(table.set_column(4, "amount", pa.array(amounts)))


def test_any_part_can_be_made_alone(tmp_path: Path) -> None:
    generate(SMALL, tmp_path / "whole", HERE)
    told: list[tuple[int, int]] = []
    part = generate(
        SMALL, tmp_path / "part", HERE, lambda *done: told.append(done), days=range(5, 8)
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert part.files == 3
    for path in day_files(tmp_path / "part"):
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    longer = generate(replace(SMALL, days=14), tmp_path / "longer", HERE, days=range(3))
    assert longer.digest == generate(SMALL, tmp_path / "first", HERE, days=range(3)).digest

    day = make_day(SMALL, 9).to_pandas()
    some = make_day(SMALL, 9, customers=range(100, 180)).to_pandas()
    of_whole = day[day.customer_id.between(100, 179)].reset_index(drop=True)
    assert len(some) > 50
    assert some.drop(columns="transaction_id").equals(of_whole.drop(columns="transaction_id"))


def test_rows_come_in_order_of_time_with_ids_that_grow(tmp_path: Path) -> None:
    report = generate(SMALL, tmp_path, HERE)
    files = day_files(tmp_path)
    assert [path.stem for path in files] == [
        (SMALL.start + timedelta(days=day)).isoformat() for day in range(12)
    ]
    table = pa.concat_tables([pq.read_table(path) for path in files])
    assert table.schema == SMALL.schema
    rows = table.to_pandas()
    assert rows.transaction_id.is_monotonic_increasing
    assert rows.transaction_id.is_unique
    assert rows.event_time.is_monotonic_increasing
    assert (rows.event_time.dt.microsecond == 0).all()
    same_second = rows.event_time.diff() == timedelta(0)
    assert same_second.any()
    assert (rows.customer_id.diff()[same_second] >= 0).all()
    assert report.rows == len(rows)
    assert report.bytes == sum(path.stat().st_size for path in files)
    assert report.frauds == rows.is_fraud.sum() == sum(report.scenarios.values())
    assert ((rows.fraud_scenario > 0) == (rows.is_fraud == 1)).all()


@pytest.mark.parametrize("name", ["customers", "terminals", "days", "seed"])
def test_a_size_that_cannot_be_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} = -1"):
        GeneratorSpec(**{name: -1})  # type: ignore[arg-type]


def test_a_drift_that_cannot_be_is_named() -> None:
    with pytest.raises(ValueError, match="amount_shift_day = -2"):
        Drift(amount_shift_day=-2)
    with pytest.raises(ValueError, match="radius_shift_factor = nan"):
        Drift(radius_shift_factor=float("nan"))


# The published world


@pytest.fixture(scope="module")
def published_scale(four: Cluster, tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """As many customers, terminals and days as the published table has."""
    out = tmp_path_factory.mktemp("world")
    generate(GeneratorSpec(seed=1), out, four, days_per_task=8)
    return pl.read_parquet(out / "*.parquet").with_columns(
        day=(pl.col("event_time").dt.epoch("d") - 17_622).cast(pl.Int64)
    )


def test_it_is_the_published_world_in_numbers(published_scale: pl.DataFrame) -> None:
    rows = published_scale
    # Mean rate 2 a day, times the share of N(43200, 20000) inside the day.
    per_day = rows.height / 5_000 / 183
    assert per_day == pytest.approx(1.92, rel=0.03)
    assert rows["is_fraud"].mean() == pytest.approx(0.008369, rel=0.08)
    counts = dict(rows.group_by("fraud_scenario").len().iter_rows())
    assert counts[1] == pytest.approx(973, rel=0.25)
    assert counts[2] == pytest.approx(9_077, rel=0.06)
    assert counts[3] == pytest.approx(4_631, rel=0.08)
    assert set(counts) == {0, 1, 2, 3}
    settled = rows.filter(pl.col("day") >= 30)
    thirds = settled.group_by((pl.col("day") - 30) // 51).agg(pl.col("is_fraud").mean())
    overall = settled["is_fraud"].mean()
    assert ((thirds["is_fraud"] / overall - 1).abs() < 0.12).all()


def test_amounts_times_and_places_are_as_published(published_scale: pl.DataFrame) -> None:
    rows = published_scale
    cents = rows["amount"].to_numpy() * 100
    assert np.abs(cents - np.rint(cents)).max() < 1e-9
    assert rows["amount"].min() >= 0
    honest = rows.filter(pl.col("fraud_scenario") == 0)
    assert honest["amount"].max() <= 220
    assert rows.filter(pl.col("fraud_scenario") == 1)["amount"].min() > 220
    # E[amount] by the distributions: customers weigh by their rate, which is independent.
    assert honest["amount"].mean() == pytest.approx(52.9, rel=0.03)
    seconds = (honest["event_time"].dt.epoch("s") % 86_400).to_numpy()
    assert seconds.mean() == pytest.approx(43_200, abs=100)
    # A normal with sd 20,000 cut at 2.16 sd has this sd.
    assert seconds.std() == pytest.approx(18_193, rel=0.005)

    streams = Streams(seed=1)
    x, y = (100 * u for u in streams.uniforms(Kind.TERMINAL, np.arange(10_000)))
    customers = make_customers(streams, 0, 5_000)
    who, at = rows["customer_id"].to_numpy(), rows["terminal_id"].to_numpy()
    distance = np.hypot(customers.x[who] - x[at], customers.y[who] - y[at])
    assert distance.max() <= 5
    assert distance.max() > 4.99
    of_customer = np.bincount(who, minlength=5_000)
    expected = customers.rate_per_day * 183 * 0.9692
    assert abs(chi_squared(of_customer[expected > 5], expected[expected > 5])) < 4.5


def test_attacks_last_as_long_as_published(published_scale: pl.DataFrame) -> None:
    taken = published_scale.filter(pl.col("fraud_scenario") == 2)
    spans = taken.group_by("terminal_id").agg(first=pl.col("day").min(), last=pl.col("day").max())
    long = spans.filter(pl.col("last") - pl.col("first") > 27).height
    # Some terminals are taken over twice; most spans are within 28 days.
    assert long < 0.05 * spans.height
    assert spans.height == pytest.approx(2 * 183, rel=0.05)
    everything = published_scale.join(
        spans.filter(pl.col("last") - pl.col("first") <= 27), on="terminal_id"
    ).filter(pl.col("day").is_between("first", "last"))
    assert (everything["fraud_scenario"] >= 2).all()

    leaked = published_scale.filter(pl.col("fraud_scenario") == 3)
    customers = leaked.group_by("customer_id").agg(
        first=pl.col("day").min(), last=pl.col("day").max()
    )
    once = customers.filter(pl.col("last") - pl.col("first") <= 13)
    assert once.height > 0.85 * customers.height
    during = published_scale.join(once, on="customer_id").filter(
        pl.col("day").is_between("first", "last")
    )
    share = (during["fraud_scenario"] == 3).mean()
    assert share == pytest.approx(0.36, abs=0.04)  # 1/3, and the ends of a span are always fraud
    factor = leaked["amount"].mean() / published_scale["amount"].mean()
    assert factor == pytest.approx(5, rel=0.15)


@pytest.mark.parametrize("customers", [300, 20_000])
def test_rates_stay_at_any_size(customers: int) -> None:
    spec = GeneratorSpec(seed=5, customers=customers, terminals=2 * customers, days=60)
    days = [make_day(spec, day) for day in range(40, 43)]
    rows = pl.concat([pl.from_arrow(day) for day in days])
    expected = 3 * 0.9692 * make_customers(Streams(seed=5), 0, customers).rate_per_day.sum()
    assert abs(rows.height - expected) < 4.5 * expected**0.5
    if customers > 999:
        assert rows["is_fraud"].mean() == pytest.approx(0.009, rel=0.15)


# Drift


def days_of(spec: GeneratorSpec, *days: int) -> list[pl.DataFrame]:
    return [pl.DataFrame(pl.from_arrow(make_day(spec, day))) for day in days]


BIG = GeneratorSpec(seed=6, customers=6_000, terminals=12_000, days=40)


def test_amounts_move_at_their_day() -> None:
    moved = replace(BIG, drift=Drift(amount_shift_day=20, amount_shift_factor=1.5))
    before, at = days_of(moved, 19, 20)
    usual_before, usual = days_of(BIG, 19, 20)
    assert before.equals(usual_before)
    honest = [day.filter(pl.col("fraud_scenario") == 0)["amount"].mean() for day in (at, usual)]
    assert honest[0] / honest[1] == pytest.approx(1.5, rel=0.06)
    assert at["event_time"].equals(usual["event_time"])


def test_the_radius_moves_at_its_day() -> None:
    moved = replace(BIG, drift=Drift(radius_shift_day=20, radius_shift_factor=3.0))
    before, at = days_of(moved, 19, 20)
    usual_before, _ = days_of(BIG, 19, 20)
    assert before.equals(usual_before)
    x, y = (100 * u for u in Streams(seed=6).uniforms(Kind.TERMINAL, np.arange(12_000)))
    customers = make_customers(Streams(seed=6), 0, 6_000)
    who, where = at["customer_id"].to_numpy(), at["terminal_id"].to_numpy()
    farthest = np.hypot(customers.x[who] - x[where], customers.y[who] - y[where]).max()
    assert 2.9 * usual_radius(12_000) < farthest <= 3 * usual_radius(12_000)


def test_a_new_fraud_scenario_begins_at_its_day() -> None:
    moved = replace(BIG, drift=Drift(new_fraud_scenario_day=20))
    before, at, later = days_of(moved, 19, 20, 30)
    usual_before, _, usual_later = days_of(BIG, 19, 20, 30)
    assert before.equals(usual_before)
    new = later.filter(pl.col("fraud_scenario") == 4)
    assert (at["fraud_scenario"] == 4).any()
    # 0.06 % of the customers a day for 7 days, half of their payments.
    assert new.height == pytest.approx(6_000 * 0.0006 * 7 * 1.92 / 2, rel=0.5)
    assert new["amount"].mean() < 0.3 * usual_later["amount"].mean()
    assert (new["is_fraud"] == 1).all()


def test_labels_come_at_random_from_their_day_on() -> None:
    drift = Drift(label_delay_day=20, label_delay_mean_days=3.0)
    moved = replace(BIG, drift=drift)
    before, at = days_of(moved, 19, 20)
    usual_before, usual = days_of(BIG, 19, 20)
    assert at.drop("label_time").equals(usual)
    assert before.drop("label_time").equals(usual_before)
    waits = [
        (day["label_time"] - day["event_time"]).dt.total_seconds().to_numpy() / 86_400
        for day in (before, at)
    ]
    assert (waits[0] == 7).all()
    assert waits[1].min() >= 0
    assert waits[1].mean() == pytest.approx(3, rel=0.05)
    assert waits[1].std() == pytest.approx(3, rel=0.08)
    assert "label_time" not in SMALL.schema.names


def test_the_default_is_the_published_size() -> None:
    spec = GeneratorSpec()
    assert (spec.customers, spec.terminals, spec.days) == (5_000, 10_000, 183)
    assert spec.start == date(2018, 4, 1)
    assert spec.drift == Drift()
