"""The folder of an export: one writer at a time, nothing of a person's is replaced, all of it is flushed."""

from __future__ import annotations

from pathlib import Path

import pytest

from merganser.files import atomic
from merganser.files.target_lock import target_lock
from merganser.learner import exporting
from tests.learner.toys import Command, contents


def test_one_export_at_a_time(run: Path, merganser: Command) -> None:
    out = run.parent / "out"
    with target_lock(out):
        done = merganser("export", run, out)
    assert done.code == 2
    assert done.error == (
        f"'{out}' is being written by another process. Wait until it has finished, or choose another folder."
    )
    assert not out.exists()
    assert merganser("export", run, out).code == 0
    assert not list(run.parent.glob(".out*"))


def test_an_export_that_another_overtakes_changes_nothing(
    run: Path, merganser: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on file systems without locks: the other one finishes between the check and the rename."""
    out = run.parent / "out"
    rename = atomic.rename

    def overtaken(source: Path, target: Path) -> None:
        if target == out:
            out.mkdir()
            (out / "adapter_model.safetensors").write_text("of the other")
        rename(source, target)

    monkeypatch.setattr(atomic, "rename", overtaken)
    done = merganser("export", run, out)
    assert (done.code, done.error) == (2, f"'{out}' has appeared in the meantime. Choose a new folder.")
    assert contents(out) == {"adapter_model.safetensors": b"of the other"}
    assert not list(run.parent.glob(".out*"))


def test_what_is_a_persons_stays(run: Path, merganser: Command) -> None:
    out, partial = run.parent / "out", run.parent / "out.partial"
    partial.mkdir()
    (partial / "thesis").write_text("mine")
    out.symlink_to(run.parent / "nowhere")
    refused = merganser("export", run, out).error
    assert refused == f"'{out}' exists. Choose a new folder, or replace an earlier export with --overwrite."
    assert merganser("export", run, out, "--overwrite").error.startswith(f"'{out}' is a link.")
    out.unlink()
    assert merganser("export", run, out).code == 0
    assert contents(partial) == {"thesis": b"mine"}


@pytest.mark.parametrize("merged", [False, True])
def test_all_of_it_is_flushed_before_it_is_renamed(
    merged: bool, run: Path, merganser: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run.parent / "deep" / "out"
    flushed: set[str] = set()
    flush, rename = atomic.flush, atomic.rename

    def noting_flush(path: Path) -> None:
        flushed.add(path.name)
        flush(path)

    def noting_rename(source: Path, target: Path) -> None:
        if target == out:
            assert flushed >= {path.name for path in source.rglob("*")} | {source.name}
            assert run.parent.name in flushed  # for the name of the folder above
            flushed.clear()
        rename(source, target)

    monkeypatch.setattr(atomic, "flush", noting_flush)
    monkeypatch.setattr(atomic, "rename", noting_rename)
    assert merganser("export", run, out, *(["--merged"] if merged else [])).code == 0
    assert flushed == {"deep"}  # the new name
    assert any(path.suffix == ".safetensors" for path in out.iterdir())
    # A server of another user reads it, if the umask lets one.
    assert {path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()} == {out.stat().st_mode & 0o666}


@pytest.mark.parametrize("inside", ["model/exported", "tasks/exported", "exported"])
def test_no_export_goes_into_the_run(inside: str, run: Path, merganser: Command) -> None:
    done = merganser("export", run, run / inside)
    assert done.code == 2
    assert "is in the folder of the run" in done.error
    assert not (run / inside).exists()


def test_an_earlier_export_is_replaced_when_the_new_one_is_complete(
    run: Path, merganser: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, partial = run.parent / "out", run.parent / "out.partial"
    partial.mkdir()
    (partial / "thesis").write_text("mine")
    assert merganser("export", run, out).code == 0
    before = contents(out)
    with target_lock(out):
        assert "being written by another process" in merganser("export", run, out, "--overwrite").error
    with monkeypatch.context() as patched:
        patched.setattr(exporting, "export_model", lambda *_, **__: 1 / 0)
        assert merganser("export", run, out, "--overwrite").code != 0
    assert contents(out) == before
    assert merganser("export", run, out, "--overwrite", "--merged").code == 0
    assert "model.safetensors" in contents(out)
    assert "adapter_model.safetensors" not in contents(out)
    assert contents(partial) == {"thesis": b"mine"}
    assert not list(run.parent.glob(".out*"))


def test_nothing_else_is_replaced(run: Path, merganser: Command) -> None:
    (run.parent / "work").mkdir()
    (run.parent / "work" / "README.md").write_text("mine")
    above = {"is not an export": run.parent / "work", "holds an input of the export": run.parent}
    for words, out in above.items():
        done = merganser("export", run, out, "--overwrite")
        assert (done.code, words in done.error) == (2, True), done.error
    assert (run.parent / "work" / "README.md").read_text() == "mine"


def test_what_is_asked_for_is_checked_before_any_work(
    run: Path, merganser: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    out = run.parent / "out"
    for arguments, words in [
        (["--gguf", "f16"], "convert_lora_to_gguf.py was not found"),
        (["--gguf", "f16", "--merged"], "convert_hf_to_gguf.py was not found"),
        (["--llama-cpp", "."], "--gguf"),
        (["--base-model", "a/b/c"], "no hub id"),
        (["--dtype", "int3"], "no type 'int3'"),
    ]:
        done = merganser("export", run, out, *arguments)
        assert (done.code, words in done.error) == (2, True), done.error
        assert not out.exists()
