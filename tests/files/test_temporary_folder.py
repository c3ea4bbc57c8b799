"""Temporary folders of training: none outlives its process for long."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from merganser.files.temporary_folder import LOCK, LOCKED, NEW, sweep_temporary_folders, temporary_folder


def test_what_killed_processes_left_is_deleted_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        with temporary_folder() as folder:
            (folder / "state").write_text("s")
            os.write(writing, b"made")
            os.kill(os.getpid(), 9)
    assert os.read(reading, 4) == b"made"
    os.waitpid(process, 0)
    (left,) = tmp_path.iterdir()
    assert (left / "state").is_file()
    with temporary_folder() as living:
        assert list(tmp_path.iterdir()) == [living]
        sweep_temporary_folders()  # that of a living process stays
        assert list(tmp_path.iterdir()) == [living]
    assert list(tmp_path.iterdir()) == []
    os.close(reading)
    os.close(writing)


def test_only_folders_of_this_kind_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = ("left", "empty", "content", "new", "old")
    left, empty, content = (tmp_path / f"{LOCKED}{name}" for name in names[:3])
    new, old = (tmp_path / f"{NEW}{name}" for name in names[3:])
    mine = tmp_path / "merganser-mine"
    for folder in (left, empty, content, new, old, mine):
        folder.mkdir()
    (content / "thesis").write_text("mine")
    for folder in (left, new, old, mine):
        (folder / LOCK).write_text("")
    os.utime(old, (0, 0))
    link = tmp_path / f"{LOCKED}link"
    link.symlink_to(mine)
    sweep_temporary_folders()
    # The process of the new one may be about to lock it.
    assert set(tmp_path.iterdir()) == {content, new, mine, link}
    assert (mine / LOCK).is_file()


def test_another_process_may_sweep_the_folder_while_it_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    remove = os.rmdir

    def swept_before(path: str, *, dir_fd: int | None = None) -> None:
        monkeypatch.setattr(os, "rmdir", remove)
        sweep_temporary_folders()  # the lock is gone by now
        assert list(tmp_path.iterdir()) == []
        remove(path, dir_fd=dir_fd)

    with temporary_folder():
        monkeypatch.setattr(os, "rmdir", swept_before)
    assert list(tmp_path.iterdir()) == []


def test_another_process_may_lock_the_folder_while_it_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds the lock, and creates it again when it is gone; then the folder is its to delete."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    remove = os.rmdir

    def locked_before(path: str, *, dir_fd: int | None = None) -> None:
        monkeypatch.setattr(os, "rmdir", remove)
        Path(path, LOCK).touch()
        remove(path, dir_fd=dir_fd)

    with temporary_folder():
        monkeypatch.setattr(os, "rmdir", locked_before)
    assert [path.name for path in tmp_path.rglob("*.lock")] == [LOCK]
    sweep_temporary_folders()
    assert list(tmp_path.iterdir()) == []
