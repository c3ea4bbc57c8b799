"""Tunable MagMax: MagMax in which every task supplies a chosen share of the entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.errors import InputError
from merganser.merging.random_masks import mask_key, random_bits
from merganser.merging.rule import SCALE, SEED, WEIGHT, Rule
from merganser.merging.tensors import Array, as_arrays, like, per_model

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
    """``theta_0 + scale * tau*`` where task i supplies exactly its share of the entries of ``tau*``.

    Source: Hiroshima 2026, Tunable MagMax, arXiv 2605.20803. Of n entries task i supplies ``floor(w_i n)``, the
    remainder going round from the first task. From MagMax's winners, tasks T to 2 give up their surplus, drawn at
    random, each entry going to the earlier task of largest magnitude there; last, the first task's surplus, drawn at
    random, goes to the tasks still short, in their order. Draws depend on ``seed``, ``name`` and the entry's index
    only.
    Weights: the preference vector, divided by its sum; not negative.

    Args:
        models: tensors of equal shape, in the order of their tasks.
        base: the pre-trained model.
        weights: one per model, or one for all.
        scale: factor on the supplied update.
        seed: of the draws.
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
    chosen = suppliers(updates, quotas(weights, len(updates), flat.size), seed=seed, name=name)
    supplied = np.zeros_like(flat)
    for index, update in enumerate(updates):
        mine = chosen == index
        supplied[mine] = update[mine]
    merged = flat + supplied * flat.dtype.type(scale)
    return like(merged.reshape(base_array.shape), models[0])


def quotas(weights: float | Sequence[float], count: int, size: int) -> list[int]:
    """Entries that each of ``count`` tasks supplies of ``size``: exactly ``floor(w_i n)`` of the decimals given."""
    numbers = per_model(weights, count, "weight")
    exact = [Fraction(repr(float(number))) for number in numbers]
    total = sum(exact)
    if min(exact) < 0 or total <= 0:
        raise InputError(
            f"The weights are {', '.join(f'{number:g}' for number in numbers)}.",
            "They are preferences: not negative, and not all zero.",
        )
    shares = [math.floor(number * size / total) for number in exact]
    for index in range(size - sum(shares)):
        shares[index % count] += 1
    return shares


def suppliers(updates: Sequence[NDArray[Any]], shares: Sequence[int], *, seed: int, name: str) -> NDArray[np.int32]:
    """Which task supplies each entry; task i supplies exactly ``shares[i]``."""
    magnitudes = [np.abs(update) for update in updates]
    chosen = np.zeros(len(updates[0]), dtype=np.int32)
    best = magnitudes[0].copy()
    for index in range(1, len(updates)):
        wins = magnitudes[index] >= best
        chosen[wins] = index
        best[wins] = magnitudes[index][wins]
    for task in range(len(updates) - 1, 0, -1):
        given = _surplus(chosen, task, shares[task], seed, name)
        heir = np.zeros(len(given), dtype=np.int32)
        best_there = magnitudes[0][given].copy()
        for earlier in range(1, task):
            there = magnitudes[earlier][given]
            wins = there >= best_there
            heir[wins] = earlier
            best_there[wins] = there[wins]
        chosen[given] = heir
    given = _surplus(chosen, 0, shares[0], seed, name)
    taken = 0
    for task in range(1, len(updates)):
        short = shares[task] - int(np.count_nonzero(chosen == task))
        if short > 0:
            chosen[given[taken : taken + short]] = task
            taken += short
    return chosen


def _surplus(chosen: NDArray[np.int32], task: int, quota: int, seed: int, name: str) -> NDArray[np.int64]:
    """The entries that a task gives up: those with the smallest draws, as many as it has too many of."""
    mine = np.flatnonzero(chosen == task)
    surplus = len(mine) - quota
    if surplus <= 0:
        return mine[:0]
    lots = random_bits(mask_key(seed, name, task), 0, len(chosen))[mine]
    return mine[np.argsort(lots, kind="stable")[:surplus]]


RULE = Rule(
    name="tunable_magmax",
    function=tunable_magmax,
    summary="MagMax with a chosen share of the entries per model",
    source="Tunable MagMax, arXiv 2605.20803",
    base="required",
    per_model=(WEIGHT,),
    options=(replace(SCALE, default=0.5), SEED),
    symmetric=False,
    random=True,
)
