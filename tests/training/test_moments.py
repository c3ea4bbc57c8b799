"""What becomes of the optimizer's moments at a merge, and probes that training has paid for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from merganser import AimMerging
from merganser.training.aim.probing import ReplayedLosses
from tests.training.test_aim import NEW, OLD, Regression, arguments, collate, eager, train


class Steps(TrainerCallback):
    """The steps that the optimizer has taken with its moments, after each step of training and its merge."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        moments = given["optimizer"].state.values()
        self.taken.append(max((int(each["step"]) for each in moments), default=0))


@pytest.mark.parametrize("moments", ["keep", "empty"])
def test_moments_begin_anew_at_a_merge(tmp_path: Path, moments: str) -> None:
    callback, steps = AimMerging(OLD, eager(rehearsal_steps=0, moments=moments)), Steps()
    model = Regression()
    given = arguments(tmp_path)
    Trainer(model, given, train_dataset=NEW, data_collator=collate, callbacks=[callback, steps]).train()
    merged = [merge.step for merge in callback.merges]
    assert len(merged) >= 4
    since, expected = 0, []
    for step in range(1, len(steps.taken) + 1):
        since = 0 if moments == "empty" and step in merged else since + 1
        expected.append(since)
    assert steps.taken == expected


def test_a_refused_merge_keeps_them(tmp_path: Path) -> None:
    def spoiled(model: Any, batch: Any) -> Any:
        loss = model(**batch)["loss"]
        return loss * float("nan") if torch.is_grad_enabled() else loss

    callback, steps = AimMerging(OLD, eager(moments="empty"), loss=spoiled), Steps()
    given = arguments(tmp_path, lr_scheduler_type="constant")  # at 0, nothing is rehearsed before the last merge
    Trainer(Regression(), given, train_dataset=NEW, data_collator=collate, callbacks=[callback, steps]).train()
    assert {merge.status for merge in callback.merges} == {"refused"}
    assert steps.taken == list(range(1, len(steps.taken) + 1))


def test_replayed_losses_are_the_probes(tmp_path: Path) -> None:
    """What was added since the last probe is the forgetting signal; where nothing was, a batch is probed."""

    class Told(ReplayedLosses):
        asked = 0

        def take(self) -> float | None:
            self.asked += 1
            if self.asked > 3:
                return None
            self.add(float(self.asked))
            return super().take()

    callback = AimMerging(OLD, eager(probe_set="replayed", probe_every=1, measure_merges=False))
    callback.replayed = Told()
    train(tmp_path, callback)
    probes = [signal.probe for signal in callback.signals if signal.probe is not None]
    assert probes[:3] == [1.0, 2.0, 3.0]
    assert len(probes) > 3
    assert callback.cost.examples_probed == (len(probes) - 3) * callback._probing.batch_size


def test_every_merge_goes_part_of_the_way_back_to_the_start_of_the_task(tmp_path: Path) -> None:
    """One merge by hand; later ones go back to the same weights, not to those after the last merge."""

    class Weights(TrainerCallback):
        def __init__(self) -> None:
            self.before: list[torch.Tensor] = []
            self.after: list[torch.Tensor] = []

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.before.append(given["model"].outer.weight.detach().clone())

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.after.append(given["model"].outer.weight.detach().clone())

    start = Regression().outer.weight.detach().clone()
    config = eager(rehearsal_steps=0, start_weight=0.25, measure_merges=False)
    callback, weights = AimMerging(OLD, config), Weights()
    given = arguments(tmp_path)
    Trainer(Regression(), given, train_dataset=NEW, data_collator=collate, callbacks=[callback, weights]).train()
    merges = callback.merges
    assert len(merges) >= 4
    last = start
    for merge in merges:
        fused = last + merge.weight_new * (weights.before[merge.step - 1] - last)
        expected = 0.75 * fused + 0.25 * start
        found = weights.after[merge.step - 1]
        torch.testing.assert_close(found, expected)
        last = found
    other = AimMerging(OLD, config)
    train(tmp_path, other, max_steps=12)
    state = other.task_state()
    assert torch.equal(state.tensors["task start/outer.weight"], start)
    other._fusion.load_state_tensors({name: value + 1 for name, value in state.tensors.items()})
    assert torch.equal(other.task_state().tensors["task start/outer.weight"], start + 1)
