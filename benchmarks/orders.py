"""All eight built-in orders from beginning to end, with a tiny T5 made on the spot and with MiniLM: does each one run?

    PYTHONPATH=. python benchmarks/orders.py --data DATA --out runs/orders
    PYTHONPATH=. python benchmarks/orders.py --table runs/orders > benchmarks/results/orders.md

DATA holds ``data_longsequence`` and ``data_superni`` in AimMerging's layout, or what there is of them: tasks without
files are left out and named. One study per model (``merganser study``), in which each order is a stream, with ``aim``
and one seed; 32 training texts of each task, 20 test texts, one epoch. So few texts show that the orders run, not how
good a method is. The T5 has two layers of width 32, a vocabulary made of the training texts and random weights, and
reads the texts as they are; after so few steps it writes no answer of any task yet. MiniLM compares a text with its
label texts: it has no use for the instruction around each text, which is taken off, and no answer to tasks of free
text, which it leaves out.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import yaml
from quality import LABEL_TEXTS, bare
from tests.tiny import tiny_t5

import merganser
from merganser.demo import demo_model
from merganser.streams.builtin import BUILTIN, BuiltinStream
from merganser.streams.task import Example
from merganser.study.cell_record import CellRecord, read_cells

TRAIN, TEST = 32, 20
SPLITS = ("train", "test")
SUPERNI = re.compile(r"\[IN\](.*)\[OUT\]", re.DOTALL)
TEXTS_OF_LABELS = {
    **LABEL_TEXTS,
    "task363": {"P": "a positive review", "N": "a negative review"},
    "task1687": {"p": "a positive tweet", "n": "a negative tweet"},
}
MODELS = {
    "tiny T5": {
        "model": {"kind": "seq2seq"},
        "training": {"learning_rate": 1e-3, "max_input": 128, "max_target": 24},
    },
    "MiniLM": {
        "model": {"kind": "matcher", "dropout": 0.0, "attention": "eager"},
        "training": {"learning_rate": 5e-3, "max_input": 32},
    },
}


def present(data: Path, stream: BuiltinStream, model: str) -> list[str]:
    """The tasks of an order that there are files of, and that the model can answer."""
    files = [data / folder_of(stream) / split for split in SPLITS]
    found = [task for task in stream.tasks if all((file / f"{task}_T5.json").exists() for file in files)]
    return [task for task in found if model != "MiniLM" or stream.kind(task) == "classification"]


def folder_of(stream: BuiltinStream) -> str:
    """The folder of the published files."""
    return "data_superni" if stream.name.startswith("superni") else "data_longsequence"


def write_bare(data: Path, out: Path) -> Path:
    """The files in the same layout, without the instruction around each text."""
    for file in sorted(data.glob("data_*/t*/*_T5.json")):
        target = out / file.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        rows = json.loads(file.read_text(encoding="utf-8"))
        for row in rows:
            inner = SUPERNI.search(row["input"])
            row["input"] = inner[1].strip() if inner else bare(Example(row["input"], row["output"])).input
        target.write_text(json.dumps(rows), encoding="utf-8")
    return out


def study_file(model: str, name: str, data: Path) -> dict[str, Any]:
    """The study of a model: a stream per order."""
    settings = MODELS[model]
    streams = {}
    for stream in BUILTIN.values():
        tasks = present(data, stream, model)
        texts = {task: {"labels": TEXTS_OF_LABELS[task]} for task in tasks if task in TEXTS_OF_LABELS}
        streams[stream.name] = {
            "folder": str(data / folder_of(stream)),
            "order": tasks,
            "limit": TRAIN,
            "limit_test": TEST,
            **({"overrides": texts} if texts and model == "MiniLM" else {}),
        }
    return {
        "name": f"eight orders, {model}",
        "model": {**settings["model"], "name": name},
        "streams": streams,
        "memory": {"number": 8},
        "training": {"epochs": 1, "batch": 8, **settings["training"]},
        "evaluation": {"future": False},
        "methods": ["aim"],
        "reference": "aim",
    }


def run(data: Path, out: Path) -> None:
    """Write models, data and studies, and run the cells that are missing."""
    out.mkdir(parents=True, exist_ok=True)
    texts = [
        row["input"]
        for file in sorted(data.glob("data_*/train/*_T5.json"))
        for row in json.loads(file.read_text(encoding="utf-8"))[:TRAIN]
    ]
    names = {"tiny T5": str(tiny_t5(out / "model", texts)), "MiniLM": demo_model()}
    folders = {"tiny T5": data.absolute(), "MiniLM": write_bare(data, out.absolute() / "data")}
    for model, name in names.items():
        file = out / f"{model.replace(' ', '-').lower()}.yaml"
        file.write_text(yaml.safe_dump(study_file(model, name, folders[model]), sort_keys=False), encoding="utf-8")
        result = merganser.study(file, file.with_suffix(""), parallel=1, threads=1)
        print(f"{model}: {len(result.done)} cells done, {len(result.failed)} failed: {dict(result.failed)}", flush=True)


def table(out: Path) -> None:
    """Print the results as Markdown."""
    print("# The eight built-in orders\n")
    print(" ".join((__doc__ or "").split("\n\n")[2].split()).replace("``", "`") + "\n")
    print("    PYTHONPATH=. python benchmarks/orders.py --data DATA --out runs/orders\n")
    print(
        "Overall performance (OP) and backward transfer (BWT) are in percent; processor seconds are those of the whole "
        "order, encoding and evaluating included.\n"
    )
    first: CellRecord | None = None
    for model in MODELS:
        folder = out / model.replace(" ", "-").lower() / "records"
        records = read_cells(folder) if folder.is_dir() else []
        by_order = {record.stream: record for record in records}
        print(f"## {model}\n")
        print("| order | tasks learned | left out | OP | BWT | seconds |\n|---|---|---|---|---|---|")
        for stream in BUILTIN.values():
            if stream.name not in by_order:
                print(f"| {stream.name} | not run | | | | |")
                continue
            record = first = by_order[stream.name]
            absent = [task for task in stream.tasks if task not in record.tasks]
            counts = f"{len(record.tasks)} of {len(stream.tasks)}: {' '.join(record.tasks)}"
            op, bwt = (f"{100 * value:.1f}" if value is not None else "" for value in (record.op, record.bwt))
            seconds = record.cost.processor_seconds or record.cost.seconds
            print(f"| {stream.name} | {counts} | {' '.join(absent)} | {op} | {bwt} | {seconds:.0f} |")
        print()
    assert first is not None, "nothing was run"
    libraries = ", ".join(f"{name} {first.versions[name]}" for name in ("python", "torch", "transformers", "peft"))
    print(f"{libraries}; {first.hardware['processor']}, one thread.")


def main() -> None:
    """Run or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with data_longsequence and data_superni")
    parser.add_argument("--out", type=Path, default=Path("runs/orders"))
    parser.add_argument("--table", type=Path, metavar="OUT", help="print the table of what was run there")
    arguments = parser.parse_args()
    if arguments.table is not None:
        table(arguments.table)
    elif arguments.data is None:
        parser.error("give --data, or --table")
    else:
        run(arguments.data, arguments.out)


if __name__ == "__main__":
    main()
