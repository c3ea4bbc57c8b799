"""The compiled kernels (numba): one pass over a slice of every model, from storage type to storage type.

They do the arithmetic of :mod:`merganser.merging.combine`, :mod:`~merganser.merging.elect` and
:mod:`~merganser.merging.magmax` operation by operation, without fused multiply-add or reordering, so results are
bit-identical to the numpy path (tests compare them). They save passes through memory and temporaries: a slice is
processed in pieces of :data:`PIECE` elements, whose intermediate results stay in the first-level cache.

Importing numba and loading its cached machine code (``NUMBA_CACHE_DIR``) take about a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])

PIECE = 1024
"""Elements per piece of a slice."""

ALL_FINITE = np.uint32(0x7FFFFFFF)
"""Flags up to this value mean that no NaN or infinity occurred: see :func:`_flag`."""

INFINITE = np.uint32(0x00800000)
"""Added to the bits of a magnitude, it carries into the sign bit for infinity and NaN."""

BF16, F16, F32 = 0, 1, 2
CODES = {"BF16": BF16, "F16": F16, "F32": F32}
"""Number of each storage type that kernels read and write."""

STORAGE: dict[str, type[np.generic]] = {"BF16": np.uint16, "F16": np.uint16, "F32": np.float32}
"""The numpy type that holds the values of each storage type: numba has neither bfloat16 nor float16."""

MODEL = np.dtype(
    [
        ("weight", np.float32),
        ("factor", np.float32),
        ("threshold", np.float32),
        ("threshold_index", np.int64),
        ("outlier", np.float32),
        ("outlier_index", np.int64),
        ("key", np.uint64),
        ("limit", np.uint64),
    ],
    align=True,
)
"""Which entries of one model's update :func:`elect` keeps, and its weight: a row per model.

* ``threshold``, ``threshold_index``: top-k threshold; a negative one keeps all, infinity nothing but NaN.
* ``outlier``, ``outlier_index``: entries that this threshold would keep are dropped, NaN first; NaN drops none.
* ``key``, ``limit``: random mask; a limit of ``2**53`` keeps all.
* ``factor``: rescales the kept entries.
"""


class Types(NamedTuple):
    """Storage types of the inputs and of the result, as in :data:`CODES`."""

    source: int
    target: int


class Signs(NamedTuple):
    """How :func:`elect` adds the updates up.

    Attributes:
        elect: elect signs and add the entries that agree; otherwise add all.
        normalize: divide by the sum of the weights that agree, or by ``divisor`` without election.
        divisor: float32.
        scale: float32, factor on the merged update.
    """

    elect: bool
    normalize: bool
    divisor: Any
    scale: Any


def _kernel(function: Function) -> Function:
    """Compile on the first call for its argument types; machine code is cached on disk."""
    compiled: Function = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    return compiled


def _inline(function: Function) -> Function:
    """Compile into the kernels that call it."""
    compiled: Function = numba.njit(forceinline=True, error_model="numpy")(function)
    return compiled


# Pieces -------------------------------------------------------------------------------------------------------------


@_inline
def _widen(stored: Any, source: int, out: Any) -> None:
    """Decode a piece to float32."""
    if source == BF16:
        for j in range(len(out)):
            out[j] = np.uint32(np.uint32(stored[j]) << np.uint32(16)).view(np.float32)
    elif source == F16:
        for j in range(len(out)):
            half = np.uint32(stored[j])
            # Exponent and mantissa in place, then a multiplication moves the bias (and makes subnormals normal).
            magnitude = np.uint32((half & np.uint32(0x7FFF)) << np.uint32(13))
            scaled = np.float32(magnitude.view(np.float32) * np.float32(2.0**112)).view(np.uint32)
            special = np.uint32(magnitude | np.uint32(0x7F800000))
            chosen = special if magnitude >= np.uint32(0x7C00 << 13) else scaled
            out[j] = np.uint32(chosen | ((half & np.uint32(0x8000)) << np.uint32(16))).view(np.float32)
    else:
        for j in range(len(out)):
            out[j] = stored[j]


@_inline
def _flag(flags: Any, value: Any, carry: Any) -> Any:
    """Set the highest bit of ``flags`` where a value is large, without a branch.

    Added to the bits of the magnitude, the carry reaches the sign bit from the smallest value on that counts:
    :data:`INFINITE` for infinity and NaN.
    """
    magnitude = np.float32(value).view(np.uint32) & np.uint32(0x7FFFFFFF)
    return np.uint32(flags | np.uint32(magnitude + carry))


@_inline
def _narrow(values: Any, target: int, out: Any, flags: Any) -> Any:
    """Encode a piece, rounded to nearest, ties to even; return the flags, set for values that overflow the type."""
    if target == BF16:
        for j in range(len(values)):
            flags = _flag(flags, values[j], np.uint32(0x00808000))
            bits = np.float32(values[j]).view(np.uint32)
            rounded = np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
            nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
            out[j] = np.uint16(0x7FC0) if nan else np.uint16(rounded >> np.uint32(16))
    elif target == F16:
        for j in range(len(values)):
            flags = _flag(flags, values[j], np.uint32(0x38801000))
            out[j] = _half(np.float32(values[j]).view(np.uint32))
    else:
        for j in range(len(values)):
            flags = _flag(flags, values[j], INFINITE)
            out[j] = values[j]
    return flags


@_inline
def _half(bits: Any) -> Any:
    """Round the bits of a float32 to those of a float16."""
    magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
    # Below 2**-14 adding one half aligns and rounds the mantissa; above, half an ulp is added before the shift.
    aligned = np.float32(magnitude.view(np.float32) + np.float32(0.5))
    small = np.uint32(aligned.view(np.uint32) - np.uint32(0x3F000000))
    odd = (magnitude >> np.uint32(13)) & np.uint32(1)
    normal = np.uint32(magnitude + np.uint32(0xC8000FFF) + odd) >> np.uint32(13)
    large = np.uint32(0x7E00) if magnitude > np.uint32(0x7F800000) else np.uint32(0x7C00)
    chosen = small if magnitude < np.uint32(0x38800000) else normal
    chosen = large if magnitude >= np.uint32(0x47800000) else chosen
    return np.uint16(chosen | ((bits >> np.uint32(16)) & np.uint32(0x8000)))


@_inline
def _updates(row: Any, base: Any, source: int, update: Any, flags: Any) -> Any:
    """Fill ``update`` with the differences of a piece from the decoded base; return the flags."""
    _widen(row, source, update)
    for j in range(len(update)):
        update[j] -= base[j]
        flags = _flag(flags, update[j], INFINITE)
    return flags


# Kernels ------------------------------------------------------------------------------------------------------------


@_kernel
def combine(rows: Any, coefficients: Any, deltas: bool, types: Types, out: Any) -> bool:
    """Compute :func:`merganser.merging.combine.combine`; with ``deltas`` the last row is the base.

    Args:
        rows: stored values, ``sources x at least the length of out``, contiguous.
        coefficients: float32, one per model.
        deltas: weight differences from the base.
        types: of ``rows`` and ``out``.
        out: stored values, filled.

    Returns:
        Whether a result is NaN or infinite: where none is, no input was.
    """
    models = len(coefficients)
    flags = np.uint32(0)
    scratch = np.empty((3, PIECE), np.float32)
    for begin in range(0, len(out), PIECE):
        end = min(begin + PIECE, len(out))
        total, value, origin = scratch[0, : end - begin], scratch[1, : end - begin], scratch[2, : end - begin]
        if deltas:
            _widen(rows[models, begin:end], types.source, origin)
        for i in range(models):
            weight = coefficients[i]
            _widen(rows[i, begin:end], types.source, value)
            if deltas:
                for j in range(len(value)):
                    value[j] -= origin[j]
            if i == 0:
                for j in range(len(value)):
                    total[j] = value[j] * weight
            else:
                for j in range(len(value)):
                    total[j] += value[j] * weight
        if deltas:
            for j in range(len(total)):
                total[j] += origin[j]
        flags = _narrow(total, types.target, out[begin:end], flags)
    return bool(flags > ALL_FINITE)


@_kernel
def magmax(rows: Any, scale: Any, types: Types, out: Any) -> bool:
    """Compute :func:`merganser.merging.magmax.apply`; the last row is the base. See :func:`combine`.

    Args:
        rows, scale (float32), types, out: as for :func:`combine`.

    Returns:
        Whether an update or a result is NaN or infinite.
    """
    models = len(rows) - 1
    flags = np.uint32(0)
    scratch = np.empty((3, PIECE), np.float32)
    for begin in range(0, len(out), PIECE):
        end = min(begin + PIECE, len(out))
        best, update, origin = scratch[0, : end - begin], scratch[1, : end - begin], scratch[2, : end - begin]
        _widen(rows[models, begin:end], types.source, origin)
        flags = _updates(rows[0, begin:end], origin, types.source, best, flags)
        for i in range(1, models):
            flags = _updates(rows[i, begin:end], origin, types.source, update, flags)
            for j in range(len(best)):
                best[j] = update[j] if abs(update[j]) >= abs(best[j]) else best[j]
        for j in range(len(best)):
            best[j] = best[j] * scale + origin[j]
        flags = _narrow(best, types.target, out[begin:end], flags)
    return bool(flags > ALL_FINITE)


@_kernel
def elect(rows: Any, start: int, models: Any, signs: Signs, types: Types, out: Any) -> bool:
    """Compute :func:`merganser.merging.elect.elect`; the last row is the base.

    Args:
        rows, types, out: as for :func:`combine`.
        start: index of the slice's first element in the tensor.
        models: array of :data:`MODEL`.
        signs: how the updates are added.

    Returns:
        Whether an update or a result is NaN or infinite.
    """
    flags = np.uint32(0)
    scratch = np.empty((4 + len(models), PIECE), np.float32)
    for begin in range(0, len(out), PIECE):
        end = min(begin + PIECE, len(out))
        length = end - begin
        origin, total = scratch[0, :length], scratch[1, :length]
        agreeing, sign = scratch[2, :length], scratch[3, :length]
        _widen(rows[len(models), begin:end], types.source, origin)
        for j in range(length):
            total[j] = np.float32(0.0)
        for i in range(len(models)):
            update = scratch[4 + i, :length]
            flags = _updates(rows[i, begin:end], origin, types.source, update, flags)
            _sparsify(update, start + begin, models[i])
            factor, weight = models[i].factor, models[i].weight
            for j in range(length):
                update[j] = (update[j] * factor) * weight
                total[j] += update[j]
        if signs.elect:
            _add_agreeing(scratch[4:], models, total, agreeing, sign)
        if signs.normalize:
            for j in range(length):
                divisor = agreeing[j] if signs.elect else signs.divisor
                total[j] /= np.float32(1.0) if signs.elect and divisor == np.float32(0.0) else divisor
        if signs.scale != np.float32(1.0):
            for j in range(length):
                total[j] *= signs.scale
        for j in range(length):
            total[j] += origin[j]
        flags = _narrow(total, types.target, out[begin:end], flags)
    return bool(flags > ALL_FINITE)


@_inline
def _sparsify(update: Any, start: int, model: Any) -> None:
    """Zero the entries of a piece that a row of :data:`MODEL` drops."""
    length = len(update)
    if model.outlier == model.outlier:
        # Outliers first: entries zeroed here stay zero below.
        ties = min(max(model.outlier_index - start, 0), length)
        _drop_above(update[:ties], model.outlier, False)
        _drop_above(update[ties:], model.outlier, True)
    if model.threshold >= np.float32(0.0):
        ties = min(max(model.threshold_index - start, 0), length)
        _drop_below(update[:ties], model.threshold, False)
        _drop_below(update[ties:], model.threshold, True)
    if model.limit < np.uint64(1 << 53):
        _drop_randomly(update, np.uint64(start), model.key, model.limit)


@_inline
def _drop_below(update: Any, limit: Any, inclusive: bool) -> None:
    """Zero the entries whose magnitude is below the limit (or at it, when ``inclusive``); NaN stays."""
    for j in range(len(update)):
        magnitude = abs(update[j])
        drop = magnitude <= limit if inclusive else magnitude < limit
        update[j] = np.float32(0.0) if drop else update[j]


@_inline
def _drop_above(update: Any, limit: Any, exclusive: bool) -> None:
    """Zero the entries whose magnitude is not below the limit (or not at it either, when ``exclusive``), and NaN."""
    for j in range(len(update)):
        magnitude = abs(update[j])
        keep = magnitude <= limit if exclusive else magnitude < limit
        update[j] = update[j] if keep else np.float32(0.0)


@_inline
def _drop_randomly(update: Any, start: Any, key: Any, limit: Any) -> None:
    """Zero the entries that :func:`merganser.merging.masks.bernoulli_mask` drops."""
    for j in range(len(update)):
        state = (start + np.uint64(j) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + key
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = (state ^ (state >> np.uint64(31))) >> np.uint64(11)
        update[j] = update[j] if state < limit else np.float32(0.0)


@_inline
def _add_agreeing(updates: Any, models: Any, total: Any, agreeing: Any, sign: Any) -> None:
    """Replace ``total`` by the sum of entries that agree with its sign; fill ``agreeing`` with their weights."""
    zero, plus_one = np.float32(0.0), np.float32(1.0)
    for j in range(len(total)):
        sign[j] = plus_one if total[j] >= zero else -plus_one
        total[j] = zero
        agreeing[j] = zero
    for i in range(len(models)):
        update, weight = updates[i], models[i].weight
        for j in range(len(total)):
            # Multiplying by one or minus one is exact: positive where the entry has the elected sign.
            agree = update[j] * sign[j] > zero
            total[j] += update[j] if agree else zero
            agreeing[j] += weight if agree else zero


@_kernel
def scan(row: Any, base: Any, start: int, bracket: Any, source: int, values: Any, indices: Any) -> tuple[int, int, int]:
    """Count the magnitudes of an update above a bracket and at its middle; collect the others inside.

    Args:
        row, base: stored values, of one length n.
        start: index of the slice's first element in the tensor.
        bracket: float32, its low end, its middle and its high end.
        source: storage type, as in :data:`CODES`.
        values, indices: float32 and int64, filled; at least ``n + 1``.

    Returns:
        Entries above, entries at the middle, entries collected.
    """
    low, middle, high = bracket[0], bracket[1], bracket[2]
    scratch = np.empty((2, PIECE), np.float32)
    inside, positions = np.empty(PIECE, np.uint8), np.empty(PIECE + 1, np.int32)
    words = inside.view(np.uint64)
    above, ties, collected = 0, 0, 0
    for begin in range(0, len(row), PIECE):
        end = min(begin + PIECE, len(row))
        magnitudes, origin = scratch[0, : end - begin], scratch[1, : end - begin]
        _widen(row[begin:end], source, magnitudes)
        _widen(base[begin:end], source, origin)
        larger, equal = np.int32(0), np.int32(0)
        for j in range(end - begin):
            value = abs(magnitudes[j] - origin[j])
            magnitudes[j] = value
            larger += np.int32(not (value <= high))
            equal += np.int32(value == middle)
            inside[j] = np.uint8((value >= low) & (value <= high) & (value != middle))
        above += int(larger)
        ties += int(equal)
        # Without a branch, where any of eight is inside: every position is written, and overwritten unless it was.
        count = 0
        inside[end - begin :] = 0
        for word in range((end - begin + 7) // 8):
            if words[word] != 0:
                for j in range(8 * word, 8 * word + 8):
                    positions[count] = j
                    count += inside[j]
        for j in range(count):
            values[collected + j] = magnitudes[positions[j]]
            indices[collected + j] = start + begin + positions[j]
        collected += count
    return above, ties, collected
