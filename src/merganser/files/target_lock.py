"""The lock that keeps two processes from writing one folder outside a run at the same time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from merganser.errors import InputError


class TargetTaken(InputError):
    """Another process is writing the same target, or has just written it."""


@contextlib.contextmanager
def target_lock(target: Path) -> Iterator[None]:
    """Hold the lock of a folder that is being written: the file ``.NAME.lock`` beside it, which is deleted at the end.

    The operating system releases it when the process ends, however.

    Raises:
        TargetTaken: another process is writing the folder.
        OSError: the folder above it cannot be written, or the disk is full.
    """
    from filelock import FileLock, Timeout

    path = target.with_name(f".{target.name}.lock")
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise TargetTaken(
            f"'{target}' is being written by another process.", "Wait until it has finished, or choose another folder."
        ) from error
    try:
        yield
    finally:
        try:
            path.unlink(missing_ok=True)  # while it is held: who waits for it sees that it has no name any more
        finally:
            lock.release()
