"""Moving averages over a sequence of models, in one pass or model by model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from merganser.errors import InputError
from merganser.merging.combine import Combination, apply_in_slices, combine
from merganser.merging.rule import Parameter, Rule
from merganser.merging.tensors import Array, Inputs, as_arrays, fractions_per_model, like

if TYPE_CHECKING:
    from numpy.typing import NDArray


def ema(models: Sequence[Array], *, alpha: float = 0.4) -> Array:
    """Compute ``m_t = (1 - alpha) m_{t-1} + alpha theta_t`` over the models in order, from ``m_1 = theta_1``.

    Source: Marouf et al. 2023, Weighted ensemble models are strong continual learners (CoMA), arXiv 2312.08977.
    Weights: ``alpha`` for the newest model; all of them sum to one. The sum is computed in one pass, in fp32;
    :func:`ema_step` applied model by model gives the same to rounding.

    Args:
        models: tensors of equal shape, in the order of their tasks.
        alpha: weight of the newest model.

    Returns:
        A tensor of the first model's shape and type.

    Raises:
        InputError: shapes differ, or ``alpha`` outside [0, 1].
    """
    arrays, _ = as_arrays(models)
    return like(apply_in_slices(arrays, None, combine, _make_plan(len(arrays), alpha)), models[0])


def ema_step(previous: Array, model: Array, *, alpha: float = 0.4) -> Array:
    """Compute one step of :func:`ema`: ``(1 - alpha) m_{t-1} + alpha theta_t``."""
    return ema([previous, model], alpha=alpha)


def mean_step(previous: Array, model: Array, *, count: int) -> Array:
    """Compute the running mean ``m_t = m_{t-1} + (theta_t - m_{t-1}) / t`` after model number ``count`` (from 1).

    Over a stream it equals :func:`merganser.merging.linear.linear` with equal weights, to rounding.

    Raises:
        InputError: shapes differ, or ``count`` is below 1.
    """
    if count < 1:
        raise InputError(f"Count is {count}.", "The first model has number 1.")
    (mean, new), _ = as_arrays([previous, model])
    return like(mean + (new - mean) / mean.dtype.type(count), previous)


def ema_weights(count: int, alpha: float) -> NDArray[np.float64]:
    """Compute the weight of each of ``count`` models in the average."""
    (new,) = fractions_per_model(alpha, 1, "alpha")
    weights = np.empty(count)
    weights[0] = (1.0 - new) ** (count - 1)
    for index in range(1, count):
        weights[index] = new * (1.0 - new) ** (count - 1 - index)
    return weights


def _make_plan(count: int, alpha: float) -> Combination:
    return Combination(ema_weights(count, alpha), deltas=False)


def prepare(inputs: Inputs, *, alpha: float = 0.4) -> Combination:
    """Plan :func:`ema` for one tensor."""
    return _make_plan(inputs.models, alpha)


RULE = Rule(
    name="ema",
    function=ema,
    summary="moving average over the models in their order (CoMA)",
    source="CoMA, arXiv 2312.08977",
    base="none",
    options=(Parameter("alpha", 0.4, "weight of the newest model", 0.0, 1.0),),
    prepare=prepare,
    apply=combine,
    linear=True,
)
