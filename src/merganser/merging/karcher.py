"""Karcher mean: the mean of directions on the sphere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from merganser.merging.combine import Combination, combine, gram, in_slices
from merganser.merging.rule import WEIGHT, Parameter, Rule, checked_weights
from merganser.merging.tensors import Array, ArrayInputs, Inputs, as_arrays, like, per_model

if TYPE_CHECKING:
    from numpy.typing import NDArray


def karcher(
    models: Sequence[Array],
    *,
    weights: float | Sequence[float] = 1.0,
    max_iter: int = 10,
    tol: float = 1e-5,
) -> Array:
    """The direction u minimising ``sum_i w_i angle(u, theta_i)^2``, times the weighted mean of the norms.

    Source: Karcher 1977, Riemannian center of mass; for models: arXiv 2603.04972. Gradient descent on the sphere with
    step one, u <- exp_u(sum_i w_i log_u(theta_i / |theta_i|)), from the normalised mean. All iterates lie in the span
    of the models, so it runs on their inner products and the tensors are read twice, however many iterations it takes.
    Weights: normalised (tensors of norm zero have no direction and no vote on it, but count in the mean of the norms).
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
    return like(in_slices(arrays, None, combine, plan), models[0])


def prepare(
    inputs: Inputs, *, weights: float | Sequence[float] = 1.0, max_iter: int = 10, tol: float = 1e-5
) -> Combination:
    """Plan of :func:`karcher` for one tensor: coefficients of the mean in the models."""
    numbers = per_model(weights, inputs.models, "weight")
    checked_weights(numbers, True, always=True)
    if inputs.models == 1:
        return Combination(np.ones(1), deltas=False)
    shares = np.array(numbers) / math.fsum(numbers)
    products = gram(inputs, of_updates=False)
    norms = np.sqrt(np.diag(products))
    valid = norms > tol
    if not valid.any():
        return Combination(np.zeros(inputs.models), deltas=False)
    safe = np.where(valid, norms, 1.0)
    cosines = np.where(np.outer(valid, valid), products / np.outer(safe, safe), 0.0)
    votes = np.where(valid, shares, 0.0)
    total = votes.sum()
    votes = votes / total if abs(total) >= 1e-8 else votes
    direction = _mean_direction(cosines, votes, max_iter, tol)
    return Combination(float(shares @ norms) * direction / safe, deltas=False)


def _mean_direction(
    cosines: NDArray[np.float64], votes: NDArray[np.float64], max_iter: int, tol: float
) -> NDArray[np.float64]:
    """Coefficients of the mean direction in the unit vectors with these cosines."""

    def length(vector: NDArray[np.float64]) -> float:
        return math.sqrt(max(float(vector @ cosines @ vector), 0.0))

    mean = votes.copy()
    norm = length(mean)
    if norm < tol:
        # Directions that cancel have no mean; start at one of them.
        mean = np.zeros_like(votes)
        mean[int(np.argmax(votes != 0))] = 1.0
    else:
        mean /= norm
    for _ in range(max_iter):
        dots = np.clip(cosines @ mean, -1.0, 1.0)
        angles = np.arccos(dots)
        sines = np.sin(angles)
        # At an angle of (almost) zero there is nothing to add; at pi every direction is shortest and none is chosen.
        scale = np.where(angles < tol, 0.0, votes * angles / np.where(np.abs(sines) < 1e-12, 1.0, sines))
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
