"""What checksums cost: seconds spent on SHA-256 while tasks are learned and when a run is verified, beside the tasks.

    python benchmarks/checksums.py [--tasks 3] [--full] [--quick]

The first tasks of the demonstration, with its settings and a checkpoint every 20 steps; ``--full`` trains all weights
instead of LoRA, so that a row and its checkpoints are as large as the model; ``--quick`` takes a third of the texts.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from merganser import Learner
from merganser.demo import demo_config, demo_tasks
from merganser.runs import RunDirectory, checkpoint, checksums, rows
from merganser.runs.verification import verify

spent = [0.0]
"""Wall-clock seconds in functions that compute or compare checksums, those within one another counted once."""


def timed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the time of every outer call to ``spent``."""

    @functools.wraps(function)
    def wrapper(*given: Any, **options: Any) -> Any:
        outer = not timed.inside  # type: ignore[attr-defined]
        timed.inside = True  # type: ignore[attr-defined]
        began = time.perf_counter()
        try:
            return function(*given, **options)
        finally:
            if outer:
                timed.inside = False  # type: ignore[attr-defined]
                spent[0] += time.perf_counter() - began

    return wrapper


timed.inside = False  # type: ignore[attr-defined]

for module in (checkpoint, checksums, rows):
    for name in ("checksums", "sha256_of", "problem_of", "first_problem", "is_intact", "sealed"):
        if callable(getattr(module, name, None)):
            setattr(module, name, timed(getattr(module, name)))


def main() -> None:
    """Learn, verify, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    config = demo_config("aim", 0, quick=options.quick).model_dump(mode="json", exclude={"stream"})
    config["training"]["checkpoint_steps"] = 20
    if options.full:
        config["model"]["lora"] = None
        config["training"]["learning_rate"] = 5e-5
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        print("| task | seconds | bytes of the row | seconds for checksums | share |\n|---|---|---|---|---|")
        with Learner.open(run, **config) as learner:
            for task in demo_tasks(0, quick=options.quick)[: options.tasks]:
                spent[0], began = 0.0, time.perf_counter()
                learner.learn(task)
                seconds, last = time.perf_counter() - began, learner.session.rows[-1].folder
                size = sum(file.stat().st_size for file in last.rglob("*") if file.is_file())
                share = f"{100 * spent[0] / seconds:.2f} %"
                print(f"| {task.name} | {seconds:.1f} | {size / 1e6:.1f} MB | {spent[0]:.3f} | {share} |", flush=True)
        began = time.perf_counter()
        found = verify(RunDirectory.open(run), repair=False)
        seconds = time.perf_counter() - began
        assert not found.damaged
        print(f"\nVerified {found.files} files, {found.bytes / 1e6:.1f} MB, in {seconds:.2f} s.")


if __name__ == "__main__":
    main()
