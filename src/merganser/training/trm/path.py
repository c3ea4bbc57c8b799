"""Points of a task's trajectory, copied while it is trained."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from merganser.weights import Weights


def path_steps(steps: int, number: int) -> list[int]:
    """Return the steps after which ``number`` points are taken, evenly between start and end: 1/3 and 2/3 for two."""
    return [round(steps * index / (number + 1)) for index in range(1, number + 1)]


class TrajectoryPoints(TrainerCallback):
    """Keeps copies of the trained weights at some steps, and the direction of the last optimizer step.

    Args:
        weights: the trained weights, sharing the model's memory.
        number: points to keep, as :func:`path_steps` places them.
        last_step: keep Adam's direction at the end of the task, too.

    Attributes:
        points: step -> weights after it.
        direction: Adam's direction after the last step, per weight: first moment / root of the second, negative.
    """

    def __init__(self, weights: Weights, number: int, last_step: bool = False) -> None:
        self.weights = weights
        self.number = number
        self.last_step = last_step
        self.points: dict[int, Weights] = {}
        self.direction: Weights | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step in path_steps(state.max_steps, self.number):
            self.points[state.global_step] = self.weights.snapshot()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.last_step:
            self.direction = adam_direction(kwargs["model"], kwargs["optimizer"])

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Return the points so far, by ``step/name``."""
        return {f"{step}/{name}": tensor for step, point in self.points.items() for name, tensor in point.items()}

    def load_state_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore :meth:`state_tensors`."""
        points: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            step, _, name = key.partition("/")
            points.setdefault(int(step), {})[name] = tensor.to(self.weights[name])
        self.points = {step: Weights({n: points[step][n] for n in self.weights}).snapshot() for step in sorted(points)}


def adam_direction(model: torch.nn.Module, optimizer: torch.optim.Optimizer, epsilon: float = 1e-8) -> Weights:
    """Return the direction of the last step of Adam (Kingma and Ba 2015, arXiv 1412.6980), without its learning rate.

    Bias corrections of the moments are omitted: they are one factor for all weights. A weight without
    moments (it never had a gradient) has direction zero.
    """
    directions = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            moments = optimizer.state.get(parameter, {})
            if "exp_avg" in moments:
                directions[name] = -moments["exp_avg"] / (moments["exp_avg_sq"].sqrt() + epsilon)
            else:
                directions[name] = torch.zeros_like(parameter)
    return Weights(directions)
