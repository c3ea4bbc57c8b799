"""Recurrent-KIF's merge: every entry follows the update of the phase that it is important to.

Source: Feng et al., "Recurrent Knowledge Identification and Fusion for Language Model Continual Learning", 2025
(arXiv 2502.17510).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from merganser.weights import Weights


def importance_masks(scores: Weights, fraction: float) -> dict[str, Tensor]:
    """Mark the entries with the largest scores of the whole vector.

    Args:
        scores: not negative; entries of score 0 are never marked.
        fraction: of all entries (over all processes if they are sharded); entries equal to the last one are marked,
            too.

    Returns:
        name -> boolean mask of the shape of its tensor.

    Raises:
        ValueError: the fraction is not above 0 and at most 1.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"The fraction is {fraction}; it must be above 0 and at most 1.")
    threshold = scores.kth_largest(max(1, round(fraction * scores.total)))
    return {name: (score >= threshold) & (score > 0) for name, score in scores.items()}


@torch.no_grad()
def merge_by_importance(
    current: Weights,
    start: Weights,
    after_new: Weights,
    important_new: Mapping[str, Tensor],
    important_old: Mapping[str, Tensor],
    *,
    weight_both: float = 0.4,
    weight_neither: float = 0.5,
) -> float:
    r"""Merge the updates of the inner and of the rehearsal phase entry by entry, in place.

    As :func:`merganser.merging.trajectory.merge_two_phases`, with a weight :math:`w` per entry:

    .. math:: \theta \leftarrow \theta_0 + w (\theta_k - \theta_0) + (1 - w) (\theta_m - \theta_k)

    :math:`w` is ``weight_both`` where an entry is important to both phases, 1 where only to the new task, 0 where only
    to the memory, and ``weight_neither`` elsewhere.

    Args:
        current: :math:`\theta_m`, overwritten with the merged weights.
        start, after_new: :math:`\theta_0` and :math:`\theta_k`; same names and shapes.
        important_new, important_old: masks by name, as from :func:`importance_masks`.

    Returns:
        The mean of :math:`w` over all entries.

    Raises:
        ValueError: names or shapes differ.
    """
    weights = {}
    for name, value, before, middle in zip(
        current, current.tensors, current.aligned_tensors(start), current.aligned_tensors(after_new), strict=True
    ):
        new, old = important_new[name], important_old[name]
        weight = torch.full_like(value, weight_neither)
        weight[new & old] = weight_both
        weight[new & ~old] = 1.0
        weight[old & ~new] = 0.0
        value.copy_(before + weight * (middle - before) + (1.0 - weight) * (value - middle))
        weights[name] = weight
    return current.like(weights).l1() / current.total
