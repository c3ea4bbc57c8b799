"""The paper's ablations, by the options that the method's page gives; the ledger shows that each does what it says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import SchedulerType

from merganser.methods.aim import Aim, AimOptions
from merganser.runs.record import MergeRecord
from merganser.training.aim.callback import AimMerging
from merganser.training.options import TrainingOptions
from tests.methods import plain
from tests.training.test_aim import NEW, OLD, STEPS, Regression, arguments, collate

PAGE = Path(__file__).parents[2] / "docs" / "methods" / "aim.md"
BASE = {
    "replay_share": None,
    "probe_batch": None,
    "merge_at_end": False,
    "weight_old": None,
    "probe_every": 1,
    "probe_set": "fresh",
    "rehearsal_steps": 4,
    "interval": 4,
    "cold_start": 1,
    "threshold_factor": 1.02,
    "max_interval": 16,
}
"""So that an unablated run of the toy task has early merges, several weights and intervals that change."""


def ablations() -> dict[str, dict[str, Any]]:
    """Name -> options, from the page's table."""
    table = PAGE.read_text(encoding="utf-8").partition("| ablation |")[2].partition("\n## ")[0]
    return {
        name: yaml.safe_load(options) for name, options in re.findall(r"^\| ([^|]+) \| `(\{.*?\})` \|", table, re.M)
    }


def learn(folder: Path, options: AimOptions, schedule: str = "linear") -> AimMerging:
    backbone = SimpleNamespace(module=Regression(), collate=collate)
    memory = cast(Any, OLD)
    method = Aim(options)
    given = plain.context(
        backbone.module, 2, task="second", backbone=backbone, memory=memory, training=TrainingOptions(batch=4), seed=5
    )
    (callback,) = method.callbacks(given)
    given_arguments = arguments(folder)
    given_arguments.lr_scheduler_type = SchedulerType(schedule)
    trainer = Trainer(backbone.module, given_arguments, train_dataset=NEW, data_collator=collate, callbacks=[callback])
    trainer.train()
    method.after_task(given)
    assert isinstance(callback, AimMerging)
    assert method.records.merges == callback.merges
    return callback


def steps(merges: list[MergeRecord]) -> list[int]:
    return [merge.step for merge in merges]


def fixed_interval(callback: AimMerging) -> bool:
    return steps(callback.merges) == list(range(4, STEPS + 1, 4)) and callback.cost.examples_probed == 0


def no_forgetting(callback: AimMerging) -> bool:
    planned = 0
    for merge in callback.merges:
        planned += merge.interval
        if (merge.step, merge.cause, merge.forgetting_signal, merge.alarms) != (planned, "due", None, 0):
            return False
    return callback.cost.examples_probed == 0 and len({merge.interval for merge in callback.merges}) > 1


def no_learning(callback: AimMerging) -> bool:
    intervals = {merge.interval for merge in callback.merges}
    return intervals == {4} and callback.cost.examples_probed > 0 and {m.cause for m in callback.merges} > {"due"}


def fixed_weights(callback: AimMerging) -> bool:
    return {(merge.weight_new, merge.weight_old) for merge in callback.merges} == {(0.5, 0.5)}


def no_rehearsal(callback: AimMerging) -> bool:
    nothing = {(m.rehearsal_steps, m.norm_old, m.cosine) for m in callback.merges} == {(0, 0.0, None)}
    return nothing and callback.cost.examples_rehearsed == 0


def once(callback: AimMerging) -> bool:
    told = [(merge.step, merge.cause, merge.rehearsal_steps) for merge in callback.merges]
    return told == [(STEPS, "end", 4)] and callback.cost.examples_probed == 0


CHECKS: dict[str, Callable[[AimMerging], bool]] = {
    "fixed interval": fixed_interval,
    "without the forgetting signal": no_forgetting,
    "without the learning signal": no_learning,
    "fixed weights": fixed_weights,
    "without rehearsal": no_rehearsal,
    "one merge at the end": once,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> AimMerging:
    return learn(tmp_path_factory.mktemp("whole"), AimOptions.model_validate(BASE))


def test_the_page_lists_each() -> None:
    assert set(ablations()) == set(CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_an_ablation_does_what_it_says(name: str, whole: AimMerging, tmp_path: Path) -> None:
    assert not CHECKS[name](whole)
    # At the end of a linear schedule the learning rate is 0, and there is no rehearsal.
    schedule = "constant" if name == "one merge at the end" else "linear"
    callback = learn(tmp_path, AimOptions.model_validate({**BASE, **ablations()[name]}), schedule)
    assert len(callback.merges) >= (1 if name == "one merge at the end" else 3)
    assert CHECKS[name](callback)


def test_they_combine_with_the_released_behaviour() -> None:
    for changes in ablations().values():
        AimOptions.model_validate({"compat": "reference", **changes})


def test_one_merge_at_the_end_is_that_of_the_whole_task(tmp_path: Path) -> None:
    ablation = {"only_at_end": True, "weight_new": 0.25}
    callback = learn(tmp_path, AimOptions(rehearsal_steps=0, replay_tokens=None, ablation=ablation))
    plain = Regression()
    Trainer(plain, arguments(tmp_path), train_dataset=NEW, data_collator=collate).train()
    merged = callback._weights
    for (name, end), start in zip(plain.named_parameters(), Regression().parameters(), strict=True):
        if name in merged:
            assert torch.allclose(merged[name], start + 0.25 * (end - start), atol=1e-6)


class Copies(TrainerCallback):
    """Copies the trainable weights after every step."""

    def __init__(self, model: nn.Module) -> None:
        self.steps = [self._copy(model)]

    def _copy(self, model: nn.Module) -> torch.Tensor:
        return torch.cat([p.detach().flatten().double() for p in model.parameters() if p.requires_grad])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(self._copy(kwargs["model"]))


@pytest.mark.parametrize("memory", [OLD, []], ids=["a later task", "the first task"])
def test_without_merging_it_is_plain_training_whose_signals_are_measured(memory: Any, tmp_path: Path) -> None:
    plain_model, model = Regression(), Regression()
    copies = Copies(plain_model)
    Trainer(plain_model, arguments(tmp_path), train_dataset=NEW, data_collator=collate, callbacks=[copies]).train()
    method = Aim(AimOptions(interval=4, probe_every=2, ablation={"merge": False}))
    backbone = SimpleNamespace(module=model, collate=collate)
    training = TrainingOptions(batch=4)
    given = plain.context(model, 2, task="t", backbone=backbone, memory=memory, training=training, seed=5)
    callbacks = method.callbacks(given)
    Trainer(model, arguments(tmp_path), train_dataset=NEW, data_collator=collate, callbacks=callbacks).train()
    assert torch.equal(Copies(model).steps[0], copies.steps[-1])
    signals = {signal.step: signal for signal in method.records.signals}
    assert not method.records.merges
    changes = {step: signal.change for step, signal in signals.items() if signal.change is not None}
    by_hand = {step: float((copies.steps[step] - copies.steps[step - 4]).abs().sum()) / 4 for step in range(4, 61, 4)}
    assert changes == pytest.approx(by_hand, rel=1e-5)
    probed = [step for step, signal in signals.items() if signal.probe is not None]
    assert probed == (list(range(2, 61, 2)) if memory else [])
    state = method.task_state()
    method.load_task_state(state)
    assert any(name.startswith("before/") for name in state.tensors)


def test_never_merging_excludes_merging_at_the_end() -> None:
    with pytest.raises(ValueError, match="only_at_end merges at the end of a task: keep one"):
        AimOptions(ablation={"merge": False, "only_at_end": True})
