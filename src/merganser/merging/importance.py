"""Recurrent-KIF's merge: every entry takes the update of the phase that it is important to.

Source: Feng et al., "Recurrent Knowledge Identification and Fusion for Language Model Continual Learning", 2025
(arXiv 2502.17510).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from merganser.weights import Weights


def important(scores: Weights, share: float) -> dict[str, Tensor]:
    """Which entries have the largest scores of the whole vector.

    Args:
        scores: not negative; entries of score 0 are never important.
        share: of all entries, those of all processes where they are sharded; entries that equal the last one count,
            too.

    Returns:
        name -> mask of the shape of its tensor.

    Raises:
        ValueError: the share is not above 0 and at most 1.
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share is {share}; give a fraction above 0 and at most 1")
    least = scores.kth_largest(max(1, round(share * scores.total)))
    return {name: (score >= least) & (score > 0) for name, score in scores.items()}


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

    As :func:`merganser.merging.trajectory.merge_two_phases`, with a weight :math:`w` of its own for every entry:

    .. math:: \theta \leftarrow \theta_0 + w (\theta_k - \theta_0) + (1 - w) (\theta_m - \theta_k)

    :math:`w` is ``weight_both`` where an entry is important to both phases, 1 where only to the new task, 0 where only
    to the memory, and ``weight_neither`` elsewhere.

    Args:
        current: :math:`\theta_m`, overwritten with the merged weights.
        start, after_new: :math:`\theta_0` and :math:`\theta_k`; same names and shapes.
        important_new, important_old: masks by name, as from :func:`important`.

    Returns:
        The mean of :math:`w` over all entries.

    Raises:
        ValueError: names or shapes differ.
    """
    shares = {}
    for name, value, first, middle in zip(
        current, current.tensors, current.matched(start), current.matched(after_new), strict=True
    ):
        new, old = important_new[name], important_old[name]
        weight = torch.full_like(value, weight_neither)
        weight[new & old] = weight_both
        weight[new & ~old] = 1.0
        weight[old & ~new] = 0.0
        value.copy_(first + weight * (middle - first) + (1.0 - weight) * (value - middle))
        shares[name] = weight
    return current.like(shares).l1() / current.total
