"""AimMerging's checkpoints where two real processes share the weights out (FSDP2)."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerControl

from merganser import AimMerging, processes
from merganser.errors import InputError, RunError
from merganser.training.aim.checkpoint import Identity, read_state
from merganser.training.distributed import reshard, sharded_copy
from merganser.weights import Weights
from tests.cli.spawner import Spawner
from tests.cli.test_processes import succeed, together
from tests.training.test_aim import NEW, OLD, Regression, collate, eager

STEPS, SAVED, RATE = 16, 7, 0.05
HERE = "tests.training.test_sharded"


class Layered(Regression):
    """Names the layers to wrap, as the models of transformers do."""

    _no_split_modules = ("Linear",)


class Loop:
    """A trainer of sharded weights that calls the callback where ``transformers.Trainer`` does: stochastic gradient
    descent, so that the weights are all there is to put back. (``Trainer`` itself shares weights out on GPUs alone.)
    """

    def __init__(self, folder: Path, fusion: Any) -> None:
        self.model = sharded_copy(Layered(), "cpu")
        self.aim = AimMerging(OLD, eager(), batch=4, fusion=fusion)
        self.args = SimpleNamespace(
            output_dir=str(folder),
            per_device_train_batch_size=2,
            train_batch_size=2,
            gradient_accumulation_steps=1,
            seed=5,
            max_grad_norm=1.0,
            resume_from_checkpoint=None,
            load_best_model_at_end=False,
        )
        self.optimizer = torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], RATE)
        self.loader = SimpleNamespace(dataset=NEW, collate_fn=collate)

    def run(self, first: int = 1, last: int = STEPS, save: int = 0) -> Weights | None:
        """Steps ``first`` to ``last``; the weights at a checkpoint after step ``save``."""
        kept = None
        given: Any = {"model": self.model, "optimizer": self.optimizer, "train_dataloader": self.loader}
        control = TrainerControl()
        state: Any = SimpleNamespace(global_step=first - 1, max_steps=STEPS, is_world_process_zero=processes.is_main())
        self.aim.on_train_begin(self.args, state, control, **given)
        for step in range(first, last + 1):
            part, _ = processes.local_part([NEW[(4 * step + number) % len(NEW)] for number in range(4)])
            self.model(**collate(part))["loss"].backward()
            self.aim.on_pre_optimizer_step(self.args, state, control, **given)
            self.optimizer.step()
            self.optimizer.zero_grad()
            state.global_step = step
            self.aim.on_step_end(self.args, state, control, **given)
            if step == save:
                processes.on_main(lambda: Path(self.args.output_dir, f"checkpoint-{save}").mkdir(parents=True))
                self.aim.on_save(self.args, state, control, **given)
                kept = Weights.of(self.model).snapshot()
        return kept


def put_in(model: nn.Module, weights: Weights) -> None:
    reshard(model)
    Weights.of(model).copy_(weights)


def resume(folder: str, fusion: str) -> None:
    """In each process: train through, and train again from the checkpoint in the middle."""
    processes.initialize()
    whole, again = Loop(Path(folder), fusion), Loop(Path(folder), fusion)
    kept = whole.run(save=SAVED)
    assert kept is not None
    assert kept.sharded
    assert [merge.step < SAVED for merge in whole.aim.merges].count(True) >= 1
    assert len(whole.aim.merges) >= 3
    put_in(again.model, kept)
    again.run(first=SAVED + 1)
    assert again.aim.merges == whole.aim.merges
    assert again.aim.signals == whole.aim.signals
    for name, weight in Weights.of(whole.model).items():
        assert torch.equal(weight, Weights.of(again.model)[name]), name
    size = kept.l1()
    processes.on_main(lambda: Path(folder, "size.json").write_text(json.dumps(size)))
    processes.exit_after_barrier()


def broken(folder: str) -> None:
    """In each process: the file of the second one is missing, and both say so instead of waiting for each other."""
    processes.initialize()
    loop = Loop(Path(folder), "trajectory")
    kept = loop.run(last=SAVED, save=SAVED)
    assert kept is not None
    processes.on_main(lambda: next(Path(folder).rglob("*process-1*")).unlink())
    again = Loop(Path(folder), "trajectory")
    put_in(again.model, kept)
    with pytest.raises(InputError, match=r"is damaged: .*process-1"):
        again.run(first=SAVED + 1)
    loop.args.output_dir += "/elsewhere"
    with pytest.raises(RunError, match="has written no checkpoint"):
        loop.aim.on_save(
            loop.args,
            SimpleNamespace(global_step=SAVED, is_world_process_zero=processes.is_main()),  # type: ignore[arg-type]
            TrainerControl(),
        )
    processes.exit_after_barrier()


@pytest.mark.parametrize("fusion", ["trajectory", "importance_masks"])
def test_training_resumes_from_a_checkpoint_to_the_same_bits(spawner: Spawner, tmp_path: Path, fusion: str) -> None:
    succeed(together(spawner, tmp_path, fusion, call=f"{HERE}:resume"))
    (folder,) = tmp_path.glob("checkpoint-*")
    names = ["aim_merging.json", "aim_merging.process-0.safetensors", "aim_merging.process-1.safetensors"]
    assert sorted(file.name for file in folder.iterdir()) == names
    size = json.loads((tmp_path / "size.json").read_text())
    with pytest.raises(InputError, match="by 2 processes with sharded weights; now it is a process with full"):
        read_state([folder], Identity(SAVED, size, False, {}))
    with pytest.raises(InputError, match=r"by 2 processes .*; now it is 1 process with"):
        read_state([folder], Identity(SAVED, size, True, {}))


def test_what_one_process_cannot_read_or_write_is_an_error_in_both(spawner: Spawner, tmp_path: Path) -> None:
    succeed(together(spawner, tmp_path, call=f"{HERE}:broken"))
