"""A recipe is read in whole: everything wrong is said at once, with the way out."""

from __future__ import annotations

import inspect
from datetime import date
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.recipe import EMBEDDED, Recipe, RecipeError, known_keys, read_recipe
from pipeline.stages import build_stages, uses_cluster


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_recipes_are_valid(name: str) -> None:
    assert read_recipe(name).name == name


@pytest.mark.parametrize("source", ["generator", "files"])
def test_the_stages_that_use_the_cluster_are_those_that_open_one(source: str) -> None:
    stages = build_stages(read_recipe("default", [f"data.source={source}"]))
    opening = {
        one.name
        for one in stages
        if "open_cluster" in inspect.getsource(type(one))
        and not (one.name == "ingest" and source == "files")
    }
    assert {one.name for one in stages if uses_cluster(one)} == opening


def test_all_problems_at_once_with_the_nearest_known_key() -> None:
    overrides = [
        "data.custmers=3",
        "model.epochs=0",
        "serving.rates=[1, -2]",
        "nonsense",
        "validation.metric=accuracy",
        "protocl.folds=[2018-05-01]",
    ]
    with pytest.raises(RecipeError) as caught:
        read_recipe("default", overrides)
    problems = caught.value.problems
    assert len(problems) == len(overrides)
    text = str(caught.value)
    assert "data.custmers: unknown key; did you mean 'customers'?" in text
    assert "protocl: unknown key; did you mean 'protocol'?" in text
    assert "model.epochs = 0" in text
    assert "serving.rates.1 = -2" in text
    assert "validation.metric = 'accuracy'" in text
    assert "average_precision" in text
    assert "--set 'nonsense': write it as section.key=value" in text


def test_values_may_be_toml_or_bare_text() -> None:
    recipe = read_recipe(
        "default",
        ["data.start=2020-01-01", "online.store=redis", "model.hidden=[8, 8]", "data.days=3"],
    )
    assert recipe.data.start == date(2020, 1, 1)
    assert recipe.online.store == "redis"
    assert recipe.model.hidden == (8, 8)
    assert recipe.data.days == 3


def test_a_value_is_not_a_section() -> None:
    with pytest.raises(RecipeError, match="'seed' is a value, not a section"):
        read_recipe("default", ["seed.x=1"])


def test_syntax_error_names_the_file_and_the_place(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("name = \n")
    with pytest.raises(RecipeError, match=r"mine\.toml cannot be run(.|\n)*not valid TOML.*line 1"):
        read_recipe(str(path))


def test_unknown_recipe_names_the_embedded_ones() -> None:
    with pytest.raises(RecipeError, match=r"default, handbook, vsphere; did you mean 'default'\?"):
        read_recipe("defualt")


def test_missing_section_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("seed = 1\n")
    with pytest.raises(RecipeError) as caught:
        read_recipe(str(path))
    assert set(caught.value.problems) == {"name: missing", "protocol: missing"}


def test_recipe_is_frozen() -> None:
    with pytest.raises(ValidationError):
        read_recipe("default").seed = 1  # type: ignore[misc]


def test_known_keys_of_nested_sections() -> None:
    assert "amount_shift_day" in known_keys(("data", "drift"))
    assert "folds" in known_keys(("protocol",))
    assert "tracking" in known_keys(())


def test_round_trip_through_json() -> None:
    recipe = read_recipe("handbook")
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
