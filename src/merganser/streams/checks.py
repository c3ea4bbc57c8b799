"""What makes a task fit to be learned. Every task passes here, from whatever file or program it comes."""

from __future__ import annotations

from collections.abc import Sequence

from merganser.errors import InputError, first_repeated, nearest
from merganser.streams.options import name_problem
from merganser.streams.task import Example, Task


def check_task(task: Task) -> None:
    """Refuse a task that cannot be learned or scored.

    Raises:
        InputError: a name unfit for a folder, no training texts, texts beside images, an empty text, an answer outside
            the label set, a label in dev or test that no training text has, two labels with the same text. What is
            wrong with labels, prompt or metric alone is refused by :class:`~merganser.streams.answers.AnswerSpec`.
    """
    if problem := name_problem(task.name):
        raise InputError(f"{problem[0].upper()}{problem[1:]}.", "Rename the task.")
    where = f"Task '{task.name}'"
    if not task.train:
        raise InputError(f"{where} has no training texts.", "Give it at least one.")
    if len({example.image is None for _, examples in _splits(task) for example in examples}) > 1:
        raise InputError(f"{where} has both texts and images.", "Make two tasks of it.")
    for split, examples in _splits(task):
        for number, example in enumerate(examples, start=1):
            if not example.input.strip() or not example.output.strip():
                part = "output" if example.input.strip() else "input"
                raise InputError(f"{where}: the {part} of {split} text {number} is empty.", "Fill it, or remove it.")
    if task.spec.labels is not None:
        _check_labels(where, task, task.spec.labels)


def check_names(names: Sequence[str]) -> None:
    """Refuse a task name that stands twice in a stream.

    Raises:
        InputError: naming the task.
    """
    if (twice := first_repeated(names)) is not None:
        raise InputError(f"Task '{twice}' occurs twice.", "Give every task of a stream its own name.")


def _splits(task: Task) -> tuple[tuple[str, Sequence[Example]], ...]:
    return ("train", task.train), ("dev", task.dev), ("test", task.test)


def _check_labels(where: str, task: Task, labels: tuple[str, ...]) -> None:
    if (twice := first_repeated(map(task.spec.text_of, labels))) is not None:
        raise InputError(
            f"{where}: two labels have the same text '{twice}'.", "Make the texts differ, or no encoder can."
        )
    known = set(labels)
    for split, examples in _splits(task):
        for number, example in enumerate(examples, start=1):
            if example.output not in known:
                raise InputError(
                    f"{where}: {split} text {number} has the answer '{example.output}', which is not one of its labels"
                    f" ({', '.join(labels[:20])}{', ...' if len(labels) > 20 else ''}).",
                    nearest(example.output, labels) or "Correct it, add it to 'labels', or use 'labels: none'.",
                )
    learned = {example.output for example in task.train}
    for split, examples in _splits(task)[1:]:
        for number, example in enumerate(examples, start=1):
            if example.output not in learned:
                raise InputError(
                    f"{where}: {split} text {number} has the label '{example.output}', which no training text has.",
                    "Add training texts with that label, or remove it; with a limit, raise the limit.",
                )
