from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from merganser.errors import InputError
from merganser.files.cache import CACHE_VARIABLE
from merganser.models import gguf_file
from merganser.models.base import Lengths
from merganser.models.export import export_model
from merganser.models.loading import load_backbone
from merganser.models.options import ModelOptions
from merganser.streams.answers import AnswerSpec

gguf = pytest.importorskip("gguf", reason="the optional package gguf is not installed")


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key projection in the order of llama.cpp's rotary embedding: halves become pairs."""
    return weight.view(heads, 2, weight.shape[0] // heads // 2, -1).transpose(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def file(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama as a GGUF file in fp32, with its byte-level tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folders["causal"])
    tokenizer = AutoTokenizer.from_pretrained(folders["causal"])
    config, state = model.config, model.state_dict()
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    raw = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in raw["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, tensor in state.items():
        if "q_proj" in name:
            tensor = permuted(tensor, config.num_attention_heads)
        elif "k_proj" in name:
            tensor = permuted(tensor, config.num_key_value_heads)
        stem = name.removesuffix(".weight")
        block = ""
        if stem.startswith("model.layers."):
            number, stem = stem.removeprefix("model.layers.").split(".", 1)
            block = f"blk.{number}."
        writer.add_tensor(f"{block}{names[stem]}.weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_the_model_it_was_made_from(
    file: Path,
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    beside = {"base_model_name_or_path": "nowhere/at-all", "peft_type": "LORA"}
    (file.parent / "adapter_config.json").write_text(json.dumps(beside))  # no part of the file
    lengths, spec = Lengths(32, 4), AnswerSpec(("positive", "negative"), mode="rank")
    from_file = load_backbone(ModelOptions(name=str(file), kind="causal", precision="fp32"), lengths, 0)
    assert capfd.readouterr() == ("", "")
    from_folder = load_backbone(ModelOptions(name=str(folders["causal"]), kind="causal", precision="fp32"), lengths, 0)
    one, two = from_file.module.state_dict(), from_folder.module.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    texts = ["the film was good", "the bank cut its rates"]
    one_said, two_said = from_file.answer(texts, spec), from_folder.answer(texts, spec)
    assert [a.text for a in one_said] == [a.text for a in two_said]
    from_file.save_weights(tmp_path / "adapter")
    assert f'"{file}"' in (tmp_path / "adapter" / "adapter_config.json").read_text()
    export_model(from_file, tmp_path / "merged", {"mood": spec}, True)
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_the_conversion_is_kept(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    folder = gguf_file.convert_gguf(file)
    assert folder.parent == tmp_path / "gguf"
    assert sorted(path.suffix for path in folder.iterdir() if "model" in path.name) == [".safetensors"]
    assert not list((tmp_path / "gguf").rglob("*.partial"))

    def fail(_: Path) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(gguf_file, "read_gguf", fail)
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(file.read_bytes())
    assert gguf_file.convert_gguf(copy) == folder


@pytest.mark.parametrize("size", [0, 19, 3680, -1000])
def test_a_file_that_is_no_whole_gguf(size: int, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(file.read_bytes()[:size] or b"nothing of the kind")
    with pytest.raises(InputError, match=r"bad\.gguf could not be read as a GGUF model"):
        gguf_file.convert_gguf(bad)
    assert [path.suffix for path in (tmp_path / "cache" / "gguf").iterdir()] == [".lock"]


def test_a_full_disk_is_no_fault_of_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_file, "temporary_folder", full)
    with pytest.raises(OSError, match="No space left"):
        gguf_file.read_gguf(file)


def test_a_cache_that_cannot_be_written(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "occupied").write_text("a file, not a folder")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "occupied"))
    with pytest.raises(InputError, match="Cannot create") as error:
        gguf_file.convert_gguf(file)
    assert CACHE_VARIABLE in error.value.remedy
