"""How much each task is preferred, from what its labels or its inputs have in common with those of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from merganser.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from merganser.methods.base import TaskContext


def by_label_overlap(labels: Mapping[str, Sequence[str]], wanted: Sequence[str]) -> list[float]:
    """Compute per task its fraction of the wanted tasks' labels; a label of n tasks counts 1/n for each.

    Args:
        labels: task -> its labels.
        wanted: tasks that the merged model is meant for, all in ``labels``.

    Returns:
        Preferences, one per task, that sum to 1.
    """
    target = {label for task in wanted for label in labels[task]}
    known = {label: sum(label in own for own in labels.values()) for label in target}
    return [sum(1 / known[label] for label in set(own) & target) / len(target) for own in labels.values()]


def by_similarity(features: Mapping[str, Tensor], wanted: Sequence[str]) -> list[float]:
    """Compute per task the cosine between its mean feature and that of the wanted tasks; below zero: zero.

    Args:
        features: task -> mean feature (width).
        wanted: tasks that the merged model is meant for, all in ``features``.

    Returns:
        Preferences, one per task, not all zero.
    """
    import torch

    target = torch.stack([features[task] for task in wanted]).double().mean(0)
    cosines = [torch.cosine_similarity(own.double(), target, dim=0).clamp(min=0).item() for own in features.values()]
    return cosines if any(cosines) else [1.0] * len(cosines)


def mean_feature(context: TaskContext, batch: int = 32, examples: int = 512) -> Tensor:
    """The mean, over a task's inputs, of what the model makes of them (width), dropout off.

    Of an encoder the mean over the tokens of its last layer, of a decoder alone likewise, of a matcher the text's or
    the image's own vector. The first ``examples`` inputs are read.
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
                # What is read, be it texts or images: all but the labels to choose from.
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
