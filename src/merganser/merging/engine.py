"""Streams checkpoints through a rule: slices in, slices out, in place, on as many threads as wanted.

Input is read with ``pread`` into buffers that are reused and stay in the cache, so that no page of a checkpoint is ever
mapped and a file that is cut off under the reader is an error instead of a crash. Memory does not grow with the model;
only rules that need a tensor whole hold one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.errors import InputError
from merganser.merging.combine import Combination
from merganser.merging.elect import Election
from merganser.merging.magmax import Largest
from merganser.merging.rule import Rule
from merganser.merging.safetensors_file import ITEM_SIZE, Tensor
from merganser.merging.storage import count_nonfinite, decode, encode
from merganser.merging.tensors import BLOCK

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEP = 4 * BLOCK
"""Elements per slice of the compiled path: two models and the result fit a second-level cache."""

WORTH_COMPILED = 64_000_000
"""Bytes of output from which loading the compiled kernels pays."""

_EVERYTHING = 1 << 53


@dataclass(frozen=True)
class Job:
    """One tensor to write.

    Attributes:
        target: where it goes.
        sources: the models' tensors (then their extras), and who they belong to, for messages.
        owners: labels of the sources, and of the base last.
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
        """Everything that is read: the sources, then the base."""
        return self.sources if self.base is None else (*self.sources, self.base)


class Files:
    """Descriptors of the files of a merge, opened once and shared by the threads."""

    def __init__(self) -> None:
        self._open: dict[tuple[Path, int], int] = {}
        self._lock = threading.Lock()

    def get(self, path: Path, flags: int = os.O_RDONLY) -> int:
        """The descriptor of a file."""
        with self._lock:
            if (path, flags) not in self._open:
                self._open[path, flags] = os.open(path, flags)
            return self._open[path, flags]

    def close(self) -> None:
        """Close all."""
        with self._lock:
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()


class Workspace:
    """The buffers of one thread, allocated once: a fresh allocation costs more than the arithmetic on it."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, int], NDArray[Any]] = {}

    def rows(self, what: str, count: int, length: int, kind: Any) -> NDArray[Any]:
        """An array of ``count x length``, reused by the next caller with the same ``what`` and length."""
        kind = np.dtype(kind)
        key = (f"{what}/{kind}", length)
        buffer = self._buffers.get(key)
        if buffer is None or len(buffer) < count:
            buffer = self._buffers[key] = np.empty((count, length), dtype=kind)
        return buffer[:count]


class FileInputs:
    """:class:`merganser.merging.tensors.Inputs` over files."""

    def __init__(self, job: Job, files: Files, workspace: Workspace, kernels: ModuleType | None) -> None:
        self.name = job.target.name
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
        self.kernels = kernels if self._compiled(job.target.dtype, kernels) else None
        self.step = STEP if self.kernels is not None else BLOCK
        if self.kernels is not None and self._has_base:
            self.scan_slice = self._scan_slice

    def _compiled(self, target: str, kernels: ModuleType | None) -> bool:
        """Whether the kernels know the types: one type for all inputs."""
        kinds = {tensor.dtype for tensor in self._tensors}
        return kernels is not None and len(kinds) == 1 and kinds | {target} <= set(kernels.STORAGE)

    def raw(self, start: int, stop: int) -> list[NDArray[np.uint8]]:
        """The bytes of elements ``start`` to ``stop`` of every input, in buffers that the next call reuses."""
        length = max(self.step, stop - start)
        widest = max(ITEM_SIZE[tensor.dtype] for tensor in self._tensors)
        if length <= STEP:
            buffers = self._workspace.rows("raw", len(self._tensors), length * widest, np.uint8)
        else:
            # A whole tensor is held only while it is merged.
            buffers = np.empty((len(self._tensors), length * widest), dtype=np.uint8)
        found = []
        for tensor, buffer in zip(self._tensors, buffers, strict=True):
            item = ITEM_SIZE[tensor.dtype]
            part = buffer[: (stop - start) * item]
            read_into(self._files.get(tensor.path), part, tensor.offset + start * item, tensor)
            found.append(part)
        return found

    def read(self, start: int, stop: int) -> tuple[list[NDArray[Any]], NDArray[Any] | None]:
        """See :class:`merganser.merging.tensors.Inputs`."""
        return self.decoded(self.raw(start, stop))

    def decoded(self, raw: list[NDArray[np.uint8]]) -> tuple[list[NDArray[Any]], NDArray[Any] | None]:
        """What :meth:`raw` read, as numbers."""
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
        """What :meth:`raw` read of equal types, as one array ``inputs x elements`` for the kernels."""
        assert self.kernels is not None
        kind = np.dtype(self.kernels.STORAGE[self._tensors[0].dtype])
        buffers = self._workspace.rows("raw", len(raw), STEP * kind.itemsize, np.uint8)
        return buffers.view(kind)

    def _scan_slice(self, start: int, stop: int, scans: Sequence[Any]) -> list[tuple[int, int, Any, Any]]:
        """Compiled form of the pass in :func:`merganser.merging.trim.cuts`."""
        assert self.kernels is not None
        rows = self.stored(self.raw(start, stop))
        values = self._workspace.rows("values", 1, STEP, np.float32)[0]
        indices = self._workspace.rows("indices", 1, STEP, np.int64)[0]
        found = []
        for scan in scans:
            bracket = (np.float32(scan.low), np.float32(scan.middle), np.float32(scan.high))
            above, ties, count = self.kernels.scan(
                rows[scan.model], rows[-1], stop - start, start, *bracket, values, indices
            )
            found.append((above, ties, values[:count].copy(), indices[:count].copy()))
        return found


def read_into(descriptor: int, buffer: NDArray[np.uint8], offset: int, tensor: Tensor) -> None:
    """Fill a buffer from a file.

    Raises:
        InputError: the file ends too early (it was changed since its header was read) or the disk fails.
    """
    view = buffer.data
    while len(view) > 0:
        try:
            count = os.preadv(descriptor, [view], offset)
        except OSError as error:
            cause = f"{tensor.path} can't be read at {tensor.name}: {error.strerror}."
            raise InputError(cause, "Check the disk.") from error
        if count == 0:
            raise InputError(
                f"{tensor.path} ends inside {tensor.name}: it changed during the merge.",
                "Restore it, then merge again.",
            )
        view = view[count:]
        offset += count


def write_from(descriptor: int, values: NDArray[Any], offset: int) -> None:
    """Write an array's bytes at an offset, all of them."""
    view = values.reshape(-1).view(np.uint8).data
    while len(view) > 0:
        count = os.pwrite(descriptor, view, offset)
        view = view[count:]
        offset += count


class Engine:
    """Merges one tensor at a time; one per thread.

    Args:
        files: shared by the threads.
        kernels: :mod:`merganser.merging.kernels`, or ``None`` for the numpy path.
        allow_nonfinite: let NaN and infinity pass.
        progress: called with the bytes written since the last call.
    """

    def __init__(
        self,
        files: Files,
        kernels: ModuleType | None,
        allow_nonfinite: bool,
        progress: Callable[[int], None],
    ) -> None:
        self._files = files
        self._kernels = kernels
        self._allow_nonfinite = allow_nonfinite
        self._progress = progress
        self._workspace = Workspace()

    def run(self, job: Job, descriptor: int) -> None:
        """Write one tensor of the result.

        Raises:
            InputError: a NaN or an infinity in an input, unless allowed, or an input that can't be read.
            OSError: the result can't be written.
        """
        if job.target.size == 0:
            return
        if job.rule is None and job.sources[0].dtype == job.target.dtype:
            self._copy(job, descriptor)
            return
        inputs = FileInputs(job, self._files, self._workspace, self._kernels)
        plan: Any = None
        if job.rule is None:
            # A copy into another type is the weighted sum of one model.
            plan = Combination(np.ones(1), deltas=False)
        elif job.rule.prepare is not None:
            plan = job.rule.prepare(inputs, **_without_name(job.arguments))
        if plan is None:
            self._whole(job, inputs, descriptor)
        else:
            self._in_slices(job, inputs, plan, descriptor)

    def _copy(self, job: Job, descriptor: int) -> None:
        source, target = job.sources[0], job.target
        buffer = self._workspace.rows("copy", 1, 1 << 20, np.uint8)[0]
        file = self._files.get(source.path)
        for start in range(0, source.nbytes, len(buffer)):
            part = buffer[: min(len(buffer), source.nbytes - start)]
            read_into(file, part, source.offset + start, source)
            write_from(descriptor, part, target.offset + start)
            self._progress(len(part))

    def _in_slices(self, job: Job, inputs: FileInputs, plan: Any, descriptor: int) -> None:
        item = ITEM_SIZE[job.target.dtype]
        compiled = None if inputs.kernels is None else _compiled(inputs.kernels, plan)
        result: Any = None
        if compiled is not None and inputs.kernels is not None:
            kind = inputs.kernels.STORAGE[job.target.dtype]
            result = self._workspace.rows("result", 1, STEP, kind)[0]
        apply = _apply_of(job)
        for start in range(0, inputs.size, inputs.step):
            stop = min(start + inputs.step, inputs.size)
            raw = inputs.raw(start, stop)
            self._check(job, raw, inputs.kernels)
            if compiled is not None:
                compiled(inputs.stored(raw), stop - start, start, result)
                values = result[: stop - start]
            else:
                values = _blockwise(apply, inputs, raw, plan, start, job.target.dtype)
            write_from(descriptor, values, job.target.offset + start * item)
            self._progress((stop - start) * item)

    def _whole(self, job: Job, inputs: FileInputs, descriptor: int) -> None:
        assert job.rule is not None
        raw = inputs.raw(0, inputs.size)
        self._check(job, raw, inputs.kernels)
        models, base = inputs.decoded(raw)
        shaped = [model.reshape(job.target.shape) for model in models]
        positional = [shaped] if base is None else [shaped, base.reshape(job.target.shape)]
        arguments = dict(job.arguments or {})
        if not job.rule.random:
            arguments.pop("name", None)
        with np.errstate(over="ignore", invalid="ignore"):
            values = encode(np.asarray(job.rule.function(*positional, **arguments)), job.target.dtype)
        write_from(descriptor, np.ascontiguousarray(values), job.target.offset)
        self._progress(job.target.nbytes)

    def _check(self, job: Job, raw: list[NDArray[np.uint8]], kernels: ModuleType | None) -> None:
        """Refuse NaN and infinity, naming the tensor and the model."""
        if self._allow_nonfinite:
            return
        for tensor, owner, part in zip(job.inputs, job.owners, raw, strict=True):
            if kernels is not None and tensor.dtype in kernels.EXPONENTS:
                kind, mask = kernels.EXPONENTS[tensor.dtype]
                bits = part.view(kind)
                bad = kernels.nonfinite(bits, len(bits), kind(mask))
            else:
                bad = count_nonfinite(part, tensor.dtype)
            if bad:
                raise InputError(
                    f"{tensor.name} of {owner} holds NaN or infinity ({bad} in one slice).",
                    "Such a model is broken; to merge it all the same, allow non-finite weights (--allow-nonfinite).",
                )


def _without_name(arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """Arguments of ``prepare``, which takes the name from the inputs."""
    return {key: value for key, value in (arguments or {}).items() if key != "name"}


def _apply_of(job: Job) -> Callable[..., NDArray[Any]]:
    if job.rule is None:
        from merganser.merging.combine import combine

        return combine
    assert job.rule.apply is not None
    return job.rule.apply


def _blockwise(
    apply: Callable[..., NDArray[Any]],
    inputs: FileInputs,
    raw: list[NDArray[np.uint8]],
    plan: Any,
    start: int,
    dtype: str,
) -> NDArray[Any]:
    models, base = inputs.decoded(raw)
    with np.errstate(over="ignore", invalid="ignore"):
        return encode(apply(models, base, plan, start), dtype)


def _compiled(kernels: ModuleType, plan: Any) -> Callable[[Any, int, int, Any], None] | None:
    """The kernel that does what a plan's ``apply`` does, as ``call(rows, n, start, out)``; ``None`` without one."""
    if isinstance(plan, Combination):
        coefficients = plan.coefficients.astype(np.float32)
        return lambda rows, n, start, out: kernels.combine(rows, n, coefficients, plan.deltas, out)
    if isinstance(plan, Largest):
        scale = np.float32(plan.scale)
        return lambda rows, n, start, out: kernels.magmax(rows, n, scale, out)
    if isinstance(plan, Election):
        return _compiled_election(kernels, plan)
    return None


def _compiled_election(kernels: ModuleType, plan: Election) -> Callable[[Any, int, int, Any], None]:
    divisor = np.float32(float(np.sum(plan.weights, dtype=np.float64)))
    cuts = [(s.cut.magnitude if s.cut is not None else -1.0, s.outliers.magnitude) for s in plan.sparsity]
    ends = [(s.cut.index if s.cut is not None else 0, s.outliers.index) for s in plan.sparsity]
    fixed = (
        plan.weights.astype(np.float32),
        np.array([s.factor for s in plan.sparsity], dtype=np.float32),
        np.array(cuts, dtype=np.float32),
        np.array(ends, dtype=np.int64),
        np.array([s.key for s in plan.sparsity], dtype=np.uint64),
        np.array([_EVERYTHING if s.limit is None else s.limit for s in plan.sparsity], dtype=np.uint64),
        plan.elect,
        divisor,
        plan.normalize and (plan.elect or abs(float(divisor)) >= 1e-8),
        np.float32(plan.scale),
    )
    return lambda rows, n, start, out: kernels.elect(rows, n, start, *fixed, out)


def load_kernels(choice: str, nbytes: int) -> ModuleType | None:
    """The compiled kernels, where they are installed and worth loading.

    Args:
        choice: ``auto``, ``numba`` or ``numpy``.
        nbytes: size of the result.

    Raises:
        InputError: ``numba`` is asked for and not installed.
    """
    if choice == "numpy" or (choice == "auto" and nbytes < WORTH_COMPILED):
        return None
    try:
        from merganser.merging import kernels
    except ImportError as error:
        if choice == "numba":
            raise InputError(
                f"numba can't be imported: {error}.", "Install it with: pip install 'merganser[speed]'"
            ) from error
        return None
    return kernels


def run_jobs(
    jobs: Sequence[Job],
    kernels: ModuleType | None,
    threads: int,
    allow_nonfinite: bool,
    progress: Callable[[int], None],
) -> None:
    """Write every job's tensor, the largest first, on some threads.

    The result does not depend on their number: a tensor is merged by one thread, in a fixed order.

    Raises:
        InputError, OSError: the first error of any thread; the others stop after their tensor.
    """
    files = Files()
    waiting = sorted(jobs, key=lambda job: job.target.nbytes)
    lock = threading.Lock()
    failures: list[BaseException] = []

    def note(nbytes: int) -> None:
        if failures:
            raise _Stopped
        with lock:
            progress(nbytes)

    def work() -> None:
        engine = Engine(files, kernels, allow_nonfinite, note)
        try:
            while not failures:
                with lock:
                    if not waiting:
                        return
                    job = waiting.pop()
                engine.run(job, files.get(job.target.path, os.O_WRONLY))
        except _Stopped:
            return
        except BaseException as error:
            failures.append(error)

    others = [threading.Thread(target=work, daemon=True) for _ in range(max(1, min(threads, len(jobs))) - 1)]
    try:
        for thread in others:
            thread.start()
        work()
    finally:
        for thread in others:
            thread.join()
        files.close()
    if failures:
        raise failures[0]


class _Stopped(Exception):
    """Another thread failed."""
