"""What AimMerging costs beside plain fine-tuning on the same data, and where the time goes.

    python benchmarks/cost.py --pairs 3 > benchmarks/results/cost.md
    python benchmarks/cost.py --pairs 1 --tasks 2 --epochs 16                # tasks of 304 steps
    python benchmarks/cost.py --pairs 1 --tasks 2 --epochs 16 --memory 160 --no-replay     # with a large memory

Learns the first tasks of the demonstration (see `merganser demo`) with `sequential`, with `replay` as the demonstration
has it and with `aim`, in turn, several times; the table gives medians over the pairs, for `replay` and `aim` as
multiples of `sequential`. One thread, bf16 where the processor has it. *Bookkeeping* is all that a method does besides
forward and backward passes and arithmetic on weights: drawing batches, deciding, writing records.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from merganser.config import check_config
from merganser.demo import demo_config, demo_tasks
from merganser.learner import Learner
from merganser.runs.record import CostRecord, RunRecord

PARTS = ("inner", "probing", "rehearsal", "merging", "merge_eval", "bookkeeping")


def learn(method: str, folder: Path, tasks: int, epochs: int | None, memory: int | None) -> RunRecord:
    """One run over the first tasks; nothing is evaluated."""
    config = demo_config(method, seed=0, quick=False).model_dump(mode="json")
    if epochs is not None:
        config["training"]["epochs"] = epochs
    if memory is not None:
        config["memory"] = {"number": memory}
    stream = [task.__class__(**{**vars(task), "test": (), "dev": ()}) for task in demo_tasks(0, quick=False)[:tasks]]
    with Learner.of_config(folder, check_config(config, "cost")) as learner:
        learner.learn_stream(stream)
        return learner.record


def training_seconds(cost: CostRecord) -> float:
    """Sum the seconds of all parts of the training loop."""
    return sum(getattr(cost, f"{part}_seconds") for part in PARTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="passes over a task's texts; by default those of the demonstration")
    parser.add_argument("--memory", type=int, help="texts kept of every task; by default those of the demonstration")
    parser.add_argument("--no-replay", action="store_true", help="leave replay out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    others = ("aim",) if arguments.no_replay else ("replay", "aim")
    found: dict[str, list[list[CostRecord]]] = {method: [] for method in ("sequential", *others)}
    record = None
    for pair in range(arguments.pairs):
        for method in found:
            folder = Path(tempfile.mkdtemp())
            try:
                record = learn(method, folder / "run", arguments.tasks, arguments.epochs, arguments.memory)
            finally:
                shutil.rmtree(folder)
            found[method].append([task.cost for task in record.tasks])
            print(f"pair {pair + 1}: {method} done", file=sys.stderr, flush=True)
    assert record is not None
    columns = ("task", "steps", "texts rehearsed", "seconds (sequential)", *others, *PARTS)
    print(f"| {' | '.join(columns)} |")
    print("|" + "---|" * len(columns))
    for position, task in enumerate(record.tasks):
        plain = [training_seconds(run[position]) for run in found["sequential"]]
        ratios = [
            statistics.median(training_seconds(run[position]) / p for run, p in zip(found[name], plain, strict=True))
            for name in others
        ]
        shares = []
        for part in PARTS:
            share = statistics.median(
                getattr(run[position], f"{part}_seconds") / training_seconds(run[position]) for run in found["aim"]
            )
            shares.append(f"{100 * share:.2f} %")
        rehearsed = found["aim"][0][position].examples_rehearsed
        print(
            f"| {task.name} | {task.cost.steps} | {rehearsed} | {statistics.median(plain):.1f} | "
            f"{' | '.join([*(f'{ratio:.2f}' for ratio in ratios), *shares])} |"
        )
    versions = ", ".join(f"{key} {value}" for key, value in record.info.versions.items())
    command = f"python benchmarks/cost.py --pairs {arguments.pairs} --tasks {arguments.tasks}"
    command += "" if arguments.epochs is None else f" --epochs {arguments.epochs}"
    command += "" if arguments.memory is None else f" --memory {arguments.memory}"
    command += " --no-replay" if arguments.no_replay else ""
    print(f"\nCommand: `{command}`, seed 0. {versions}.")


if __name__ == "__main__":
    main()
