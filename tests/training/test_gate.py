"""Slices, intervals and the gate: on rows made for the purpose."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date

import numpy as np
import pytest

from training.batches import DayTable, Rows
from training.gate import Champion, GateSettings, decide
from training.metrics import auc_roc, average_precision, card_precision
from training.protocol import AssessedRows, Window, assessed_rows
from training.slices import METRICS, bootstrap, evaluate, intervals, slices

SETTINGS = GateSettings(margins={"average_precision": 0.02}, bootstrap_samples=40)


@pytest.fixture
def assessed(generated: DayTable, handle) -> AssessedRows:
    return assessed_rows(generated, Window(train_start=generated.days()[0]), handle)


def scores_of(rows: Rows, noise: float, seed: int = 0) -> np.ndarray:
    """Labels plus noise: the less of it, the better the model."""
    rng = np.random.default_rng(seed)
    return rows.is_fraud + rng.normal(0, noise, len(rows))


def champion_of(rows: Rows, noise: float, first: str = "2018-05-01", last: str = "2018-05-07"):
    return Champion(
        scores=scores_of(rows, noise, seed=1),
        first_day=date.fromisoformat(first),
        last_day=date.fromisoformat(last),
    )


def test_evaluate_gives_the_three_metrics(assessed: AssessedRows) -> None:
    rows, scores = assessed.rows, scores_of(assessed.rows, 0.5)
    values = evaluate(scores, rows)
    assert values == {
        "auc_roc": pytest.approx(auc_roc(scores, rows.is_fraud)),
        "average_precision": pytest.approx(average_precision(scores, rows.is_fraud)),
        "card_precision_100": pytest.approx(
            card_precision(scores, rows.is_fraud, rows.customer_id, rows.day)
        ),
    }


def test_slices_split_the_rows_by_scenario_amount_and_newness(assessed: AssessedRows) -> None:
    rows, scores = assessed.rows, scores_of(assessed.rows, 0.5)
    parts = {part.name: part for part in slices(scores, assessed)}
    others = int((~rows.is_fraud).sum())
    scenarios = [part for name, part in parts.items() if name.startswith("scenario")]
    assert sum(part.frauds for part in scenarios) == rows.is_fraud.sum()
    assert all(part.rows == part.frauds + others for part in scenarios)
    assert sum(part.rows for name, part in parts.items() if name.startswith("amount")) == len(rows)
    assert parts["new cards"].rows + parts["known cards"].rows == len(rows)
    second = ~rows.is_fraud | (rows.fraud_scenario == 2)
    expected = auc_roc(scores[second], rows.is_fraud[second])
    assert parts["scenario 2"].auc_roc == pytest.approx(expected)


def test_a_slice_without_frauds_has_no_figure_and_no_nan(assessed: AssessedRows) -> None:
    rows = assessed.rows
    honest = replace(assessed, rows=replace(rows, is_fraud=np.zeros(len(rows), dtype=bool)))
    parts = slices(scores_of(rows, 0.5), honest)
    assert {part.auc_roc for part in parts} == {None}
    json.dumps([part.as_json() for part in parts], allow_nan=False)


def test_intervals_enclose_the_value_and_repeat(assessed: AssessedRows) -> None:
    scores = scores_of(assessed.rows, 0.6)
    found = intervals(scores, assessed.rows, samples=60, seed=5)
    assert found == intervals(scores, assessed.rows, samples=60, seed=5)
    for name, value in evaluate(scores, assessed.rows).items():
        interval = found[name]
        assert interval is not None
        assert value is not None
        assert interval[0] < value < interval[1]


def test_a_resample_is_the_metric_of_cards_drawn_again(assessed: AssessedRows) -> None:
    rows, scores = assessed.rows, scores_of(assessed.rows, 0.6)
    drawn = bootstrap([scores, scores], rows, samples=3, seed=2)
    np.testing.assert_array_equal(drawn[:, 0], drawn[:, 1])  # the same draws for every model
    cards = np.unique(rows.customer_id)
    generator = np.random.default_rng(2)
    for sample in range(3):
        picked = cards[generator.integers(0, len(cards), size=len(cards))]
        copies = [np.flatnonzero(rows.customer_id == card) for card in picked]
        again = np.concatenate(copies)
        expected = auc_roc(scores[again], rows.is_fraud[again])
        assert drawn[sample, 0, METRICS.index("auc_roc")] == pytest.approx(expected)


def test_a_better_candidate_passes_and_the_verdict_is_json(assessed: AssessedRows) -> None:
    candidate = scores_of(assessed.rows, 0.3)
    champion = champion_of(assessed.rows, 0.6)
    verdict = decide(candidate, champion, assessed, settings=SETTINGS, seed=1)
    assert verdict.promote
    assert verdict.compared
    assert "no worse by more than the margin of 0.0200" in verdict.reasons[0]
    assert verdict.difference_intervals["average_precision"][0] > 0
    again = json.loads(json.dumps(verdict.as_json(), allow_nan=False))
    assert again["candidate"]["auc_roc"] == verdict.candidate["auc_roc"]
    assert (again["first_day"], again["last_day"]) == ("2018-06-15", "2018-06-21")
    assert again["frauds"] == int(assessed.rows.is_fraud.sum())


def test_a_worse_candidate_is_refused_with_the_figures(assessed: AssessedRows) -> None:
    champion = champion_of(assessed.rows, 0.3)
    verdict = decide(scores_of(assessed.rows, 0.6), champion, assessed, settings=SETTINGS, seed=1)
    assert not verdict.promote
    assert len(verdict.reasons) == 1
    assert "worse by" in verdict.reasons[0]
    assert f"{verdict.candidate['average_precision']:.4f}" in verdict.reasons[0]


def test_the_margin_alone_decides_between_the_two(assessed: AssessedRows) -> None:
    rows = assessed.rows
    candidate, champion = scores_of(rows, 0.45), champion_of(rows, 0.4)
    gap = (
        evaluate(champion.scores, rows)["average_precision"]
        - evaluate(candidate, rows)["average_precision"]
    )
    assert gap > 0.001
    for margin, promoted in ((gap - 0.001, False), (gap + 0.001, True)):
        settings = GateSettings(margins={"average_precision": margin}, bootstrap_samples=1)
        verdict = decide(candidate, champion, assessed, settings=settings, seed=1)
        assert verdict.promote == promoted


def test_every_chosen_metric_must_hold(assessed: AssessedRows) -> None:
    settings = GateSettings(margins=dict.fromkeys(METRICS, 0.0), bootstrap_samples=1)
    champion = champion_of(assessed.rows, 0.3)
    verdict = decide(scores_of(assessed.rows, 0.6), champion, assessed, settings=settings, seed=1)
    assert len(verdict.reasons) == 3


@pytest.mark.parametrize(
    ("first", "last", "compared"),
    [
        ("2018-06-08", "2018-06-14", True),  # ends the day before the gate's rows
        ("2018-06-09", "2018-06-15", False),
        ("2018-06-21", "2018-06-28", False),
        ("2018-06-22", "2018-06-28", True),
    ],
)
def test_a_champion_trained_on_the_gates_rows_is_not_compared(
    assessed: AssessedRows, first: str, last: str, compared: bool
) -> None:
    champion = champion_of(assessed.rows, 0.6, first, last)
    verdict = decide(scores_of(assessed.rows, 0.3), champion, assessed, settings=SETTINGS, seed=1)
    assert verdict.compared == verdict.promote == compared
    if not compared:
        assert verdict.champion is None
        assert f"trained on {first} to {last}, which overlaps" in verdict.reasons[0]


@pytest.mark.parametrize(("floor", "promoted"), [(0.0, True), (0.999, False)])
def test_a_first_model_needs_the_floor_only(
    assessed: AssessedRows, floor: float, promoted: bool
) -> None:
    settings = replace(SETTINGS, floors={"average_precision": floor})
    verdict = decide(scores_of(assessed.rows, 0.5), None, assessed, settings=settings, seed=1)
    assert verdict.promote == promoted
    assert not verdict.compared
    said = "there is no champion yet" if promoted else "below the floor of 0.9990"
    assert said in verdict.reasons[0]


def test_rows_without_fraud_promote_nothing(assessed: AssessedRows) -> None:
    rows = replace(assessed.rows, is_fraud=np.zeros(len(assessed), dtype=bool))
    honest = replace(assessed, rows=rows)
    for champion in (None, champion_of(rows, 0.5)):
        verdict = decide(scores_of(rows, 0.5), champion, honest, settings=SETTINGS, seed=1)
        assert not verdict.promote
        assert "only one class" in verdict.reasons[0]
        json.dumps(verdict.as_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"margins": {"f1": 0.1}}, "no metric f1; known: auc_roc"),
        ({"margins": {}}, "needs a margin"),
        ({"margins": {"auc_roc": -0.1}}, "must not be negative"),
    ],
)
def test_gate_settings_that_cannot_be_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GateSettings(**wrong)  # type: ignore[arg-type]
