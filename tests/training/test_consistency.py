"""Consistency with the answers that a model gave when a task began: by hand, for labels and for tokens."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from merganser.methods.replay import Replay, ReplayOptions
from merganser.streams.answers import AnswerSpec
from merganser.streams.task import Example
from merganser.training.consistency import SMALLEST, Consistency, coarsened, divergence, keep
from tests.methods.test_lwf import backbone_of, context_of
from tests.methods.test_lwf import divergence as whole
from tests.models.conftest import disturb

MOOD, TRUTH = AnswerSpec(("good", "bad")), AnswerSpec(("right", "wrong", "odd"))
TEXTS = [
    (Example("the team won the match", "good"), MOOD),
    (Example("two and two are five", "wrong"), TRUTH),
    (Example("rates fell", "bad"), MOOD),
]


def memory_of(backbone: Any) -> list[dict[str, Any]]:
    return [backbone.features([example], spec)[0] for example, spec in TEXTS]


def logits_of(backbone: Any, feature: dict[str, Any]) -> torch.Tensor:
    """One text alone, without padding of others: its label's choices, or those of every token that it answers."""
    batch = backbone.collate([feature])
    with torch.no_grad():
        logits = copy.deepcopy(backbone.module).eval()(**batch)["logits"]
    if backbone.kind == "matcher":
        return logits
    shift = int(backbone.kind == "causal")
    width = logits.shape[1]
    return logits[:, : width - shift][batch["labels"][:, shift:] != -100]


def test_all_choices_are_the_divergence_of_whole_distributions() -> None:
    old, new = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0)).unbind()
    assert divergence(new, keep(old)).item() == pytest.approx(whole(new, old, 2.0), rel=1e-4)
    assert divergence(old, keep(old)).item() == pytest.approx(0, abs=1e-6)


def test_choices_that_are_not_kept_count_together() -> None:
    old = torch.log(torch.tensor([[0.5, 0.3, 0.1, 0.1]])) * 2  # the temperature is 2
    new = torch.log(torch.tensor([[0.4, 0.2, 0.3, 0.1]])) * 2
    kept = keep(old, most=2)
    assert kept.choices.tolist() == [[0, 1]]
    assert kept.log_probabilities.exp()[0].tolist() == pytest.approx([0.5, 0.3, 0.2])
    expected = 0.5 * math.log(0.5 / 0.4) + 0.3 * math.log(0.3 / 0.2) + 0.2 * math.log(0.2 / 0.4)
    assert divergence(new, kept).item() == pytest.approx(4 * expected, rel=1e-4)
    assert divergence(new, kept).item() < whole(new, old, 2.0) + 1e-6


def test_impossible_choices_and_certain_answers_are_finite() -> None:
    old = torch.tensor([[3.0, -math.inf, -math.inf]])
    assert coarsened(old, torch.tensor([[0]]))[0].exp().tolist() == pytest.approx([1, SMALLEST])
    new = torch.tensor([[0.5, -math.inf, -math.inf]], requires_grad=True)
    divergence(new, keep(old)).backward()
    assert new.grad is not None
    assert bool(torch.isfinite(new.grad).all())


@pytest.mark.parametrize("kind", ["matcher", "seq2seq", "causal"])
def test_the_mean_over_the_answers_of_a_batch(kind: str) -> None:
    backbone = backbone_of(kind)
    disturb(backbone, seed=1, size=0.05)
    memory = memory_of(backbone)
    before = [logits_of(backbone, feature) for feature in memory]
    consistency = Consistency(backbone, memory)
    disturb(backbone, seed=2, size=0.05)
    after = [logits_of(backbone, feature) for feature in memory]
    chosen = [2, 0, 1]  # in another order than they were kept
    batch = backbone.collate([memory[i] for i in chosen])
    held = consistency.of([memory[i] for i in chosen])
    assert held is not None
    found = consistency.divergence(backbone.module.eval()(**batch), batch, held)
    sizes = [len(before[i]) for i in chosen]
    exact = sum(n * whole(after[i], before[i], 2.0) for n, i in zip(sizes, chosen, strict=True)) / sum(sizes)
    if kind == "matcher":  # all labels are kept
        assert found.item() == pytest.approx(exact, rel=1e-3)
    assert 0 < found.item() <= exact * 1.001
    found.backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in backbone.trainable().values())


def test_answers_are_kept_without_dropout_and_random_numbers() -> None:
    backbone = backbone_of("matcher")  # its adapter has dropout
    memory = memory_of(backbone)
    state = torch.get_rng_state()
    backbone.module.train()
    first, second = Consistency(backbone, memory).of(memory), Consistency(backbone, memory).of(memory)
    assert first is not None
    assert second is not None
    for left, right in zip(first, second, strict=True):
        assert torch.equal(left.log_probabilities, right.log_probabilities)
    assert torch.equal(torch.get_rng_state(), state)
    assert backbone.module.training


def test_preferences_are_left_to_their_own_loss() -> None:
    backbone = backbone_of("causal")
    memory = [*memory_of(backbone), {"dpo_beta": 0.1}]
    consistency = Consistency(backbone, memory)
    assert consistency.of(memory[-1:]) is None
    assert consistency.of(memory[:1]) is not None


def test_replay_adds_it_with_its_weight() -> None:
    backbone = backbone_of("matcher", lora=False)
    backbone.module.eval()
    memory = memory_of(backbone)
    given = {"memory": memory, "memory_groups": [("mood", ""), ("truth", ""), ("mood", "")]}

    def losses(weight: float) -> float:
        options = ReplayOptions(batch=3, consistency=weight, weight=0.5)
        penalty = Replay(options).penalty(context_of(backbone, **given))
        assert penalty is not None
        with torch.no_grad():
            values = {name: p.clone() for name, p in backbone.trainable().items()}
            disturb(backbone, seed=3, size=0.05)
            found = penalty(backbone.module, 0, {}, {}).item()
            for name, p in backbone.trainable().items():
                p.copy_(values[name])
        return found

    none, one, two = losses(0.0), losses(1.0), losses(2.0)
    assert one > none
    assert two - one == pytest.approx(one - none, rel=1e-3)


def test_the_model_never_sees_the_answers() -> None:
    """The entry that holds them is taken out of the batch."""
    backbone = backbone_of("matcher")
    memory = memory_of(backbone)
    seen: list[set[str]] = []

    class Spy(nn.Module):
        def forward(self, **batch: Any) -> Any:
            seen.append(set(batch))
            return backbone.module(**batch)

    penalty = Replay(ReplayOptions(batch=2, consistency=1.0)).penalty(context_of(backbone, memory=memory))
    assert penalty is not None
    penalty(Spy(), 0, {}, {}).backward()
    assert seen == [{"input_ids", "attention_mask", "candidates", "labels"}]
