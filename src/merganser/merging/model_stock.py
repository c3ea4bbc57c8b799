"""Model stock: interpolate between base and mean by the angle between the updates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from merganser.merging.combine import Combination, apply_in_slices, combine, gram_matrix
from merganser.merging.rule import Parameter, Rule, check_count
from merganser.merging.tensors import Array, ArrayInputs, Inputs, as_arrays, like


def model_stock(models: Sequence[Array], base: Array, *, filter_wise: bool = False) -> Array:
    """Compute ``t mean_i(theta_i) + (1 - t) theta_0`` with ``t = N c / (1 + (N - 1) c)``; c: mean cosine of updates.

    Source: Jang et al. 2024, Model Stock, arXiv 2403.19522, equation 4 and its extension to N models.
    Weights: none. Cosines are averaged over all pairs of updates; with norms (almost) zero a cosine counts as zero. At
    ``1 + (N - 1) c = 0``, where t is infinite, the base is kept.
    Agrees with mergekit's ``model_stock`` to rounding; mergekit counts the base among its three models.

    Args:
        models: two or more fine-tuned tensors of equal shape.
        base: the pre-trained one.
        filter_wise: one t per vector along the last dimension, instead of one per tensor.

    Returns:
        A tensor of the first model's shape and type.

    Raises:
        InputError: fewer than two models, or shapes differ.
    """
    arrays, base_array = as_arrays(models, base)
    assert base_array is not None
    check_count("model_stock", len(arrays), 2)
    if filter_wise and base_array.ndim > 1:
        rows = [array.reshape(-1, array.shape[-1]) for array in arrays]
        base_rows = base_array.reshape(-1, base_array.shape[-1])
        result = np.empty_like(base_rows)
        for row in range(len(base_rows)):
            row_models = [array[row] for array in rows]
            plan = prepare(ArrayInputs(row_models, base_rows[row]))
            result[row] = combine(row_models, base_rows[row], plan)
        return like(result.reshape(base_array.shape), models[0])
    plan = prepare(ArrayInputs(arrays, base_array))
    return like(apply_in_slices(arrays, base_array, combine, plan), models[0])


def prepare_stream(inputs: Inputs, *, filter_wise: bool = False) -> Combination | None:
    """Plan a merge in slices; ``None`` where ``filter_wise`` needs the whole tensor."""
    return None if filter_wise and len(inputs.shape) > 1 else prepare(inputs)


def prepare(inputs: Inputs) -> Combination:
    """Plan :func:`model_stock` for one tensor: the coefficient of every update is t / N."""
    count = inputs.models
    check_count("model_stock", count, 2)
    products = gram_matrix(inputs, of_updates=True)
    norms = np.sqrt(np.diag(products))
    cosines = [
        min(max(products[i, j] / max(norms[i] * norms[j], 1e-6), -1.0), 1.0)
        for i in range(count)
        for j in range(i + 1, count)
    ]
    cosine = math.fsum(cosines) / len(cosines)
    denominator = 1.0 + (count - 1) * cosine
    ratio = 0.0 if abs(denominator) < 1e-6 else count * cosine / denominator
    return Combination(np.full(count, ratio / count), deltas=True)


RULE = Rule(
    name="model_stock",
    function=model_stock,
    summary="between base and mean, by the angle between the updates",
    source="Model Stock, arXiv 2403.19522",
    base="required",
    min_models=2,
    options=(Parameter("filter_wise", False, "one ratio per row instead of one per tensor"),),
    prepare=prepare_stream,
    apply=combine,
)
