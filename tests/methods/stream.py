"""A stream of tasks without training: a method is given each task's weights and deploys what it makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from merganser.methods import Method, TaskContext
from merganser.training.options import TrainingOptions
from merganser.weights import Weights

WIDTH, OUTPUTS = 4, 3


class Regression(nn.Module):
    """Loss: mean over examples of |W x + c - y|^2 / 2."""

    def __init__(self, weights: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, OUTPUTS)
        if weights is not None:
            Weights.of(self).copy_(Weights(dict(weights)))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.layer(x) - y).pow(2).sum(-1).mean() / 2}


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    return {key: torch.stack([item[key] for item in items]) for key in ("x", "y")}


def draw_weights(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "layer.weight": torch.randn(OUTPUTS, WIDTH, generator=generator),
        "layer.bias": torch.randn(OUTPUTS, generator=generator),
    }


def draw_features(seed: int, number: int = 6) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {"x": torch.randn(WIDTH, generator=generator), "y": torch.randn(OUTPUTS, generator=generator), "length": 1}
        for _ in range(number)
    ]


def exact_fisher(weights: Mapping[str, Tensor], features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Mean over examples of squared gradients, written out: the residual is the bias's gradient."""
    residuals = [weights["layer.weight"] @ f["x"] + weights["layer.bias"] - f["y"] for f in features]
    outer = [torch.outer(r, f["x"]) ** 2 for r, f in zip(residuals, features, strict=True)]
    return {
        "layer.weight": torch.stack(outer).mean(0),
        "layer.bias": torch.stack([r**2 for r in residuals]).mean(0),
    }


class Stream:
    """What a run does around a method: starts, rows, keeping the method's state on disk.

    Attributes:
        pretrained: the weights before any task.
        deployed, trained: of each row; row 0 is before any task.
        method: made anew from its files after every task, as if the run had been closed.
    """

    def __init__(self, method: Method[Any], folder: Path, pretrained: Mapping[str, Tensor] | None = None) -> None:
        self.pretrained = Weights(dict(pretrained or draw_weights(0))).snapshot()
        self.deployed = [self.pretrained]
        self.trained = [self.pretrained]
        self.method = method
        self.folder = folder
        self.module = Regression(self.pretrained)

    def context(self, index: int, features: Sequence[dict[str, Any]], **changes: Any) -> TaskContext:
        backbone = SimpleNamespace(module=self.module, collate=collate, device=torch.device("cpu"))
        values: dict[str, Any] = {
            "training": TrainingOptions(batch=4),
            "seed": 10 + index,
            "features": features,
            "steps": 4,
            "deployed": lambda row: self.deployed[row].snapshot(),
            "trained": lambda row: self.trained[row].snapshot(),
            **changes,
        }
        return TaskContext(**{"task": f"task{index}", "index": index, "backbone": backbone, "memory": [], **values})

    def start(self) -> Weights:
        """The weights that the next task starts from."""
        return {"deployed": self.deployed[-1], "trained": self.trained[-1], "pretrained": self.pretrained}[
            self.method.start
        ]

    def learn(self, weights: Mapping[str, Tensor], features: Sequence[dict[str, Any]], **changes: Any) -> Weights:
        """Learn a task whose training ends in these weights; returns what is deployed."""
        index = len(self.deployed)
        current = Weights.of(self.module).copy_(self.start())
        context = self.context(index, features, **changes)
        self.method.begin_task()
        self.method.callbacks(context)
        current.copy_(Weights(dict(weights)))
        self.method.after_task(context)
        self.trained.append(Weights(dict(weights)).snapshot())
        self.deployed.append(current.snapshot())
        folder = self.folder / f"row{index}"
        folder.mkdir()
        self.method.save(folder)
        records, kept = self.method.records, self.method.bytes_kept()
        self.method = type(self.method)(self.method.options)
        self.method.load(folder)
        self.method.records = records
        self.kept = kept
        return self.deployed[-1]
