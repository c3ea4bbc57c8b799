"""The common form of TIES, DARE, DELLA and breadcrumbs: sparsify the updates, agree on signs, add.

``theta_0 + scale * sum_i [agree_i] v_i / D`` with ``v_i = w_i * kept(tau_i)``. With sign election an entry agrees when
its sign is that of ``sum_i v_i`` (an exact zero of the sum counts as positive), and ``D = sum_i [agree_i] w_i`` when
normalised; without election every entry counts and ``D = sum_i w_i``. Weights act before the election, as in mergekit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.merging.masks import bernoulli_mask, keep_only, mask_threshold
from merganser.merging.trim import NONE, TopKThreshold

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Sparsity:
    """Which entries of one update are kept, and the factor on them.

    Attributes:
        threshold: keeps the largest entries.
        outliers: entries that this threshold keeps are dropped again (breadcrumbs).
        key, limit: entries whose random bits are below ``limit`` are kept (DARE); ``None``: no random mask.
        factor: on the kept entries (DARE's rescaling).
    """

    threshold: TopKThreshold | None = None
    outliers: TopKThreshold = NONE
    key: int = 0
    limit: int | None = None
    factor: float = 1.0


@dataclass(frozen=True, eq=False)
class Election:
    """Plan of a merge by sign election or plain sum: per model a weight and a :class:`Sparsity`."""

    weights: NDArray[np.float64]
    sparsity: tuple[Sparsity, ...]
    elect: bool
    normalize: bool
    scale: float


def random_sparsity(key: int, probability: float, factor: float) -> Sparsity:
    """Return a sparsity that keeps each entry with ``probability``, independently."""
    return Sparsity(key=key, limit=mask_threshold(probability), factor=factor)


def sparsify(delta: NDArray[Any], sparsity: Sparsity, start: int) -> NDArray[Any]:
    """Zero the dropped entries of an update's slice, in place, and rescale the kept ones."""
    keep = None
    if sparsity.threshold is not None:
        magnitudes = np.abs(delta)
        keep = sparsity.threshold.kept(magnitudes, start)
        if sparsity.outliers is not NONE:
            keep &= ~sparsity.outliers.kept(magnitudes, start)
    if sparsity.limit is not None:
        mask = bernoulli_mask(sparsity.key, start, start + len(delta), sparsity.limit)
        keep = mask if keep is None else keep & mask
    if keep is not None:
        keep_only(delta, keep)
    if sparsity.factor != 1.0:
        delta *= delta.dtype.type(sparsity.factor)
    return delta


def elect(models: Sequence[NDArray[Any]], base: NDArray[Any] | None, plan: Election, start: int = 0) -> NDArray[Any]:
    """Merge a slice that begins at element ``start``."""
    assert base is not None
    kept = [sparsify(np.subtract(m, base), s, start) for m, s in zip(models, plan.sparsity, strict=True)]
    return base + sum_updates(kept, plan.weights, plan.elect, plan.normalize, plan.scale)


def sum_updates(
    kept: Sequence[NDArray[Any]], weights: Sequence[float] | NDArray[Any], elect: bool, normalize: bool, scale: float
) -> NDArray[Any]:
    """Compute the merged update from sparsified updates (overwritten), summed in the order of the models."""
    work = kept[0].dtype.type
    for update, weight in zip(kept, weights, strict=True):
        update *= work(weight)
    total = np.zeros_like(kept[0])
    for update in kept:
        total += update
    if not elect:
        divisor = work(float(np.sum(weights, dtype=np.float64)))
        if normalize and abs(divisor) >= 1e-8:
            total /= divisor
    else:
        # One or minus one: multiplying by it is exact, and makes agreeing entries positive.
        sign = (total >= 0).astype(total.dtype)
        sign *= 2
        sign -= 1
        total.fill(0)
        count, agree = np.zeros_like(total), np.empty_like(total)
        for update, weight in zip(kept, weights, strict=True):
            update *= sign
            if normalize:
                agree[:] = update > 0
                agree *= work(weight)
                count += agree
            np.fmax(update, 0, out=update)
            update *= sign
            total += update
        if normalize:
            count += (count == 0).astype(count.dtype)
            total /= count
    if scale != 1.0:
        total *= work(scale)
    return total
