"""AimMerging in TRL's ``SFTTrainer``, interrupted and resumed by the trainer's own checkpoints.

    pip install trl
    python examples/make_data.py
    python examples/sft_trainer.py --model HuggingFaceTB/SmolLM2-135M --out sft
    python examples/sft_trainer.py --model HuggingFaceTB/SmolLM2-135M --out sft --resume    # after an interruption

A model learns a first task, then a second one while it rehearses examples of the first, as ``SFTTrainer`` built them
from prompts and completions. With ``--resume``, an interrupted second task resumes from the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merganser import AimMerging


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description="AimMerging in TRL's SFTTrainer.")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M", help="hub id or folder")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data", help="what make_data.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the first task's model")
    parser.add_argument("--steps", type=int, default=48, help="optimizer steps per task")
    parser.add_argument("--save-steps", type=int, default=8, help="steps from one checkpoint to the next")
    parser.add_argument("--remembered", type=int, default=8, help="examples of the first task that are kept")
    parser.add_argument("--resume", action="store_true", help="resume the second task from its last checkpoint")
    return parser.parse_args(arguments)


def prompts(file: Path, text: str, answer: str) -> Any:
    """A ``datasets.Dataset`` with a prompt and a completion per example, as ``SFTTrainer`` reads them."""
    from datasets import Dataset

    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return Dataset.from_list([{"prompt": f"{row[text]}\n", "completion": row[answer]} for row in rows])


def main(arguments: Sequence[str] | None = None) -> AimMerging:
    given = options(arguments)

    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(given.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    def trainer_of(model: Any, task: str, dataset: Any, callbacks: Sequence[Any] = ()) -> Any:
        """One trainer per task; LoRA is given to the first, and the model that comes out of it to the second."""
        return SFTTrainer(
            model,
            args=SFTConfig(
                output_dir=str(given.out / task),
                max_steps=given.steps,
                per_device_train_batch_size=8,
                learning_rate=1e-3,
                use_cpu=not torch.cuda.is_available(),  # its default, bf16, is refused without a GPU otherwise
                save_strategy="steps" if callbacks else "no",
                save_steps=given.save_steps,
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=None if callbacks else LoraConfig(r=8, lora_alpha=32, task_type="CAUSAL_LM"),
            callbacks=list(callbacks),
        )

    model = AutoModelForCausalLM.from_pretrained(given.model)
    dates = trainer_of(model, "dates", prompts(given.data / "dates-train.jsonl", "text", "date"))
    first = given.out / "dates" / "adapter"
    if given.resume:
        # The weights come from the checkpoint; the memory from the first trainer's data, which are the same again.
        dates.model.load_adapter(str(first), "default", is_trainable=True)
    else:
        dates.train()
        dates.save_model(str(first))
    memory = dates.train_dataset.select(range(given.remembered))
    aim = AimMerging(memory=memory, interval=8, threshold_factor=2.0)
    reviews = prompts(given.data / "reviews-train.jsonl", "text", "mood")
    trainer_of(dates.model, "reviews", reviews, callbacks=[aim]).train(resume_from_checkpoint=given.resume)

    for merge in aim.merges:
        print(
            f"merge after step {merge.step} ({merge.cause}): {merge.weight_new:g} new + {merge.weight_old:g} old, "
            f"loss on the memory {merge.loss_old_before:.3f} -> {merge.loss_old_after:.3f}, "
            f"next in {merge.next_interval}"
        )
    return aim


if __name__ == "__main__":
    main()
