"""AimMerging in trainers that know nothing of it: the ways to train they offer, and resuming by their own mechanism."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from merganser import AimMerging
from merganser.errors import InputError, RunError
from tests import tiny
from tests.training.test_aim import BATCH, NEW, OLD, Regression, collate, eager, paper

STEPS = 24


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Stop(TrainerCallback):
    """Ends the process, as it were, after a step; placed after AimMerging."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


class Noisy(Regression):
    """With dropout, so that random states matter."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return super().forward(nn.functional.dropout(x, 0.3, self.training), y)


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    given: dict[str, Any] = {
        "max_steps": STEPS,
        "save_strategy": "steps",
        "save_steps": 5,
        **more,
    }
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        learning_rate=0.05,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        label_names=["y"],
        seed=5,
        **given,
    )


def make(folder: Path, stop: int = 0, resume_from: Path | None = None, **more: Any) -> tuple[Trainer, AimMerging]:
    aim = AimMerging(OLD, eager(), probe_dropout=True, resume_from=resume_from)
    trainer = Trainer(
        Noisy(),
        arguments(folder, **more),
        train_dataset=NEW,
        eval_dataset=OLD,
        data_collator=collate,
        callbacks=[aim, Stop(stop)],
    )
    return trainer, aim


def interrupted(folder: Path, stop: int, **more: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(folder, stop, **more)[0].train()


def same(one: tuple[Trainer, AimMerging], other: tuple[Trainer, AimMerging]) -> None:
    for left, right in zip(one[0].model.parameters(), other[0].model.parameters(), strict=True):
        assert torch.equal(left, right)
    assert one[1].merges == other[1].merges
    assert one[1].signals == other[1].signals
    assert one[1].cost.examples_rehearsed == other[1].cost.examples_rehearsed


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine", "save_steps": 4},
        {"eval_strategy": "steps", "eval_steps": 3, "num_train_epochs": 3, "max_steps": -1, "save_strategy": "epoch"},
        {"bf16": True},
    ],
    ids=["plain", "accumulation", "epochs, evaluation in between", "bf16"],
)
def test_resumed_by_the_trainers_own_mechanism_it_ends_in_the_same_bits(more: dict[str, Any], tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", **more)
    whole[0].train()
    assert len(whole[1].merges) >= 3
    interrupted(tmp_path / "run", 13, **more)
    for merges_by in (18, None):
        again = make(tmp_path / "run", merges_by or 0, **more)
        if merges_by:
            with pytest.raises(KeyboardInterrupt):
                again[0].train(resume_from_checkpoint=True)
        else:
            again[0].train(resume_from_checkpoint=True)
            same(whole, again)
    last = sorted((tmp_path / "run").glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)[-1]
    held = json.loads((last / "aim_merging.json").read_text())
    assert set(held) == {"format", "step", "size", "settings", "values"}
    assert not list((tmp_path / "run").rglob("*.partial"))


@pytest.mark.parametrize("stop", [0, 13])
def test_training_that_starts_over_is_that_of_a_fresh_instance(stop: int, tmp_path: Path) -> None:
    whole = make(tmp_path / "whole")
    whole[0].train()
    used = trainer, aim = make(tmp_path / "used", stop)
    with pytest.raises(KeyboardInterrupt) if stop else contextlib.nullcontext():
        trainer.train()
    before = aim.merges
    kept = list(before)
    trainer.remove_callback(Stop)
    trainer.model.load_state_dict(Noisy().state_dict())
    trainer.optimizer = trainer.lr_scheduler = None
    set_seed(trainer.args.seed)
    trainer.train()
    same(whole, used)
    assert before == kept  # whoever holds the records of the training before keeps them


def test_from_a_checkpoint_elsewhere(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole")
    whole[0].train()
    interrupted(tmp_path / "run", 13)
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "run" / "checkpoint-10", moved)
    nowhere = make(tmp_path / "new")
    with pytest.raises(InputError, match=r"no aim_merging.json in '.*new/checkpoint-10'.*resume_from"):
        nowhere[0].train(resume_from_checkpoint=str(moved))
    told = make(tmp_path / "new", resume_from=moved)
    told[0].train(resume_from_checkpoint=str(moved))
    same(whole, told)
    named = make(tmp_path / "newer", resume_from_checkpoint=str(moved))
    named[0].train(resume_from_checkpoint=named[0].args.resume_from_checkpoint)
    same(whole, named)


class Enough(TrainerCallback):
    """Stops training at a step, in an event of the trainer's."""

    def __init__(self, event: str, step: int = 10) -> None:
        def stop(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step >= step

        setattr(self, event, stop)


def stopped(folder: Path, where: str, **more: Any) -> tuple[Trainer, AimMerging]:
    aim = AimMerging(OLD, eager())
    event, _, place = where.partition(", ")
    callbacks = [Enough(event), aim] if place == "before" else [aim, Enough(event)]
    given = arguments(folder, eval_strategy="steps", eval_steps=5, **more)
    trainer = Trainer(
        Regression(), given, train_dataset=NEW, eval_dataset=OLD, data_collator=collate, callbacks=callbacks
    )
    trainer.train()
    return trainer, aim


def test_training_that_is_stopped_early_is_merged_at_its_end(tmp_path: Path) -> None:
    at_once = stopped(tmp_path / "0", "on_step_end, before")
    assert at_once[0].state.global_step == 10
    assert [(merge.step, merge.cause) for merge in at_once[1].merges][-1] == (10, "end")
    assert at_once[1].merges[-1].norm_old > 0
    for place, where in enumerate(("on_step_end, after", "on_evaluate, after", "on_evaluate, before"), 1):
        later = stopped(tmp_path / str(place), where)
        assert later[0].state.global_step == 10
        same(at_once, later)


def test_best_weights_put_back_after_an_early_stop_are_not_merged(tmp_path: Path) -> None:
    trainer, aim = stopped(tmp_path, "on_evaluate, after", load_best_model_at_end=True)
    assert "end" not in {merge.cause for merge in aim.merges}
    losses = {log["step"]: log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log}
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses.values()), rel=1e-6)


def test_without_checkpoints_nothing_is_written_and_one_put_elsewhere_is_an_error(tmp_path: Path) -> None:
    aim = AimMerging(OLD, eager(), checkpoints=False)
    trainer = Trainer(Noisy(), arguments(tmp_path), train_dataset=NEW, data_collator=collate, callbacks=[aim])
    trainer.train()
    assert (tmp_path / "checkpoint-5").is_dir()
    assert not list(tmp_path.rglob("aim_merging*"))
    aim.config = aim.config.changed(checkpoints=True)
    trainer.args.output_dir = str(tmp_path / "other")
    with pytest.raises(RunError, match=r"has written no checkpoint '.*other/checkpoint-24'"):
        aim.on_save(trainer.args, trainer.state, trainer.control)


def test_the_best_weights_at_the_end_are_some_that_were_evaluated(tmp_path: Path) -> None:
    """Merging goes on from the trajectory to the last step; only then the best weights are put in."""
    more = {"eval_strategy": "steps", "eval_steps": 5, "load_best_model_at_end": True}
    plain = make(tmp_path / "plain", eval_strategy="steps", eval_steps=5)
    plain[0].train()
    best = make(tmp_path / "best", **more)
    best[0].train()
    assert best[1].merges == plain[1].merges
    losses = {log["step"]: log["eval_loss"] for log in best[0].state.log_history if "eval_loss" in log}
    found = min(losses, key=lambda step: losses[step])
    assert best[0].state.best_global_step == found
    assert best[0].evaluate()["eval_loss"] == pytest.approx(losses[found], rel=1e-6)
    assert found != STEPS


def lora_llama(folder: Path) -> tuple[Any, Any]:
    """A tiny Llama with LoRA, and its tokenizer."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, LlamaForCausalLM

    tiny.tiny_llama(folder, pad=True, chat=True)
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, task_type="CAUSAL_LM")
    return get_peft_model(LlamaForCausalLM.from_pretrained(folder), config), AutoTokenizer.from_pretrained(folder)


def tokenised(tokenizer: Any, number: int, seq2seq: bool = False) -> list[dict[str, Any]]:
    rows = []
    for index in range(number):
        text = tiny.TEXTS[index % len(tiny.TEXTS)]
        ids = tokenizer(text[: 20 + index % 9])["input_ids"]
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids[:4] if seq2seq else ids})
    return rows


def often(memory: Any) -> AimMerging:
    """Merges every few steps."""
    return AimMerging(memory, paper(interval=2, cold_start=1, threshold_factor=1.01, max_interval=4))


WAYS = {
    "gradient checkpointing": {"gradient_checkpointing": True},
    "grouped by length": {"train_sampling_strategy": "group_by_length"},
    "bf16, accumulation": {"bf16": True, "gradient_accumulation_steps": 2},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_causal_model_with_lora(way: str, tmp_path: Path) -> None:
    from transformers import DataCollatorForSeq2Seq

    model, tokenizer = lora_llama(tmp_path / "model")
    before = {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}
    data = tokenised(tokenizer, 16)
    aim = often(data[:6])
    given = arguments(tmp_path / "out", max_steps=8, save_strategy="no", lr_scheduler_type="constant", **WAYS[way])
    collator = DataCollatorForSeq2Seq(tokenizer)
    Trainer(model, given, train_dataset=data[6:], data_collator=collator, callbacks=[aim]).train()
    assert [signal.step for signal in aim.signals] == list(range(1, 9))
    assert aim.merges
    assert all(merge.norm_new > 0 and merge.norm_old > 0 for merge in aim.merges)
    assert all(math.isfinite(signal.probe) for signal in aim.signals if signal.probe is not None)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters() if name in before)


def test_seq2seq_trainer_with_generation_in_between(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, T5ForConditionalGeneration

    tiny.tiny_t5(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    data = tokenised(tokenizer, 16, seq2seq=True)

    def learned(folder: Path, stop: int = 0, resume: bool = False) -> tuple[Seq2SeqTrainer, AimMerging]:
        model = T5ForConditionalGeneration.from_pretrained(tmp_path / "model")
        aim = often(data[:6])
        given = Seq2SeqTrainingArguments(
            output_dir=str(folder),
            max_steps=9,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            eval_strategy="steps",
            eval_steps=3,
            save_steps=3,
            predict_with_generate=True,
            generation_max_length=4,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Seq2SeqTrainer(
            model,
            given,
            train_dataset=data[6:],
            eval_dataset=data[:4],
            data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
            callbacks=[aim, Stop(stop)],
        )
        if stop:
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
        else:
            trainer.train(resume_from_checkpoint=resume)
        return trainer, aim

    whole = learned(tmp_path / "whole")
    assert whole[1].merges
    learned(tmp_path / "run", stop=8)
    same(whole, learned(tmp_path / "run", resume=True))


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
def test_trl_sft_trainer(tmp_path: Path) -> None:
    """Prompts with completions; the memory is what the trainer of the first task made of its examples."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [{"prompt": text[:14], "completion": text[14:]} for text in tiny.TEXTS]

    def learned(folder: Path, callbacks: list[Any], resume: bool = False) -> Any:
        model, tokenizer = lora_llama(folder / "model")
        given = SFTConfig(
            output_dir=str(folder / "out"),
            max_steps=8,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            save_steps=3,
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
        )
        dataset = Dataset.from_list(rows[:4] if not callbacks else rows[4:])
        trainer = SFTTrainer(model, args=given, train_dataset=dataset, processing_class=tokenizer, callbacks=callbacks)
        if callbacks and callbacks[-1].step:
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
        else:
            trainer.train(resume_from_checkpoint=resume)
        return trainer

    memory = learned(tmp_path / "first", []).train_dataset

    with pytest.raises(InputError, match=r"No batch can be made of the memory's examples: they have no .*input_ids"):
        learned(tmp_path / "raw", [often(rows[:4]), Stop(0)])
    merging = often(memory)
    whole = learned(tmp_path / "whole", [merging, Stop(0)])
    assert merging.merges
    assert all(merge.norm_old > 0 for merge in merging.merges if merge.step < 8)  # where the rate is 0
    learned(tmp_path / "run", [often(memory), Stop(7)])
    again = often(memory)
    same((whole, merging), (learned(tmp_path / "run", [again, Stop(0)], resume=True), again))
