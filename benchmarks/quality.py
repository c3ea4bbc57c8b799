"""Quality on real tasks: six text classification tasks learned in a row by a sentence encoder.

    python benchmarks/quality.py --data DATA --methods sequential replay aim joint --seeds 0 1 2 --out runs/quality
    python benchmarks/quality.py --table runs/quality > benchmarks/results/quality.md

DATA is a folder in AimMerging's layout. The order is yahoo amazon agnews dbpedia qqp sst-2; 500 training texts each, 3
epochs, learning rate 5e-3, batch 16, LoRA r 8 on query and value, memory 2 % (at least one text per label), up to 500
test texts each. The encoder compares a text with its label texts and has no use for the instruction that the files put
around every text ("What is the topic ... Option: ..."), so the text alone is read, cut at 64 tokens. The encoder's own
dropout is off (the adapters keep theirs) and its attention is computed eagerly: twice the speed on a processor.

Runs that are there are continued or skipped; ``--split dev`` scores development texts instead, for choosing settings.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from merganser.config import check_config
from merganser.demo import demo_model
from merganser.events import Event, Merged, RowDone
from merganser.learner import Learner
from merganser.metrics import t_interval
from merganser.runs import read_run
from merganser.streams.loading import load_stream
from merganser.streams.options import StreamOptions
from merganser.streams.task import Example, Task

ORDER = ["yahoo", "amazon", "agnews", "dbpedia", "qqp", "sst-2"]
LABEL_TEXTS = {
    "qqp": {"True": "the two questions have the same meaning", "False": "the two questions have different meanings"},
    "amazon": {
        label: f"a {label} review" for label in ("very negative", "negative", "neutral", "positive", "very positive")
    },
    "sst-2": {"Good": "a good movie", "Bad": "a bad movie"},
}
INSTRUCTION = re.compile(r"\A[^\n]*Option:[^\n]*\n(.*?)\n?Answer:\s*\Z", re.DOTALL)


def bare(example: Example) -> Example:
    """The example without the instruction around its text."""
    match = INSTRUCTION.match(example.input)
    return replace(example, input=match[1].strip()) if match and match[1].strip() else example


def tasks(data: Path, split: str, texts: int, tests: int) -> list[Task]:
    """The stream, scored on ``split``."""
    stream = load_stream(
        StreamOptions(folder=str(data), order=ORDER, limit=texts, limit_test=tests, limit_dev=tests), Path.cwd()
    )
    return [
        replace(
            task,
            train=tuple(map(bare, task.train)),
            dev=(),
            test=tuple(map(bare, task.test if split == "test" else task.dev)),
            spec=replace(task.spec, label_texts=LABEL_TEXTS.get(task.name, {}), mode="rank"),
        )
        for task in stream.tasks
    ]


def settings(method: dict[str, Any], seed: int) -> dict[str, Any]:
    """The configuration of one run."""
    return {
        "model": {"name": demo_model(), "kind": "matcher", "lora": {"r": 8}, "dropout": 0.0, "attention": "eager"},
        "method": method,
        "memory": {"share": 0.02, "minimum_per_label": 1},
        "training": {"epochs": 3, "batch": 16, "learning_rate": 5e-3, "warmup": 0.06, "max_input": 64},
        "evaluation": {"future": False},
        "seed": seed,
    }


def learn(arguments: argparse.Namespace) -> None:
    """Make every run that is asked for and not there."""
    stream = tasks(arguments.data, arguments.split, arguments.texts, arguments.tests)
    for seed in arguments.seeds:
        for name in arguments.methods:
            method = {"name": name, **(json.loads(arguments.options) if arguments.options else {})}
            out = arguments.out / f"{name}{arguments.tag}-{seed}"

            def print_progress(event: Event, label: str = out.name) -> None:
                if isinstance(event, RowDone):
                    scores = {task: round(100 * value, 1) for task, value in event.scores.items()}
                    print(label, "+".join(event.learned) or "before", scores, flush=True)
                elif isinstance(event, Merged):
                    print(label, "merge", event.step, event.cause, event.next_interval, flush=True)

            with Learner.of_config(
                out, check_config(settings(method, seed), "quality"), listener=print_progress
            ) as learner:
                learner.learn_stream(stream)
            print(label_summary(out), flush=True)


def label_summary(out: Path) -> str:
    """OP and BWT of one run in a line."""
    metrics = {metric.name: metric.value for metric in read_run(out).scores.summary}
    keys = [key for key in ("OP", "BWT", "learning accuracy") if metrics[key] is not None]
    return f"{out.name}: " + ", ".join(f"{key} {metrics[key]:.3f}" for key in keys)


def table(folder: Path) -> str:
    """The committed table: mean over seeds, t interval, cost."""
    groups: dict[str, list[Path]] = {}
    for run in sorted(folder.iterdir()):
        if (run / "run.yaml").is_file():
            groups.setdefault(run.name.rsplit("-", 1)[0], []).append(run)
    lines = [
        "| method | seeds | OP | BWT | learning accuracy | seconds | memory examples |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in groups.items():
        records = [read_run(run) for run in runs]
        found = [{m.name: m.value for m in record.scores.summary} for record in records]
        cells = []
        for metric in ("OP", "BWT", "learning accuracy"):
            values = [each[metric] for each in found if each[metric] is not None]
            if not values:
                cells.append("-")
                continue
            mean, half = t_interval([100 * value for value in values])
            cells.append(f"{mean:.1f}" + (f" ± {half:.1f}" if half is not None else ""))
        seconds = statistics.mean(sum(t.cost.seconds - t.cost.evaluating_seconds for t in r.tasks) for r in records)
        kept = statistics.mean(sum(t.memory.examples for t in r.tasks) for r in records)
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} | {seconds:.0f} | {kept:.0f} |")
    versions = read_run(next(iter(groups.values()))[0]).info.versions
    lines += ["", "OP, BWT and learning accuracy in percent: mean over seeds ± half a 95 % t interval.", ""]
    lines += [f"Made with {', '.join(f'{key} {value}' for key, value in versions.items())}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--methods", nargs="+", default=["sequential", "replay", "aim", "joint"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--split", choices=["test", "dev"], default="test")
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--tests", type=int, default=500)
    parser.add_argument("--options", help="options of the method, as JSON")
    parser.add_argument("--tag", default="", help="added to the name of the runs")
    parser.add_argument("--table", type=Path, help="print the table of the runs in this folder")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.table))
    elif arguments.data:
        learn(arguments)
    else:
        parser.error("--data or --table is needed")


if __name__ == "__main__":
    main()
