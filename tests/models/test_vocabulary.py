from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from merganser import Example, Learner, Task
from merganser.errors import InputError
from merganser.models.base import Lengths
from merganser.models.loading import load_backbone
from merganser.models.options import ModelOptions
from merganser.streams.answers import AnswerSpec


def copy(folders: dict[str, Path], folder: Path, which: str, **changes: object) -> Path:
    """A model whose tokenizer has more tokens than it was made for."""
    shutil.copytree(folders[which], folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if "pad_token" in changes:
        tokenizer.add_special_tokens(changes)
    else:
        tokenizer.add_tokens(["<image>", "<extra|1>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("which", "kind"), [("causal", "causal"), ("seq2seq", "seq2seq"), ("matcher", "matcher")])
def test_a_padding_token_without_an_embedding(which: str, kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(folders, tmp_path / "more", which, pad_token="[NEW PAD]")
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    with pytest.raises(InputError, match=rf"embedding of {rows} rows: '\[NEW PAD\]' has the number {rows}") as error:
        load_backbone(ModelOptions.model_validate({"name": str(folder), "kind": kind}), Lengths(32, 8), 0)
    assert "resize_token_embeddings" in error.value.remedy


def test_a_tokenizer_of_another_model(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["matcher"], tmp_path / "mixed"))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["unheard"] = len(content["model"]["vocab"])
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"larger than the model's embedding.*'unheard'"):
        load_backbone(ModelOptions(name=str(folder), kind="matcher"), Lengths(32, 8), 0)


def test_tokens_that_no_text_needs(folders: dict[str, Path], tmp_path: Path) -> None:
    """As those for images in the tokenizers of some published models."""
    folder = copy(folders, tmp_path / "more", "matcher")
    spec = AnswerSpec(("positive", "negative"))
    sections = {"model": {"name": str(folder), "kind": "matcher", "lora": {"r": 2}}, "method": "sequential"}
    with Learner.open(tmp_path / "run", **sections) as learner:
        backbone = learner.session.backbone
        assert backbone.answer(["the film <imag"], spec)[0].text in spec.labels
        with pytest.raises(InputError, match=r"no embedding for the token '<extra\|1>' in the text 'a <extra"):
            backbone.answer(["fine", "a <extra|1> film"], spec)
        good = [Example("the film", "positive"), Example("a film", "negative")]
        task = Task(name="mood", spec=spec, train=good, test=[Example("an <image> here", "positive")])
        with pytest.raises(InputError, match="no embedding for the token '<image>'"):
            learner.learn(task)
        with pytest.raises(InputError, match="no embedding for the token '<image>'"):
            learner.learn_stream([task])
        assert not learner.learned
