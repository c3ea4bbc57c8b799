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


def of_architecture(name: str) -> nn.Module:
    """A model of one or two blocks and a few hundred weights, made without files."""
    import transformers as t

    small = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    return {
        "bert": lambda: t.BertModel(t.BertConfig(vocab_size=20, **small)),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(vocab_size=20, num_key_value_heads=1, **small)),
        "t5": lambda: t.T5ForConditionalGeneration(
            t.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        ),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=2, n_head=2)),
        "vit": lambda: t.ViTModel(t.ViTConfig(image_size=8, patch_size=4, **small)),
    }[name]()


@pytest.mark.parametrize(
    ("name", "linear", "mlp"),
    [
        ("bert", 2 * 6, {"intermediate.dense", "output.dense"}),
        ("llama", 2 * 7, {"gate_proj", "up_proj", "down_proj"}),
        ("t5", 2 * 4 + 4 + 2 * 2, {"wi", "wo"}),
        ("gpt2", 2 * 4, {"mlp.c_fc", "mlp.c_proj"}),
        ("vit", 2 * 6, {"fc1", "fc2"}),
    ],
)
def test_all_linear_and_mlp_are_found_by_looking_at_the_model(name: str, linear: int, mlp: set[str]) -> None:
    from merganser.models.lora import add_lora

    for targets in ("all-linear", "mlp"):
        model = of_architecture(name)
        kind = "seq2seq" if name == "t5" else "matcher" if name in ("bert", "vit") else "causal"
        wrapped = add_lora(model, LoraOptions(r=2, targets=targets), kind, name, 0)
        got = [n.split(".lora_A.")[0] for n, p in wrapped.named_parameters() if p.requires_grad and ".lora_A." in n]
        assert not any("lm_head" in module or "pooler" in module for module in got)
        if targets == "all-linear":
            assert len(got) == linear
        else:
            assert not any("attention." in module or "attn" in module for module in got)
            assert all(any(module.endswith(f".{ending}") for ending in mlp) for module in got)
            assert len(got) == (4 if name == "t5" else 2 * len(mlp))


def test_without_blocks_there_is_no_mlp() -> None:
    with pytest.raises(InputError, match=r"no such layers \(lora.targets: mlp\)"):
        find_targets(layers("q_proj", "v_proj"), "mlp")


def test_rslora_scales_by_the_root_of_the_rank(load: Loader, tmp_path: Path) -> None:
    from peft.tuners.lora import LoraLayer

    from merganser.checkpoints.adapters.source import read_adapter

    backbone = load("matcher", lora=LoraOptions(r=4, alpha=6, rslora=True))
    layers = [module for module in backbone.model.modules() if isinstance(module, LoraLayer)]
    assert {scaling for layer in layers for scaling in layer.scaling.values()} == {3.0}  # 6 / sqrt(4), and not 6 / 4
    assert backbone.options.lora is not None
    assert backbone.options.lora.scaling == 3.0
    backbone.save_weights(tmp_path / "one")
    assert {factors.scaling for factors in read_adapter(str(tmp_path / "one")).modules.values()} == {3.0}
    # Stacked: rank 8 at the same scaling, so alpha = 3 sqrt(8).
    backbone.stack_adapter(1)
    backbone.save_weights(tmp_path / "two")
    stacked = read_adapter(str(tmp_path / "two"))
    assert stacked.config["r"] == 8
    assert stacked.config["lora_alpha"] == pytest.approx(8.48528137423857)
    assert all(factors.scaling == pytest.approx(3.0) for factors in stacked.modules.values())
    before = {name: p.clone() for name, p in backbone.model.named_parameters()}
    backbone.load_weights(tmp_path / "two")
    assert all(torch.equal(p, before[name]) for name, p in backbone.model.named_parameters())


def test_dora_starts_as_the_pretrained_model_and_resets_to_it(load: Loader, tmp_path: Path) -> None:
    spec_texts = ["the film was good", "a bad film"]

    def vectors(backbone: object) -> torch.Tensor:
        encoded = backbone.tokenizer(spec_texts, padding=True, return_tensors="pt")  # type: ignore[attr-defined]
        with torch.no_grad():
            return backbone.model.eval()(**encoded).last_hidden_state  # type: ignore[attr-defined]

    plain, dora = load("matcher"), load("matcher", lora=LoraOptions(dora=True))
    assert torch.allclose(vectors(plain), vectors(dora), atol=1e-5)
    magnitudes = {name: p for name, p in dora.trainable().items() if "magnitude" in name}
    assert len(magnitudes) == 4
    before = {name: p.clone() for name, p in dora.trainable().items()}
    with torch.no_grad():
        for parameter in dora.trainable().values():
            parameter.mul_(1.5).add_(0.1)
    trained = vectors(dora)
    dora.save_weights(tmp_path / "dora")
    dora.reset(0)
    assert all(torch.equal(p, before[name]) for name, p in magnitudes.items())
    dora.load_weights(tmp_path / "dora")
    assert torch.equal(vectors(dora), trained)


@pytest.mark.parametrize("method", [{"name": "olora"}, {"name": "kmerge"}, {"name": "trm", "space": "updates"}])
def test_dora_is_refused_where_updates_are_merged(method: dict[str, str]) -> None:
    from merganser.config import check_config

    model = {"name": "m", "kind": "causal", "lora": {"dora": True}}
    with pytest.raises(InputError, match=rf"'{method['name']}' merges the updates B A.*would not be exact"):
        check_config({"model": model, "method": method}, "file")
    assert check_config({"model": model, "method": {"name": "aim"}}, "file").model.lora.dora  # type: ignore[union-attr]
