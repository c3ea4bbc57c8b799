"""Batches from the memory, probes and rehearsal steps."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from merganser.errors import InputError
from merganser.training.determinism import derive_seed, isolated_random
from merganser.training.distributed import SplitBatch
from merganser.training.rehearsal import MemoryBatches, check_batch, measure_loss, model_loss, rehearse_step


@given(size=st.integers(1, 30), batch=st.integers(1, 30), seed=st.integers(0, 9))
def test_rehearsal_walks_through_everything_evenly(size: int, batch: int, seed: int) -> None:
    if batch > size:
        batch = size
    batches = MemoryBatches(list(range(size)), batch, seed)
    seen: Counter[int] = Counter()
    for draw in range(2 * size):
        found = batches.rehearsal(draw)
        assert len(found) == batch
        seen.update(found)
    assert max(seen.values()) - min(seen.values()) == 0  # 2 * size * batch draws are 2 * batch whole passes
    assert set(seen) == set(range(size))


def test_draws_depend_on_seed_and_counter_alone() -> None:
    memory = list(range(50))
    a, b = MemoryBatches(memory, 8, 3), MemoryBatches(memory, 8, 3)
    b.rehearsal(0)
    b.probe(9)
    assert a.rehearsal(5) == b.rehearsal(5)
    assert a.probe(7) == b.probe(7)
    assert a.probe(7) != a.probe(8)
    assert len(set(a.probe(7))) == 8
    assert MemoryBatches(memory, 8, 4).probe(7) != a.probe(7)
    assert MemoryBatches(memory, 8, 4).rehearsal(0) != a.rehearsal(0)


def test_random_draws_are_batches_of_their_own() -> None:
    batches = MemoryBatches(list(range(12)), 4, 3, "iid")
    drawn = [batches.rehearsal(draw) for draw in range(6)]
    assert drawn == [batches.rehearsal(draw) for draw in range(6)]
    assert all(len(set(batch)) == 4 for batch in drawn)
    assert len(set().union(*drawn[:3])) < 12  # three batches of a walk would show every example


def test_batches_larger_than_the_memory() -> None:
    assert check_batch("method.batch", None, 16, 5) == 5
    assert check_batch("method.batch", None, 4, 5) == 4
    assert check_batch("method.batch", 5, 16, 5) == 5
    with pytest.raises(InputError, match=r"The option method.batch is 6, but the memory holds 5 examples"):
        check_batch("method.batch", 6, 16, 5)
    with pytest.raises(InputError, match="empty"):
        MemoryBatches([], 1, 0)
    with pytest.raises(InputError, match="holds 2"):
        MemoryBatches([1, 2], 3, 0)


class Squared(nn.Module):
    """Loss (w * drop(x) - y)^2, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0]))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ((self.w * self.dropout(x) - y) ** 2).mean()}


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = Squared().train()
    batch = {"x": torch.tensor([2.0]), "y": torch.tensor([5.0])}
    assert measure_loss(model, batch) == 9.0  # dropout off
    assert model.training
    assert model.w.grad is None
    with isolated_random(0):
        assert {measure_loss(model, batch, dropout=True) for _ in range(20)} == {25.0, 1.0}  # 0 or 2 * 2
    model.eval()
    measure_loss(model, batch, dropout=True)
    assert not model.training


def test_a_rehearsal_step_is_one_clipped_optimizer_step() -> None:
    model = Squared()
    model.dropout.p = 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = {"x": torch.tensor([1.0]), "y": torch.tensor([3.0])}
    assert rehearse_step(model, optimizer, batch, clip=0.0) == 4.0
    assert model.w.item() == pytest.approx(1.4)  # gradient 2 * (1 - 3) = -4
    assert model.w.grad is None
    rehearse_step(model, optimizer, batch, clip=1.0)
    assert model.w.item() == pytest.approx(1.5)  # gradient cut to -1


def test_the_loss_is_divided_before_the_gradient_is_clipped() -> None:
    model = Squared()
    model.dropout.p = 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = {"x": torch.tensor([1.0]), "y": torch.tensor([2.0])}
    assert rehearse_step(model, optimizer, batch, 1.0, model_loss, 0.25) == 0.25
    assert model.w.item() == pytest.approx(1.05)  # gradient 2 * (1 - 2) / 4 = -0.5, below the norm of 1


class Tokens(nn.Module):
    """Mean over the labels that count of (w - label)^2."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.0))

    def forward(self, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ((self.w - labels[labels != -100]) ** 2).mean()}


def labels(rows: list[list[float]]) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    return {"labels": torch.tensor([row + [-100.0] * (width - len(row)) for row in rows])}


def test_a_batch_in_parts_has_the_loss_and_the_gradient_of_the_whole() -> None:
    rows = [[1.0], [2.0, 3.0, 4.0], [5.0, 6.0]]
    for at_most, sizes in ((None, [3]), (2, [2, 1]), (1, [1, 1, 1])):
        split = SplitBatch.of(rows, labels, at_most=at_most)
        assert [len(part.batch["labels"]) for part in split.parts] == sizes
        model = Tokens()
        # Squares of 1 to 6: 91 over 6 labels, gradient -2 * 21 / 6.
        losses = [measure_loss(model, part.batch) for part in split.parts]
        assert split.mean(losses) == pytest.approx(91 / 6)
        seen: list[float] = []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        observe = functools.partial(lambda model, seen: seen.extend((model.w.item(), model.w.grad.item())), model, seen)
        assert rehearse_step(model, optimizer, split, 0.0, model_loss, 1.0, observe) == pytest.approx(91 / 6)
        assert seen == pytest.approx([0.7, -7.0])  # after the step, with its gradient


def test_seeds_are_derived_by_name() -> None:
    assert derive_seed(0, "task", 1) == derive_seed(0, "task", 1)
    assert len({derive_seed(s, "task", i) for s in range(20) for i in range(20)}) == 400
    assert derive_seed(0, "task", 12) != derive_seed(0, "task", 1, 2)


def test_isolated_random_puts_the_generators_back() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with isolated_random(7):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with isolated_random(7):
        assert torch.equal(torch.rand(3), inside)
