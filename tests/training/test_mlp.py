"""The net itself: its inputs, its scaler, and that each member is a net of its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.contracts import FEATURES
from training.models.mlp import INPUTS, MemberLinear, MlpSettings


def raw(rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, len(FEATURES), generator=generator) * 50


def test_the_answer_is_a_probability_per_row() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MlpSettings(hidden=(8,), members=3).build().eval()
    model.fit_inputs(raw(100))
    answer = model(raw(7))
    assert answer.shape == (7,)
    assert answer.dtype == torch.float32
    assert ((answer > 0) & (answer < 1)).all()
    assert model.logits(model.prepare(raw(7))).shape == (3, 7)


def test_the_scaler_is_fitted_on_what_it_is_given_and_lies_in_the_model() -> None:
    model = MlpSettings(hidden=(4,), members=1).build()
    features = raw(500)
    model.fit_inputs(features)
    prepared = model.prepare(features)
    assert prepared.shape == (500, INPUTS)
    torch.testing.assert_close(prepared.mean(0), torch.zeros(INPUTS), atol=1e-4, rtol=0)
    torch.testing.assert_close(prepared.std(0, correction=0), torch.ones(INPUTS), atol=1e-3, rtol=0)
    assert {"mean", "spread"} <= set(model.state_dict())


def test_an_input_that_never_moves_does_no_harm() -> None:
    model = MlpSettings(hidden=(4,), members=1).build()
    features = raw(50)
    features[:, 2] = 1.0
    model.fit_inputs(features)
    assert torch.isfinite(model(features)).all()


def test_relative_inputs_say_how_far_the_amount_is_from_the_cards_habit() -> None:
    model = MlpSettings(hidden=(4,), members=1).build()
    features = torch.zeros(2, len(FEATURES))
    index = {name: column for column, name in enumerate(FEATURES)}
    features[:, index["amount"]] = 99.0
    features[0, index["customer_mean_amount_30d"]] = 99.0
    features[1, index["customer_mean_amount_30d"]] = 0.0
    expanded = model.prepare(features)  # mean 0 and spread 1: nothing was fitted
    against_30d = expanded[:, len(FEATURES) + 10 + 2]
    torch.testing.assert_close(against_30d, torch.tensor([0.0, 4.60517]))


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_each_member_multiplies_by_its_own_matrix(
    members: int, width_in: int, width_out: int, rows: int
) -> None:
    layer = MemberLinear(members, width_in, width_out)
    torch.nn.init.normal_(layer.bias)
    shared = torch.randn(rows, width_in)
    answer = layer(shared)
    again = layer(shared.expand(members, -1, -1))
    for member in range(members):
        expected = shared @ layer.weight[member] + layer.bias[member]
        torch.testing.assert_close(answer[member], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(answer, again)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"members": 0}, "members = 0"),
        ({"hidden": (8, 0)}, "widths"),
        ({"dropout": 1.0}, "no share"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MlpSettings(**wrong)  # type: ignore[arg-type]
