"""Task arithmetic: the base plus a weighted sum of updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from merganser.merging.combine import Combination, apply_in_slices, combine
from merganser.merging.rule import NORMALIZE, SCALE, WEIGHT, Rule, check_weights
from merganser.merging.tensors import Array, Inputs, as_arrays, like, numbers_per_model


def task_arithmetic(
    models: Sequence[Array],
    base: Array,
    *,
    weights: float | Sequence[float] = 1.0,
    normalize: bool = False,
    scale: float = 1.0,
) -> Array:
    """Compute ``theta_0 + scale * sum_i w_i (theta_i - theta_0)``; ``normalize`` divides the weights by their sum.

    Source: Ilharco et al. 2023, Editing models with task arithmetic, arXiv 2212.04089, where all weights are one and
    ``scale`` (lambda) is chosen on development data.
    Weights: not normalised by default; a negative weight subtracts a task.
    Agrees with mergekit's ``task_arithmetic`` to rounding (mergekit computes in the checkpoint's type, this in fp32).

    Args:
        models: tensors of equal shape, any floating type.
        base: the model that all of them started from.
        weights: one per model, or one for all.
        normalize: divide by the sum of the weights.
        scale: factor on the merged update.

    Returns:
        A tensor of the first model's shape and type.

    Raises:
        InputError: shapes differ, or weights that sum to zero are to be normalised.
    """
    arrays, base_array = as_arrays(models, base)
    plan = prepare_coefficients(len(arrays), weights, normalize, scale)
    return like(apply_in_slices(arrays, base_array, combine, plan), models[0])


def prepare_coefficients(count: int, weights: float | Sequence[float], normalize: bool, scale: float) -> Combination:
    """Plan the weighted sum of ``count`` updates."""
    numbers = numbers_per_model(weights, count, "weight")
    check_weights(numbers, normalize)
    factor = scale / math.fsum(numbers) if normalize else scale
    return Combination(np.array([number * factor for number in numbers]), deltas=True)


def prepare(
    inputs: Inputs, *, weights: float | Sequence[float] = 1.0, normalize: bool = False, scale: float = 1.0
) -> Combination:
    """Plan :func:`task_arithmetic` for one tensor."""
    return prepare_coefficients(inputs.models, weights, normalize, scale)


RULE = Rule(
    name="task_arithmetic",
    function=task_arithmetic,
    summary="base plus the weighted sum of the updates",
    source="Task arithmetic, arXiv 2212.04089",
    base="required",
    per_model=(WEIGHT,),
    options=(replace(NORMALIZE, default=False), SCALE),
    prepare=prepare,
    apply=combine,
    linear=True,
)
