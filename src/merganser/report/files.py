"""Writing the files of a report: whole or not at all, with errors a person can act on."""

from __future__ import annotations

from pathlib import Path

from merganser.errors import InputError
from merganser.files.atomic import make_folder, write_bytes

ANOTHER_FOLDER = "Choose a folder that can be written."
"""Remedy where a file cannot be written."""


def write_whole(path: Path, content: bytes, remedy: str = ANOTHER_FOLDER) -> Path:
    """Write a file completely or not at all, creating its folder.

    Args:
        remedy: what to do where it cannot be written.

    Raises:
        InputError: ``path`` is a folder, a device or a pipe, which would be replaced; or its folder cannot be created
            or written.
        RunError: the disk is full; ``path`` is as it was before.
    """
    if path.is_dir():
        raise InputError(f"'{path}' is a folder, not a file.", f"Name a file, for instance {path / 'report.html'}.")
    if path.exists() and not path.is_file():
        raise InputError(f"'{path}' is a device or a pipe, not a file.", "Name a file.")
    make_folder(path.parent, remedy)
    try:
        write_bytes(path, content, shared=True)
    except OSError as error:
        raise InputError(f"Cannot write in '{path.parent}': {error.strerror}.", remedy) from error
    return path
