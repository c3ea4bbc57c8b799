"""Fisher-weighted averaging: each entry of each model is weighted with its Fisher information."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.errors import InputError
from merganser.merging.combine import apply_in_slices
from merganser.merging.rule import WEIGHT, Rule, WrongInput, check_weights
from merganser.merging.tensors import Array, Inputs, as_arrays, like, numbers_per_model

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class FisherWeights:
    """Plan: the weight of each model."""

    weights: NDArray[np.float64]


def fisher(models: Sequence[Array], fishers: Sequence[Array], *, weights: float | Sequence[float] = 1.0) -> Array:
    """Compute ``sum_i w_i F_i theta_i / sum_i w_i F_i`` entry by entry; F is the diagonal Fisher information.

    Source: Matena and Raffel 2022, Merging models with Fisher-weighted averaging, arXiv 2111.09832, equation 3. CoFiMA
    (Marouf et al. 2023, arXiv 2312.08977) is this with weights ``1 - a`` and ``a``.
    Weights: their scale does not matter; no other normalisation. Where every ``w_i F_i`` is zero the plain weighted
    mean replaces 0/0. Sums are taken in double precision: Fisher entries are squares of gradients and may be tiny.

    Args:
        models: tensors of equal shape.
        fishers: one per model, of the same shape, not negative.
        weights: one per model, or one for all.

    Returns:
        A tensor of the first model's shape and type.

    Raises:
        InputError: shapes differ, there is not one Fisher per model, the weights sum to zero, or a Fisher has a
            negative entry.
    """
    if len(fishers) != len(models):
        raise InputError(f"There are {len(fishers)} Fishers for {len(models)} models.", "Give one per model.")
    arrays, _ = as_arrays([*models, *fishers])
    return like(apply_in_slices(arrays, None, apply, _make_plan(len(models), weights)), models[0])


def _make_plan(count: int, weights: float | Sequence[float]) -> FisherWeights:
    numbers = numbers_per_model(weights, count, "weight")
    check_weights(numbers, True, always=True)
    total = math.fsum(numbers)
    return FisherWeights(np.array([number / total for number in numbers]))


def apply(
    models: Sequence[NDArray[Any]], base: NDArray[Any] | None, plan: FisherWeights, start: int = 0
) -> NDArray[Any]:
    """Compute the Fisher-weighted mean over a slice; ``models`` are the models, then their Fishers."""
    count = len(plan.weights)
    numerator = np.zeros(len(models[0]))
    denominator = np.zeros(len(models[0]))
    mean = np.zeros(len(models[0]))
    for index, (model, information, weight) in enumerate(
        zip(models[:count], models[count:], plan.weights, strict=True)
    ):
        if np.any(information < 0):
            raise WrongInput(
                count + index,
                "has a negative entry.",
                "Fisher information is a mean of squared gradients; check the file.",
            )
        importance = information.astype(np.float64) * weight
        numerator += importance * model
        denominator += importance
        mean += weight * model.astype(np.float64)
    defined = denominator != 0
    np.divide(numerator, denominator, out=mean, where=defined)
    return mean.astype(models[0].dtype)


def prepare(inputs: Inputs, *, weights: float | Sequence[float] = 1.0) -> FisherWeights:
    """Plan :func:`fisher` for one tensor; the inputs are the models, then their Fishers."""
    return _make_plan(inputs.models // 2, weights)


RULE = Rule(
    name="fisher",
    function=fisher,
    summary="mean weighted entry by entry with the Fisher information",
    source="Fisher merging, arXiv 2111.09832",
    base="none",
    per_model=(WEIGHT,),
    prepare=prepare,
    apply=apply,
    extra="fisher",
)
