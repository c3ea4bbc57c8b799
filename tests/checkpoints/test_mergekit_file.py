"""Configurations of mergekit: what is read, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from merganser.checkpoints.mergekit_file import check_filters, check_layers, translate
from merganser.checkpoints.recipe import LayerPosition
from merganser.checkpoints.recipe_file import parse
from merganser.checkpoints.source import locate
from merganser.errors import InputError


def resolved(text: str, name: str = "model.layers.0.mlp.up_proj.weight", position: float = 0.0) -> tuple[Any, Any]:
    content, _ = translate(yaml.safe_load(text), "config.yml")
    return parse(content, "config.yml"), parse(content, "config.yml").resolve(LayerPosition(name, position))


def test_ties() -> None:
    recipe, (rule, arguments) = resolved(
        """
        merge_method: ties
        base_model: m
        models:
          - model: m
          - model: a
            parameters: {weight: 0.5, density: 0.3}
          - model: b
            parameters: {weight: 0.7}
        parameters: {normalize: false, lambda: 0.8, density: 0.9, int8_mask: true}
        dtype: bfloat16
        """
    )
    assert (recipe.names, recipe.base, recipe.dtype) == (("a", "b"), "m", "bfloat16")
    assert rule.name == "ties"
    assert arguments == {"weights": [0.5, 0.7], "density": [0.3, 0.9], "normalize": False, "scale": 0.8}


def test_defaults_are_those_of_mergekit() -> None:
    text = "{merge_method: METHOD, base_model: m, models: [{model: a, parameters: {weight: 1}}]}"
    for method, expected in (
        ("dare_ties", {"rescale": "l1", "normalize": False}),
        ("dare_linear", {"rescale": "l1", "normalize": False}),
        ("della", {"rescale": "l1", "normalize": True, "epsilon": [0.15]}),
        ("della_linear", {"rescale": "l1", "normalize": False}),
        ("ties", {"normalize": True}),
        ("breadcrumbs", {"normalize": False, "gamma": [0.01]}),
        ("task_arithmetic", {"normalize": False}),
    ):
        _, (_, arguments) = resolved(text.replace("METHOD", method))
        assert {key: arguments[key] for key in expected} == expected, method
    _, (_, arguments) = resolved(
        text.replace("METHOD", "dare_ties").replace("models", "parameters: {rescale: false}, models")
    )
    assert arguments["rescale"] == "none"
    # As programs write it.
    _, (_, arguments) = resolved(
        text.replace("METHOD", "dare_ties").replace("models", "parameters: {rescale: 1.0, normalize: 0.0}, models")
    )
    assert (arguments["rescale"], arguments["normalize"]) == ("l1", False)
    text = text.replace("models: [", "parameters: {filter_wise: 1.0}, models: [{model: b}, ")
    assert resolved(text.replace("METHOD", "model_stock"))[1][1]["filter_wise"] is True


SLERP = """
merge_method: slerp
base_model: a
slices:
  - sources:
      - {model: a, layer_range: [0, 2]}
      - {model: b, layer_range: [0, 2]}
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 1]
    - filter: mlp
      value: [1, 0]
    - value: 0.5
"""


def test_slices_filters_and_gradients() -> None:
    recipe, (rule, arguments) = resolved(SLERP, position=0.25)
    assert recipe.names == ("a", "b")
    assert (rule.name, arguments) == ("slerp", {"t": 0.75})
    assert resolved(SLERP, "model.layers.1.self_attn.q_proj.weight", 1.0)[1][1] == {"t": 1.0}
    assert resolved(SLERP, "model.norm.weight")[1][1] == {"t": 0.5}


def test_the_base_comes_first_in_slerp_whatever_the_order() -> None:
    recipe, _ = resolved("{merge_method: slerp, base_model: b, models: [{model: a}, {model: b}], parameters: {t: 0.2}}")
    assert recipe.names == ("b", "a")


def test_a_filter_that_fits_nothing_falls_back_to_the_next_scope() -> None:
    text = """
        merge_method: ties
        base_model: m
        models:
          - {model: a, parameters: {weight: [{filter: mlp, value: 0.1}]}}
        parameters: {weight: 0.9}
        """
    assert resolved(text)[1][1]["weights"] == [0.1]
    assert resolved(text, "model.norm.weight")[1][1]["weights"] == [0.9]


def test_what_has_no_effect_is_noted() -> None:
    text = "{merge_method: linear, models: [{model: a, parameters: {weight: 1, density: .5}}], "
    text += "parameters: {int8_mask: true}}"
    _, notes = translate(yaml.safe_load(text), "c.yml")
    assert any(note.startswith("density:") for note in notes)
    assert any(note.startswith("int8_mask:") for note in notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_method": "arcee_fusion"}, "'arcee_fusion' has no counterpart"),
        ({"tokenizer_source": "union"}, "tokenizer source 'union'"),
        ({"tokenizer": {"source": "base", "tokens": {}}}, "tokenizer.tokens"),
        ({"tokenizer": {1: "base", "tokens": {}}}, "tokenizer.1"),
        ({"chat_template": "auto"}, "chat_template"),
        ({"modules": {"x": {}}}, "modules"),
        ({"lora": 1}, "lora cannot be expressed"),
        ({"models": [{"model": "a"}]}, "has no weight"),
        ({"base_model": None}, "needs base_model"),
        ({"parameters": {"weight": 1, "rescale": True}}, "rescale with ties"),
        ({"models": [{"model": "a"}, {"model": "a"}]}, "same model twice"),
        ({"models": None}, "neither models nor slices"),
        ({"slices": [{}]}, "has models and slices"),
        ({"models": None, "slices": ["x"]}, r"slices\[0\] is not a map"),
        ({"models": None, "slices": [{"sources": ["x"]}]}, r"slices\[0\]\.sources\[0\] is not a map"),
        ({"models": None, "slices": [{"sources": [{"model": "a", "layer_range": 5}]}]}, "layer_range is 5"),
        ({"models": None, "slices": [{"sources": [{"model": "a", "layer_range": [0, "x"]}]}]}, "layer_range is"),
        ({"parameters": [1]}, "parameters is not a map"),
        ({"models": [{"model": "a", "parameters": [1]}]}, "parameters is not a map"),
        ({"merge_method": "dare_ties", "parameters": {"rescale": [1]}}, "rescale is"),
        ({"parameters": {"weight": 1, "normalize": 2}}, "parameters.normalize is 2"),
    ],
)
def test_what_cannot_be_translated_is_named(change: dict[str, Any], message: str) -> None:
    content = {
        "merge_method": "ties",
        "base_model": "m",
        "models": [{"model": "a", "parameters": {"weight": 1}}],
        **change,
    }
    with pytest.raises(InputError, match=message):
        translate(content, "c.yml")


def test_stacked_slices_are_refused() -> None:
    content = yaml.safe_load(SLERP)
    content["slices"] *= 2
    with pytest.raises(InputError, match="more than one slice"):
        translate(content, "c.yml")
    content = yaml.safe_load(SLERP)
    content["slices"][0]["sources"][1]["layer_range"] = [2, 4]
    with pytest.raises(InputError, match="layer_range"):
        translate(content, "c.yml")


def test_a_slice_of_fewer_layers_is_another_architecture(family: dict[str, Path]) -> None:
    content = yaml.safe_load(SLERP)
    check_layers(content, locate(str(family["a"])), "c.yml")
    content["slices"][0]["sources"][0]["layer_range"] = [0, 1]
    with pytest.raises(InputError, match="1 layers of a model that has 2"):
        check_layers(content, locate(str(family["a"])), "c.yml")


@pytest.mark.parametrize("method", ["linear", "slerp", "ties"])
def test_filters_must_give_what_is_required_to_every_tensor(method: str, family: dict[str, Path]) -> None:
    """mergekit refuses a tensor that no filter fits where it has no default; what has one falls back to it."""
    key = "t" if method == "slerp" else "weight"
    filters = [{"filter": "mlp", "value": 0.3}, {"filter": "model", "value": 0.5}]
    content: dict[str, Any] = {
        "merge_method": method,
        "base_model": str(family["base"]),
        "models": [{"model": str(family["a"])}],
        "parameters": {key: filters, "density": filters[:1]},
    }
    check_filters(translate(content, "c.yml")[0], locate(str(family["a"])), "c.yml")
    content["parameters"][key] = filters[:1]
    with pytest.raises(
        InputError, match=f"c.yml: {key} has no value for model.embed_tokens.weight, which matches no filter"
    ):
        check_filters(translate(content, "c.yml")[0], locate(str(family["a"])), "c.yml")
    content["parameters"][key] = [filters[0], {"value": 0.1}]
    check_filters(translate(content, "c.yml")[0], locate(str(family["a"])), "c.yml")


@pytest.mark.parametrize(
    ("method", "source", "expected"),
    [
        ("ties", "tokenizer_source: b", "b"),
        ("ties", "tokenizer: {source: b}", "b"),
        ("ties", "tokenizer_source: base", None),
        ("ties", "tokenizer_source: m", None),
        ("linear", "tokenizer_source: a", None),
        ("linear", "tokenizer_source: base", "m"),
        ("linear", "base_model: m", None),
    ],
)
def test_a_tokenizer_of_one_of_the_models(method: str, source: str, expected: str | None) -> None:
    text = f"{{merge_method: {method}, base_model: m, models: [a, b], {source}}}"
    content = yaml.safe_load(text)
    content["models"] = [{"model": name, "parameters": {"weight": 1}} for name in (*"ab", *"m"[: method == "linear"])]
    assert translate(content, "config.yml")[0].get("tokenizer_from") == expected
