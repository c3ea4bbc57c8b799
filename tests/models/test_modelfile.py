"""Modelfiles of Ollama: what they name, and that they are quoted as its parser reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from merganser.models.base import Lengths
from merganser.models.base_reference import BaseReference
from merganser.models.causal import Causal
from merganser.models.export import Destination, export_model
from merganser.models.gguf_export import GgufOptions
from merganser.models.modelfile import modelfile, quoted, weights_lines
from merganser.streams.answers import AnswerSpec
from tests.models.conftest import Loader
from tests.models.test_gguf_export import write_script

SPECS = {"chat": AnswerSpec()}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<|end|>", '"<|end|>"'),
        (" spaces stay ", '" spaces stay "'),
        ("", '""""""'),
        ('Say "yes"', '"""Say "yes""""'),
        ("one\ntwo\tthree", '"""one\ntwo\tthree"""'),
        ('a """ b', None),
        ("a\u00a0b", None),  # the parser drops what is not printable
        ("a\rb", None),
    ],
)
def test_quoted(text: str, value: str | None) -> None:
    assert quoted(text) == value


def test_a_whole_model(load: Loader, tmp_path: Path) -> None:
    script = write_script(tmp_path / "llama.cpp")
    to = Destination(gguf=GgufOptions("f16", script), name="support")
    export_model(load("chat", chat_template=True), tmp_path / "out", SPECS, True, to=to)
    lines = (tmp_path / "out" / "Modelfile").read_text().splitlines()
    assert "FROM ./model-f16.gguf" in lines
    assert (tmp_path / "out" / "model-f16.gguf").is_file()
    assert not any(line.startswith(("ADAPTER", "SYSTEM")) for line in lines)
    # Greedy, as the pretrained model is by its own settings; Ollama's defaults are others.
    assert {"PARAMETER temperature 0", "PARAMETER repeat_penalty 1", 'PARAMETER stop "<|end|>"'} < set(lines)
    export_model(load("causal"), tmp_path / "plain", SPECS, True)
    plain = (tmp_path / "plain" / "Modelfile").read_text().splitlines()
    assert "FROM ." in plain
    assert 'TEMPLATE "{{ .Prompt }}"' in plain


def test_an_adapter(load: Loader, tmp_path: Path) -> None:
    export_model(load("causal"), tmp_path / "out", SPECS, False)
    lines = (tmp_path / "out" / "Modelfile").read_text().splitlines()
    assert lines[2:4] == ["FROM ./base/llama", "ADAPTER ."]
    lines = weights_lines(False, "adapter.gguf", BaseReference("org/base", "abc"))
    assert "hf download org/base --revision abc --local-dir ./base/base" in lines[0]
    assert lines[1:] == ["FROM ./base/base", "ADAPTER ./adapter.gguf"]


def test_sampling_and_length(load: Loader) -> None:
    backbone = load("causal")
    assert isinstance(backbone, Causal)
    settings = backbone.pretrained_from.settings.generation
    assert settings is not None
    settings.do_sample, settings.temperature, settings.top_p, settings.repetition_penalty = True, 0.6, 0.95, 1.05
    lines = modelfile(backbone, ["FROM ."]).splitlines()
    wanted = ["repeat_penalty 1.05", "temperature 0.6", "top_k 50", "top_p 0.95", "min_p 0"]
    assert [line.removeprefix("PARAMETER ") for line in lines if line.startswith("PARAMETER")][:5] == wanted
    assert not any("num_ctx" in line for line in lines)
    backbone.lengths = Lengths(2000, 100)
    for system, line in (("Be brief.", 'SYSTEM "Be brief."'), ('a """ b', "# The system prompt of the run cannot be")):
        backbone.options = backbone.options.model_copy(update={"system": system})
        lines = modelfile(backbone, ["FROM ."]).splitlines()
        assert "PARAMETER num_ctx 2100" in lines
        assert any(each.startswith(line) for each in lines)
