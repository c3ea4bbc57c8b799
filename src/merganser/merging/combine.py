"""Linear combinations of models, and the inner products from which some rules compute the coefficients.

Linear, task arithmetic and moving averages are such combinations; so are slerp, the Karcher mean and model stock, whose
coefficients depend on the tensors only through their inner products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.merging.tensors import BLOCK, ArrayInputs, Inputs, iterate_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Combination:
    """``sum_i c_i theta_i``, or with ``deltas`` ``theta_0 + sum_i c_i (theta_i - theta_0)``.

    Attributes:
        coefficients: one per model.
        deltas: whether they weight the differences from the base (exact where a model equals the base).
    """

    coefficients: NDArray[np.float64]
    deltas: bool


def combine(
    models: Sequence[NDArray[Any]], base: NDArray[Any] | None, plan: Combination, start: int = 0
) -> NDArray[Any]:
    """Compute the combination over a slice, summed in the order of the models."""
    work = models[0].dtype.type
    if plan.deltas:
        assert base is not None
        total = np.subtract(models[0], base)
        total *= work(plan.coefficients[0])
        for model, coefficient in zip(models[1:], plan.coefficients[1:], strict=True):
            term = np.subtract(model, base)
            term *= work(coefficient)
            total += term
        total += base
        return total
    total = np.multiply(models[0], work(plan.coefficients[0]))
    for model, coefficient in zip(models[1:], plan.coefficients[1:], strict=True):
        total += np.multiply(model, work(coefficient))
    return total


def gram_matrix(inputs: Inputs, of_updates: bool) -> NDArray[np.float64]:
    """Compute inner products of the models (or of their updates), ``models x models``, in double precision."""
    count = inputs.models
    products = np.zeros((count, count))
    for _, models, base in iterate_blocks(inputs):
        vectors = [model.astype(np.float64) for model in models]
        if of_updates:
            assert base is not None
            vectors = [vector - base for vector in vectors]
        for i in range(count):
            for j in range(i, count):
                products[i, j] += float(np.add.reduce(vectors[i] * vectors[j]))
    return products + np.triu(products, 1).T


def apply_in_slices(models: list[NDArray[Any]], base: NDArray[Any] | None, apply: Any, plan: Any) -> NDArray[Any]:
    """Apply a rule to a tensor in memory, slice by slice, so that temporaries stay small.

    Args:
        models, base: arrays of one shape and type.
        apply: ``apply(models, base, plan, start)``, called on flat slices.
        plan: passed on to ``apply``.
    """
    inputs = ArrayInputs(models, base)
    result = np.empty(inputs.size, dtype=inputs.work)
    for start in range(0, inputs.size, BLOCK):
        part, part_base = inputs.read(start, min(start + BLOCK, inputs.size))
        result[start : start + BLOCK] = apply(part, part_base, plan, start)
    return result.reshape(inputs.shape)
