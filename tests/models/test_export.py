from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import runpy
from pathlib import Path

import pytest
import torch

from merganser.errors import RunError
from merganser.models.base import Backbone
from merganser.models.export import export_model
from merganser.models.options import LoraOptions
from merganser.streams.answers import AnswerSpec
from tests.models.conftest import LORA, Loader, disturb

TEXTS = ["the film was good", "a bad film with a weak story answer:", "the bank cut its rates topic:\n"]
RANK = AnswerSpec(("positive", "negative", "business world"), {"positive": "good and great"}, mode="rank")
SPECS = {"mood": RANK, "free|text": AnswerSpec()}


def used_as_the_card_says(folder: Path, run_in: Path, base: str = "") -> list[list[str]]:
    """Runs the card's own lines, with other texts and the place of an adapter's base; returns the lists they print."""
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[0]
    code = code.replace('folder = "."', f"folder = {str(folder)!r}")
    code = code.replace(f"'./base/{Path(base).name}'", repr(base))
    code = re.sub(r"(?m)^texts = .*$", lambda _: f"texts = {TEXTS!r}", code)
    script = run_in / "card.py"
    script.write_text(code)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        runpy.run_path(str(script))
    return [ast.literal_eval(line) for line in said.getvalue().splitlines() if line.startswith("[")]


def answers(backbone: Backbone, spec: AnswerSpec) -> list[str]:
    return [answer.text for answer in backbone.answer(TEXTS, spec)]


CASES = [
    ("seq2seq", LORA, False, {}),
    ("seq2seq", LORA, True, {}),
    ("causal", LORA, False, {}),
    ("causal", LORA, False, {"weights": "4bit"}),
    ("causal", None, True, {}),
    ("chat", LORA, True, {"chat_template": True}),
    ("matcher", LORA, False, {"pooling": "cls"}),
    ("matcher", LORA, True, {}),
    ("matcher", None, False, {"pooling": "last"}),
]


@pytest.mark.parametrize(("which", "lora", "merged", "options"), CASES)
def test_plain_libraries_give_the_same_answers(
    load: Loader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    which: str,
    lora: LoraOptions | None,
    merged: bool,
    options: dict[str, object],
) -> None:
    # Where the processor has AVX-512 BF16, bitsandbytes alone rounds scales before it answers.
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    backbone = load(which, lora=lora, **options)
    disturb(backbone, size=0.3)
    specs = {"mood": RANK} if which == "matcher" else SPECS
    expected = [answers(backbone, RANK)]
    if which != "matcher":
        expected.insert(0, answers(backbone, AnswerSpec()))
    before = {name: parameter.detach().clone() for name, parameter in backbone.trainable().items()}
    export_model(backbone, tmp_path / "out", specs, merged)
    assert used_as_the_card_says(tmp_path / "out", tmp_path, backbone.options.name) == expected
    for name, parameter in backbone.trainable().items():  # exporting leaves the model as it was
        assert torch.equal(parameter, before[name])
    assert answers(backbone, RANK) == expected[-1]
    whole = merged or lora is None
    assert (tmp_path / "out" / "model.safetensors").is_file() == whole
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file() != whole
    assert not list((tmp_path / "out").glob("*.bin"))


def test_merged_weights_are_the_formula(load: Loader, tmp_path: Path) -> None:
    from transformers import AutoModel

    backbone = load("matcher")
    disturb(backbone)
    export_model(backbone, tmp_path, {"mood": RANK}, True)
    merged = AutoModel.from_pretrained(tmp_path).state_dict()
    pretrained = AutoModel.from_pretrained(backbone.options.name).state_dict()
    where = "encoder.layer.0.attention.self.query"
    trained = {name: parameter for name, parameter in backbone.trainable().items() if where in name}
    a, b = (next(p for n, p in trained.items() if factor in n) for factor in ("lora_A", "lora_B"))
    expected = pretrained[f"{where}.weight"] + 32 / 8 * b @ a
    assert torch.allclose(merged[f"{where}.weight"], expected, atol=1e-5)


def test_the_card_and_the_labels(load: Loader, tmp_path: Path) -> None:
    export_model(load("causal"), tmp_path, SPECS, False)
    card = (tmp_path / "README.md").read_text()
    assert "library_name: peft" in card
    assert "base_model:" not in card  # a folder's path means nothing elsewhere
    assert "| mood | likeliest label | positive, negative, business world |" in card
    assert "| free\\|text | generation | free text |" in card
    facts = json.loads((tmp_path / "labels.json").read_text())
    assert facts["tasks"]["mood"]["labels"] == list(RANK.labels or ())
    assert facts["tasks"]["free|text"] == {"mode": "generate"}


def test_names_and_labels_are_text_in_the_card(load: Loader, tmp_path: Path) -> None:
    import yaml

    spec = AnswerSpec(("<img src=x>", "a|b\n```\n# title", "[x](javascript:y)"), mode="rank")
    export_model(load("causal"), tmp_path, {"t\n---\nlicense: mit | `": spec}, False)
    card = (tmp_path / "README.md").read_text()
    labels = "&lt;img src=x&gt;, a\\|b \\`\\`\\` # title, \\[x\\](javascript:y)"
    assert f"| t --- license: mit \\| \\` | likeliest label | {labels} |" in card.splitlines()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["tags"] == ["merganser", "continual-learning"]
    assert card.count("\n```") == 2  # the fence of the code, opened and closed


def test_weights_that_are_not_finite_are_not_merged(load: Loader, tmp_path: Path) -> None:
    backbone = load("seq2seq")
    with torch.no_grad():
        next(iter(backbone.trainable().values())).fill_(float("nan"))
    with pytest.raises(RunError, match="not finite"):
        export_model(backbone, tmp_path, SPECS, True)
