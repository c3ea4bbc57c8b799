from __future__ import annotations

import sys
from subprocess import run

import pytest
from pydantic import ValidationError

from merganser.models.options import LoraOptions, ModelOptions


@pytest.mark.parametrize(
    "bad",
    [
        {"r": 0},
        {"r": -3},
        {"alpha": 0},
        {"alpha": float("inf")},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"rank": 8},
        {"targets": []},
        {"targets": ["q", "q"]},
        {"targets": ["."]},
        {"targets": "q_proj"},
    ],
)
def test_impossible_lora_options_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LoraOptions.model_validate(bad)


@pytest.mark.parametrize(
    ("kind", "bad", "said"),
    [
        ("matcher", {"temperature": 0}, "greater than 0"),
        ("matcher", {"temperature": float("nan")}, "finite"),
        ("seq2seq", {"pooling": "cls"}, "'pooling' is an option of kind 'matcher'"),
        ("causal", {"candidates": "seen"}, "'candidates' is an option of kind 'matcher'"),
        ("seq2seq", {"temperature": 0.1}, "'temperature' is an option of kind 'matcher'"),
        ("seq2seq", {"chat_template": True}, "'chat_template' is an option of kind 'causal'"),
        ("causal", {"precision": "fp16"}, "precision"),
        ("encoder", {}, "kind"),
        ("causal", {"pool": "mean"}, "pool"),
        ("causal", {"name": ""}, "name"),
        ("causal", {"name": "a.gguf", "revision": "main"}, "revision"),
    ],
)
def test_impossible_model_options_are_refused(kind: str, bad: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ModelOptions.model_validate({"name": "x", "kind": kind, **bad})


@pytest.mark.parametrize("kind", ["seq2seq", "causal", "matcher"])
def test_resolved_options_can_be_read_again(kind: str) -> None:
    options = ModelOptions.model_validate({"name": "x", "kind": kind, "lora": None})
    assert ModelOptions.model_validate(options.model_dump()) == options


def test_options_import_nothing_heavy() -> None:
    code = "import sys, merganser.models.options; sys.exit(bool({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
