"""Moving averages over a stream of models, one by one or at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from merganser.errors import InputError
from merganser.merging.combine import Combination, combine, in_slices
from merganser.merging.rule import Parameter, Rule
from merganser.merging.tensors import Array, Inputs, as_arrays, fractions_per_model, like

if TYPE_CHECKING:
    from numpy.typing import NDArray


def ema(models: Sequence[Array], *, alpha: float = 0.4) -> Array:
    """``m_t = (1 - alpha) m_{t-1} + alpha theta_t`` over the models in their order, from ``m_1 = theta_1``.

    Source: Marouf et al. 2023, Weighted ensemble models are strong continual learners (CoMA), arXiv 2312.08977.
    Weights: ``alpha`` is that of the newest model; those of all sum to one. Here the sum is taken at once, in fp32;
    :func:`ema_step` taken model by model gives the same to rounding.

    Args:
        models: tensors of equal shape, in the order of their tasks.
        alpha: weight of the newest model.

    Returns:
        A tensor of the first model's shape and type.

    Raises:
        InputError: shapes differ, or ``alpha`` outside [0, 1].
    """
    arrays, _ = as_arrays(models)
    return like(in_slices(arrays, None, combine, _plan(len(arrays), alpha)), models[0])


def ema_step(previous: Array, model: Array, *, alpha: float = 0.4) -> Array:
    """``(1 - alpha) m_{t-1} + alpha theta_t``: one step of :func:`ema`."""
    return ema([previous, model], alpha=alpha)


def mean_step(previous: Array, model: Array, *, count: int) -> Array:
    """``m_t = m_{t-1} + (theta_t - m_{t-1}) / t``: the running mean after model number ``count`` (from 1).

    Over a stream it equals :func:`merganser.merging.linear.linear` with equal weights, to rounding.

    Raises:
        InputError: shapes differ, or ``count`` is below 1.
    """
    if count < 1:
        raise InputError(f"Count is {count}.", "The first model has number 1.")
    (mean, new), _ = as_arrays([previous, model])
    return like(mean + (new - mean) / mean.dtype.type(count), previous)


def coefficients(count: int, alpha: float) -> NDArray[np.float64]:
    """The weight of each of ``count`` models in the average."""
    (new,) = fractions_per_model(alpha, 1, "alpha")
    weights = np.empty(count)
    weights[0] = (1.0 - new) ** (count - 1)
    for index in range(1, count):
        weights[index] = new * (1.0 - new) ** (count - 1 - index)
    return weights


def _plan(count: int, alpha: float) -> Combination:
    return Combination(coefficients(count, alpha), deltas=False)


def prepare(inputs: Inputs, *, alpha: float = 0.4) -> Combination:
    """Plan of :func:`ema` for one tensor."""
    return _plan(inputs.models, alpha)


RULE = Rule(
    name="ema",
    function=ema,
    summary="moving average over the models in their order (CoMA)",
    source="CoMA, arXiv 2312.08977",
    base="none",
    options=(Parameter("alpha", 0.4, "weight of the newest model", 0.0, 1.0),),
    prepare=prepare,
    apply=combine,
    symmetric=False,
    linear=True,
)
