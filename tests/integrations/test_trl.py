"""The loss that is taken from a trainer; `tests/test_examples.py` runs TRL's trainers with it."""

from __future__ import annotations

from collections import defaultdict, deque
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from merganser import loss_of
from merganser.errors import InputError
from merganser.integrations.trl import RewardLoss


class Rewarded:
    """What the loss needs of ``GRPOTrainer``: completions are random numbers, and rewarded by their nearness to 0."""

    def __init__(self) -> None:
        self.reward_funcs = [abs]
        self.num_generations, self.num_generations_eval = 4, 2
        self.args, self.state = SimpleNamespace(seed=7), SimpleNamespace(global_step=3)
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.model.weight, 1.0)
        self._metrics: dict[str, Any] = {"train": defaultdict(list), "eval": defaultdict(list, {"reward": [0.5]})}
        self._logs: dict[str, Any] = {"prompt": deque(["own"], maxlen=2), "rewards": defaultdict(deque)}
        self._last_loaded_step = self.state.global_step  # vLLM writes, and has the weights of this step
        self.asked: list[list[Any]] = []

    def _prepare_inputs(self, rows: list[Any]) -> dict[str, torch.Tensor]:
        assert not self.model.training
        assert self._last_loaded_step != self.state.global_step  # else vLLM would keep weights from before a merge
        self._last_loaded_step = self.state.global_step
        self._logs["prompt"].extend(row["prompt"] for row in rows)
        self._logs["rewards"]["abs"].append(1.0)
        self.asked.append(rows)
        drawn = torch.rand(len(rows), 1)
        self._metrics["eval"]["reward"].append(1 - drawn.mean().item())
        self._metrics["eval"]["length"].append(1.0)
        return {"x": drawn}

    def compute_loss(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return (model(inputs["x"]) ** 2).mean() - 5


def test_the_reward_that_is_missed_with_the_gradient_of_the_trainer() -> None:
    trainer = Rewarded()
    loss = loss_of(trainer, best_reward=2.0)
    assert isinstance(loss, RewardLoss)
    batch = loss.collate([{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 2}])
    before = torch.get_rng_state()
    trainer.model.train()
    value = loss(trainer.model, batch)
    assert trainer.model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert [row["prompt"] for row in trainer.asked[0]] == ["a", "a", "b", "b"]
    assert trainer._metrics["eval"] == {"reward": [0.5]}
    assert trainer._logs == {"prompt": deque(["own"]), "rewards": {}}
    assert trainer._last_loaded_step != trainer.state.global_step
    value.backward()
    assert trainer.model.weight.grad is not None
    drawn = trainer.model.weight.grad.item() / 2  # of the squares, by hand
    with torch.no_grad():
        again = loss(trainer.model, batch)
    assert not again.requires_grad
    assert again != value  # the second batch of one step is answered with other random numbers
    trainer.state.global_step = 4
    trainer.state.global_step, loss._step = 3, -1
    assert loss(trainer.model, batch).item() == pytest.approx(value.item())
    mean = value.item() - 1.0  # best reward 2, reward 1 - mean
    assert 0 < mean < 1
    assert drawn >= mean**2


def test_any_other_trainer_gives_its_own() -> None:
    trainer = SimpleNamespace(compute_loss=lambda model, inputs: torch.tensor(1.0))
    assert loss_of(trainer) is trainer.compute_loss
    with pytest.raises(InputError, match="A dict has no compute_loss"):
        loss_of({})
    with pytest.raises(InputError, match="this version of TRL has no '_prepare_inputs'"):
        loss_of(SimpleNamespace(reward_funcs=[]))
