"""What AimMerging refuses before any work, and what it makes do with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from merganser import AimConfig, AimMerging
from merganser.errors import InputError
from tests.training.test_aim import NEW, OLD, Regression, arguments, collate, eager, train


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"batch": 0}, "batch is 0; give a whole number > 0 or None"),
        ({"batch": 13}, "batch is 13, but the memory holds 12"),
        ({"probe_batch": -1, "probe_set": "fresh"}, "probe_batch is -1"),
        ({"guard_factor": 1.0}, "guard_factor is 1.0; give a number > 1 or None"),
        ({"guard_factor": math.inf}, "guard_factor is inf"),
        ({"guard_factor": math.nan}, "guard_factor is nan"),
        ({"important_share": 0.0}, "important_share is 0.0; give a number > 0 and <= 1"),
        ({"important_share": 1.5}, "important_share is 1.5"),
        ({"importance_smoothing": 1.0}, "importance_smoothing is 1.0"),
        ({"fusion": "mean"}, "fusion is 'mean'; give 'trajectory' or 'importance_masks'"),
        ({"measure_merges": 1}, "measure_merges is 1; give True or False"),
        ({"rehearsal_steps": "all"}, "rehearsal_steps is 'all'; give a whole number >= 0 or 'quarter' or 'half' or"),
        ({"min_interval": 9, "max_interval": 8}, "min_interval 9 is larger than max_interval 8"),
    ],
)
def test_impossible_arguments_are_refused_at_once(given: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        AimMerging(OLD, **given)


def test_settings_by_name_replace_those_of_the_configuration() -> None:
    aim = AimMerging(OLD, AimConfig(interval=5), threshold_factor=1.5)
    assert (aim.config.interval, aim.config.threshold_factor, aim.config.weight_old) == (5, 1.5, 1.0)
    assert aim.controller.config == aim.config
    with pytest.raises(TypeError, match=r"There is no setting 'treshold_factor'\. Did you mean 'threshold_factor'"):
        AimMerging(OLD, treshold_factor=1.5)


@pytest.mark.parametrize(("mark", "what"), [("ds_id", "DeepSpeed ZeRO-3"), ("_is_flat_param", "FSDP version 1")])
def test_sharded_weights_that_look_full_are_refused(mark: str, what: str, tmp_path: Path) -> None:
    model = Regression()
    setattr(next(model.parameters()), mark, 7)  # as these libraries mark theirs
    trainer = Trainer(model, arguments(tmp_path), train_dataset=NEW, data_collator=collate, callbacks=[AimMerging(OLD)])
    with pytest.raises(InputError, match=f"does not support the sharded weights of {what}"):
        trainer.train()
    assert trainer.state.global_step == 0


class Stream(torch.utils.data.IterableDataset):
    """Training examples one after the other, without a length."""

    def __iter__(self) -> Any:
        return iter(NEW)


def test_a_stream_of_training_data_does_where_merges_are_not_measured_on_it(tmp_path: Path) -> None:
    def trained(data: Any, **more: Any) -> tuple[AimMerging, Regression]:
        model, callback = Regression(), AimMerging(OLD, eager(), **more)
        given = arguments(tmp_path, max_steps=20)
        Trainer(model, given, train_dataset=data, data_collator=collate, callbacks=[callback]).train()
        return callback, model

    with pytest.raises(InputError, match=r"is a stream.*measure_merges=False"):
        trained(Stream())
    streamed, listed = trained(Stream(), measure_merges=False), trained(NEW, measure_merges=False)
    assert streamed[0].merges
    assert streamed[0].merges == listed[0].merges
    for left, right in zip(streamed[1].parameters(), listed[1].parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_memory_in_another_form_is_refused_before_any_step(tmp_path: Path) -> None:
    callback = AimMerging([{"prompt": "a text", "y": torch.tensor(1.0)}] * 12, eager(), probe_set="fresh")
    with pytest.raises(InputError, match=r"they have no x\. Give them in the form of trainer.train_dataset"):
        train(tmp_path, callback)
    assert callback.signals == []
    with pytest.raises(InputError, match=r"they have no x, y\."):
        train(tmp_path, AimMerging(["a text"] * 12, eager()))


def test_a_memory_may_lack_columns_that_the_collator_does_not_need(tmp_path: Path) -> None:
    callback = AimMerging(OLD, eager())
    new = [{**item, "source": "a new task"} for item in NEW]
    given = arguments(tmp_path, max_steps=12)
    Trainer(Regression(), given, train_dataset=new, data_collator=collate, callbacks=[callback]).train()
    assert callback.merges
