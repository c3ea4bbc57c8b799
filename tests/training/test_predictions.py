"""Which labels a matcher's predictions are over, apart for the new task and for earlier ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from merganser.models.base import IGNORE_INDEX
from merganser.streams.answers import AnswerSpec
from merganser.training.trm.predictions import MatcherPredictor, Predictions

SCORES = torch.tensor([[2.0, 0.5, -1.0, 0.3], [0.1, 1.0, 0.4, -0.7], [0.0, 0.2, 3.0, 1.0]], dtype=torch.float64)
"""Of three inputs, for each of four labels; the label of row i of the bank is called str(i)."""


class Table(nn.Module):
    """Looks the logits up instead of comparing vectors."""

    def forward(self, candidates: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        assert labels is None
        found = SCORES.gather(1, candidates.clamp(min=0))
        return {"logits": found.masked_fill(candidates == IGNORE_INDEX, float("-inf"))}


def predicted(own: list[int], candidates: list[int], answers: list[int], earlier: list[str]) -> Predictions:
    """Of the three inputs, whose answers are rows of the bank."""
    backbone: Any = SimpleNamespace(
        module=Table(), device=torch.device("cpu"), label_rows=lambda spec: [int(label) for label in spec.labels]
    )
    features = [{"candidates": candidates, "label": candidates.index(row)} for row in own]
    specs = {"before": AnswerSpec(labels=tuple(earlier))} if earlier else {}
    places = [candidates.index(row) for row in answers]
    batch = {"candidates": torch.tensor([candidates] * 3), "labels": torch.tensor(places)}
    return MatcherPredictor(backbone, specs, features).predict(batch)


def test_the_own_loss_is_among_the_tasks_own_labels() -> None:
    found = predicted(own=[2, 3], candidates=[0, 1, 2, 3], answers=[2, 3, 3], earlier=["0", "1"])
    torch.testing.assert_close(found.loss, functional.cross_entropy(SCORES, torch.tensor([2, 3, 3])))
    torch.testing.assert_close(found.own_loss, functional.cross_entropy(SCORES[:, 2:], torch.tensor([0, 1, 1])))
    torch.testing.assert_close(found.earlier, SCORES[:, :2])


@pytest.mark.parametrize("candidates", [[0, 1, 2, 3], [2, 3], [2, 3, IGNORE_INDEX]])
def test_what_is_seen_has_every_label_once(candidates: list[int]) -> None:
    """Whether the loss reads all labels or only the task's own, or a shorter row was filled up."""
    found = predicted(own=[2, 3], candidates=candidates, answers=[2, 3, 3], earlier=["0", "1"])
    sought = SCORES.softmax(1)[:, [2, 3, 0, 1]]
    shares = found.seen.softmax(1)
    torch.testing.assert_close(shares[shares > 0].view(3, 4), sought)


def test_a_task_with_the_labels_of_an_earlier_one_is_aligned_with_all_of_them() -> None:
    found = predicted(own=[0, 1], candidates=[0, 1], answers=[0, 1, 0], earlier=["0", "1"])
    torch.testing.assert_close(found.own_loss, found.loss)
    assert found.own_loss > 0
    torch.testing.assert_close(found.seen.softmax(1)[:, 2:], SCORES[:, :2].softmax(1))


def test_before_the_first_task_there_is_nothing_to_keep() -> None:
    found = predicted(own=[0, 1], candidates=[0, 1], answers=[0, 1, 0], earlier=[])
    torch.testing.assert_close(found.own_loss, found.loss)
    assert found.earlier.numel() == found.seen.numel() == 0
