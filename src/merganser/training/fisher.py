"""Diagonal Fisher information: the sensitivity of the model's answers on a task to each weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from merganser.errors import InputError
from merganser.models.base import IGNORE_INDEX, eval_mode
from merganser.models.pairs import is_pairs
from merganser.training.determinism import derive_seed
from merganser.training.dpo import loss_on_own_preferences
from merganser.training.rehearsal import Collator, model_loss, to_device
from merganser.weights import Weights

FisherKind = Literal["empirical", "true"]
"""Source of the labels: the data (empirical), or samples from the model (true)."""


def diagonal_fisher(
    module: nn.Module,
    features: Sequence[dict[str, Any]],
    collate: Collator,
    *,
    batch: int,
    examples: int | None,
    seed: int,
    kind: FisherKind = "empirical",
) -> Weights:
    r"""Estimate ``F_j = E[(d log p(y | x) / d theta_j)^2]`` of the trainable weights, dropout off.

    Source: Kirkpatrick et al. 2017, Overcoming catastrophic forgetting in neural networks, arXiv 1612.00796; on the two
    kinds, Kunstner et al. 2019, arXiv 1905.12558. ``log p`` is minus the loss that the model is trained with: for texts
    the mean over the tokens of a batch's answers; for pairs the likelihood that the chosen answer is preferred.

    One backward pass takes ``batch`` examples. With 1 the mean of squared gradients is exact. With more, the squared
    gradient of a batch's mean loss replaces it, times ``batch``: the same in expectation where the mean gradient
    is zero, as after training, and ``batch`` times cheaper.

    Args:
        module: ``module(**batch)`` gives ``loss``, for the true Fisher also ``logits``.
        features: tokenised examples of the task.
        collate: turns a list of them into a batch.
        batch: examples per backward pass; a last, smaller batch counts by its size.
        examples: how many are drawn, without replacement; ``None`` or more than there are: all.
        seed: decides the examples drawn, and the answers drawn for the true Fisher.
        kind: ``empirical`` takes the answers of the data, ``true`` draws them from the model's own distribution (each
            token given the data's tokens before it).

    Returns:
        Non-negative values in single precision under the names of the trainable weights.

    Raises:
        InputError: no features, or a batch or number of examples below 1.
    """
    if not features:
        raise InputError("There are no examples to estimate the Fisher information on.", "Give the task's own.")
    if batch < 1 or (examples is not None and examples < 1):
        raise InputError(
            f"The Fisher information cannot be estimated on {examples} examples, {batch} at a time.", "Use 1 or more."
        )
    weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    total = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    device = next(iter(weights.values())).device
    order = np.random.default_rng(derive_seed(seed, "fisher")).permutation(len(features))[:examples].tolist()
    with eval_mode(module):
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            inputs = to_device(collate([features[index] for index in chosen]), device)
            if kind == "true":
                loss = _loss_on_own_answers(module, inputs, derive_seed(seed, "fisher", start))
            else:
                loss = model_loss(module, inputs)
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for name, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    # A mean over `len(chosen)` examples: its square times their number squared over all examples drawn,
                    # and once divided by their number (see above).
                    total[name].add_(gradient.float().square(), alpha=len(chosen) ** 2 / len(order))
    return Weights(total)


def _loss_on_own_answers(module: nn.Module, inputs: Mapping[str, Any], seed: int) -> Tensor:
    """Return the mean negative log-likelihood (nats) of labels drawn from the model where the batch has labels."""
    if is_pairs(inputs):
        return loss_on_own_preferences(module, inputs, seed)
    logits: Tensor = module(**inputs)["logits"].float()
    labels: Tensor = inputs["labels"]
    if labels.ndim == 2 and not getattr(getattr(module, "config", None), "is_encoder_decoder", False):
        # The logits of a decoder-only model are those of the next token.
        logits, labels = logits[:, :-1], labels[:, 1:]
    logits = logits[labels != IGNORE_INDEX]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
    return functional.cross_entropy(logits, drawn.to(logits.device))
