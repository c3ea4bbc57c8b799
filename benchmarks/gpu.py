"""Speed and memory on a GPU, of models with random weights in the shapes of Llama, in eight minutes at most.

    python benchmarks/gpu.py --out OUT                        # on a machine with a GPU
    python benchmarks/gpu.py --out OUT --shapes toy           # the same on a processor, in miniature

Prints, per shape: tokens per second and peak memory of transformers' own ``Trainer``, of ``sequential``, ``replay`` and
``aim``, each packed and not, and with 4-bit weights; the share of the time that goes into merging and into bookkeeping;
and whether a run that was killed resumes bit for bit. Weights are random bf16 numbers made on the device, adapters have
rank 16 on all linear layers, and the conversations are made up: only time and memory mean something here.

The table goes to OUT/gpu.md as well. What does not fit into ``--minutes`` is left out and named.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from merganser.runs.checkpoint import list_checkpoints

SHAPES: dict[str, dict[str, int]] = {
    "toy": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "1.5B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 22, "num_attention_heads": 16},
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}
WORDS = [f"{first}{second}" for first in "bdfgklmnprst" for second in ("a", "e", "i", "o", "u", "ai", "ou")]
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>", "<|unk|>"]


def device() -> torch.device:
    """Return the device that accelerate chooses."""
    from accelerate import PartialState

    return PartialState().device


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of whole made-up words with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        additional_special_tokens=SPECIAL[:3],
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def write_model(folder: Path, shape: str) -> int:
    """Write a Llama of random bf16 weights, made on the device; return its number of weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    config = LlamaConfig(**SHAPES[shape], vocab_size=32_000, max_position_embeddings=2048, dtype="bfloat16")
    config.eos_token_id, config.pad_token_id, config.bos_token_id = 3, 4, None
    torch.manual_seed(0)
    with torch.device(device()):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def write_chats(file: Path, rows: int, words: int, seed: int) -> None:
    """Write conversations of one turn; their lengths vary from a quarter to the whole of ``words``."""
    draw = random.Random(seed)
    with file.open("w", encoding="utf-8") as lines:
        for _ in range(rows):
            question = " ".join(draw.choices(WORDS, k=draw.randint(words // 4, words)))
            answer = " ".join(draw.choices(WORDS, k=draw.randint(words // 8, words // 2)))
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            lines.write(json.dumps({"messages": turns}) + "\n")


class Clock:
    """What is left of the time, and what was left out for lack of it."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.left_out: list[str] = []

    def allows(self, what: str, seconds: float) -> bool:
        """Whether ``seconds`` are left; else note what is left out."""
        if time.monotonic() + seconds < self.end:
            return True
        self.left_out.append(what)
        return False


def peak_of(work: Callable[[], Any]) -> tuple[Any, float | None]:
    """Run some work; return its result and the peak memory of the device in GiB (``None`` on a processor)."""
    if not torch.cuda.is_available():
        return work(), None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    result = work()
    return result, torch.cuda.max_memory_allocated() / 2**30


def plain_trainer(model: Path, file: Path, steps: int, batch: int) -> float:
    """Return the tokens per second of transformers' Trainer with the same adapters and data, after two steps."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    network = get_peft_model(network, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        ids = tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=True, return_dict=True)["input_ids"]
        rows.append({"input_ids": ids, "labels": list(ids), "attention_mask": [1] * len(ids)})

    def seconds(count: int) -> float:
        arguments = TrainingArguments(
            output_dir=str(file.parent / "plain"), max_steps=count, per_device_train_batch_size=batch, report_to="none",
            save_strategy="no", logging_strategy="no", disable_tqdm=True, bf16=torch.cuda.is_available(), seed=0,
        )  # fmt: skip
        trainer = Trainer(
            model=network, args=arguments, train_dataset=rows, data_collator=DataCollatorForSeq2Seq(tokenizer)
        )
        started = time.perf_counter()
        trainer.train()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started

    seconds(2)
    tokens = sum(len(row["input_ids"]) for row in rows) / len(rows) * batch * steps
    return tokens / seconds(steps)


def stream_file(out: Path, model: Path, files: list[Path], arguments: argparse.Namespace, **options: Any) -> Path:
    """Write the YAML file of a run over two tasks and return its path."""
    import yaml

    training = {
        "steps": arguments.steps, "batch": arguments.batch, "learning_rate": 1e-4, "warmup": 0.1, "max_input": 1024,
        "max_target": 512, "packing": options.get("packing", "none"), "checkpoint_steps": options.get("every"),
    }  # fmt: skip
    content = {
        "model": {
            "name": str(model),
            "kind": "causal",
            "weights": options.get("weights", "bf16"),
            "lora": {"r": 16, "alpha": 32, "targets": "all-linear"},
        },
        "stream": {"tasks": [{"name": file.stem, "train": str(file)} for file in files]},
        "method": options.get("method", "aim"),
        "memory": {"share": 0.1},
        "training": {key: value for key, value in training.items() if value is not None},
    }
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def learn(out: Path, config: Path) -> Any:
    """Run a configuration in this process and return the run's record."""
    from merganser.config import load_config
    from merganser.learner import Learner
    from merganser.streams.loading import load_stream

    loaded = load_config(config)
    with Learner.of_config(out, loaded) as learner:
        learner.learn_stream(load_stream(loaded.stream, config.parent).tasks)
        return learner.record


def tokens_of(file: Path) -> float:
    """Return the mean number of tokens of the conversations in a file: a word or a special token is one."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return sum(4 + sum(len(turn["content"].split()) for turn in json.loads(line)["messages"]) for line in lines) / len(
        lines
    )


def measured(record: Any, tokens: float, batch: int, steps: int) -> tuple[float, float, float]:
    """Return tokens per second of the second task (its own batches), and the shares of merging and of bookkeeping."""
    cost = record.tasks[-1].cost
    training = cost.inner_seconds + cost.probing_seconds + cost.rehearsal_seconds
    rest = cost.seconds - training - cost.merging_seconds
    return tokens * batch * steps / cost.inner_seconds, cost.merging_seconds / cost.seconds, rest / cost.seconds


def resumes(work: Path, config: Path, whole: Path) -> str:
    """Kill a run in its second task, start it again, and compare its weights with those of a whole run."""
    out = work / "killed"
    command = [sys.executable, "-m", "merganser", "run", str(config), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not _in_second_task(out):
        time.sleep(0.05)
    killed = process.poll() is None
    if killed:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    names = [file.relative_to(whole / "model") for file in (whole / "model").rglob("*.safetensors")]
    same = all(filecmp.cmp(whole / "model" / name, out / "model" / name, shallow=False) for name in names)
    return f"{'killed' if killed else 'ended before it could be killed'}; weights {'equal' if same else 'DIFFER'}"


def _in_second_task(out: Path) -> bool:
    return any(checkpoint.name.startswith("02-") for checkpoint in list_checkpoints(out))


def lines(arguments: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the table as they are measured."""
    clock = Clock(arguments.minutes)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    yield f"# Speed and memory on {name}\n"
    yield "| shape | weights | method | packing | tokens/s | peak GiB | merging | bookkeeping |"
    yield "|---|---|---|---|---|---|---|---|"
    for shape in arguments.shapes:
        work = arguments.out / shape
        model = work / "model"
        weights = write_model(model, shape)
        files = [work / "first.jsonl", work / "second.jsonl"]
        for seed, file in enumerate(files):
            write_chats(file, arguments.rows, arguments.words, seed)
        tokens = tokens_of(files[1])
        started = time.monotonic()
        speed, peak = peak_of(lambda: plain_trainer(model, files[1], arguments.steps, arguments.batch))  # noqa: B023
        last = time.monotonic() - started
        yield f"| {shape} ({weights / 1e9:.2f} billion) | bf16 | Trainer | none | {speed:,.0f} | {_gib(peak)} | | |"
        cases = [(held, method, packing) for held in arguments.weights for packing in ("none", "padding_free")
                 for method in ("sequential", "replay", "aim")]  # fmt: skip
        for held, method, packing in cases:
            if not clock.allows(f"{shape} {held} {method} {packing}", 1.2 * last):
                continue
            started = time.monotonic()
            out = work / f"{held}-{method}-{packing}"
            config = stream_file(out, model, files, arguments, weights=held, method=method, packing=packing)
            record, peak = peak_of(lambda: learn(out, config))  # noqa: B023
            speed, merging, rest = measured(record, tokens, arguments.batch, arguments.steps)
            cells = [shape, held, method, packing, f"{speed:,.0f}", _gib(peak), f"{merging:.1%}", f"{rest:.1%}"]
            yield f"| {' | '.join(cells)} |"
            last = max(last, time.monotonic() - started)
        if clock.allows(f"{shape} killed and resumed", 3 * last):
            every = max(1, arguments.steps // 4)
            config = stream_file(work / "whole", model, files, arguments, every=every)
            learn(work / "whole", config)
            yield f"\nA run of `aim`, {shape}, {resumes(work, config, work / 'whole')}.\n"
        shutil.rmtree(model)
    if clock.left_out:
        yield f"\nNot measured for lack of time: {'; '.join(clock.left_out)}."


def _gib(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for models, runs and the table")
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), default=["1.5B", "7B"])
    parser.add_argument("--weights", nargs="*", default=["bf16", "4bit"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rows", type=int, default=200, help="conversations per task")
    parser.add_argument("--words", type=int, default=400, help="words of the longest question")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which nothing new is begun")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.out = arguments.out.resolve()
    with (arguments.out / "gpu.md").open("w", encoding="utf-8") as table:
        for line in lines(arguments):
            print(line, flush=True)
            print(line, file=table, flush=True)


if __name__ == "__main__":
    main()
