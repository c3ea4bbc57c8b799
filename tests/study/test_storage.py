"""Copies of cells in a place that fsspec knows."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from merganser.errors import DiskFullError, InputError
from merganser.learner import Learner
from merganser.study import on_ray
from merganser.study.cells import load_study
from merganser.study.folder import StudyFolder
from merganser.study.orders import Data
from merganser.study.run_cell import run_cell
from merganser.study.storage import Storage
from tests.learner import toys


def test_a_cell_goes_on_on_another_node_from_its_copy(finished: Path, tmp_path: Path) -> None:
    study = load_study(finished / "study.yaml")
    cell = study.find("replay,order-1,s0")
    tasks = Data(finished).tasks(cell.stream)
    url = f"file://{tmp_path}/bucket"
    lost, other = StudyFolder(tmp_path / "lost"), StudyFolder(tmp_path / "other")
    with (
        Storage(url).kept(lost, cell) as listener,
        Learner.of_config(lost.run(cell), cell.config, listener=listener) as learner,
    ):
        learner.learn(tasks[0])
    # A node was lost while it copied a row: its record is not there yet.
    copy = tmp_path / "bucket" / "cells" / cell.name
    shutil.copytree(copy / "tasks/01-mood", copy / "tasks/02-topic")
    (copy / "tasks/02-topic/row.json").unlink()
    shutil.rmtree(lost.path)
    storage = Storage(url)
    with storage.kept(other, cell) as listener:
        assert sorted(path.name for path in (other.run(cell) / "tasks").iterdir()) == ["00-start", "01-mood"]
        run_cell(study, cell, other, Data(finished), listener=listener)
    storage.store_records(study, other, cell)
    whole = toys.results(finished / "out" / "cells" / cell.name)
    assert toys.results(other.run(cell)) == whole
    assert toys.results(copy) == whole
    Storage(url).fetch("records", tmp_path / "records")
    assert [path.name for path in (tmp_path / "records").iterdir()] == [f"{cell.name}.json"]


def test_a_full_disk_is_named_with_its_place_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here, source = tmp_path / "bucket" / "records", tmp_path / "records", tmp_path / "source"
    for folder in (there, source):
        folder.mkdir(parents=True)
        (folder / "a.json").write_text("first")
    storage = Storage(f"file://{tmp_path}/bucket")
    storage.fetch("records", here)
    (there / "a.json").write_text("second")

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("merganser.files.atomic.os.fsync", full)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskFullError, match=rf"is full while writing a.json in '{here}'. Free some space and start"):
        storage.fetch("records", here)
    assert {path.name: path.read_text() for path in here.iterdir()} == {"a.json": "first"}
    monkeypatch.setattr(storage.files, "pipe_file", full)
    with pytest.raises(DiskFullError, match=rf"is full while writing a.json in '{there}'."):
        storage.send(source, "records")
    monkeypatch.undo()
    storage.fetch("records", here)
    assert (here / "a.json").read_text() == "second"


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    on_ray.check_storage(f"file://{tmp_path}/new")
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "file").touch()
    for url in ("nowhere://bucket", f"file://{tmp_path}/file"):
        with pytest.raises(InputError, match="cannot be written"):
            on_ray.check_storage(url)
