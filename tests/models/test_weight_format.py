"""Weights in bf16 and quantised ones: what is held, what is trained, what is refused, what an export is worth."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from merganser.errors import InputError
from merganser.models import weight_format
from merganser.models.base import Backbone
from merganser.models.export import export_model
from merganser.models.loading import load_backbone
from merganser.models.options import LoraOptions, ModelOptions
from merganser.models.precision import autocast
from merganser.models.weight_format import resolve_weights
from merganser.streams.answers import AnswerSpec
from merganser.streams.task import Example
from tests.models.conftest import LENGTHS, Loader, disturb

RANK = AnswerSpec(("positive", "negative"), mode="rank")
TEXTS = ["the film was good", "a bad film with a weak story"]


def options(**values: Any) -> ModelOptions:
    return ModelOptions.model_validate({"name": "m", "kind": "causal", **values})


@pytest.mark.parametrize(
    ("values", "precision", "stored", "held"),
    [
        ({}, "bf16", torch.bfloat16, "bf16"),
        ({}, "bf16", "bfloat16", "bf16"),
        ({}, "fp32", torch.bfloat16, "fp32"),  # bf16 is emulated there
        ({}, "bf16", torch.float16, "fp32"),  # would be rounded
        ({}, "bf16", None, "fp32"),
        ({"lora": None}, "bf16", torch.bfloat16, "fp32"),  # all are trained
        ({"name": "m.gguf"}, "bf16", torch.bfloat16, "fp32"),  # de-quantised to fp32
        ({"weights": "bf16"}, "bf16", torch.float32, "bf16"),
        ({"weights": "4bit"}, "fp32", torch.float32, "4bit"),
    ],
)
def test_weights_are_held_so(values: dict[str, Any], precision: Any, stored: Any, held: str) -> None:
    assert resolve_weights(options(**values), precision, SimpleNamespace(dtype=stored)) == held


@pytest.mark.parametrize("weights", ["bf16", "8bit", "4bit"])
def test_trained_weights_are_fp32(weights: str) -> None:
    with pytest.raises(ValidationError, match=f"weights: {weights} holds frozen weights, and without lora all are"):
        options(lora=None, weights=weights)


def test_bf16_weights_are_multiplied_in_bf16() -> None:
    with pytest.raises(ValidationError, match="multiplied in bf16, and precision is fp32"):
        options(weights="bf16", precision="fp32")


def test_weights_that_are_quantised_already_are_refused() -> None:
    with pytest.raises(InputError, match="quantised in its files") as error:
        resolve_weights(options(), "fp32", SimpleNamespace(quantization_config={"quant_method": "gptq"}))
    assert "4bit" in error.value.remedy


def test_without_bitsandbytes_or_on_another_device_4bit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    four = options(weights="4bit")
    with monkeypatch.context() as patch:
        patch.setattr(weight_format, "model_device", lambda: torch.device("xla"))
        with pytest.raises(
            InputError, match=r"4bit cannot be used on this device \(xla\): bitsandbytes supports.*cuda"
        ):
            resolve_weights(four, "fp32", None)
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(InputError, match="4bit needs the package bitsandbytes") as error:
            resolve_weights(four, "fp32", None)
        assert "merganser[" in error.value.remedy
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: object())
        patch.setitem(sys.modules, "bitsandbytes", None)  # its import fails
        with pytest.raises(InputError, match="4bit needs bitsandbytes, which cannot be imported"):
            resolve_weights(four, "fp32", None)


def nbytes(backbone: Backbone) -> int:
    return sum(p.numel() * p.element_size() for p in backbone.module.parameters() if not p.requires_grad)


def test_bf16_halves_the_frozen_weights_and_trains_in_fp32(load: Loader) -> None:
    for which in ("causal", "seq2seq", "matcher"):
        plain, half = load(which), load(which, weights="bf16", precision="auto")
        assert half.precision == "bf16"
        assert nbytes(half) * 2 == nbytes(plain)
        assert {p.dtype for p in half.trainable().values()} == {torch.float32}
        disturb(half)
        batch = half.collate(half.features([Example(text, "positive") for text in TEXTS], RANK))
        with autocast(half.device, half.precision):
            loss = half.module(**batch)["loss"]
        assert loss.dtype == torch.float32
        loss.backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in half.trainable().values())
        half.stack_adapter(3)
        assert {p.dtype for n, p in half.module.named_parameters() if ".lora_" in n} == {torch.float32}
        assert len(half.answer(TEXTS, RANK)) == 2


def test_a_bf16_base_is_merged_in_fp32_and_rounded_once(load: Loader, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    backbone = load("causal", weights="bf16", precision="auto", lora=LoraOptions(r=2, alpha=3))
    disturb(backbone, size=0.1)
    export_model(backbone, tmp_path / "out", {"t": RANK}, True, "bfloat16")
    name = "model.layers.0.self_attn.q_proj"
    base = load_file(Path(backbone.options.name) / "model.safetensors")[f"{name}.weight"].bfloat16().float()
    factors = {n.split(".lora_")[1][0]: p for n, p in backbone.trainable().items() if name in n}
    expected = (base + 1.5 * factors["B"] @ factors["A"]).bfloat16()
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")[f"{name}.weight"], expected)
    assert {p.dtype for n, p in backbone.model.named_parameters() if "lora_" not in n} == {torch.bfloat16}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2, whose layers are transposed."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from tests import tiny

    root = tmp_path_factory.mktemp("gpt2")
    tokenizer = AutoTokenizer.from_pretrained(tiny.tiny_llama(root / "llama"))
    torch.manual_seed(0)
    shape = {"vocab_size": len(tokenizer), "n_positions": 64, "n_embd": 64, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**shape, initializer_range=0.3, bos_token_id=1, eos_token_id=2))
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    return root / "model"


@pytest.mark.parametrize("which", ["causal", "seq2seq", "matcher", "gpt2"])
def test_4bit_is_merged_into_its_dequantised_values(load: Loader, gpt2: Path, which: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    lora = LoraOptions(r=2, alpha=4, targets="all-linear")
    if which == "gpt2":
        asked = {"name": str(gpt2), "kind": "causal", "lora": lora, "precision": "fp32", "weights": "4bit"}
        backbone = load_backbone(ModelOptions.model_validate(asked), LENGTHS, 0)
    else:
        backbone = load(which, weights="4bit", lora=lora)
    disturb(backbone, size=0.1)
    backbone.stack_adapter(5)
    disturb(backbone, size=0.1)
    before = [answer.score for answer in backbone.answer(TEXTS, RANK)]
    export_model(backbone, tmp_path / "out", {"t": RANK}, True)
    written = load_file(tmp_path / "out" / "model.safetensors")
    layers = {n: m for n, m in backbone.model.get_base_model().named_modules() if hasattr(m, "get_delta_weight")}
    assert layers
    for name, layer in layers.items():
        base = layer.get_base_layer().weight
        if hasattr(base, "quant_state"):  # transformers leaves T5's last layer of a block as it is
            base = nf4(base)
        expected = base + sum(layer.get_delta_weight(adapter) for adapter in ("frozen", "default"))
        found = written[f"{name}.weight"]
        torch.testing.assert_close(found.T if which == "gpt2" else found, expected, atol=1e-5, rtol=1e-5)
    if which != "matcher":  # whose labels the pretrained model embeds
        plain = ModelOptions(name=str(tmp_path / "out"), kind=backbone.kind, lora=None, precision="fp32")
        merged = load_backbone(plain, LENGTHS, 0)
        assert [answer.score for answer in merged.answer(TEXTS, RANK)] == pytest.approx(before, abs=1e-3)
    assert [answer.score for answer in backbone.answer(TEXTS, RANK)] == before  # unchanged by the export


CODE = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]
"""The values of NF4 (Dettmers et al. 2023, appendix E)."""


def nf4(weight: Any) -> torch.Tensor:
    """De-quantise doubly quantised NF4 weights by the definition: two codes per byte, a scale per 64 values."""
    state = weight.quant_state
    packed = weight.data.flatten().int()
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten()
    scales = state.state2.code[state.absmax.long()]  # 8-bit codes, with a scale of their own per 256
    scales = scales * state.state2.absmax.repeat_interleave(256)[: len(scales)] + state.offset
    values = torch.tensor(CODE)[codes] * scales.repeat_interleave(64)[: len(codes)]
    return values[: state.shape.numel()].view(state.shape)


def test_answering_leaves_4bit_weights_as_they_are(load: Loader) -> None:
    """Whatever the processor: a run that is resumed in the middle of a task has not answered before it trains."""
    backbone = load("causal", weights="4bit")
    layers = [m for m in backbone.model.modules() if hasattr(getattr(m, "weight", None), "quant_state")]
    before = [(layer.weight.data.clone(), layer.weight.quant_state.absmax.clone()) for layer in layers]
    backbone.answer(TEXTS, RANK)
    assert layers
    for layer, (packed, scales) in zip(layers, before, strict=True):
        assert torch.equal(layer.weight.data, packed)
        assert torch.equal(layer.weight.quant_state.absmax, scales)


def test_a_kernel_that_reads_rows_wrongly_is_refused(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes.functional

    right = bitsandbytes.functional.dequantize_4bit

    def wrong(packed: torch.Tensor, state: Any) -> torch.Tensor:
        values = right(packed, state)
        return values if len(state.shape) == 1 else values + 1

    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", wrong)
    narrow, wide = (options(name=str(folders[which]), weights="4bit") for which in ("causal", "wide causal"))
    with pytest.raises(
        InputError, match=r"4-bit weights of .* are read wrongly .*q_proj has rows of 32 values"
    ) as said:
        load_backbone(narrow, LENGTHS, 0)
    assert "8bit or bf16" in said.value.remedy
    load_backbone(wide, LENGTHS, 0)


def test_8bit_answers_trains_and_is_merged(load: Loader, tmp_path: Path) -> None:
    backbone = load("causal", weights="8bit")
    disturb(backbone, size=0.1)
    batch = backbone.collate(backbone.features([Example("a film", "positive")], RANK))
    backbone.module(**batch)["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.trainable().values())
    before = [answer.score for answer in backbone.answer(TEXTS, RANK)]
    export_model(backbone, tmp_path / "out", {"t": RANK}, True)
    merged = load_backbone(
        ModelOptions(name=str(tmp_path / "out"), kind="causal", lora=None, precision="fp32"), LENGTHS, 0
    )
    after = [answer.score for answer in merged.answer(TEXTS, RANK)]
    assert after == pytest.approx(before, abs=0.2)  # activations are quantised, too, and these models are noise


def test_dora_of_a_quantised_base_is_merged(load: Loader, tmp_path: Path) -> None:
    backbone = load("causal", weights="4bit", lora=LoraOptions(r=2, dora=True))
    disturb(backbone, size=0.1)
    before = [answer.score for answer in backbone.answer(TEXTS, RANK)]
    export_model(backbone, tmp_path / "out", {"t": RANK}, True)
    plain = ModelOptions(name=str(tmp_path / "out"), kind="causal", lora=None, precision="fp32")
    assert [a.score for a in load_backbone(plain, LENGTHS, 0).answer(TEXTS, RANK)] == pytest.approx(before, abs=1e-3)
