"""The source of the compiled kernels (numba): one pass over the bytes of a slice, from storage to storage.

They do the arithmetic of :mod:`merganser.merging.combine`, :mod:`~merganser.merging.elect` and
:mod:`~merganser.merging.magmax` operation by operation, without fused multiply-add or reordering, so that results are
bit-identical to the numpy path; tests compare them. What they save is passes through memory and temporaries.

Storage types travel as numpy types of the same width: bfloat16 as ``uint16``, float16 as ``int16``, float32 as itself.
Scratch comes from the caller, so that the code asks nothing of Python and runs without it:
:mod:`merganser.checkpoints.entries` gives a kernel in LLVM, and :mod:`merganser.checkpoints.compiled` makes, keeps
and calls machine code of it.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from merganser.checkpoints.compiled import PIECE

_I16, _I32, _F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()


@intrinsic
def _decode(typing_context: Any, value: Any) -> Any:
    """``_decode(stored)``: a stored number as float32. Written in LLVM's language so that loops around it vectorise."""

    def same(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return args[0]

    def bfloat(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.shl(builder.zext(args[0], _I32), _I32(16)), _F32)

    def half(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # Exponent and mantissa in place, then a multiplication moves the bias (and makes subnormals normal).
        bits = builder.zext(args[0], _I32)
        magnitude = builder.shl(builder.and_(bits, _I32(0x7FFF)), _I32(13))
        scaled = builder.fmul(builder.bitcast(magnitude, _F32), _F32(2.0**112))
        special = builder.icmp_unsigned(">=", magnitude, _I32(0x7C00 << 13))
        chosen = builder.select(special, builder.or_(magnitude, _I32(0x7F800000)), builder.bitcast(scaled, _I32))
        sign = builder.shl(builder.and_(bits, _I32(0x8000)), _I32(16))
        return builder.bitcast(builder.or_(chosen, sign), _F32)

    code = {types.float32: same, types.uint16: bfloat, types.int16: half}[value]
    return types.float32(value), code


@intrinsic
def _encode(typing_context: Any, value: Any, out: Any) -> Any:
    """``_encode(number, out)``: a float32 as the array ``out`` stores it, rounded to the nearest, ties to even."""

    def same(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return args[0]

    def bfloat(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _I32)
        odd = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
        rounded = builder.lshr(builder.add(bits, builder.add(odd, _I32(0x7FFF))), _I32(16))
        nan = builder.fcmp_unordered("uno", args[0], args[0])
        return builder.trunc(builder.select(nan, _I32(0x7FC0), rounded), _I16)

    def half(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _I32)
        sign = builder.and_(builder.lshr(bits, _I32(16)), _I32(0x8000))
        magnitude = builder.and_(bits, _I32(0x7FFFFFFF))
        # Below 2**-14 adding one half aligns and rounds the mantissa; above, half an ulp is added before the shift.
        aligned = builder.fadd(builder.bitcast(magnitude, _F32), _F32(0.5))
        small = builder.sub(builder.bitcast(aligned, _I32), _I32(0x3F000000))
        odd = builder.and_(builder.lshr(magnitude, _I32(13)), _I32(1))
        normal = builder.lshr(builder.add(builder.add(magnitude, _I32(0xC8000FFF)), odd), _I32(13))
        nan = builder.icmp_unsigned(">", magnitude, _I32(0x7F800000))
        large = builder.select(nan, _I32(0x7E00), _I32(0x7C00))
        chosen = builder.select(builder.icmp_unsigned("<", magnitude, _I32(0x38800000)), small, normal)
        chosen = builder.select(builder.icmp_unsigned(">=", magnitude, _I32(0x47800000)), large, chosen)
        return builder.trunc(builder.or_(chosen, sign), _I16)

    code = {types.float32: same, types.uint16: bfloat, types.int16: half}[out.dtype]
    return out.dtype(value, out), code


@intrinsic
def _alarm(typing_context: Any, alarm: Any, value: Any) -> Any:
    """``_alarm(alarm, value)``: the alarm with its highest bit set where the value is NaN or infinite.

    Adding one to an exponent of all ones carries into the sign's place: no comparison, no branch.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        magnitude = builder.and_(builder.bitcast(args[1], _I32), _I32(0x7FFFFFFF))
        return builder.or_(args[0], builder.add(magnitude, _I32(0x00800000)))

    return types.uint32(types.uint32, types.float32), code


@intrinsic
def _alarm_result(typing_context: Any, alarm: Any, value: Any, out: Any) -> Any:
    """``_alarm_result(alarm, value, out)``: like :func:`_alarm`, for what the value becomes in the array ``out``.

    What is added carries from the smallest float32 on that rounds to infinity there.
    """
    carry = {types.float32: 0x00800000, types.uint16: 0x00808000, types.int16: 0x38801000}[out.dtype]

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        magnitude = builder.and_(builder.bitcast(args[1], _I32), _I32(0x7FFFFFFF))
        return builder.or_(args[0], builder.add(magnitude, _I32(carry)))

    return types.uint32(types.uint32, types.float32, out), code


@numba.njit(nogil=True, forceinline=True, error_model="numpy")
def combine(rows: Any, n: int, coefficients: Any, deltas: bool, out: Any, scratch: Any) -> bool:
    """:func:`merganser.merging.combine.combine`; with ``deltas`` the last row is the base.

    Returns whether a result is NaN or infinite: where none is, no input was.

    Args:
        rows: storage, ``sources x at least n``.
        n: elements.
        coefficients: float32, one per model.
        deltas: weigh differences from the base.
        out: storage, at least ``n``.
        scratch: float32, ``1 x PIECE``.
    """
    models = len(coefficients)
    alarm = np.uint32(0)
    if not deltas and models == 2:
        first, second = coefficients[0], coefficients[1]
        a, b = rows[0], rows[1]
        for j in range(n):
            value = _decode(a[j]) * first + _decode(b[j]) * second
            alarm = _alarm_result(alarm, value, out)
            out[j] = _encode(value, out)
        return bool(alarm > np.uint32(0x7FFFFFFF))
    total = scratch[0]
    for begin in range(0, n, PIECE):
        length = min(PIECE, n - begin)
        target = out[begin : begin + length]
        if deltas:
            base = rows[models, begin : begin + length]
            for i in range(models):
                row = rows[i, begin : begin + length]
                weight = coefficients[i]
                if i == 0:
                    for j in range(length):
                        total[j] = (_decode(row[j]) - _decode(base[j])) * weight
                else:
                    for j in range(length):
                        total[j] += (_decode(row[j]) - _decode(base[j])) * weight
            for j in range(length):
                value = total[j] + _decode(base[j])
                alarm = _alarm_result(alarm, value, out)
                target[j] = _encode(value, out)
        else:
            for i in range(models):
                row = rows[i, begin : begin + length]
                weight = coefficients[i]
                if i == 0:
                    for j in range(length):
                        total[j] = _decode(row[j]) * weight
                else:
                    for j in range(length):
                        total[j] += _decode(row[j]) * weight
            for j in range(length):
                alarm = _alarm_result(alarm, total[j], out)
                target[j] = _encode(total[j], out)
    return bool(alarm > np.uint32(0x7FFFFFFF))


@numba.njit(nogil=True, forceinline=True, error_model="numpy")
def magmax(rows: Any, n: int, scale: Any, out: Any, scratch: Any) -> bool:
    """:func:`merganser.merging.magmax.apply`; the last row is the base, ``scratch`` float32 of ``2 x PIECE``.

    Returns whether an update or a result is NaN or infinite.
    """
    models = len(rows) - 1
    alarm = np.uint32(0)
    best, origin = scratch[0], scratch[1]
    for begin in range(0, n, PIECE):
        length = min(PIECE, n - begin)
        target = out[begin : begin + length]
        base = rows[models, begin : begin + length]
        row = rows[0, begin : begin + length]
        for j in range(length):
            origin[j] = _decode(base[j])
            best[j] = _decode(row[j]) - origin[j]
            alarm = _alarm(alarm, best[j])
        for i in range(1, models):
            row = rows[i, begin : begin + length]
            for j in range(length):
                delta = _decode(row[j]) - origin[j]
                alarm = _alarm(alarm, delta)
                best[j] = delta if abs(delta) >= abs(best[j]) else best[j]
        for j in range(length):
            value = best[j] * scale + origin[j]
            alarm = _alarm_result(alarm, value, out)
            target[j] = _encode(value, out)
    return bool(alarm > np.uint32(0x7FFFFFFF))


@numba.njit(nogil=True, forceinline=True, error_model="numpy")
def _drop_below(update: Any, limit: Any, inclusive: bool) -> None:
    """Zero the entries whose magnitude is below the limit (or at it, when ``inclusive``); NaN stays."""
    zero = np.float32(0.0)
    if inclusive:
        for j in range(len(update)):
            value = update[j]
            update[j] = zero if abs(value) <= limit else value
    else:
        for j in range(len(update)):
            value = update[j]
            update[j] = zero if abs(value) < limit else value


@numba.njit(nogil=True, forceinline=True, error_model="numpy")
def _drop_above(update: Any, limit: Any, exclusive: bool) -> None:
    """Zero the entries whose magnitude is not below the limit (or not at it either, when ``exclusive``), and NaN."""
    zero = np.float32(0.0)
    if exclusive:
        for j in range(len(update)):
            value = update[j]
            update[j] = value if abs(value) <= limit else zero
    else:
        for j in range(len(update)):
            value = update[j]
            update[j] = value if abs(value) < limit else zero


@numba.njit(nogil=True, forceinline=True, error_model="numpy")
def elect(
    rows: Any,
    n: int,
    start: int,
    weights: Any,
    factors: Any,
    magnitudes: Any,
    indices: Any,
    keys: Any,
    limits: Any,
    signs: bool,
    divisor: Any,
    normalize: bool,
    scale: Any,
    out: Any,
    scratch: Any,
) -> bool:
    """:func:`merganser.merging.elect.elect`; the last row is the base.

    Returns whether an update or a result is NaN or infinite.

    Args:
        rows: storage, ``models + 1 x at least n``.
        n: elements; ``start`` is the index of the first in the tensor.
        weights, factors: float32, one per model.
        magnitudes, indices: ``models x 2``: the cut below, whose negative magnitude keeps all and infinity nothing but
            NaN; and the cut of outliers, which drops what it would keep, NaN first; NaN stands for none.
        keys, limits: uint64, one per model; a limit of ``2**53`` keeps all.
        signs: elect signs.
        divisor: without election, float32, used when ``normalize``.
        scale: float32.
        out: storage, at least ``n``.
        scratch: float32, ``4 + models x PIECE``.
    """
    models = len(weights)
    everything = np.uint64(1 << 53)
    origin, total, count, sign = scratch[0], scratch[1], scratch[2], scratch[3]
    kept = scratch[4:]
    zero = np.float32(0.0)
    alarm = np.uint32(0)
    for begin in range(0, n, PIECE):
        length = min(PIECE, n - begin)
        target = out[begin : begin + length]
        base = rows[models, begin : begin + length]
        for j in range(length):
            origin[j] = _decode(base[j])
            total[j] = zero
        for i in range(models):
            row = rows[i, begin : begin + length]
            update = kept[i]
            for j in range(length):
                update[j] = _decode(row[j]) - origin[j]
                alarm = _alarm(alarm, update[j])
            low, high = magnitudes[i, 0], magnitudes[i, 1]
            if high == high:
                # Outliers first: what is zeroed here stays zero below.
                outliers = min(max(indices[i, 1] - (start + begin), 0), length)
                _drop_above(update[:outliers], high, False)
                _drop_above(update[outliers:length], high, True)
            if low >= zero:
                ties = min(max(indices[i, 0] - (start + begin), 0), length)
                _drop_below(update[:ties], low, False)
                _drop_below(update[ties:length], low, True)
            if limits[i] < everything:
                _draw(update, length, np.uint64(start + begin), keys[i], limits[i])
            factor, weight = factors[i], weights[i]
            for j in range(length):
                value = (update[j] * factor) * weight
                update[j] = value
                total[j] += value
        if signs:
            for j in range(length):
                count[j] = zero
            _agree(kept, models, length, weights, total, count, sign)
            if normalize:
                for j in range(length):
                    total[j] /= np.float32(1.0) if count[j] == zero else count[j]
        elif normalize:
            for j in range(length):
                total[j] /= divisor
        if scale != np.float32(1.0):
            for j in range(length):
                total[j] *= scale
        for j in range(length):
            value = origin[j] + total[j]
            alarm = _alarm_result(alarm, value, out)
            target[j] = _encode(value, out)
    return bool(alarm > np.uint32(0x7FFFFFFF))


@numba.njit(nogil=True, forceinline=True, error_model="numpy")
def _draw(update: Any, length: int, start: Any, key: Any, limit: Any) -> None:
    """Drop the entries whose draw (:func:`merganser.merging.trim.random_bits`) is not below the limit."""
    for j in range(length):
        state = (start + np.uint64(j) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + key
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = (state ^ (state >> np.uint64(31))) >> np.uint64(11)
        update[j] = update[j] if state < limit else np.float32(0.0)


@numba.njit(nogil=True, forceinline=True, error_model="numpy")
def _agree(kept: Any, models: int, length: int, weights: Any, total: Any, count: Any, sign: Any) -> None:
    """Replace ``total`` by the sum of what agrees with its sign, and fill ``count`` with the weights that agree."""
    zero, one = np.float32(0.0), np.float32(1.0)
    for j in range(length):
        sign[j] = one if total[j] >= zero else -one
        total[j] = zero
    for i in range(models):
        update, weight = kept[i], weights[i]
        for j in range(length):
            # Multiplying by one or minus one is exact: positive where the entry has the elected sign.
            value = update[j]
            agree = value * sign[j] > zero
            total[j] += value if agree else zero
            count[j] += weight if agree else zero


@numba.njit(nogil=True, forceinline=True, error_model="numpy")
def scan(
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
) -> bool:
    """Count the magnitudes of an update above a bracket and at its middle; collect the others inside.

    Args:
        row, base: storage, at least ``n``.
        n: elements; ``start`` is the index of the first in the tensor.
        bracket: float32, its low end, its middle and its high end.
        values, indices: float32 and int64, filled; at least ``n + 1``.
        magnitudes, inside, places: scratch of ``PIECE + 1``, float32, uint8 and int32.
        counts: int64, filled with the entries above, the entries at the middle, the entries collected.
    """
    low, middle, high = bracket[0], bracket[1], bracket[2]
    above = 0
    ties = 0
    found = 0
    for begin in range(0, n, PIECE):
        length = min(PIECE, n - begin)
        model, origin = row[begin : begin + length], base[begin : begin + length]
        for j in range(length):
            magnitudes[j] = abs(_decode(model[j]) - _decode(origin[j]))
        here: Any = np.int32(0)
        equal: Any = np.int32(0)
        for j in range(length):
            value = magnitudes[j]
            here += np.int32(not (value <= high))
            equal += np.int32(value == middle)
            inside[j] = np.uint8((value >= low) & (value <= high) & (value != middle))
        above += here
        ties += equal
        # Without a branch: every place is written, and overwritten unless it was inside.
        count = 0
        for j in range(length):
            places[count] = j
            count += inside[j]
        for j in range(count):
            values[found + j] = magnitudes[places[j]]
            indices[found + j] = start + begin + places[j]
        found += count
    counts[0], counts[1], counts[2] = above, ties, found
    return False
