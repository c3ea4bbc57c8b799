"""The kernels as C functions of pointers and numbers, in LLVM's language: what machine code is made of."""

from __future__ import annotations

from typing import Any

import numba
from numba import types

from merganser.checkpoints import kernels
from merganser.checkpoints.compiled import PIECE, SIGNATURES


def machine_independent(kernel: str, source: str, target: str) -> tuple[str, str]:
    """A kernel in LLVM's language, optimised, and the name of its function.

    The function takes where to put its 64-bit result, where to put an error of numba's, then the pointers and numbers
    of the signature; it returns 0 unless it fails.

    Args:
        kernel: ``combine``, ``magmax``, ``elect`` or ``scan``; see :data:`merganser.checkpoints.compiled.SIGNATURES`.
        source, target: numba's names of the storage types read and written, for example ``uint16``.
    """
    kinds = SIGNATURES[kernel]
    known = {"source": types.CPointer(getattr(types, source)), "target": types.CPointer(getattr(types, target))}
    found = numba.cfunc(types.int64(*(known.get(k) or _KINDS[k] for k in kinds)), nopython=True, error_model="numpy")
    compiled = found(_FUNCTIONS[kernel])
    # Around the function numba puts another, which reports errors to Python; it is not wanted.
    return str(compiled.inspect_llvm()), str(compiled.native_name).removeprefix("cfunc.")


def _combine(
    rows: Any, stride: int, sources: int, n: int, coefficients: Any, models: int, deltas: int, out: Any, scratch: Any
) -> Any:
    return kernels.combine(
        numba.carray(rows, (sources, stride)),
        n,
        numba.carray(coefficients, (models,)),
        deltas != 0,
        numba.carray(out, (n,)),
        numba.carray(scratch, (1, PIECE)),
    )


def _magmax(rows: Any, stride: int, sources: int, n: int, scale: Any, out: Any, scratch: Any) -> Any:
    return kernels.magmax(
        numba.carray(rows, (sources, stride)), n, scale, numba.carray(out, (n,)), numba.carray(scratch, (2, PIECE))
    )


def _elect(
    rows: Any,
    stride: int,
    models: int,
    n: int,
    start: int,
    weights: Any,
    factors: Any,
    magnitudes: Any,
    indices: Any,
    keys: Any,
    limits: Any,
    signs: int,
    divisor: Any,
    normalize: int,
    scale: Any,
    out: Any,
    scratch: Any,
) -> Any:
    return kernels.elect(
        numba.carray(rows, (models + 1, stride)),
        n,
        start,
        numba.carray(weights, (models,)),
        numba.carray(factors, (models,)),
        numba.carray(magnitudes, (models, 2)),
        numba.carray(indices, (models, 2)),
        numba.carray(keys, (models,)),
        numba.carray(limits, (models,)),
        signs != 0,
        divisor,
        normalize != 0,
        scale,
        numba.carray(out, (n,)),
        numba.carray(scratch, (models + 4, PIECE)),
    )


def _scan(
    row: Any,
    base: Any,
    n: int,
    start: int,
    bracket: Any,
    values: Any,
    indices: Any,
    magnitudes: Any,
    inside: Any,
    places: Any,
    counts: Any,
) -> Any:
    return kernels.scan(
        numba.carray(row, (n,)),
        numba.carray(base, (n,)),
        n,
        start,
        numba.carray(bracket, (3,)),
        numba.carray(values, (n + 1,)),
        numba.carray(indices, (n + 1,)),
        numba.carray(magnitudes, (PIECE + 1,)),
        numba.carray(inside, (PIECE + 1,)),
        numba.carray(places, (PIECE + 1,)),
        numba.carray(counts, (3,)),
    )


_KINDS = {
    "int": types.int64,
    "float": types.float32,
    "floats": types.CPointer(types.float32),
    "ints": types.CPointer(types.int64),
    "words": types.CPointer(types.uint64),
    "places": types.CPointer(types.int32),
    "bytes": types.CPointer(types.uint8),
}
_FUNCTIONS = {"combine": _combine, "magmax": _magmax, "elect": _elect, "scan": _scan}
