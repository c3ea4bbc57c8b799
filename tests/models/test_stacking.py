"""Adapters whose rank grows: nothing learned changes, in the model, on disk and in PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from merganser.errors import InputError
from merganser.models.base import Backbone
from merganser.models.export import export_model
from merganser.models.options import LoraOptions
from merganser.models.stacking import FROZEN, lora_a_pairs, total_rank
from merganser.streams.answers import AnswerSpec
from tests.models.conftest import Loader, disturb

LORA = LoraOptions(r=2, alpha=6, dropout=0.5)
TEXTS = ["the film was good", "a bad film with a weak story", "the bank cut its rates"]
SPEC = AnswerSpec(("positive", "negative", "business"), mode="rank")


def scores(backbone: Backbone) -> list[float]:
    return [answer.score for answer in backbone.answer(TEXTS, SPEC)]


def stacked(backbone: Backbone, times: int = 2) -> Backbone:
    for number in range(times):
        disturb(backbone, seed=number)
        backbone.stack_adapter(10 + number)
    disturb(backbone, seed=9)
    return backbone


@pytest.mark.parametrize("kind", ["seq2seq", "causal", "matcher"])
def test_stacking_leaves_the_answers_and_trains_new_factors_alone(load: Loader, kind: str) -> None:
    backbone = load(kind, lora=LORA)
    fresh = backbone.trainable()
    disturb(backbone)
    before = scores(backbone)
    backbone.stack_adapter(5)
    assert scores(backbone) == pytest.approx(before, abs=1e-6)
    assert backbone.trainable().keys() == fresh.keys()
    assert total_rank(backbone.model) == 4
    expected = load(kind, lora=LORA, seed=5).trainable()
    assert all(torch.equal(value, expected[name]) for name, value in backbone.trainable().items())
    backbone.stack_adapter(6)
    assert scores(backbone) == pytest.approx(before, abs=1e-6)
    assert {len(old) for old, _ in lora_a_pairs(backbone.module)} == {4}


@pytest.mark.parametrize("kind", ["seq2seq", "matcher"])
def test_a_stacked_adapter_comes_back_bit_for_bit(load: Loader, tmp_path: Path, kind: str) -> None:
    backbone = load(kind, lora=LORA)
    backbone.save_weights(tmp_path / "start")
    start = scores(backbone)
    stacked(backbone)
    expected = scores(backbone)
    backbone.save_weights(tmp_path / "stacked")
    config = json.loads((tmp_path / "stacked" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (6, 18)
    stored = load_file(tmp_path / "stacked" / "adapter_model.safetensors")
    assert {t.shape[0] if ".lora_A." in n else t.shape[1] for n, t in stored.items()} == {6}
    disturb(backbone, seed=4)
    backbone.load_weights(tmp_path / "stacked")
    assert scores(backbone) == expected
    other = load(kind, lora=LORA, seed=7)
    other.load_weights(tmp_path / "stacked")
    assert scores(other) == expected
    other.save_weights(tmp_path / "again")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in stored.items())
    other.load_weights(tmp_path / "start")
    assert scores(other) == start
    assert FROZEN not in other.model.peft_config  # type: ignore[operator]
    backbone.reset(0)
    assert scores(backbone) == start


@pytest.mark.parametrize("merged", [False, True])
def test_plain_peft_reads_a_stacked_adapter(load: Loader, tmp_path: Path, merged: bool) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    backbone = stacked(load("matcher", lora=LORA))
    export_model(backbone, tmp_path / "out", {"mood": SPEC}, merged)
    if merged:
        plain = AutoModel.from_pretrained(tmp_path / "out")
    else:
        plain = PeftModel.from_pretrained(AutoModel.from_pretrained(backbone.options.name), str(tmp_path / "out"))
        assert "(r 6, alpha 18)" in (tmp_path / "out" / "README.md").read_text()
    batch = backbone.tokenizer(TEXTS[:1], return_tensors="pt")
    with torch.no_grad():
        expected = backbone.model.eval()(input_ids=batch["input_ids"]).last_hidden_state
        found = plain.eval()(input_ids=batch["input_ids"]).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_new_labels_are_embedded_without_any_factors_and_leave_the_earlier_ones_frozen(load: Loader) -> None:
    plain, backbone = load("matcher", lora=LORA), stacked(load("matcher", lora=LORA))
    trained = set(backbone.trainable())
    assert torch.equal(backbone.label_vectors(SPEC), plain.label_vectors(SPEC))  # type: ignore[attr-defined]
    assert set(backbone.trainable()) == trained
    assert not any(FROZEN in name for name in trained)
    backbone.module.train()
    assert scores(backbone)
    assert set(backbone.trainable()) == trained


def test_what_cannot_be_a_stacked_adapter_is_refused(load: Loader, tmp_path: Path) -> None:
    """A higher rank alone is no stack: the scaling must be the same."""
    load("matcher", lora=LoraOptions(r=4, alpha=6)).save_weights(tmp_path)
    backbone = load("matcher", lora=LORA)
    with pytest.raises(InputError, match="has r = 4, the model has r = 2"):
        backbone.load_weights(tmp_path)
    with pytest.raises(InputError, match="There is no adapter to stack"):
        load("matcher", lora=None).stack_adapter(0)
