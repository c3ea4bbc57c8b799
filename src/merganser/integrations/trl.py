"""The losses of TRL's trainers for AimMerging, whose models alone return none."""

from __future__ import annotations

import contextlib
import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from merganser.errors import InputError
from merganser.models.base import eval_mode
from merganser.training.determinism import derive_seed, isolated_random
from merganser.training.rehearsal import LossFunction

_ROWS = "examples"


def loss_of(trainer: Any, best_reward: float = 1.0) -> LossFunction:
    """Return the loss that a trainer computes, for the argument ``loss`` of AimMerging.

    Args:
        trainer: TRL's ``DPOTrainer`` or another whose ``compute_loss`` takes a batch of its data, or ``GRPOTrainer``
            (:class:`RewardLoss`).
        best_reward: of ``GRPOTrainer``: the highest reward that a completion can have.

    Raises:
        InputError: it has no such loss.
    """
    if hasattr(trainer, "reward_funcs"):
        return RewardLoss(trainer, best_reward)
    if not callable(getattr(trainer, "compute_loss", None)):
        raise InputError(
            f"A {type(trainer).__name__} has no compute_loss.", "Give a trainer of transformers or TRL, not its class."
        )
    return trainer.compute_loss


class RewardLoss:
    r"""The reward that is missed on prompts of the memory: :math:`L = r_{best} - E[r]`, nats replaced by rewards.

    The value of ``GRPOTrainer``'s own loss is about 0 at any weights, since advantages are relative to their group; it
    cannot tell forgetting. Only its gradient matters: that of :math:`-E[r]`. So the value of this loss is measured on
    completions that the model writes now, and its gradient is the trainer's, on the same completions.

    A batch of the memory has prompts, with the columns that the reward functions need. Each is answered as often as in
    the trainer's evaluation, without dropout. What is drawn depends on the trainer's seed and its step alone, and
    leaves the trainer's own random numbers and logs as they were. Uses ``_prepare_inputs``, ``_metrics``, ``_logs`` and
    ``_last_loaded_step`` of TRL 1.16, which later versions may rename.

    Args:
        trainer: TRL's ``GRPOTrainer``.
        best_reward: the highest reward that a completion can have, so that no loss is negative.

    Raises:
        InputError: the trainer is of a version of TRL with other names.
    """

    def __init__(self, trainer: Any, best_reward: float = 1.0) -> None:
        for name in ("_prepare_inputs", "_metrics", "_logs", "compute_loss", "num_generations"):
            if not hasattr(trainer, name):
                raise InputError(
                    f"The {type(trainer).__name__} of this version of TRL has no '{name}', which AimMerging needs.",
                    "Use TRL 1.16, or write a loss: AimMerging(memory, loss=..., collator=...).",
                )
        self.trainer = trainer
        self.best_reward = best_reward
        self._step = -1
        self._calls = 0

    def collate(self, examples: Sequence[Any]) -> dict[str, Any]:
        """Return a batch of prompts: the examples as they are, and a tensor by which they are counted."""
        return {_ROWS: list(examples), "prompts": torch.arange(len(examples))}

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss on a batch that :meth:`collate` made; with a gradient unless gradients are off."""
        trainer, step = self.trainer, self.trainer.state.global_step
        self._calls = self._calls + 1 if step == self._step else 0
        self._step = step
        copies = getattr(trainer, "num_generations_eval", None) or trainer.num_generations
        rows = [dict(row) for row in batch[_ROWS] for _ in range(copies)]
        with (
            isolated_random(derive_seed(trainer.args.seed, "memory", step, self._calls)),
            eval_mode(model),
            _apart(trainer),
        ):
            inputs = trainer._prepare_inputs(rows)
            reward = trainer._metrics["eval"]["reward"][-1]
            missed = torch.tensor(self.best_reward - reward, device=batch["prompts"].device)
            if not torch.is_grad_enabled():
                return missed
            surrogate: Tensor = trainer.compute_loss(model, inputs)
            return missed + surrogate - surrogate.detach()


@contextlib.contextmanager
def _apart(trainer: Any) -> Iterator[None]:
    """Let the trainer write completions apart from its own: with the weights as they are now, into logs of their own.

    Weights change between two of its steps, at merges, and vLLM would keep those of the first completions of a step.
    """
    metrics, logs = trainer._metrics, trainer._logs
    trainer._metrics = {**metrics, "eval": defaultdict(list)}
    trainer._logs = {
        name: defaultdict(kept.default_factory) if isinstance(kept, defaultdict) else copy.copy(kept)
        for name, kept in logs.items()
    }
    _load_again(trainer)
    try:
        yield
    finally:
        trainer._metrics, trainer._logs = metrics, logs
        _load_again(trainer)


def _load_again(trainer: Any) -> None:
    """Have vLLM, if it writes the completions, take the weights before the next ones."""
    if hasattr(trainer, "_last_loaded_step"):
        trainer._last_loaded_step = -1
