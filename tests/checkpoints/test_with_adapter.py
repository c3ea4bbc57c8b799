"""BASE+ADAPTER as a model of a merge: hand-worked updates, PEFT's own sum, tied weights, names and errors."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merganser.checkpoints.adapters.with_adapter import open_model
from merganser.checkpoints.merge import merge_checkpoints
from merganser.checkpoints.mergekit_file import translate
from merganser.checkpoints.recipe_file import parse, read_recipe
from merganser.checkpoints.source import locate, open_checkpoint
from merganser.errors import InputError
from merganser.lineage import BaseModelLineage, Lineage, model_digest, write_lineage
from merganser.merging.ties import ties
from tests.checkpoints.conftest import example, write_folder
from tests.checkpoints.test_merge import load
from tests.merging.test_adapters import P, write_adapter

Q = "model.layers.0.self_attn.q_proj"
UP = "model.layers.1.mlp.up_proj"


def adapter(folder: Path, seed: int = 0, rank: int = 2, transposed: bool = False, **config: Any) -> str:
    """An adapter of :func:`example` with factors for one query projection (8 x 8) and one layer up (16 x 8)."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for module, (rows, columns) in {Q: (8, 8), UP: (8, 16) if transposed else (16, 8)}.items():
        tensors[f"{P}{module}.lora_A.weight"] = generator.normal(size=(rank, columns)).astype(np.float32)
        tensors[f"{P}{module}.lora_B.weight"] = generator.normal(size=(rows, rank)).astype(np.float32)
    return write_adapter(folder, tensors, r=rank, lora_alpha=3, **config)


def product(folder: str, module: str) -> np.ndarray:
    """B A in double precision."""
    a, b = (load_adapter(folder)[f"{P}{module}.lora_{side}.weight"].astype(np.float64) for side in "AB")
    found: np.ndarray = b @ a
    return found


def load_adapter(folder: str) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(Path(folder) / "adapter_model.safetensors")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "base", example(0))


def merged(models: list[str], out: Path, **more: Any) -> dict[str, np.ndarray]:
    rule = more.pop("rule", "linear")
    kernels = more.pop("kernels", "auto")
    merge_checkpoints(parse({"rule": rule, "models": models, **more}, "test"), out, kernels=kernels)
    return load(out)


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({}, {Q: 3 / 2, UP: 3 / 2}),
        ({"use_rslora": True}, {Q: 3 / math.sqrt(2), UP: 3 / math.sqrt(2)}),
        ({"alpha_pattern": {"up_proj": 5}}, {Q: 1.5, UP: 2.5}),
        ({"fan_in_fan_out": True, "transposed": True}, {Q: 1.5, UP: 1.5}),
    ],
)
def test_the_update_is_added_with_its_scaling(
    base: Path, tmp_path: Path, config: dict[str, Any], scaling: dict[str, float]
) -> None:
    folder = adapter(tmp_path / "a", **config)
    found, before = merged([f"{base}+{folder}"], tmp_path / "out"), load(base)
    for module, factor in scaling.items():
        update = factor * product(folder, module)
        update = update.T if config.get("fan_in_fan_out") else update
        expected = (before[f"{module}.weight"].astype(np.float64) + update).astype(np.float32)
        np.testing.assert_array_equal(found[f"{module}.weight"], expected)
    others = found.keys() - {f"{module}.weight" for module in scaling}
    assert all(np.array_equal(found[name], before[name]) for name in others)
    # The file of the result repeats the merge, from anywhere.
    again = read_recipe(tmp_path / "out" / "merge.yaml")
    assert again.names == (f"{base.resolve()}+{Path(folder).resolve()}",)
    merge_checkpoints(again, tmp_path / "again")
    assert all(np.array_equal(value, found[name]) for name, value in load(tmp_path / "again").items())


@pytest.mark.parametrize(("dtype", "kernels"), [("F32", "numba"), ("BF16", "numpy")])
def test_rules_see_the_sum(tmp_path: Path, dtype: str, kernels: str) -> None:
    base = write_folder(tmp_path / "base", example(0), dtype=dtype)
    folders = [adapter(tmp_path / name, seed) for seed, name in enumerate("xy")]
    for number, folder in enumerate(folders):
        merged([f"{base}+{folder}"], tmp_path / f"sum{number}")
    options: dict[str, Any] = {"rule": "ties", "base": str(base), "kernels": kernels, "options": {"density": 0.5}}
    found = merged([f"{base}+{folder}" for folder in folders], tmp_path / "one", **options)
    expected = merged([str(tmp_path / f"sum{number}") for number in (0, 1)], tmp_path / "two", **options)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    if dtype == "F32":
        models, origin = [load(tmp_path / f"sum{n}")[f"{UP}.weight"] for n in (0, 1)], load(base)[f"{UP}.weight"]
        np.testing.assert_allclose(found[f"{UP}.weight"], ties(models, origin, density=[0.5, 0.5]), atol=1e-6)


def test_any_slice_is_the_slice_of_the_sum(base: Path, tmp_path: Path) -> None:
    from merganser.checkpoints.streaming import read_elements
    from merganser.checkpoints.vocabularies.common_rows import rest

    tensor = open_model(locate(f"{base}+{adapter(tmp_path / 'a')}")).tensors[f"{UP}.weight"]

    def read(part: Any, start: int, stop: int) -> np.ndarray:
        raw = np.empty((stop - start) * 4, np.uint8)
        with open(part.path, "rb") as file:
            read_elements(file.fileno(), raw, part, start)
        return raw.view(np.float32)

    whole = read(tensor, 0, 128)
    for start, stop in ((0, 1), (7, 8), (5, 21), (8, 16), (127, 128)):
        np.testing.assert_array_equal(read(tensor, start, stop), whole[start:stop])
    np.testing.assert_array_equal(read(rest(tensor, 3), 2, 50), whole[3 * 8 + 2 : 3 * 8 + 50])


def test_names_with_a_plus(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "c++", example(0))
    folder = adapter(tmp_path / "a+b")
    assert locate(str(base)).adapter is None
    source = locate(f"{base}+{folder}")
    assert (source.path, source.adapter and source.adapter.path) == (base, Path(folder))
    assert locate(f"{base}+{folder}/adapter_model.safetensors").adapter is not None


def test_a_mergekit_file_names_it_so(base: Path, tmp_path: Path) -> None:
    reference = {"model": {"path": "owner/base", "revision": "v1"}, "lora": {"path": "owner/lora"}}
    content = {"merge_method": "linear", "models": [{"model": f"{base}+x"}, {"model": reference}]}
    for entry in content["models"]:
        entry["parameters"] = {"weight": 1}  # type: ignore[index]
    assert [model["model"] for model in translate(content, "c.yml")[0]["models"]] == [
        f"{base}+x",
        "owner/base@v1+owner/lora",
    ]


@pytest.mark.parametrize(
    ("second", "config", "message"),
    [
        ("base", {}, "after the '.'. is not an adapter"),
        ("", {}, "nothing before or after"),
        ("a+{a}", {}, "more than one adapter"),
        ("a", {"base_model_name_or_path": "owner/other"}, "was trained on owner/other.*, not on "),
        ("a", {"use_dora": True}, "DoRA"),
        ("a", {"fan_in_fan_out": True}, r"as a matrix of \[8, 16\], and it is F32 \[16, 8\]"),
    ],
)
def test_what_is_refused(base: Path, tmp_path: Path, second: str, config: dict[str, Any], message: str) -> None:
    folder = adapter(tmp_path / "a", **config)
    name = second.replace("a+{a}", f"{folder}+{folder}").replace("base", str(base))
    with pytest.raises(InputError, match=message):
        merged([f"{base}+{folder if second == 'a' else name}"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    if "base_model_name_or_path" in config:
        merged([f"{base}+{folder}"], tmp_path / "out", allow_different_bases=True)


def test_the_hash_tells_the_base_of_an_adapter_that_names_a_placeholder(base: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", base_model_name_or_path="./base/other")
    with pytest.raises(InputError, match=r"was trained on \./base/other"):
        merged([f"{base}+{folder}"], tmp_path / "out")
    checkpoint = open_checkpoint(locate(str(base)))
    sha256 = model_digest([checkpoint.folder / shard for shard in checkpoint.shards], checkpoint.config)
    for digest in (sha256, "0" * 64):
        of_base = BaseModelLineage(name="./base/other", sha256=digest)
        write_lineage(Path(folder), Lineage(base=of_base, tokenizer="", weights="0" * 64))
        if digest == sha256:
            assert merged([f"{base}+{folder}"], tmp_path / "out")
        else:
            with pytest.raises(InputError, match="is another model"):
                merged([f"{base}+{folder}"], tmp_path / "again")


def test_another_layer_and_more_tokens_are_refused(base: Path, tmp_path: Path) -> None:
    ones = np.ones((2, 8), np.float32)
    other = {f"{P}model.layers.7.q.lora_A.weight": ones, f"{P}model.layers.7.q.lora_B.weight": ones.T.copy()}
    with pytest.raises(InputError, match=r"has no tensor model\.layers\.7\.q\.weight"):
        open_model(locate(f"{base}+{write_adapter(tmp_path / 'x', other)}"))
    more = {**load_adapter(adapter(tmp_path / "a")), f"{P}model.embed_tokens.weight": np.ones((53, 8), np.float32)}
    saved = write_adapter(tmp_path / "y", more, modules_to_save=["embed_tokens"])
    with pytest.raises(InputError, match=r"replaces model\.embed_tokens\.weight by one of shape \[53, 8\].*\[50, 8\]"):
        open_model(locate(f"{base}+{saved}"))


def test_nan_in_an_adapter_is_accepted_where_it_is_allowed(base: Path, tmp_path: Path) -> None:
    tensors = load_adapter(adapter(tmp_path / "a"))
    tensors[f"{P}{Q}.lora_B.weight"][3] = np.nan
    model = f"{base}+{write_adapter(tmp_path / 'nan', tensors, r=2)}"
    with pytest.raises(InputError, match="holds NaN or infinity"):
        merged([model], tmp_path / "out")
    found = merged([model], tmp_path / "out", allow_nonfinite=True)
    assert np.isnan(found[f"{Q}.weight"]).all(axis=1).tolist() == [row == 3 for row in range(8)]


def test_prefixes_of_the_files_and_of_the_adapter_may_differ(tmp_path: Path) -> None:
    tensors = {name.removeprefix("model."): value for name, value in example(0).items()}
    base = write_folder(tmp_path / "base", tensors)
    opened = open_model(locate(f"{base}+{adapter(tmp_path / 'a')}"))
    assert type(opened.tensors[f"{UP.removeprefix('model.')}.weight"]).__name__ == "UpdatedTensor"


def test_the_update_of_a_tied_output_layer_is_its_own(tmp_path: Path) -> None:
    """Against PEFT on a model of transformers: the result has two matrices, and answers the same."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    config = LlamaConfig(**shape, num_hidden_layers=1, initializer_range=0.3, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a tied layer has factors
        wrapped = get_peft_model(
            model, LoraConfig(r=2, lora_alpha=3, use_rslora=True, target_modules=["lm_head", "down_proj"])
        )
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        expected = wrapped.eval()(input_ids=ids).logits
    merged([f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)
