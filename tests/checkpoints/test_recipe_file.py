"""Recipes: what a key may hold, and which value a tensor gets in the end."""

from __future__ import annotations

from typing import Any

import pytest

from merganser.checkpoints.recipe import LayerPosition, Recipe
from merganser.checkpoints.recipe_file import parse
from merganser.errors import InputError


def recipe(**content: Any) -> Recipe:
    return parse({"rule": "linear", "models": ["a", "b"], "base": "m", **content}, "merge.yaml")


def values(asked: Recipe, name: str) -> dict[str, Any]:
    return asked.resolve(LayerPosition(name, 0.0))[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"rul": "x"}, "merge.yaml: rul: unknown key.*'rule'"),
        ({"rule": "tie"}, "'tie'.*'ties'"),
        ({"rule": None}, "rule: "),
        ({"rule": "slerp", "models": ["a"]}, "exactly 2"),
        ({"rule": "fisher"}, "fisher file"),
        ({"models": []}, "models: "),
        ({"models": [3]}, r"models\[0\]: "),
        ({"models": [{"model": "x", "wieght": 1}]}, r"models\[0\]: .*'wieght'.*'weight'"),
        ({"models": [{"model": "x", "weight": "much"}]}, r"models\[0\]\.weight is not a finite number"),
        ({"models": [{"model": "x", "weight": 10**400}]}, r"models\[0\]\.weight is not a finite number"),
        ({"models": [{"model": "x", "weight": {"layers": []}}, "y"]}, "layers: "),
        ({"models": [{"model": "x", "weight": {"cases": [{"if": 1}]}}, "y"]}, r"cases\[0\]\.if: unknown key"),
        ({"rule": "ties", "models": [{"model": "x", "density": 1.5}, "y"]}, "between 0 and 1"),
        ({"options": {"density": 0.3}}, "no 'density'"),
        ({"options": {"normalize": 1}}, "normalize.*true or false"),
        ({"options": {"normalize": {"layers": [1, 0]}}}, "normalize one value"),
        ({"options": {"normalize": [True, False]}}, r"options\.normalize is a list"),
        ({"options": {"seed": 1}}, "seed.*at the top"),
        ({"rule": "slerp", "options": {"t": [0.2, 0.8]}}, r"options\.t is a list.*layers"),
        ({"rule": "dare_ties", "options": {"rescale": ["l1", "none"]}}, r"options\.rescale is a list"),
        ({"overrides": {"match": "x"}}, "overrides: "),
        ({"overrides": [{"density": 1}]}, r"overrides\[0\]\.match is missing"),
        ({"overrides": [{"match": "x", "weight": [1]}]}, "1 values for 2 models"),
        ({"overrides": [{"match": "x", "from": "a"}]}, r"overrides\[0\]\.from: "),
        ({"rule": "ties", "overrides": [{"match": "*", "scale": [1, 2]}]}, r"overrides\[0\]\.scale is a list"),
        ({"dtype": "int8"}, "dtype: .*'int8'"),
        ({"seed": 1.5}, "seed: "),
        ({"space": "both"}, "space: "),
        ({"rank": 0}, "rank: "),
        ({"common_only": "yes"}, "common_only: "),
    ],
)
def test_mistakes_are_named_with_their_key(content: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipe(**content)


def test_parameters_of_models_may_be_lists() -> None:
    assert values(recipe(options={"weight": [1, 3]}), "x")["weights"] == [1.0, 3.0]


def test_where_no_case_fits_the_value_before_holds() -> None:
    cases = {"cases": [{"contains": "mlp", "value": 3}]}
    asked = recipe(models=[{"model": "a", "weight": cases}, "b"], options={"weight": 2})
    assert values(asked, "mlp")["weights"] == [3.0, 2.0]
    assert values(asked, "norm")["weights"] == [2.0, 2.0]
    asked = recipe(options={"weight": 2}, overrides=[{"match": "*", "weight": cases}])
    assert values(asked, "norm")["weights"] == [2.0, 2.0]
    assert values(recipe(options={"weight": cases}), "norm")["weights"] == [1.0, 1.0]


def test_an_override_may_have_a_seed() -> None:
    asked = recipe(rule="dare_ties", seed=3, overrides=[{"match": "*mlp*", "seed": 7}])
    assert values(asked, "mlp")["seed"] == 7
    assert values(asked, "norm")["seed"] == 3
    again = parse(asked.to_content(), "again")
    assert values(again, "mlp")["seed"] == 7


def test_a_value_of_another_rule_is_named_before_the_merge() -> None:
    asked = recipe(rule="dare_linear", options={"rescale": "density"}, overrides=[{"match": "*mlp*", "rule": "della"}])
    assert values(asked, "norm")["rescale"] == "density"
    with pytest.raises(InputError, match="rescale for mlp, which della merges, is 'density'"):
        values(asked, "mlp")
