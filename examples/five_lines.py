"""Use the library in five lines: open a run, learn two tasks, print scores and answers.

python examples/make_data.py
python examples/five_lines.py
python examples/five_lines.py          # again: reports that both tasks are learned, and answers
merganser report runs/five-lines       # the same run, from the command line
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from merganser import Learner
from merganser.streams.loading import load_task
from merganser.streams.options import TaskOptions

TASKS = (
    TaskOptions(
        name="tickets", train="tickets-train.csv", test="tickets-test.csv", input=["subject", "body"], output="queue"
    ),
    TaskOptions(name="reviews", train="reviews-train.jsonl", test="reviews-test.jsonl", input="text", output="mood"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Fine-tune an encoder on two tasks, one after the other.")
    parser.add_argument(
        "--run", type=Path, default=Path("runs/five-lines"), help="run directory: new, or one of this script"
    )
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2", help="hub id or folder")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data", help="what make_data.py wrote")
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps per task")
    parser.add_argument("--precision", default="auto", help="auto, fp32 or bf16")
    given = parser.parse_args(arguments)
    # Raises an error here, before any work, if a file has a mistake.
    tasks = [load_task(options, given.data) for options in TASKS]

    # The five lines. Sections and keys are those of the YAML file (docs/run.md).
    model = {"name": given.model, "kind": "matcher", "precision": given.precision}
    training = {"steps": given.steps, "batch": 8, "learning_rate": 5e-3, "warmup": 0.06, "max_input": 64}
    with Learner.open(given.run, model=model, method="aim", memory={"number": 6}, training=training) as learner:
        for task in tasks:
            if task.name in learner.learned:
                print(f"'{task.name}' was learned in an earlier call.")
            else:
                learner.learn(task)

        # Row i: scores after i tasks; column j: task j. Row 0 is the model before any training.
        print("Scores of", ", ".join(learner.scores.tasks))
        print(learner.scores.values.round(2))
        for metric in learner.record.scores.summary:
            if metric.value is not None:
                print(f"{metric.name}: {metric.value:+.3f}  {metric.definition}")
        questions = ["The monitor has a cracked case.", "We were charged twice for the licence."]
        for question, answer in zip(questions, learner.predict(questions, task="tickets"), strict=True):
            print(f"{question} -> {answer.text} ({answer.score:.0%})")


if __name__ == "__main__":
    main()
