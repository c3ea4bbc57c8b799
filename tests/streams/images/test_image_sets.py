"""The built-in sets of images."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from merganser.errors import InputError
from merganser.streams.loading import load_stream
from merganser.streams.options import StreamOptions


def list_of(stream: object) -> list[str]:
    return [label for task in stream.tasks for label in task.spec.labels]  # type: ignore[attr-defined]


def test_a_built_in_set_reads_a_folder(tmp_path: Path) -> None:
    labels = [f"kind-{i:02d}" for i in range(100)]
    for part in ("train", "test"):
        for label in labels:
            (tmp_path / part / label).mkdir(parents=True)
            Image.new("L", (4, 4)).save(tmp_path / part / label / "0.png")
    options = StreamOptions.model_validate({"name": "cifar100-5", "folder": ".", "split": {"order_seed": 1}})
    stream = load_stream(options, tmp_path)
    assert [task.name for task in stream.tasks] == [f"cifar100-5-{i:02d}" for i in range(1, 6)]
    assert sorted(label for task in stream.tasks for label in task.spec.labels or ()) == labels
    again = {"name": "cifar100-5", "folder": ".", "split": {"classes_per_task": 40, "order": list_of(stream)}}
    assert len(load_stream(StreamOptions.model_validate(again), tmp_path).tasks) == 3
    shutil.rmtree(tmp_path / "train" / "kind-07")
    with pytest.raises(InputError, match=r"is a stream of 100 classes, and \./train has 99"):
        load_stream(options, tmp_path)
