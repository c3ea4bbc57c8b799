"""The streaming engine: merge checkpoints slice by slice into preallocated files, on several threads.

Memory does not grow with the model; only rules that need a tensor whole hold one.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.checkpoints.dtypes import count_nonfinite, encode, fits, join_pairs, split_pairs
from merganser.checkpoints.streaming import FileInputs, Files, Job, Workspace, read_elements
from merganser.checkpoints.tensor_writer import OutputFile, TensorWriter, open_result, uses_direct_io
from merganser.errors import InputError
from merganser.files.atomic import flush
from merganser.files.safetensors_file import FLOATING, ITEM_SIZE
from merganser.merging.combine import Combination, combine
from merganser.merging.rule import WrongInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

COPIED = 1 << 20
"""Bytes of a tensor that are copied at once."""

NUMBA_PAYS_FROM = 64_000_000
"""Bytes of the result above which the compiled kernels save more time than importing numba takes."""


def keep_freed_memory() -> None:
    """Let the C library keep what numpy frees from slice to slice, up to 64 MB.

    By default glibc returns it to the system, and allocating it again, page by page, takes longer than the arithmetic.
    Other systems keep their defaults.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library keeps its defaults
        library = ctypes.CDLL(None)
        trim_threshold, mmap_threshold = -1, -3
        library.mallopt(trim_threshold, 64 << 20)
        library.mallopt(mmap_threshold, 16 << 20)


class Engine:
    """Merges one tensor at a time; one per thread.

    Args:
        files: shared by the threads.
        kernels: :mod:`merganser.checkpoints.kernel_calls`, or ``None`` for the numpy path.
        allow_nonfinite: accept NaN and infinity.
        progress: called with the bytes written since the last call.

    Attributes:
        nonfinite: names of the tensors whose result holds NaN or infinity: from inputs that do, or by overflow.
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
        self._writer = TensorWriter()
        self.nonfinite: set[str] = set()
        if kernels is None:
            keep_freed_memory()

    def run(self, job: Job, to: OutputFile) -> None:
        """Write one tensor of the result.

        Raises:
            InputError: a NaN or an infinity in an input, unless allowed, or an input that cannot be read.
            OSError: the result cannot be written.
        """
        if job.target.size == 0:
            return
        # Overflows are reported at the end with the name of the tensor; numpy's warnings have none.
        with (
            np.errstate(over="ignore", invalid="ignore", divide="ignore"),
            self._writer.tensor(to, job.target.offset),
        ):
            if job.rule is None and job.sources[0].dtype == job.target.dtype:
                self._copy(job)
            else:
                self._merge(job)

    def _merge(self, job: Job) -> None:
        inputs = FileInputs(job, self._files, self._workspace, self._kernels)
        plan: Any = None
        if job.rule is None:
            # A copy into another type is the weighted sum of one model.
            plan = Combination(np.ones(1), deltas=False)
        elif job.rule.prepare is not None:
            plan = job.rule.prepare(inputs, **_without_name(job.arguments))
        if plan is None:
            self._whole(job, inputs)
        else:
            self._in_slices(job, inputs, plan)

    def _copy(self, job: Job) -> None:
        """Copy the bytes of a tensor."""
        source = job.sources[0]
        for start in range(0, source.nbytes, COPIED):
            part = self._writer.room(min(COPIED, source.nbytes - start))
            with self._files.use(source.path) as file:
                read_elements(file, part, source, start // ITEM_SIZE[source.dtype])
            if source.dtype in FLOATING:
                self._check(job, [part])
                self._record_nonfinite(job, part)
            self._writer.filled(len(part))
            self._progress(len(part))

    def _in_slices(self, job: Job, inputs: FileInputs, plan: Any) -> None:
        item = ITEM_SIZE[job.target.dtype]
        kernel: Any = None
        kind: Any = None
        if inputs.kernels is not None:
            kind = inputs.kernels.STORAGE[job.target.dtype]
            kernel = inputs.kernels.kernel_of(plan, job.inputs[0].dtype, job.target.dtype)
        apply = _slice_function(job)
        for start in range(0, inputs.size, inputs.step):
            stop = min(start + inputs.step, inputs.size)
            raw = inputs.raw(start, stop)
            if kernel is not None:
                place = self._writer.room((stop - start) * item).view(kind)
                # A tensor behind one of few bytes may begin anywhere; the kernels are compiled for aligned numbers.
                values = place if place.flags.aligned else np.empty_like(place)
                if kernel(inputs.stored(raw), start, values):
                    # Infinite results may also come from large but finite inputs, which is not an error.
                    self._check(job, raw)
                    self._record_nonfinite(job, values)
                if values is not place:
                    place[:] = values
                self._writer.filled(place.nbytes)
            else:
                self._writer.write(self._plain(job, apply, inputs, raw, plan, start))
            self._progress((stop - start) * item)

    def _plain(
        self, job: Job, apply: Callable[..., NDArray[Any]], inputs: FileInputs, raw: Any, plan: Any, start: int
    ) -> NDArray[Any]:
        """Merge a slice in numpy, rounded to the storage type."""
        if not isinstance(plan, Combination):
            self._check(job, raw)
        elif (pairs := _combine_bf16_pairs(job, raw, plan)) is not None:
            return pairs
        models, base = inputs.decoded(raw)
        try:
            values = apply(models, base, plan, start)
        except WrongInput as error:
            raise InputError(
                f"Tensor {job.target.name} of {job.owners[error.index]} {error.what}", error.remedy
            ) from error
        finite = fits(values, job.target.dtype)
        if not finite and isinstance(plan, Combination):
            # A weighted sum may also overflow from finite inputs, which is not an error.
            self._check(job, raw)
        stored = encode(values, job.target.dtype, finite)
        if not finite:
            self._record_nonfinite(job, stored)
        return stored

    def _whole(self, job: Job, inputs: FileInputs) -> None:
        assert job.rule is not None
        raw = inputs.raw(0, inputs.size)
        self._check(job, raw)
        models, base = inputs.decoded(raw)
        shaped = [model.reshape(job.target.shape) for model in models]
        positional = [shaped] if base is None else [shaped, base.reshape(job.target.shape)]
        arguments = dict(job.arguments or {})
        if not job.rule.random:
            arguments.pop("name", None)
        values = encode(np.asarray(job.rule.function(*positional, **arguments)), job.target.dtype)
        values = np.ascontiguousarray(values)
        self._record_nonfinite(job, values)
        self._writer.write(values)
        self._progress(job.target.nbytes)

    def _check(self, job: Job, raw: list[NDArray[np.uint8]]) -> None:
        """Refuse NaN and infinity, naming the tensor and the model."""
        if self._allow_nonfinite:
            return
        for tensor, owner, part in zip(job.inputs, job.owners, raw, strict=True):
            bad = count_nonfinite(part, tensor.dtype)
            if bad:
                raise InputError(
                    f"Tensor {tensor.name} of {owner} holds NaN or infinity ({bad} in one slice).",
                    "Such a model is damaged; to merge it anyway, pass --allow-nonfinite (allow_nonfinite: true).",
                )

    def _record_nonfinite(self, job: Job, stored: NDArray[Any]) -> None:
        """Record the tensor where its result holds NaN or infinity."""
        name, dtype = job.target.name, job.target.dtype
        if name not in self.nonfinite and count_nonfinite(stored.reshape(-1).view(np.uint8), dtype):
            self.nonfinite.add(name)


def _without_name(arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """Drop ``name`` from the arguments: ``prepare`` reads it from the inputs."""
    return {key: value for key, value in (arguments or {}).items() if key != "name"}


def _slice_function(job: Job) -> Callable[..., NDArray[Any]]:
    if job.rule is None:
        return combine
    assert job.rule.apply is not None
    return job.rule.apply


def _combine_bf16_pairs(job: Job, raw: list[NDArray[np.uint8]], plan: Combination) -> NDArray[Any] | None:
    """Compute a weighted sum of bfloat16 slices in pairs of numbers; ``None`` if it does not apply or overflows."""
    if (
        {tensor.dtype for tensor in (*job.inputs, job.target)} != {"BF16"}
        or len(raw[0]) % 4
        or sys.byteorder != "little"
    ):
        return None
    decoded_pairs = [split_pairs(part) for part in raw]
    results = []
    for side in (0, 1):
        values = [pair[side] for pair in decoded_pairs]
        base = values.pop() if job.base is not None else None
        result = combine(values, base, plan)
        if not fits(result, "BF16"):
            return None
        results.append(result)
    return join_pairs(*results)


def load_kernels(choice: str, nbytes: int) -> ModuleType | None:
    """Load the compiled kernels, where numba is installed and saves time.

    Args:
        choice: ``auto``, ``numba`` or ``numpy``.
        nbytes: size of the result.

    Raises:
        InputError: ``numba`` is chosen and cannot be used.
    """
    if choice == "numpy" or (choice == "auto" and nbytes < NUMBA_PAYS_FROM):
        return None
    try:
        from merganser.checkpoints import kernel_calls
    except (ImportError, RuntimeError) as error:
        # numba is not installed, or has no writable cache folder.
        if choice == "numba":
            raise InputError(
                f"Numba cannot be used: {error}.",
                "Install it with pip install 'merganser[speed]', and set NUMBA_CACHE_DIR to a writable folder.",
            ) from error
        return None
    return kernel_calls


def run_jobs(
    jobs: Sequence[Job],
    kernels: ModuleType | None,
    threads: int,
    allow_nonfinite: bool,
    progress: Callable[[int], None],
) -> list[str]:
    """Write every job's tensor, file after file and the largest first, on several threads.

    The result does not depend on their number: a tensor is merged by one thread, in a fixed order. The numpy path runs
    on one thread, because its many short operations contend for the interpreter's lock. A complete file is flushed to
    the disk while the next ones are written.

    Returns:
        Names of the tensors whose result holds NaN or infinity, in the order of the jobs.

    Raises:
        InputError, OSError: the first error of any thread; the others stop after their tensor.
    """
    if kernels is None:
        threads = 1
    files, direct = Files(), uses_direct_io(sum(job.target.nbytes for job in jobs))
    unwritten = Counter(job.target.path for job in jobs)
    places = {path: -place for place, path in enumerate(unwritten)}
    waiting = sorted(jobs, key=lambda job: (places[job.target.path], job.target.nbytes))
    flusher = ThreadPoolExecutor(1)
    flushed: list[Future[None]] = []
    lock = threading.Lock()
    failures: list[BaseException] = []
    nonfinite: set[str] = set()

    def report(nbytes: int) -> None:
        if failures:
            raise _Stopped
        with lock:
            progress(nbytes)

    def work() -> None:
        engine = Engine(files, kernels, allow_nonfinite, report)
        try:
            while not failures:
                with lock:
                    if not waiting:
                        return
                    job = waiting.pop()
                with open_result(files, job.target.path, direct) as opened:
                    engine.run(job, opened)
                nonfinite.update(engine.nonfinite)
                with lock:
                    unwritten[job.target.path] -= 1
                    if not unwritten[job.target.path]:
                        flushed.append(flusher.submit(flush, job.target.path))
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
        flusher.shutdown()
        files.close()
    if failures:
        raise failures[0]
    for future in flushed:
        future.result()
    return list(dict.fromkeys(job.target.name for job in jobs if job.target.name in nonfinite))


class _Stopped(Exception):
    """Raised in a thread after another one failed."""
