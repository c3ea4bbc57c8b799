"""Convert between the bytes of a checkpoint and numpy numbers.

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

_TOO_LARGE = {
    "F64": float("inf"),
    "F32": float.fromhex("0x1.ffffffp127"),
    "F16": 65520.0,
    "BF16": float.fromhex("0x1.ffp127"),
}
"""The smallest number that rounds to infinity."""

TORCH_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Names in ``config.json`` and on the command line -> names in safetensors files."""

LARGEST = {
    "F64": float(np.finfo(np.float64).max),
    "F32": float(np.finfo(np.float32).max),
    "F16": float(np.finfo(np.float16).max),
    "BF16": float.fromhex("0x1.fep127"),
}
"""The largest number of each type."""

SHORT_NAMES = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def decode(raw: NDArray[np.uint8], dtype: str, work: np.dtype[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Decode bytes of a floating type to numbers in the work type.

    Args:
        raw: bytes of whole elements.
        dtype: ``F64``, ``F32``, ``F16`` or ``BF16``.
        work: ``float32`` or ``float64``.
        out: filled and returned if its type is right; without a conversion, a view of ``raw`` is returned.
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


def encode(values: NDArray[Any], dtype: str, finite: bool = False) -> NDArray[Any]:
    """Encode numbers in a storage type, rounded once to the nearest, ties to even.

    Args:
        values: floating-point numbers.
        dtype: ``F64``, ``F32``, ``F16`` or ``BF16`` (which comes as ``uint16``).
        finite: none of the values is NaN.
    """
    with np.errstate(over="ignore"):
        if dtype != "BF16":
            return values.astype(_NATIVE[dtype], copy=False)
        single = np.ascontiguousarray(values, dtype=np.float32)
    bits = single.view(np.uint32)
    # Add half a unit of the last kept place, less one where the upper half is even; then the lower half is dropped.
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    narrow = rounded.astype(np.uint16)
    if not finite and (nan := np.isnan(single)).any():
        narrow[nan] = 0x7FC0
    return narrow


def split_pairs(raw: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Decode an even number of bfloat16 numbers into those at even and those at odd positions, in float32.

    Two neighbours are one 32-bit integer: a shift gives the first and a mask the second, several times faster
    than widening 16-bit integers. For arithmetic entry by entry, where the order does not matter.
    """
    pairs = raw.view(np.uint32)
    return (pairs << np.uint32(16)).view(np.float32), (pairs & np.uint32(0xFFFF0000)).view(np.float32)


def join_pairs(even: NDArray[np.float32], odd: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Invert :func:`split_pairs`, rounding as :func:`encode` does; for finite numbers."""
    rounded = []
    for half in (even, odd):
        bits = half.view(np.uint32)
        up = bits >> np.uint32(16)
        up &= np.uint32(1)
        up += np.uint32(0x7FFF)
        up += bits
        rounded.append(up)
    rounded[0] >>= np.uint32(16)
    rounded[1] &= np.uint32(0xFFFF0000)
    rounded[0] |= rounded[1]
    return rounded[0].view(np.uint16)


def fits(values: NDArray[Any], dtype: str) -> bool:
    """Return whether all ``values`` (at least one) are finite and stay finite in a storage type."""
    limit = _TOO_LARGE[dtype]
    return bool(-limit < values.min() and values.max() < limit)


def count_nonfinite(raw: NDArray[np.uint8], dtype: str) -> int:
    """Count the numbers in ``raw`` that are NaN or infinite: those whose exponent bits are all ones."""
    kind, mask = _EXPONENT[dtype]
    bits = raw.view(kind)
    return int(np.count_nonzero((bits & kind(mask)) == kind(mask)))
