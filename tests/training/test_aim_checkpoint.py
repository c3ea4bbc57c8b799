"""States in checkpoints from which AimMerging does not go on."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import Trainer

from merganser import AimMerging, MergeController
from merganser.control import WeightTable
from merganser.errors import InputError
from merganser.training.aim.checkpoint import options_of
from tests.training.test_aim import NEW, OLD, collate, controller
from tests.training.test_other_loops import Noisy, arguments, interrupted, make


def test_a_state_that_cannot_be_used_is_an_error_before_any_step(tmp_path: Path) -> None:
    interrupted(tmp_path / "run", 13)
    checkpoint = tmp_path / "run" / "checkpoint-10"
    values, tensors = checkpoint / "aim_merging.json", checkpoint / "aim_merging.safetensors"
    kept = values.read_text(), tensors.read_bytes()

    def refused(match: str) -> None:
        trainer, aim = make(tmp_path / "run")
        with pytest.raises(InputError, match=match):
            trainer.train(resume_from_checkpoint=True)
        assert aim.probes == {}
        values.write_text(kept[0])
        tensors.write_bytes(kept[1])

    tensors.write_bytes(kept[1][:-1])
    refused("is damaged")
    tensors.unlink()
    refused("is damaged")
    values.write_text(kept[0][:-9])
    refused("is damaged")
    values.write_text(json.dumps({**json.loads(kept[0]), "format": 2}))
    refused("has format 2; this version knows 1")
    values.write_text((tmp_path / "run/checkpoint-5/aim_merging.json").read_text())
    refused("of other weights than those training goes on with at step 10")
    held = json.loads(kept[0])
    values.write_text(json.dumps({**held, "size": held["size"] * 1.01}))
    refused("of other weights")
    values.unlink()
    refused("there is no aim_merging.json in")


def resumed_with(folder: Path, control: MergeController, **more: Any) -> None:
    aim = AimMerging(OLD, control, probe_dropout=True, **more)
    trainer = Trainer(Noisy(), arguments(folder), train_dataset=NEW, data_collator=collate, callbacks=[aim])
    trainer.train(resume_from_checkpoint=True)


def test_other_decisions_than_those_training_began_with_are_refused(tmp_path: Path) -> None:
    interrupted(tmp_path / "run", 13)
    with pytest.raises(
        InputError, match=r"written with controller\.interval 4 \(now 7\), controller\.rehearsal_steps 4"
    ):
        resumed_with(
            tmp_path / "run", MergeController(interval=7, cold_start=1, threshold_factor=1.02, max_interval=16)
        )
    with pytest.raises(InputError, match=r"written with fusion trajectory \(now importance_masks\)\. Go on with"):
        resumed_with(tmp_path / "run", controller(), fusion="importance_masks")
    values = tmp_path / "run" / "checkpoint-10" / "aim_merging.json"
    held = json.loads(values.read_text())
    del held["options"]  # as earlier versions wrote it
    values.write_text(json.dumps(held))
    with pytest.raises(InputError, match="written with fusion trajectory"):
        resumed_with(tmp_path / "run", controller(), fusion="importance_masks")
    resumed_with(tmp_path / "run", controller())


def test_every_number_of_a_controller_is_known_again() -> None:
    """Also those that JSON has no word for, and numpy's."""
    weights = WeightTable(0.1, 0.2, 0.3, 0.4)
    made = MergeController(
        interval=7, rehearsal_steps=3, weights=weights, cold_start=np.int64(2), growth_short=math.inf
    )  # type: ignore[arg-type]
    options = options_of(made, "trajectory")
    assert json.loads(json.dumps(options, allow_nan=False)) == options
    assert options["controller.interval"] == 7
    assert options["controller.rehearsal_steps"] == 3
    assert options["controller.weights"]["settled_calm"] == 0.4
    assert {name.removeprefix("controller.") for name in options} == {
        "fusion",
        *inspect.signature(MergeController).parameters,
    }
