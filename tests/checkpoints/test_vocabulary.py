"""Models of equal shapes that mean different things: other tokens for the numbers, another architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merganser.checkpoints.merge import merge_checkpoints
from merganser.checkpoints.plan import make_plan
from merganser.checkpoints.recipe_file import parse
from merganser.checkpoints.vocabularies import vocabulary
from merganser.errors import InputError
from tests.checkpoints.conftest import write_folder


def tokenizer(vocab: Any, added: dict[str, int] | None = None, **more: Any) -> str:
    listed = [{"id": number, "content": token} for token, number in (added or {}).items()]
    return json.dumps({"model": {"vocab": vocab}, "added_tokens": listed, **more})


def models(root: Path, files: list[dict[str, str]], vocab_size: int = 4) -> list[str]:
    """Models that have these files beside their weights."""
    made = []
    for name, texts in zip("abc", files, strict=False):
        tensors = {"embed": np.ones((4, 2), np.float32), "norm": np.ones(2, np.float32)}
        folder = write_folder(root / name, tensors)
        (folder / "tokenizer.json").unlink()
        config = {"model_type": "llama", "vocab_size": vocab_size}
        for file, text in {"config.json": json.dumps(config), **texts}.items():
            (folder / file).write_text(text, encoding="utf-8")
        made.append(str(folder))
    return made


def refusal(names: list[str], **more: Any) -> str:
    """What the plan is refused with, or nothing."""
    try:
        make_plan(parse({"rule": "linear", "models": names, **more}, "test"))
    except InputError as error:
        return str(error)
    return ""


AB, BA = {"a": 0, "b": 1}, {"b": 0, "a": 1}


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (tokenizer(AB), tokenizer(BA), "'a' is 0 in .*a, 1 in .*b; 'b' is 1 in"),
        (tokenizer(AB), tokenizer({**AB, "c": 2}), r"2 tokens in .*a, 3 in .*b\): 'c' is missing in .*a, 2 in"),
        (tokenizer([["a", -1.0], ["b", -2.0]]), tokenizer([["b", -1.0], ["a", -2.0]]), "'a' is 0 in"),
        (tokenizer(AB, {"<x>": 2}), tokenizer(AB, {"<y>": 2}), "'<x>' is 2 in .*a, missing in"),
        (tokenizer(AB, {"<x>": 2}), tokenizer(AB, {"<x>": 3}), "'<x>' is 2 in .*a, 3 in"),
        (tokenizer(AB), tokenizer(AB, {"<x>": 2}), ""),
        (tokenizer({**AB, "<x>": 2}), tokenizer(AB, {"<x>": 2}), ""),
        (tokenizer(AB), tokenizer(AB, truncation=None), ""),
        (tokenizer(AB), json.dumps({"model": {"type": "unheard of"}}), ""),
        (tokenizer(AB), json.dumps({"model": {"vocab": AB}, "added_tokens": [{"content": {}, "id": 9}]}), ""),
    ],
)
def test_tokenizers(first: str, second: str, message: str, tmp_path: Path) -> None:
    import re

    said = refusal(models(tmp_path, [{"tokenizer.json": first}, {"tokenizer.json": second}]))
    assert re.search(message, said) if message else not said
    assert "\n" not in said


def test_two_models_that_agree_with_the_base_may_contradict_each_other(tmp_path: Path) -> None:
    given = [tokenizer(AB, {"<x>": 2}), tokenizer(AB, {"<y>": 2}), tokenizer(AB)]
    names = models(tmp_path, [{"tokenizer.json": text} for text in given])
    assert "'<x>' is 2 in" in refusal(names[:2], base=names[2], rule="task_arithmetic")
    assert refusal(names[:1], base=names[2], rule="task_arithmetic") == ""


def test_no_file_is_parsed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [tokenizer(AB, truncation={"max_length": length}) for length in (1, 2, 3)]
    names = models(tmp_path, [{"tokenizer.json": text} for text in given])
    parsed, read_json = [], vocabulary.read_json
    monkeypatch.setattr(vocabulary, "read_json", lambda path: parsed.append(path) or read_json(path))
    assert refusal(names) == ""
    assert len(parsed) == len(set(parsed)) == 3


def test_older_files_of_vocabularies(tmp_path: Path) -> None:
    said = refusal(models(tmp_path / "json", [{"vocab.json": json.dumps(AB)}, {"vocab.json": json.dumps(BA)}]))
    assert "'a' is 0" in said
    said = refusal(models(tmp_path / "txt", [{"vocab.txt": "[PAD]\nthe\n"}, {"vocab.txt": "[PAD]\nder\n"}]))
    assert "'the' is 1 in" in said
    assert not refusal(models(tmp_path / "one", [{"vocab.txt": "a\n"}, {}]))
    assert not refusal(models(tmp_path / "mixed", [{"tokenizer.json": tokenizer(AB)}, {"vocab.json": json.dumps(BA)}]))


def test_of_equal_files_one_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed, read_json = [], vocabulary.read_json
    monkeypatch.setattr(vocabulary, "read_json", lambda path: parsed.append(path) or read_json(path))
    assert not refusal(models(tmp_path, [{"tokenizer.json": tokenizer(AB)}] * 2))
    assert parsed == [tmp_path / "a" / "tokenizer.json"]


def test_the_refusal_can_be_overruled_and_the_result_repeats_it(tmp_path: Path) -> None:
    names = models(tmp_path, [{"tokenizer.json": tokenizer(AB)}, {"tokenizer.json": tokenizer(BA)}])
    assert "--ignore-vocabulary" in refusal(names)
    content = {"rule": "linear", "models": names, "ignore_vocabulary": True}
    merge_checkpoints(parse(content, "test"), tmp_path / "out")
    assert "ignore_vocabulary: true" in (tmp_path / "out" / "merge.yaml").read_text()


def test_where_no_embedding_is_merged_vocabularies_do_not_matter(tmp_path: Path) -> None:
    names = models(tmp_path, [{"tokenizer.json": tokenizer(AB)}, {"tokenizer.json": tokenizer(BA)}])
    overrides = [{"match": "embed", "from": "base"}]
    assert not refusal(names, base=names[0], overrides=overrides)


def test_models_of_two_architectures(tmp_path: Path) -> None:
    other = {"config.json": json.dumps({"model_type": "mistral"})}
    names = models(tmp_path, [{}, other])
    assert "is of model_type 'llama'" in (said := refusal(names))
    assert "'mistral'" in said
    assert not refusal(names, common_only=True)
    (tmp_path / "b" / "config.json").write_text("{}")
    assert not refusal(names)
