"""One task on the Trainer: order, seeds, penalty, accumulation, non-finite losses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from merganser.errors import RunError
from merganser.training import trainer
from merganser.training.data import EpochOrder
from merganser.training.options import TrainingOptions
from merganser.training.records import TaskRecords
from merganser.training.trainer import TaskHooks, planned_steps, train_task
from tests.training.trainable import Model


class Line(nn.Module):
    """Loss (w x - y)^2 with dropout, averaged over the batch; remembers which examples came."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.0]))
        self.dropout = nn.Dropout(dropout)
        self.seen: list[list[float]] = []

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        self.seen.append(x.tolist())
        return {"loss": ((self.w * self.dropout(x) - y) ** 2).mean()}


def features(number: int, target: float = 1.0) -> list[dict[str, Any]]:
    return [{"x": float(i), "y": target, "length": 1 + i % 7} for i in range(number)]


def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {key: torch.tensor([item[key] for item in items]) for key in ("x", "y")}


def train(
    model: nn.Module, data: list[dict[str, Any]], seed: int = 1, penalty: Any = None, **options: Any
) -> TaskRecords:
    given = {"epochs": 2, "batch": 4, "learning_rate": 0.01, "warmup": 0.0, **options}
    records, hooks = TaskRecords("t"), TaskHooks(penalty=penalty)
    train_task(Model(model, collate), data, TrainingOptions(**given), seed=seed, records=records, hooks=hooks)
    return records


def losses(records: TaskRecords) -> list[float | None]:
    return [signal.loss for signal in records.signals]


def test_order_depends_on_seed_and_epoch_alone_and_groups_lengths() -> None:
    lengths = [1 + i % 50 for i in range(400)]
    order = EpochOrder(lengths, 8, 3)
    first = list(order)
    assert sorted(first) == list(range(400))
    assert list(order) == first
    torch.manual_seed(99)
    assert list(EpochOrder(lengths, 8, 3)) == first
    order.set_epoch(1)
    assert list(order) != first
    assert list(EpochOrder(lengths, 8, 4)) != first
    batches = [[lengths[i] for i in first[k : k + 8]] for k in range(0, 400, 8)]
    assert sum(max(b) - min(b) for b in batches) / len(batches) < 10  # a random batch of 8 would span about 40
    plain = list(EpochOrder([0] * 40, 8, 3))
    assert sorted(plain) == list(range(40))
    assert plain != list(range(40))


def test_epochs_are_shuffled_differently_inside_the_trainer() -> None:
    model = Line()
    train(model, features(12))
    epochs = [[x for batch in part for x in batch] for part in (model.seen[:3], model.seen[3:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == [float(i) for i in range(12)]
    assert epochs[0] != epochs[1]


def test_same_seed_same_weights_other_seed_others() -> None:
    results = []
    for seed in (1, 1, 2):
        model = Line(dropout=0.5)
        torch.manual_seed(len(results))  # what happened before does not matter
        train(model, features(16), seed=seed)
        results.append(model.w.item())
    assert results[0] == results[1] != results[2]


def test_the_callers_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    train(Line(0.5), features(8))
    assert torch.equal(torch.rand(2), expected)


def test_there_is_one_record_per_optimizer_step() -> None:
    records, options = TaskRecords("t"), TrainingOptions(epochs=3, batch=4, warmup=0.0)
    outcome = train_task(Model(Line(), collate), features(20), options, seed=0, records=records)
    assert outcome.steps == len(records.signals) == planned_steps(20, options) == 15
    assert [signal.step for signal in records.signals] == list(range(1, 16))
    assert outcome.examples == 60
    assert records.signals[0].loss == pytest.approx(1.0)  # w = 0: (0 - 1)^2
    rates = [signal.learning_rate for signal in records.signals]
    assert rates[0] == pytest.approx(3e-4)
    assert rates == sorted(rates, reverse=True)


def test_accumulation_equals_one_large_batch() -> None:
    data = [{"x": 1.0 + i, "y": 1.0, "length": 1} for i in range(8)]
    whole, parts = Line(), Line()
    a = train(whole, data, epochs=1, batch=8)
    b = train(parts, data, epochs=1, batch=2, accumulation=4)
    assert len(a.signals) == len(b.signals) == 1
    assert parts.w.item() == pytest.approx(whole.w.item(), abs=1e-7)
    assert losses(b) == pytest.approx(losses(a))
    assert planned_steps(8, TrainingOptions(epochs=1, batch=2, accumulation=4)) == 1


class Words(nn.Module):
    """Mean of (w - label)^2 over the labels that count. Like T5 it takes any keyword and heeds none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.0]))

    def forward(self, labels: Tensor, **ignored: Any) -> dict[str, Tensor]:
        counts = labels != -100
        return {"loss": ((self.w - labels)[counts] ** 2).mean()}


def test_accumulated_batches_count_by_their_labels_whatever_the_models_signature_says() -> None:
    data = [{"labels": [1, 5, 2][: 1 + i % 3] + [-100] * (2 - i % 3), "length": 1 + i % 3} for i in range(8)]

    def stacked(items: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {"labels": torch.tensor([item["labels"] for item in items])}

    found = []
    for batch, accumulation in ((8, 1), (3, 3)):
        options = TrainingOptions(epochs=2, batch=batch, accumulation=accumulation, warmup=0.0, clip=0.5)
        model = Words()
        records = TaskRecords("t")
        train_task(Model(model, stacked), data, options, seed=1, records=records)
        found.append((model.w.item(), *losses(records)))
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert found[0][1] == pytest.approx((8 * 1 + 5 * 25 + 2 * 4) / 15)  # every label counts the same


def test_the_mean_of_batches_counts_every_batch_the_same() -> None:
    """Batches of 2, 2 and 1 labels in one optimizer step."""
    data = [{"labels": [1, 5] if i == 0 else [2, -100], "length": 1} for i in range(5)]
    options = TrainingOptions(steps=1, batch=2, accumulation=3, warmup=0.0, loss_mean="batches", group_by_length=False)
    records = TaskRecords("t")

    def stacked(items: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {"labels": torch.tensor([item["labels"] for item in items])}

    train_task(Model(Words(), stacked), data, options, seed=1, records=records)
    order = list(EpochOrder([0] * 5, 6, 1))
    batches = [
        [square for i in order[start : start + 2] for square in ([1, 25] if i == 0 else [4])] for start in (0, 2, 4)
    ]
    assert losses(records) == pytest.approx([sum(sum(squares) / len(squares) for squares in batches) / 3])


def test_a_warm_up_as_long_as_the_task_is_a_tenth_of_it() -> None:
    def rates(steps: int, warmup: float) -> list[float]:
        signals = train(Line(), features(8), steps=steps, warmup=warmup, learning_rate=0.5).signals
        return [signal.learning_rate or 0.0 for signal in signals]

    assert max(rates(10, 50)) == 0.5
    assert rates(10, 50) == rates(10, 1)
    assert rates(10, 9) == [*(pytest.approx(0.5 * i / 9) for i in range(10))]  # reaches it with the last step
    assert rates(1, 0.06) == [0.5]  # a share of one step is that step


def test_a_penalty_is_part_of_the_loss() -> None:
    pulled, steps = Line(), []

    def penalty(model: nn.Module, step: int, inputs: Any, outputs: Any) -> Tensor:
        steps.append(step)
        torch.testing.assert_close(outputs["loss"], model(**inputs)["loss"])
        return 100.0 * (model.w + 3.0).pow(2).sum()

    records = train(pulled, features(8), penalty=penalty, learning_rate=0.1, epochs=50)
    assert records.signals[0].loss == pytest.approx(901.0)
    assert pulled.w.item() < -2
    assert steps[:3] == [0, 1, 2]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_task(bad: float) -> None:
    data = features(8)
    data[3]["y"] = bad
    with pytest.raises(RunError, match="The training loss of task 't' became"):
        train(Line(), data)


def test_steps_instead_of_epochs() -> None:
    assert len(train(Line(), features(8), steps=7).signals) == 7


def test_options_are_checked() -> None:
    with pytest.raises(ValidationError, match="whole steps"):
        TrainingOptions(warmup=1.5)
    with pytest.raises(ValidationError):
        TrainingOptions(batch=0)


def test_one_process_trains_on_one_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "model_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    arguments = trainer.training_arguments(TrainingOptions(), folder=str(tmp_path), precision="fp32", seed=0)
    assert arguments.n_gpu <= 1
    assert arguments.train_batch_size == TrainingOptions().batch
    assert arguments.dataloader_pin_memory


def test_the_state_of_an_8bit_optimizer_goes_through_a_checkpoint() -> None:
    from bitsandbytes.optim import AdamW8bit

    from merganser.training.checkpoint import load_optimizer_state, optimizer_state

    def step(weight: nn.Parameter, optimizer: Any) -> None:
        (weight.sin() ** 2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(64, 128))
    optimizer = AdamW8bit([weight], lr=0.01)
    step(weight, optimizer)
    values, tensors = optimizer_state(optimizer)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.uint8, torch.float32}
    again = nn.Parameter(weight.detach().clone())
    restored = AdamW8bit([again], lr=0.5)
    load_optimizer_state(restored, json.loads(json.dumps(values)), {k: v.clone() for k, v in tensors.items()})
    for _ in range(2):
        step(weight, optimizer)
        step(again, restored)
    assert torch.equal(weight, again)
