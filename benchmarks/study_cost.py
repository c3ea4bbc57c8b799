"""Where the processor time of a study of many small cells goes: the share of training's forward and backward passes.
Those on new and remembered texts, and those that a method makes beside: a Fisher information, probes, losses at merges.

    python benchmarks/study_cost.py > benchmarks/results/study_cost.md

Four methods with five seeds learn two tasks of the demonstration with its sentence encoder, one cell at a time with one
thread. Every number is processor time, so it does not matter what else the machine does: the sum is that of this
process and of all that it has started and waited for (``getrusage``), with imports, plan, progress and the page. In the
cells a clock runs in the functions of ``PARTS``; what one of them calls of another counts for that other alone.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PASSES = "forward and backward passes on new and remembered texts"
OF_METHODS = "forward and backward passes of methods: Fisher information, probes, losses at merges"
PARTS = {
    "merganser.training.trainer.TaskTrainer.training_step": PASSES,
    "merganser.training.rehearsal.rehearse_step": PASSES,
    "merganser.training.fisher.diagonal_fisher": OF_METHODS,
    "merganser.training.rehearsal.measure_loss": OF_METHODS,
    "torch.optim.AdamW.step": "optimizer",
    "merganser.training.trainer.train_task": "rest of training: batches, merges, the loop",
    "merganser.learner.opening._load_backbone": "loading the model",
    "merganser.learner.opening.start": "starting a run",
    "merganser.learner.checks.check_stream": "checks before training",
    "merganser.learner.session.Session.score_examples": "answering test texts",
    "merganser.learner.learn_task.write_row_files": "writing rows",
    "merganser.learner.session.Session.commit": "writing rows",
    "merganser.study.run_cell.record": "recording the cell",
}
REST = "rest of the cells"
CLOCKS = "STUDY_COST_CLOCKS"


class Clocks:
    """Processor seconds of this process by part; a part stops while another one runs inside of it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.stack = [REST]
        self.last = time.process_time()

    def switch(self) -> None:
        """Give what has passed to the part that ran."""
        now = time.process_time()
        self.seconds[self.stack[-1]] = self.seconds.get(self.stack[-1], 0.0) + now - self.last
        self.last = now

    def around(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """Return a function with the clock of a part."""

        @functools.wraps(function)
        def timed(*given: Any, **options: Any) -> Any:
            self.switch()
            self.stack.append(part)
            try:
                return function(*given, **options)
            finally:
                self.switch()
                self.stack.pop()

        return timed


def serve(folder: Path) -> None:
    """Be the process that cells are started from; every cell writes its clocks at its end, this process its own."""
    from merganser.study import run_cell as module

    gc.disable()  # as the server does before it imports anything
    from merganser.study import server

    clocks = Clocks()
    for place, part in PARTS.items():
        parent, name = place.rsplit(".", 1)
        try:
            owner = importlib.import_module(parent)
        except ModuleNotFoundError:
            holder, of_class = parent.rsplit(".", 1)
            owner = getattr(importlib.import_module(holder), of_class)
        replaced, timed = getattr(owner, name), clocks.around(getattr(owner, name), part)
        setattr(owner, name, timed)
        if not isinstance(owner, type):  # also where it has been imported by its name
            for other in [each for key, each in sys.modules.items() if key.startswith("merganser.")]:
                if getattr(other, name, None) is replaced:
                    setattr(other, name, timed)
    run = module.run_cell

    def run_cell(*given: Any, **options: Any) -> None:
        clocks.seconds, clocks.last = {}, 0.0  # the clock of a new process starts at 0
        run(*given, **options)
        clocks.switch()
        (folder / f"{os.getpid()}.json").write_text(json.dumps(clocks.seconds))

    module.run_cell = run_cell
    server.main()
    (folder / "server.json").write_text(json.dumps(time.process_time()))


def write_data(folder: Path, texts: int, tests: int) -> list[dict[str, Any]]:
    """Write two tasks as files; return them as a study names them."""
    from merganser.streams.demo import demo_stream

    tasks = []
    for task in demo_stream(texts, tests, 0).tasks[:2]:
        for split in ("train", "test"):
            lines = [json.dumps({"text": each.input, "label": each.output}) for each in getattr(task, split)]
            (folder / f"{task.name}-{split}.jsonl").write_text("\n".join(lines) + "\n")
        files = {split: str(folder / f"{task.name}-{split}.jsonl") for split in ("train", "test")}
        tasks.append({"name": task.name, **files, "input": "text", "output": "label"})
    return tasks


def study_of(tasks: list[dict[str, Any]], methods: list[str], seeds: int) -> dict[str, Any]:
    """Return the study."""
    from merganser.demo import demo_model

    return {
        "name": "small cells",
        "model": {"name": demo_model(), "kind": "matcher", "dropout": 0.0, "attention": "eager"},
        "stream": {"tasks": tasks},
        "memory": {"share": 0.1, "minimum_per_label": 1},
        "training": {"epochs": 2, "batch": 16, "learning_rate": 5e-3, "warmup": 0.06, "max_input": 64},
        "methods": methods,
        "seeds": list(range(seeds)),
    }


def processor_seconds() -> float:
    """Return the processor time of this process and of those that it has waited for."""
    used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def run_study(value: Mapping[str, Any], out: Path, clocks: Path) -> tuple[int, float]:
    """Run the study; return the number of cells and the processor seconds of its page, tables and figures."""
    from merganser.study import local
    from merganser.study.published import read_results
    from merganser.study.study import study

    def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        environment = {**options.pop("env"), CLOCKS: str(clocks)}
        return subprocess.Popen([sys.executable, str(Path(__file__).resolve())], env=environment, **options)

    local.Popen = start  # type: ignore[assignment, misc]
    result = study(value, out, parallel=1, threads=1)
    if not result.complete:
        raise SystemExit(f"The study failed: {dict(result.failed)}")
    before = time.process_time()
    read_results(out).publish()
    return len(result.done), time.process_time() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=192, help="training texts of a task")
    parser.add_argument("--tests", type=int, default=24, help="test texts of a task")
    parser.add_argument("--methods", default="sequential,replay,aim,ewc")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clocks = folder / "clocks"
        clocks.mkdir()
        before = time.process_time()
        tasks = write_data(folder, given.texts, given.tests)
        data = time.process_time() - before  # a user has them already
        value = study_of(tasks, given.methods.split(","), given.seeds)
        cells, page = run_study(value, folder / "out", clocks)
        total = processor_seconds() - data
        parts = {"page, tables, figures": page}
        for file in clocks.glob("[0-9]*.json"):
            for part, seconds in json.loads(file.read_text()).items():
                parts[part] = parts.get(part, 0.0) + seconds
        parts["the process that starts the cells: imports, data"] = json.loads((clocks / "server.json").read_text())
    parts["the command and what no clock has: imports, plan, progress, ending processes"] = total - sum(parts.values())
    from merganser.runs.versions import versions

    print("# Where the processor time of a study of small cells goes\n")
    print("| part | processor seconds | share |\n|---|---:|---:|")
    for part, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"| {part} | {seconds:.1f} | {seconds / total:.1%} |")
    passes = parts.get(PASSES, 0.0) + parts.get(OF_METHODS, 0.0)
    print(f"| both kinds of passes | {passes:.1f} | {passes / total:.1%} |")
    print(f"| all of {cells} cells | {total:.1f} | 100.0% |\n")
    command = f"python benchmarks/study_cost.py --texts {given.texts} --tests {given.tests} --methods {given.methods}"
    found = ", ".join(f"{key} {version}" for key, version in versions().items())
    print(f"Command: `{command} --seeds {given.seeds}`. {found}.")


if __name__ == "__main__":
    if CLOCKS in os.environ:
        serve(Path(os.environ[CLOCKS]))
    else:
        main()
