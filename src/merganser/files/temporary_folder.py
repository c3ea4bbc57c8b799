"""Temporary folders in TMPDIR, of which none outlives its process for long."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

LOCKED = "merganser-training-"
"""Beginning of the names of folders whose process holds the lock in them, or has ended."""

NEW = "merganser-new-"
"""Beginning of the names until the lock is held."""

LOCK = "in-use.lock"
"""File in the folder that its process holds locked; the operating system releases it when the process ends."""

GRACE = 60.0
"""Seconds after which a new folder was left by a process that ended before it held the lock."""


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Create an empty folder in TMPDIR, which is deleted at the end of the block.

    What killed processes left there is deleted first.
    """
    from filelock import FileLock

    sweep_temporary_folders()
    new = Path(tempfile.mkdtemp(prefix=NEW))
    with FileLock(new / LOCK, timeout=0, thread_local=False):
        folder = new.with_name(LOCKED + new.name.removeprefix(NEW))
        new.rename(folder)
        try:
            yield folder
        finally:
            _delete(folder)


def sweep_temporary_folders() -> None:
    """Delete the folders of :func:`temporary_folder` whose processes have ended."""
    place = Path(tempfile.gettempdir())
    long_ago = time.time() - GRACE
    for folder in [*place.glob(f"{LOCKED}*"), *place.glob(f"{NEW}*")]:
        # One that vanishes, or that another user owns, is another's to delete.
        with contextlib.suppress(OSError):
            state = folder.lstat()
            if state.st_uid == os.getuid() and (folder.name.startswith(LOCKED) or state.st_mtime < long_ago):
                _sweep(folder)


def _sweep(folder: Path) -> None:
    from filelock import FileLock, Timeout

    if folder.is_symlink() or not (folder / LOCK).is_file():
        folder.rmdir()  # refused for a link, and where something is in it: then it is not one of these
        return
    lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return  # its process is alive
    try:
        _delete(folder)
    finally:
        lock.release()


def _delete(folder: Path) -> None:
    """Delete a folder, its lock last: what an interruption leaves can be told from other folders."""
    for path in folder.iterdir():
        if path.name != LOCK:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    # Without its lock the folder is anybody's to sweep: another process may have removed it, or put a lock of its own
    # into it in order to remove it.
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
