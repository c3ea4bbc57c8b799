"""TIES: trim the updates, elect signs, average the entries that agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from merganser.merging.combine import apply_in_slices
from merganser.merging.elect import Election, Sparsity, elect
from merganser.merging.rule import DENSITY, NORMALIZE, SCALE, WEIGHT, Rule
from merganser.merging.tensors import (
    Array,
    ArrayInputs,
    Inputs,
    as_arrays,
    fractions_per_model,
    like,
    numbers_per_model,
)
from merganser.merging.trim import count_kept, top_k_thresholds


def ties(
    models: Sequence[Array],
    base: Array,
    *,
    weights: float | Sequence[float] = 1.0,
    density: float | Sequence[float] = 1.0,
    normalize: bool = True,
    scale: float = 1.0,
) -> Array:
    """Compute ``theta_0 + scale * sum_{i agrees} w_i trim(tau_i) / sum_{i agrees} w_i``, entry by entry.

    Source: Yadav et al. 2023, TIES-Merging, arXiv 2306.01708, algorithm 1. ``trim`` keeps the ``round(density * n)``
    largest magnitudes of each tensor, ties in the order of the index; an update agrees where its sign is that of
    ``sum_i w_i trim(tau_i)`` (zero counts as positive).
    Weights: act before the election; the divisor is the sum of the weights that agree (``normalize``) or one.
    Agrees with mergekit's ``ties`` to rounding, except that mergekit keeps ``int(density * n)`` (at least one) and
    breaks ties arbitrarily. PEFT's ``ties`` elects signs before weighting and divides by the number of updates that
    agree, so that weights .5/.5 give half of this result. fusion_bench trims over the whole model.

    Args:
        models: tensors of equal shape.
        base: the model that all of them started from.
        weights: one per model, or one for all.
        density: fraction of entries kept, one per model or one for all.
        normalize: divide by the sum of the agreeing weights.
        scale: factor on the merged update (lambda in the paper).

    Returns:
        A tensor of the first model's shape and type.

    Raises:
        InputError: shapes differ, or a density outside [0, 1].
    """
    arrays, base_array = as_arrays(models, base)
    plan = prepare(ArrayInputs(arrays, base_array), weights=weights, density=density, normalize=normalize, scale=scale)
    return like(apply_in_slices(arrays, base_array, elect, plan), models[0])


def prepare(
    inputs: Inputs,
    *,
    weights: float | Sequence[float] = 1.0,
    density: float | Sequence[float] = 1.0,
    normalize: bool = True,
    scale: float = 1.0,
) -> Election:
    """Plan :func:`ties` for one tensor: the top-k thresholds."""
    densities = fractions_per_model(density, inputs.models, "density")
    thresholds = top_k_thresholds(inputs, [(i, count_kept(d, inputs.size)) for i, d in enumerate(densities)])
    return Election(
        weights=np.array(numbers_per_model(weights, inputs.models, "weight")),
        sparsity=tuple(Sparsity(threshold=threshold) for threshold in thresholds),
        elect=True,
        normalize=normalize,
        scale=scale,
    )


RULE = Rule(
    name="ties",
    function=ties,
    summary="trim small entries, elect signs, average the entries that agree",
    source="TIES-Merging, arXiv 2306.01708",
    base="required",
    per_model=(WEIGHT, DENSITY),
    options=(NORMALIZE, SCALE),
    prepare=prepare,
    apply=elect,
)
