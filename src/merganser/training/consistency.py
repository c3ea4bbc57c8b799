r"""Consistency on the memory: a divergence from the answers that the model gave to its texts when the task began.

The answers are computed once per task, without dropout. Of every distribution the :data:`KEPT` likeliest choices are
kept, and the probability of all others together, so that a vocabulary needs no more memory than a few labels. The
divergence of distributions that are coarsened so is at most that of the whole ones, and equal to it where no more
choices exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from merganser.models.base import IGNORE_INDEX, Backbone, eval_mode
from merganser.models.pairs import is_pair
from merganser.models.precision import autocast
from merganser.training.distillation import LOWEST_LOGIT
from merganser.training.rehearsal import to_device, without_cache

if TYPE_CHECKING:
    from merganser.models.base import Feature

KEPT = 64
"""Choices kept of every distribution: labels, or tokens of the vocabulary."""

TEMPERATURE = 2.0
"""Logits are divided by it, which gives unlikely answers more weight, as in Li & Hoiem 2016."""

TEXTS = 16
"""Texts per forward pass in which the answers are computed."""

SMALLEST = 1e-8
"""Least probability of the choices that are not kept: its logarithm is finite."""


@dataclass(frozen=True)
class Answers:
    """Distributions over choices, one per answer of a text: one per label that is chosen, or per token written.

    Attributes:
        choices: the likeliest choices (answers x kept), as positions in the logits.
        log_probabilities: of these (answers x kept), and of all others together in a last column.
    """

    choices: Tensor
    log_probabilities: Tensor


def answer_logits(outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], kind: str) -> Tensor:
    """Return the logits of the answers in a batch (answers x choices), text by text in its order, in fp32.

    Args:
        outputs: of the model.
        batch: padded, not packed.
        kind: of the model: a matcher has one answer per text; models that write one per label token.
    """
    logits, labels = outputs["logits"], batch["labels"]
    if kind == "matcher":
        return logits.float()
    if kind == "causal":  # a position predicts the token after it
        logits, labels = logits[:, :-1], labels[:, 1:]
    return logits[labels != IGNORE_INDEX].float()


def coarsened(logits: Tensor, choices: Tensor) -> Tensor:
    """Return the log-probabilities of some choices, and of all others together in a last column.

    Args:
        logits: answers x choices; minus infinity where there is no choice.
        choices: answers x kept.
    """
    log_probabilities = functional.log_softmax(logits.clamp(min=LOWEST_LOGIT) / TEMPERATURE, -1)
    kept = log_probabilities.gather(-1, choices)
    others = (1 - kept.exp().sum(-1, keepdim=True)).clamp(min=SMALLEST).log()
    return torch.cat([kept, others], -1)


def keep(logits: Tensor, most: int = KEPT) -> Answers:
    """Keep the likeliest choices of every answer (answers x choices)."""
    choices = logits.topk(min(most, logits.shape[-1]), -1).indices
    return Answers(choices, coarsened(logits, choices))


def divergence(logits: Tensor, answers: Answers) -> Tensor:
    r"""Compute :math:`T^2 \mathrm{KL}(old \,\|\, new)` of coarsened distributions, T being :data:`TEMPERATURE`.

    Args:
        logits: of the model as it is (answers x choices).
        answers: kept when the task began.

    Returns:
        The mean over answers, in nats; 0 without any.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531); on stored examples,
    Buzzega et al. 2020, "Dark Experience for General Continual Learning" (arXiv 2004.07211), who keep logits of the
    time when an example was stored and compare them by their squared distance.
    """
    if answers.choices.numel() == 0:
        return logits.sum() * 0.0
    new = coarsened(logits, answers.choices)
    return TEMPERATURE**2 * functional.kl_div(new, answers.log_probabilities, reduction="batchmean", log_target=True)


class Consistency:
    """The answers of a model to examples of the memory, as it is when this is made.

    Args:
        backbone: the model.
        memory: tokenised examples; of preferences nothing is kept, whose loss holds on to the old model by itself.
    """

    def __init__(self, backbone: Backbone, memory: Sequence[Feature]) -> None:
        self._kind = backbone.kind
        self._device = next(backbone.module.parameters()).device
        self._answers: dict[int, Answers] = {}
        # Examples are known by their identity: they must live as long as their answers.
        self._memory = [example for example in memory if not is_pair(example)]
        with eval_mode(backbone.module), torch.no_grad(), without_cache(backbone.module):
            for start in range(0, len(self._memory), TEXTS):
                self._keep(backbone, self._memory[start : start + TEXTS])

    def _keep(self, backbone: Backbone, examples: list[Feature]) -> None:
        batch = to_device(backbone.collate(examples), self._device)
        with autocast(self._device, backbone.precision):
            logits = self._logits(backbone, batch)
        position = 0
        for example, number in zip(examples, self._numbers(batch), strict=True):
            of_example = logits[position : position + number]
            if self._kind == "matcher":  # the others of the batch may have more labels
                of_example = of_example[:, : len(example["candidates"])]
            self._answers[id(example)] = keep(of_example)
            position += number

    def _logits(self, backbone: Backbone, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of the answers to keep in a batch, text by text."""
        return answer_logits(backbone.module(**batch), batch, self._kind)

    def _numbers(self, batch: Mapping[str, Tensor]) -> list[int]:
        """Return the number of answers of each text of a batch."""
        labels = batch["labels"]
        if self._kind == "matcher":
            return [1] * len(labels)
        if self._kind == "causal":
            labels = labels[:, 1:]
        return (labels != IGNORE_INDEX).sum(-1).tolist()

    def of(self, examples: Sequence[Any]) -> list[Answers] | None:
        """Return the answers to some examples of the memory, in their order; ``None`` for preferences."""
        if any(is_pair(example) for example in examples):
            return None
        return [self._answers[id(example)] for example in examples]

    def divergence(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], held: Sequence[Answers]) -> Tensor:
        """Compute the mean divergence of a batch's answers from those that are kept, in nats.

        Args:
            outputs: of the model.
            batch: a padded batch of examples of the memory.
            held: what :meth:`of` returned for them.
        """
        logits = answer_logits(outputs, batch, self._kind)
        terms, position = [], 0
        for answers in held:
            number = len(answers.choices)
            terms.append(number * divergence(logits[position : position + number], answers))
            position += number
        if position != len(logits):
            raise ValueError(f"{len(logits)} answers in the batch, {position} are kept")
        return torch.stack(terms).sum() / max(position, 1)
