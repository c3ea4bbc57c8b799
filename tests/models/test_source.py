from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from merganser.errors import InputError
from merganser.models.base import Lengths
from merganser.models.loading import load_backbone
from merganser.models.options import ModelOptions
from merganser.models.source import ModelSource, check_folder
from merganser.models.weight_files import load_model
from tests.models.conftest import Loader


@pytest.fixture
def model(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the tiny decoder, to be spoiled."""
    return Path(shutil.copytree(folders["causal"], tmp_path / "model"))


def index(folder: Path, shard: object) -> None:
    """Names a file in an index in place of the weights file."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    names = {"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors", "model.norm.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(names))


def config(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))


def with_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "own/base", "peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(b"")


def adapter_alone(folder: Path) -> None:
    with_adapter(folder)
    (folder / "model.safetensors").unlink()


def linked(folder: Path) -> None:
    secret = folder.parent / "secret.json"
    (folder / "tokenizer_config.json").rename(secret)
    (folder / "tokenizer_config.json").symlink_to(secret)


SPOILED: dict[str, tuple[Callable[[Path], None], str]] = {
    "both": (with_adapter, "holds a model and an adapter"),
    "adapter": (adapter_alone, r"holds an adapter \(of own/base\), not a model"),
    "pickle": (lambda folder: index(folder, "evil.bin"), "'evil.bin', which is not a safetensors file"),
    "outside": (lambda folder: index(folder, "../m.safetensors"), "outside its folder: '../m.safetensors'"),
    "absolute": (lambda folder: index(folder, "/m.safetensors"), "outside its folder: '/m.safetensors'"),
    "no name": (lambda folder: index(folder, 3), "outside its folder: 3"),
    "list": (lambda folder: index(folder, ["b.safetensors"]), r"outside its folder: \['b"),
    "missing": (lambda folder: index(folder, "b.safetensors"), r"lacks 1 of its weight files, first b\.safetensors"),
    "named pickle": (lambda folder: config(folder, transformers_weights="adapter_model.bin"), "not a safetensors file"),
    "named elsewhere": (lambda folder: config(folder, transformers_weights="../a.safetensors"), "outside its folder"),
    "link": (linked, r"tokenizer_config\.json .* is a link to .*secret\.json, outside"),
}


@pytest.mark.parametrize("which", SPOILED)
def test_a_folder_that_is_not_read_as_it_looks(
    which: str, model: Path, load: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, message = SPOILED[which]
    spoil(model)
    monkeypatch.setattr(torch, "load", None)  # nothing is unpickled
    with pytest.raises(InputError, match=message) as error:
        load_backbone(ModelOptions(name=str(model), kind="causal"), Lengths(32, 8), 0)
    assert error.value.remedy
    with pytest.raises(InputError, match=message):
        load_model(load("causal", lora=None).model, model)


def test_links_within_the_folder_and_into_the_cache_of_the_hub_are_followed(model: Path) -> None:
    blob = model.parent / "models--own--a" / "blobs" / "5e6f"
    blob.parent.mkdir(parents=True)
    (model / "tokenizer.json").rename(blob)
    (model / "tokenizer.json").symlink_to(blob)
    (model / "config.json").rename(model / "real.json")
    (model / "config.json").symlink_to("real.json")
    (model / "model.safetensors").rename(model.parent / "elsewhere.safetensors")
    (model / "model.safetensors").symlink_to(model.parent / "elsewhere.safetensors")
    check_folder(model, "model")


def test_a_model_of_the_hub(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "a" * 40
    repository = tmp_path / "models--own--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = Path(shutil.copytree(folders["causal"], repository / "snapshots" / commit))
    source = ModelSource("own/tiny", "own/tiny")
    assert source.weight_files() == [snapshot / "model.safetensors"]
    assert source.file("adapter_config.json") is None
    source.check_weights()
    options = ModelOptions(name="own/tiny", kind="causal", lora=None, precision="fp32")
    assert load_backbone(options, Lengths(32, 8), 0).pretrained_from.source.weight_files() == source.weight_files()
    index(snapshot, "../evil.bin")
    for check in (source.check_weights, source.weight_files):
        with pytest.raises(InputError, match="outside its folder"):
            check()
    with_adapter(snapshot)
    with pytest.raises(InputError, match="holds a model and an adapter"):
        load_backbone(ModelOptions(name="own/tiny", kind="causal"), Lengths(32, 8), 0)
