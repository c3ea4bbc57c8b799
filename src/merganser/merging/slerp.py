"""Spherical interpolation between two models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from merganser.merging.combine import Combination, apply_in_slices, combine, gram_matrix
from merganser.merging.rule import Parameter, Rule, check_count
from merganser.merging.tensors import Array, ArrayInputs, Inputs, as_arrays, like

COLLINEAR = 0.9995
"""Absolute cosine above which the interpolation is linear: the arc equals the line within rounding."""


def slerp(models: Sequence[Array], *, t: float = 0.5) -> Array:
    """Compute ``sin((1-t) a) / sin(a) theta_1 + sin(t a) / sin(a) theta_2``; a: the angle between the flat tensors.

    Source: Shoemake 1985, Animating rotation with quaternion curves, applied per tensor.
    Weights: none; ``t`` = 0 gives the first model, 1 the second. Norms are interpolated, too, not equalised.
    For (anti)parallel tensors (cosine beyond ±0.9995, or a zero tensor) the interpolation is linear.
    Agrees with mergekit's ``slerp`` to rounding, whose ``base_model`` is the first model here.

    Args:
        models: two tensors of equal shape.
        t: position between them.

    Returns:
        A tensor of the first model's shape and type.

    Raises:
        InputError: not two models, or shapes differ.
    """
    arrays, _ = as_arrays(models)
    plan = prepare(ArrayInputs(arrays, None), t=t)
    return like(apply_in_slices(arrays, None, combine, plan), models[0])


def prepare(inputs: Inputs, *, t: float = 0.5) -> Combination:
    """Plan :func:`slerp` for one tensor: two coefficients from the angle."""
    check_count("slerp", inputs.models, 2, 2)
    products = gram_matrix(inputs, of_updates=False)
    norms = math.sqrt(products[0, 0]) * math.sqrt(products[1, 1])
    # A vector of norm zero has no direction: interpolate linearly.
    cosine = products[0, 1] / norms if norms > 1e-16 else 1.0
    if abs(cosine) > COLLINEAR:
        return Combination(np.array([1.0 - t, t]), deltas=False)
    angle = math.acos(cosine)
    sine = math.sin(angle)
    return Combination(np.array([math.sin((1.0 - t) * angle) / sine, math.sin(t * angle) / sine]), deltas=False)


RULE = Rule(
    name="slerp",
    function=slerp,
    summary="spherical interpolation between two models",
    source="Shoemake 1985, per tensor",
    base="none",
    min_models=2,
    max_models=2,
    options=(Parameter("t", 0.5, "0 is the first model, 1 the second", 0.0, 1.0),),
    prepare=prepare,
    apply=combine,
)
