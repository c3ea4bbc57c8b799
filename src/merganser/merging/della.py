"""DELLA: drop entries of the updates at random, small ones more often, and rescale the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.errors import InputError
from merganser.merging.elect import sum_updates
from merganser.merging.masks import mask_key, random_bits
from merganser.merging.rule import DENSITY, NORMALIZE, SCALE, SEED, WEIGHT, Parameter, Rule
from merganser.merging.tensors import Array, as_arrays, fractions_per_model, like, numbers_per_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESCALE = ("probability", "l1", "none")


@dataclass(frozen=True)
class DellaOptions:
    """Options of :func:`della`.

    Attributes:
        weights, density, epsilon: one per model, or one for all.
        rescale: ``probability`` divides each kept entry by its probability (the paper); ``l1`` rescales the kept
            entries to the L1 norm of the whole update (mergekit); ``none``.
        sign_election: elect signs as in :func:`merganser.merging.ties.ties`.
        normalize: divide by the sum of the (agreeing) weights.
        scale: factor on the merged update.
        seed: of the masks.

    Raises:
        InputError: an unknown ``rescale``.
    """

    weights: float | Sequence[float] = 1.0
    density: float | Sequence[float] = 1.0
    epsilon: float | Sequence[float] = 0.15
    rescale: str = "probability"
    sign_election: bool = True
    normalize: bool = True
    scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rescale not in RESCALE:
            raise InputError(f"Rescale is {self.rescale!r}.", f"Choose from {', '.join(RESCALE)}.")


def della(models: Sequence[Array], base: Array, *, name: str = "", **options: Any) -> Array:
    """Elect signs as TIES does, over updates whose entries are kept at random, large magnitudes more probably.

    Source: Deep et al. 2024, DELLA-Merging, arXiv 2406.11617. In each row (vector along the last dimension) the entry
    of rank r of n (0 the smallest) is kept with probability ``density - epsilon + 2 epsilon r / (n - 1)``, so that the
    paper's epsilon is twice this one (mergekit's convention). Density 1 keeps everything, 0 nothing.
    Weights: act before the election; normalised by those that agree. Without ``sign_election``: rule ``della_linear``.
    Masks differ from mergekit's, whose generator depends on the order of the tensors, and for tensors of more than two
    dimensions mergekit ranks along the second.

    Args:
        models: tensors of equal shape.
        base: the model that all of them started from.
        name: the tensor's name.
        options: fields of :class:`DellaOptions`.

    Returns:
        A tensor of the first model's shape and type.

    Raises:
        InputError: shapes differ, an unknown ``rescale``, or ``density ± epsilon`` outside (0, 1).
    """
    chosen = DellaOptions(**options)
    arrays, base_array = as_arrays(models, base)
    assert base_array is not None
    weights = numbers_per_model(chosen.weights, len(arrays), "weight")
    densities = fractions_per_model(chosen.density, len(arrays), "density")
    spreads = numbers_per_model(chosen.epsilon, len(arrays), "epsilon")
    for kept, spread in zip(densities, spreads, strict=True):
        if 0.0 < kept < 1.0 and not (kept - spread > 0.0 and kept + spread < 1.0 and spread >= 0.0):
            raise InputError(
                f"Density {kept:g} with epsilon {spread:g} gives probabilities from {kept - spread:g} to "
                f"{kept + spread:g}.",
                "Choose epsilon so that density - epsilon and density + epsilon are between 0 and 1.",
            )
    kept_updates = [
        _prune(array - base_array, kept, spread, chosen.rescale, mask_key(chosen.seed, name, index))
        for index, (array, kept, spread) in enumerate(zip(arrays, densities, spreads, strict=True))
    ]
    update = sum_updates(kept_updates, weights, chosen.sign_election, chosen.normalize, chosen.scale)
    return like(base_array + update, models[0])


def _prune(delta: NDArray[Any], density: float, epsilon: float, rescale: str, key: int) -> NDArray[Any]:
    """Drop entries of one update by MAGPRUNE: ranked per row by magnitude."""
    if density >= 1.0:
        return delta
    if density <= 0.0 or delta.size == 0:
        return np.zeros_like(delta)
    rows = delta.reshape(-1, delta.shape[-1]) if delta.ndim else delta.reshape(1, 1)
    length = rows.shape[1]
    result = np.zeros_like(rows)
    whole = kept = 0.0
    steps = max(length - 1, 1)
    for index, row in enumerate(rows):
        magnitudes = np.abs(row)
        ranks = np.empty(length, dtype=np.int64)
        ranks[np.argsort(magnitudes, kind="stable")] = np.arange(length)
        probability = density - epsilon + ranks * (2.0 * epsilon / steps)
        start = index * length
        kept_entries = random_bits(key, start, start + length).astype(np.float64) * 2.0**-53 < probability
        chosen = row[kept_entries]
        result[index, kept_entries] = chosen / probability[kept_entries] if rescale == "probability" else chosen
        if rescale == "l1":
            whole += float(np.add.reduce(magnitudes, dtype=np.float64))
            kept += float(np.add.reduce(np.abs(chosen), dtype=np.float64))
    if rescale == "l1" and whole >= 1e-7 and kept >= 1e-7:
        result *= delta.dtype.type(whole / kept)
    return result.reshape(delta.shape)


RULE = Rule(
    name="della",
    function=della,
    summary="drop small entries more often than large ones, elect signs",
    source="DELLA-Merging, arXiv 2406.11617",
    base="required",
    per_model=(
        WEIGHT,
        DENSITY,
        Parameter("epsilon", 0.15, "half the spread of the keeping probability", 0.0, 0.5),
    ),
    options=(
        Parameter("rescale", "probability", "probability (paper), l1 (mergekit) or none", choices=RESCALE),
        NORMALIZE,
        SCALE,
        SEED,
    ),
    random=True,
)

RULE_LINEAR = replace(
    RULE,
    name="della_linear",
    function=partial(della, sign_election=False, normalize=False),
    summary="DELLA without sign election",
    options=(RULE.options[0], replace(NORMALIZE, default=False), SCALE, SEED),
)
