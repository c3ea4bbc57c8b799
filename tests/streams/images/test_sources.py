"""Folders and tables of images."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from merganser.errors import InputError
from merganser.streams.loading import load_task
from merganser.streams.memory import memory_bytes
from merganser.streams.task_options import TaskOptions


def test_a_folder_has_a_class_per_sub_folder(folder: Path) -> None:
    task = load_task(TaskOptions(name="pets", train="pets", test="pets"), folder)
    assert task.spec.labels == ("cat", "dog")
    assert [example.output for example in task.train] == ["cat"] * 3 + ["dog"] * 3
    assert task.train[4].input == "pets/dog/1.png"
    assert memory_bytes(task.train[:1]) == len("pets/cat/0.pngcat") + (folder / "pets/cat/0.png").stat().st_size


def test_bad_folders_are_refused(folder: Path) -> None:
    options = TaskOptions(name="pets", train="pets")
    (folder / "pets/dog/1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"pets/dog/1\.png is not an image"):
        load_task(options, folder)
    for file in (folder / "pets/dog").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="pets/dog: has no images"):
        load_task(options, folder)
    with pytest.raises(InputError, match="pets/cat: has no sub-folders"):
        load_task(TaskOptions(name="pets", train="pets/cat"), folder)
    with pytest.raises(InputError, match="'classes' names"):
        load_task(TaskOptions(name="pets", train="pets", classes=["a", "b"]), folder)


def test_a_table_names_paths_or_holds_images(folder: Path) -> None:
    (folder / "list.csv").write_text("file,kind\npets/cat/0.png,cat\npets/dog/0.png,dog\n")
    options = TaskOptions(name="t", train="list.csv", image="file", output="kind")
    listed = load_task(options, folder)
    data = [(folder / f"pets/{kind}/0.png").read_bytes() for kind in ("cat", "dog")]
    table = pyarrow.table({"img": [{"bytes": each, "path": None} for each in data], "kind": ["cat", "dog"]})
    pyarrow.parquet.write_table(table, folder / "t.parquet")
    packed = load_task(TaskOptions(name="t", train="t.parquet", image="img", output="kind"), folder)
    assert packed.fingerprint() == listed.fingerprint()
    (folder / "list.csv").write_text("file,kind\npets/cat/0.png,cat\npets/dog/9.png,dog\n")
    with pytest.raises(InputError, match=r"pets/dog/9\.png: there is no such file"):
        load_task(options, folder)
    with pytest.raises(ValueError, match="also an 'input' or a 'prompt'"):
        TaskOptions(name="t", train="list.csv", image="file", prompt="Look: {input}")


def test_a_folder_that_is_not_there(folder: Path) -> None:
    with pytest.raises(InputError, match=r"pest: there is no such file or folder\. Did you mean 'pets'"):
        load_task(TaskOptions(name="pets", train="pest"), folder)
