"""Files that are there completely or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from merganser.errors import InputError, RunError
from merganser.files import atomic
from merganser.files.temporary_names import unique_temporary_path


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file of a folder with its bytes, every folder with ``None``."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


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
    for name in ("model", "model.partial", "model.old.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    for name in ("model", "absent"):
        with atomic.new_folder(tmp_path / name) as folder:
            assert list(folder.iterdir()) == []
            (folder / "new").write_text("new")
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert names == ["absent", "absent/new", "model", "model/new"]


def test_everything_is_flushed_before_the_first_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    flush, rename = atomic.flush, atomic.rename

    def noting_flush(path: Path) -> None:
        done.append(f"flush {path.relative_to(tmp_path)}")
        flush(path)

    def noting_rename(source: Path, target: Path) -> None:
        done.append(f"rename {target.relative_to(tmp_path)}")
        rename(source, target)

    monkeypatch.setattr(atomic, "flush", noting_flush)
    monkeypatch.setattr(atomic, "rename", noting_rename)
    (tmp_path / "row").mkdir()
    with atomic.StagedChanges() as changes:
        changes.remove_folder(tmp_path / "row")
        changes.write(tmp_path / "file", b"f")
        folder = changes.folder(tmp_path / "folder")
        (folder / "a" / "b").mkdir(parents=True)
        (folder / "a" / "b" / "c").write_text("c")
        (folder / "d").write_text("d")
        assert [path.name for path in tmp_path.iterdir() if path.name == "row"] == ["row"]
    inside = ["d", "a/b/c", "a/b", "a"]
    assert done == [
        "flush file.partial",
        *(f"flush folder.partial/{name}" for name in inside),
        "flush folder.partial",
        *("rename row.partial", "flush ."),
        *("rename file", "flush ."),
        *("rename folder", "flush ."),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("fails", ["in the block", "when flushed"])
def test_staged_changes_that_fail_change_nothing(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("row", "folder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").write_text(name)
    atomic.write_text(tmp_path / "file", "old")
    before = contents(tmp_path)

    def change() -> None:
        with atomic.StagedChanges() as changes:
            changes.remove_folder(tmp_path / "row")
            changes.write(tmp_path / "file", b"new")
            (changes.folder(tmp_path / "folder") / "new").write_text("new")
            if fails == "in the block":
                raise KeyboardInterrupt
            full_fsync(monkeypatch, errno.ENOSPC)

    with pytest.raises(KeyboardInterrupt if fails == "in the block" else RunError):
        change()
    assert contents(tmp_path) == before


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    rename = atomic.rename

    def fails(source: Path, target: Path) -> None:
        if target.name == "out" and ".old" not in source.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(atomic, "rename", fails)
    with pytest.raises(OSError, match="Input/output error"), atomic.new_folder(tmp_path / "out", shared=True) as folder:
        (folder / "new").write_text("new")
    assert contents(tmp_path) == {"out": None, "out/old": b"old"}


def test_a_folder_has_one_writer_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with atomic.new_folder(out, shared=True) as first:
        (first / "a").write_text("1")
        with (
            pytest.raises(InputError, match=r"out' is being written by another process\. Wait until"),
            atomic.new_folder(out, shared=True),
        ):
            raise AssertionError
        atomic.sweep_all([out])  # spares what is being written
        with atomic.new_folder(tmp_path / "other", shared=True):
            pass
    assert contents(tmp_path) == {"other": None, "out": None, "out/a": b"1"}
    with atomic.new_folder(out, shared=True):
        pass
    assert contents(tmp_path) == {"other": None, "out": None}


def test_names_like_temporary_ones_belong_to_the_person(tmp_path: Path) -> None:
    """A folder called ``OUT.partial`` beside OUT, and one like a unique name without a process in it."""
    for name in ("out.partial", ".out.mine.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis").write_text("t")
    with atomic.new_folder(tmp_path / "out", shared=True) as folder:
        (folder / "a").write_text("1")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.partial", ".out.mine.partial"}
    assert (tmp_path / "out.partial" / "thesis").read_text() == "t"
    assert (tmp_path / ".out.mine.partial" / "thesis").read_text() == "t"


@pytest.mark.parametrize("taken", ["folder", "file", "link", "empty folder"])
def test_what_appears_at_a_new_folder_in_the_meantime_stays(taken: str, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def write() -> None:
        with atomic.new_folder(out, shared=True, replace=False) as folder:
            (folder / "a").write_text("1")
            if taken == "file":
                out.write_text("mine")
            elif taken == "link":
                out.symlink_to(tmp_path)
            else:
                out.mkdir()
                if taken == "folder":
                    (out / "thesis").write_text("mine")

    if taken == "empty folder":
        write()
        assert contents(tmp_path) == {"out": None, "out/a": b"1"}
        return
    with pytest.raises(InputError, match="has appeared in the meantime"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert out.is_symlink() or "mine" in {*(path.read_text() for path in out.glob("*")), out.is_file() and "mine"}


def test_links_in_the_place_of_targets_and_temporary_names_are_not_followed(tmp_path: Path) -> None:
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "run"
    elsewhere.mkdir()
    run.mkdir()
    (elsewhere / "file").write_text("mine")
    for name in ("file", "file.partial"):
        (run / name).symlink_to(elsewhere / "file")
    for name in ("folder", "folder.partial", "folder.old.partial"):
        (run / name).symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic links"):
        atomic.write(run / "file.partial", b"ours")
    with atomic.StagedChanges() as changes:
        changes.write(run / "file", b"ours")
        (changes.folder(run / "folder") / "a").write_text("a")
    assert contents(elsewhere) == {"file": b"mine"}
    assert contents(run) == {"file": b"ours", "folder": None, "folder/a": b"a"}
    assert not any(path.is_symlink() for path in run.rglob("*"))


def test_the_names_of_new_folders_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(atomic, "flush", flushed.append)
    atomic.make_folder(tmp_path / "a" / "b" / "c")
    assert flushed == [tmp_path / "a" / "b", tmp_path / "a", tmp_path]
    flushed.clear()
    atomic.make_folder(tmp_path / "a" / "b")
    atomic.make_folder(tmp_path / "a" / "d.partial")
    assert flushed == []


def test_an_old_folder_that_cannot_be_removed_is_left_to_the_next_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    target = tmp_path / "out"
    with atomic.new_folder(target, shared=True) as folder:
        (folder / "a").write_text("1")
    with monkeypatch.context() as patch, atomic.new_folder(target, shared=True) as folder:
        (folder / "b").write_text("2")
        patch.setattr(os, "rmdir", fails)
    assert [path.name for path in target.iterdir()] == ["b"]
    assert len(list(tmp_path.iterdir())) == 2
    with atomic.new_folder(target, shared=True) as folder:
        (folder / "c").write_text("3")
    assert contents(tmp_path) == {"out": None, "out/c": b"3"}


@pytest.mark.parametrize("name", ["out", "out[1]"])
def test_what_killed_writers_left_is_removed_or_gets_its_name_back(name: str, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    host = unique_temporary_path(tmp_path / name).name.split(".")[2].split("-")[0]
    mine, living, elsewhere = f"{host}-{os.getpid()}-77", f"{host}-{os.getppid()}-0", f"other-host-{dead.pid}-0"
    for writer in (f"{host}-{dead.pid}-0", mine, living, elsewhere):
        (tmp_path / f".{name}.{writer}.partial").mkdir()
    (tmp_path / f".{name}.{host}-{dead.pid}-0.old.partial").mkdir()
    (tmp_path / f".{name}.{host}-{dead.pid}-0.old.partial" / "complete").write_text("c")
    (tmp_path / f".{name}.b.{host}-{dead.pid}-0.partial").mkdir()
    atomic.sweep(tmp_path / name)
    left = {f".{name}.{living}.partial", f".{name}.{elsewhere}.partial", f".{name}.b.{host}-{dead.pid}-0.partial", name}
    assert {path.name for path in tmp_path.iterdir()} == left
    assert (tmp_path / name / "complete").is_file()
    for ours in (f"{name}.partial", f"{name}.old.partial"):
        (tmp_path / ours).mkdir()
    atomic.sweep_all([tmp_path / name])
    assert {path.name for path in tmp_path.iterdir()} == left


def test_tensors(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    atomic.write_tensors(tmp_path / "w", {"a": torch.ones(2, 3).T, "b": torch.tensor(1)}, {"format": "pt"})
    loaded = load_file(tmp_path / "w")
    assert torch.equal(loaded["a"], torch.ones(3, 2))
    assert loaded["b"].item() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(InputError, match=r"Cannot create .*: Not a directory\. Choose a folder that can be written\."):
        atomic.make_folder(tmp_path / "file" / "a")


@pytest.mark.parametrize(
    "error", [OSError(errno.EFBIG, os.strerror(errno.EFBIG)), RuntimeError("I/O error: File too large (os error 27)")]
)
def test_a_limit_on_the_size_of_files_is_named(error: Exception, tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match=r"The file x in '.*' would be larger than a file may be\. Raise the limit"),
        atomic.full_disk_is_an_error(tmp_path / "x"),
    ):
        raise error
