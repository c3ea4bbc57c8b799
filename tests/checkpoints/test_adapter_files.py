"""Adapters as files: what is planned, what is refused before work starts, and what is written."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merganser.checkpoints import plan
from merganser.checkpoints.adapters.merge import describe, merge_adapters, plan_adapters
from merganser.checkpoints.adapters.source import read_adapter, same_base
from merganser.checkpoints.merge import merge_checkpoints
from merganser.checkpoints.recipe_file import parse
from merganser.checkpoints.source import open_checkpoint
from merganser.errors import InputError
from tests.checkpoints.conftest import example, write_file, write_folder
from tests.merging.test_adapters import P, plain, write_adapter


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    return [write_adapter(tmp_path / name, plain(seed)) for seed, name in enumerate("xy")]


def asked(models: list[str], **content: Any) -> Any:
    return parse({"rule": "linear", "models": models, **content}, "test")


def test_the_file_of_the_weights_stands_for_the_adapter(pair: list[str], tmp_path: Path) -> None:
    merge_adapters(asked(pair), tmp_path / "one")
    merge_adapters(asked([f"{folder}/adapter_model.safetensors" for folder in pair]), tmp_path / "two")
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    "name",
    [
        "x.lora_A.weight",
        "x.lora_B.default.weight",
        "x.lora_embedding_A",
        "x.lora_magnitude_vector",
        "lora_unet_x.lora_down.weight",
    ],
)
def test_factors_are_no_weights(name: str, tmp_path: Path) -> None:
    path = write_file(tmp_path / "adapter_model.safetensors", {name: np.ones((2, 2), np.float32)})
    with pytest.raises(InputError, match=rf"factors of an adapter \({name}\).*adapter_config\.json"):
        open_checkpoint(str(path))
    with pytest.raises(InputError, match="factors of an adapter"):
        merge_checkpoints(asked([str(tmp_path)] * 2), tmp_path / "out")


def test_other_names_with_lora_are_weights(tmp_path: Path) -> None:
    path = write_file(tmp_path / "m.safetensors", {"w_lora.lora.0.weight": np.ones(2, np.float32)})
    assert list(open_checkpoint(str(path)).tensors) == ["w_lora.lora.0.weight"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"alpha_pattern": {"*": 4}}, r"adapter_config\.json: the pattern '\*' of alpha_pattern"),
        ({"alpha_pattern": ["q"]}, r"adapter_config\.json: alpha_pattern is \['q'\]"),
        ({"alpha_pattern": {"q": None}}, r"adapter_config\.json: alpha_pattern\['q'\] is None"),
        ({"lora_alpha": "x"}, r"adapter_config\.json: lora_alpha is 'x'"),
        ({"lora_alpha": None}, r"adapter_config\.json: lora_alpha is None"),
        ({"lora_alpha": float("nan")}, r"adapter_config\.json: lora_alpha is nan"),
        ({"lora_alpha": 10**400}, r"adapter_config\.json: lora_alpha is 1000"),
    ],
)
def test_a_scaling_that_cannot_be_read_is_named(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_adapter(write_adapter(tmp_path / "a", plain(), **config))


@pytest.mark.parametrize(("a", "b"), [((0, 5), (7, 0)), ((), ()), ((5,), (7,))])
def test_factors_that_are_no_matrices_are_named(a: tuple[int, ...], b: tuple[int, ...], tmp_path: Path) -> None:
    tensors = {f"{P}q.lora_A.weight": np.ones(a, np.float32), f"{P}q.lora_B.weight": np.ones(b, np.float32)}
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: .*lora_[AB]\.weight has shape"):
        read_adapter(write_adapter(tmp_path / "a", tensors))


def test_adapters_of_different_bases_are_refused(tmp_path: Path) -> None:
    bases = {"x": "owner/M", "y": "owner/N", "z": None}
    made = [write_adapter(tmp_path / n, plain(), base_model_name_or_path=base) for n, base in bases.items()]
    with pytest.raises(InputError, match=r"x was trained on owner/M, .*y on owner/N .*--allow-different-bases"):
        plan_adapters(asked(made))
    allowed = asked(made, allow_different_bases=True)
    plan_adapters(allowed)
    assert allowed.to_content()["allow_different_bases"] is True
    plan_adapters(asked([made[0], made[2]]))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("owner/M", "owner/M/", True),
        ("/data/M", "owner/M", True),
        ("/home/me/.cache/huggingface/hub/models--owner--M/snapshots/0123", "owner/M", True),
        ("owner/M", "other/m", True),
        ("owner/M", "owner/N", False),
        (".", str(Path.cwd()), True),
        ("~nobody/M", "N", False),
        ("nul\0", "N", False),
        ("\ud800", "N", False),
    ],
)
def test_bases_are_compared_by_what_they_may_mean(one: str, other: str, same: bool) -> None:
    assert same_base(one, other) is same


def test_weights_that_change_the_base_are_refused_for_whole_tensors(tmp_path: Path) -> None:
    made = []
    for seed in (0, 1):
        tensors = {**plain(seed), f"{P}x.q.bias": np.full(7, 1.0 + seed, np.float32)}
        made.append(write_adapter(tmp_path / str(seed), tensors))
    models = [{"model": name, "weight": 0.3} for name in made]
    content = {"rule": "linear", "models": models, "options": {"normalize": False}}
    with pytest.raises(InputError, match=r"x\.q\.bias .* by linear with weights that sum to 0\.6.*normalize: true"):
        merge_adapters(parse(content, "test"), tmp_path / "out")
    content["overrides"] = [{"match": "*bias", "normalize": True}]
    merge_adapters(parse(content, "test"), tmp_path / "out")
    np.testing.assert_allclose(read_adapter(str(tmp_path / "out")).others[f"{P}x.q.bias"], 1.5)


def test_whole_tensors_have_their_place_among_the_layers(tmp_path: Path) -> None:
    made = []
    for seed in (0, 1):
        part = list(plain(seed).values())
        tensors = {}
        for layer in range(2):
            at = f"{P}layers.{layer}.q"
            bias = np.full(7, float(seed), np.float32)
            tensors |= {f"{at}.lora_A.weight": part[0], f"{at}.lora_B.weight": part[1], f"{at}.bias": bias}
        made.append(write_adapter(tmp_path / str(seed), tensors))
    models = [
        {"model": made[0], "weight": {"layers": [1.0, 0.25]}},
        {"model": made[1], "weight": {"layers": [0.0, 0.75]}},
    ]
    merge_adapters(parse({"rule": "linear", "models": models}, "test"), tmp_path / "out")
    others = read_adapter(str(tmp_path / "out")).others
    assert [others[f"{P}layers.{layer}.q.bias"][0] for layer in range(2)] == [0.0, 0.75]


def test_an_override_that_matches_nothing_is_refused(pair: list[str]) -> None:
    with pytest.raises(InputError, match=r"override '\*foo\*' matches no tensor\. .* named like x\.q\.weight"):
        plan_adapters(asked(pair, overrides=[{"match": "*foo*", "weight": 1.0}]))


@pytest.mark.parametrize(
    ("content", "message"),
    [({"common_only": True}, "--common-only"), ({"space": "factors", "rank": 2}, "the space of factors")],
)
def test_options_without_effect_on_adapters_are_refused(content: dict[str, Any], message: str, pair: list[str]) -> None:
    with pytest.raises(InputError, match=message):
        plan_adapters(asked(pair, **content))


@pytest.mark.parametrize("content", [{"rank": 4}, {"space": "factors"}, {"allow_different_bases": True}], ids=str)
def test_options_without_effect_on_models_are_refused(content: dict[str, Any], family: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="applies only to adapters"):
        plan.make_plan(asked([str(family["a"]), str(family["b"])], **content))


def test_factors_share_a_scale_that_would_overflow(tmp_path: Path) -> None:
    """Half precision ends at 65504: the scaling does not fit into B alone."""
    made = []
    for seed in (0, 1):
        write_adapter(tmp_path / str(seed), plain(seed), lora_alpha=60_000)
        path = tmp_path / str(seed) / "adapter_model.safetensors"
        path.unlink()
        made.append(str(path.parent))
        write_file(path, plain(seed), "F16")
    parts = [read_adapter(name).modules["x.q"] for name in made]
    merge_adapters(asked(made), tmp_path / "out")
    merged = read_adapter(str(tmp_path / "out")).modules["x.q"]
    expected = (parts[0].update() + parts[1].update()) / 2
    np.testing.assert_allclose(merged.update(), expected, atol=2e-3 * np.abs(expected).max())
    whole = asked(made, dtype="float32")
    merge_adapters(whole, tmp_path / "wide")
    wide = read_adapter(str(tmp_path / "wide")).modules["x.q"]
    np.testing.assert_allclose(wide.update(), expected, atol=1e-6 * np.abs(expected).max())
    # What fits stays where it was: all of the scaling in B.
    np.testing.assert_array_equal(wide.a, np.concatenate([part.a for part in parts]))


def test_results_that_no_type_holds_are_refused(tmp_path: Path) -> None:
    tensors = {name: 60_000 * np.ones_like(value) for name, value in plain().items()}
    made = [write_adapter(tmp_path / name, tensors, lora_alpha=60_000) for name in "xy"]
    with pytest.raises(InputError, match=r"factors of x\.q are larger than 65504.*float32"):
        merge_adapters(asked(made, dtype="float16"), tmp_path / "out")
    whole = {**plain(), f"{P}head.weight": np.full(2, 1e6, np.float32)}
    made = [write_adapter(tmp_path / f"whole{name}", whole) for name in "xy"]
    with pytest.raises(InputError, match=r"merged .*head\.weight is not finite, or larger"):
        merge_adapters(asked(made, dtype="float16"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nan_is_not_decomposed(tmp_path: Path) -> None:
    tensors = plain()
    tensors[f"{P}x.q.lora_A.weight"][0, 0] = np.nan
    made = [write_adapter(tmp_path / name, tensors) for name in "xy"]
    with pytest.raises(InputError, match="cannot be truncated to a rank"):
        merge_adapters(asked(made, allow_nonfinite=True, rank=1), tmp_path / "out")
    report = merge_adapters(asked(made, allow_nonfinite=True), tmp_path / "out")
    assert report.nonfinite == [f"{P}x.q.lora_A.weight"]


@pytest.mark.parametrize(
    ("content", "rank"),
    [
        ({}, 5),
        ({"rank": 2}, 2),
        ({"rank": 9}, 5),
        ({"rule": "slerp"}, 5),
        ({"rule": "ties", "rank": 3}, 3),
        ({"rule": "ties", "rank": 9}, 5),
        ({"rule": "model_stock", "options": {"filter_wise": True}, "rank": 2}, 2),
    ],
    ids=str,
)
def test_the_plan_matches_what_is_written(content: dict[str, Any], rank: int, tmp_path: Path) -> None:
    made = [write_adapter(tmp_path / name, plain(seed, seed + 2)) for seed, name in enumerate("xy")]
    said = describe(asked(made, **content))
    report = merge_adapters(asked(made, **content), tmp_path / "out")
    assert read_adapter(str(tmp_path / "out")).modules["x.q"].rank == rank
    assert str([rank]) in said["rank of the result"]
    assert said["bytes to write"] == report.bytes == (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    assert said["bytes to read"] == sum(4 * tensor.size for seed in (0, 1) for tensor in plain(seed, seed + 2).values())
    assert said["rules"] == report.tensors


def test_the_plan_refuses_what_the_merge_refuses(pair: list[str], tmp_path: Path) -> None:
    for recipe, message in (
        (asked(pair, rule="ties"), "full rank"),
        (asked([*pair, write_adapter(tmp_path / "z", plain(2, 3))], space="factors"), "differ: rank 2"),
    ):
        with pytest.raises(InputError, match=message):
            describe(recipe)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    for place, message in ((tmp_path / "taken", "exists"), (Path(pair[0]), "is an input of the merge")):
        with pytest.raises(InputError, match=message):
            describe(asked(pair), place)
        with pytest.raises(InputError, match=message):
            merge_adapters(asked(pair), place)
    with pytest.raises(InputError, match="is an input of the merge"):
        merge_adapters(asked(pair), pair[0], overwrite=True)


def test_free_space_is_checked_first(pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 100}))
    for call in (merge_adapters, describe):
        with pytest.raises(InputError, match="has 100 free"):
            call(asked(pair), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_of_the_first_adapter_is_copied(pair: list[str], tmp_path: Path) -> None:
    for name in ("tokenizer.json", "chat_template.jinja", "trainer_state.json", "optimizer.pt", "modeling_x.py"):
        (Path(pair[0]) / name).write_text("{}")
    report = merge_adapters(asked(pair), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "merge.yaml",
        "tokenizer.json",
    ]
    assert report.not_copied == ["modeling_x.py"]
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 4


def test_a_base_that_is_an_adapter_is_refused(pair: list[str], tmp_path: Path) -> None:
    model = str(write_folder(tmp_path / "m", example(0)))
    with pytest.raises(InputError, match="factors of an adapter"):
        plan.make_plan(asked([model, model], base=pair[0]))


def with_copy(folder: Path, values: np.ndarray, seed: int, **config: Any) -> str:
    """An adapter of an embedding, whose file PEFT gives a copy of the base's."""
    generator = np.random.default_rng(seed)
    factors = {f"{P}embed.lora_embedding_A": (2, 6), f"{P}embed.lora_embedding_B": (4, 2)}
    tensors = {name: generator.normal(size=shape).astype(np.float32) for name, shape in factors.items()}
    return write_adapter(folder, {f"{P}embed.base_layer.weight": values, **tensors}, **config)


def test_unchanged_copies_of_the_base_are_kept(tmp_path: Path) -> None:
    """Rules that cannot merge whole weights without the base merge such adapters too, and the copy keeps its bytes."""
    copy = np.random.default_rng(9).normal(size=(6, 4)).astype(np.float32)
    made = [with_copy(tmp_path / name, copy, seed) for seed, name in enumerate("xy")]
    without = [write_adapter(tmp_path / f"{n}2", factors_of(Path(m))) for n, m in zip("xy", made, strict=True)]
    content = {"rule": "ties", "options": {"density": 0.5}, "rank": 2}
    for number, models in enumerate((made, [made[0], without[1]], [without[0], made[1]], without)):
        report = merge_adapters(asked(models, **content), tmp_path / f"out{number}")
        stored = factors_of(tmp_path / f"out{number}")
        if number < 3:
            np.testing.assert_array_equal(stored.pop(f"{P}embed.base_layer.weight"), copy)
        expected = factors_of(tmp_path / "out0")
        for name, value in stored.items():
            np.testing.assert_array_equal(value, expected[name])
        assert report.bytes == (tmp_path / f"out{number}" / "adapter_model.safetensors").stat().st_size


def factors_of(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    return tensors if "out" in folder.name else {k: v for k, v in tensors.items() if "base_layer" not in k}


def test_a_copy_that_is_not_the_base_is_refused(tmp_path: Path) -> None:
    copy = np.ones((6, 4), np.float32)
    first, same, other = (with_copy(tmp_path / name, copy * scale, 0) for name, scale in (("x", 1), ("y", 1), ("z", 2)))
    plan_adapters(asked([first, same]))
    with pytest.raises(InputError, match=r"embed\.base_layer\.weight in .*x and in .*z differ.*merge the models"):
        plan_adapters(asked([first, other]))
    write_folder(tmp_path / "base", {"embed.weight": copy})
    named = [with_copy(tmp_path / f"n{i}", copy * i, 0, base_model_name_or_path=str(tmp_path / "base")) for i in (1, 2)]
    plan_adapters(asked([named[0], named[0]]))
    with pytest.raises(InputError, match=r"in .*n2 is not that of its base"):
        plan_adapters(asked([named[1], named[1]]))


def test_a_pattern_that_takes_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from merganser.checkpoints.adapters import patterns

    names = {f"{P}{'a' * 60}.lora_{side}.weight": np.ones((2, 2), np.float32) for side in "AB"}
    path = write_adapter(tmp_path / "a", names, alpha_pattern={"(a|aa)+b": 4})
    monkeypatch.setattr(patterns.ModulePatterns.__init__, "__defaults__", (0.1,))
    started = time.monotonic()
    with pytest.raises(
        InputError, match=r"adapter_config\.json: the pattern '\(a\|aa\)\+b' of alpha_pattern takes too"
    ):
        read_adapter(path)
    assert time.monotonic() - started < 5
    with pytest.raises(InputError, match="10001 characters"):
        read_adapter(write_adapter(tmp_path / "b", plain(), alpha_pattern={"a" * 10_001: 4}))


def test_an_embedding_that_was_not_trained_is_a_copy_too(tmp_path: Path) -> None:
    """PEFT writes whole embeddings of enlarged vocabularies; modules to save are trained, and so is what differs."""
    name, values = f"{P}model.embed_tokens.weight", np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    trained = {"modules_to_save": ["embed_tokens"]}

    def adapter(folder: str, scale: float, **config: Any) -> str:
        return write_adapter(tmp_path / folder, {name: values * np.float32(scale), **plain(len(folder))}, **config)

    frozen = [adapter("a", 1), adapter("bb", 1)]
    ties = {"rule": "ties", "options": {"density": 0.5}, "rank": 2}
    merge_adapters(asked(frozen, **ties), tmp_path / "out")
    np.testing.assert_array_equal(factors_of(tmp_path / "out")[name], values)
    for models in ([adapter("c", 1, **trained), adapter("dd", 1, **trained)], [frozen[0], adapter("e", 2)]):
        with pytest.raises(
            InputError, match=r"embed_tokens\.weight \(a bias or a module to save\) cannot be merged by ties"
        ):
            plan_adapters(asked(models, **ties))
    merge_adapters(asked([frozen[0], str(tmp_path / "e")]), tmp_path / "out2")
    np.testing.assert_allclose(factors_of(tmp_path / "out2")[name], values * 1.5, rtol=1e-6)
