"""The lock that keeps a second process out of a run."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from merganser import processes
from merganser.errors import InputError
from merganser.files.atomic import FULL, full_disk_is_an_error
from merganser.runs.links import LOCK, refuse_links


class RunInUse(InputError):
    """Another process changes the run."""


class RunLock:
    """Held by the process that changes a run; the operating system releases it when the process ends, however.

    Of several processes that train together, process 0 holds it for all.

    Raises:
        InputError: another process holds it (its number is given where known), the folder cannot be written, or a link
            in it leads out of the run.
        RunError: the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._lock = FileLock(self._path, timeout=0, thread_local=False, on_acquired=self._write_holder)
        self._held = False

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._held

    def acquire(self) -> None:
        """Take the lock at once or fail."""
        processes.on_main(self._acquire)
        self._held = True

    def _acquire(self) -> None:
        with full_disk_is_an_error(self._path):
            try:
                self._path.parent.stat()  # filelock would create the folder
                refuse_links(self._path.parent)
                self._lock.acquire()
            except Timeout as error:
                holder = self._path.read_text(encoding="utf-8", errors="replace").strip()
                number = f" (number {holder})" if holder else ""
                raise RunInUse(
                    f"The run '{self._path.parent}' is in use by another process{number}.",
                    "Wait until it has finished, or choose another folder.",
                ) from error
            except OSError as error:
                if error.errno in FULL:
                    raise
                raise InputError(
                    f"The run '{self._path.parent}' cannot be changed: {error.strerror}.",
                    "Make its folder writable for you, or copy the run to another place.",
                ) from error

    def _write_holder(self, descriptor: int) -> None:
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Release the lock; harmless when not held."""
        self._held = False
        self._lock.release()

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
