"""Preferences between tasks: their checks, and their computation from common labels or similar inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from merganser.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from merganser.methods.base import TaskContext
    from merganser.streams.answers import AnswerSpec


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


def by_similarity(features: Mapping[str, Tensor], wanted: Sequence[str]) -> list[float]:
    """Compute the cosine between each task's mean feature and the mean of the wanted tasks' features, at least zero.

    Args:
        features: task -> mean feature (width).
        wanted: tasks that the merged model is meant for, all in ``features``.

    Returns:
        Preferences, one per task, not all zero.
    """
    import torch

    target = torch.stack([features[task] for task in wanted]).double().mean(0)
    cosines = [torch.cosine_similarity(row.double(), target, dim=0).clamp(min=0).item() for row in features.values()]
    return cosines if any(cosines) else [1.0] * len(cosines)


def mean_feature(context: TaskContext, batch: int = 32, examples: int = 512) -> Tensor:
    """Compute the mean feature (width) of the first ``examples`` inputs of a task, without dropout.

    The feature of an input is the mean over its tokens of the last hidden layer (of the encoder, if there is one); of
    a matcher the vector of the text or image.

    Raises:
        InputError: the task has no examples.
    """
    import torch

    from merganser.models.base import eval_mode
    from merganser.training.rehearsal import to_device

    module, device = context.backbone.module, context.backbone.device
    total: Tensor | None = None
    chosen = list(context.features[:examples])
    if not chosen:
        raise InputError(f"Task '{context.task}' has no examples.", "Give it some.")
    with eval_mode(module), torch.no_grad():
        for start in range(0, len(chosen), batch):
            inputs = to_device(context.backbone.collate(chosen[start : start + batch]), device)
            if context.backbone.kind == "matcher":
                # Texts or images: everything but the labels to choose from.
                read = {name: value for name, value in inputs.items() if name not in ("candidates", "labels")}
                rows = module.embed(**read)  # type: ignore[operator]
            else:
                output = module(**inputs, output_hidden_states=True)
                encoder = context.backbone.kind == "seq2seq"
                hidden = output.encoder_last_hidden_state if encoder else output.hidden_states[-1]
                tokens = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
                rows = (hidden * tokens).sum(1) / tokens.sum(1)
            total = rows.float().sum(0) if total is None else total + rows.float().sum(0)
    assert total is not None
    return (total / len(chosen)).cpu()
