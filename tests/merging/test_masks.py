"""Choosing on bits is choosing: the same bits as numpy's ``where``, whatever the values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from merganser.merging.masks import bernoulli_mask, keep_only, mask_threshold, put_where, random_bits
from merganser.merging.tensors import BLOCK

KINDS = (np.float32, np.float64)


def drawn(kind: Any) -> st.SearchStrategy[tuple[Any, Any, Any]]:
    bits = np.uint32 if kind == np.float32 else np.uint64
    return st.integers(0, 40).flatmap(
        lambda n: st.tuples(arrays(bits, n).map(lambda b: b.view(kind)),
                            arrays(bits, n).map(lambda b: b.view(kind)), arrays(np.bool_, n))
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_any_bits(kind: Any, data: st.DataObject) -> None:
    values, others, chosen = data.draw(drawn(kind))
    kept, put = values.copy(), values.copy()
    keep_only(kept, chosen)
    assert kept.tobytes() == np.where(chosen, values, kind(0)).tobytes()
    put_where(put, chosen, others)
    assert put.tobytes() == np.where(chosen, others, values).tobytes()


def test_dropped_entries_are_positive_zeros() -> None:
    values = np.array([np.nan, np.inf, -np.inf, -0.0, -3.0, 5.0], np.float32)
    keep_only(values, np.array([False] * 5 + [True]))
    assert values.tobytes() == np.array([0, 0, 0, 0, 0, 5], np.float32).tobytes()


def splitmix(key: int, index: int) -> int:
    """Draw number ``index``, written out in whole numbers."""
    state = ((index + 1) * 0x9E3779B97F4A7C15 + key) % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return (state ^ (state >> 31)) >> 11


@given(key=st.integers(0, 2**64 - 1), start=st.integers(0, 2**40), length=st.integers(0, 30))
def test_draws_are_splitmix_wherever_a_slice_begins(key: int, start: int, length: int) -> None:
    found = random_bits(key, start, start + length)
    assert found.tolist() == [splitmix(key, index) for index in range(start, start + length)]
    limit = mask_threshold(0.4)
    assert bernoulli_mask(key, start, start + length, limit).tolist() == [draw < limit for draw in found.tolist()]


def test_draws_over_several_blocks() -> None:
    start, stop = 7, 7 + 2 * BLOCK + 5
    found = random_bits(3, start, stop)
    for index in (start, start + BLOCK - 1, start + BLOCK, start + 2 * BLOCK, stop - 1):
        assert int(found[index - start]) == splitmix(3, index)
    for probability in (0.0, 0.3, 1.0):
        kept = bernoulli_mask(3, start, stop, mask_threshold(probability))
        assert np.array_equal(kept, found < np.uint64(mask_threshold(probability)))
        assert abs(kept.mean() - probability) < 0.005
