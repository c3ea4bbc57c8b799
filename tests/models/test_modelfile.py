"""Modelfiles of Ollama: what they name, and that they are quoted as its parser reads them."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2
import pytest

from merganser.models.base import Lengths
from merganser.models.base_reference import BaseReference
from merganser.models.causal import Causal
from merganser.models.chat_template import ChatTemplate
from merganser.models.export import Destination, export_model
from merganser.models.gguf_export import GgufOptions
from merganser.models.modelfile import modelfile, quoted, weights_lines
from merganser.models.ollama_template import marks_of
from merganser.streams.answers import AnswerSpec
from merganser.streams.conversation import Conversation, Turn
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
    start = next(number for number, line in enumerate(lines) if line.startswith("TEMPLATE"))
    assert lines[start].endswith('{{ end }}{{ end }}<|assistant|>"""')
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


LOOP = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}<|end|>\n{% endfor %}"
ASKS = "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
OWN = "{% if messages[0].role != 'system' %}<|system|>\nBe brief.<|end|>\n{% endif %}"
INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
REPEATS = "{% for m in messages %}<{{ m.role }}>{{ messages[0].content }}{% endfor %}"
MODEL = LOOP.replace("m.role }", "'model' if m.role == 'assistant' else m.role }")


def as_ollama(template: str, turns: list[Turn]) -> str:
    """What a template in Go makes of turns, translated for Jinja."""
    opened: list[str] = []

    def translate(found: re.Match[str]) -> str:
        action = found[1]
        if action == "end":
            return f"{{% {'endfor' if opened.pop() == 'for' else 'endif'} %}}"
        if not action.startswith(("else", ".")):
            opened.append("for" if action.startswith("range") else "if")
        if role := re.fullmatch(r"(else )?if eq .Role (.*)", action):
            return f"{{% {'elif' if role[1] else 'if'} m.role == {role[2]} %}}"
        known = {
            "range .Messages": "{% for m in messages %}",
            ".Content": "{{ m.content }}",
            "if not .System": "{% if messages[0].role != 'system' %}",
        }
        return known[action]

    text = re.sub(r"\{\{ (.*?) \}\}", translate, template)
    return jinja2.Environment(keep_trailing_newline=True).from_string(text).render(messages=turns)


@pytest.mark.parametrize(
    ("template", "adds_bos", "begins"),
    [
        (LOOP + ASKS, True, "{{ range"),
        ("{{ bos_token }}" + LOOP + ASKS, True, "{{ range"),
        ("{{ bos_token }}" + LOOP + ASKS, False, "<s>{{ range"),
        (OWN + LOOP + ASKS, True, "{{ if not .System }}<|system|>\nBe brief.<|end|>\n{{ end }}{{ range"),
        (LOOP + ASKS + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}", True, "{{ range"),
        (NO_SYSTEM + INSTRUCT, True, '{{ range .Messages }}{{ if eq .Role "user" }}[INST] {{'),
        (NO_SYSTEM + MODEL + ASKS, True, "{{ range"),
        ("{% for m in messages if not loop.first or m.role == 'user' %}{{ m.content }}|{% endfor %}", True, None),
        (REPEATS, True, None),
        (LOOP + "{{ messages | length }}", True, None),
        (LOOP + "{{ '{{' }}", True, None),
        ("{{ raise_exception('never') }}", True, None),
    ],
)
def test_a_chat_template_in_the_language_of_ollama(template: str, adds_bos: bool, begins: str | None) -> None:
    class Tokenizer:
        bos_token, bos_token_id, eos_token = "<s>", 1, "</s>"

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [1, 7] if adds_bos else [7]}

    chat = ChatTemplate("m", template, {"bos_token": "<s>", "eos_token": "</s>"})
    marks = marks_of(chat, Tokenizer())
    if begins is None:
        assert marks is None
        return
    assert marks is not None
    assert marks.go().startswith(begins)
    turns = [Turn("user", "What is it?"), Turn("assistant", "A film."), Turn("user", "Is it\ngood?")]
    for conversation in (turns, [Turn("system", "Be kind."), *turns] if "system" in marks.around else turns[:1]):
        (rendered,) = chat.prompts([Conversation(tuple(conversation))])
        expected = rendered["text"].removeprefix("<s>" if adds_bos else "")
        assert as_ollama(marks.go(), conversation) == expected
