"""Read one tensor of several files in slices.

Input is read with ``pread`` into reused buffers that stay in the cache. No page of a checkpoint is memory-mapped, so a
file that is truncated meanwhile is an error instead of a crash.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.checkpoints.adapters.updated_tensor import UpdatedTensor
from merganser.checkpoints.dtypes import decode
from merganser.errors import InputError
from merganser.files.safetensors_file import ITEM_SIZE, Tensor
from merganser.merging.rule import Rule
from merganser.merging.tensors import BLOCK

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEP = 4 * BLOCK
"""Elements per slice of the compiled path: two models and the result fit in a second-level cache."""


@dataclass(frozen=True)
class Job:
    """One tensor to write.

    Attributes:
        target: where it is written.
        sources: the models' tensors, then their fishers.
        owners: names of the models that the sources belong to, then of the base.
        base: the base's tensor, where the rule or the plan uses it.
        rule: how to merge; ``None``: copy ``sources[0]``.
        arguments: of the rule, resolved for this tensor.
    """

    target: Tensor
    sources: tuple[Tensor, ...]
    owners: tuple[str, ...]
    base: Tensor | None = None
    rule: Rule | None = None
    arguments: Mapping[str, Any] | None = None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """All tensors read: the sources, then the base."""
        return self.sources if self.base is None else (*self.sources, self.base)


@dataclass
class _Opened:
    """A file descriptor and the number of its users."""

    descriptor: int
    users: int = 0


class Files:
    """Descriptors of the files of a merge, shared by the threads; the most recently used stay open.

    Args:
        limit: number of unused descriptors that stay open. Some systems allow few (256).
    """

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._open: dict[tuple[Path, int], _Opened] = {}
        self._lock = threading.Lock()

    @contextmanager
    def use(self, path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
        """Open a file, or share its descriptor, which stays open at least until the end of the block.

        Raises:
            OSError: it cannot be opened.
        """
        with self._lock:
            # Removed and inserted again: keys are ordered by last use.
            opened = self._open.pop((path, flags), None) or _Opened(os.open(path, flags))
            self._open[path, flags] = opened
            opened.users += 1
        try:
            yield opened.descriptor
        finally:
            with self._lock:
                opened.users -= 1
                if len(self._open) > self._limit:
                    self._close_one()

    def _close_one(self) -> None:
        """Close the least recently used descriptor that has no user."""
        for key, opened in self._open.items():
            if opened.users == 0:
                os.close(self._open.pop(key).descriptor)
                return

    def close(self) -> None:
        """Close all descriptors."""
        with self._lock:
            for opened in self._open.values():
                os.close(opened.descriptor)
            self._open.clear()


class Workspace:
    """The buffers of one thread, allocated once: a fresh allocation costs more than the arithmetic on it."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, Any, int], NDArray[Any]] = {}

    def rows(self, what: str, count: int, length: int, kind: Any) -> NDArray[Any]:
        """Return a ``count x length`` array, reused by the next caller with the same ``what``, type and length."""
        key = (what, kind, length)
        buffer = self._buffers.get(key)
        if buffer is None or len(buffer) < count:
            buffer = self._buffers[key] = np.empty((count, length), dtype=kind)
        return buffer[:count]


class FileInputs:
    """:class:`merganser.merging.tensors.Inputs` over files."""

    def __init__(self, job: Job, files: Files, workspace: Workspace, kernels: ModuleType | None) -> None:
        self.name = (job.arguments or {}).get("name", job.target.name)  # masks depend on it: of a tied parameter, one
        self.shape = job.target.shape
        self.size = job.target.size
        self.models = len(job.sources)
        tensors = job.inputs
        wide = any(tensor.dtype == "F64" for tensor in tensors)
        self.work = np.dtype(np.float64 if wide else np.float32)
        self._tensors = tensors
        self._has_base = job.base is not None
        self._files = files
        self._workspace = workspace
        self.kernels = kernels if self._supports(job.target.dtype, kernels) else None
        self.step = STEP if self.kernels is not None else BLOCK
        if self.kernels is not None and self._has_base:
            self.scan_slice = self._scan_slice

    def _supports(self, target: str, kernels: ModuleType | None) -> bool:
        """Return whether the kernels support the types: one type for all inputs."""
        kinds = {tensor.dtype for tensor in self._tensors}
        return kernels is not None and len(kinds) == 1 and kinds | {target} <= set(kernels.STORAGE)

    def raw(self, start: int, stop: int) -> list[NDArray[np.uint8]]:
        """Read the bytes of elements ``start`` to ``stop`` of every input, in buffers that the next call reuses."""
        length = max(self.step, stop - start)
        widest = max(ITEM_SIZE[tensor.dtype] for tensor in self._tensors)
        if length <= STEP:
            buffers = self._workspace.rows("raw", len(self._tensors), length * widest, np.uint8)
        else:
            # A whole tensor is held only while it is merged.
            buffers = np.empty((len(self._tensors), length * widest), dtype=np.uint8)
        parts = []
        for tensor, buffer in zip(self._tensors, buffers, strict=True):
            item = ITEM_SIZE[tensor.dtype]
            part = buffer[: (stop - start) * item]
            with self._files.use(tensor.path) as descriptor:
                read_elements(descriptor, part, tensor, start)
            parts.append(part)
        return parts

    def read(self, start: int, stop: int) -> tuple[list[NDArray[Any]], NDArray[Any] | None]:
        """Read and decode a slice, see :meth:`merganser.merging.tensors.Inputs.read`."""
        return self.decoded(self.raw(start, stop))

    def decoded(self, raw: list[NDArray[np.uint8]]) -> tuple[list[NDArray[Any]], NDArray[Any] | None]:
        """Decode what :meth:`raw` read."""
        size = len(raw[0]) // ITEM_SIZE[self._tensors[0].dtype]
        scratch: Sequence[NDArray[Any] | None] = [None] * len(raw)
        if size <= STEP:
            scratch = list(self._workspace.rows("numbers", len(raw), STEP, self.work))
        numbers = [
            decode(part, tensor.dtype, self.work, out)
            for part, tensor, out in zip(raw, self._tensors, scratch, strict=True)
        ]
        return (numbers[:-1], numbers[-1]) if self._has_base else (numbers, None)

    def stored(self, raw: list[NDArray[np.uint8]]) -> Any:
        """View what :meth:`raw` read of equal types as one array ``inputs x elements`` for the kernels."""
        assert self.kernels is not None
        kind = np.dtype(self.kernels.STORAGE[self._tensors[0].dtype])
        buffers = self._workspace.rows("raw", len(raw), STEP * kind.itemsize, np.uint8)
        return buffers.view(kind)

    def _scan_slice(self, start: int, stop: int, scans: Sequence[Any]) -> list[tuple[int, int, Any, Any]]:
        """Run the pass of :func:`merganser.merging.trim.top_k_thresholds` over a slice in compiled code."""
        assert self.kernels is not None
        rows = self.stored(self.raw(start, stop))
        values = self._workspace.rows("values", 1, STEP + 1, np.float32)[0]
        indices = self._workspace.rows("indices", 1, STEP + 1, np.int64)[0]
        source = self._tensors[0].dtype
        scanned = []
        for scan in scans:
            bracket = (scan.low, scan.middle, scan.high)
            row, base = rows[scan.model, : stop - start], rows[-1, : stop - start]
            above, ties, count = self.kernels.scan(row, base, start, bracket, source, values, indices)
            scanned.append((above, ties, values[:count].copy(), indices[:count].copy()))
        return scanned


def read_elements(descriptor: int, buffer: NDArray[np.uint8], tensor: Tensor, start: int) -> None:
    """Fill a buffer with the elements of a tensor from ``start`` on, the update of an adapter added.

    Raises:
        InputError: as :func:`read_into`.
    """
    read_into(descriptor, buffer, tensor.offset + start * ITEM_SIZE[tensor.dtype], tensor)
    if isinstance(tensor, UpdatedTensor):
        tensor.add_update(buffer, start)


def read_into(descriptor: int, buffer: NDArray[np.uint8], offset: int, tensor: Tensor) -> None:
    """Fill a buffer from a file.

    Raises:
        InputError: the file ends too early (it changed since its header was read), or the disk failed.
    """
    view = buffer.data
    while len(view) > 0:
        try:
            count = os.preadv(descriptor, [view], offset)
        except OSError as error:
            cause = f"{tensor.path} cannot be read at {tensor.name}: {error.strerror}."
            raise InputError(cause, "Check the disk.") from error
        if count == 0:
            raise InputError(
                f"{tensor.path} ends inside {tensor.name}: it changed during the merge.",
                "Restore it, then merge again.",
            )
        view = view[count:]
        offset += count
