"""States in checkpoints from which AimMerging does not resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from merganser import AimConfig, AimMerging
from merganser.errors import InputError
from tests.training.test_aim import NEW, OLD, collate, eager
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
        assert aim.signals == []
        values.write_text(kept[0])
        tensors.write_bytes(kept[1])

    tensors.write_bytes(kept[1][:-1])
    refused("is damaged")
    tensors.unlink()
    refused("is damaged")
    values.write_text(kept[0][:-9])
    refused("is damaged")
    values.write_text(json.dumps({**json.loads(kept[0]), "format": 1}))
    refused("has format 1; this version reads 2")
    values.write_text((tmp_path / "run/checkpoint-5/aim_merging.json").read_text())
    refused("does not belong to the weights at step 10")
    held = json.loads(kept[0])
    values.write_text(json.dumps({**held, "size": held["size"] * 1.01}))
    refused("does not belong to the weights")
    values.unlink()
    refused("there is no aim_merging.json in")


def resumed_with(folder: Path, config: AimConfig, **more: Any) -> None:
    aim = AimMerging(OLD, config, probe_dropout=True, **more)
    trainer = Trainer(Noisy(), arguments(folder), train_dataset=NEW, data_collator=collate, callbacks=[aim])
    trainer.train(resume_from_checkpoint=True)


def test_other_decisions_than_those_training_began_with_are_refused(tmp_path: Path) -> None:
    interrupted(tmp_path / "run", 13)
    with pytest.raises(InputError, match=r"written with interval 4 \(now 7\), rehearsal_steps 4 \(now 7\)"):
        resumed_with(tmp_path / "run", eager(interval=7))
    with pytest.raises(InputError, match=r"written with fusion trajectory \(now importance_masks\)\. Resume with"):
        resumed_with(tmp_path / "run", eager(), fusion="importance_masks")
    resumed_with(tmp_path / "run", eager(rehearsal_steps=4))
