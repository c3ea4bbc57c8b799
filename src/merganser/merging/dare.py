"""DARE: drop entries of the updates at random and rescale the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from merganser.errors import InputError
from merganser.merging.combine import apply_in_slices
from merganser.merging.elect import Election, elect, random_sparsity
from merganser.merging.masks import bernoulli_mask, mask_key, mask_threshold
from merganser.merging.rule import DENSITY, NORMALIZE, SCALE, SEED, WEIGHT, Parameter, Rule
from merganser.merging.tensors import (
    Array,
    ArrayInputs,
    Inputs,
    as_arrays,
    fractions_per_model,
    iterate_blocks,
    like,
    numbers_per_model,
)

RESCALE = ("density", "l1", "none")


@dataclass(frozen=True)
class DareOptions:
    """Options of :func:`dare`.

    Attributes:
        weights, density: one per model, or one for all.
        rescale: ``density`` divides kept entries by the density (the paper; PEFT); ``l1`` rescales them to the L1 norm
            of the whole update (mergekit); ``none``.
        sign_election: elect signs as in :func:`merganser.merging.ties.ties`.
        normalize: divide by the sum of the (agreeing) weights.
        scale: factor on the merged update.
        seed: of the masks.

    Raises:
        InputError: an unknown ``rescale``.
    """

    weights: float | Sequence[float] = 1.0
    density: float | Sequence[float] = 1.0
    rescale: str = "density"
    sign_election: bool = False
    normalize: bool = False
    scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rescale not in RESCALE:
            raise InputError(f"Rescale is {self.rescale!r}.", f"Choose from {', '.join(RESCALE)}.")


def dare(models: Sequence[Array], base: Array, *, name: str = "", **options: Any) -> Array:
    """Compute ``theta_0 + scale * sum_i w_i drop(tau_i)``.

    ``drop`` keeps each entry with probability ``density`` and rescales the kept ones.

    Source: Yu et al. 2024, Language models are super Mario, arXiv 2311.03099. The mask of an entry depends on ``seed``,
    ``name``, the model's index and the entry's index only (:func:`merganser.merging.masks.random_bits`).
    Weights: not normalised by default. ``sign_election`` (rule ``dare_ties``) elects signs of the weighted, sparsified
    updates as TIES does. Masks differ from those of other libraries, whose generators depend on the order of the
    tensors.

    Args:
        models: tensors of equal shape.
        base: the model that all of them started from.
        name: the tensor's name.
        options: fields of :class:`DareOptions`.

    Returns:
        A tensor of the first model's shape and type.

    Raises:
        InputError: shapes differ, a density outside [0, 1], an unknown ``rescale``.
    """
    arrays, base_array = as_arrays(models, base)
    plan = prepare(ArrayInputs(arrays, base_array, name), **options)
    return like(apply_in_slices(arrays, base_array, elect, plan), models[0])


def prepare(inputs: Inputs, **options: Any) -> Election:
    """Plan :func:`dare` for one tensor: keys of the masks, and rescaling factors."""
    parsed = DareOptions(**options)
    densities = fractions_per_model(parsed.density, inputs.models, "density")
    keys = [mask_key(parsed.seed, inputs.name, index) for index in range(inputs.models)]
    if parsed.rescale == "density":
        factors = [1.0 / kept if kept > 0 else 1.0 for kept in densities]
    elif parsed.rescale == "l1":
        factors = _l1_factors(inputs, keys, densities)
    else:
        factors = [1.0] * inputs.models
    return Election(
        weights=np.array(numbers_per_model(parsed.weights, inputs.models, "weight")),
        sparsity=tuple(random_sparsity(*arguments) for arguments in zip(keys, densities, factors, strict=True)),
        elect=parsed.sign_election,
        normalize=parsed.normalize,
        scale=parsed.scale,
    )


def _l1_factors(inputs: Inputs, keys: list[int], densities: list[float]) -> list[float]:
    """Divide each update's L1 norm by that of its kept entries; 1 where either is (almost) zero, as in mergekit."""
    whole = np.zeros(inputs.models)
    kept = np.zeros(inputs.models)
    for start, models, base in iterate_blocks(inputs):
        for index, model in enumerate(models):
            magnitudes: Any = np.abs(model - base).astype(np.float64)
            keep = bernoulli_mask(keys[index], start, start + len(magnitudes), mask_threshold(densities[index]))
            whole[index] += np.add.reduce(magnitudes)
            kept[index] += np.add.reduce(np.where(keep, magnitudes, 0.0))
    return [float(a / b) if a >= 1e-7 and b >= 1e-7 else 1.0 for a, b in zip(whole, kept, strict=True)]


RULE = Rule(
    name="dare_linear",
    function=dare,
    summary="drop entries of the updates at random, rescale, add",
    source="DARE, arXiv 2311.03099",
    base="required",
    per_model=(WEIGHT, DENSITY),
    options=(
        Parameter("rescale", "density", "density (paper), l1 (mergekit) or none", choices=RESCALE),
        replace(NORMALIZE, default=False),
        SCALE,
        SEED,
    ),
    prepare=prepare,
    apply=elect,
    random=True,
)

RULE_TIES = replace(
    RULE,
    name="dare_ties",
    function=partial(dare, sign_election=True),
    prepare=partial(prepare, sign_election=True),
    summary="DARE with sign election",
)
