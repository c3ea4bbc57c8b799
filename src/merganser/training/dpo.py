r"""The loss on pairs of a chosen and a rejected answer: direct preference optimisation (DPO).

.. math:: L = -\log \sigma\left(\beta\left[\log\frac{\pi(y_c|x)}{\pi_0(y_c|x)} -
    \log\frac{\pi(y_r|x)}{\pi_0(y_r|x)}\right]\right)

is the negative log-likelihood, under the model of Bradley and Terry, that the chosen answer :math:`y_c` to the prompt x
is preferred to the rejected one :math:`y_r`. The reference :math:`\pi_0` is the model with the weights at the start of
the task, for the task's own pairs and for those of the memory: a loss on the memory above :math:`\log 2` is forgetting
in this task. Its log-probabilities are computed once, before training. Source: Rafailov et al. 2023, "Direct Preference
Optimization: Your Language Model is Secretly a Reward Model" (arXiv 2305.18290).

TRL's ``DPOTrainer`` is not used within a task, although its numbers are reproduced (a test compares loss and
gradients). It is a ``Trainer`` itself, and its loss is a method of it that also reads its arguments, its collator and
its log. A task needs :class:`~merganser.training.trainer.TaskTrainer` for batches that do not depend on the number of
processes, for checkpoints and for a method's penalty; a rehearsal step needs the loss without any trainer, on batches
where pairs stand beside examples of other tasks. And TRL's reference of an adapter is the model without it or a copy of
the first adapter, not the model at the start of every task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from merganser.models.base import Backbone, Feature
from merganser.models.pairs import PREFERENCE, REFERENCE, answer_log_probabilities, is_pair, measure_pairs
from merganser.training.state import TaskState


def margins(log_probabilities: Tensor, preference: Tensor) -> Tensor:
    r"""Compute :math:`\beta` times the difference of the two log-ratios, one per pair.

    Args:
        log_probabilities: of the chosen, then of the rejected answers (2 pairs).
        preference: as in a batch, see :mod:`merganser.models.pairs`.
    """
    chosen, rejected = log_probabilities.chunk(2)
    reference_chosen, reference_rejected, beta, _ = preference.unbind(1)
    return beta * ((chosen - reference_chosen) - (rejected - reference_rejected))


def preference_loss(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Any]:
    """Return the mean DPO loss over the pairs of a batch (nats), and the model's output."""
    log_probabilities, output = answer_log_probabilities(model, batch)
    return -functional.logsigmoid(margins(log_probabilities, batch[PREFERENCE])).mean(), output


def loss_on_own_preferences(model: nn.Module, batch: Mapping[str, Any], seed: int) -> Tensor:
    r"""Return the mean loss on a batch of pairs whose preferred answers are drawn from the model.

    The chosen answer is preferred with the model's own probability :math:`\sigma(margin)`.
    """
    log_probabilities, _ = answer_log_probabilities(model, batch)
    margin = margins(log_probabilities, batch[PREFERENCE])
    generator = torch.Generator().manual_seed(seed)
    as_given = torch.rand(len(margin), generator=generator).to(margin.device) < margin.detach().sigmoid()
    return -functional.logsigmoid(torch.where(as_given, margin, -margin)).mean()


class References:
    """The reference's log-probabilities of all pairs of a task's training; a part of its checkpoints.

    Args:
        features: tokenised examples of the task and of the memory; the pairs among them receive their values.
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        self.pairs = [feature for feature in features if is_pair(feature)]

    def measure(self, backbone: Backbone, batch: int, on_progress: Callable[[int], None] | None = None) -> None:
        """Take the model as it is as the reference.

        Args:
            batch: pairs per forward pass.
            on_progress: called after each of them with its number of pairs.
        """
        if self.pairs:
            self._set(measure_pairs(backbone, self.pairs, batch, on_progress))

    def num_equal(self) -> int:
        """Count the pairs whose answers are the same tokens, as where they differ only beyond the longest answer."""
        return sum(pair["chosen"] == pair["rejected"] for pair in self.pairs)

    def _set(self, measured: Tensor) -> None:
        for feature, values in zip(self.pairs, measured.tolist(), strict=True):
            feature[REFERENCE] = values

    def task_state(self) -> TaskState:
        """Return the values: measured again on another machine, they could differ in their last bits."""
        if not self.pairs:
            return TaskState()
        return TaskState(tensors={REFERENCE: torch.tensor([pair[REFERENCE] for pair in self.pairs])})

    def load_task_state(self, state: TaskState) -> None:
        """Restore what :meth:`task_state` returned."""
        if self.pairs:
            self._set(state.tensors[REFERENCE])
