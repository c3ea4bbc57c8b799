"""The user's cache folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from merganser.errors import InputError
from merganser.files.atomic import FULL, full_disk_is_an_error, make_folder, new_folder

CACHE_VARIABLE = "MERGANSER_CACHE"
"""Environment variable that names the cache folder."""


def cache_folder(name: str) -> Path:
    """Return a folder of the cache.

    The cache is ``$MERGANSER_CACHE``, else ``$XDG_CACHE_HOME/merganser``, else ``~/.cache/merganser``.

    Args:
        name: what is kept there, for instance ``references``.
    """
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser() / name
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "merganser" / name


_only_read = False


@contextmanager
def cache_only_read() -> Iterator[None]:
    """Remember nothing in the cache inside; what cannot be done without it, such as a converted model, is put there."""
    global _only_read
    before, _only_read = _only_read, True
    try:
        yield
    finally:
        _only_read = before


def remembers() -> bool:
    """Return whether results that can be computed again are written to the cache."""
    return not _only_read


def make_cache(folder: Path) -> Path:
    """Create a folder of the cache where absent.

    Raises:
        InputError: it cannot be created.
        RunError: the disk is full.
    """
    return make_folder(folder, f"Set {CACHE_VARIABLE} to a folder that can be written.")


def fill_once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Return a folder of the cache that the first process to need it fills; others wait for it.

    Args:
        fill: writes the content into an empty folder.

    Raises:
        InputError: the cache cannot be written.
        RunError: the disk is full.
    """
    if folder.is_dir():
        return folder
    make_cache(folder.parent)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    with full_disk_is_an_error(folder):
        try:
            lock.acquire()
        except OSError as error:
            if error.errno in FULL:
                raise
            raise InputError(
                f"Cannot write in '{folder.parent}': {error.strerror}.",
                f"Set {CACHE_VARIABLE} to a folder that can be written.",
            ) from error
    try:
        if not folder.is_dir():
            with new_folder(folder, shared=True) as temporary:
                fill(temporary)
    finally:
        lock.release()
    return folder
