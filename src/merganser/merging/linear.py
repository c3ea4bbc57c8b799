"""Weighted mean of models (model soups)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from merganser.merging.combine import Combination, apply_in_slices, combine
from merganser.merging.rule import NORMALIZE, WEIGHT, Rule, check_weights
from merganser.merging.tensors import Array, Inputs, as_arrays, like, numbers_per_model


def linear(models: Sequence[Array], *, weights: float | Sequence[float] = 1.0, normalize: bool = True) -> Array:
    """Compute ``sum_i w_i theta_i / sum_i w_i``, without the division when ``normalize`` is false.

    Source: Wortsman et al. 2022, Model soups, arXiv 2203.05482 (uniform soup: equal weights).
    Weights: any numbers; normalised by their sum by default. No base.
    Agrees with mergekit's ``linear`` (fp32 accumulation) to rounding. PEFT's ``linear`` for adapters averages the LoRA
    factors instead of the updates; see :mod:`merganser.merging.adapters`.

    Args:
        models: tensors of equal shape, any floating type.
        weights: one per model, or one for all.
        normalize: divide by the sum of the weights.

    Returns:
        A tensor of the first model's shape and type.

    Raises:
        InputError: shapes differ, or weights that sum to zero are to be normalised.
    """
    arrays, _ = as_arrays(models)
    plan = prepare_coefficients(len(arrays), weights, normalize)
    return like(apply_in_slices(arrays, None, combine, plan), models[0])


def prepare_coefficients(count: int, weights: float | Sequence[float], normalize: bool) -> Combination:
    """Plan the weighted mean of ``count`` models."""
    numbers = numbers_per_model(weights, count, "weight")
    check_weights(numbers, normalize)
    total = math.fsum(numbers) if normalize else 1.0
    return Combination(np.array([number / total for number in numbers]), deltas=False)


def prepare(inputs: Inputs, *, weights: float | Sequence[float] = 1.0, normalize: bool = True) -> Combination:
    """Plan :func:`linear` for one tensor."""
    return prepare_coefficients(inputs.models, weights, normalize)


RULE = Rule(
    name="linear",
    function=linear,
    summary="weighted mean of the models",
    source="Model soups, arXiv 2203.05482",
    base="none",
    per_model=(WEIGHT,),
    options=(NORMALIZE,),
    prepare=prepare,
    apply=combine,
    linear=True,
)
