"""How the updates of AimMerging's two phases become one."""

from __future__ import annotations

from merganser.control import Merge
from merganser.merging.importance import important, merge_by_importance
from merganser.merging.trajectory import merge_two_phases
from merganser.weights import Weights


def fuse(
    decision: Merge,
    weights: Weights,
    start: Weights,
    after_new: Weights,
    scores: tuple[Weights, Weights] | None,
    important_share: float,
) -> tuple[float, float]:
    """Merge in place.

    Args:
        weights: after the rehearsal; the result is put here.
        start, after_new: before the steps on the new task, and after them.
        scores: of importance to the new task and to the memory; ``None``: the updates are weighted as decided.
        important_share: share of the weights that are important to a phase.

    Returns:
        The weights of the two updates; with scores, their means over all parameters.
    """
    if scores is None:
        merge_two_phases(weights, start, after_new, weight_new=decision.weight_new, weight_old=decision.weight_old)
        return decision.weight_new, decision.weight_old
    new, old = (important(each, important_share) for each in scores)
    share = merge_by_importance(weights, start, after_new, new, old)
    return share, 1.0 - share
