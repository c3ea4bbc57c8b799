"""Choose the demonstration's settings on its development texts (never on the test texts that it reports).

    python benchmarks/demo_settings.py --learning-rate 5e-3 --epochs 2 --method sequential

Prints overall performance (OP) and backward transfer (BWT) on the development texts.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from merganser.config import check_config
from merganser.demo import demo_config
from merganser.events import Event, RowDone
from merganser.learner import Learner
from merganser.streams.demo import demo_stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="aim")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--order", nargs="*", help="names of the tasks, in another order")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    settings = demo_config(arguments.method, arguments.seed, quick=False).model_dump(mode="json")
    for key in ("learning_rate", "epochs"):
        if getattr(arguments, key) is not None:
            settings["training"][key] = getattr(arguments, key)
    tasks = {
        task.name: replace(task, test=task.dev, dev=())
        for task in demo_stream(arguments.texts, 1, arguments.seed, dev_per_task=200).tasks
    }
    order = arguments.order or list(tasks)

    def print_progress(event: Event) -> None:
        if isinstance(event, RowDone):
            scores = {task: round(100 * value, 1) for task, value in event.scores.items()}
            print("+".join(event.learned) or "before", scores, flush=True)

    with (
        tempfile.TemporaryDirectory() as folder,
        Learner.of_config(Path(folder) / "run", check_config(settings, "settings"), listener=print_progress) as learner,
    ):
        learner.learn_stream([tasks[name] for name in order])
        record = learner.record
    summary = {metric.name: metric.value for metric in record.scores.summary}
    seconds = sum(task.cost.seconds for task in record.tasks)
    found = f"OP {summary['OP']:.3f} BWT {summary['BWT']:+.3f} in {seconds:.0f} s"
    print(f"{arguments.method}: {found} on development texts")


if __name__ == "__main__":
    main()
