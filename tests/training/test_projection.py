"""Gradient projection: bases of inputs, and training that earlier inputs do not notice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from merganser.training.options import TrainingOptions
from merganser.training.projection import GradientProjection, extend_bases, extend_basis, trained_layers
from merganser.training.records import TaskRecords
from merganser.training.trainer import TaskHooks, train_task
from merganser.weights import Weights
from tests.training.trainable import Model


class Net(nn.Module):
    """Two layers without biases between tanh, one of them stored transposed; a weight that every input meets."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 8, bias=False)
        self.second = Conv1D(2, 8)
        self.gain = nn.Parameter(torch.ones(8))

    def outputs(self, x: Tensor) -> Tensor:
        return self.second(self.gain * torch.tanh(self.first(x)))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.outputs(x) - y).pow(2).mean()}


def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {key: torch.stack([item[key] for item in items]) for key in ("x", "y")}


def data(directions: int, seed: int) -> list[dict[str, Any]]:
    """Examples whose inputs lie in a subspace."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(directions, 6, generator=generator)
    return [
        {"x": torch.randn(directions, generator=generator) @ basis, "y": torch.ones(2), "length": 1} for _ in range(12)
    ]


OLD, NEW = data(2, 1), data(4, 2)


def train(model: Net, projection: GradientProjection) -> None:
    options = TrainingOptions(steps=6, batch=4, learning_rate=0.05, warmup=0, weight_decay=0.1)
    hooks = TaskHooks([projection])
    train_task(Model(model, collate), NEW, options, seed=1, records=TaskRecords("t"), hooks=hooks)


def test_old_outputs_stay_until_training_is_free() -> None:
    inputs = collate(OLD)["x"]
    for steps in (6, 4, 0):
        model = Net()
        bases = extend_bases(model, {}, OLD, collate, energy=1.0)
        assert {name: tuple(basis.shape) for name, basis in bases.items()} == {
            "first.weight": (6, 2),
            "second.weight": (8, 8),
        }
        # Twelve inputs of the second layer span all of it; a part of it is left free.
        bases["second.weight"] = bases["second.weight"][:, :8]
        projection = GradientProjection(model, bases, steps)
        start = Weights.of(model).snapshot()
        before = model.outputs(inputs).detach()
        train(model, projection)
        reached = projection.reached
        assert reached is not None
        assert torch.equal(reached["gain"], start["gain"])
        at_switch = Net()
        Weights.of(at_switch).copy_(reached)
        torch.testing.assert_close(at_switch.outputs(inputs), before, atol=1e-5, rtol=1e-5)
        moved = float((reached["first.weight"] - start["first.weight"]).abs().max())
        assert (moved > 0.05) == (steps > 0)
        same = all(torch.equal(reached[name], value) for name, value in Weights.of(model).items())
        assert same == (steps == 6)
        if steps < 6:
            assert (model.outputs(inputs) - before).abs().max() > 0.01


def test_a_change_keeps_what_is_orthogonal_to_the_inputs() -> None:
    model = Net()
    basis = torch.eye(6)[:, :2]
    projection = GradientProjection(model, {"first.weight": basis, "second.weight": torch.eye(8)[:, :3]}, 1)
    change = torch.ones(8, 6)
    projection.project_("first.weight", change)
    assert torch.equal(change, torch.tensor([0.0, 0, 1, 1, 1, 1]).expand(8, 6))
    transposed = torch.ones(8, 2)
    projection.project_("second.weight", transposed)
    assert transposed.sum(1).tolist() == [0, 0, 0, 2, 2, 2, 2, 2]
    bias = torch.ones(2)
    projection.project_("second.bias", bias)
    assert bias.tolist() == [0, 0]
    assert list(trained_layers(model)) == ["first.weight", "second.weight"]


def test_a_basis_holds_the_energy_asked_for() -> None:
    # Squared norms 16, 4, 1 along three axes, of 21.
    inputs = torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.0]))
    for energy, directions in ((0.0, 0), (0.7, 1), (16 / 21 + 0.01, 2), (0.95, 2), (0.96, 3), (1.0, 3)):
        basis = extend_basis(None, inputs, energy)
        assert basis.shape == (4, directions)
        torch.testing.assert_close(basis.abs(), torch.eye(4)[:, :directions])


def test_a_basis_grows_only_by_what_it_lacks() -> None:
    first = extend_basis(None, torch.tensor([[3.0, 0, 0], [0, 1.0, 0]]), 1.0)
    assert first.shape == (3, 2)
    torch.testing.assert_close(extend_basis(first, torch.tensor([[1.0, 2.0, 0.0]]), 1.0).abs(), first.abs())
    whole = extend_basis(first, torch.tensor([[1.0, 1.0, 1.0], [5.0, 0.0, 2.0]]), 1.0)
    assert whole.shape == (3, 3)
    torch.testing.assert_close(whole.T @ whole, torch.eye(3))
    assert extend_basis(whole, torch.randn(9, 3), 1.0).shape == (3, 3)
    # Nine tenths of (1, 0, 1 / 4) lie in the basis already.
    assert extend_basis(first, torch.tensor([[1.0, 0.0, 0.25]]), 0.9).shape == (3, 2)


class Embedded(nn.Module):
    """Texts as rows of vectors, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2, bias=False)

    def forward(self, x: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return {"loss": self.layer(x).sum()}


def test_padding_is_no_input() -> None:
    def padded(items: list[dict[str, Any]]) -> dict[str, Tensor]:
        x = torch.zeros(len(items), 2, 3)
        x[:, 0, 0] = 1.0
        x[:, 1, 2] = 7.0  # where the mask is zero
        return {"x": x, "attention_mask": torch.tensor([[1, 0]] * len(items))}

    bases = extend_bases(Embedded(), {}, [{}] * 5, padded, energy=1.0, batch=2)
    torch.testing.assert_close(bases["layer.weight"].abs(), torch.tensor([[1.0], [0.0], [0.0]]))


@pytest.mark.parametrize("training", [True, False])
def test_looking_for_bases_leaves_the_model_alone(training: bool) -> None:
    model = Net().train(training)
    extend_bases(model, {}, OLD, collate, energy=0.9)
    assert model.training is training
    assert not model.first._forward_pre_hooks
