"""Compiled kernels without their compiler: machine code is made once by numba, kept on disk and loaded without it.

Importing numba and loading what it caches costs more than merging a small model. So a kernel
(:mod:`merganser.checkpoints.kernels`) is compiled to an object file once, for its two storage types,
and later runs load that file with llvmlite alone, in milliseconds. The files lie in ``merganser/kernels`` of the cache
folder (``$XDG_CACHE_HOME`` or ``~/.cache``), one per kernel and types; the name holds a digest of the kernels' source,
the versions and the processor, the first bytes a digest of the content. One that is damaged is made anew; where the
folder can't be written, every run compiles.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import stat
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import binding

if TYPE_CHECKING:
    from numpy.typing import NDArray

STORAGE: dict[str, type[np.generic]] = {"BF16": np.uint16, "F16": np.int16, "F32": np.float32}
"""The types that kernels read and write, and the numpy type that stands for each."""

PIECE = 1024
"""Elements of a slice that are worked on together: intermediate results stay in the first-level cache."""

SIGNATURES: dict[str, tuple[str, ...]] = {
    "combine": ("source", "int", "int", "int", "floats", "int", "int", "target", "floats"),
    "magmax": ("source", "int", "int", "int", "float", "target", "floats"),
    "elect": (
        *("source", "int", "int", "int", "int", "floats", "floats", "floats", "ints", "words", "words"),
        *("int", "float", "int", "float", "target", "floats"),
    ),
    "scan": ("source", "source", "int", "int", "floats", "floats", "ints", "floats", "bytes", "places", "ints"),
}
"""Arguments of the C functions: ``int`` and ``float`` are numbers (64 and 32 bits), the others pointers."""

_SIZE = 32
_lock = threading.Lock()
_engines: list[Any] = []


# Calls --------------------------------------------------------------------------------------------------------------


def combine(rows: NDArray[Any], n: int, coefficients: NDArray[np.float32], deltas: bool, out: NDArray[Any]) -> bool:
    """See :func:`merganser.checkpoints.kernels.combine`."""
    scratch = np.empty((1, PIECE), np.float32)
    call = _function("combine", rows.dtype.name, out.dtype.name)
    sizes = (rows.shape[1], len(rows), n)
    return bool(call(_at(rows), *sizes, _at(coefficients), len(coefficients), deltas, _at(out), _at(scratch)))


def magmax(rows: NDArray[Any], n: int, scale: np.float32, out: NDArray[Any]) -> bool:
    """See :func:`merganser.checkpoints.kernels.magmax`."""
    scratch = np.empty((2, PIECE), np.float32)
    call = _function("magmax", rows.dtype.name, out.dtype.name)
    return bool(call(_at(rows), rows.shape[1], len(rows), n, float(scale), _at(out), _at(scratch)))


def elect(
    rows: NDArray[Any],
    n: int,
    start: int,
    weights: NDArray[np.float32],
    factors: NDArray[np.float32],
    magnitudes: NDArray[np.float32],
    indices: NDArray[np.int64],
    keys: NDArray[np.uint64],
    limits: NDArray[np.uint64],
    signs: bool,
    divisor: np.float32,
    normalize: bool,
    scale: np.float32,
    out: NDArray[Any],
) -> bool:
    """See :func:`merganser.checkpoints.kernels.elect`."""
    scratch = np.empty((4 + len(weights), PIECE), np.float32)
    per_model = [_at(array) for array in (weights, factors, magnitudes, indices, keys, limits)]
    numbers = (bool(signs), float(divisor), bool(normalize), float(scale))
    call = _function("elect", rows.dtype.name, out.dtype.name)
    return bool(call(_at(rows), rows.shape[1], len(weights), n, start, *per_model, *numbers, _at(out), _at(scratch)))


def scan(
    row: NDArray[Any],
    base: NDArray[Any],
    n: int,
    start: int,
    bracket: tuple[float, float, float],
    values: NDArray[np.float32],
    indices: NDArray[np.int64],
) -> tuple[int, int, int]:
    """See :func:`merganser.checkpoints.kernels.scan`; gives the entries above, at the middle and collected."""
    ends, counts = np.array(bracket, np.float32), np.zeros(3, np.int64)
    magnitudes, inside = np.empty(PIECE + 1, np.float32), np.empty(PIECE + 1, np.uint8)
    places = np.empty(PIECE + 1, np.int32)
    call = _function("scan", row.dtype.name, row.dtype.name)
    filled = (_at(ends), _at(values), _at(indices), _at(magnitudes), _at(inside), _at(places), _at(counts))
    call(_at(row), _at(base), n, start, *filled)
    above, ties, found = counts.tolist()
    return above, ties, found


def _at(array: NDArray[Any]) -> int:
    """The address of an array's first byte; the caller keeps the array."""
    assert array.flags.c_contiguous
    return int(array.ctypes.data)


_loaded: dict[tuple[str, str, str], Callable[..., int]] = {}


def _function(kernel: str, source: str, target: str) -> Callable[..., int]:
    """The kernel for these storage types, loaded, or compiled, the first time. Calls release the interpreter's lock."""
    key = (kernel, source, target)
    found = _loaded.get(key)
    if found is None:
        with _lock:
            found = _loaded.get(key) or _load(*key)
            _loaded[key] = found
    return found


# Machine code -------------------------------------------------------------------------------------------------------


def _load(kernel: str, source: str, target: str) -> Callable[..., int]:
    code = _stored(kernel, source, target)
    if code is None:
        code = _compile(kernel, source, target)
        _store(kernel, source, target, code)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), _machine())
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    # The engine owns the memory of the code.
    _engines.append(engine)
    numbers: dict[str, Any] = {"int": ctypes.c_int64, "float": ctypes.c_float}
    kinds = [numbers.get(kind, ctypes.c_void_p) for kind in SIGNATURES[kernel]]
    prototype = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *kinds)
    function = prototype(engine.get_function_address(_symbol(kernel)))

    def call(*arguments: Any) -> int:
        result, error = ctypes.c_int64(), ctypes.c_void_p()
        if function(ctypes.addressof(result), ctypes.addressof(error), *arguments) != 0:
            raise AssertionError(f"the kernel {kernel} failed")
        return result.value

    return call


def _symbol(kernel: str) -> str:
    return f"merganser_{kernel}"


@cache
def _machine() -> Any:
    """LLVM's description of this processor, as numba sets it."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_triple(binding.get_process_triple())
    features = binding.get_host_cpu_features().flatten()
    return target.create_target_machine(
        cpu=binding.get_host_cpu_name(), features=features, opt=3, reloc="default", codemodel="jitdefault", jit=True
    )


def _compile(kernel: str, source: str, target: str) -> bytes:
    """Object code of a kernel, whose only function that can be seen is :func:`_symbol`; numba is imported here."""
    from merganser.checkpoints.entries import machine_independent

    text, name = machine_independent(kernel, source, target)
    module = binding.parse_assembly(text)
    for function in module.functions:
        if function.name.startswith("cfunc."):
            function.linkage = "private"
    passes = binding.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, binding.create_pass_builder(_machine(), binding.create_pipeline_tuning_options()))
    for function in module.functions:
        # What would need Python or numba at run time would bring the process down when it is loaded.
        if function.is_declaration and not function.name.startswith("llvm."):
            raise RuntimeError(f"the kernel {kernel} calls {function.name}")
    module.get_function(name).name = _symbol(kernel)
    return bytes(_machine().emit_object(module))


# The cache ----------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where machine code is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "merganser" / "kernels"


@cache
def _fingerprint() -> str:
    """Of everything that the code depends on."""
    parts = [Path(__file__).with_name(name).read_bytes() for name in ("compiled.py", "entries.py", "kernels.py")]
    versions = [version("numba"), version("llvmlite"), binding.get_process_triple(), binding.get_host_cpu_name()]
    parts += [part.encode() for part in (*versions, binding.get_host_cpu_features().flatten())]
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _place(kernel: str, source: str, target: str) -> Path:
    return cache_folder() / f"{kernel}-{source}-{target}-{_fingerprint()}.o"


def _stored(kernel: str, source: str, target: str) -> bytes | None:
    """The code that was kept, where it is whole and nobody else can have written it."""
    try:
        with open(_place(kernel, source, target), "rb") as file:
            status = os.fstat(file.fileno())
            content = file.read()
    except OSError:
        return None
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        return None
    head, code = content[:_SIZE], content[_SIZE:]
    return code if hashlib.blake2b(code, digest_size=_SIZE).digest() == head else None


def _store(kernel: str, source: str, target: str, code: bytes) -> None:
    """Keep code, under its name only when it is whole. A cache that can't be written is none."""
    place = _place(kernel, source, target)
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=place.parent)
        try:
            with open(descriptor, "wb") as file:
                file.write(hashlib.blake2b(code, digest_size=_SIZE).digest() + code)
            os.replace(name, place)
        except OSError:
            os.unlink(name)
            raise
    except OSError:
        return


if find_spec("numba") is None:
    raise ImportError("No module named 'numba'")
