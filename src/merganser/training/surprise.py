"""How surprising each example is: its loss under the model as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from merganser.models.base import IGNORE_INDEX, Backbone, eval_mode
from merganser.models.pairs import is_pairs, model_inputs
from merganser.models.precision import autocast
from merganser.training.distributed import by_loss
from merganser.training.rehearsal import to_device, without_cache


def example_losses(backbone: Backbone, features: Sequence[Mapping[str, Any]], batch: int) -> list[float]:
    """Measure the loss of each example (nats) without dropout: the mean over its label tokens, of a pair over those of
    the chosen answer, of a matcher that of its label.

    Args:
        features: tokenised examples.
        batch: examples per forward pass; every process measures all of them.
    """
    positions = {id(feature): i for i, feature in enumerate(features)}
    losses = [0.0] * len(features)
    with eval_mode(backbone.module), torch.no_grad(), without_cache(backbone.module):
        for group in by_loss(features):
            # Longest first: a batch that does not fit in memory fails at once.
            ordered = sorted(group, key=lambda feature: -feature["length"])
            for start in range(0, len(ordered), batch):
                rows = ordered[start : start + batch]
                with autocast(backbone.device, backbone.precision):
                    measured = _losses(backbone, to_device(backbone.collate(rows), backbone.device))
                for feature, loss in zip(rows, measured.tolist(), strict=True):
                    losses[positions[id(feature)]] = loss
    return losses


def _losses(backbone: Backbone, batch: Mapping[str, Any]) -> Tensor:
    """Return the loss of each example of a batch (examples)."""
    output, labels = backbone.module(**model_inputs(batch)), batch["labels"]
    logits = output["logits"].float()
    if labels.dim() == 1:
        return functional.cross_entropy(logits, labels, reduction="none")
    if backbone.kind == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    losses = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE_INDEX, reduction="none")
    means = losses.sum(1) / (labels != IGNORE_INDEX).sum(1).clamp(min=1)
    return means.chunk(2)[0] if is_pairs(batch) else means
