"""The diagonal Fisher against closed forms, and on the three kinds of models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from merganser.errors import InputError
from merganser.models.base import Lengths
from merganser.models.loading import load_backbone
from merganser.models.options import LoraOptions, ModelOptions
from merganser.streams.answers import AnswerSpec
from merganser.streams.task import Example
from merganser.training.fisher import diagonal_fisher
from tests.learner import toys


class Line(nn.Module):
    """Loss: mean of (w x - y)^2 / 2, with dropout; the gradient for one example is (w x - y) x."""

    def __init__(self, w: float = 2.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([w]))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.unread = nn.Parameter(torch.ones(2))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.w * self.dropout(x) - y).pow(2).mean() / 2}


class Classes(nn.Module):
    """Two classes, logits (w x, 0)."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([w]))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = torch.stack([self.w * x, torch.zeros_like(x)], -1)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {key: torch.tensor([item[key] for item in items]) for key in items[0]}


DATA = [{"x": float(i), "y": float(i % 3)} for i in range(1, 7)]


def test_one_example_at_a_time_is_the_mean_of_squared_gradients() -> None:
    model = Line()
    model.train()
    found = diagonal_fisher(model, DATA, collate, batch=1, examples=None, seed=0)
    exact = sum(((2 * item["x"] - item["y"]) * item["x"]) ** 2 for item in DATA) / len(DATA)
    assert list(found) == ["w", "unread"]
    assert found["w"].item() == pytest.approx(exact, rel=1e-6)
    assert found["unread"].tolist() == [0, 0]
    assert model.training
    assert model.w.grad is None


def test_a_batch_counts_by_its_size() -> None:
    # One batch of all six: 6 times the squared mean gradient.
    mean = sum((2 * item["x"] - item["y"]) * item["x"] for item in DATA) / 6
    found = diagonal_fisher(Line(), DATA, collate, batch=6, examples=None, seed=0)
    assert found["w"].item() == pytest.approx(6 * mean**2, rel=1e-6)
    # Equal examples, batches of 4 and 2: (4 * 4 g^2 + 2 * 2 g^2) / 6.
    found = diagonal_fisher(Line(), [DATA[0]] * 6, collate, batch=4, examples=None, seed=0)
    assert found["w"].item() == pytest.approx((16 + 4) / 6 * (2 - 1) ** 2, rel=1e-6)


def test_examples_are_drawn_by_the_seed_without_replacement() -> None:
    def of(seed: int, examples: int | None) -> float:
        return diagonal_fisher(Line(), DATA, collate, batch=1, examples=examples, seed=seed)["w"].item()

    assert of(1, 3) == of(1, 3)
    assert len({of(seed, 3) for seed in range(6)}) > 1
    assert of(1, 99) == pytest.approx(of(2, None), rel=1e-6)


def test_the_true_fisher_draws_the_labels_from_the_model() -> None:
    # d log p / dw is (1 - p) x or -p x; in expectation p (1 - p) x^2, whatever the labels of the data.
    data = [{"x": 1.0, "labels": 0}] * 4000
    p = 1 / (1 + math.exp(-1.0))
    found = diagonal_fisher(Classes(1.0), data, collate, batch=1, examples=1500, seed=3, kind="true")
    assert found["w"].item() == pytest.approx(p * (1 - p), rel=0.1)
    empirical = diagonal_fisher(Classes(1.0), data, collate, batch=1, examples=10, seed=3)
    assert empirical["w"].item() == pytest.approx((1 - p) ** 2, rel=1e-5)


@pytest.mark.parametrize("kind", ["matcher", "seq2seq", "causal"])
def test_every_kind_of_model_has_both_kinds_of_fisher(kind: Any) -> None:
    options = ModelOptions(name=str(toys.model_folder(kind)), kind=kind, precision="fp32", lora=LoraOptions(r=2))
    backbone = load_backbone(options, Lengths(32, 8), seed=1)
    spec = AnswerSpec(labels=("good", "bad"))
    features = backbone.features([Example(r["input"], r["output"], "") for r in toys.rows("mood", 6)], spec)
    fishers = [
        diagonal_fisher(backbone.module, features, backbone.collate, batch=2, examples=4, seed=5, kind=which)
        for which in ("empirical", "true", "true")
    ]
    for fisher in fishers:
        assert all(bool((value >= 0).all()) for value in fisher.values())
        # B starts at zero, so that nothing depends on A yet.
        assert {name.split(".")[-3] for name, value in fisher.items() if value.any()} == {"lora_B"}
    assert all(torch.equal(fishers[1][name], fishers[2][name]) for name in fishers[1])
    assert any(not torch.equal(fishers[0][name], fishers[1][name]) for name in fishers[1])


def test_nothing_to_estimate_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no examples"):
        diagonal_fisher(Line(), [], collate, batch=1, examples=None, seed=0)
    with pytest.raises(InputError, match="Use 1 or more"):
        diagonal_fisher(Line(), DATA, collate, batch=0, examples=None, seed=0)
