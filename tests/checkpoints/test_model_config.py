"""Configurations: which settings must agree, and which may differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merganser.checkpoints.merge import merge_checkpoints
from merganser.checkpoints.model_config import check_configs, refuse_unknown_keys
from merganser.checkpoints.recipe_file import parse
from merganser.checkpoints.vocabularies.tied_names import tie_setting
from merganser.errors import InputError
from tests.checkpoints.conftest import example, write_folder

LLAMA = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
QWEN = {"model_type": "qwen2", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
T5 = {"model_type": "t5", "d_model": 32, "num_heads": 4}
GEMMA = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 32, "rope_theta": 1e6}}
OTHER = {"model_type": "unheard-of", "hidden_size": 32, "num_attention_heads": 4, "rope_theta": 1e4}


def refusal(first: dict[str, Any], second: dict[str, Any], *allowed: str, common_only: bool = False) -> str:
    try:
        check_configs(("A", first), ("B", second), allowed, common_only)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (LLAMA, {"rope_theta": 1e6}, r"rope_theta is 10000\.0 in A, 1000000\.0 in B"),
        (LLAMA, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "rope_theta is 10000.0 in A"),
        (LLAMA, {"rope_scaling": {"type": "linear", "factor": 8.0}}, r"factor is not set in A, 8\.0 in B"),
        (LLAMA, {"num_attention_heads": 8}, "num_attention_heads is 4 in A, 8 in B"),
        (LLAMA, {"head_dim": 16}, "head_dim is 8 in A, 16 in B"),
        (LLAMA, {"num_key_value_heads": 2}, "num_key_value_heads is 4 in A, 2 in B"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act is 'silu' in A, 'gelu' in B"),
        (LLAMA, {"rms_norm_eps": 1e-2}, "rms_norm_eps is 1e-06 in A, 0.01 in B"),
        (LLAMA, {"tie_word_embeddings": True}, "tie_word_embeddings is False in A, True in B"),
        (LLAMA, {"num_hidden_layers": 1}, "num_hidden_layers is 2 in A, 1 in B"),
        (QWEN, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "sliding_window"),
        (T5, {"relative_attention_num_buckets": 16}, "relative_attention_num_buckets is 32 in A, 16 in B"),
        (T5, {"feed_forward_proj": "gelu"}, "feed_forward_proj is 'relu' in A, 'gelu' in B"),
        (
            GEMMA,
            {"text_config": {"model_type": "gemma3_text", "hidden_size": 32, "rope_theta": 1e4}},
            "text_config.*rope_t",
        ),
        ({"model_type": "roberta"}, {"pad_token_id": 0}, "pad_token_id is 1 in A, 0 in B"),
        (OTHER, {"rope_theta": 1e6}, "rope_theta"),
        (OTHER, {"gate": "x"}, "gate is not set in A, 'x' in B"),
        (OTHER, {"a; rm x": 1}, "--allow-config 'a; rm x'"),
        ({**LLAMA, "id2label": {"0": "yes", "1": "no"}}, {"id2label": {"0": "no", "1": "yes"}}, "id2label"),
        (
            LLAMA | {"rope_scaling": LLAMA3},
            {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64}},
            "original_max_position_embeddings is 32 in A, 64 in B",
        ),
        (LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, {"max_position_embeddings": 99}, "max_position"),
    ],
)
def test_a_setting_that_changes_the_function_is_refused(config: Any, changes: Any, message: str) -> None:
    import re

    said = refusal(config, {**config, **changes})
    assert re.search(message, said), said
    assert "--allow-config" in said


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (LLAMA, {"torch_dtype": "bfloat16", "_name_or_path": "x", "transformers_version": "4.1.0", "use_cache": False}),
        (
            LLAMA,
            {"architectures": ["LlamaModel"], "attention_dropout": 0.1, "initializer_range": 0.5, "pretraining_tp": 2},
        ),
        (LLAMA, {"eos_token_id": [2, 7], "bos_token_id": 9, "pad_token_id": 3, "max_position_embeddings": 9}),
        (LLAMA, {"unsloth_version": "1", "made_with": {"tool": 3}}),
        # Omitted keys, and keys of older files.
        (
            LLAMA,
            {"rope_theta": 10000, "num_key_value_heads": 4, "head_dim": 8, "hidden_act": "silu", "mlp_bias": False},
        ),
        (LLAMA, {"rope_theta": 1e4, "rope_scaling": None, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}),
        (LLAMA, {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
        (
            LLAMA | {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 8.0}},
            {"rope_theta": None, "rope_scaling": None}
            | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}},
        ),
        (QWEN, {"use_sliding_window": False, "sliding_window": 9, "max_window_layers": 1}),
        (GEMMA, {"text_config": {**GEMMA["text_config"], "dtype": "float32", "rms_norm_eps": 1e-6}}),
        ({"model_type": "phi3"}, {"original_max_position_embeddings": 7}),
        (OTHER, {"rope_theta": None, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}, "head_dim": 8}),
        (LLAMA, {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}),
        ({}, LLAMA),
    ],
)
def test_what_does_not_change_the_function_may_differ(config: Any, changes: Any) -> None:
    assert refusal(config, {**config, **changes}) == ""
    assert refusal({**config, **changes}, config) == ""


def test_a_configuration_that_is_nested_too_deeply_is_refused() -> None:
    nested: dict[str, Any] = {}
    for _ in range(60):
        nested = {"text_config": nested}
    assert "nested more than 50 deep" in refusal(LLAMA, {**LLAMA, **nested})


@pytest.mark.parametrize("key", ["rope_theta", "rope_parameters", "rope_parameters.rope_theta"])
def test_a_key_may_be_allowed_by_its_path_or_a_part_of_it(key: str) -> None:
    other = {**LLAMA, "rope_theta": 1e6}
    assert refusal(LLAMA, other, key) == ""
    assert refusal(LLAMA, {**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling") == ""
    assert "hidden_act" in refusal(LLAMA, {**other, "hidden_act": "gelu"}, key)
    assert "rope_theta" in refusal(LLAMA, other, "theta")


def test_sizes_may_differ_where_common_tensors_are_merged() -> None:
    assert refusal(LLAMA, {**LLAMA, "num_hidden_layers": 1}, common_only=True) == ""
    assert "rope_theta" in refusal(LLAMA, {**LLAMA, "rope_theta": 1e6}, common_only=True)


def test_the_merge_refuses_and_the_recipe_allows(tmp_path: Path) -> None:
    names = [str(write_folder(tmp_path / name, example(seed))) for seed, name in enumerate("ab")]
    (tmp_path / "b" / "config.json").write_text(json.dumps({"model_type": "llama", "rope_theta": 1e6}))
    content = {"rule": "linear", "models": names}
    with pytest.raises(InputError, match=r"rope_theta is 10000\.0 in .*a, 1000000\.0 in .*b"):
        merge_checkpoints(parse(content, "test"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = merge_checkpoints(parse({**content, "allow_config": ["rope_theta"]}, "test"), tmp_path / "out")
    assert "allow_config:\n- rope_theta" in (tmp_path / "out" / "merge.yaml").read_text()
    note = f"rope_parameters.rope_theta is 10000.0 in {names[0]}, 1000000.0 in {names[1]}"
    assert [text.partition(";")[0] for text in report.notes] == [note]
    assert note in (tmp_path / "out" / "README.md").read_text()


def test_a_key_without_brackets_is_told_the_list() -> None:
    with pytest.raises(InputError, match=r"allow_config: a list is needed: \[rope_theta\]"):
        parse({"rule": "linear", "models": ["a", "b"], "allow_config": "rope_theta"}, "test")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("rope_thetta", r"has the key 'rope_thetta'.*Did you mean 'rope_theta'"),
        ("qqq", "Name a key of config.json"),
        ("", "Name a key of config.json"),
    ],
)
def test_an_allowed_key_that_no_model_has_is_refused(key: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        refuse_unknown_keys([key], [LLAMA, LLAMA])
    refuse_unknown_keys(["rope_theta", "hidden_size", "rms_norm_eps", "rope_scaling"], [LLAMA])


def test_an_absent_rotary_type_is_the_default() -> None:
    said = refusal(LLAMA, {**LLAMA, "rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}})
    assert "rope_type is 'default' in A, 'yarn' in B" in said


def test_the_configurations_of_loaded_models_agree_with_what_they_compute(tmp_path: Path) -> None:
    """Models with equal weights compute the same exactly where nothing is refused."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {
        "vocab_size": 20,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    written, outputs = [], []
    for changes in (
        {},
        {"rope_theta": 10.0},
        {"rms_norm_eps": 0.1},
        {"hidden_act": "gelu"},
        {"attention_dropout": 0.5},
    ):
        config = LlamaConfig(**size, initializer_range=0.5, **changes)
        torch.manual_seed(0)
        net = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            outputs.append(net(torch.arange(10)[None]).logits.numpy())
        written.append(json.loads(config.to_json_string()))
    for config, output in zip(written[1:], outputs[1:], strict=True):
        assert bool(refusal(written[0], config)) != np.allclose(outputs[0], output)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "gpt2"}, True),
        ({"model_type": "llama"}, False),
        ({"model_type": "gpt2", "tie_word_embeddings": False}, False),
        ({"model_type": "gemma3", "text_config": {"tie_word_embeddings": False}}, False),
        ({"model_type": "unheard-of"}, None),
        ({}, None),
    ],
)
def test_whether_a_configuration_ties_the_output_layer(config: dict[str, Any], expected: bool | None) -> None:
    assert tie_setting(config) is expected
