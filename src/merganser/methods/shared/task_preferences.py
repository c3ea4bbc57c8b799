"""Preferences between tasks: their checks, and their computation from common labels or similar features."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from merganser.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from merganser.streams.answers import AnswerSpec

SHARPNESS = 100.0
"""How steeply a task's weight falls with its distance: that of the authors' program."""


def check_numbers(numbers: Sequence[float], names: Sequence[str], whole: bool) -> str | None:
    """Refuse a list of preferences with fewer numbers than tasks.

    Args:
        numbers: one per task, in the order of learning.
        names: of the tasks learned and to be learned.
        whole: these are all tasks of the stream.

    Returns:
        A remark where there are more numbers than tasks of the stream.

    Raises:
        InputError: there are fewer numbers than tasks.
    """
    if len(numbers) < len(names):
        raise InputError(
            f"method.preference has {len(numbers)} numbers, and the run has {len(names)} tasks.",
            "Give one per task, or choose uniform, label_overlap or feature_similarity.",
        )
    if whole and len(numbers) > len(names):
        return f"method.preference has {len(numbers)} numbers for {len(names)} tasks: later tasks use the rest."
    return None


def check_wanted(wanted: Sequence[str], names: Sequence[str]) -> None:
    """Refuse wanted tasks that are not in the stream.

    Raises:
        InputError: naming the task.
    """
    for task in wanted:
        if task not in names:
            hint = nearest(task, names) or f"The stream has {', '.join(names)}."
            raise InputError(f"method.wanted names '{task}', and the stream has no such task.", hint)


def check_labels(specs: Mapping[str, AnswerSpec]) -> None:
    """Refuse tasks without a label set, whose labels cannot overlap.

    Raises:
        InputError: naming the task.
    """
    for task, spec in specs.items():
        if spec.labels is None:
            raise InputError(
                f"method.preference is label_overlap, and task '{task}' answers in free text.",
                "Choose uniform, feature_similarity or numbers.",
            )


def wanted_tasks(wanted: Sequence[str] | None, learned: Iterable[str]) -> list[str]:
    """List the wanted tasks among those learned; all learned tasks until one of the wanted ones is."""
    tasks = list(learned)
    return [task for task in wanted or tasks if task in tasks] or tasks


def by_label_overlap(labels: Mapping[str, Sequence[str]], wanted: Sequence[str]) -> list[float]:
    """Compute each task's fraction of the wanted tasks' labels; a label of n tasks counts 1/n for each of them.

    Args:
        labels: task -> its labels.
        wanted: tasks that the merged model is meant for, all in ``labels``.

    Returns:
        Preferences, one per task, that sum to 1.
    """
    target = {label for task in wanted for label in labels[task]}
    tasks_with = {label: sum(label in of_task for of_task in labels.values()) for label in target}
    return [sum(1 / tasks_with[label] for label in set(of_task) & target) / len(target) for of_task in labels.values()]


def by_similarity(features: Mapping[str, Tensor], wanted: Sequence[str], sharpness: float = SHARPNESS) -> list[float]:
    """Compare each task's mean feature with the mean of the wanted tasks' features by cosine.

    The weight is ``exp(-sharpness (1 - cosine) / 2)``.

    Args:
        features: task -> mean feature (width).
        wanted: tasks that the merged model is meant for, all in ``features``.
        sharpness: how steeply the weight falls with the distance; 0: all alike.

    Returns:
        Preferences, one per task, that sum to 1.
    """
    import torch

    target = torch.stack([features[task] for task in wanted]).double().mean(0)
    cosines = [torch.cosine_similarity(row.double(), target, dim=0).item() for row in features.values()]
    # Their ratios alone count: with the largest taken as 1, not all can round to zero.
    weights = [math.exp(-sharpness * (max(cosines) - cosine) / 2) for cosine in cosines]
    return [weight / math.fsum(weights) for weight in weights]
