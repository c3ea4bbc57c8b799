"""Trainers that compute the loss themselves: refused when training begins, unless their loss is passed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer

from merganser import AimMerging
from merganser.errors import InputError
from tests import tiny
from tests.training.test_aim import NEW, OLD, Regression, collate, eager
from tests.training.test_other_loops import arguments, lora_llama


class Silent(Regression):
    """Returns no loss: its trainer computes it from what it returns."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        residual = self.outer(torch.tanh(self.inner(x))).squeeze(-1) - y
        return (residual,) if self.output is tuple else {"residual": residual}


class OwnLoss(Trainer):
    """Computes the loss itself, as TRL's trainers of preferences do."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
        found = model(**inputs)
        residual = found[0] if isinstance(found, tuple) else found["residual"]
        inputs.clear()  # as a Trainer that smooths labels takes them out of the batch
        return residual.pow(2).mean()


@pytest.mark.parametrize(("output", "reason"), [(dict, "KeyError: 'loss'"), (tuple, "TypeError: its first output")])
def test_a_trainer_with_a_loss_of_its_own_must_pass_it(output: Any, reason: str, tmp_path: Path) -> None:
    def trainer_of(model: nn.Module) -> OwnLoss:
        return OwnLoss(model, arguments(tmp_path, save_strategy="no"), train_dataset=NEW, data_collator=collate)

    trainer = trainer_of(Silent(output))
    trainer.add_callback(AimMerging(OLD, eager()))
    with pytest.raises(InputError, match=rf"returns no loss .*{reason}.*loss=merganser.loss_of"):
        trainer.train()
    assert trainer.state.global_step == 0
    trainer = trainer_of(Silent(output))
    aim = AimMerging(OLD, eager(), loss=trainer.compute_loss)
    trainer.add_callback(aim)
    trainer.train()
    plain = AimMerging(OLD, eager())
    Trainer(
        Regression(),
        arguments(tmp_path, save_strategy="no"),
        train_dataset=NEW,
        data_collator=collate,
        callbacks=[plain],
    ).train()
    assert [merge.norm_old for merge in aim.merges] == [merge.norm_old for merge in plain.merges]


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
def test_trl_dpo_trainer_is_refused_before_its_first_step(tmp_path: Path) -> None:
    """`examples/dpo_trainer.py` shows how it works."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = [{"prompt": text[:8], "chosen": text[8:14], "rejected": text[14:20]} for text in tiny.TEXTS]
    model, tokenizer = lora_llama(tmp_path / "model")
    given = DPOConfig(
        output_dir=str(tmp_path / "out"), max_steps=4, report_to=[], disable_tqdm=True, use_cpu=True, bf16=False
    )
    trainer = DPOTrainer(model, args=given, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.add_callback(AimMerging(trainer.train_dataset.select(range(4))))
    with pytest.raises(InputError, match=r"returns no loss .*loss=merganser.loss_of"):
        trainer.train()
    assert trainer.state.global_step == 0
