"""MagMax: keep, entry by entry, the update of largest magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.merging.combine import apply_in_slices
from merganser.merging.masks import put_where
from merganser.merging.rule import SCALE, Rule
from merganser.merging.tensors import Array, Inputs, as_arrays, like

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class MagMaxPlan:
    """Plan of MagMax: the factor on the winning update."""

    scale: float


def magmax(models: Sequence[Array], base: Array, *, scale: float = 0.5) -> Array:
    """Compute ``theta_0 + scale * tau*``; ``tau*[j]`` is the ``tau_i[j]`` of largest magnitude, ties to later models.

    Source: Marczak et al. 2024, MagMax, arXiv 2407.06322, where ``scale`` is 0.5 and each model was fine-tuned from the
    one before it. Weights: none. In a stream, keep the unscaled ``tau*`` and add each update with :func:`fold`;
    folding into the scaled model gives a different result.

    Args:
        models: tensors of equal shape, in the order of their tasks.
        base: the pre-trained model.
        scale: factor on the winning update.

    Returns:
        A tensor of the first model's shape and type.

    Raises:
        InputError: shapes differ.
    """
    arrays, base_array = as_arrays(models, base)
    return like(apply_in_slices(arrays, base_array, apply, MagMaxPlan(scale)), models[0])


def fold(largest: Array, update: Array) -> Array:
    """Update the running ``tau*``: the new update replaces entries where its magnitude is at least as large.

    Folding the updates of a stream one by one gives exactly the ``tau*`` over all of them.

    Raises:
        InputError: shapes differ.
    """
    (old, new), _ = as_arrays([largest, update])
    return like(np.where(np.abs(new) >= np.abs(old), new, old), largest)


def apply(models: Sequence[NDArray[Any]], base: NDArray[Any] | None, plan: MagMaxPlan, start: int = 0) -> NDArray[Any]:
    """Compute MagMax over a slice."""
    assert base is not None
    best = np.subtract(models[0], base)
    for model in models[1:]:
        delta = np.subtract(model, base)
        put_where(best, np.abs(delta) >= np.abs(best), delta)
    best *= best.dtype.type(plan.scale)
    best += base
    return best


def prepare(inputs: Inputs, *, scale: float = 0.5) -> MagMaxPlan:
    """Plan :func:`magmax` for one tensor."""
    return MagMaxPlan(scale)


RULE = Rule(
    name="magmax",
    function=magmax,
    summary="entry by entry the update of largest magnitude",
    source="MagMax, arXiv 2407.06322",
    base="required",
    options=(replace(SCALE, default=0.5),),
    prepare=prepare,
    apply=apply,
)
