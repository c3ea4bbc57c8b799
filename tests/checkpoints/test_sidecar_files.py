"""Files beside the weights: what is copied and what is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from merganser.checkpoints.merge import merge_checkpoints
from merganser.checkpoints.recipe_file import parse
from merganser.checkpoints.sidecar_files import uncopied_files
from merganser.errors import InputError
from tests.checkpoints.conftest import example, write_folder

TOKENIZER = (
    "tokenizer.model.v3",
    "vocab.bpe",
    "bpe.codes",
    "source.spm",
    "merges.txt",
    "prophetnet.tokenizer",
    "chat_template.jinja",
    "additional_chat_templates/tool.jinja",
)


def test_tokenizers_are_copied_and_the_rest_is_named(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "a", example(0), shards=2)
    (first / "additional_chat_templates").mkdir()
    training = ("optimizer.pt", "trainer_state.json", "aim_merging.json")
    for name in (
        *TOKENIZER,
        *training,
        "modeling_x.py",
        "LICENSE",
        "README.md",
        "ROW",
        "labels.json",
        ".gitattributes",
    ):
        (first / name).write_text("x")
    second = write_folder(tmp_path / "b", example(1))
    recipe = parse({"rule": "linear", "models": [str(first), str(second)]}, "test")
    report = merge_checkpoints(recipe, tmp_path / "out")
    for name in TOKENIZER:
        assert (tmp_path / "out" / name).read_text() == "x"
    assert report.not_copied == ["LICENSE", "labels.json", "modeling_x.py"]
    assert not any((tmp_path / "out" / name).exists() for name in (*report.not_copied, *training))


def test_links_out_of_the_folder_are_not_copied(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text('{"token": "hf_secret"}')
    first = write_folder(tmp_path / "a", example(0))
    (first / "additional_chat_templates").mkdir()
    for name in ("notes.json", "chat_template.jinja", "additional_chat_templates/tool.jinja"):
        (first / name).symlink_to(tmp_path / "secret.json")
    (first / "vocab.json").write_text("x")
    (first / "same.json").symlink_to("vocab.json")  # stays within
    blob = tmp_path / "models--own--a" / "blobs" / "5e6f"
    blob.parent.mkdir(parents=True)
    blob.write_text("y")
    (first / "merges.txt").symlink_to(blob)  # as the folders of the hub's cache are made
    recipe = parse({"rule": "linear", "models": [str(first), str(write_folder(tmp_path / "b", example(1)))]}, "test")
    report = merge_checkpoints(recipe, tmp_path / "out")
    assert report.not_copied == ["chat_template.jinja", "notes.json"]
    texts = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert (texts["same.json"], texts["merges.txt"]) == (b"x", b"y")
    assert not any(b"hf_secret" in text for text in texts.values())


def test_code_that_a_config_asks_for_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", example(0))
    mapped = {"AutoModel": "modeling_x.Model", "AutoConfig": "own/y--configuration_y.Config"}
    (folder / "config.json").write_text(json.dumps({"auto_map": mapped}))
    tokenizers = {"AutoTokenizer": ["tokenization_x.Slow", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": tokenizers}))
    (folder / "modeling_x.py").write_text("")
    assert uncopied_files(folder, ("model.safetensors",)) == [
        "modeling_x.py (auto_map of config.json needs it)",
        "tokenization_x.py (auto_map of tokenizer_config.json needs it)",
    ]


def test_a_broken_config_is_found_before_the_merge(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", example(0))
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config\.json cannot be read as JSON"):
        merge_checkpoints(parse({"rule": "linear", "models": [str(folder)]}, "test"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_beside_a_single_file_belongs_to_it(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    assert uncopied_files(tmp_path, ("x.safetensors",)) == []
