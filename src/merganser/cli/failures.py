"""What went wrong outside of Merganser, in words: memory, disk, permissions, names, the terminal."""

from __future__ import annotations

import errno
import os
import sys
from typing import TextIO

from merganser.errors import InputError, MerganserError, RunError, first_line
from merganser.files.documents import is_unicode

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")
"""In the RuntimeErrors of torch."""

_NO_FOLDER = InputError("The current folder does not exist any more.", "Change to one that does.")


def explain(error: BaseException) -> MerganserError | None:
    """Return cause and remedy of an exception that no code of Merganser expected; ``None`` for a bug."""
    if isinstance(error, OSError):
        return _system_error(error)
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY)
    ):
        return RunError(
            f"The memory is not enough: {first_line(error)}"[:300],
            "Free some, or use less: smaller batches, shorter texts, a smaller model or file.",
        )
    if isinstance(error, ImportError) and "failed to map segment" in str(error):
        return RunError(
            f"The memory is not enough to load a library: {first_line(error)}"[:300],
            "Free some, or raise the limit on memory (ulimit -v).",
        )
    if isinstance(error, RecursionError):
        return InputError("A value is nested too deeply to be read or written.", "Give it fewer levels.")
    if isinstance(error, UnicodeEncodeError) and not is_unicode(error.object):
        return InputError(
            "A name or text holds half a character (a lone surrogate), which no file or terminal can.",
            "Write it again as UTF-8.",
        )
    if isinstance(error, UnicodeDecodeError):
        return InputError(
            f"Bytes that are not UTF-8 were read: {first_line(error)}", "Convert that text to UTF-8 (iconv)."
        )
    if isinstance(error, ValueError) and ("null byte" in str(error) or "null character" in str(error)):
        return InputError("A path holds a NUL character, which no file name can.", "Remove it.")
    return None


def _system_error(error: OSError) -> MerganserError:
    """Explain an error of the operating system; one with a path names it."""
    named = error.filename if isinstance(error.filename, str) else os.fsdecode(error.filename or b"")
    named = named if len(named) <= 200 else f"{named[:200]}..."
    reason = error.strerror or first_line(error)
    reason = f"{reason}: '{named}'" if named else reason
    if error.errno == errno.ENOENT and not _has_working_folder():
        return _NO_FOLDER
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(reason, "Free some space and start again: what was complete before is untouched.")
    if error.errno == errno.EFBIG:
        return RunError(reason, "Raise the limit on the size of files (ulimit -f), or write to another file system.")
    if error.errno == errno.ENAMETOOLONG:
        return InputError(reason, "Use a shorter name.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(reason, "Check the permissions, or choose another folder.")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return RunError(reason, "Raise the limit on open files (ulimit -n).")
    if error.errno == errno.EIO:
        return RunError(reason, "Check the disk, or the terminal that was closed.")
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.EEXIST):
        return InputError(reason, "Check that path.")
    return RunError(reason, "Run again with --debug to see where it happened.")


def require_working_folder() -> None:
    """End with an error where the current folder was deleted: torch would end the process when it is loaded."""
    if not _has_working_folder():
        report(_NO_FOLDER)
        raise SystemExit(_NO_FOLDER.exit_code)


def _has_working_folder() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def prepare_streams() -> None:
    """Let every text be printed: what the terminal's encoding lacks as an escape, and nothing to a closed stream.

    Closed standard input is empty.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started the command: `>&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def one_line(text: str) -> str:
    """Return a message as one line: control characters, which can move the cursor or hide text, are escaped."""
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def report(error: MerganserError | str, file: TextIO | None = None) -> None:
    """Print an error on standard error."""
    try:
        print(f"error: {one_line(str(error))}", file=file or sys.stderr)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # standard error is closed: nobody reads it
