"""Masked assignment on the bits of floats.

A bit mask of all ones or all zeros per entry is several times faster in numpy than ``where`` or an
assignment by a boolean mask, and exact: dropped entries become positive zeros, NaN and infinity included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    return values.view(np.int64 if values.dtype == np.float64 else np.int32)


def _mask(keep: NDArray[np.bool_], bits: NDArray[Any]) -> NDArray[Any]:
    return np.negative(keep.view(np.int8)).astype(bits.dtype)


def keep_only(values: NDArray[Any], keep: NDArray[np.bool_]) -> None:
    """Zero the entries that are not to be kept, in place.

    Args:
        values: float32 or float64.
        keep: which entries are kept, of the same shape.
    """
    bits = _bits(values)
    bits &= _mask(keep, bits)


def put_where(values: NDArray[Any], choose: NDArray[np.bool_], others: NDArray[Any]) -> None:
    """Replace the entries that ``choose`` marks by those of ``others``, in place.

    Args:
        values, others: of one type, float32 or float64.
    """
    bits = _bits(values)
    differences = bits ^ _bits(others)
    differences &= _mask(choose, bits)
    bits ^= differences
