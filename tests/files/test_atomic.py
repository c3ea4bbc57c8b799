"""Files that are there completely or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from merganser.errors import RunError
from merganser.files import atomic


def full_fsync(monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOSPC) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)


def test_text_json_lines_and_yaml(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "a.txt", "ä\u2028b\n")
    assert (tmp_path / "a.txt").read_bytes() == "ä\u2028b\n".encode()
    atomic.write_json(tmp_path / "a.json", {"x": "ä", "y": [1, None]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n "x": "ä",\n "y": [\n  1,\n  null\n ]\n}\n'
    atomic.write_json_lines(tmp_path / "a.jsonl", [{"x": "1\n2"}, {"x": 2}])
    assert (tmp_path / "a.jsonl").read_text() == '{"x": "1\\n2"}\n{"x": 2}\n'
    atomic.write_yaml(tmp_path / "a.yaml", {"z": 1, "a": "ä"})
    assert (tmp_path / "a.yaml").read_text(encoding="utf-8") == "z: 1\na: ä\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.jsonl", "a.txt", "a.yaml"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_file(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic.write_text(tmp_path / "a.txt", "old")
    full_fsync(monkeypatch, code)
    with pytest.raises(RunError) as raised:
        atomic.write_text(tmp_path / "a.txt", "new")
    assert str(raised.value) == (
        f"The disk is full while writing a.txt in '{tmp_path}'. "
        "Free some space and start again: what was complete before is untouched."
    )
    assert raised.value.exit_code == 1
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_other_errors_keep_their_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_fsync(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        atomic.write_text(tmp_path / "a.txt", "new")
    assert list(tmp_path.iterdir()) == []


def test_errors_that_libraries_report_as_text_only(tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match="The disk is full while writing weights"),
        atomic.full_disk_is_an_error(tmp_path / "weights"),
    ):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    for write in (
        lambda: atomic.write_json(tmp_path / "a.json", {"loss": float("nan")}),
        lambda: atomic.write_json_lines(tmp_path / "a.json", [{"loss": float("inf")}]),
    ):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_place_of_another(tmp_path: Path) -> None:
    for name in ("new", "there", "there.old.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    atomic.replace_folder(tmp_path / "new", tmp_path / "there")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["there", "there/new"]
    (tmp_path / "first").mkdir()
    atomic.replace_folder(tmp_path / "first", tmp_path / "absent")
    assert (tmp_path / "absent").is_dir()


def test_sync_tree_reaches_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("c")
    (tmp_path / "a" / "d").write_text("d")
    synced = []
    ordinary = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        ordinary(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    atomic.sync_tree(tmp_path / "a")
    assert synced == ["c", "d", "a"]
