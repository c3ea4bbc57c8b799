"""Whole checkpoints: layout, types, differences, wrong input; the same bytes however they are cut and merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from merganser.checkpoints.dtypes import decode
from merganser.checkpoints.estimate import estimate_seconds
from merganser.checkpoints.merge import merge_checkpoints
from merganser.checkpoints.plan import make_plan
from merganser.checkpoints.recipe_file import parse
from merganser.checkpoints.source import open_checkpoint
from merganser.errors import InputError
from merganser.files.safetensors_file import read_header
from merganser.merging.rules import RULES
from tests.checkpoints.conftest import example, write_file, write_folder


def load(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint, in float32 (integers as they are)."""
    found = {}
    for tensor in open_checkpoint(str(folder)).tensors.values():
        raw = np.fromfile(tensor.path, np.uint8, tensor.nbytes, offset=tensor.offset)
        if tensor.dtype == "I64":
            found[tensor.name] = raw.view(np.int64).reshape(tensor.shape)
        else:
            found[tensor.name] = decode(raw, tensor.dtype, np.dtype(np.float32)).reshape(tensor.shape).copy()
    return found


def recipe(family: dict[str, Path], **changes: Any) -> Any:
    content = {"rule": "linear", "models": [str(family["a"]), str(family["b"])], "base": str(family["base"]), **changes}
    return parse({key: value for key, value in content.items() if value is not None}, "test")


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_rule_merges_folders_like_its_function(name: str, family: dict[str, Path], tmp_path: Path) -> None:
    rule = RULES[name]
    models: list[Any] = [str(family["a"]), str(family["b"])]
    if rule.extra:
        for key in ("a", "b"):
            write_folder(tmp_path / f"fisher-{key}", {k: np.abs(v) for k, v in example(7, origin=example(0)).items()})
        models = [{"model": m, rule.extra: str(tmp_path / f"fisher-{k}")} for m, k in zip(models, "ab", strict=True)]
    asked = recipe(family, rule=name, models=models, seed=5)
    report = merge_checkpoints(asked, tmp_path / "out")
    assert report.tensors == {name: 7}
    assert report.buffers == ["model.position_ids"]
    a, b, base, merged = (load(folder) for folder in (family["a"], family["b"], family["base"], tmp_path / "out"))
    for key in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.scale"):
        positional: list[Any] = [[a[key], b[key]]]
        if rule.base == "required":
            positional.append(base[key])
        if rule.extra:
            positional.append([np.abs(example(7, origin=example(0))[key])] * 2)
        extra = {"seed": 5, "name": key} if rule.random else {}
        np.testing.assert_array_equal(merged[key], rule.function(*positional, **extra), err_msg=key)


def test_the_result_has_the_layout_of_the_base(family: dict[str, Path], tmp_path: Path) -> None:
    merge_checkpoints(recipe(family), tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [
        "README.md",
        "config.json",
        "merge.yaml",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert (
        index["weight_map"] == json.loads((family["base"] / "model.safetensors.index.json").read_text())["weight_map"]
    )
    assert index["metadata"]["total_size"] == sum(
        t.nbytes for t in open_checkpoint(str(tmp_path / "out")).tensors.values()
    )
    assert "`linear`" in (tmp_path / "out" / "README.md").read_text()
    assert read_header(tmp_path / "out" / "model-00001-of-00002.safetensors")[1]["format"] == "pt"


def test_merge_yaml_repeats_the_merge(family: dict[str, Path], tmp_path: Path) -> None:
    asked = recipe(
        family,
        rule="dare_ties",
        models=[{"model": str(family["a"]), "weight": 0.7, "density": {"layers": [0.2, 0.9]}}, str(family["b"])],
        options={"scale": 0.5},
        overrides=[
            {"match": "*.mlp.*", "density": [0.5, 0.25]},
            {"match": "*norm*", "rule": "linear"},
            {"match": "*embed*", "from": "base"},
            {"match": "*q_proj*", "weight": {"cases": [{"contains": "layers.1", "value": 2.0}, {"value": 0.5}]}},
        ],
        dtype="bfloat16",
        seed=3,
    )
    merge_checkpoints(asked, tmp_path / "one")
    again = parse(yaml.safe_load((tmp_path / "one" / "merge.yaml").read_text()), "merge.yaml")
    merge_checkpoints(again, tmp_path / "two")
    for shard in ("model-00001-of-00002.safetensors", "merge.yaml"):
        assert (tmp_path / "one" / shard).read_bytes() == (tmp_path / "two" / shard).read_bytes()


def test_overrides_change_rule_parameters_and_origin(family: dict[str, Path], tmp_path: Path) -> None:
    overrides = [
        {"match": "*.mlp.*", "weight": [1.0, 0.0]},
        {"match": "model.layers.1.mlp.*", "weight": [0.0, 1.0]},
        {"match": "*embed*", "from": "base"},
        {"match": "*norm*", "rule": "task_arithmetic", "scale": 0.0},
    ]
    report = merge_checkpoints(recipe(family, overrides=overrides), tmp_path / "out")
    a, b, base, merged = (load(folder) for folder in (family["a"], family["b"], family["base"], tmp_path / "out"))
    first, second = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    np.testing.assert_array_equal(merged[first], a[first])
    np.testing.assert_array_equal(merged[second], b[second])
    np.testing.assert_array_equal(merged["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    np.testing.assert_array_equal(merged["model.norm.weight"], base["model.norm.weight"])
    assert report.kept == ["model.embed_tokens.weight"]
    assert report.tensors == {"linear": 5, "task_arithmetic": 1}


def test_values_may_change_over_the_layers(family: dict[str, Path], tmp_path: Path) -> None:
    merge_checkpoints(recipe(family, rule="slerp", options={"t": {"layers": [0.0, 1.0]}}), tmp_path / "out")
    a, b, merged = (load(folder) for folder in (family["a"], family["b"], tmp_path / "out"))
    for name, source in (("model.layers.0.mlp.up_proj.weight", a), ("model.layers.1.mlp.up_proj.weight", b)):
        np.testing.assert_allclose(merged[name], source[name], rtol=1e-6)


def test_shards_threads_and_single_files_do_not_change_a_bit(family: dict[str, Path], tmp_path: Path) -> None:
    base = example(0)
    write_folder(tmp_path / "one-base", base)
    write_folder(tmp_path / "a-again", example(1, origin=base))
    written = []
    for number, (models, origin, threads) in enumerate(
        [
            ((family["a"], family["b"]), family["base"], 1),
            ((tmp_path / "a-again", family["b"]), tmp_path / "one-base", 3),
        ]
    ):
        asked = recipe(
            {"a": models[0], "b": models[1], "base": origin},
            rule="dare_ties",
            models=[{"model": str(model), "density": 0.4} for model in models],
            seed=1,
        )
        merge_checkpoints(asked, tmp_path / f"out{number}", threads=threads)
        written.append(load(tmp_path / f"out{number}"))
    for name, tensor in written[0].items():
        np.testing.assert_array_equal(tensor, written[1][name], err_msg=name)


def test_the_type_of_the_result_can_be_chosen(family: dict[str, Path], tmp_path: Path) -> None:
    merge_checkpoints(recipe(family, dtype="bf16"), tmp_path / "out")
    found = open_checkpoint(str(tmp_path / "out"))
    assert {tensor.dtype for tensor in found.tensors.values()} == {"BF16", "I64"}
    assert found.config["dtype"] == "bfloat16"
    merge_checkpoints(recipe(family), tmp_path / "exact")
    exact, rounded = load(tmp_path / "exact"), load(tmp_path / "out")
    for name, tensor in exact.items():
        np.testing.assert_allclose(rounded[name], tensor, rtol=2**-8)


def test_single_files_are_read_and_get_the_name_that_loaders_look_for(tmp_path: Path) -> None:
    for name, value in (("x", 1.0), ("y", 3.0)):
        write_file(tmp_path / f"{name}.safetensors", {"w": np.full(3, value, np.float32)})
    asked = parse({"rule": "linear", "models": [str(tmp_path / f"{n}.safetensors") for n in "xy"]}, "test")
    merge_checkpoints(asked, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["README.md", "merge.yaml", "model.safetensors"]
    np.testing.assert_array_equal(load(tmp_path / "out")["w"], 2.0)


def test_models_that_differ_are_refused_with_names_and_sizes(family: dict[str, Path], tmp_path: Path) -> None:
    other = example(3)
    other["model.embed_tokens.weight"] = np.zeros((51, 8), np.float32)
    del other["model.norm.weight"]
    other["extra.weight"] = np.zeros(2, np.float32)
    write_folder(tmp_path / "other", other)
    changed = {**family, "b": tmp_path / "other"}
    with pytest.raises(InputError) as caught:
        merge_checkpoints(recipe(changed), tmp_path / "out")
    message = str(caught.value)
    assert "model.embed_tokens.weight is [50, 8]" in message
    assert "[51, 8]" in message
    assert "model.norm.weight is missing" in message
    assert "extra.weight is in" in message
    assert not (tmp_path / "out").exists()
    report = merge_checkpoints(recipe(changed, common_only=True), tmp_path / "out")
    assert report.only_reference == ["model.embed_tokens.weight", "model.norm.weight"]
    assert report.left_out == ["extra.weight"]
    base, merged = load(family["base"]), load(tmp_path / "out")
    np.testing.assert_array_equal(merged["model.norm.weight"], base["model.norm.weight"])
    assert set(merged) == set(base)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", ["linear", "ties", "sce"])
def test_weights_that_are_not_finite_are_named(
    rule: str, value: float, family: dict[str, Path], tmp_path: Path
) -> None:
    broken = example(4)
    broken["model.norm.weight"][3] = value
    write_folder(tmp_path / "broken", broken)
    changed = {**family, "b": tmp_path / "broken"}
    with pytest.raises(InputError, match=r"model\.norm\.weight of .*broken holds NaN or infinity"):
        merge_checkpoints(recipe(changed, rule=rule), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []
    merge_checkpoints(recipe(changed, rule=rule, allow_nonfinite=True), tmp_path / "out")


def test_a_missing_shard_is_named(family: dict[str, Path], tmp_path: Path) -> None:
    (family["a"] / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match="model-00002-of-00003"):
        merge_checkpoints(recipe(family), tmp_path / "out")


def test_a_truncated_shard_is_named(family: dict[str, Path], tmp_path: Path) -> None:
    shard = family["a"] / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(InputError, match=r"model-00002-of-00003.safetensors is not a whole safetensors file"):
        merge_checkpoints(recipe(family), tmp_path / "out")


def test_a_file_cut_off_during_the_merge_is_an_error(
    family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = family["b"] / "model.safetensors"

    def after_the_plan(needed: int, folder: Path) -> None:
        shard.write_bytes(shard.read_bytes()[:600])

    monkeypatch.setattr("merganser.checkpoints.merge.check_room", after_the_plan)
    with pytest.raises(InputError, match="changed during the merge"):
        merge_checkpoints(recipe(family), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_index_of_another_version_is_refused(family: dict[str, Path]) -> None:
    path = family["base"] / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["gone.weight"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"lack tensors of the index: gone\.weight"):
        open_checkpoint(str(family["base"]))
    index["weight_map"] = {"a": "../secret.safetensors"}
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match="outside its folder"):
        open_checkpoint(str(family["base"]))


def test_pickles_are_refused_with_the_command_that_converts(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(InputError, match="from_pretrained"):
        open_checkpoint(str(tmp_path / "model"))
    (tmp_path / "x.pt").write_bytes(b"\x80\x02")
    with pytest.raises(InputError, match=r"torch\.load\(.*weights_only=True"):
        open_checkpoint(str(tmp_path / "x.pt"))


def test_quantised_models_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "q", {"w": np.ones(2, np.float32)})
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"bits": 4}}))
    with pytest.raises(InputError, match="quantised"):
        open_checkpoint(str(folder))


def test_a_missing_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="no file or folder"):
        open_checkpoint(str(tmp_path / "none"))
    with pytest.raises(InputError, match="'nobody/nothing' is not a file or folder"):
        open_checkpoint("nobody/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no safetensors file"):
        open_checkpoint(str(tmp_path / "empty"))


def test_a_folder_that_is_taken_is_not_touched(family: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists"):
        merge_checkpoints(recipe(family), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    merge_checkpoints(recipe(family), tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "mine.txt").exists()
    assert (tmp_path / "out" / "config.json").exists()


def test_an_override_that_matches_nothing_is_a_mistake(family: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"'\*\.mpl\.\*' matches no tensor"):
        make_plan(recipe(family, overrides=[{"match": "*.mpl.*", "weight": 1.0}]))


def test_a_rule_without_its_base_is_refused(family: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="ties needs a base"):
        make_plan(recipe(family, rule="ties", base=None))


def test_a_plan_counts_bytes_and_estimates_time(family: dict[str, Path], tmp_path: Path) -> None:
    plan = make_plan(recipe(family, rule="ties"))
    merge_checkpoints(recipe(family, rule="ties"), tmp_path / "out")
    shards = list((tmp_path / "out").glob("*.safetensors"))
    assert plan.file_bytes == sum(path.stat().st_size for path in shards)
    assert plan.input_bytes == 3 * (plan.output_bytes - 80) + 80
    assert 0.0 < estimate_seconds(plan, None, 1) < 5.0


def test_the_result_loads_in_transformers(tmp_path: Path) -> None:
    import torch
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=32
    )
    parts = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config)
        model.save_pretrained(tmp_path / str(seed), max_shard_size="10KB")
        parts.append(model.state_dict())
    content = {
        "rule": "task_arithmetic",
        "models": [str(tmp_path / "1"), str(tmp_path / "2")],
        "base": str(tmp_path / "0"),
    }
    merge_checkpoints(parse({**content, "options": {"scale": 0.5}}, "test"), tmp_path / "out")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, base in parts[0].items():
        expected = base + 0.5 * ((parts[1][name] - base) + (parts[2][name] - base))
        torch.testing.assert_close(merged[name], expected, rtol=1e-5, atol=1e-6)
