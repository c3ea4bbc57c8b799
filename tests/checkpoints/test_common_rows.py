"""Vocabularies of different sizes, and tokenizers that do not fit the embedding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merganser.checkpoints.dtypes import decode
from merganser.checkpoints.merge import merge_checkpoints
from merganser.checkpoints.plan import make_plan
from merganser.checkpoints.recipe_file import parse
from merganser.checkpoints.source import open_checkpoint
from merganser.errors import InputError
from merganser.merging.ties import ties
from tests.checkpoints.conftest import write_folder
from tests.checkpoints.test_merge import load
from tests.checkpoints.test_vocabulary import tokenizer

EMBED, HEAD, BIAS, NORM = "model.embed_tokens.weight", "lm_head.weight", "final_logits_bias", "model.norm.weight"
TOKENS = {letter: number for number, letter in enumerate("abcdef")}


def model(folder: Path, rows: int, seed: int, tokens: int | None = None, **more: Any) -> str:
    """A model with so many rows and a tokenizer of so many tokens."""
    generator = np.random.default_rng(seed)
    shapes = {EMBED: (rows, 3), HEAD: (rows, 3), BIAS: (1, rows), NORM: (3,)}
    write_folder(folder, {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})
    settings = {"model_type": "llama", "vocab_size": rows, "dtype": "float32", "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps({**settings, **more}))
    kept = dict(list(TOKENS.items())[: rows if tokens is None else tokens])
    (folder / "tokenizer.json").write_text(tokenizer({"a": 0, "b": 1}, {t: i for t, i in kept.items() if i > 1}))
    return str(folder)


def recipe(models: list[Any], **more: Any) -> Any:
    return parse({"rule": "linear", "models": models, "common_rows": True, **more}, "test")


@pytest.mark.parametrize("first", [4, 6])
def test_common_rows_are_merged_and_the_others_kept(first: int, tmp_path: Path) -> None:
    names = [model(tmp_path / "a", first, 1), model(tmp_path / "b", 10 - first, 2)]
    report = merge_checkpoints(recipe(names), tmp_path / "out")
    a, b, result = load(tmp_path / "a"), load(tmp_path / "b"), load(tmp_path / "out")
    for name in (EMBED, HEAD):
        expected = a[name].copy()
        expected[:4] = (a[name][:4] + b[name][:4]) / 2
        np.testing.assert_allclose(result[name], expected, rtol=1e-6)
    expected = a[BIAS].copy()
    expected[:, :4] = (a[BIAS][:, :4] + b[BIAS][:, :4]) / 2
    np.testing.assert_allclose(result[BIAS], expected, rtol=1e-6)
    others = f"the other 2 from {names[0]}" if first == 6 else "those that not all models have omitted"
    assert f"{EMBED}: the first 4 rows merged, {others}" in report.notes
    assert report.bytes == sum(tensor.nbytes for tensor in open_checkpoint(str(tmp_path / "out")).tensors.values())


def test_the_other_rows_and_the_size_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    """Two fine-tuned models, one with more tokens than the base; the rule sees the common rows only."""
    base, a, b = (model(tmp_path / n, rows, s) for s, (n, rows) in enumerate((("m", 4), ("a", 6), ("b", 4))))
    options = {"rule": "ties", "base": base, "options": {"density": 0.5}, "dtype": "bfloat16"}
    merge_checkpoints(recipe([a, b], tokenizer_from=a, **options), tmp_path / "out")
    tensors = [load(Path(path))[EMBED] for path in (a, b, base)]
    merged = ties([tensors[0][:4], tensors[1]], tensors[2], density=0.5)
    expected = np.concatenate([merged, tensors[0][4:]])
    stored = open_checkpoint(str(tmp_path / "out")).tensors[EMBED]
    raw = np.fromfile(stored.path, np.uint8, stored.nbytes, offset=stored.offset)
    values = decode(raw, "BF16", np.dtype(np.float32)).reshape(6, 3)
    np.testing.assert_allclose(values, expected, rtol=2**-8)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 6
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "a" / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(("of_a", "of_b"), [(4, 6), (6, 4)])
def test_the_size_in_the_configuration_is_that_of_the_embedding(of_a: int, of_b: int, tmp_path: Path) -> None:
    a, b = model(tmp_path / "a", of_a, 1), model(tmp_path / "b", of_b, 2)
    for chosen, rows in ((a, of_a), (b, of_b)):
        merge_checkpoints(recipe([a, b], tokenizer_from=chosen), tmp_path / "out", overwrite=True)
        assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == rows
        assert {value.shape[-2] for key, value in load(tmp_path / "out").items() if key in (EMBED, HEAD)} == {rows}


def test_without_it_other_sizes_are_refused_with_the_remedy(tmp_path: Path) -> None:
    names = [model(tmp_path / "a", 4, 1), model(tmp_path / "b", 6, 2)]
    with pytest.raises(InputError, match=r"is \[4, 3\] in .*a, \[6, 3\] in .*b.*--common-rows"):
        make_plan(parse({"rule": "linear", "models": names}, "test"))


def test_rows_of_other_tokens_are_no_common_ones(tmp_path: Path) -> None:
    names = [model(tmp_path / "a", 4, 1), model(tmp_path / "b", 6, 2)]
    (tmp_path / "b" / "tokenizer.json").write_text(tokenizer({"b": 0, "a": 1}))
    with pytest.raises(InputError, match=r"'a' is 0 in .*a, 1 in .*b"):
        make_plan(recipe(names))
    (tmp_path / "b" / "tokenizer.json").write_text(tokenizer({"a": 0, "b": 1, "learned": 5}))
    make_plan(recipe(names))


def test_other_dimensions_must_agree(tmp_path: Path) -> None:
    names = [model(tmp_path / "a", 4, 1), model(tmp_path / "b", 6, 2)]
    wide = {**load(tmp_path / "b"), EMBED: np.ones((6, 5), np.float32)}
    wide_folder = write_folder(tmp_path / "c", wide)
    (wide_folder / "config.json").write_text((tmp_path / "b" / "config.json").read_text())
    with pytest.raises(InputError, match=r"embed_tokens\.weight is \[4, 3\]"):
        make_plan(recipe([names[0], str(wide_folder)]))


@pytest.mark.parametrize(("tokens", "message"), [(4, ""), (3, ""), (6, r"beyond the 4 rows .*'e' is 4, and 1 more")])
def test_a_tokenizer_larger_than_the_embedding(tokens: int, message: str, tmp_path: Path) -> None:
    names = [model(tmp_path / name, 4, seed, tokens) for seed, name in enumerate("ab")]
    content = {"rule": "linear", "models": names}
    if message:
        with pytest.raises(InputError, match=message):
            make_plan(parse(content, "test"))
    make_plan(parse({**content, "ignore_vocabulary": bool(message)}, "test"))


def test_ids_of_a_slow_tokenizer_are_found_too(tmp_path: Path) -> None:
    names = [model(tmp_path / name, 4, seed) for seed, name in enumerate("ab")]
    (tmp_path / "a" / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"9": {"content": "<x>"}}}')
    with pytest.raises(InputError, match="'<x>' is 9"):
        make_plan(parse({"rule": "linear", "models": names}, "test"))
    make_plan(parse({"rule": "linear", "models": names, "tokenizer_from": names[1]}, "test"))
    config = {"model_type": "llama", "vocab_size": 4, "additional_vocab_size": 6, "tie_word_embeddings": False}
    for name in "ab":
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    make_plan(parse({"rule": "linear", "models": names}, "test"))
