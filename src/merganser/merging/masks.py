"""Masks of entries: random ones, which any slice can compute alone, and masked assignment on the bits of floats.

Random bits come from a counter-based generator. A bit mask of all ones or all zeros per entry is several times faster
in numpy than ``where`` or an assignment by a boolean mask, and exact: dropped entries become positive zeros, NaN and
infinity included.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.merging.tensors import BLOCK

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_MIXING = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


_STEPS = np.arange(BLOCK, dtype=np.uint64) * np.uint64(_GOLDEN)


def mask_key(seed: int, name: str, model: int) -> int:
    """Derive a 64-bit key from the seed, the tensor's name and the model's index alone."""
    digest = hashlib.blake2b(f"{seed}\x00{model}\x00{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def random_bits(key: int, start: int, stop: int) -> NDArray[np.uint64]:
    """Generate numbers ``start`` to ``stop`` of a random stream, uniform over ``0 .. 2**53 - 1``.

    A counter-based generator (the output function of SplitMix64, Steele, Lea and Flood, OOPSLA 2014): any slice of the
    stream can be computed alone, so masks do not depend on slices, threads or the order of shards.
    """
    bits = np.empty(stop - start, np.uint64)
    scratch = np.empty(min(len(bits), BLOCK), np.uint64)
    for first in range(0, len(bits), BLOCK):
        _fill_random(key, start + first, bits[first : first + BLOCK], scratch)
    return bits


def bernoulli_mask(key: int, start: int, stop: int, threshold: int) -> NDArray[np.bool_]:
    """Mark the entries of a slice whose :func:`random_bits` are below a threshold (:func:`mask_threshold`)."""
    mask = np.empty(stop - start, np.bool_)
    bits, scratch = np.empty((2, min(len(mask), BLOCK)), np.uint64)
    for first in range(0, len(mask), BLOCK):
        part = mask[first : first + BLOCK]
        np.less(_fill_random(key, start + first, bits[: len(part)], scratch), np.uint64(threshold), out=part)
    return mask


def _fill_random(key: int, start: int, out: NDArray[np.uint64], scratch: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Fill ``out`` (a block at most) with the random numbers from ``start`` on."""
    spare = scratch[: len(out)]
    np.add(_STEPS[: len(out)], np.uint64(((start + 1) * _GOLDEN + key) % 2**64), out=out)
    for shift, factor in _MIXING:
        out ^= np.right_shift(out, np.uint64(shift), out=spare)
        out *= np.uint64(factor)
    out ^= np.right_shift(out, np.uint64(31), out=spare)
    out >>= np.uint64(11)
    return out


def mask_threshold(probability: float) -> int:
    """Return the threshold of :func:`bernoulli_mask` for a probability: 1 keeps all entries, 0 none."""
    return round(probability * 2.0**53)


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
