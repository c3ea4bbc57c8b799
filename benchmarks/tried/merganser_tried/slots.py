"""Which stored texts are kept: more of the tasks that lose more."""

from __future__ import annotations

from collections.abc import Mapping


def allocate(slots: int, weights: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, int]:
    """Share slots among tasks in proportion to their weights, each at least one and at most what it has.

    Args:
        slots: texts to keep, at least one per task.
        weights: task -> weight, not negative.
        sizes: task -> texts stored.
    """
    kept = {task: min(1, size) for task, size in sizes.items()}
    total = sum(weights.values())
    wanted = {task: slots * (weight / total if total else 1 / len(weights)) for task, weight in weights.items()}
    while sum(kept.values()) < min(slots, sum(sizes.values())):
        # The next slot goes to whoever is furthest below its share; the first of equal ones.
        task = max((t for t in kept if kept[t] < sizes[t]), key=lambda t: wanted[t] - kept[t])
        kept[task] += 1
    return kept
