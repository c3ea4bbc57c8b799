"""Pillow is optional: the code of images is not imported until a task has images."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from merganser.errors import InputError
from merganser.models.base import Lengths
from merganser.models.loading import load_backbone
from merganser.models.options import ModelOptions
from merganser.streams.images.picture import require_pillow
from merganser.streams.loading import load_task
from merganser.streams.task_options import TaskOptions
from tests.faults import forked
from tests.tiny import tiny_vit

REMEDY = r"needs the package pillow\. Install it: pip install 'merganser\[images\]'\."


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    return tiny_vit(tmp_path / "vit")


@pytest.fixture
def no_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "PIL"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "PIL", None)


@pytest.mark.parametrize(
    "options",
    [{"train": "pets"}, {"train": "list.csv", "image": "file", "output": "kind"}],
    ids=["folder", "table"],
)
def test_a_task_of_images_names_the_extra(options: dict[str, str], folder: Path, no_pillow: None) -> None:
    (folder / "list.csv").write_text("file,kind\npets/cat/0.png,cat\npets/dog/0.png,dog\n")
    with pytest.raises(InputError, match=REMEDY):
        load_task(TaskOptions.model_validate({"name": "t", **options}), folder)


def test_idx_files_name_the_extra(idx_files: Path, no_pillow: None) -> None:
    """They hold plain pixels, but batches are made by pillow: training would stop at its first step."""
    with pytest.raises(InputError, match=REMEDY):
        load_task(TaskOptions(name="t", train="train-images-idx3-ubyte.gz"), idx_files)


def test_a_model_of_images_names_the_extra(vit: Path, no_pillow: None) -> None:
    """Whoever resumes a run, or asks it, loads its model first."""
    with pytest.raises(InputError, match=REMEDY):
        load_backbone(ModelOptions(name=str(vit), kind="matcher"), Lengths(8, 8), seed=0)


def test_pillow_that_is_there_is_accepted() -> None:
    require_pillow()


def test_texts_import_nothing_of_images(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("input,output\nfine,yes\ngood,yes\nbad,no\npoor,no\n")

    def from_nothing() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "merganser"]:
            del sys.modules[name]
        for name in ("learner.learner", "learner.example_store", "models.loading"):
            importlib.import_module(f"merganser.{name}")
        options = importlib.import_module("merganser.streams.task_options").TaskOptions(name="t", train="t.csv")
        importlib.import_module("merganser.streams.loading").load_task(options, tmp_path)
        tables = {"merganser.streams.images", "merganser.streams.images.image_sets"}  # names of built-in streams
        images = {name for name in sys.modules if name.startswith("merganser.streams.images")}
        assert (images - tables) | ({"merganser.models.vision"} & set(sys.modules)) == set()

    forked(from_nothing)
