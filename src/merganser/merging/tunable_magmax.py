"""Tunable MagMax: MagMax in which every task supplies a chosen fraction of the entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.errors import InputError
from merganser.merging.masks import mask_key, random_bits
from merganser.merging.rule import SCALE, SEED, WEIGHT, Rule
from merganser.merging.tensors import Array, as_arrays, like, numbers_per_model

if TYPE_CHECKING:
    from numpy.typing import NDArray


def tunable_magmax(
    models: Sequence[Array],
    base: Array,
    *,
    weights: float | Sequence[float] = 1.0,
    scale: float = 0.5,
    seed: int = 0,
    name: str = "",
) -> Array:
    """Compute ``theta_0 + scale * tau*``, where task i supplies exactly its quota of the entries of ``tau*``.

    Source: Hiroshima 2026, Tunable MagMax, arXiv 2605.20803. Of n entries task i supplies ``floor(w_i n)``; the
    remainder is assigned one by one from the first task on. Starting from MagMax's assignment among the tasks with a
    quota, tasks T to 2 give up a random subset of their surplus size, each entry to the earlier task of largest
    magnitude there. Last, a random subset of the first task's entries of its surplus size goes to the tasks below their
    quota: to each first the entries where its magnitude is the largest of tasks 2 to T, then random ones. The random
    choices depend on ``seed``, ``name`` and the entry's index only.
    Weights: the preference vector, divided by its sum; not negative.

    Args:
        models: tensors of equal shape, in the order of their tasks.
        base: the pre-trained model.
        weights: one per model, or one for all.
        scale: factor on the supplied update.
        seed: of the random subsets.
        name: the tensor's name.

    Returns:
        A tensor of the first model's shape and type.

    Raises:
        InputError: shapes differ, or weights that are negative or sum to zero.
    """
    arrays, base_array = as_arrays(models, base)
    assert base_array is not None
    flat = base_array.reshape(-1)
    updates = [array.reshape(-1) - flat for array in arrays]
    assigned = assign_entries(updates, entry_quotas(weights, len(updates), flat.size), seed=seed, name=name)
    supplied = np.zeros_like(flat)
    for index, update in enumerate(updates):
        owned = assigned == index
        supplied[owned] = update[owned]
    merged = flat + supplied * flat.dtype.type(scale)
    return like(merged.reshape(base_array.shape), models[0])


def entry_quotas(weights: float | Sequence[float], count: int, size: int) -> list[int]:
    """Compute how many of ``size`` entries each of ``count`` tasks supplies: ``floor(w_i n)`` in exact decimals.

    Raises:
        InputError: weights that are negative or sum to zero.
    """
    numbers = numbers_per_model(weights, count, "weight")
    exact = [Fraction(repr(float(number))) for number in numbers]
    total = sum(exact)
    if min(exact) < 0 or total <= 0:
        raise InputError(
            f"The weights are {', '.join(f'{number:g}' for number in numbers)}.",
            "Use weights that are not negative, and not all zero.",
        )
    entry_counts = [math.floor(number * size / total) for number in exact]
    for index in range(size - sum(entry_counts)):
        entry_counts[index % count] += 1
    return entry_counts


def assign_entries(
    updates: Sequence[NDArray[Any]], entry_counts: Sequence[int], *, seed: int, name: str
) -> NDArray[np.int32]:
    """Assign each entry the index of the task that supplies it; task i supplies ``entry_counts[i]`` of them.

    Args:
        updates: flat arrays of one length, in the order of the tasks.
        entry_counts: entries per task; they sum to the length.
        seed, name: decide the random subsets.
    """
    # A task without a quota wins nowhere: it must not decide which of the others supplies an entry.
    magnitudes = [
        np.abs(update) if count else np.full_like(update, -1)
        for update, count in zip(updates, entry_counts, strict=True)
    ]
    assigned = _largest(magnitudes)
    for task in range(len(updates) - 1, 0, -1):
        surplus = _select_surplus(assigned, task, entry_counts[task], seed, name)
        assigned[surplus] = _largest([earlier[surplus] for earlier in magnitudes[:task]])
    surplus = _select_surplus(assigned, 0, entry_counts[0], seed, name)
    missing = [count - int(np.count_nonzero(assigned == task)) for task, count in enumerate(entry_counts)]
    if len(surplus):
        assigned[surplus] = _hand_over([later[surplus] for later in magnitudes[1:]], missing[1:]) + 1
    return assigned


def _largest(magnitudes: Sequence[NDArray[Any]]) -> NDArray[np.int32]:
    """Return the index of the array with the largest value, entry by entry; ties go to the later array."""
    assigned = np.zeros(len(magnitudes[0]), dtype=np.int32)
    best = magnitudes[0].copy()
    for index in range(1, len(magnitudes)):
        wins = magnitudes[index] >= best
        assigned[wins] = index
        best[wins] = magnitudes[index][wins]
    return assigned


def _hand_over(magnitudes: Sequence[NDArray[Any]], missing: Sequence[int]) -> NDArray[np.int32]:
    """Assign each entry the index of a task in need: one whose magnitude is the largest there, or else any.

    Args:
        magnitudes: one array per task, with the entries in random order.
        missing: entries that each task needs (not positive: none); the positive ones sum to the number of entries.
    """
    largest = _largest(magnitudes)
    assigned = np.full(len(largest), -1, dtype=np.int32)
    for task, count in enumerate(missing):
        assigned[np.flatnonzero(largest == task)[: max(0, count)]] = task
    still_missing = [max(0, count) - int(np.count_nonzero(assigned == task)) for task, count in enumerate(missing)]
    assigned[assigned < 0] = np.repeat(np.arange(len(missing), dtype=np.int32), still_missing)
    return assigned


def _select_surplus(assigned: NDArray[np.int32], task: int, quota: int, seed: int, name: str) -> NDArray[np.int64]:
    """Select a random subset of a task's entries, in random order, of the size by which it exceeds its quota."""
    owned = np.flatnonzero(assigned == task)
    excess = len(owned) - quota
    if excess <= 0:
        return owned[:0]
    bits = random_bits(mask_key(seed, name, task), 0, len(assigned))[owned]
    return owned[np.argsort(bits, kind="stable")[:excess]]


RULE = Rule(
    name="tunable_magmax",
    function=tunable_magmax,
    summary="MagMax with a chosen fraction of the entries per model",
    source="Tunable MagMax, arXiv 2605.20803",
    base="required",
    per_model=(WEIGHT,),
    options=(replace(SCALE, default=0.5), SEED),
    random=True,
)
