"""AimMerging in TRL's ``GRPOTrainer``: a model learns from rewards, and rehearses prompts of an earlier task.

    pip install trl
    python examples/make_data.py
    python examples/grpo_trainer.py --model HuggingFaceTB/SmolLM2-135M --out grpo

The reward is how much a completion resembles the right answer. The memory holds prompts of the first task, which the
model answers anew at every probe and every rehearsal step: ``loss_of`` returns the reward that is missed on them, with
the gradient of the trainer's loss.
"""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merganser import AimMerging, loss_of


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description="AimMerging in TRL's GRPOTrainer.")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M", help="hub id or folder")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data", help="what make_data.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the trainer's files")
    parser.add_argument("--steps", type=int, default=48, help="optimizer steps per task")
    parser.add_argument("--tokens", type=int, default=12, help="tokens of a completion")
    parser.add_argument("--interval", type=int, default=8, help="steps from one merge to the next, to begin with")
    parser.add_argument("--remembered", type=int, default=8, help="prompts of the first task that are kept")
    return parser.parse_args(arguments)


def prompts(file: Path, text: str, answer: str) -> Any:
    """A ``datasets.Dataset`` with a prompt per example, and the right answer for the reward."""
    from datasets import Dataset

    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return Dataset.from_list([{"prompt": f"{row[text]}\n", "answer": row[answer]} for row in rows])


def resemblance(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    """The reward, from 0 to 1: the share of characters that a completion has in common with the right answer."""
    pairs = zip(completions, answer, strict=True)
    return [difflib.SequenceMatcher(None, written.strip(), right).ratio() for written, right in pairs]


def main(arguments: Sequence[str] | None = None) -> AimMerging:
    given = options(arguments)

    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(given.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    def trainer_of(model: Any, task: str, dataset: Any) -> Any:
        """One trainer per task; LoRA is given to the first, and the model that comes out of it to the second."""
        return GRPOTrainer(
            model,
            reward_funcs=resemblance,
            args=GRPOConfig(
                output_dir=str(given.out / task),
                max_steps=given.steps,
                per_device_train_batch_size=8,
                num_generations=4,
                max_completion_length=given.tokens,
                learning_rate=1e-3,
                use_cpu=not torch.cuda.is_available(),  # its default, bf16, is refused without a GPU otherwise
                bf16=torch.cuda.is_available(),
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
    dates = trainer_of(model, "dates", prompts(given.data / "dates-train.jsonl", "text", "date"))
    dates.train()
    memory = dates.train_dataset.select(range(given.remembered))

    reviews = trainer_of(dates.model, "reviews", prompts(given.data / "reviews-train.jsonl", "text", "mood"))
    aim = AimMerging(memory, batch=4, interval=given.interval, threshold_factor=1.2, loss=loss_of(reviews))
    reviews.add_callback(aim)
    reviews.train()

    for merge in aim.merges:
        print(
            f"merge after step {merge.step} ({merge.cause}): {merge.weight_new:g} new + {merge.weight_old:g} old, "
            f"missed reward on the memory {merge.loss_old_before:.3f} -> {merge.loss_old_after:.3f}, "
            f"next in {merge.next_interval}"
        )
    return aim


if __name__ == "__main__":
    main()
