"""AimMerging in TRL's ``DPOTrainer``, whose model alone returns no loss: the trainer's own loss is passed.

    pip install trl
    python examples/make_data.py
    python examples/dpo_trainer.py --model HuggingFaceTB/SmolLM2-135M --out dpo

A model learns to prefer right answers to wrong ones in a first task, then in a second one while it rehearses pairs of
the first. ``loss_of`` returns the trainer's loss, and the trainer must exist before: ``trainer.add_callback``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merganser import AimMerging, loss_of


def pairs(file: Path, text: str, answer: str) -> Any:
    """A ``datasets.Dataset`` with a prompt, its answer as chosen, and the next other answer of the file as rejected."""
    from datasets import Dataset

    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    answers = [row[answer] for row in rows]
    wrong = [next(a for a in [*answers[i:], *answers] if a != right) for i, right in enumerate(answers)]
    return Dataset.from_list(
        [
            {"prompt": f"{row[text]}\n", "chosen": right, "rejected": other}
            for row, right, other in zip(rows, answers, wrong, strict=True)
        ]
    )


def main(arguments: Sequence[str] | None = None) -> AimMerging:
    parser = argparse.ArgumentParser(description="AimMerging in TRL's DPOTrainer.")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M", help="hub id or folder")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data", help="what make_data.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the trainer's files")
    parser.add_argument("--steps", type=int, default=48, help="optimizer steps per task")
    parser.add_argument("--remembered", type=int, default=8, help="pairs of the first task that are kept")
    given = parser.parse_args(arguments)

    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(given.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    def trainer_of(model: Any, task: str, dataset: Any) -> Any:
        """One trainer per task; LoRA is given to the first, and the model that comes out of it to the second."""
        return DPOTrainer(
            model,
            args=DPOConfig(
                output_dir=str(given.out / task),
                max_steps=given.steps,
                per_device_train_batch_size=8,
                learning_rate=1e-3,
                use_cpu=not torch.cuda.is_available(),  # its default, bf16, is refused without a GPU otherwise
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=LoraConfig(r=8, lora_alpha=32, task_type="CAUSAL_LM") if task == "dates" else None,
        )

    model = AutoModelForCausalLM.from_pretrained(given.model)
    dates = trainer_of(model, "dates", pairs(given.data / "dates-train.jsonl", "text", "date"))
    dates.train()
    memory = dates.train_dataset.select(range(given.remembered))

    reviews = trainer_of(dates.model, "reviews", pairs(given.data / "reviews-train.jsonl", "text", "mood"))
    aim = AimMerging(memory, interval=8, threshold_factor=2.0, loss=loss_of(reviews))
    reviews.add_callback(aim)
    reviews.train()

    for merge in aim.merges:
        print(
            f"merge after step {merge.step} ({merge.cause}): {merge.weight_new:g} new + {merge.weight_old:g} old, "
            f"loss on the memory {merge.loss_old_before:.3f} -> {merge.loss_old_after:.3f}, "
            f"next in {merge.next_interval}"
        )
    return aim


if __name__ == "__main__":
    main()
