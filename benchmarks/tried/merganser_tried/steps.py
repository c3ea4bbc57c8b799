"""Optimizer steps with another learning rate or another gradient, and losses with other labels in them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import TrainerCallback

from merganser.training.records import TaskRecords
from merganser.training.rehearsal import model_loss

LAST_PART = 4
"""The loss at the end of a task is the mean over the last of so many parts of its steps."""


class RateByLoss(TrainerCallback):
    """Multiplies the learning rate of a step by min(1, sqrt(reference / loss on its new texts)).

    Args:
        reference: loss at the end of earlier tasks (nats); ``None``: nothing is changed.

    Attributes:
        losses: on the new texts of every batch so far; whoever knows them appends them.
    """

    def __init__(self, reference: float | None) -> None:
        self.reference = reference
        self.losses: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.reference is None or not self.losses:
            return
        factor = min(1.0, math.sqrt(self.reference / max(self.losses[-1], 1e-8)))
        for group in kwargs["optimizer"].param_groups:  # the schedule sets it anew after the step
            group["lr"] *= factor

    def at_the_end(self) -> float:
        """Return the mean loss over the last steps."""
        last = self.losses[-max(1, len(self.losses) // LAST_PART) :]
        return sum(last) / len(last)


class FlatGradients(TrainerCallback):
    """Replaces the gradient of every step by that at the weights ``radius`` further uphill.

    Source: Foret et al. 2021, "Sharpness-Aware Minimization for Efficiently Improving Generalization" (arXiv
    2010.01412), equation 3.
    """

    def __init__(self, radius: float, records: TaskRecords) -> None:
        self.radius = radius
        self.records = records
        self._batch: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        def remember(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            if torch.is_grad_enabled() and module.training:
                self._batch = dict(named)

        self._hook = kwargs["model"].register_forward_pre_hook(remember, with_kwargs=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._hook.remove()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        trained = [p for p in model.parameters() if p.grad is not None]
        norm = float(torch.stack([p.grad.norm() for p in trained]).norm())
        if norm == 0:
            return
        uphill = [p.grad * (self.radius / norm) for p in trained]
        batch = self._batch
        with torch.no_grad():
            torch._foreach_add_(trained, uphill)
        model.zero_grad()
        with torch.autocast(trained[0].device.type, torch.bfloat16, enabled=args.bf16):
            loss = model_loss(model, batch)
        loss.backward()
        with torch.no_grad():
            torch._foreach_sub_(trained, uphill)
        if args.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(trained, args.max_grad_norm)


def softened(inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], own: Tensor, weight: float) -> Tensor:
    """Return what the loss changes by where labels of earlier tasks have less weight in the softmax of new texts.

    Args:
        inputs: a batch of an encoder that compares with all labels: ``candidates`` and ``labels``.
        outputs: its ``logits`` (texts x candidates).
        own: rows of the bank that are labels of the new task.
        weight: of the other labels.
    """
    logits = outputs["logits"].float()
    earlier = ~torch.isin(inputs["candidates"], own)
    soft = logits + earlier * math.log(weight)
    return functional.cross_entropy(soft, inputs["labels"]) - functional.cross_entropy(logits, inputs["labels"])
