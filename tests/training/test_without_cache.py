"""No keys and values are kept while losses are measured and learned from, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from merganser.training.rehearsal import measure_loss, without_cache
from tests import tiny

KINDS = ("seq2seq", "causal")


def model_and_batch(kind: str, folder: Path, lora: bool) -> tuple[Any, dict[str, torch.Tensor]]:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, LlamaForCausalLM, T5ForConditionalGeneration

    (tiny.tiny_t5 if kind == "seq2seq" else tiny.tiny_llama)(folder)
    model: Any = (T5ForConditionalGeneration if kind == "seq2seq" else LlamaForCausalLM).from_pretrained(folder)
    if lora:
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q"] if kind == "seq2seq" else ["q_proj"]))
    ids = AutoTokenizer.from_pretrained(folder)(tiny.TEXTS[0], return_tensors="pt")["input_ids"][:, :12]
    return model.eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [False, True])
def test_losses_and_gradients_are_the_same_bits_and_no_cache_is_made(kind: str, lora: bool, tmp_path: Path) -> None:
    model, batch = model_and_batch(kind, tmp_path, lora)
    ordinary = model(**batch)
    assert ordinary["past_key_values"] is not None
    ordinary["loss"].backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with without_cache(model):
        lean = model(**batch)
        lean["loss"].backward()
    assert lean.get("past_key_values") is None
    assert torch.equal(lean["loss"], ordinary["loss"])
    assert expected
    for name, parameter in model.named_parameters():
        assert (name in expected) == (parameter.grad is not None)
        assert name not in expected or torch.equal(parameter.grad, expected[name])
    assert measure_loss(model, batch) == ordinary["loss"].item()
    assert model(**batch)["past_key_values"] is not None  # as before


def test_an_error_restores_the_setting(tmp_path: Path) -> None:
    model, _ = model_and_batch("causal", tmp_path, lora=False)

    def fail() -> None:
        with without_cache(model):
            assert model.config.use_cache is False
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert model.config.use_cache is True
    model.config.use_cache = False
    with without_cache(torch.nn.Sequential(model)), without_cache(model):
        pass
    assert model.config.use_cache is False
