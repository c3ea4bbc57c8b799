"""AimMerging in your own training script, as a callback of a stock ``transformers.Trainer``.

    python examples/make_data.py
    python examples/own_trainer.py                                            # a causal LM in Trainer
    python examples/own_trainer.py --kind seq2seq --model google/flan-t5-small   # T5 in Seq2SeqTrainer
    python examples/own_trainer.py --without                                  # the same without AimMerging

A model learns a first task, then a second one while it rehearses a few examples of the first. The script prints the
merges and the loss on both tasks' test texts before and after the second task.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merganser import AimMerging


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description="AimMerging as a callback of a stock Trainer.")
    parser.add_argument("--kind", choices=["causal", "seq2seq"], default="causal", help="what the model is")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M", help="hub id or folder")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data", help="what make_data.py wrote")
    parser.add_argument("--steps", type=int, default=48, help="optimizer steps per task")
    parser.add_argument("--remembered", type=int, default=8, help="examples of the first task that are kept")
    parser.add_argument("--without", action="store_true", help="learn the second task without AimMerging")
    return parser.parse_args(arguments)


def tokenised(file: Path, text: str, answer: str, tokenizer: Any, kind: str) -> Any:
    """A ``datasets.Dataset`` with ``input_ids``, ``attention_mask`` and ``labels`` (-100 where no loss is taken)."""
    from datasets import Dataset

    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if kind == "seq2seq":
            ids = tokenizer(row[text], truncation=True, max_length=64)["input_ids"]
            labels = tokenizer(text_target=row[answer])["input_ids"]
        else:
            prompt = tokenizer(f"{row[text]}\n", truncation=True, max_length=64)["input_ids"]
            wanted = tokenizer(row[answer], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            ids, labels = prompt + wanted, [-100] * len(prompt) + wanted
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return Dataset.from_list(rows)


def tokenizer_and_model(kind: str, name: str) -> tuple[Any, Any]:
    """The pretrained model, with LoRA."""
    import transformers
    from peft import LoraConfig, get_peft_model

    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    auto = transformers.AutoModelForSeq2SeqLM if kind == "seq2seq" else transformers.AutoModelForCausalLM
    # PEFT is a choice, too: AimMerging merges whatever parameters require gradients.
    lora = LoraConfig(r=8, lora_alpha=32, task_type="SEQ_2_SEQ_LM" if kind == "seq2seq" else "CAUSAL_LM")
    return tokenizer, get_peft_model(auto.from_pretrained(name), lora)


def show(aim: AimMerging) -> None:
    """Print a line per merge."""
    for merge in aim.merges:
        print(
            f"merge after step {merge.step} ({merge.cause}): {merge.weight_new:g} new + {merge.weight_old:g} old, "
            f"loss on the memory {merge.loss_old_before:.3f} -> {merge.loss_old_after:.3f}, "
            f"next in {merge.next_interval}"
        )


def main(arguments: Sequence[str] | None = None) -> AimMerging | None:
    given = options(arguments)

    import transformers

    transformers.set_seed(0)
    tokenizer, model = tokenizer_and_model(given.kind, given.model)
    dates = tokenised(given.data / "dates-train.jsonl", "text", "date", tokenizer, given.kind)
    reviews = tokenised(given.data / "reviews-train.jsonl", "text", "mood", tokenizer, given.kind)
    tests = {
        "dates": tokenised(given.data / "dates-test.jsonl", "text", "date", tokenizer, given.kind),
        "reviews": tokenised(given.data / "reviews-test.jsonl", "text", "mood", tokenizer, given.kind),
    }
    seq2seq = given.kind == "seq2seq"
    collator = transformers.DataCollatorForSeq2Seq(tokenizer, model=model if seq2seq else None)
    trainer_class = transformers.Seq2SeqTrainer if seq2seq else transformers.Trainer
    arguments_class = transformers.Seq2SeqTrainingArguments if seq2seq else transformers.TrainingArguments

    with tempfile.TemporaryDirectory() as folder:

        def learn(dataset: Any, callbacks: list[Any]) -> Any:
            """Train on one task with plain settings; a new Trainer, so a new optimizer and schedule, per task."""
            trainer = trainer_class(
                model=model,
                args=arguments_class(
                    output_dir=folder,
                    max_steps=given.steps,
                    per_device_train_batch_size=8,
                    learning_rate=1e-3,
                    warmup_steps=4,
                    logging_strategy="no",
                    save_strategy="no",
                    report_to=[],
                    disable_tqdm=True,
                ),
                train_dataset=dataset,
                data_collator=collator,
                callbacks=callbacks,
            )
            trainer.train()
            return trainer

        def losses(trainer: Any) -> dict[str, float]:
            return {name: trainer.evaluate(test)["eval_loss"] for name, test in tests.items()}

        before = losses(learn(dates, callbacks=[]))

        # The memory is in the form of the training data: here the first examples of the first task.
        aim = None
        if not given.without:
            memory = dates.select(range(given.remembered))
            # Every setting has a default; these two are named only to show how.
            aim = AimMerging(memory=memory, interval=8, threshold_factor=2.0)
        after = losses(learn(reviews, callbacks=[aim] if aim else []))

    if aim:
        show(aim)
    for name in tests:
        print(f"loss on {name}: {before[name]:.3f} before reviews were learned, {after[name]:.3f} after")
    return aim


if __name__ == "__main__":
    main()
