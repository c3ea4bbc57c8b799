from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from merganser.errors import InputError
from merganser.models.base import Lengths
from merganser.models.chat_template import ChatTemplate, TemplateProcess, chat_prompt
from merganser.models.loading import load_backbone
from merganser.models.options import ModelOptions
from tests.tiny import CHAT_TEMPLATE

PUBLISHED = [
    CHAT_TEMPLATE,
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{{ message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}{% endfor %}",
    "{% set ns = namespace(text='') %}{% for m in messages %}{% set ns.text = ns.text ~ (m | tojson) %}"
    "{% if loop.first %}{% continue %}{% endif %}{% endfor %}{{ ns.text }}{{ eos_token }}",
]

TEXTS = ["a film", '  "quoted" <b> \n two lines ü 漢 ', "", "x" * 200_000]


JOB = {"messages": [{"role": "user", "content": "a text"}], "tools": None, "turns": None}


class _Tokenizer:
    """A tokenizer with nothing but a template."""

    special_tokens_map: ClassVar[dict[str, str]] = {}

    def __init__(self, template: str) -> None:
        self.get_chat_template = lambda: template


@pytest.mark.parametrize("template", PUBLISHED)
def test_it_renders_what_transformers_renders(template: str, folders: dict[str, Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folders["chat"])
    tokenizer.chat_template = template
    for text in TEXTS:
        expected = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
        assert chat_prompt(tokenizer, "m", text) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 'a' * 10 ** 10 }}", "more than 256 MB"),
        ("{% set n = namespace(x='a' * 9) %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "256 MB"),
        ("{{ '%03000000d' | format(1) }}", "makes 3000000 characters"),
        ("{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}", "recursion"),
        ("{% for i in range(10 ** 12) %}{% endfor %}", "(?i)range"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    ],
)
def test_a_template_that_fails_or_grows(template: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        chat_prompt(_Tokenizer(template), "own/model", "a text")
    assert "The chat template of own/model cannot be used" in error.value.cause
    assert "chat_template: false" in error.value.remedy
    assert chat_prompt(_Tokenizer("{{ messages[0].content }}"), "own/model", "b") == "b"  # the next one is unharmed


@pytest.fixture
def process() -> Iterator[TemplateProcess]:
    started = TemplateProcess(seconds=0.2)
    yield started
    started.stop()


def test_a_template_that_does_not_end(process: TemplateProcess) -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    caught: list[InputError] = []

    def render() -> None:  # no signals: it works on any thread
        with pytest.raises(InputError, match=r"does not end within 0\.2 seconds") as error:
            process.render(ChatTemplate("own/model", endless, {}), [JOB])
        caught.append(error.value)

    thread = threading.Thread(target=render)
    thread.start()
    thread.join(60)
    assert len(caught) == 1
    assert process._process is None  # ended, and not left to compute


def test_an_interruption_leaves_no_answer_for_the_next_request(monkeypatch: pytest.MonkeyPatch) -> None:
    echoing = TemplateProcess()

    def start() -> None:
        if echoing._process is None:
            echoing._process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            echoing._owner, echoing._ready, echoing._rest = os.getpid(), True, b""

    def interrupted(seconds: float) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(echoing, "_start", start)
    with monkeypatch.context() as patch:
        patch.setattr(echoing, "_read_line", interrupted)
        with pytest.raises(KeyboardInterrupt):
            echoing.render(ChatTemplate("own/model", "first", {}), [JOB])
    (answer,) = echoing.render(ChatTemplate("own/model", "second", {}), [JOB])
    echoing.stop()
    assert answer["template"] == "second"


def test_the_date_stands_still() -> None:
    template = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }} {{ strftime_now(\"%Y\") }}{% endif %}"
    assert chat_prompt(_Tokenizer(template), "own/model", "x") == "01 Jan 2025 2025"


def test_a_template_is_tried_before_the_model_is_read(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["chat"], tmp_path / "chat"))
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no users here') }}")
    (folder / "model.safetensors").write_bytes(b"not read")
    options = ModelOptions(name=str(folder), kind="causal", chat_template=True)
    with pytest.raises(InputError, match="no users here"):
        load_backbone(options, Lengths(32, 8), 0)
    named = [{"name": "rag", "template": "x"}, {"name": "tool_use", "template": "x"}]
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": named}))
    with pytest.raises(InputError, match=r"chat template of .*cannot be used"):
        load_backbone(options, Lengths(32, 8), 0)
