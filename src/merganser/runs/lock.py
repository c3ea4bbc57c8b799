"""A lock that keeps two processes out of one run."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from merganser import processes
from merganser.errors import InputError
from merganser.files.atomic import full_disk_is_an_error


class RunLock:
    """Held by the process that changes a run; the operating system lets go of it when the process ends, however.

    Of several processes that train together, process 0 holds it for all.

    Raises:
        InputError: another process holds it (named by its number where known), or the folder cannot be written.
        RunError: the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".lock"
        self._descriptor: int | None = None
        self._held = False

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._held

    def acquire(self) -> None:
        """Take the lock at once or fail."""
        processes.on_main(self._take)
        self._held = True

    def _take(self) -> None:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InputError(
                f"The run '{self._path.parent}' cannot be changed: {error.strerror}.",
                "Make its folder writable for you, or copy the run to another place.",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            raise InputError(
                f"The run '{self._path.parent}' is in use by another process{f' (number {holder})' if holder else ''}.",
                "Wait until it has finished, or choose another folder.",
            ) from error
        self._descriptor = descriptor
        try:
            with full_disk_is_an_error(self._path):
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let go; harmless when not held."""
        self._held = False
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
