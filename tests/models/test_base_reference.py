"""The name under which others find the pretrained model of an adapter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from merganser.errors import InputError
from merganser.models.base import Backbone
from merganser.models.base_reference import BaseReference, base_reference
from merganser.models.export import Destination, export_model
from merganser.models.pretrained import Pretrained
from merganser.models.source import ModelSource
from merganser.streams.answers import AnswerSpec
from tests.models.conftest import Loader

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def backbone(load: Loader) -> Backbone:
    return load("causal")


def read_from(backbone: Backbone, source: ModelSource) -> Pretrained:
    return replace(backbone.pretrained_from, source=source)


def test_hub_ids(backbone: Backbone, tmp_path: Path) -> None:
    hub = read_from(backbone, ModelSource("org/name", "org/name", "v1"))
    assert base_reference(hub) == BaseReference("org/name", "v1")
    hub.settings.config._commit_hash = COMMIT  # of what was read: a tag may move
    assert base_reference(hub) == BaseReference("org/name", COMMIT)
    assert base_reference(hub).pinned == f"org/name@{COMMIT}"
    cached = tmp_path / "models--org--name" / "snapshots" / COMMIT
    cached.mkdir(parents=True)
    assert base_reference(read_from(backbone, ModelSource("x", str(cached)))) == BaseReference("org/name", COMMIT)


def test_folders_and_files_have_a_placeholder(backbone: Backbone, tmp_path: Path) -> None:
    found = base_reference(backbone.pretrained_from)
    assert (found.name, found.revision, found.on_hub) == ("./base/llama", None, False)
    gguf = read_from(backbone, ModelSource("x", str(tmp_path), gguf=tmp_path / "tiny-q8.gguf"))
    assert base_reference(gguf) == BaseReference("./base/tiny-q8", gguf="tiny-q8.gguf")
    assert base_reference(gguf, "org/name@v2") == BaseReference("org/name", "v2")
    for wrong in ("a/b/c", "", "@v2", "/home/me/model"):
        with pytest.raises(InputError, match="no hub id"):
            base_reference(gguf, wrong)


def test_an_adapter_names_it(backbone: Backbone, tmp_path: Path) -> None:
    export_model(backbone, tmp_path / "folder", {"a": AnswerSpec()}, False)
    config = json.loads((tmp_path / "folder" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("./base/llama", None)
    card = (tmp_path / "folder" / "README.md").read_text()
    assert "names a placeholder for it, `./base/llama`" in card
    assert str(Path(backbone.options.name).parent) not in card  # the place on this machine
    to = Destination(base_model="org/name@v2")
    export_model(backbone, tmp_path / "hub", {"a": AnswerSpec()}, False, to=to)
    config = json.loads((tmp_path / "hub" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/name", "v2")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "base_model: org/name" in card
    assert "from_pretrained('org/name', revision='v2'" in card
    # The model in memory, and so the run's own files, have the place that Merganser finds.
    backbone.save_weights(tmp_path / "own")
    config = json.loads((tmp_path / "own" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == backbone.options.name
