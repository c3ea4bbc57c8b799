"""Model breadcrumbs: drop the small entries of the updates and the outliers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from merganser.merging.combine import apply_in_slices
from merganser.merging.elect import Election, Sparsity, elect
from merganser.merging.rule import DENSITY, NORMALIZE, SCALE, WEIGHT, Parameter, Rule
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


def breadcrumbs(
    models: Sequence[Array],
    base: Array,
    *,
    weights: float | Sequence[float] = 1.0,
    density: float | Sequence[float] = 1.0,
    gamma: float | Sequence[float] = 0.01,
    sign_election: bool = False,
    normalize: bool = False,
    scale: float = 1.0,
) -> Array:
    """Compute ``theta_0 + scale * sum_i w_i middle(tau_i)``, where ``middle`` drops the extreme magnitudes.

    Source: Davari and Belilovsky 2023, Model Breadcrumbs, arXiv 2312.06795. Of the n entries of a tensor the
    ``round(gamma * n)`` largest are dropped and the next ``round(density * n)`` kept; where ``density + gamma > 1``
    fewer outliers are dropped, so that the density holds. Density 1 keeps everything.
    Weights: not normalised by default. ``sign_election`` (rule ``breadcrumbs_ties``) elects signs as TIES does.
    Agrees with mergekit's ``breadcrumbs`` and ``breadcrumbs_ties`` to rounding, except that mergekit truncates both
    counts to integers and breaks ties arbitrarily.

    Args:
        models: tensors of equal shape.
        base: the model that all of them started from.
        weights, density, gamma: one per model, or one for all.
        sign_election: elect signs as in :func:`merganser.merging.ties.ties`.
        normalize: divide by the sum of the (agreeing) weights.
        scale: factor on the merged update.

    Returns:
        A tensor of the first model's shape and type.

    Raises:
        InputError: shapes differ, or a fraction outside [0, 1].
    """
    arrays, base_array = as_arrays(models, base)
    plan = prepare(
        ArrayInputs(arrays, base_array),
        weights=weights,
        density=density,
        gamma=gamma,
        sign_election=sign_election,
        normalize=normalize,
        scale=scale,
    )
    return like(apply_in_slices(arrays, base_array, elect, plan), models[0])


def prepare(
    inputs: Inputs,
    *,
    weights: float | Sequence[float] = 1.0,
    density: float | Sequence[float] = 1.0,
    gamma: float | Sequence[float] = 0.01,
    sign_election: bool = False,
    normalize: bool = False,
    scale: float = 1.0,
) -> Election:
    """Plan :func:`breadcrumbs` for one tensor: two top-k thresholds per model."""
    size = inputs.size
    requests = []
    densities = fractions_per_model(density, inputs.models, "density")
    gammas = fractions_per_model(gamma, inputs.models, "gamma")
    for index in range(inputs.models):
        kept = count_kept(densities[index], size)
        outliers = min(count_kept(gammas[index], size), size - kept)
        requests += [(index, kept + outliers), (index, outliers)]
    thresholds = top_k_thresholds(inputs, requests)
    return Election(
        weights=np.array(numbers_per_model(weights, inputs.models, "weight")),
        sparsity=tuple(
            Sparsity(threshold=threshold, outliers=outliers)
            for threshold, outliers in zip(thresholds[::2], thresholds[1::2], strict=True)
        ),
        elect=sign_election,
        normalize=normalize,
        scale=scale,
    )


GAMMA = Parameter("gamma", 0.01, "fraction of the entries dropped as outliers", 0.0, 1.0)

RULE = Rule(
    name="breadcrumbs",
    function=breadcrumbs,
    summary="sum of the updates without their smallest and largest entries",
    source="Model Breadcrumbs, arXiv 2312.06795",
    base="required",
    per_model=(WEIGHT, DENSITY, GAMMA),
    options=(replace(NORMALIZE, default=False), SCALE),
    prepare=prepare,
    apply=elect,
)

RULE_TIES = replace(
    RULE,
    name="breadcrumbs_ties",
    function=partial(breadcrumbs, sign_election=True),
    prepare=partial(prepare, sign_election=True),
    summary="breadcrumbs with sign election",
)
