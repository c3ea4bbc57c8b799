"""A task's surroundings without a run: a bare module in place of a backbone, weights in place of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from merganser.methods import TaskContext
from merganser.training.options import TrainingOptions
from merganser.weights import Weights


class Holder(nn.Module):
    """Parameters with the names of an adapter's factors, or any others; ``|`` stands for a dot."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.tensors = nn.ParameterDict(
            {name.replace(".", "|"): nn.Parameter(t.clone()) for name, t in tensors.items()}
        )

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        return ((name.replace("|", "."), parameter) for name, parameter in self.tensors.items())


def random_weights(seed: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def context(
    module: nn.Module, index: int, rows: Sequence[Mapping[str, Tensor]] = (), lora: bool = True, **changes: Any
) -> TaskContext:
    """A task at a position of a run whose rows (0: before any task) deployed these weights."""

    def deployed(row: int) -> Weights:
        return Weights(rows[row]).snapshot()

    backbone = SimpleNamespace(module=module, options=SimpleNamespace(lora=object() if lora else None))
    values: dict[str, Any] = {
        "task": f"task {index}",
        "index": index,
        "backbone": cast(Any, backbone),
        "memory": (),
        "training": TrainingOptions(),
        "seed": 3,
        "features": (),
        "steps": 10,
        "deployed": deployed,
        "trained": deployed,
    }
    return TaskContext(**{**values, **changes})


def set_to(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Stands for training: the weights become these."""
    Weights.of(module).copy_(Weights(tensors))


def fire(callback: TrainerCallback, event: str, step: int = 0, **given: Any) -> None:
    """What a ``Trainer`` does at a moment of training."""
    getattr(callback, event)(None, TrainerState(global_step=step), TrainerControl(), **given)
