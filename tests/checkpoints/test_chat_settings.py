"""What the result has beside the weights: settings of other models are named, or taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from merganser.checkpoints.adapters.merge import merge_adapters
from merganser.checkpoints.chat_settings import dropped_settings
from merganser.checkpoints.merge import merge_checkpoints
from merganser.checkpoints.recipe_file import parse
from merganser.errors import InputError
from tests.checkpoints.conftest import example, write_folder
from tests.merging.test_adapters import plain, write_adapter


def settings(folder: Path, **files: Any) -> Path:
    """Write files; the names have underscores for full stops."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        stem, _, ending = name.rpartition("_")
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{stem}.{ending}").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("kept", "other", "expected"),
    [
        ({}, {"chat_template_jinja": "{{ x }}"}, ["chat template of B"]),
        ({}, {"tokenizer_config_json": {"chat_template": "{{ x }}"}}, ["chat template of B"]),
        ({}, {"chat_template_json": {"chat_template": "{{ x }}"}}, ["chat template of B"]),
        ({"chat_template_jinja": "x"}, {"tokenizer_config_json": {"chat_template": "x"}}, []),
        ({"chat_template_jinja": "x"}, {}, []),
        (
            {},
            {"tokenizer_config_json": {"chat_template": [{"name": "tool_use", "template": "x"}]}},
            ["chat template tool_use of B"],
        ),
        (
            {"tokenizer_config_json": {"eos_token": "</s>"}},
            {"special_tokens_map_json": {"eos_token": {"content": "<|end|>"}}},
            ["end-of-turn token '<|end|>' of B (here '</s>')"],
        ),
        (
            {"config_json": {"eos_token_id": 2}},
            {"generation_config_json": {"eos_token_id": [2, 7], "temperature": 0.5, "transformers_version": "5"}},
            [
                "generation setting eos_token_id [2, 7] of B (here 2)",
                "generation setting temperature 0.5 of B (here not set)",
            ],
        ),
        (
            {"generation_config_json": {"eos_token_id": 2}},
            {"config_json": {"eos_token_id": 2, "pad_token_id": None}},
            [],
        ),
    ],
)
def test_dropped_settings_are_named(kept: Any, other: Any, expected: list[str], tmp_path: Path) -> None:
    first, second = settings(tmp_path / "a", **kept), settings(tmp_path / "b", **other)
    assert dropped_settings(first, [("A", first), ("B", second), ("B", second)]) == expected


def chat(tmp_path: Path) -> list[str]:
    """A plain model and one with everything of a chat."""
    plain_model, chat_model = (write_folder(tmp_path / name, example(seed)) for seed, name in enumerate("ab"))
    settings(plain_model, config_json={"model_type": "llama", "dtype": "float32", "eos_token_id": 2, "pad_token_id": 0})
    settings(
        chat_model,
        config_json={"model_type": "llama", "dtype": "float16", "eos_token_id": 7},
        chat_template_jinja="{{ messages }}",
        tokenizer_config_json={"eos_token": "<|end|>"},
        generation_config_json={"eos_token_id": [2, 7]},
        preprocessor_config_json={"of": "b"},
    )
    settings(plain_model, preprocessor_config_json={"of": "a"}, generation_config_json={"top_k": 3})
    (chat_model / "additional_chat_templates").mkdir()
    (chat_model / "additional_chat_templates" / "tool.jinja").write_text("t")
    return [str(plain_model), str(chat_model)]


def test_the_report_names_what_the_result_lacks(tmp_path: Path) -> None:
    report = merge_checkpoints(parse({"rule": "linear", "models": chat(tmp_path)}, "test"), tmp_path / "out")
    b = tmp_path / "b"
    assert f"chat template of {b}" in report.dropped
    assert f"chat template tool of {b}" in report.dropped
    assert f"end-of-turn token '<|end|>' of {b} (here None)" in report.dropped
    assert not (tmp_path / "out" / "chat_template.jinja").exists()


def test_a_model_may_be_named_whose_tokenizer_is_taken(tmp_path: Path) -> None:
    names = chat(tmp_path)
    recipe = parse({"rule": "linear", "models": names, "tokenizer_from": names[1]}, "test")
    report = merge_checkpoints(recipe, tmp_path / "out")
    out, b = tmp_path / "out", tmp_path / "b"
    taken = ("chat_template.jinja", "tokenizer_config.json", "generation_config.json")
    for name in (*taken, "additional_chat_templates/tool.jinja", "tokenizer.json"):
        assert (out / name).read_bytes() == (b / name).read_bytes()
    assert json.loads((out / "config.json").read_text()) == {
        "model_type": "llama",
        "dtype": "float32",
        "eos_token_id": 7,
    }
    assert json.loads((out / "preprocessor_config.json").read_text()) == {"of": "a"}
    assert report.dropped == [
        f"generation setting eos_token_id 2 of {names[0]} (here [2, 7])",
        f"generation setting pad_token_id 0 of {names[0]} (here not set)",
        f"generation setting top_k 3 of {names[0]} (here not set)",
    ]
    assert f"tokenizer_from: {names[1]}" in (out / "merge.yaml").read_text()
    merge_checkpoints(parse(yaml.safe_load((out / "merge.yaml").read_text()), "test"), tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_bytes() == (out / "config.json").read_bytes()


def test_the_tokenizer_is_that_of_a_model_of_the_merge(tmp_path: Path) -> None:
    names = chat(tmp_path)
    recipe = parse({"rule": "linear", "models": names, "tokenizer_from": "elsewhere"}, "test")
    with pytest.raises(InputError, match=r"from elsewhere .*--tokenizer-from.*not merged.*Name one of the models"):
        merge_checkpoints(recipe, tmp_path / "out")
    link = tmp_path / "link"
    link.symlink_to(names[1])
    recipe = parse({"rule": "linear", "models": names, "tokenizer_from": str(link)}, "test")
    merge_checkpoints(recipe, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").is_file()


def test_adapters_have_settings_too(tmp_path: Path) -> None:
    names = [write_adapter(tmp_path / name, plain(seed)) for seed, name in enumerate("xy")]
    (tmp_path / "y" / "chat_template.jinja").write_text("{{ x }}")
    content = {"rule": "linear", "models": names}
    report = merge_adapters(parse(content, "test"), tmp_path / "one")
    assert report.dropped == [f"chat template of {names[1]}"]
    report = merge_adapters(parse({**content, "tokenizer_from": names[1]}, "test"), tmp_path / "two")
    assert report.dropped == []
    assert (tmp_path / "two" / "chat_template.jinja").is_file()
