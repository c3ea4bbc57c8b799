"""Writing the files of a report: whole or not at all, with errors a person can act on."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from merganser.errors import InputError, RunError


def make_folder(folder: Path) -> Path:
    """Create ``folder`` and its parents where absent.

    Raises:
        InputError: ``folder`` or one of its parents is a file, or may not be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot create '{folder}': {error.strerror}.", "Choose a folder that can be written."
        ) from error
    return folder


def write_whole(path: Path, content: bytes) -> Path:
    """Write ``content`` under a temporary name beside ``path``, then rename: a reader never sees half a file.

    Raises:
        InputError: ``path`` is a folder, or its folder cannot be created or written.
        RunError: writing stopped half-way (a full disk); ``path`` is as it was before.
    """
    if path.is_dir():
        raise InputError(f"'{path}' is a folder, not a file.", f"Name a file, for instance {path / 'report.html'}.")
    make_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise InputError(
            f"cannot write in '{path.parent}': {error.strerror}.", "Choose a folder that can be written."
        ) from error
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        # mkstemp makes files private; a report is meant to be shared as any new file of this user is.
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise RunError(f"could not write '{path}': {error.strerror}.", "Free some space and try again.") from error
    return path


def _umask() -> int:
    """The process's umask; the system has no way of reading it without setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
