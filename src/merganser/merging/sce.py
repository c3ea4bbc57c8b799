"""SCE: select entries by their variance over the models, calculate weights from energy, erase minority signs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from merganser.merging.rule import Parameter, Rule
from merganser.merging.tensors import Array, as_arrays, fractions_per_model, like
from merganser.merging.trim import ALL, count_kept, top_k_threshold


def sce(models: Sequence[Array], base: Array, *, select: float = 1.0) -> Array:
    """Compute ``theta_0 + sum_{i agrees} e_i tau_i / sum_{i agrees} e_i`` over the entries of largest variance.

    Source: Wan et al. 2024, FuseChat, arXiv 2408.07990 (SCE). Select: of the entries whose variance over the models is
    not zero, the ``round(select * count)`` of largest variance are selected, ties in the order of the index; the
    others keep the base.
    Calculate: ``e_i`` is the mean square of the selected update of model i, over their sum. Erase: an entry of a model
    counts where its sign is that of the sum over models (zero counts as positive).
    Weights: none. Agrees with mergekit's ``sce`` (``select_topk``) to rounding, except that mergekit truncates the
    count to an integer and breaks ties arbitrarily.

    Args:
        models: tensors of equal shape.
        base: the model that all of them started from.
        select: fraction of the entries selected.

    Returns:
        A tensor of the first model's shape and type.

    Raises:
        InputError: shapes differ, or ``select`` outside [0, 1].
    """
    arrays, base_array = as_arrays(models, base)
    assert base_array is not None
    (kept_fraction,) = fractions_per_model(select, 1, "select")
    flat = base_array.reshape(-1)
    updates = [array.reshape(-1) - flat for array in arrays]
    if kept_fraction < 1.0:
        mean = np.zeros_like(flat, dtype=np.float64)
        for update in updates:
            mean += update
        mean /= len(updates)
        variance = np.zeros_like(mean)
        for update in updates:
            variance += (update - mean) ** 2
        threshold = top_k_threshold(variance, count_kept(kept_fraction, int(np.count_nonzero(variance))))
        if threshold is not ALL:
            dropped = ~threshold.kept(variance, 0)
            for update in updates:
                update[dropped] = 0
    energy = np.array(
        [float(np.mean(np.square(update, dtype=np.float64))) if update.size else 0.0 for update in updates]
    )
    total = energy.sum()
    energy_fractions = np.full(len(updates), 1.0 / len(updates)) if total < 1e-6 else energy / total
    positive = sum(updates[1:], updates[0]) >= 0
    merged = np.zeros_like(flat)
    divisor = np.zeros_like(flat)
    for update, weight in zip(updates, energy_fractions, strict=True):
        agree = np.where(positive, update > 0, update < 0)
        merged += np.where(agree, update * flat.dtype.type(weight), 0)
        divisor += np.where(agree, flat.dtype.type(weight), 0)
    merged /= np.maximum(divisor, flat.dtype.type(1e-6))
    return like((flat + merged).reshape(base_array.shape), models[0])


RULE = Rule(
    name="sce",
    function=sce,
    summary="entries of largest variance, weighted by energy, minority signs erased",
    source="SCE (FuseChat), arXiv 2408.07990",
    base="required",
    options=(Parameter("select", 1.0, "fraction of the entries selected by variance", 0.0, 1.0),),
)
