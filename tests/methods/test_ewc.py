"""EWC: the penalty by hand, its minimum, and how information adds up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from merganser.methods.ewc import Ewc, EwcOptions
from merganser.training.fisher import diagonal_fisher
from merganser.training.options import TrainingOptions
from merganser.training.records import TaskRecords
from merganser.training.trainer import TaskHooks, train_task
from merganser.weights import Weights
from tests.methods.plain import Holder, context, random_weights, set_to
from tests.training.trainable import Model


class Bowl(nn.Module):
    """Loss: mean over the examples of (w - c)^2 / 2, whose curvature is 1 in every direction."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def forward(self, c: Tensor) -> dict[str, Tensor]:
        return {"loss": 0.5 * (self.w - c).square().sum(-1).mean()}


def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {"c": torch.tensor([item["c"] for item in items])}


def given(module: nn.Module, features: list[dict[str, Any]], index: int = 1) -> Any:
    made = context(module, index, features=features)
    made.backbone.collate = collate  # type: ignore[method-assign]
    return made


def test_the_penalty_by_hand() -> None:
    shapes = {"a": (2, 3), "b": (4,)}
    fisher = {name: value.abs() for name, value in random_weights(0, shapes).items()}
    start, now = random_weights(1, shapes), random_weights(2, shapes)
    module = Holder(start)
    method = Ewc(EwcOptions(weight=3.0))
    assert method.penalty(context(module, 1)) is None
    method.fisher = Weights(fisher)
    penalty = method.penalty(context(module, 2))
    assert penalty is not None
    assert penalty(module, 0, {}, {}).item() == 0
    set_to(module, now)
    loss = penalty(module, 0, {}, {})
    expected = sum(float((fisher[n] * (now[n] - start[n]) ** 2).sum()) for n in shapes) * 3 / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, 3.0 * fisher[name] * (now[name] - start[name]))


@pytest.mark.parametrize(("weight", "place"), [(0.0, [2.0, -1.0]), (3.0, [0.5, -1.0]), (1e9, [0.0, -1.0])])
def test_training_ends_at_the_minimum_in_closed_form(weight: float, place: list[float]) -> None:
    """(c + weight F theta*) / (1 + weight F) with theta* = 0 and F = (1, 0)."""
    module, method = Bowl(), Ewc(EwcOptions(weight=weight))
    method.fisher = Weights({"w": torch.tensor([1.0, 0.0])})
    features = [{"c": [2.0, -1.0], "length": 1}] * 4
    task = given(module, features, 2)
    options = TrainingOptions(batch=4, steps=120, learning_rate=0.2, schedule="linear", warmup=0, clip=0)
    hooks = TaskHooks(penalty=method.penalty(task))
    train_task(Model(module, collate), features, options, seed=0, records=TaskRecords("t"), hooks=hooks)
    torch.testing.assert_close(module.w.detach(), torch.tensor(place), atol=2e-2, rtol=0)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_information_adds_up_and_survives(decay: float, tmp_path: Path) -> None:
    module = Bowl()
    tasks = [[{"c": [1.0, 0.0]}, {"c": [3.0, 0.0]}], [{"c": [0.0, 2.0]}]]
    method = Ewc(EwcOptions(decay=decay))
    found = []
    for index, features in enumerate(tasks, 1):
        method.begin_task()
        method.after_task(given(module, features, index))
        found.append(diagonal_fisher(module, features, collate, batch=1, examples=None, seed=0)["w"])
        method.save(tmp_path)
        assert method.bytes_kept() == {"Fisher information": 8}
        method = Ewc(EwcOptions(decay=decay))
        method.load(tmp_path)
    assert found[0].tolist() == [5.0, 0.0]  # mean of 1 and 9
    assert method.fisher is not None
    torch.testing.assert_close(method.fisher["w"], decay * found[0] + found[1])
