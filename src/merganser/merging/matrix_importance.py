"""TaSL's merge: whole matrices are kept, replaced or averaged by their importance to earlier tasks and to the new one.

Source: Feng et al. 2024, "TaSL: Continual Dialog State Tracking via Task Skill Localization and Consolidation"
(arXiv 2408.09857).
"""

from __future__ import annotations

from collections.abc import Mapping


def rescale(scores: Mapping[str, float]) -> dict[str, float]:
    """Shift and scale scores to [0, 1]; all are zero where all are equal."""
    low, high = min(scores.values()), max(scores.values())
    return {name: (score - low) / (high - low) if high > low else 0.0 for name, score in scores.items()}


def most_important(scores: Mapping[str, float], fraction: float) -> set[str]:
    """Return the names of a fraction of the matrices, those with the largest scores, at least one.

    Ties go to the earlier name.
    """
    ordered = sorted(scores, key=lambda name: -scores[name])
    return set(ordered[: max(1, round(fraction * len(ordered)))])


def weights_of_new(
    new: Mapping[str, float], old: Mapping[str, float], fraction: float, shared: float, neither: float
) -> dict[str, float]:
    """Compute the weight of the new task's value of each matrix.

    Args:
        new: importance of each matrix to the new task.
        old: importance to the earlier tasks.
        fraction: of the matrices, those that count as important.
        shared: weight where a matrix is important to both; 1 where to the new task alone, 0 where to the old alone.
        neither: weight where it is important to neither.
    """
    important_now, important_before = most_important(new, fraction), most_important(old, fraction)
    table = {(True, True): shared, (True, False): 1.0, (False, True): 0.0, (False, False): neither}
    return {name: table[name in important_now, name in important_before] for name in new}
