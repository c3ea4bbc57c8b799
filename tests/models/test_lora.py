from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from merganser.errors import InputError
from merganser.models.lora import find_targets
from merganser.models.options import LoraOptions
from tests.models.conftest import Loader


def layers(*names: str) -> nn.Module:
    """A model whose one block has linear layers of these names, beside a normalisation."""
    block = nn.ModuleDict({name: nn.Linear(4, 4) for name in names})
    block["norm"] = nn.LayerNorm(4)
    return nn.ModuleDict({"attention": block})


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("q_proj", "k_proj", "v_proj", "o_proj"), ["q_proj", "v_proj"]),
        (("query", "key", "value", "dense"), ["query", "value"]),
        (("q", "k", "v", "o", "wi"), ["q", "v"]),
        (("q_lin", "k_lin", "v_lin", "out_lin"), ["q_lin", "v_lin"]),
        (("query_proj", "key_proj", "value_proj"), ["query_proj", "value_proj"]),
        (("to_q", "to_k", "to_v"), ["to_q", "to_v"]),
        (("c_attn", "c_proj", "c_fc"), ["c_attn"]),
        (("qkv_proj", "o_proj"), ["qkv_proj"]),
        (("query_key_value", "dense"), ["query_key_value"]),
        (("Wqkv", "out_proj"), ["Wqkv"]),
    ],
)
def test_auto_finds_query_and_value(names: tuple[str, ...], found: list[str]) -> None:
    assert find_targets(layers(*names), "auto") == found


def test_auto_without_attention_lists_the_layers() -> None:
    with pytest.raises(InputError, match=r"No query and value.*'up' \(1\), 'down' \(1\)"):
        find_targets(layers("up", "down"), "auto")


def test_unknown_target_names_the_nearest_and_lists_the_real_ones() -> None:
    with pytest.raises(InputError) as error:
        find_targets(layers("q_proj", "k_proj", "v_proj"), ["q_proj", "v_prj"])
    assert "'v_prj'" in error.value.cause
    assert "Did you mean 'v_proj'?" in error.value.remedy
    assert "'k_proj' (1)" in error.value.remedy


def test_target_that_is_no_linear_layer_is_refused() -> None:
    with pytest.raises(InputError, match="no linear layer 'norm'"):
        find_targets(layers("q_proj"), ["norm"])


def test_longer_endings_choose_among_layers_of_the_same_name(load: Loader) -> None:
    backbone = load("matcher", lora=LoraOptions(targets=["attention.output.dense"]))
    assert len(backbone.trainable()) == 2 * 2  # two layers, A and B
    assert all("attention.output.dense" in name for name in backbone.trainable())


def test_the_unread_pooler_gets_no_factors(load: Loader) -> None:
    backbone = load("matcher", lora=LoraOptions(targets=["dense"]))
    assert len(backbone.trainable()) == 2 * 2 * 3  # attention output, intermediate, output
    assert not any("pooler" in name for name in backbone.trainable())


def test_gpt2_with_transposed_layers(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from merganser.models.lora import add_lora

    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=1, n_head=2))
    wrapped = add_lora(model, LoraOptions(r=2), "causal", "gpt2", 0)
    shapes = {n.split(".")[-3]: tuple(p.shape) for n, p in wrapped.named_parameters() if p.requires_grad}
    assert shapes == {"lora_A": (2, 8), "lora_B": (24, 2)}
    assert wrapped.peft_config["default"].fan_in_fan_out


def test_factors_depend_on_the_seed_alone(load: Loader) -> None:
    torch.manual_seed(11)
    one = load("seq2seq", seed=3).trainable()
    torch.manual_seed(99)
    two = load("seq2seq", seed=3).trainable()
    other = load("seq2seq", seed=4).trainable()
    assert list(one) == sorted(one)
    assert all(torch.equal(one[name], two[name]) for name in one)
    drawn = [name for name in one if "lora_A" in name]
    assert drawn
    assert all(not torch.equal(one[name], other[name]) for name in drawn)
    for name in drawn:  # Kaiming with a = sqrt 5: uniform within 1 / sqrt(fan in)
        assert 0.5 / 32**0.5 < one[name].abs().max() <= 1 / 32**0.5
    assert all(parameter.count_nonzero() == 0 for name, parameter in one.items() if "lora_B" in name)


def test_loading_leaves_the_random_state_alone(load: Loader) -> None:
    for lora in (LoraOptions(), None):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        load("matcher", lora=lora).reset(7)
        assert torch.equal(torch.rand(3), expected)
