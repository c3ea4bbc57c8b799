from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from merganser.errors import InputError
from merganser.models.base import Backbone, Lengths
from merganser.models.export import export_model
from merganser.models.loading import load_backbone
from merganser.models.options import LoraOptions, ModelOptions
from merganser.streams.answers import AnswerSpec
from tests.models.conftest import Loader, disturb

SPECS = {"mood": AnswerSpec(("positive", "negative"), mode="rank")}
IDS = torch.arange(10, 40)[None]


def tied(folder: Path, folders: dict[str, Path], which: str) -> Path:
    """A decoder whose output layer is its input embedding, with the tiny tokenizer."""
    from transformers import AutoTokenizer

    torch.manual_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(folders["causal"])
    size: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
    }
    model: Any
    if which == "llama":
        shape = {"num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
        model = LlamaForCausalLM(LlamaConfig(**size, **shape, hidden_size=16, initializer_range=0.3))
    else:
        model = GPT2LMHeadModel(GPT2Config(**size, n_embd=16, n_layer=1, n_head=2, initializer_range=0.3))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def learned(folder: Path, targets: list[str]) -> Backbone:
    lora = LoraOptions(r=2, alpha=6, dropout=0, targets=targets)
    options = ModelOptions(name=str(folder), kind="causal", lora=lora, precision="fp32")
    backbone = load_backbone(options, Lengths(32, 8), 0)
    disturb(backbone)
    return backbone


@pytest.mark.parametrize(("which", "inner"), [("llama", "q_proj"), ("gpt2", "c_attn")])
def test_the_update_of_a_tied_output_layer_is_not_the_embeddings(
    which: str, inner: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    base = tied(tmp_path / "base", folders, which)
    backbone = learned(base, [inner, "lm_head"])
    model: Any = backbone.model
    # By hand: the pretrained weights, with (alpha / r) B A added to the layers named, lm_head a matrix of its own.
    by_hand = AutoModelForCausalLM.from_pretrained(base)
    by_hand.lm_head.weight = torch.nn.Parameter(by_hand.lm_head.weight.detach().clone())
    layers = dict(by_hand.named_modules())
    factors = {name.removeprefix("base_model.model."): p for name, p in model.named_parameters() if "lora_" in name}
    for name, a in factors.items():
        if ".lora_A." in name:
            update = 6 / 2 * factors[name.replace("lora_A", "lora_B")] @ a
            weight = layers[name.partition(".lora_A.")[0]].weight
            weight.data += update.T if inner == "c_attn" and "c_attn" in name else update
    export_model(backbone, tmp_path / "out", SPECS, True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        expected, answered, live = (m.eval()(input_ids=IDS).logits for m in (by_hand, merged, model))
    assert torch.allclose(answered, expected, atol=1e-4)
    assert torch.allclose(answered, live, atol=1e-4)
    assert config["tie_word_embeddings"] is False
    assert model.get_base_model().config.tie_word_embeddings  # the run's own model is as it was
    assert model.get_base_model().get_input_embeddings().weight is model.get_base_model().lm_head.base_layer.weight


def test_a_tied_model_without_factors_there_stays_tied(folders: dict[str, Path], tmp_path: Path) -> None:
    base = tied(tmp_path / "base", folders, "llama")
    export_model(learned(base, ["q_proj"]), tmp_path / "out", SPECS, True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert (tmp_path / "out" / "model.safetensors").stat().st_size == (base / "model.safetensors").stat().st_size


def test_where_they_cannot_be_stored_apart_it_is_refused(load: Loader, tmp_path: Path) -> None:
    backbone = load("seq2seq", lora=LoraOptions(r=2, targets=["q", "lm_head"]))
    with pytest.raises(InputError, match=r"'lm_head' has factors and shares its matrix.*without --merged"):
        export_model(backbone, tmp_path / "out", SPECS, True)
    assert not any((tmp_path / "out").iterdir())
    export_model(backbone, tmp_path / "adapter", SPECS, False)
    export_model(load("seq2seq"), tmp_path / "other", SPECS, True)
