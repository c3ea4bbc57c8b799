"""Karcher mean: the mean of directions on the sphere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from merganser.merging.combine import Combination, apply_in_slices, combine, gram_matrix
from merganser.merging.rule import WEIGHT, Parameter, Rule, check_weights
from merganser.merging.tensors import Array, ArrayInputs, Inputs, as_arrays, like, numbers_per_model

if TYPE_CHECKING:
    from numpy.typing import NDArray


def karcher(
    models: Sequence[Array],
    *,
    weights: float | Sequence[float] = 1.0,
    max_iter: int = 10,
    tol: float = 1e-5,
) -> Array:
    """Compute the direction u minimising ``sum_i w_i angle(u, theta_i)^2``, times the weighted mean of the norms.

    Source: Karcher 1977, Riemannian center of mass; for models: arXiv 2603.04972. Gradient descent on the sphere with
    step one, u <- exp_u(sum_i w_i log_u(theta_i / |theta_i|)), from the normalised mean. All iterates lie in the span
    of the models, so it runs on their inner products and the tensors are read twice, however many iterations it takes.
    Weights: normalised (tensors of norm zero have no direction, but count in the mean of the norms).
    Agrees with mergekit's ``karcher`` (which has equal weights only) to the tolerance.

    Args:
        models: tensors of equal shape.
        weights: one per model, or one for all.
        max_iter: iterations at most.
        tol: the iteration ends when the step is shorter (radians).

    Returns:
        A tensor of the first model's shape and type.

    Raises:
        InputError: shapes differ, or the weights sum to zero.
    """
    arrays, _ = as_arrays(models)
    plan = prepare(ArrayInputs(arrays, None), weights=weights, max_iter=max_iter, tol=tol)
    return like(apply_in_slices(arrays, None, combine, plan), models[0])


def prepare(
    inputs: Inputs, *, weights: float | Sequence[float] = 1.0, max_iter: int = 10, tol: float = 1e-5
) -> Combination:
    """Plan :func:`karcher` for one tensor: the mean's coefficients in the models."""
    numbers = numbers_per_model(weights, inputs.models, "weight")
    check_weights(numbers, True, always=True)
    if inputs.models == 1:
        return Combination(np.ones(1), deltas=False)
    normalized = np.array(numbers) / math.fsum(numbers)
    products = gram_matrix(inputs, of_updates=False)
    norms = np.sqrt(np.diag(products))
    valid = norms > tol
    if not valid.any():
        return Combination(np.zeros(inputs.models), deltas=False)
    safe = np.where(valid, norms, 1.0)
    cosines = np.where(np.outer(valid, valid), products / np.outer(safe, safe), 0.0)
    direction_weights = np.where(valid, normalized, 0.0)
    direction_total = direction_weights.sum()
    direction_weights = direction_weights / direction_total if abs(direction_total) >= 1e-8 else direction_weights
    direction = _mean_direction(cosines, direction_weights, max_iter, tol)
    return Combination(float(normalized @ norms) * direction / safe, deltas=False)


def _mean_direction(
    cosines: NDArray[np.float64], direction_weights: NDArray[np.float64], max_iter: int, tol: float
) -> NDArray[np.float64]:
    """Compute the mean direction's coefficients in unit vectors that have these cosines (models x models)."""

    def length(vector: NDArray[np.float64]) -> float:
        return math.sqrt(max(float(vector @ cosines @ vector), 0.0))

    mean = direction_weights.copy()
    norm = length(mean)
    if norm < tol:
        # Directions that cancel have no mean; start at one of them.
        mean = np.zeros_like(direction_weights)
        mean[int(np.argmax(direction_weights != 0))] = 1.0
    else:
        mean /= norm
    for _ in range(max_iter):
        dots = np.clip(cosines @ mean, -1.0, 1.0)
        angles = np.arccos(dots)
        sines = np.sin(angles)
        # At an angle of (almost) zero there is nothing to add; at pi every direction is shortest and none is chosen.
        scale = np.where(angles < tol, 0.0, direction_weights * angles / np.where(np.abs(sines) < 1e-12, 1.0, sines))
        tangent = scale - float(scale @ dots) * mean
        step = length(tangent)
        if step < tol:
            break
        mean = math.cos(step) * mean + math.sin(step) / step * tangent
        norm = length(mean)
        if norm > tol:
            mean /= norm
    return mean


RULE = Rule(
    name="karcher",
    function=karcher,
    summary="mean direction on the sphere, times the mean norm",
    source="Karcher 1977; arXiv 2603.04972",
    base="none",
    per_model=(WEIGHT,),
    options=(
        Parameter("max_iter", 10, "iterations at most", 0),
        Parameter("tol", 1e-5, "shortest step, in radians", 0.0),
    ),
    prepare=prepare,
    apply=combine,
)
