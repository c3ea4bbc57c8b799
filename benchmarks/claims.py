"""Do the claims about TRM hold here? Its construction beside plain mergers, and without each of its parts.

    scripts/fetch_fashion_mnist.sh
    python scripts/pretrain_vit.py --classes 0 1 2 3 4 --width 64 --layers 3 --patch 7 --epochs 6 --out models/vit-5
    python benchmarks/claims.py --stream fashion --seeds 0 1 2 3 4
    python benchmarks/claims.py --stream news --seeds 0 1 2 3 4
    python benchmarks/claims.py --table > benchmarks/results/claims.md

The paper's abstract is the source of the idea; the formulas and numbers here are our own.

``fashion``: the five classes of Fashion-MNIST that the vision transformer (0.1M weights, all trained) was not
pretrained on, in tasks of 2, 2 and 1; ``news``: the 20 newsgroups in five tasks of four, read by one layer of the
demonstration's encoder through LoRA. Both are class-incremental: an answer is sought among all classes seen so far. The
seed decides the order of the classes, which training examples are drawn, and training. Settings were chosen with
``--split dev`` (development examples, seeds from 100); the table is of test examples and of seeds not used before.
``no training`` answers with the pretrained weights. Interpolation ``throughout`` merges the first task with the
pretrained weights, as TRM does; without that word its first task's weights are deployed as trained (CoMA).
Each variant of TRM changes the options shown in PARTS and nothing else.

How every task but the first begins is measured by :mod:`onset`: the gradient of its loss at the weights deployed after
the task before and at those before the merge, and the steps that it takes to learn.

Runs that are in the file of results are skipped; every run adds a line to it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onset import Onset

from merganser.config import check_config
from merganser.demo import demo_model
from merganser.learner import Learner
from merganser.metrics import t_interval
from merganser.runs.versions import versions
from merganser.streams.demo import demo_stream
from merganser.streams.loading import load_stream
from merganser.streams.options import StreamOptions
from merganser.streams.task import Example, Task

RESULTS = Path(__file__).parent / "results"
CLASSES = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
FORGETTING = "forgetting (since learned)"

SHOWN = ("OP", "forgetting", "learned", "seconds", "merging_seconds")

BUDGET: dict[str, dict[str, Any]] = {"fashion": {"batch": 32, "steps": 30}, "news": {"batch": 32, "steps": 15}}
"""What TRM may spend on a merge, by stream: its defaults take longer than training does here."""

TRM: dict[str, Any] = {"name": "trm"}
PLAIN: dict[str, dict[str, Any]] = {
    "joint": {"name": "joint"},
    "sequential": {"name": "sequential"},
    "no training": {"name": "sequential"},
    "interpolation .15": {"name": "coma", "alpha": 0.15},
    "interpolation .3": {"name": "coma", "alpha": 0.3},
    "interpolation .5": {"name": "coma", "alpha": 0.5},
    "interpolation .15 throughout": {"name": "coma", "alpha": 0.15, "merge_first": True},
    "interpolation .3 throughout": {"name": "coma", "alpha": 0.3, "merge_first": True},
    "interpolation .5 throughout": {"name": "coma", "alpha": 0.5, "merge_first": True},
    "magmax": {"name": "magmax"},
    "running average": {"name": "running_average"},
    "trm": TRM,
}
PARTS: dict[str, dict[str, Any]] = {
    "without alignment": {**TRM, "ablation": {"align": "none"}},
    "alignment by divergence from the trained model": {**TRM, "ablation": {"align": "kl"}},
    "loss and consistency over other labels": {
        **TRM,
        "consistency": 0.5,
        "ablation": {"align": "loss", "kept_labels": "earlier"},
    },
    "without consistency": {**TRM, "consistency": 0.0},
    "without responsiveness": {**TRM, "responsiveness": 0.0},
    "literal responsiveness": {**TRM, "ablation": {"measure": "literal"}},
    "without ridge": {**TRM, "ridge": 0.0},
    "without path": {**TRM, "snapshots": 0},
    "without pull-back": {**TRM, "ablation": {"pull_back": False}},
    "without augmentation": {**TRM, "ablation": {"augmentation": "none"}},
    "from w = .5": {**TRM, "weight": 0.5},
    "first task not merged": {**TRM, "ablation": {"merge_first": False}},
}
SETTINGS = {**PLAIN, **PARTS}


def fashion(arguments: argparse.Namespace, seed: int) -> list[Task]:
    """Five classes in tasks of 2, 2 and 1: 400 training images each, and up to 500 to score on."""
    split = {
        "train": str(arguments.images / "train-images-idx3-ubyte.gz"),
        "test": str(arguments.images / "t10k-images-idx3-ubyte.gz"),
        "dev_share": 0.1,
        "classes": CLASSES,
        "exclude": json.loads((arguments.vit / "pretraining.json").read_text(encoding="utf-8"))["classes"],
        "classes_per_task": 2,
        "order_seed": seed,
    }
    limits = {"limit": 800, "limit_dev": 1000, "limit_test": 1000, "limit_seed": seed}
    tasks = load_stream(StreamOptions.model_validate({"split": split, **limits}), Path.cwd()).tasks
    return [replace(task, train=task.train[: 400 * len(task.spec.labels or ())]) for task in tasks]


def news(arguments: argparse.Namespace, seed: int) -> list[Task]:
    """The 20 newsgroups in tasks of 4: 50 training texts of each, and 40 to score on."""
    whole = demo_stream(1000, 800, seed, 800).tasks[0]
    names = whole.spec.require_labels("the stream of newsgroups")
    order = [names[place] for place in np.random.default_rng([seed, 20]).permutation(len(names))]

    def of(examples: Sequence[Example], labels: Sequence[str]) -> tuple[Example, ...]:
        return tuple(example for example in examples if example.output in labels)

    return [
        replace(
            whole,
            name=f"groups-{start // 4 + 1}",
            train=of(whole.train, labels),
            dev=of(whole.dev, labels),
            test=of(whole.test, labels),
            spec=replace(
                whole.spec,
                labels=tuple(labels),
                label_texts={label: whole.spec.label_texts[label] for label in labels},
            ),
        )
        for start in range(0, len(order), 4)
        for labels in [order[start : start + 4]]
    ]


STREAMS = {"fashion": fashion, "news": news}


def cut_encoder(folder: Path, layers: int) -> Path:
    """The first layers of the demonstration's encoder, as a model of its own."""
    from transformers import AutoModel, AutoTokenizer

    if not folder.is_dir():
        model = AutoModel.from_pretrained(demo_model())
        model.encoder.layer = model.encoder.layer[:layers]
        model.config.num_hidden_layers = layers
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(demo_model()).save_pretrained(folder)
    return folder


def configuration(
    arguments: argparse.Namespace, method: Mapping[str, Any], seed: int, untrained: bool
) -> dict[str, Any]:
    """The configuration of one run; ``untrained``: at a learning rate that changes nothing."""
    matcher = {"kind": "matcher", "candidates": "seen", "precision": "fp32", "dropout": 0.0}
    if arguments.stream == "fashion":
        model = {**matcher, "name": str(arguments.vit), "lora": None}
        training = {"epochs": 3, "batch": 32, "learning_rate": 2e-4, "warmup": 0.1}
    else:
        encoder = cut_encoder(arguments.encoder, 1)
        model = {**matcher, "name": str(encoder), "lora": {"r": 8}, "attention": "eager", "precision": "bf16"}
        training = {"epochs": 3, "batch": 16, "learning_rate": 5e-3, "warmup": 0.1, "max_input": 24}
    if untrained:
        training["learning_rate"] = 1e-12
    spent = BUDGET[arguments.stream] if method["name"] == "trm" else {}
    return {
        "model": model,
        "method": {**spent, **method},
        "training": {**training, "checkpoint_minutes": None},
        "evaluation": {"future": False, "batch": 100},
        "seed": seed,
    }


def learn(arguments: argparse.Namespace) -> None:
    """Make every run that is asked for and not in the file."""
    done = {(r["stream"], r["split"], r["setting"], r["seed"]) for r in results(arguments.results)}
    settings = {**SETTINGS, **json.loads(arguments.extra)}
    until = time.monotonic() + 60 * arguments.minutes
    for seed in arguments.seeds:
        asked = [name for name in settings if name in (arguments.settings or settings)]
        missing = [name for name in asked if (arguments.stream, arguments.split, name, seed) not in done]
        tasks = STREAMS[arguments.stream](arguments, seed) if missing else []
        scored = [replace(t, dev=(), test=t.test if arguments.split == "test" else t.dev) for t in tasks]
        for name in missing:
            if time.monotonic() > until:
                return
            result = {"stream": arguments.stream, "split": arguments.split, "setting": name, "seed": seed}
            result |= run(configuration(arguments, settings[name], seed, name == "no training"), scored)
            with arguments.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            shown = [f"{key} {result[key]:.3f}" for key in SHOWN if result[key] is not None]
            shown += [f"{weight:.2f}" for weight in result["weights"]]
            print(arguments.stream, arguments.split, name, seed, *shown, flush=True)


def run(config: dict[str, Any], tasks: Sequence[Task]) -> dict[str, Any]:
    """One run's results: shares, CPU seconds, and what :class:`Onset` found."""
    onset, began = Onset({task.name: task for task in tasks}), time.process_time()
    with (
        tempfile.TemporaryDirectory() as folder,
        Learner.of_config(Path(folder) / "run", check_config(config, "claims"), listener=onset) as learner,
    ):
        onset.learner = learner
        learner.learn_stream(tasks)
        record = learner.record
    found = {metric.name: metric.value for metric in record.scores.summary}
    return {
        "method": config["method"],
        "OP": found["OP"],
        "forgetting": found[FORGETTING] if not learner.session.method.joint else None,
        "learned": found["learning accuracy"],
        "zero_shot": found["zero-shot"],
        "seconds": time.process_time() - began,
        "weights": [merge.weight_new for merge in record.merges],
        "merging_seconds": sum(task.cost.merging_seconds for task in record.tasks),
        "onset": onset.found,
    }


def results(file: Path) -> list[dict[str, Any]]:
    """The lines of the file of results."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def cell(values: Sequence[float], scale: float) -> str:
    """Mean ± half a 95 % t interval; shares with one decimal, other numbers with two."""
    mean, half = t_interval([scale * value for value in values])
    places = 1 if scale == 100 else 2
    return f"{mean:.{places}f}" + (f" ± {half:.{places}f}" if half is not None else "")


def onset_mean(result: Mapping[str, Any], key: str) -> float:
    """Of one run, the mean over the tasks before which every method has merged: all from the third."""
    return statistics.mean(each[key] for each in result["onset"] if each["task"] > 2)


MEASURES: dict[str, tuple[Callable[[Mapping[str, Any]], float], float]] = {
    "OP": (lambda result: result["OP"], 100),
    "forgetting": (lambda result: result["forgetting"], 100),
    "learning accuracy": (lambda result: result["learned"], 100),
    "gradient at onset, merged": (lambda result: onset_mean(result, "merged"), 1),
    "gradient at onset, fine-tuned": (lambda result: onset_mean(result, "tuned"), 1),
    "accuracy at onset": (lambda result: onset_mean(result, "start_accuracy"), 100),
    "steps to 90 %": (lambda result: onset_mean(result, "steps_to_90"), 1),
    "seconds of merging": (lambda result: result["merging_seconds"], 1),
}
"""Column of a table -> its number of one run, and a factor."""


def row(name: str, runs: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]] | None = None) -> str:
    """A line of a table; with ``base``, runs of the same seeds, that of the differences to it."""
    cells = []
    for column, (number, scale) in MEASURES.items():
        if column != "OP" and not runs[0]["onset"]:  # learned at once
            cells.append(cell([run["learned"] for run in runs], 100) if column == "learning accuracy" else "")
        else:
            others = [0.0] * len(runs) if base is None else [number(run) for run in base]
            cells.append(cell([number(run) - other for run, other in zip(runs, others, strict=True)], scale))
    return f"| {name} | {len(runs)} | {' | '.join(cells)} |"


def onset_rows(by_name: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[str]:
    """Task by task, the gradient at the deployed weights as a share of that at the weights before the merge."""
    number = max(each["task"] for run in by_name["trm"].values() for each in run["onset"])
    text = [f"| | {' | '.join(f'task {task}' for task in range(2, number + 1))} |", "|---" * number + "|"]
    for name in PLAIN:
        onsets = [run["onset"] for run in by_name.get(name, {}).values()]
        ratios = [[each["merged"] / each["tuned"] for each in onset] for onset in onsets]
        if any(ratio != 1 for run in ratios for ratio in run):
            text.append(f"| {name} | {' | '.join(cell(column, 1) for column in zip(*ratios, strict=True))} |")
    return text


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """The committed tables."""
    budgets = ", ".join(f"{each['steps']} steps on {stream}" for stream, each in BUDGET.items())
    text = [
        "# Do the claims about TRM hold here?",
        "",
        "The paper's abstract is the source of the idea; the formulas and numbers here are our own.",
        "",
        "`python benchmarks/claims.py --stream fashion` and `--stream news`, seeds 0 to 4, test data; "
        "`python benchmarks/claims.py --table` wrote this page; the docstring lists the steps before it. Raw results: "
        "`claims.jsonl`; those on development data, from which settings were chosen: `claims_development.jsonl`. "
        "[docs/methods/trm.md](../../docs/methods/trm.md#measured) discusses the findings. OP is overall performance.",
        "",
        f"TRM has its defaults except for the budget of a merge: batches of 32, {budgets} (defaults: 128 and 60), "
        "since a task is trained for only 39 to 75 steps here. The machine was busy: seconds of different tables are "
        "not comparable.",
    ]
    titles = {"fashion": "Fashion-MNIST, classes 2 + 2 + 1", "news": "20 newsgroups, 5 x 4"}
    for stream, title in titles.items():
        by_name: dict[str, dict[int, Mapping[str, Any]]] = {}
        for line in lines:
            if line["stream"] == stream and line["split"] == "test":
                by_name.setdefault(line["setting"], {})[line["seed"]] = line
        if "trm" not in by_name:
            continue
        head = [f"| | seeds | {' | '.join(MEASURES)} |", "|---" * (len(MEASURES) + 2) + "|"]
        text += ["", f"## {title}", "", *head]
        text += [row(name, list(by_name[name].values())) for name in PLAIN if name in by_name]
        for heading, names, sign in (
            ("`trm` minus each of the others, paired by seed", [name for name in PLAIN if name != "trm"], 1),
            ("Each variant of `trm` minus `trm`, paired by seed", list(PARTS), -1),
        ):
            text += ["", f"{heading}:", "", *head]
            for name in [name for name in names if name in by_name and name != "joint"]:
                seeds = sorted(by_name[name].keys() & by_name["trm"].keys())
                pair = [[by_name[each][seed] for seed in seeds] for each in ("trm", name)]
                if seeds:
                    text.append(row(name, *pair[::sign]))
        heading = "Gradient at the onset of a task, at the deployed weights as a share of that before the merge"
        text += ["", f"{heading}:", "", *onset_rows(by_name)]
    text += [
        "",
        "Mean over seeds ± half a 95 % t interval; accuracies in percent. OP: mean accuracy over all tasks at the end; "
        "forgetting: since a task was learned; columns of the onset: mean over tasks from the third, before which "
        "every method has merged; gradients are those of the next task's loss, at the deployed weights and at those "
        "before the merge; steps to 90 %: of the accuracy after the last step, in steps of three. A share of 1: "
        "nothing was merged after the first task. The last task of Fashion-MNIST has one class: there the loss among "
        "its own labels, which TRM aligns by, is 0.",
        "",
        f"Made with {', '.join(f'{key} {value}' for key, value in versions().items())}.",
    ]
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", choices=list(STREAMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--settings", nargs="+", help="default: all")
    parser.add_argument("--extra", default="{}", help="more settings, as JSON: name -> options of a method")
    parser.add_argument("--split", choices=["test", "dev"], default="test")
    parser.add_argument("--minutes", type=float, default=1e6, help="start no run after so many")
    parser.add_argument("--images", type=Path, default=Path("data/fashion-mnist"), help="folder of Fashion-MNIST")
    parser.add_argument("--vit", type=Path, default=Path("models/vit-5"), help="the pretrained transformer")
    parser.add_argument("--encoder", type=Path, default=Path("models/claims-encoder"), help="made when it is not there")
    parser.add_argument("--results", type=Path, default=RESULTS / "claims.jsonl", help="file of results")
    parser.add_argument("--table", action="store_true", help="print the tables of the file of results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table:
        print(table(results(arguments.results)))
    elif arguments.stream:
        learn(arguments)
    else:
        parser.error("--stream or --table is needed")


if __name__ == "__main__":
    main()
