"""From the bytes of a checkpoint to numbers and back, in numpy.

bfloat16 has no numpy type: it is the upper half of a float32, so widening is a shift and narrowing rounds to the
nearest, ties to even, in integers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NATIVE: dict[str, type[np.floating[Any]]] = {"F64": np.float64, "F32": np.float32, "F16": np.float16}

_EXPONENT: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}

TORCH_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""How transformers spells the types in ``config.json`` and people on the command line."""

SHORT_NAMES = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def decode(raw: NDArray[np.uint8], dtype: str, work: np.dtype[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """The numbers in ``raw`` bytes of a floating type, in the work type.

    Args:
        raw: bytes of whole elements.
        dtype: ``F64``, ``F32``, ``F16`` or ``BF16``.
        work: ``float32`` or ``float64``.
        out: filled and returned when it fits; a view of ``raw`` is returned where no conversion is needed.
    """
    if dtype == "BF16":
        narrow = raw.view(np.uint16)
        wide = np.empty(len(narrow), np.float32) if out is None or out.dtype != np.float32 else out[: len(narrow)]
        bits = wide.view(np.uint32)
        bits[:] = narrow
        bits <<= np.uint32(16)
        return wide if work == np.float32 else wide.astype(work)
    native = raw.view(_NATIVE[dtype])
    if native.dtype == work:
        return native
    if out is not None and out.dtype == work:
        out[: len(native)] = native
        return out[: len(native)]
    return native.astype(work)


def encode(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """``values`` in a storage type, rounded once to the nearest, ties to even. ``values`` may be overwritten."""
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return values.astype(_NATIVE[dtype], copy=False)
    single = np.ascontiguousarray(values, dtype=np.float32)
    bits = single.view(np.uint32)
    nan = np.isnan(single)
    bits = bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))
    narrow = (bits >> np.uint32(16)).astype(np.uint16)
    if nan.any():
        narrow[nan] = 0x7FC0
    return narrow


def count_nonfinite(raw: NDArray[np.uint8], dtype: str) -> int:
    """How many of the numbers in ``raw`` are NaN or infinite: those whose exponent is all ones."""
    kind, mask = _EXPONENT[dtype]
    bits = raw.view(kind)
    return int(np.count_nonzero((bits & kind(mask)) == kind(mask)))
