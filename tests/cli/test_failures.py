"""What goes wrong outside of Merganser ends in cause and remedy, in one line, and is not called a bug."""

from __future__ import annotations

import errno
import io
import os
import shlex
import sys
from pathlib import Path

import pytest

from merganser.checkpoints.source import refuse_pickle
from merganser.cli import failures
from merganser.errors import InputError
from tests.learner.toys import Command


def system_error(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path) if path else OSError(number, os.strerror(number))


def decoding() -> UnicodeDecodeError:
    return UnicodeDecodeError("utf-8", b"a\xff", 1, 2, "invalid start byte")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (system_error(errno.ENOSPC, "a/b"), 1, "No space left on device: 'a/b'. Free some space"),
        (system_error(errno.EDQUOT), 1, "Free some space"),
        (system_error(errno.EFBIG, "x"), 1, "File too large: 'x'. Raise the limit on the size of files (ulimit -f)"),
        (system_error(errno.ENAMETOOLONG, "n" * 999), 2, "nnn...'. Use a shorter name."),
        (system_error(errno.EACCES, "x"), 2, "Permission denied: 'x'. Check the permissions"),
        (system_error(errno.EROFS, "x"), 2, "Read-only file system: 'x'. Check the permissions, or choose another"),
        (system_error(errno.EMFILE), 1, "Too many open files. Raise the limit on open files (ulimit -n)."),
        (system_error(errno.EIO), 1, "Input/output error. Check the disk"),
        (system_error(errno.ELOOP, "x"), 2, "'x'. Check that path."),
        (system_error(errno.EISDIR, "x"), 2, "Is a directory: 'x'. Check that path."),
        (ConnectionResetError("the hub"), 1, "The hub. Run again with --debug to see where it happened."),
        (MemoryError(), 1, "The memory is not enough: MemoryError. Free some, or use less"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"), 1, "memory is not enough"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "The memory is not enough: CUDA out of"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 1, "(ulimit -v)"),
        (RecursionError("maximum recursion depth exceeded"), 2, "nested too deeply"),
        (UnicodeEncodeError("utf-8", "a\ud800", 1, 2, "surrogates not allowed"), 2, "half a character"),
        (decoding(), 2, "Bytes that are not UTF-8 were read"),
        (ValueError("embedded null byte"), 2, "A path holds a NUL character, which no file name can. Remove it."),
    ],
)
def test_a_failure_has_a_remedy(
    error: Exception, code: int, message: str, merganser: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> None:
        raise error

    monkeypatch.setattr("merganser.runs.read_run", broken)
    done = merganser("report", "run")
    assert message in done.error
    assert "This is a bug" not in done.error
    assert done.code == code


def test_a_bug_is_still_one() -> None:
    assert failures.explain(ZeroDivisionError()) is None
    assert failures.explain(ValueError("wrong")) is None
    assert failures.explain(RuntimeError("wrong")) is None


def test_a_folder_that_was_deleted(merganser: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    done = merganser("report", "run")
    assert (done.code, done.error) == (2, "The current folder does not exist any more. Change to one that does.")
    monkeypatch.chdir(tmp_path)


def test_an_error_is_one_line_without_control_characters(merganser: Command) -> None:
    done = merganser("run", "a\x1b[31m\nb\x7f\udc80.yaml", "--out", "o")
    assert done.error.startswith(r"There is no file 'a\x1b[31m\nb\x7f\udc80.yaml'.")


def test_square_brackets_in_names_are_no_markup(merganser: Command) -> None:
    from merganser.cli.output import OutputConsole

    console = OutputConsole()
    with console.capture() as capture:
        console.print("[/b] [red]x :smile:")
    assert capture.get().strip() == "[/b] [red]x :smile:"


def test_streams_of_any_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed stream is replaced, and one that cannot hold a character shows its escape."""
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", ascii_only)
    failures.prepare_streams()
    print("é")  # to nowhere
    assert sys.stdin.read() == ""
    failures.report(InputError("é.", "Rename it."))
    ascii_only.flush()
    assert ascii_only.buffer.getvalue() == b"error: \\xe9. Rename it.\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["model.bin", "pytorch_model.bin"])
def test_names_in_suggested_commands_are_quoted(name: str) -> None:
    path = Path("it's $(touch x)") / name
    with pytest.raises(InputError) as caught:
        refuse_pickle(path)
    python, flag, code, first, second = shlex.split(caught.value.remedy.removeprefix("Convert it first: ").rstrip("."))
    assert (python, flag) == ("python", "-c")
    compile(code, "command", "exec")
    assert first == str(path if name == "model.bin" else path.parent)
    assert second.startswith("it's $(touch x)")


def test_a_recorded_command_is_quoted(merganser: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorded = {}
    monkeypatch.setattr(sys.modules["merganser.cli.run"], "_read", lambda stream, changes: (None, (), ()))
    monkeypatch.setattr(
        "merganser.cli.live.learn_stream", lambda *given, command, **more: recorded.update(command=command)
    )
    assert merganser("run", "my stream.yaml", "--out", "$(x)", "--seed", "3").code == 0
    assert recorded["command"] == "merganser run 'my stream.yaml' --out '$(x)' --seed 3"
