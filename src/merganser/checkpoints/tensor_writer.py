"""Write the tensors of a result in blocks, those of large results by direct I/O, past the page cache.

The cache needs a page of memory for every one that is written, and finding them takes longer than a linear merge where
memory is scarce or a virtual machine's; and it drops what others have there. Direct I/O (``O_DIRECT``) writes from the
block itself. It needs whole pages, at multiples of their size in memory and in the file: the ends of a tensor go
through the cache, and no page is written in both ways, even by two threads.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from merganser.checkpoints.streaming import Files

DIRECT_FROM = 1 << 30
"""Bytes of a result from which direct I/O is used; a smaller one is often read next, and stays in the page cache."""

PAGE = max(4096, mmap.PAGESIZE)
"""Bytes to a multiple of which direct writes are aligned: disks need 4096 or less, the page cache its own pages."""

BLOCK_BYTES = 4 << 20
"""Bytes that are written at once."""

_DIRECT = getattr(os, "O_DIRECT", 0)  # macOS has none
_NOT_DIRECT = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


def uses_direct_io(nbytes: int) -> bool:
    """Return whether a result of so many bytes is written by direct I/O, if its file system can."""
    return bool(_DIRECT) and nbytes >= DIRECT_FROM


@dataclass(frozen=True)
class OutputFile:
    """A file of the result.

    Attributes:
        descriptor: writes through the page cache.
        direct: writes by direct I/O; ``None``: not wanted, or the file system cannot.
    """

    descriptor: int
    direct: int | None = None


@contextmanager
def open_result(files: Files, path: Path, direct: bool) -> Iterator[OutputFile]:
    """Open a file of the result; threads share its descriptors.

    Args:
        files: keeps the descriptors.
        path: the file, which exists.
        direct: use direct I/O if the file system can.

    Raises:
        OSError: it cannot be opened.
    """
    with ExitStack() as stack:
        descriptor = stack.enter_context(files.use(path, os.O_WRONLY))
        second = None
        if direct:
            try:
                second = stack.enter_context(files.use(path, os.O_WRONLY | _DIRECT))
            except OSError as error:
                if error.errno not in _NOT_DIRECT:
                    raise
        yield OutputFile(descriptor, second)


class TensorWriter:
    """Writes the bytes of a tensor from front to back; one per thread."""

    def __init__(self) -> None:
        # Anonymous memory begins at a page.
        self._buffer = np.frombuffer(mmap.mmap(-1, BLOCK_BYTES + PAGE), dtype=np.uint8)
        self._to = OutputFile(-1)
        self._offset = 0  # in the file, of the buffer's first byte: a multiple of PAGE
        self._start = self._stop = 0  # of the unwritten bytes in the buffer

    @contextmanager
    def tensor(self, to: OutputFile, offset: int) -> Iterator[None]:
        """Write what the block gives from ``offset`` of a file on, all of it by the end of the block.

        Raises:
            OSError: a write failed.
        """
        self._to = to
        self._start = self._stop = offset % PAGE
        self._offset = offset - self._start
        yield
        self._drain(whole_pages=False)

    def room(self, nbytes: int) -> NDArray[np.uint8]:
        """Return where to put the next bytes, at most :data:`BLOCK_BYTES`; :meth:`filled` says that they are there."""
        if self._stop + nbytes > len(self._buffer):
            self._drain(whole_pages=True)
        return self._buffer[self._stop : self._stop + nbytes]

    def filled(self, nbytes: int) -> None:
        """Take the bytes put into :meth:`room`."""
        self._stop += nbytes
        if self._to.direct is None:
            self._put(self._start, self._stop)
            self._offset += self._stop - self._start
            self._stop = self._start

    def write(self, values: NDArray[Any]) -> None:
        """Take the bytes of an array."""
        raw = values.reshape(-1).view(np.uint8)
        for start in range(0, len(raw), BLOCK_BYTES):
            part = raw[start : start + BLOCK_BYTES]
            self.room(len(part))[:] = part
            self.filled(len(part))

    def _drain(self, whole_pages: bool) -> None:
        """Write the buffer; with ``whole_pages``, keep the bytes behind the last whole page for later."""
        first = min(-(-self._start // PAGE) * PAGE, self._stop)
        last = max(first, self._stop - self._stop % PAGE)
        self._put(self._start, first)
        self._put(first, last)
        if whole_pages:
            rest = self._stop - last
            self._buffer[:rest] = self._buffer[last : self._stop]
            self._offset += last
            self._start, self._stop = 0, rest
        else:
            self._put(last, self._stop)
            self._start = self._stop

    def _put(self, start: int, stop: int) -> None:
        """Write bytes of the buffer, whole pages by direct I/O."""
        if self._to.direct is not None and start % PAGE == 0 and stop % PAGE == 0:
            try:
                write_bytes(self._to.direct, self._buffer[start:stop], self._offset + start)
                return
            except OSError as error:
                if error.errno not in _NOT_DIRECT:
                    raise
                # Some file systems find out only now, or after a part of the block, which is written again.
                self._to = OutputFile(self._to.descriptor)
        write_bytes(self._to.descriptor, self._buffer[start:stop], self._offset + start)


def write_bytes(descriptor: int, values: NDArray[Any], offset: int) -> None:
    """Write all bytes of an array at an offset.

    Raises:
        OSError: a write failed.
    """
    view = values.reshape(-1).view(np.uint8).data
    while len(view) > 0:
        count = os.pwrite(descriptor, view, offset)
        view = view[count:]
        offset += count
