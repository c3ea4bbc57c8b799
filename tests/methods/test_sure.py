"""SuRe: the slow weights by hand, what a task starts from, and the surprise of each kind of example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from merganser import Learner
from merganser.config import check_config
from merganser.events import Notice
from merganser.methods.sure import Sure, SureOptions
from merganser.models.base import Backbone
from merganser.streams.answers import AnswerSpec
from merganser.streams.task import Example
from merganser.training.records import TaskRecords
from merganser.training.slow_weights import SlowWeights
from merganser.training.surprise import example_losses
from merganser.weights import Weights
from tests.learner import toys
from tests.learner.test_learner import sections, task
from tests.methods import plain
from tests.methods.test_lwf import backbone_of

SPEC = AnswerSpec(("sport", "business"))
EXAMPLES = [Example("the team won the match", "sport"), Example("rates", "business"), Example("a bad film", "sport")]


def test_slow_weights_by_hand() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    slow = SlowWeights(Weights({"weight": torch.tensor([[1.0]])}), 0.75, TaskRecords())
    plain.fire(slow, "on_train_begin", model=module)
    for step, (fast, expected) in enumerate([(5.0, 2.0), (2.0, 2.0), (-6.0, 0.0)], 1):
        module.weight.data.fill_(fast)
        plain.fire(slow, "on_step_end", step)
        assert slow.slow["weight"].item() == expected
    again = SlowWeights(Weights({"weight": torch.tensor([[9.0]])}), 0.75, TaskRecords())
    again.load_task_state(slow.task_state())
    assert again.slow["weight"].item() == 0.0


def test_the_slow_weights_are_deployed_and_their_share_of_the_start_is_recorded() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    rows = [{"weight": torch.tensor([[0.0]])}, {"weight": torch.tensor([[1.0]])}]
    told: list[Any] = []
    for start_from, start in (("slow", "deployed"), ("fast", "trained")):
        method = Sure(SureOptions(decay=0.5, start_from=start_from))
        assert method.start == start
        method.begin_task()
        (slow,) = method.callbacks(plain.context(module, 2, rows, steps=1, listener=told.append))
        plain.fire(slow, "on_train_begin", model=module)
        module.weight.data.fill_(3.0)
        plain.fire(slow, "on_step_end", 1)
        method.after_task(plain.context(module, 2, rows, steps=1))
        assert module.weight.item() == 2.0
        (merge,) = method.records.merges
        assert (merge.cause, merge.weight_new, merge.weight_old) == ("end", 0.5, 0.5)
    assert Sure.start == "deployed"
    assert isinstance(told[0], Notice)
    assert "average over 2 (method.decay 0.5): at its end 50 %" in told[0].text


def test_its_memory_is_chosen_by_surprise_unless_another_sampler_is_asked_for() -> None:
    model = {"name": "m", "kind": "matcher"}
    assert check_config({"model": model, "method": "sure"}, "x").memory.sampler == "surprise"
    other = {"model": model, "method": "sure", "memory": {"sampler": "mixed", "total": 9}}
    assert check_config(other, "x").memory.sampler == "mixed"
    assert check_config({"model": model, "method": "replay"}, "x").memory.sampler == "per_label"


@pytest.fixture(scope="module")
def backbones() -> dict[str, Backbone]:
    return {kind: backbone_of(kind) for kind in ("matcher", "causal", "seq2seq")}


@pytest.mark.parametrize("kind", ["matcher", "causal", "seq2seq"])
def test_the_surprise_of_an_example_is_its_loss_alone(kind: str, backbones: dict[str, Backbone]) -> None:
    backbone = backbones[kind]
    features = backbone.features(EXAMPLES, SPEC)
    backbone.module.eval()
    with torch.no_grad():
        alone = [float(backbone.module(**backbone.collate([feature]))["loss"]) for feature in features]
    backbone.module.train()
    assert example_losses(backbone, features, 2) == pytest.approx(alone, rel=1e-4)
    assert backbone.module.training


def test_the_surprise_of_a_pair_is_that_of_its_chosen_answer(backbones: dict[str, Backbone]) -> None:
    backbone = backbones["causal"]
    texts = [Example("who?", "the team"), Example("what?", "a film")]
    pairs = [Example(each.input, each.output, rejected="a bad and weak story") for each in texts]
    from merganser.streams.dpo import DpoOptions

    measured = example_losses(backbone, backbone.features(pairs, AnswerSpec(dpo=DpoOptions())), 2)
    assert measured == pytest.approx(example_losses(backbone, backbone.features(texts, AnswerSpec()), 2), rel=1e-4)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_keeps_the_texts_of_highest_loss(when: str, tmp_path: Path) -> None:
    values = sections(training={"steps": 2}, memory={"sampler": "surprise", "surprise_when": when, "number": 3})
    values["method"] = {"name": "sure", "decay": 0.5}
    with Learner.open(tmp_path / "run", **values) as learner:
        mood = task("mood")
        session = learner.session
        learner.learn(mood)
        if when == "before":
            session.use(session.rows[0])
        losses = example_losses(session.backbone, session.backbone.features(mood.train, mood.spec), 4)
        kept = [example.input for _, example in session.memory()]
        assert learner.record.tasks[0].cost.memory_seconds > 0
    highest = sorted(range(len(losses)), key=lambda i: -losses[i])[:3]
    assert kept == [mood.train[i].input for i in sorted(highest)]
    assert toys.results(tmp_path / "run")
