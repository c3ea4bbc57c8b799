"""LwF: the divergence by hand, for labels and for tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from merganser import Learner
from merganser.methods import TaskContext
from merganser.methods.lwf import Lwf, LwfOptions
from merganser.models.base import Backbone, Lengths
from merganser.models.loading import load_backbone
from merganser.models.options import LoraOptions, ModelOptions
from merganser.streams.answers import AnswerSpec, CandidatePolicy
from merganser.streams.task import Example
from merganser.training.distillation import distillation
from tests.learner import toys
from tests.learner.test_learner import sections, task
from tests.methods import plain
from tests.models.conftest import disturb

OLD = {"mood": AnswerSpec(("good", "bad")), "truth": AnswerSpec(("right", "wrong", "good"))}
NEW = AnswerSpec(("sport", "business"))
EXAMPLES = [Example("the team won the match", "sport"), Example("the bank cut its rates", "business")]


def backbone_of(kind: str, lora: bool = True) -> Backbone:
    asked = ModelOptions(
        name=str(toys.model_folder(kind)),
        kind=kind,  # type: ignore[arg-type]
        lora=LoraOptions(r=2, dropout=0.5) if lora else None,
        precision="fp32",
    )
    return load_backbone(asked, Lengths(16, 8), 0)


def context_of(backbone: Backbone, **changes: Any) -> TaskContext:
    values = {"spec": NEW, "earlier": OLD} | changes
    return plain.context(backbone.module, 3, task="topic", backbone=backbone, **values)


def divergence(new: torch.Tensor, old: torch.Tensor, temperature: float) -> float:
    """T^2 sum p log(p / q), row by row, in double precision."""
    total = 0.0
    for a, b in zip(new.double(), old.double(), strict=True):
        p, q = (b / temperature).softmax(0), (a / temperature).softmax(0)
        total += float((p * (p / q).log()).sum())
    return temperature**2 * total / len(new)


def test_distillation_by_hand() -> None:
    new, old = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).unbind()
    for temperature in (1.0, 2.0):
        assert distillation(new, old, temperature).item() == pytest.approx(divergence(new, old, temperature), rel=1e-4)
    assert distillation(old, old + 3.0, 2.0).item() == pytest.approx(0, abs=1e-6)
    # By hand: p = (3/4, 1/4), q = (1/2, 1/2) at T = 1.
    expected = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    assert distillation(torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]).log(), 1.0).item() == pytest.approx(
        float(expected)
    )


def test_the_first_task_has_nothing_to_keep() -> None:
    assert Lwf(LwfOptions()).penalty(context_of(backbone_of("matcher"), earlier={})) is None


@pytest.mark.parametrize(("kind", "dropout"), [("matcher", 0.0), ("seq2seq", 0.3)])
def test_without_weight_it_is_plain_fine_tuning(kind: str, dropout: float, tmp_path: Path) -> None:
    """Bit for bit: the old model's answers draw nothing. (A matcher reads a text again for the labels of each earlier
    task, and with dropout draws for it.) With a weight, it is not."""
    ended = {}
    for name, method in (
        ("plain", {"name": "sequential"}),
        ("none", {"name": "lwf", "weight": 0.0}),
        ("some", {"name": "lwf", "weight": 1.0}),
    ):
        model = {"name": str(toys.model_folder(kind)), "kind": kind, "dropout": dropout}
        model |= {"lora": {"r": 2, "dropout": dropout}}
        values = {**sections(model=model, training={"steps": 3}, evaluation={"future": False}), "method": method}
        with Learner.open(tmp_path / name, **values) as learner:
            learner.learn_stream([task("mood"), task("topic")])
        files = sorted((tmp_path / name).glob("tasks/*/*/*.safetensors"))
        ended[name] = {str(file.relative_to(tmp_path / name)): file.read_bytes() for file in files}
    assert len(ended["plain"]) >= 2
    assert ended["none"] == ended["plain"]
    assert ended["some"] != ended["plain"]


def test_among_all_labels_seen_it_looks_at_the_earlier_ones_together() -> None:
    backbone, before = backbone_of("matcher"), backbone_of("matcher")
    disturb(backbone, seed=1, size=0.05)
    disturb(before, seed=1, size=0.05)
    everything = AnswerSpec(("good", "bad", "right", "wrong", "sport", "business"))
    penalty = Lwf(LwfOptions(temperature=2.0)).penalty(context_of(backbone, candidates=CandidatePolicy("seen")))
    assert penalty is not None
    inputs = backbone.collate(backbone.features(EXAMPLES, everything))
    disturb(backbone, seed=2, size=0.05)
    model, old = backbone.module.eval(), before.module.eval()
    loss = penalty(model, 0, inputs, model(**inputs))
    vectors = before.label_vectors(AnswerSpec(everything.labels[:4]))  # type: ignore[attr-defined,index]
    with torch.no_grad():
        logits = [m.embed(inputs["input_ids"], inputs["attention_mask"]) @ vectors.T / 0.05 for m in (model, old)]
    expected = divergence(*logits, temperature=2.0)
    assert expected > 1e-4
    assert loss.item() == pytest.approx(expected / 2.0**2, rel=1e-3)


def test_among_all_labels_seen_the_new_ones_are_learned(tmp_path: Path) -> None:
    """What the old model thinks of the new labels does not count."""
    tasks = [task("mood"), task("topic")]
    sizes = []

    def noted(new: torch.Tensor, old: torch.Tensor, temperature: float) -> torch.Tensor:
        sizes.append(new.shape[1])
        return distillation(new, old, temperature)

    model = {"name": str(toys.model_folder("matcher")), "kind": "matcher", "candidates": "seen", "lora": {"r": 2}}
    values = {**sections(model=model, training={"steps": 3}, evaluation={"future": False}), "method": {"name": "lwf"}}
    with pytest.MonkeyPatch.context() as patch, Learner.open(tmp_path / "run", **values) as learner:
        patch.setattr("merganser.training.distillation.distillation", noted)
        learner.learn_stream(tasks)
    assert sizes == [len(tasks[0].spec.labels or ())] * 3


def test_the_gradient_is_that_of_the_papers_cross_entropy() -> None:
    """Transcribed: probabilities to the power 1/T, normalised. The squared temperature makes it T^2 times as large."""
    new, old = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).unbind()
    new.requires_grad_()

    def softened(logits: torch.Tensor) -> torch.Tensor:
        powers = logits.softmax(1) ** (1 / 2.0)
        return powers / powers.sum(1, keepdim=True)

    published = -(softened(old) * softened(new).log()).sum(1).mean()
    (expected,) = torch.autograd.grad(published, new)
    for options, times in ((LwfOptions(), 1), (LwfOptions(temperature_squared=True), 4), (LwfOptions(weight=3.0), 3)):
        (found,) = torch.autograd.grad(options.factor() * distillation(new, old, options.temperature), new)
        torch.testing.assert_close(found, times * expected)


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("kind", ["matcher", "seq2seq", "causal"])
def test_the_penalty_is_the_divergence_from_the_model_as_it_was(kind: str, lora: bool) -> None:
    backbone, before = backbone_of(kind, lora), backbone_of(kind, lora)
    disturb(backbone, seed=1, size=0.05)
    disturb(before, seed=1, size=0.05)
    squared = lora
    options = LwfOptions(weight=0.5, temperature=2.0, temperature_squared=squared)
    penalty = Lwf(options).penalty(context_of(backbone))
    assert penalty is not None
    spec = NEW if kind == "matcher" else AnswerSpec()
    inputs = backbone.collate(backbone.features(EXAMPLES, spec))
    model = backbone.module.eval()

    def measured() -> torch.Tensor:
        return penalty(model, 0, inputs, model(**inputs))

    assert measured().item() == pytest.approx(0, abs=1e-5)
    disturb(backbone, seed=2, size=0.05)
    loss = measured()
    old = before.module.eval()
    expected = 0.0
    with torch.no_grad():
        if kind == "matcher":
            embedded = [m.embed(inputs["input_ids"], inputs["attention_mask"]) for m in (model, old)]
            for task in OLD.values():
                vectors = before.label_vectors(task)  # type: ignore[attr-defined]
                expected += divergence(*(e @ vectors.T / 0.05 for e in embedded), temperature=2.0)
        else:
            shift = kind == "causal"
            rows = [m(**inputs)["logits"] for m in (model, old)]
            labels = inputs["labels"]
            pairs = [
                (row, place - shift)
                for row in range(len(labels))
                for place in range(labels.shape[1])
                if labels[row, place] != -100
            ]
            new, kept = (torch.stack([logits[row, place] for row, place in pairs]) for logits in rows)
            expected = divergence(new, kept, 2.0)
    assert expected > 1e-4
    assert loss.item() == pytest.approx(0.5 * expected / (1 if squared else 2.0**2), rel=1e-3)
    model.train()
    loss.backward()
    assert all(p.grad is not None for p in backbone.trainable().values())
    assert all(part.training for part in backbone.module.modules())
