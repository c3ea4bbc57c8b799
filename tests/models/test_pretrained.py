"""What a run sets for itself stays out of what it exports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merganser.errors import InputError
from merganser.models.base import Backbone, Lengths
from merganser.models.export import export_model
from merganser.models.loading import load_backbone
from merganser.models.options import LoraOptions, ModelOptions
from merganser.models.pretrained import cast
from merganser.streams.answers import AnswerSpec
from tests.models.conftest import LORA, disturb
from tests.models.test_export import TEXTS, used_as_the_card_says

SPECS = {"mood": AnswerSpec(("positive", "negative"), mode="rank")}
GENERATION = {"do_sample": True, "temperature": 0.6, "repetition_penalty": 1.3, "max_new_tokens": 200}


@pytest.fixture
def base(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A decoder as published: bf16 with one fp32 tensor, its own generation settings, padding on the left."""
    folder = Path(shutil.copytree(folders["causal"], tmp_path / "base"))
    tensors = load_file(folder / "model.safetensors")
    tensors = {n: t if n == "model.norm.weight" else t.to(torch.bfloat16) for n, t in tensors.items()}
    save_file(tensors, folder / "own.safetensors", {"format": "pt"})  # the configuration names it
    (folder / "model.safetensors").unlink()
    for name, changes in (
        ("config.json", {"dtype": "bfloat16", "attention_dropout": 0.25, "transformers_weights": "own.safetensors"}),
        ("generation_config.json", GENERATION),
        ("tokenizer_config.json", {"padding_side": "left", "truncation_side": "left"}),
        (
            "tokenizer.json",
            {"truncation": {"direction": "Left", "max_length": 300, "strategy": "OnlyFirst", "stride": 3}},
        ),
    ):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))
    return folder


def load(base: Path, lora: LoraOptions | None = LORA) -> Backbone:
    options = ModelOptions(name=str(base), kind="causal", lora=lora, precision="fp32", dropout=0.0)
    backbone = load_backbone(options, Lengths(48, 8), 0)
    disturb(backbone)
    backbone.answer(["the film"], AnswerSpec())  # the tokenizer truncates to the run's length now
    return backbone


def settings(folder: Path) -> dict[str, object]:
    """What the exported files say."""
    read = {name: json.loads((folder / name).read_text()) for name in ("generation_config.json", "tokenizer.json")}
    return {
        "generation": {key: read["generation_config.json"].get(key) for key in GENERATION},
        "truncation": read["tokenizer.json"]["truncation"],
        "padding": read["tokenizer.json"]["padding"],
        "tokenizer": {
            key: json.loads((folder / "tokenizer_config.json").read_text()).get(key)
            for key in ("padding_side", "truncation_side", "pad_token")
        },
    }


@pytest.mark.parametrize(("lora", "merged"), [(None, True), (LORA, True), (LORA, False)])
def test_an_export_has_the_settings_of_the_pretrained_model(
    base: Path, tmp_path: Path, lora: LoraOptions | None, merged: bool
) -> None:
    backbone = load(base, lora)
    export_model(backbone, tmp_path / "out", SPECS, merged)
    assert settings(tmp_path / "out") == settings(base)
    assert settings(base)["generation"] == GENERATION
    assert backbone.tokenizer.padding_side == "right"  # those of the run are back
    assert backbone.tokenizer.pad_token is not None
    if merged:
        configs = [json.loads((folder / "config.json").read_text()) for folder in (base, tmp_path / "out")]
        for config in configs:
            del config["transformers_version"]
        del configs[0]["transformers_weights"]
        assert configs[0] == configs[1]
    if lora is None:  # the rows of a run, likewise, but exact
        backbone.save_weights(tmp_path / "row")
        assert settings(tmp_path / "row") == settings(base)
        stored = load_file(tmp_path / "row" / "model.safetensors")
        assert torch.equal(stored["lm_head.weight"], backbone.model.state_dict()["lm_head.weight"])


def types(folder: Path, name: str = "model.safetensors") -> dict[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in load_file(folder / name).items()}


def test_the_default_type_of_each_tensor_is_that_of_the_pretrained_model(base: Path, tmp_path: Path) -> None:
    backbone = load(base)
    export_model(backbone, tmp_path / "out", SPECS, True)
    assert types(tmp_path / "out") == types(base, "own.safetensors")
    assert set(types(base, "own.safetensors").values()) == {torch.bfloat16, torch.float32}
    export_model(backbone, tmp_path / "half", SPECS, True, "float16")
    assert set(types(tmp_path / "half").values()) == {torch.float16}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"
    for dtype, expected in ((None, torch.float32), ("bfloat16", torch.bfloat16)):
        export_model(backbone, tmp_path / f"adapter {dtype}", SPECS, False, dtype)
        assert set(types(tmp_path / f"adapter {dtype}", "adapter_model.safetensors").values()) == {expected}


@pytest.mark.parametrize("merged", [False, True])
def test_the_card_computes_in_fp32_as_the_run_does(folders: dict[str, Path], tmp_path: Path, merged: bool) -> None:
    base = Path(shutil.copytree(folders["matcher"], tmp_path / "base"))
    half = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(half, base / "model.safetensors", {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    options = ModelOptions(name=str(base), kind="matcher", precision="fp32", lora=LORA)
    backbone = load_backbone(options, Lengths(48, 8), 0)
    disturb(backbone)
    expected = [answer.text for answer in backbone.answer(TEXTS, SPECS["mood"])]
    export_model(backbone, tmp_path / "out", SPECS, merged)
    answers = used_as_the_card_says(tmp_path / "out", tmp_path, backbone.options.name)[0]
    assert answers == expected if not merged else set(answers) <= set(SPECS["mood"].labels or ())


def test_a_cast_keeps_what_is_shared_and_refuses_what_does_not_fit() -> None:
    shared = torch.tensor([1.5, 65504.0])
    tensors = {"a": shared, "b": shared, "count": torch.tensor([3])}
    half = cast(tensors, dict.fromkeys(tensors, torch.float16))
    assert half["a"].data_ptr() == half["b"].data_ptr()
    assert half["count"].dtype == torch.int64
    assert half["a"].tolist() == [1.5, 65504.0]
    for value, dtype in ((70000.0, torch.float16), (3.4e38, torch.bfloat16)):
        with pytest.raises(InputError, match=f"'a' is too large for {str(dtype)[6:]}.*float32"):
            cast({"a": torch.tensor([value])}, {"a": dtype})
