"""A merge that does harm is refused: weights and optimizer are as when it fired, and training continues."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from merganser import AimMerging as WithDefaults
from merganser.errors import RunError
from merganser.events import Event, Merged
from merganser.methods.aim import AimOptions
from merganser.training.aim.guard import FLOOR, OptimizerCopy, refusal
from merganser.training.records import TaskRecords
from tests.training.test_aim import NEW, OLD, Regression, arguments, collate, eager, examples, train

AimMerging = functools.partial(WithDefaults, probe_set="fresh", merge_at_end=False)
"""As the numbers below were thought out."""

Loss = Callable[[nn.Module, Any], Tensor]


def spoiled(when: Callable[[bool, int], bool], factor: float = math.nan) -> Loss:
    """The model's loss, times ``factor`` where ``when(rehearsing, number of the call of this kind)``."""
    calls = {True: 0, False: 0}

    def loss(model: nn.Module, batch: Any) -> Tensor:
        rehearsing = torch.is_grad_enabled()
        calls[rehearsing] += 1
        found: Tensor = model(**batch)["loss"]
        return found * factor if when(rehearsing, calls[rehearsing]) else found

    return loss


def state_of(optimizer: Any) -> list[Tensor]:
    held = optimizer.state_dict()["state"]
    return [held[number][key].clone() for number in held for key in sorted(held[number])]


def test_refused_merges_leave_training_unchanged(tmp_path: Path) -> None:
    callback = AimMerging(OLD, eager(), loss=spoiled(lambda rehearsing, _: rehearsing))
    ours = train(tmp_path, callback)
    plain = Regression()
    Trainer(plain, arguments(tmp_path), train_dataset=NEW, data_collator=collate).train()
    assert len(callback.merges) >= 4
    assert {(merge.status, merge.reason) for merge in callback.merges} == {("refused", "the weights are not finite")}
    for left, right in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(left, right)
    # The books are kept as after a merge: intervals are planned from the step at which it was refused.
    for before, after in zip(callback.merges, callback.merges[1:], strict=False):
        assert after.interval == before.next_interval
        assert after.step > before.step


def test_one_refused_merge_puts_back_weights_and_optimizer(tmp_path: Path) -> None:
    told: list[tuple[Merged, list[Tensor], list[Tensor]]] = []
    at_firing: list[tuple[list[Tensor], list[Tensor]]] = []
    model = Regression()
    holder: list[Trainer] = []

    def now() -> tuple[list[Tensor], list[Tensor]]:
        return [p.detach().clone() for p in model.parameters()], state_of(holder[0].optimizer)

    def listener(event: Event) -> None:
        assert isinstance(event, Merged)
        told.append((event, *now()))

    class Before(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            at_firing[:] = [*at_firing, now()]

    loss = spoiled(lambda rehearsing, number: rehearsing and number == 6)  # in the second merge, of four steps each
    callback = AimMerging(OLD, eager(), records=TaskRecords(listener=listener), loss=loss)
    holder.append(
        Trainer(model, arguments(tmp_path), train_dataset=NEW, data_collator=collate, callbacks=[Before(), callback])
    )
    holder[0].train()
    assert [merge.status for merge in callback.merges] == ["applied", "refused"] + ["applied"] * (len(told) - 2)
    first, second = told[0][0], told[1][0]
    assert (first.reason, second.reason) == (None, "the weights are not finite")
    for event, *after in told[:2]:
        same = [
            all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
            for left, right in zip(at_firing[event.step - 1], after, strict=True)
        ]
        assert same == ([True, True] if event.reason else [False, False])
    refused = callback.merges[1]
    assert (refused.norm_old, refused.loss_new_after, refused.cosine) == (None, None, None)
    assert refused.loss_new_before is not None
    assert callback.merges[2].norm_new > 0
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize(
    ("probed", "name"),
    [(3, "the loss on the new task became inf"), (4, "the loss on the memory became inf")],
)
def test_a_loss_that_is_not_finite_with_finite_weights(tmp_path: Path, probed: int, name: str) -> None:
    # Before the first merge: a probe per step, one loss on the new task; the next two are those after it.
    first = AimMerging(OLD, eager())
    train(tmp_path, first)
    step = first.merges[0].step
    loss = spoiled(lambda rehearsing, number: not rehearsing and number == step + probed - 1, math.inf)
    callback = AimMerging(OLD, eager(), loss=loss)
    train(tmp_path, callback)
    assert (callback.merges[0].status, callback.merges[0].reason) == ("refused", name)
    assert {merge.status for merge in callback.merges[1:]} == {"applied"}


def test_a_loss_that_rises_by_more_than_the_factor(tmp_path: Path) -> None:
    free = AimMerging(OLD, eager(), guard_factor=None)
    train(tmp_path, free)
    risen = [
        max(after / max(before, FLOOR) for before, after in pairs if before is not None and after is not None)
        for pairs in (
            ((m.loss_new_before, m.loss_new_after), (m.loss_old_before, m.loss_old_after)) for m in free.merges
        )
    ]
    assert risen[0] > 1.01  # the first merge gives up some of the new task
    callback = AimMerging(OLD, eager(), guard_factor=(1 + risen[0]) / 2)
    train(tmp_path, callback)
    refused = callback.merges[0]
    assert refused.status == "refused"
    assert refused.reason is not None
    assert "the loss on the new task rose from" in refused.reason
    assert refused.loss_new_after == pytest.approx(free.merges[0].loss_new_after)
    assert {m.status for m in free.merges} == {"applied"}


def test_when_a_merge_is_refused() -> None:
    assert refusal((1.0, 1.0), (9.9, 9.9), True, 10.0) is None
    assert (
        refusal((1.0, 1.0), (1.0, 10.1), True, 10.0) == "the loss on the memory rose from 1 to 10.1, more than 10 times"
    )
    assert refusal((1e-6, 1.0), (0.9, 1.0), True, 10.0) is None  # next to nothing before
    assert refusal((1e-6, 1.0), (1.1, 1.0), True, 10.0) is not None
    assert refusal((1.0, 1.0), (1e9, 1e9), True, None) is None
    assert refusal((1.0, 1.0), (math.nan, 1.0), True, None) == "the loss on the new task became nan"
    assert refusal((None, None), (None, None), True, 10.0) is None
    assert refusal((None, None), (None, None), False, None) == "the weights are not finite"


def test_an_optimizer_that_first_meets_a_weight_while_rehearsing() -> None:
    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.AdamW(weights, lr=0.1)
    weights[0].grad = torch.ones(2)
    optimizer.step()
    before, kept = state_of(optimizer), OptimizerCopy(optimizer)
    for weight in weights:
        weight.grad = torch.full((2,), 3.0)
    optimizer.step()
    assert len(optimizer.state) == 2
    kept.restore()
    after = state_of(optimizer)
    assert len(before) == len(after) == 3
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_what_was_wrong_before_the_merge_is_an_error(tmp_path: Path) -> None:
    # Not probed and not watched: the losses measured for the merge are the first to be seen.
    broken = [{**item, "y": torch.tensor(math.nan)} for item in OLD]
    with pytest.raises(RunError, match="loss on the memory became nan after step 3"):
        train(tmp_path, AimMerging(broken, interval=3, watch_forgetting=False))
    bad = [{**item, "y": torch.tensor(math.inf)} for item in examples(3, 9, 1.0)]
    callback = AimMerging(OLD, interval=3, watch_forgetting=False)
    trainer = Trainer(Regression(), arguments(tmp_path), train_dataset=bad, data_collator=collate, callbacks=[callback])
    with pytest.raises(RunError, match=r"loss on the task became (nan|inf) after step 3"):
        trainer.train()


def test_a_learning_signal_of_0(tmp_path: Path) -> None:
    class Still(torch.optim.AdamW):
        def step(self, *given: Any, **more: Any) -> None:  # type: ignore[override]
            """Nothing moves."""

    model = Regression()
    callback = AimMerging(OLD, eager())
    trainer = Trainer(
        model,
        arguments(tmp_path),
        train_dataset=NEW,
        data_collator=collate,
        callbacks=[callback],
        optimizers=(Still(model.parameters()), None),
    )
    trainer.train()
    assert len(callback.merges) >= 3
    assert {(m.learning_signal, m.interval, m.next_interval) for m in callback.merges} == {(0.0, 4, 4)}
    assert {(m.status, m.norm_new, m.norm_old, m.cosine) for m in callback.merges} == {("applied", 0.0, 0.0, None)}
    for left, right in zip(model.parameters(), Regression().parameters(), strict=True):
        assert torch.allclose(left, right, atol=1e-6)


def test_options() -> None:
    assert AimOptions().guard_factor == 10.0
    assert AimOptions(compat="reference").guard_factor is None
    once = {"ablation": {"only_at_end": True}}
    assert AimOptions(**once).guard_factor is None
    assert AimOptions(**once, guard_factor=4).guard_factor == 4
    assert AimMerging(OLD, only_at_end=True).config.guard_factor is None
    quiet = AimOptions(measure_merges=False)
    assert quiet.guard_factor is None
    assert AimOptions.model_validate(quiet.model_dump()).guard_factor is None
    with pytest.raises(ValueError, match="guard_factor needs the losses"):
        AimOptions(measure_merges=False, guard_factor=3)
    with pytest.raises(ValueError, match="needs guard_factor: null"):
        AimOptions(compat="reference", guard_factor=3)
